//! `understudy events`: what happened, and what happens.

use std::{
    io::{self, Write},
    time::Duration,
};

use hyper::Method;

use super::{DirectorSocket, Failure, block_on};
use crate::{
    api::client::{self, Client, NOTHING},
    clock,
    config::duration,
    model::{Event, EventKind, EventPage, EventServer, ServiceKey, Severity, WallMillis},
    telemetry::Chain,
};

/// How long the director lets a question wait for an event, in seconds.
const WAIT: u64 = 25;

/// An answer comes within this, or the director hangs.
const LIMIT: Duration = Duration::from_secs(WAIT + 10);

/// A director that does not answer is asked again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// Which events, and how to show them.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    director: DirectorSocket,
    /// Those of the provisioner (--socket is its socket then), with who did it
    #[arg(long)]
    provisioner: bool,
    /// Go on with what happens, also over a restart of the director
    #[arg(short, long)]
    follow: bool,
    /// Only of this virtual service: tcp/ADDRESS:PORT, fwmark/NUMBER, ...
    #[arg(long, value_name = "SERVICE")]
    service: Option<ServiceKey>,
    /// Only of this server: ADDRESS, or ADDRESS:PORT
    #[arg(long, value_name = "SERVER")]
    server: Option<EventServer>,
    /// Only of these kinds: server_down,quorum_lost
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<EventKind>,
    /// Only what is at least so bad: info, warning, error
    #[arg(long, value_name = "SEVERITY")]
    severity: Option<Severity>,
    /// Only what is no older: 10m, 2h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
    /// For people or programs
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// How far a reader is.
struct Place {
    run: u64,
    next: u64,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    block_on(read(a))
}

async fn read(a: &Arguments) -> Result<(), Failure> {
    let (role, client) = if a.provisioner {
        ("provisioner", a.director.provisioner())
    } else {
        ("director", a.director.client())
    };
    let now = clock::wall().0;
    let since = a.since.map(|since| {
        let millis = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        WallMillis(now.saturating_sub(millis))
    });
    let filter = filter(a);
    let mut place: Option<Place> = None;
    let mut silent = false;
    loop {
        let page = match ask(&client, &filter, place.as_ref(), a.follow).await {
            Ok(page) => page,
            // One that restarts is back soon; one that never was there is an error.
            Err(e) if a.follow && place.is_some() && e.problem().is_none() => {
                if !silent {
                    complain(&format!("{}; asking again until it answers", Chain(&e)));
                }
                silent = true;
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Err(e) => return Err(Failure::unanswered(role, &e)),
        };
        silent = false;
        let began = place.as_ref().is_none_or(|p| p.run == page.run);
        if !began {
            complain(&format!("the {role} was started anew"));
        }
        if page.missed > 0 {
            let missed = page.missed;
            complain(&format!(
                "{missed} events are gone that were not read in time"
            ));
        }
        let recent = |e: &&Event| since.is_none_or(|since| e.at >= since);
        for event in page.events.iter().filter(recent) {
            if !show(event, a.output)? {
                return Ok(());
            }
        }
        let more = !page.events.is_empty();
        place = Some(Place {
            run: page.run,
            next: page.next,
        });
        if !more && !a.follow {
            return Ok(());
        }
    }
}

async fn ask(
    client: &Client,
    filter: &str,
    place: Option<&Place>,
    follow: bool,
) -> Result<EventPage, client::Error> {
    let place = place.map_or_else(String::new, |place| {
        let wait = if follow { WAIT } else { 0 };
        format!("&run={}&after={}&wait={wait}", place.run, place.next)
    });
    let path = format!("/v1/events?{filter}{place}");
    client.ask(Method::GET, &path, None, NOTHING, LIMIT).await
}

fn filter(a: &Arguments) -> String {
    let kinds: Vec<_> = a.kind.iter().map(|kind| kind.label()).collect();
    let mut text = format!("kind={}", kinds.join(","));
    if let Some(service) = a.service {
        text.push_str(&format!("&service={service}"));
    }
    if let Some(server) = a.server {
        text.push_str(&format!("&server={server}"));
    }
    if let Some(severity) = a.severity {
        text.push_str(&format!("&severity={severity}"));
    }
    text
}

/// Who did it, behind the sentence.
fn by(event: &Event) -> String {
    match (&event.actor, &event.origin) {
        (None, _) => String::new(),
        (Some(actor), None) => format!("  (by {actor})"),
        (Some(actor), Some(origin)) => format!("  (by {actor} at {origin})"),
    }
}

/// Whether somebody still reads.
fn show(event: &Event, output: Output) -> Result<bool, Failure> {
    let line = match output {
        Output::Json => serde_json::to_string(event).map_err(|e| Failure::failed(&e))?,
        Output::Text => format!(
            "{}  {:<7}  {:<21}  {}{}",
            event.at.rfc3339(),
            event.severity.label(),
            event.kind.label(),
            event.text,
            by(event)
        ),
    };
    // A whole line at once: whoever follows wants it now.
    match writeln!(io::stdout().lock(), "{line}") {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::failed(&e)),
    }
}

/// On standard error: programs that read the events do not take it for one.
fn complain(text: &str) {
    // Nobody left to tell where standard error is gone.
    drop(writeln!(io::stderr(), "understudy events: {text}"));
}
