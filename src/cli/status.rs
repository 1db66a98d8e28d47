//! `understudy status`.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal, Write},
    net::IpAddr,
    time::Duration,
};

use hyper::Method;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

use super::{
    DirectorSocket, Failure, Output, block_on, json, say,
    screen::{Cell, Column, Screen, Tone, count, human, table},
};
use crate::{
    api::client::{Client, NOTHING},
    director::{
        standby::{StandbyStatus, some_of},
        status::{IncidentStatus, ServerStatus, ServiceStatus, StandInStatus, Status},
    },
    model::{ServiceKey, parse_server},
};

/// Whom to ask, and how to show it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SINCE is the time since the verdict. WEIGHT is the kernel's; 0->5 stands for 5 wanted where the
kernel still has 0. ACTIVE and INACTIVE are the kernel's connections. Colours are for terminals,
and not where NO_COLOR is set.

The exit status is 0 where the director answers, 1 where it does not, 2 where the command line is
wrong, and with --check 3 where not all is well: a warning, a server that is down and that nobody
put aside, a failure that is to be replaced, or what others changed.

Examples:
  understudy status
  understudy status 10.77.1.11 --watch
  understudy status tcp/192.0.2.1:80 -o json")]
pub(super) struct Arguments {
    /// Only this virtual service or server: tcp/192.0.2.1:80, 192.0.2.1:80, 10.77.1.11
    #[arg(value_name = "NAME")]
    only: Option<String>,
    #[command(flatten)]
    director: DirectorSocket,
    #[command(flatten)]
    output: Output,
    /// Shows it again and again, every 2 or so many seconds, until ctrl-C
    #[arg(
        long,
        short,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600),
        conflicts_with = "check"
    )]
    watch: Option<u64>,
    /// Ends with exit status 3 where not all is well
    #[arg(long)]
    check: bool,
}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Only {
    Service(ServiceKey),
    /// A server, or the virtual address of a service.
    At(IpAddr, Option<u16>),
}

impl Only {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        if let Ok(key) = text.parse() {
            return Ok(Self::Service(key));
        }
        let (addr, port) = parse_server(text).ok_or_else(|| {
            Failure::Wrong(format!(
                "{text:?} is no virtual service and no server: write tcp/192.0.2.1:80, 192.0.2.1:80 or 10.77.1.11"
            ))
        })?;
        Ok(Self::At(addr, port))
    }

    /// Whether a service is meant as a whole.
    pub(super) fn is_service(self, key: ServiceKey) -> bool {
        match (self, key) {
            (Self::Service(only), key) => only == key,
            (Self::At(addr, port), ServiceKey::Addr(_, vip)) => {
                vip.ip() == addr && port.is_none_or(|port| port == vip.port())
            }
            (Self::At(..), ServiceKey::Fwmark(..)) => false,
        }
    }

    fn is_server(self, server: &str) -> bool {
        let Self::At(addr, port) = self else {
            return false;
        };
        let found = parse_server(server);
        found.is_some_and(|(a, p)| a == addr && (port.is_none() || p == port))
    }

    fn is_address(self, addr: &IpAddr) -> bool {
        matches!(self, Self::At(only, _) if only == *addr)
    }
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    let only = a.only.as_deref().map(Only::parse).transpose()?;
    let client = a.director.client();
    if let Some(seconds) = a.watch {
        let pause = Duration::from_secs(seconds);
        return block_on(watch(a, client, only, pause));
    }
    let status = block_on(ask(&client, only))?;
    match a.output.json() {
        true => say(&json(&status)?)?,
        false => say(&show(&Screen::stdout(), &status))?,
    }
    match a.check && !is_well(&status) {
        true => Err(Failure::NotWell),
        false => Ok(()),
    }
}

async fn ask(client: &Client, only: Option<Only>) -> Result<Status, Failure> {
    let limit = Duration::from_secs(10);
    let ask = client.ask(Method::GET, "/v1/status", None, NOTHING, limit);
    let unanswered = |e| Failure::unanswered("director", &e);
    let status: Status = ask.await.map_err(unanswered)?;
    match only {
        None => Ok(status),
        Some(only) => filtered(status, only),
    }
}

/// What is looked for, and nothing else.
fn filtered(mut status: Status, only: Only) -> Result<Status, Failure> {
    for service in &mut status.services {
        if !only.is_service(service.service) {
            service.servers.retain(|s| only.is_server(&s.server));
        }
    }
    let shown = |s: &ServiceStatus| only.is_service(s.service) || !s.servers.is_empty();
    status.services.retain(shown);
    let places = |s: &StandbyStatus| s.places.iter().any(|p| only.is_server(&p.server));
    let warm = status.standbys.iter().any(places);
    if status.services.is_empty() && !warm {
        let what = match only {
            Only::Service(key) => format!("no virtual service {key}"),
            Only::At(addr, None) => format!("no virtual service and no server {addr}"),
            Only::At(addr, Some(port)) => {
                let at = std::net::SocketAddr::new(addr, port);
                format!("no virtual service and no server {at}")
            }
        };
        return Err(Failure::Failed(format!(
            "director {} has {what}: see understudy status",
            status.director
        )));
    }
    let keys: BTreeSet<_> = status.services.iter().map(|s| s.service).collect();
    let servers = status.services.iter().flat_map(|s| &s.servers);
    let addresses: BTreeSet<IpAddr> = servers
        .filter_map(|s| Some(parse_server(&s.server)?.0))
        .collect();
    let shown = |addr: &IpAddr| addresses.contains(addr) || only.is_address(addr);
    status.incidents.retain(|i| shown(&i.failed));
    let of = |s: &StandInStatus| s.in_place_of.iter().any(shown);
    status.stand_ins.retain(of);
    let of = |s: &StandbyStatus| places(s) || s.in_place_of.iter().any(shown);
    status.standbys.retain(of);
    status.drift.retain(|d| keys.contains(&d.service));
    Ok(status)
}

/// Whether nothing is to be looked at.
fn is_well(status: &Status) -> bool {
    let down = |s: &ServerStatus| s.health == "down" && s.order.is_none();
    let mut servers = status.services.iter().flat_map(|s| &s.servers);
    status.warnings.is_empty()
        && status.incidents.is_empty()
        && status.drift.is_empty()
        && !servers.any(down)
}

/// Gives the terminal back as it was, however the watching ends.
struct Borrowed;

impl Borrowed {
    /// The terminal's other screen, without a cursor (xterm's 1049, DEC's 25).
    fn take() -> Result<Self, Failure> {
        say("\x1b[?1049h\x1b[?25l")?;
        Ok(Self)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let mut out = io::stdout();
        // Nobody is left to tell where the terminal is gone.
        drop(out.write_all(b"\x1b[?25h\x1b[?1049l"));
        drop(out.flush());
    }
}

async fn watch(
    a: &Arguments,
    client: Client,
    only: Option<Only>,
    pause: Duration,
) -> Result<(), Failure> {
    let caught = |kind| signal(kind).map_err(|e| Failure::failed(&e));
    let mut ends = [
        caught(SignalKind::interrupt())?,
        caught(SignalKind::terminate())?,
        caught(SignalKind::hangup())?,
    ];
    let mut resized = caught(SignalKind::window_change())?;
    let in_place = io::stdout().is_terminal() && !a.output.json();
    let _borrowed = in_place.then(Borrowed::take).transpose()?;
    loop {
        let screen = Screen::stdout();
        let asked = tokio::select! {
            asked = ask(&client, only) => asked,
            () = any(&mut ends) => return Ok(()),
        };
        let text = match asked {
            Ok(status) if a.output.json() => json(&status)?,
            Ok(status) => show(&screen, &status),
            // It may come back: a restart is over in a second.
            Err(Failure::Failed(why)) if in_place => format!("{why}\n"),
            Err(failure) => return Err(failure),
        };
        say(&match in_place {
            true => redrawn(&screen, &text),
            false if a.output.json() => text,
            false => text + "\n",
        })?;
        tokio::select! {
            () = sleep(pause) => {}
            _ = resized.recv() => {}
            () = any(&mut ends) => return Ok(()),
        }
    }
}

async fn any([one, two, three]: &mut [Signal; 3]) {
    tokio::select! {
        _ = one.recv() => {}
        _ = two.recv() => {}
        _ = three.recv() => {}
    }
}

/// Over what stands there: home, each line up to its end, and nothing below.
fn redrawn(screen: &Screen, text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let room = screen.height.unwrap_or(usize::MAX).saturating_sub(1).max(1);
    let mut drawn = String::from("\x1b[H");
    let shown = if lines.len() > room {
        room - 1
    } else {
        lines.len()
    };
    for line in lines.iter().take(shown) {
        drawn.push_str(line);
        drawn.push_str("\x1b[K\r\n");
    }
    if shown < lines.len() {
        let left = count(lines.len() - shown, "line", "lines");
        let more = format!("{left} more: name a service or a server to see less at a time");
        drawn.push_str(&screen.paint(Tone::Dim, &more));
        drawn.push_str("\x1b[K");
    }
    drawn.push_str("\x1b[J");
    drawn
}

fn column(title: &'static str, right: bool, spare: u8) -> Column {
    Column {
        title,
        right,
        spare,
    }
}

fn show(screen: &Screen, status: &Status) -> String {
    let mut text = headline(screen, status);
    let blocks = status.services.iter();
    text.extend(blocks.map(|service| block(screen, service)));
    let section = |title: &str, columns: &[Column], rows: Vec<Vec<Cell>>| match rows.is_empty() {
        true => String::new(),
        false => format!(
            "\n{}\n{}",
            screen.paint(Tone::Title, title),
            table(screen, columns, &rows)
        ),
    };
    text.push_str(&section(
        "stand-ins",
        &[
            column("NAME", false, 0),
            column("STATE", false, 0),
            column("REPLACEMENT", false, 1),
            column("PLACE", false, 0),
        ],
        status.stand_ins.iter().map(stand_in).collect(),
    ));
    text.push_str(&section(
        "warm spares",
        &[
            column("NAME", false, 0),
            column("STATE", false, 0),
            column("PLACE", false, 0),
        ],
        status.standbys.iter().map(standby).collect(),
    ));
    text.push_str(&section(
        "failed servers",
        &[
            column("SERVER", false, 0),
            column("STAGE", false, 0),
            column("WHAT IT WAITS FOR", false, 0),
        ],
        status.incidents.iter().map(incident).collect(),
    ));
    let drift = status.drift.iter().map(|d| {
        let server = d.server.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            d.service.to_string().into(),
            server.into(),
            d.field.clone().into(),
            d.wanted.clone().into(),
            Cell::new(d.found.clone(), Tone::Warn),
            d.policy.clone().into(),
        ]
    });
    text.push_str(&section(
        "changed by others",
        &[
            column("SERVICE", false, 0),
            column("SERVER", false, 0),
            column("FIELD", false, 0),
            column("WANTED", false, 0),
            column("FOUND", false, 0),
            column("POLICY", false, 0),
        ],
        drift.collect(),
    ));
    for warning in &status.warnings {
        let lines = screen.wrapped(0, &format!("warning: {warning}"));
        let painted = lines.iter().map(|l| screen.paint(Tone::Warn, l) + "\n");
        text.push('\n');
        text.extend(painted);
    }
    text
}

fn headline(screen: &Screen, status: &Status) -> String {
    let services = status.services.len();
    let mut parts = vec![count(services, "service", "services")];
    let servers: Vec<_> = status.services.iter().flat_map(|s| &s.servers).collect();
    let serving = servers.iter().filter(|s| takes(s)).count();
    parts.push(format!("{serving} of {} places in service", servers.len()));
    let mut tone = Tone::Good;
    for (n, one, more) in [
        (status.incidents.len(), "failed server", "failed servers"),
        (status.stand_ins.len(), "stand-in", "stand-ins"),
        (status.standbys.len(), "warm spare", "warm spares"),
        (status.warnings.len(), "warning", "warnings"),
    ] {
        if n > 0 {
            parts.push(count(n, one, more));
        }
    }
    if !is_well(status) {
        tone = Tone::Warn;
    }
    let name = screen.paint(Tone::Title, &format!("director {}", status.director));
    format!("{name}: {}\n", screen.paint(tone, &parts.join(", ")))
}

fn takes(server: &ServerStatus) -> bool {
    server.weight.is_some_and(|weight| weight > 0)
}

fn block(screen: &Screen, service: &ServiceStatus) -> String {
    let servers = &service.servers;
    let serving = servers.iter().filter(|s| takes(s)).count();
    let weight: u64 = servers.iter().filter_map(|s| s.weight).map(u64::from).sum();
    let mut parts = vec![
        format!("{serving} of {} in service", servers.len()),
        format!("weight {weight}"),
    ];
    let known = servers.iter().filter_map(|s| s.connections);
    let active: Vec<_> = known.map(|c| u64::from(c.active)).collect();
    if !active.is_empty() {
        parts.push(format!("{} active", active.iter().sum::<u64>()));
    }
    let mut text = format!(
        "\n{} ({}, {}): {}\n",
        screen.paint(Tone::Title, &service.service.to_string()),
        service.scheduler,
        service.forward,
        parts.join(", ")
    );
    if let Some(quorum) = &service.quorum {
        let (word, tone) = match quorum.held {
            true => ("quorum", Tone::Plain),
            false => ("QUORUM LOST", Tone::Bad),
        };
        for line in screen.wrapped(2, &format!("{word}: {quorum}")) {
            text.push_str(&screen.paint(tone, &line));
            text.push('\n');
        }
    }
    let columns = [
        column("SERVER", false, 0),
        column("HEALTH", false, 0),
        column("SINCE", true, 2),
        column("WEIGHT", true, 1),
        column("ACTIVE", true, 3),
        column("INACTIVE", true, 5),
        column("KIND", false, 4),
        column("WHY", false, 0),
    ];
    let rows: Vec<_> = servers.iter().map(|server| row(screen, server)).collect();
    text + &table(screen, &columns, &rows)
}

fn row(screen: &Screen, s: &ServerStatus) -> Vec<Cell> {
    let (sign, tone) = match s.health.as_str() {
        "up" => ("●", Tone::Good),
        "down" => ("✗", Tone::Bad),
        "unknown" => ("?", Tone::Warn),
        _ => ("○", Tone::Dim),
    };
    let health = match screen.signs {
        true => format!("{sign} {}", s.health),
        false => s.health.clone(),
    };
    let dash = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let weight = match s.weight == s.wanted {
        true => Cell::new(
            dash(s.weight),
            if takes(s) { Tone::Plain } else { Tone::Warn },
        ),
        false => Cell::new(format!("{}->{}", dash(s.weight), dash(s.wanted)), Tone::Bad),
    };
    let connections = |n: Option<u32>| Cell::from(dash(n));
    let mut why: Vec<String> = s.order.iter().map(ToString::to_string).collect();
    why.extend(s.reason.clone());
    vec![
        s.server.clone().into(),
        Cell::new(health, tone),
        s.since_s.map_or_else(|| "-".to_owned(), human).into(),
        weight,
        connections(s.connections.map(|c| c.active)),
        connections(s.connections.map(|c| c.inactive)),
        match s.kind.as_str() {
            "configured" => Cell::default(),
            kind => Cell::from(kind),
        },
        why.join("; ").into(),
    ]
}

fn stand_in(s: &StandInStatus) -> Vec<Cell> {
    let places: Vec<_> = s.in_place_of.iter().map(ToString::to_string).collect();
    let tone = match s.state.as_str() {
        "serving" => Tone::Good,
        _ => Tone::Warn,
    };
    vec![
        s.name.clone().into(),
        Cell::new(s.state.clone(), tone),
        s.replacement.clone().into(),
        format!("in place of {}", places.join(", ")).into(),
    ]
}

fn standby(s: &StandbyStatus) -> Vec<Cell> {
    let tone = match s.state.as_str() {
        "ready" => Tone::Good,
        "failing" => Tone::Bad,
        _ => Tone::Warn,
    };
    let fails = s.places.iter().find_map(|place| {
        let reason = place.reason.as_ref()?;
        Some(format!("{} of {}: {reason}", place.server, place.service))
    });
    let mut place = format!("could take that of {}", some_of(&s.in_place_of, "or"));
    match (fails, s.places.is_empty()) {
        (Some(why), _) => place.push_str(&format!("; {why}")),
        (None, true) => place.push_str(", which the configuration does not name"),
        (None, false) => {}
    }
    vec![
        s.name.clone().into(),
        Cell::new(s.state.clone(), tone),
        place.into(),
    ]
}

fn incident(i: &IncidentStatus) -> Vec<Cell> {
    vec![
        Cell::new(i.failed.to_string(), Tone::Bad),
        i.stage.clone().into(),
        i.detail.clone().into(),
    ]
}

#[cfg(test)]
mod tests;
