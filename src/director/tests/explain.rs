//! Which rule holds a server in or out: what is told is what is done.

use super::*;
use crate::{
    director::explain::{Explanation, Place},
    model::{Order, Wish},
};

/// Servers 1 and 2 of weights 5 and 1; of 6 it takes 2; 9 is the sorry server. Who falls twice is held out.
const SORRY: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
[provisioner]
address = "10.77.0.1"
[replacement]
replace_after = "10s"
[[virtual_service]]
address = "192.0.2.1:80"
scheduler = "wlc"
forward = "nat"
quorum = 2
damping = { half_life = "60s", suppress = 2, reuse = 1 }
check = { agent = {}, connect_port = 9000 }
real_server = [{ address = "10.0.0.1:80", weight = 5 }, { address = "10.0.0.2:80" }]
sorry_server = [{ address = "10.0.0.9:80", weight = 2 }]
sorry_check = { interval = "1s", rise = 2, fall = 2 }
[[virtual_service]]
address = "192.0.2.1:443"
scheduler = "wlc"
forward = "nat"
check.none = {}
real_server = [{ address = "10.0.0.3:8443" }]
"#;

/// One of its servers.
const SECOND: &str = r#", { address = "10.0.0.2:80" }"#;

fn world(text: &str, kernel: Kernel) -> World {
    let mut w = World::of(
        text,
        Recall::Forgot("there is no state file".into()),
        kernel,
    );
    w.members(vec![]);
    w
}

impl World {
    fn explain(&self, port: u16, n: u8) -> Explanation {
        let now = at(self.now);
        let mut all = self.core.explain(ip(n), None, Some(service(port)), now);
        assert_eq!(all.len(), 1, "{n}: {all:?}");
        all.remove(0).explanation
    }

    /// Rule, place, and that the words have this in them.
    fn held(&self, n: u8, rule: &str, place: Place, words: &str) {
        let found = self.explain(80, n);
        assert_eq!(
            (found.rule.as_str(), found.place),
            (rule, place),
            "{found:?}"
        );
        assert!(found.why.contains(words), "{}", found.why);
    }

    /// The link towards server 1 loses its carrier, or has it again.
    fn cut_off(&mut self, cut: bool) {
        let servers = cut.then(|| (ip(1), "eth1".to_owned()));
        self.event(Event::CutOff(servers.into_iter().collect()));
    }

    fn ordered(&mut self, n: u8, wish: Option<Wish>) {
        let order = wish.map(|wish| Order {
            wish,
            reason: Some("new kernel".to_owned()),
            by: "uid 0".to_owned(),
            at: WallMillis(5),
            ends: None,
            drain_ends: None,
            drained: false,
        });
        let places = self.core.places_of(Some((ip(n), None)), None);
        self.event(Event::Ordered(places, order, WallMillis(5)));
    }
}

#[test]
fn from_its_first_check_to_its_failure_each_rule_is_told() {
    let mut w = world(CONFIG, Kernel::new());
    w.held(1, "awaited", Place::Out, "when it has passed its checks");
    w.all_pass(&[1, 2, 3]);
    w.now = 7;
    w.held(1, "passed", Place::In, "it passes its check");
    let up = w.explain(80, 1);
    assert_eq!((up.health.as_str(), up.since_s), ("up", Some(7)));
    let [check] = up.checks.as_slice() else {
        panic!("{up:?}")
    };
    assert_eq!(
        (check.check.as_str(), check.asks.as_str(), check.at.as_str()),
        ("tcp", "a TCP connection", "10.0.0.1:80")
    );
    assert_eq!(
        (check.found.as_deref(), check.found_s),
        (Some("passed"), Some(7))
    );
    assert_eq!((check.interval_ms, check.rise, check.fall), (1000, 2, 2));
    w.probe(1, FAIL);
    assert_eq!(w.explain(80, 1).checks[0].failures, 1, "one of two");
    w.held(1, "passed", Place::In, "");
    w.probe(1, FAIL);
    w.held(
        1,
        "failed",
        Place::Out,
        "connection refused: it is taken out",
    );
    w.probe(1, Outcome::Pass);
    let down = w.explain(80, 1);
    assert_eq!(
        (down.checks[0].passes, down.checks[0].passes_needed),
        (1, 2)
    );
    assert_eq!(
        (
            down.weight.configured,
            down.weight.wanted,
            down.weight.kernel
        ),
        (5, None, None)
    );
}

#[test]
fn who_is_busy_is_told_by_which_key_it_stays() {
    let mut w = world(CONFIG, Kernel::new());
    w.all_pass(&[1, 2, 3]);
    for _ in 0..2 {
        w.probe(1, Outcome::Fail(FailReason::Status(503)));
    }
    w.held(
        1,
        "failed",
        Place::Quiesced,
        "on_failure quiesces: it keeps its connections",
    );
    assert_eq!(w.explain(80, 1).weight.wanted, Some(0));
}

#[test]
fn what_was_found_at_the_start_is_adopted_and_strangers_are_named() {
    let mut kernel = full_kernel();
    let web = kernel.get_mut(&service(80)).unwrap();
    web.insert(dest(7, 80), attrs(3));
    let mut w = World::new(
        Recall::Forgot("there is no state file".into()),
        kernel.clone(),
    );
    w.held(1, "adopted", Place::In, "no verdict yet");
    w.held(7, "unclaimed", Place::In, "nobody names it");
    w.members(vec![]);
    let applied = |kernel: Kernel| {
        let kernel = kernel.into_iter().map(|(k, d)| (k, Arc::new(d))).collect();
        Event::Applied(Applied {
            kernel,
            ..Applied::default()
        })
    };
    w.core.handle(applied(kernel), at(0));
    w.held(7, "foreign", Place::Out, "removed with the next pass");
    assert_eq!(w.explain(80, 7).weight.kernel, Some(3));
    assert_eq!(w.explain(80, 7).kind, "unclaimed");
}

#[test]
fn orders_name_who_and_how_they_are_taken_back() {
    let mut w = world(CONFIG, Kernel::new());
    w.all_pass(&[1, 2, 3]);
    let back = "`understudy enable 10.0.0.1 --service tcp/192.0.2.1:80`";
    for (wish, rule, place) in [
        (Wish::Disabled, "disabled", Place::Out),
        (Wish::Drained, "drained", Place::Quiesced),
        (Wish::Maintenance, "drained", Place::Quiesced),
        (Wish::Weight(Weight::of(9)), "ordered_weight", Place::In),
    ] {
        w.ordered(1, Some(wish));
        w.held(1, rule, place, "by uid 0: new kernel");
        w.held(1, rule, place, back);
    }
    w.ordered(1, None);
    w.held(1, "passed", Place::In, "");
    w.ordered(1, Some(Wish::Drained));
    w.held(
        1,
        "drained",
        Place::Quiesced,
        "its connections are being counted; it leaves",
    );
    w.counted(Some(0));
    w.held(1, "drained_out", Place::Out, "its connections are gone");
}

#[test]
fn a_stand_in_and_whom_it_replaces_name_each_other() {
    let mut w = world(CONFIG, Kernel::new());
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    let guarded = w.explain(80, 1).incident.unwrap();
    assert_eq!(
        (guarded.guard.as_deref(), guarded.until_s),
        (Some("replace_after"), Some(10))
    );
    w.passes(10);
    let key = w.requests()[0].clone();
    w.event(answer(&key, "r1", ReplacementState::Configuring, None));
    let asked = w.core.explain(ip(1), Some(80), None, at(w.now)).remove(0);
    assert_eq!(asked.ask.unwrap().to_string(), "r1");
    assert_eq!(asked.explanation.incident.unwrap().detail, "configuring");
    w.members(vec![member("r1", 1, 9, Want::Attach)]);
    w.held(9, "awaited", Place::Out, "");
    w.all_pass(&[9, 1]);
    w.held(1, "replaced", Place::Out, "the stand-in 10.0.0.9:80");
    w.held(9, "passed", Place::In, "");
    let stand_in = w.explain(80, 9);
    assert_eq!(
        (stand_in.kind.as_str(), stand_in.weight.configured),
        ("stand-in", 5)
    );
    for n in [1, 9] {
        let known = w.explain(80, n).stand_ins;
        assert_eq!(known.len(), 1);
        assert_eq!(known[0].in_place_of, [ip(1)]);
    }
}

#[test]
fn agents_sorry_servers_and_damping_are_told() {
    let mut w = world(SORRY, Kernel::new());
    let says = |w: &mut World, n, advice, outcome| {
        let mut found = Found::of(outcome, Duration::ZERO);
        found.advice = advice;
        let slot = Slot {
            service: service(80),
            dest: dest(n, 80),
            check: 0,
        };
        let slots = [slot].into();
        w.event(Event::Probe { slots, found });
    };
    assert_eq!(w.explain(443, 3).rule, "unchecked");
    w.all_pass(&[1, 2, 9]);
    w.held(9, "stands_by", Place::Out, "the quorum holds");
    says(&mut w, 1, Some(Advice::Percent(40)), Outcome::Pass);
    w.held(1, "advised", Place::In, "agent wants 40% of its weight");
    assert_eq!(w.explain(80, 1).weight.wanted, Some(2));
    says(&mut w, 1, Some(Advice::Percent(0)), Outcome::Pass);
    w.held(1, "advised", Place::Quiesced, "gets no new ones");
    says(&mut w, 1, None, Outcome::Pass);
    for n in [1, 1] {
        says(&mut w, n, None, FAIL);
    }
    w.held(9, "sorry_serves", Place::In, "it takes 2");
    w.held(
        2,
        "quorum_lost",
        Place::Quiesced,
        "new ones go to the sorry servers",
    );
    w.ordered(9, Some(Wish::Weight(Weight::QUIESCED)));
    w.held(
        9,
        "stands_by",
        Place::Out,
        "no sorry server takes connections",
    );
    w.ordered(9, None);
    w.all_pass(&[1]);
    w.dies(1);
    w.all_pass(&[1]);
    w.held(2, "quorum_lost", Place::Quiesced, "");
}

#[test]
fn who_came_and_went_is_held_out_for_so_long() {
    let mut w = world(CONFIG, Kernel::new());
    w.all_pass(&[1, 2, 3]);
    for _ in 0..4 {
        w.dies(1);
        w.all_pass(&[1]);
    }
    w.held(1, "held_out", Place::Out, "for ");
    assert!(w.explain(80, 1).why.contains("(damping)"));
}

#[test]
fn until_its_agent_has_spoken_it_keeps_what_was_found() {
    let found = [(dest(1, 80), attrs(0)), (dest(2, 80), attrs(1))];
    let text = SORRY.replace(
        "check = { agent = {}, connect_port = 9000 }",
        "checks_needed = \"any\"\ncheck = [{ agent = {}, connect_port = 9000 }, { connect_port = 80 }]",
    );
    let mut w = world(&text, [(service(80), found.into())].into());
    let slot = |check| Slot {
        service: service(80),
        dest: dest(1, 80),
        check,
    };
    let slots = [slot(1)].into();
    let passed = Found::of(Outcome::Pass, Duration::ZERO);
    w.event(Event::Probe {
        slots,
        found: passed,
    });
    w.held(1, "advice_awaited", Place::Quiesced, "has spoken");
}

#[test]
fn without_a_port_or_service_all_its_places_are_explained() {
    let w = world(CONFIG, Kernel::new());
    let of = |n, port, only| w.core.explain(ip(n), port, only, at(0)).len();
    assert_eq!(of(1, None, None), 2);
    assert_eq!(of(1, Some(8443), None), 1);
    assert_eq!(of(1, None, Some(service(80))), 1);
    assert_eq!(
        (of(3, None, Some(service(443))), of(77, None, None)),
        (0, 0)
    );
}

#[derive(Clone, Debug)]
enum Step {
    Probe(u8, bool, Option<u16>),
    Order(u8, Option<Wish>),
    Attach(u8, u8),
    Withdraw,
    Wait(u64),
    Counted,
    Reload(bool),
    Cut(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let server = || prop::sample::select(vec![1_u8, 2, 7, 8, 9]);
    let wish = prop_oneof![
        Just(None),
        Just(Some(Wish::Disabled)),
        Just(Some(Wish::Drained)),
        Just(Some(Wish::Maintenance)),
        (0_u16..3).prop_map(|w| Some(Wish::Weight(Weight::of(w)))),
    ];
    prop_oneof![
        12 => (server(), any::<bool>(), prop::option::of(0_u16..150)).prop_map(|(n, p, a)| Step::Probe(n, p, a)),
        3 => (server(), wish).prop_map(|(n, w)| Step::Order(n, w)),
        2 => (1_u8..=2, 7_u8..=8).prop_map(|(o, s)| Step::Attach(o, s)),
        1 => Just(Step::Withdraw),
        2 => (0_u64..40).prop_map(Step::Wait),
        1 => Just(Step::Counted),
        1 => any::<bool>().prop_map(Step::Reload),
        1 => any::<bool>().prop_map(Step::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens: what is told of a server is what is wanted of the kernel, by a rule that can say so.
    #[test]
    fn what_is_told_is_what_is_done(steps in prop::collection::vec(step(), 1..60), adopt in any::<bool>(), panics in any::<bool>()) {
        let found = [(dest(1, 80), attrs(5)), (dest(5, 80), attrs(2))];
        let kernel = if adopt { [(service(80), found.into())].into() } else { Kernel::new() };
        let text = SORRY.replace("quorum = 2", if panics { "panic_threshold = \"60%\"" } else { "quorum = 2" });
        let mut w = World::of(&text, Recall::Forgot("there is no state file".into()), kernel);
        let mut members = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Probe(n, passes, advice) => {
                    let mut found = Found::of(if passes { Outcome::Pass } else { FAIL }, Duration::ZERO);
                    found.advice = advice.map(Advice::Percent);
                    let slot = Slot { service: service(80), dest: dest(n, 80), check: 0 };
                    w.event(Event::Probe { slots: [slot].into(), found });
                }
                Step::Order(n, wish) => w.ordered(n, wish),
                Step::Attach(origin, spare) => {
                    members.push(member(&format!("m{number}"), origin, spare, Want::Attach));
                    w.members(members.clone());
                }
                Step::Withdraw => {
                    members.pop();
                    w.members(members.clone());
                }
                Step::Wait(seconds) => drop(w.passes(seconds)),
                Step::Counted => drop(w.counted(Some(0))),
                Step::Cut(cut) => w.cut_off(cut),
                Step::Reload(whole) => {
                    let text = if whole { text.clone() } else { text.replace(SECOND, "") };
                    w.reload(&text);
                }
            }
            let want = w.core.desired(service(80)).unwrap();
            for n in 1..=9 {
                let wanted = want.service.dests.get(&dest(n, 80)).map(|a| a.weight.get());
                let told = w.core.explain(ip(n), Some(80), Some(service(80)), at(w.now));
                let Some(told) = told.into_iter().next().map(|e| e.explanation) else {
                    prop_assert_eq!(wanted, None, "{} is wanted and not explained", n);
                    continue;
                };
                let place = match wanted {
                    None => Place::Out,
                    Some(0) => Place::Quiesced,
                    Some(_) => Place::In,
                };
                prop_assert_eq!(told.place, place, "{:?}", &told);
                prop_assert_eq!(told.weight.wanted, wanted);
                let may = match told.rule.as_str() {
                    "passed" | "unchecked" | "sorry_serves" => vec![Place::In],
                    "doubted" | "panic" => vec![Place::In, Place::Quiesced],
                    "advised" | "advice_awaited" | "adopted" | "ordered_weight" | "unclaimed" => vec![Place::In, Place::Quiesced],
                    "failed" | "held_out" => vec![Place::Out, Place::Quiesced],
                    "drained" | "quorum_lost" | "leaving" => vec![Place::Quiesced],
                    "disabled" | "drained_out" | "awaited" | "replaced" | "stands_by" | "foreign" => vec![Place::Out],
                    rule => panic!("a rule of no name: {rule}"),
                };
                prop_assert!(may.contains(&place), "{:?}", &told);
                prop_assert!(!told.why.is_empty());
                // Nobody is in who fails, nobody out whom nothing holds out.
                let fell = w.core.verdict(service(80), dest(n, 80)).and_then(Health::down_since);
                let doubted = fell.is_some_and(|fell| w.core.doubt(ip(n), fell).is_some());
                if fell.is_some() && !doubted && told.rule != "panic" {
                    prop_assert!(place != Place::In);
                }
            }
        }
    }
}

#[test]
fn who_stays_though_it_fails_is_told_why() {
    let mut w = world(CONFIG, Kernel::new());
    w.all_pass(&[1, 2, 3]);
    w.now += 100;
    w.cut_off(true);
    w.dies(1);
    w.held(
        1,
        "doubted",
        Place::In,
        "this director may be cut off itself",
    );
    w.held(1, "doubted", Place::In, "eth1");

    let text = CONFIG.replace(
        "forward = \"nat\"\n",
        "forward = \"nat\"\npanic_threshold = \"60%\"\n",
    );
    let mut w = world(&text, Kernel::new());
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.held(1, "failed", Place::Out, "");
    w.now += 1;
    w.dies(2);
    w.held(2, "panic", Place::In, "2 have to stay (panic_threshold)");
}

#[test]
fn who_was_dropped_is_told_until_it_is_gone() {
    let mut w = world(CONFIG, Kernel::new());
    w.all_pass(&[1, 2, 3]);
    let second = CONFIG.rfind("[[virtual_service]]").unwrap();
    let text = CONFIG[..second].replace(r#", { address = "10.0.0.3:80" }"#, "");
    w.reload(&text);
    w.held(3, "leaving", Place::Quiesced, "no longer wants it here");
    let gone = w.explain(443, 1);
    assert_eq!(
        (gone.rule.as_str(), gone.place),
        ("leaving", Place::Quiesced)
    );
    assert!(
        gone.why.contains("no longer names its service"),
        "{}",
        gone.why
    );
    let places = w.core.draining().into_iter().map(|p| (p, Some(0)));
    let counted: Connections = places.collect();
    for seconds in [0, 3] {
        let counted = Event::Counted(counted.clone());
        w.core.handle(counted, at(w.now + seconds));
    }
    let left = w.core.explain(ip(3), None, None, at(w.now));
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].explanation.rule, "foreign", "until the next pass");
}
