//! `understudy disable`, `drain`, `enable` and `weight`: what an operator orders of a server.

use std::time::Duration;

use hyper::Method;

use super::{DirectorSocket, Failure, block_on, say};
use crate::model::{OrderAnswer, OrderRequest, ServiceKey, Weight, Wish};

/// Of which server.
#[derive(Debug, clap::Args)]
pub(super) struct Server {
    /// Address of the server, or address and port
    #[arg(value_name = "SERVER")]
    server: String,
    /// In this virtual service only; without it in all that have the server
    #[arg(long, value_name = "SERVICE")]
    service: Option<ServiceKey>,
    #[command(flatten)]
    director: DirectorSocket,
}

/// What takes a server out, and why.
#[derive(Debug, clap::Args)]
pub(super) struct Aside {
    #[command(flatten)]
    server: Server,
    /// Why, for whoever looks at `status`
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// A weight of its own.
#[derive(Debug, clap::Args)]
pub(super) struct OfWeight {
    #[command(flatten)]
    server: Server,
    /// 0 to 2147483647
    #[arg(value_name = "WEIGHT", value_parser = weight)]
    weight: Weight,
    /// Why, for whoever looks at `status`
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

fn weight(text: &str) -> Result<Weight, String> {
    let number: i64 = text
        .parse()
        .map_err(|_e| format!("{text:?} is no number"))?;
    Weight::try_from(number).map_err(|e| e.to_string())
}

pub(super) fn disable(a: &Aside) -> Result<(), Failure> {
    order(&a.server, Some(Wish::Disabled), a.reason.as_deref())
}

pub(super) fn drain(a: &Aside) -> Result<(), Failure> {
    order(&a.server, Some(Wish::Drained), a.reason.as_deref())
}

pub(super) fn enable(a: &Server) -> Result<(), Failure> {
    order(a, None, None)
}

pub(super) fn set_weight(a: &OfWeight) -> Result<(), Failure> {
    order(&a.server, Some(Wish::Weight(a.weight)), a.reason.as_deref())
}

fn order(server: &Server, wish: Option<Wish>, reason: Option<&str>) -> Result<(), Failure> {
    let client = server.director.client();
    let request = OrderRequest {
        server: server.server.clone(),
        service: server.service,
        wish,
        reason: reason.map(str::to_owned),
    };
    let ask = client.ask(
        Method::POST,
        "/v1/orders",
        None,
        Some(&request),
        Duration::from_secs(10),
    );
    let unanswered = |e| Failure::unanswered("director", &e);
    let answer: OrderAnswer = block_on(async { ask.await.map_err(unanswered) })?;
    let what = match wish {
        Some(Wish::Disabled) => "disabled: out of service, with its connections",
        Some(Wish::Drained) => "drained: no new connections, those that it has go on",
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
