//! `understudy disable`, `drain`, `maintenance`, `enable` and `weight`: what an operator orders of servers.

use std::time::Duration;

use hyper::Method;

use super::{DirectorSocket, Failure, say, term};
use crate::model::{OrderAnswer, OrderRequest, ServiceKey, Weight, Wish};

/// Of which servers.
#[derive(Debug, clap::Args)]
pub(super) struct Servers {
    /// Address of the server, or address and port; without it all servers of --service
    #[arg(value_name = "SERVER", required_unless_present = "service")]
    server: Option<String>,
    /// In this virtual service only; without it in all that have the server
    #[arg(long, value_name = "SERVICE")]
    service: Option<ServiceKey>,
    #[command(flatten)]
    director: DirectorSocket,
}

/// Why, and for how long.
#[derive(Debug, clap::Args)]
pub(super) struct Terms {
    /// Why, for whoever looks at `status`
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// For so long, as in 30m or 12h: then it is taken back by itself
    #[arg(long = "for", value_name = "DURATION", value_parser = term)]
    lasts: Option<Duration>,
}

/// What takes servers out at once.
#[derive(Debug, clap::Args)]
pub(super) struct Out {
    #[command(flatten)]
    servers: Servers,
    #[command(flatten)]
    terms: Terms,
}

/// What takes servers out when their connections are gone.
#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    #[command(flatten)]
    servers: Servers,
    #[command(flatten)]
    terms: Terms,
    /// So long for its connections to end; without it drain_timeout
    #[arg(long, value_name = "DURATION", value_parser = term)]
    timeout: Option<Duration>,
}

/// A weight of its own.
#[derive(Debug, clap::Args)]
pub(super) struct OfWeight {
    /// Address of the server, or address and port
    #[arg(value_name = "SERVER")]
    server: String,
    /// 0 to 2147483647
    #[arg(value_name = "WEIGHT", value_parser = weight)]
    weight: Weight,
    /// In this virtual service only; without it in all that have the server
    #[arg(long, value_name = "SERVICE")]
    service: Option<ServiceKey>,
    #[command(flatten)]
    director: DirectorSocket,
    #[command(flatten)]
    terms: Terms,
}

fn weight(text: &str) -> Result<Weight, String> {
    let number: i64 = text
        .parse()
        .map_err(|_e| format!("{text:?} is no number"))?;
    Weight::try_from(number).map_err(|e| e.to_string())
}

pub(super) fn disable(a: &Out) -> Result<(), Failure> {
    let wish = Some(Wish::Disabled);
    a.servers.order(wish, Some(&a.terms), None)
}

pub(super) fn drain(a: &Drain) -> Result<(), Failure> {
    let wish = Some(Wish::Drained);
    a.servers.order(wish, Some(&a.terms), a.timeout)
}

pub(super) fn maintenance(a: &Drain) -> Result<(), Failure> {
    let wish = Some(Wish::Maintenance);
    a.servers.order(wish, Some(&a.terms), a.timeout)
}

pub(super) fn enable(a: &Servers) -> Result<(), Failure> {
    a.order(None, None, None)
}

pub(super) fn set_weight(a: &OfWeight) -> Result<(), Failure> {
    let wish = Some(Wish::Weight(a.weight));
    let (server, service) = (Some(a.server.as_str()), a.service);
    order(&a.director, (server, service), wish, Some(&a.terms), None)
}

impl Servers {
    fn order(
        &self,
        wish: Option<Wish>,
        terms: Option<&Terms>,
        drains: Option<Duration>,
    ) -> Result<(), Failure> {
        let of = (self.server.as_deref(), self.service);
        order(&self.director, of, wish, terms, drains)
    }
}

fn order(
    director: &DirectorSocket,
    (server, service): (Option<&str>, Option<ServiceKey>),
    wish: Option<Wish>,
    terms: Option<&Terms>,
    drains: Option<Duration>,
) -> Result<(), Failure> {
    let request = OrderRequest {
        server: server.map(str::to_owned),
        service,
        wish,
        reason: terms.and_then(|t| t.reason.clone()),
        for_s: terms.and_then(|t| t.lasts).map(|d| d.as_secs()),
        drain_s: drains.map(|d| d.as_secs()),
    };
    let limit = Duration::from_secs(10);
    let answer: OrderAnswer = director.ask(Method::POST, "/v1/orders", Some(&request), limit)?;
    let what = match wish {
        Some(Wish::Disabled) => "disabled: out of service, with its connections",
        Some(Wish::Drained) => "drained: no new connections, out when those that it has are gone",
        Some(Wish::Maintenance) => {
            "in maintenance: no new connections, out when those that it has are gone, and then asked no more"
        }
        Some(Wish::Weight(_)) => "of this weight, as long as it passes its checks",
        None => "as configured and as its checks say",
    };
    for place in &answer.places {
        say(&format!("{} in {}: {what}\n", place.server, place.service))?;
    }
    match answer.not_kept {
        None => Ok(()),
        Some(why) => Err(Failure::Failed(format!(
            "the order holds, but only until the director ends: {why}"
        ))),
    }
}
