//! `understudy explain`.

use std::{fmt::Write, net::SocketAddr, time::Duration};

use hyper::Method;

use super::{
    DirectorSocket, Failure, Output, json, say,
    screen::{Screen, Tone, human},
    status::Only,
};
use crate::{
    api::client::NOTHING,
    director::{
        explain::{CheckExplained, Explanation, IncidentExplained, Place},
        standby::some_of,
    },
    model::wire::{Replacement, StepView},
};

/// Which server.
#[derive(Debug, clap::Args)]
#[command(
    allow_missing_positional = true,
    after_help = "\
Says of a server in a virtual service which rule holds it in or out, what its checks found and
when, what the kernel has of it, and how its replacement stands.

The exit status is 0, or 1 where no director answers or it has no such server.

Examples:
  understudy explain 10.77.1.11
  understudy explain tcp/192.0.2.1:80 10.77.1.11:80
  understudy explain 192.0.2.1:80 10.77.1.11 -o json"
)]
pub(super) struct Arguments {
    /// The virtual service, tcp/192.0.2.1:80 or 192.0.2.1:80, if not all that have the server
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// The server, ADDRESS or ADDRESS:PORT
    #[arg(value_name = "SERVER")]
    server: String,
    #[command(flatten)]
    director: DirectorSocket,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    let server = &a.server;
    let service = a.service.as_deref().map(Only::parse).transpose()?;
    let Only::At(addr, port) = Only::parse(server)? else {
        return Err(Failure::Wrong(format!(
            "{server:?} is a virtual service: name the server after it, 10.77.1.11 or 10.77.1.11:80"
        )));
    };
    let name = match port {
        Some(port) => SocketAddr::new(addr, port).to_string(),
        None => addr.to_string(),
    };
    let path = format!("/v1/explain?server={name}");
    let limit = Duration::from_secs(15);
    let mut all: Vec<Explanation> = a.director.ask(Method::GET, &path, NOTHING, limit)?;
    if let (Some(only), Some(text)) = (service, &a.service) {
        all.retain(|e| only.is_service(e.service));
        if all.is_empty() {
            return Err(Failure::Failed(format!(
                "no virtual service {text} has a server {name}: see understudy status {name}"
            )));
        }
    }
    if a.output.json() {
        return say(&json(&all)?);
    }
    let screen = Screen::stdout();
    let texts: Vec<_> = all.iter().map(|e| show(&screen, e)).collect();
    say(&texts.join("\n"))
}

/// Where the words of a line begin.
const INDENT: usize = 14;

/// Lines with a name before the first.
struct Page<'a> {
    screen: &'a Screen,
    text: String,
}

impl Page<'_> {
    fn say(&mut self, name: &str, tone: Tone, words: &str) {
        let lines = self.screen.wrapped(INDENT, words);
        for (n, line) in lines.iter().enumerate() {
            let words = self.screen.paint(tone, line.trim_start());
            let name = if n == 0 { name } else { "" };
            let blanks = " ".repeat(INDENT.saturating_sub(2 + name.len()));
            let name = self.screen.paint(Tone::Dim, name);
            self.text.push_str(&format!("  {name}{blanks}{words}\n"));
        }
    }
}

fn show(screen: &Screen, e: &Explanation) -> String {
    let place = match e.place {
        Place::In => Tone::Good,
        Place::Quiesced => Tone::Warn,
        Place::Out => Tone::Bad,
    };
    let since = e.since_s.map(|s| format!(" for {}", human(s)));
    let since = since.unwrap_or_default();
    let health = match e.health.as_str() {
        "-" => String::new(),
        "unknown" => ", no verdict yet".to_owned(),
        health => format!(", {health}{since}"),
    };
    let title = screen.paint(Tone::Title, &format!("{} in {}", e.server, e.service));
    let kind = match e.kind.as_str() {
        "configured" => String::new(),
        "sorry" => ", a sorry server".to_owned(),
        kind => format!(", {kind}"),
    };
    let text = format!(
        "{title}: {}{health}{kind}\n",
        screen.paint(place, &e.place.to_string().to_uppercase())
    );
    let mut page = Page { screen, text };
    page.say("why", Tone::Plain, &format!("{} [{}]", e.why, e.rule));
    if let Some(order) = e.order.as_ref().filter(|_| !e.why.contains("ordered")) {
        page.say("ordered", Tone::Warn, &order.to_string());
    }
    for check in &e.checks {
        page.check(check);
    }
    if e.checks.len() > 1 {
        let (need, all) = (e.checks_needed, e.checks.len());
        page.say(
            "",
            Tone::Dim,
            &format!("{need} of these {all} have to be passed"),
        );
    }
    page.weights(e);
    if let Some(quorum) = &e.quorum {
        let tone = if quorum.held { Tone::Plain } else { Tone::Bad };
        let word = if quorum.held { "held" } else { "LOST" };
        page.say("quorum", tone, &format!("{word}: {quorum}"));
    }
    page.drift(e);
    for stand_in in &e.stand_ins {
        let places: Vec<_> = stand_in
            .in_place_of
            .iter()
            .map(ToString::to_string)
            .collect();
        page.say(
            "stand-in",
            Tone::Plain,
            &format!(
                "{} in place of {}: {} (replacement {})",
                stand_in.name,
                places.join(", "),
                stand_in.state,
                stand_in.replacement
            ),
        );
    }
    for standby in &e.standbys {
        let words = format!(
            "{} could take the place of {}: {}",
            standby.name,
            some_of(&standby.in_place_of, "or"),
            standby.state
        );
        let tone = match standby.state.as_str() {
            "ready" => Tone::Plain,
            _ => Tone::Warn,
        };
        page.say("warm spare", tone, &words);
    }
    if let Some(incident) = &e.incident {
        page.incident(incident);
    }
    if let Some(replacement) = &e.replacement {
        page.replacement(replacement);
    }
    if let Some(why) = &e.provisioner_silent {
        let words = format!("its steps are not known, the provisioner does not tell: {why}");
        page.say("replacement", Tone::Warn, &words);
    }
    page.text
}

impl Page<'_> {
    fn check(&mut self, check: &CheckExplained) {
        let tone = match check.health.as_str() {
            "up" => Tone::Good,
            "down" => Tone::Bad,
            _ => Tone::Warn,
        };
        let run = match check.health.as_str() {
            "up" if check.failures > 0 => {
                format!(
                    ", failed {} of {} times in a row",
                    check.failures, check.fall
                )
            }
            "up" => String::new(),
            "unknown" if check.failures > 0 => {
                format!(
                    ", failed {} of {} times in a row",
                    check.failures, check.fall
                )
            }
            _ => format!(
                ", passed {} of {} times in a row",
                check.passes, check.passes_needed
            ),
        };
        let since = check.since_s.map(|s| format!(" for {}", human(s)));
        let head = format!("{}{}{run}", check.health, since.unwrap_or_default());
        self.say(&check.check, tone, &head);
        let last = match (&check.found, check.found_s) {
            (Some(found), Some(s)) => format!("last, {} ago: {found}", human(s)),
            _ => "not asked yet".to_owned(),
        };
        self.say("", Tone::Plain, &last);
        if check.blind > 0 {
            let blind = format!(
                "it could not be made on this host, {} times in a row: that says nothing of the server",
                check.blind
            );
            self.say("", Tone::Warn, &blind);
        }
        let asks = format!(
            "asks {}: {}, every {}, for at most {}; rise {}, fall {}",
            check.at,
            check.asks,
            millis(check.interval_ms),
            millis(check.timeout_ms),
            check.rise,
            check.fall
        );
        self.say("", Tone::Dim, &asks);
    }

    fn weights(&mut self, e: &Explanation) {
        let or = |n: Option<u32>, none: &str| n.map_or_else(|| none.to_owned(), |n| n.to_string());
        let mut words = format!(
            "{} configured, {} wanted, {} in the kernel",
            e.weight.configured,
            or(e.weight.wanted, "none"),
            or(e.kernel.map(|k| k.weight).or(e.weight.kernel), "none"),
        );
        if let Some(advice) = &e.advice {
            let _infallible = write!(words, "; {advice}");
        }
        let found = e.kernel.map(|k| k.weight).or(e.weight.kernel);
        let tone = match found == e.weight.wanted {
            true => Tone::Plain,
            false => Tone::Warn,
        };
        self.say("weight", tone, &words);
        match (&e.kernel, &e.kernel_unread) {
            (Some(k), _) => {
                let words = format!(
                    "{} active, {} inactive, {} persistent connections",
                    k.active, k.inactive, k.persistent
                );
                self.say("kernel", Tone::Plain, &words);
            }
            (None, Some(why)) => {
                let words = format!("its connections cannot be read: {why}");
                self.say("kernel", Tone::Warn, &words);
            }
            (None, None) => self.say("kernel", Tone::Plain, "it is not in the table"),
        }
        if let Some(why) = &e.not_applied {
            self.say("", Tone::Bad, &format!("the table is not as wanted: {why}"));
        }
    }

    fn drift(&mut self, e: &Explanation) {
        for d in &e.drift {
            let words = format!(
                "{}: somebody made {} of {}, and it stands (drift = {:?})",
                d.field, d.found, d.wanted, d.policy
            );
            self.say("drift", Tone::Warn, &words);
        }
        if e.drift.is_empty() && e.drift_policy != "repair" {
            let words = format!("what others change stays (drift = {:?})", e.drift_policy);
            self.say("drift", Tone::Dim, &words);
        }
    }

    fn incident(&mut self, incident: &IncidentExplained) {
        let since = human(incident.since_s);
        let words = match (&incident.guard, incident.until_s) {
            (Some(_), Some(left)) => format!(
                "for {since}; no replacement yet: {}, for {} more",
                incident.detail,
                human(left)
            ),
            (Some(_), None) => format!("for {since}; no replacement yet: {}", incident.detail),
            (None, _) if incident.stage == "open" => {
                format!("for {since}; a replacement is about to be asked for")
            }
            (None, _) => format!("for {since}; {}: {}", incident.stage, incident.detail),
        };
        self.say("failed", Tone::Bad, &words);
    }

    fn replacement(&mut self, r: &Replacement) {
        let reason = r.reason.as_ref().map(|why| format!(": {why}"));
        let words = format!(
            "{} {}{}",
            r.id,
            r.state.as_str(),
            reason.unwrap_or_default()
        );
        self.say("replacement", Tone::Plain, &words);
        for passed in &r.passed_over {
            let words = format!("passed over {}: {}", passed.server, passed.reason);
            self.say("", Tone::Warn, &words);
        }
        for step in &r.steps {
            let (tone, words) = step_line(step);
            self.say("", tone, &words);
        }
    }
}

fn step_line(step: &StepView) -> (Tone, String) {
    let tone = match step.state.as_str() {
        "done" => Tone::Good,
        "failed" => Tone::Bad,
        _ => Tone::Warn,
    };
    let took = step.ended_ms.map(|end| {
        let took = u64::try_from(end.saturating_sub(step.started_ms)).unwrap_or(0);
        format!(" after {}", millis(took))
    });
    let detail = match step.detail.is_empty() {
        true => String::new(),
        false => format!(": {}", step.detail),
    };
    let took = took.unwrap_or_default();
    let words = format!(
        "{} on {}: {}{took}{detail}",
        step.step, step.server, step.state
    );
    (tone, words)
}

/// Milliseconds below a second and a half, seconds above.
fn millis(ms: u64) -> String {
    match ms {
        0..=999 => format!("{ms}ms"),
        ms if ms % 1000 == 0 => human(ms / 1000),
        ms if ms < 60_000 => format!("{}.{}s", ms / 1000, ms % 1000 / 100),
        ms => human(ms / 1000),
    }
}

#[cfg(test)]
mod tests;
