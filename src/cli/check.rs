//! `understudy check`: a server's checks, once, as the director makes them.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use super::{Failure, block_on, read, say, table};
use crate::{
    check::{Check, Stage},
    config::{self, Director},
    director::ways,
    ipvs::Ipvs,
    model::{CheckSpec, DestKey, Found, Outcome, ServiceKey, ServiceState, parse_server},
    telemetry::Chain,
};

/// Whom to ask, and for which service.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit status is 0 where all checks of all servers passed, 1 where one did not or could
not be made, 2 where the configuration is wrong or names no such server. Sockets, firewall
marks and interfaces are as in the director: run it as root there. IPVS is not changed.

Examples:
  understudy check 10.77.1.11
  understudy check 10.77.1.11:80 --service tcp/192.0.2.1:80
  understudy check tcp/192.0.2.1:80")]
pub(super) struct Arguments {
    /// A real server, ADDRESS or ADDRESS:PORT, or all of a service, tcp/192.0.2.1:80
    name: String,
    /// Only in this service, where it need not be configured: a stand-in
    #[arg(long, value_name = "SERVICE")]
    service: Option<ServiceKey>,
    /// The director's configuration
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/understudy/director.toml"
    )]
    config: PathBuf,
}

pub(super) fn run(a: &Arguments) -> Result<(), Failure> {
    let config = config::director::parse(&a.config, &read(&a.config)?)?;
    let meant = meant(&config, &a.name, a.service)?;
    let failed = block_on(async {
        let mut failed = 0;
        for (service, dest) in &meant {
            failed += ask(&config, *service, *dest).await?;
        }
        Ok(failed)
    })?;
    match failed {
        0 => Ok(()),
        1 => Err(Failure::Failed("1 check did not pass".to_owned())),
        n => Err(Failure::Failed(format!("{n} checks did not pass"))),
    }
}

/// The servers that a name stands for, each in its service.
fn meant(
    config: &Director,
    name: &str,
    only: Option<ServiceKey>,
) -> Result<Vec<(ServiceKey, DestKey)>, Failure> {
    if let Some(key) = only
        && !config.services.contains_key(&key)
    {
        return Err(unknown_service(config, key));
    }
    if let Ok(key) = name.parse::<ServiceKey>() {
        let service = config.services.get(&key);
        let service = service.ok_or_else(|| unknown_service(config, key))?;
        let all = service.servers.keys().chain(service.sorry.keys());
        return Ok(all.map(|dest| (key, *dest)).collect());
    }
    let (addr, port) = parse_server(name).ok_or_else(|| {
        Failure::Wrong(format!(
            "{name:?} is no server and no virtual service: write 10.77.1.11, 10.77.1.11:80 or tcp/192.0.2.1:80"
        ))
    })?;
    let fits = |dest: &&DestKey| dest.addr == addr && port.is_none_or(|p| p == dest.port);
    let services = config.services.iter();
    let services = services.filter(|(key, _)| only.is_none_or(|only| only == **key));
    let found: Vec<_> = services
        .flat_map(|(key, s)| {
            let all = s.servers.keys().chain(s.sorry.keys());
            all.filter(fits).map(|dest| (*key, *dest))
        })
        .collect();
    match (found.is_empty(), only, port) {
        (false, _, _) => Ok(found),
        (true, Some(key), Some(port)) => Ok(vec![(key, DestKey { addr, port })]),
        (true, Some(_), None) => Err(Failure::Wrong(format!(
            "{name} is not in that service's configuration: name its port, too"
        ))),
        (true, None, _) => Err(Failure::Wrong(format!(
            "no virtual service has a real server {name}: name one with --service if it is a stand-in"
        ))),
    }
}

fn unknown_service(config: &Director, key: ServiceKey) -> Failure {
    let known: Vec<_> = config.services.keys().map(ToString::to_string).collect();
    Failure::Wrong(format!(
        "no virtual service {key}; there are: {}",
        known.join(", ")
    ))
}

/// Makes the checks of a server, one after the other, tells of each, and says how many did not pass.
async fn ask(config: &Director, key: ServiceKey, dest: DestKey) -> Result<u32, Failure> {
    let Some(service) = config.services.get(&key) else {
        return Ok(0);
    };
    say(&format!("{dest} in {key}\n"))?;
    let checks = service.checks_of(&dest);
    if !checks.any() {
        say("  nobody is asked: it counts as up\n")?;
    }
    let mut failed = 0;
    let (mut direct, mut lost) = (false, false);
    for spec in &checks.all {
        let at = SocketAddr::new(dest.addr, dest.port);
        let (at, spec) = match spec.via.through {
            false => (at, Arc::clone(spec)),
            true => match through(config, key, dest, spec).await? {
                Some(way) => way,
                None => {
                    let kind = spec.kind.label();
                    say(&format!(
                        "  {kind} through the virtual address\n    could not be made: IPVS has no hidden service to this server; does the director run?\n"
                    ))?;
                    failed += 1;
                    continue;
                }
            },
        };
        let (found, stages) = match Check::prepare(&spec.kind) {
            Ok(check) => check.explain(at, &spec).await,
            Err(error) => {
                let why = Chain(&error).to_string();
                say(&format!(
                    "  {}\n  could not be made: {why}\n",
                    spec.kind.label()
                ))?;
                failed += 1;
                continue;
            }
        };
        let passed = found.outcome == Outcome::Pass;
        failed += u32::from(!passed);
        direct |= passed && !spec.via.through;
        lost |= !passed && spec.via.through;
        say(&tell(&spec, at, &found, &stages))?;
    }
    if direct && lost {
        say(&format!("  {}\n", ways::words(service.forward)))?;
    }
    Ok(failed)
}

/// A check through the virtual address on the hidden service that a running director has made.
async fn through(
    config: &Director,
    key: ServiceKey,
    dest: DestKey,
    spec: &CheckSpec,
) -> Result<Option<(SocketAddr, Arc<CheckSpec>)>, Failure> {
    let ipvs = Ipvs::connect().await.map_err(|e| Failure::failed(&e))?;
    let table = ipvs.without_counters().table().await;
    let table = table.map_err(|e| Failure::failed(&e))?;
    let forward = config.services.get(&key).map(|s| s.forward);
    let leads_there = |(hidden, service): (&ServiceKey, &ServiceState)| {
        let ServiceKey::Fwmark(family, mark) = *hidden else {
            return None;
        };
        let mut dests = service.dests.iter();
        let (only, state) = dests.next()?;
        let fits = config.probe_marks.contains(mark)
            && family == key.family()
            && only.addr == dest.addr
            && Some(state.attrs.forward) == forward
            && dests.next().is_none();
        fits.then_some(mark)
    };
    let mark = table.iter().find_map(leads_there);
    Ok(mark.and_then(|mark| spec.on_way(key, dest, mark)))
}

fn tell(spec: &CheckSpec, at: SocketAddr, found: &Found, stages: &[Stage]) -> String {
    let to = spec.via.towards(at);
    let mut text = format!("  {}", spec.kind.label());
    if spec.via.through {
        text.push_str(&format!(" through the virtual address {to}"));
    } else if to != at {
        text.push_str(&format!(" at {to}"));
    }
    text.push('\n');
    let row = |stage: &Stage| {
        vec![
            format!("    {}", stage.phase.label()),
            millis(stage.took),
            stage.failed.map(|why| why.to_string()).unwrap_or_default(),
        ]
    };
    text.push_str(&table(&stages.iter().map(row).collect::<Vec<_>>()));
    let took = millis(found.elapsed);
    match found.outcome {
        Outcome::Pass => text.push_str(&format!("    passed after {took}")),
        Outcome::Fail(why) => text.push_str(&format!("    failed after {took}: {why}")),
    }
    if let Some(detail) = &found.detail {
        text.push_str(&format!(": {detail}"));
    }
    if let Some(advice) = found.advice {
        text.push_str(&format!("; it wants {advice}"));
    }
    text.push('\n');
    text
}

fn millis(d: Duration) -> String {
    format!("{:.1} ms", d.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const CONFIG: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "nat"
real_server = [{ address = "10.0.0.1:80" }, { address = "10.0.0.1:81" }]
[[virtual_service]]
address = "192.0.2.1:443"
scheduler = "wlc"
forward = "nat"
real_server = [{ address = "10.0.0.1:443" }, { address = "10.0.0.2:443" }]
"#;

    fn named(name: &str, only: Option<&str>) -> Result<Vec<String>, String> {
        let config = config::director::parse(Path::new("d.toml"), CONFIG).unwrap();
        let only = only.map(|key| key.parse().unwrap());
        match meant(&config, name, only) {
            Ok(found) => Ok(found
                .iter()
                .map(|(key, dest)| format!("{dest} {key}"))
                .collect()),
            Err(Failure::Wrong(why) | Failure::Failed(why)) => Err(why),
            Err(Failure::NotWell) => panic!("it shows nothing"),
        }
    }

    #[test]
    fn a_name_is_a_server_its_port_or_a_service() {
        let (http, https) = ("tcp/192.0.2.1:80", "tcp/192.0.2.1:443");
        assert_eq!(named("10.0.0.1", None).unwrap().len(), 3);
        assert_eq!(
            named("10.0.0.1:81", None).unwrap(),
            [format!("10.0.0.1:81 {http}")]
        );
        assert_eq!(
            named("10.0.0.1", Some(https)).unwrap(),
            [format!("10.0.0.1:443 {https}")]
        );
        assert_eq!(named(https, None).unwrap().len(), 2);
        let stand_in = named("10.0.0.9:443", Some(https)).unwrap();
        assert_eq!(stand_in, [format!("10.0.0.9:443 {https}")]);
    }

    #[test]
    fn what_it_does_not_stand_for_is_said_with_the_remedy() {
        for (name, only, part) in [
            ("web1", None, "is no server and no virtual service"),
            ("10.0.0.9", None, "name one with --service"),
            ("10.0.0.9", Some("tcp/192.0.2.1:80"), "name its port"),
            (
                "tcp/192.0.2.1:81",
                None,
                "there are: tcp/192.0.2.1:80, tcp/192.0.2.1:443",
            ),
        ] {
            let why = named(name, only).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }
}
