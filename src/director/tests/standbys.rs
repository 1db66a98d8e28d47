//! Warm spares: watched, in no service, and at once in the place that they are given.

use super::*;
use crate::{
    director::{explain::Place, standby::StandbyFailure},
    model::wire::Standby,
};

/// A warm spare for the places of these servers.
pub(super) fn standby(spare: u8, in_place_of: &[u8]) -> Standby {
    Standby {
        spare: Spare {
            name: format!("spare{spare}"),
            addresses: vec![ip(spare)],
        },
        in_place_of: in_place_of.iter().copied().map(ip).collect(),
    }
}

impl World {
    fn standbys(&mut self, standbys: Vec<Standby>) -> Vec<Note> {
        self.event(Event::Members(Members {
            version: 2,
            members: Vec::new(),
            standbys,
        }))
    }

    /// The provisioner gives warm spare 9 the place of server 1.
    fn gives_place(&mut self) -> Vec<Note> {
        self.members(vec![member("r1", 1, 9, Want::Attach)])
    }

    fn is_hurried(&self, n: u8) -> bool {
        let slots = self.core.targets().into_values().flatten();
        let own: Vec<_> = slots.filter(|s| s.dest.addr == ip(n)).collect();
        assert!(!own.is_empty(), "{n} is not watched");
        own.iter().any(|slot| self.core.is_awaited(slot))
    }

    fn state(&self) -> Vec<&'static str> {
        self.core.standby_states().collect()
    }
}

/// All servers up, and spare 9 warm for all of them.
fn warm() -> World {
    let mut w = World::fresh();
    w.all_pass(&[1, 2, 3]);
    w.standbys(vec![standby(9, &[1, 2, 3])]);
    w
}

#[test]
fn a_warm_spare_is_watched_in_no_service_and_enters_in_the_turn_in_which_it_gets_a_place() {
    let mut w = warm();
    assert!(w.is_hurried(9), "until its first verdict");
    assert_eq!(w.state(), ["waiting"]);
    let notes = w.probe(9, Outcome::Pass);
    assert!(
        notes.contains(&Note::StandbyReady(
            standby(9, &[]).spare,
            vec![ip(1), ip(2), ip(3)]
        )),
        "{notes:?}"
    );
    assert_eq!(w.state(), ["ready"]);
    assert!(!w.is_hurried(9));
    assert_eq!(
        (w.in_service(80), w.in_service(443)),
        (vec![1, 2, 3], vec![1, 2])
    );
    assert!(
        !w.core
            .watched_servers()
            .contains(&(service(80), dest(9, 80)))
    );

    w.dies(1);
    w.passes(10);
    assert_eq!(w.requests().len(), 1);
    let notes = w.gives_place();
    assert_eq!(
        (w.in_service(80), w.in_service(443)),
        (vec![2, 3, 9], vec![2, 9]),
        "without a probe more"
    );
    assert!(notes.contains(&Note::WasWarm(service(80), dest(9, 80))));
    let confirms: Vec<_> = w.core.outbox().confirms.into_iter().collect();
    assert_eq!(confirms, [("r1".parse().unwrap(), Want::Attach)]);
    assert_eq!(w.state(), [""; 0], "it is warm no more");
    w.probe(9, FAIL);
    w.probe(9, FAIL);
    assert_eq!(w.in_service(80), [2, 3], "it falls as any other");
}

#[test]
fn a_warm_spare_that_has_its_place_no_more_is_no_longer_watched() {
    let mut w = warm();
    w.probe(9, Outcome::Pass);
    w.standbys(vec![standby(8, &[2])]);
    let watched = |w: &World, n| {
        let mut slots = w.core.targets().into_values().flatten();
        slots.any(|s| s.dest.addr == ip(n))
    };
    assert_eq!((watched(&w, 8), watched(&w, 9)), (true, false));
    w.gives_place();
    assert_eq!(w.in_service(80), [1, 2, 3], "it is new, and has to pass");
}

#[test]
fn a_warm_spare_that_fails_opens_no_incident_and_is_told_of_once() {
    let mut w = warm();
    w.probe(9, Outcome::Pass);
    let notes = w.dies(9);
    let told: Vec<&StandbyFailure> = notes
        .iter()
        .filter_map(|n| match n {
            Note::StandbyFails(failure) => Some(failure),
            _ => None,
        })
        .collect();
    let [told] = told.as_slice() else {
        panic!("{notes:?}")
    };
    assert_eq!(
        told.to_string(),
        "the warm spare spare9 does not pass the checks of tcp/192.0.2.1:80 at 10.0.0.9:80: connection refused; \
         a failure of 10.0.0.1, 10.0.0.2 or 10.0.0.3 would not be covered at once"
    );
    assert_eq!(w.state(), ["failing"]);
    let found = |w: &World| {
        let found = w.core.outbox().findings;
        let failing: Vec<_> = found.failing.into_iter().collect();
        (failing, found.passing.into_iter().collect::<Vec<_>>())
    };
    let failing = || {
        let why = "tcp/192.0.2.1:80 at 10.0.0.9:80: connection refused";
        vec![("spare9".to_owned(), why.to_owned())]
    };
    assert_eq!(found(&w), (failing(), vec![]));
    assert_eq!(w.core.outbox().messages(), 0, "nobody waits for it");
    w.passes(3600);
    assert_eq!((w.core.incident_count(), w.requests()), (0, vec![]));
    let status = w.core.status(at(w.now));
    assert!(status.warnings.contains(&told.to_string()), "{status:?}");
    assert_eq!(status.standbys[0].state, "failing");
    assert!(
        !status.services[0]
            .servers
            .iter()
            .any(|s| s.server.contains("0.0.9"))
    );

    // Another one is ready: what is not covered is nothing.
    w.standbys(vec![standby(9, &[1, 2, 3]), standby(8, &[1, 2, 3])]);
    w.all_pass(&[8]);
    let status = w.core.status(at(w.now));
    let words = "; other warm spares are ready for the same servers";
    assert!(status.warnings[0].ends_with(words), "{status:?}");
    assert_eq!(found(&w), (failing(), vec!["spare8".to_owned()]));
    // Another reason is no other finding.
    w.probe(9, Outcome::Fail(FailReason::Unreachable));
    assert_eq!(found(&w).0, failing());
    w.all_pass(&[9]);
    assert_eq!(
        found(&w),
        (vec![], ["spare8", "spare9"].map(String::from).into())
    );
}

#[test]
fn a_warm_spare_that_failed_has_to_pass_in_its_place_and_fails_there_anew() {
    let mut w = warm();
    w.dies(9);
    w.passes(3600);
    w.dies(1);
    w.gives_place();
    assert_eq!(w.in_service(80), [2, 3]);
    assert!(w.is_hurried(9));
    w.passes(10);
    assert!(
        w.requests().iter().all(|key| key.failed != ip(9)),
        "that it failed before it had a place counts for nothing"
    );
    w.probe(9, Outcome::Pass);
    assert_eq!(w.in_service(80), [2, 3, 9]);
}

#[test]
fn a_warm_spare_behind_a_link_without_carrier_is_not_blamed() {
    let mut w = warm();
    w.probe(9, Outcome::Pass);
    w.event(Event::CutOff([(ip(9), "eth1".to_owned())].into()));
    let notes = w.dies(9);
    assert_eq!(notes, [], "{notes:?}");
    assert_eq!(w.state(), ["waiting"]);
    let found = w.core.outbox().findings;
    assert_eq!(found, Findings::default(), "nothing is known of it");
    assert!(!w.is_hurried(9));
    w.event(Event::CutOff(BTreeMap::new()));
    assert!(w.is_hurried(9), "it is asked anew");
    let notes = w.dies(9);
    let fails = |n: &Note| matches!(n, Note::StandbyFails(_));
    assert!(notes.iter().any(fails), "{notes:?}");
}

#[test]
fn warm_spares_that_pass_say_nothing_of_whether_this_director_is_cut_off() {
    let mut w = warm();
    w.probe(9, Outcome::Pass);
    for n in [1, 2, 3] {
        w.dies(n);
    }
    w.passes(60);
    assert_eq!(w.core.guard(ip(1), at(w.now)), Some(Guard::AllServersDown));
    assert_eq!(w.requests(), []);
}

#[test]
fn a_warm_spare_whose_checks_change_is_asked_anew() {
    let mut w = warm();
    w.probe(9, Outcome::Pass);
    let text = CONFIG.replace("fall = 2", "fall = 3");
    let config = Arc::new(config::director::parse(Path::new("d.toml"), &text).unwrap());
    let found = Kernel::new();
    w.event(Event::Reload(Box::new(Reload { config, found })));
    assert_eq!(w.state(), ["waiting"]);
    assert!(w.is_hurried(9));
}

#[test]
fn a_warm_spare_is_explained_and_so_is_whose_place_it_could_take() {
    let mut w = warm();
    let explained = |w: &World| {
        let mut all = w.core.explain(ip(9), Some(80), None, at(w.now));
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0).explanation
    };
    w.probe(9, Outcome::Pass);
    let of = explained(&w);
    assert_eq!(
        (
            of.kind.as_str(),
            of.rule.as_str(),
            of.place,
            of.health.as_str()
        ),
        ("warm spare", "warm", Place::Out, "up")
    );
    assert_eq!(
        of.why,
        "it is a warm spare and passes: it enters at once when the provisioner gives it the place of 10.0.0.1, 10.0.0.2 or 10.0.0.3"
    );
    assert_eq!((of.weight.configured, of.weight.wanted), (5, None));
    w.dies(9);
    assert!(explained(&w).why.contains("it fails, connection refused"));
    let first = w.core.explain(ip(1), Some(80), None, at(w.now));
    assert_eq!(first[0].explanation.standbys[0].name, "spare9");
}
