//! `understudy members`: servers from the pool that stand in for configured ones.

use std::time::Duration;

use hyper::Method;

use super::{DirectorSocket, Failure, say, table};
use crate::{
    api::client::NOTHING,
    director::{
        standby::{StandbyStatus, some_of},
        status::{StandInStatus, Status},
    },
};

/// What to do with them.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Shows who stands in for whom, and where, and which warm spares could
    List(Socket),
    /// Writes them as configuration, for director.toml, in place of those they stand in for
    Export(Socket),
}

/// Whose.
#[derive(Debug, clap::Args)]
pub(super) struct Socket {
    #[command(flatten)]
    director: DirectorSocket,
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::List(a) => say(&list(&status(a)?)),
        Verb::Export(a) => say(&export(&status(a)?.stand_ins)),
    }
}

fn status(a: &Socket) -> Result<Status, Failure> {
    let limit = Duration::from_secs(10);
    a.director.ask(Method::GET, "/v1/status", NOTHING, limit)
}

fn list(status: &Status) -> String {
    let Status {
        stand_ins,
        standbys,
        ..
    } = status;
    if stand_ins.is_empty() && standbys.is_empty() {
        return "no server stands in for another\n".to_owned();
    }
    let head = [
        "NAME",
        "STATE",
        "SERVICE",
        "SERVER",
        "IN PLACE OF",
        "WEIGHT",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for m in stand_ins {
        for place in &m.places {
            rows.push(vec![
                m.name.clone(),
                m.state.clone(),
                place.service.to_string(),
                place.server.clone(),
                place.in_place_of.clone(),
                place.weight.to_string(),
            ]);
        }
    }
    rows.extend(standbys.iter().flat_map(warm));
    table(&rows)
}

/// A warm spare has no weight yet: it is whose place it takes that says which.
fn warm(s: &StandbyStatus) -> impl Iterator<Item = Vec<String>> {
    s.places.iter().map(|place| {
        vec![
            s.name.clone(),
            match s.state.as_str() {
                "ready" => "warm".to_owned(),
                state => format!("warm, {state}"),
            },
            place.service.to_string(),
            place.server.clone(),
            some_of(&s.in_place_of, "or"),
            "-".to_owned(),
        ]
    })
}

/// For each place a real server as the configuration has it, and what it goes in place of.
fn export(stand_ins: &[StandInStatus]) -> String {
    let mut text = String::new();
    for m in stand_ins.iter().filter(|m| m.state != "leaving") {
        for place in &m.places {
            text.push_str(&format!(
                "# In the [[virtual_service]] {}, in place of {} (stand-in {}, {}, replacement {}):\n\
                 [[virtual_service.real_server]]\naddress = {:?}\nweight = {}\n\n",
                place.service,
                place.in_place_of,
                m.name,
                m.state,
                m.replacement,
                place.server,
                place.weight,
            ));
        }
    }
    match text.is_empty() {
        true => "# No server stands in for another.\n".to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::director::{standby::StandbyPlace, status::StandInPlace};

    #[test]
    fn warm_spares_are_listed_with_the_places_that_they_could_take() {
        let warm = StandbyStatus {
            name: "spare9".to_owned(),
            in_place_of: vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
            state: "waiting".to_owned(),
            places: vec![StandbyPlace {
                service: "tcp/192.0.2.1:80".parse().unwrap(),
                server: "10.0.0.9:80".to_owned(),
                health: "unknown".to_owned(),
                reason: None,
                since_s: None,
            }],
        };
        let mut status = Status {
            director: "lb1".parse().unwrap(),
            services: Vec::new(),
            incidents: Vec::new(),
            stand_ins: Vec::new(),
            standbys: vec![warm],
            drift: Vec::new(),
            warnings: Vec::new(),
        };
        assert_eq!(
            list(&status),
            "\
NAME    STATE          SERVICE           SERVER       IN PLACE OF           WEIGHT
spare9  warm, waiting  tcp/192.0.2.1:80  10.0.0.9:80  10.0.0.1 or 10.0.0.2  -
"
        );
        status.standbys.clear();
        assert_eq!(list(&status), "no server stands in for another\n");
    }

    #[test]
    fn stand_ins_are_written_as_configuration() {
        let place = StandInPlace {
            service: "tcp/192.0.2.1:80".parse().unwrap(),
            server: "[fd00::21]:80".to_owned(),
            in_place_of: "[fd00::11]:80".to_owned(),
            weight: 5,
        };
        let mut m = StandInStatus {
            name: "spare1".to_owned(),
            in_place_of: vec!["fd00::11".parse().unwrap()],
            replacement: "r1".to_owned(),
            state: "serving".to_owned(),
            places: vec![place],
        };
        let text = export(std::slice::from_ref(&m));
        let (comment, toml) = text.split_once('\n').unwrap();
        assert!(comment.contains("in place of [fd00::11]:80 (stand-in spare1, serving"));
        let whole = format!("[[virtual_service]]\n{toml}");
        let parsed: toml::Table = whole.parse().unwrap();
        let server = &parsed["virtual_service"][0]["real_server"][0];
        assert_eq!(server["address"].as_str(), Some("[fd00::21]:80"));
        assert_eq!(server["weight"].as_integer(), Some(5));
        m.state = "leaving".to_owned();
        assert_eq!(export(&[m]), "# No server stands in for another.\n");
    }
}
