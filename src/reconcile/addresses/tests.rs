//! A host and its network in few lines, and the keeper at work on them.

use proptest::prelude::*;

use super::*;
use crate::model::{HostAddress, WantedAddress};

const PROTO: u8 = 117;
const ALIEN: Mac = Mac([0x0a, 0, 0, 0, 0, 1]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vip(n: u8) -> IpAddr {
    match n % 2 {
        0 => IpAddr::from([192, 0, 2, n]),
        _ => ip(&format!("2001:db8::{n}")),
    }
}

fn place(interface: &str) -> AddressPlace {
    AddressPlace {
        interface: interface.to_owned(),
        prefix: 32,
        announce_on: AnnounceOn::Own,
        create_dummy: false,
    }
}

fn wanted(all: impl IntoIterator<Item = (IpAddr, AddressPlace, Presence)>) -> Addresses {
    let want = |(addr, place, presence)| {
        let shutdown = AddressPolicy::Keep;
        let want = WantedAddress {
            place,
            presence,
            shutdown,
        };
        (addr, want)
    };
    Addresses {
        proto: PROTO,
        wanted: all.into_iter().map(want).collect(),
        unmanaged: BTreeSet::new(),
    }
}

fn one(place: AddressPlace, presence: Presence) -> Addresses {
    wanted([(vip(2), place, presence)])
}

fn link(name: &str, index: u32) -> FoundLink {
    FoundLink {
        name: name.to_owned(),
        index,
        up: true,
        running: true,
        neighbours: name.starts_with("eth"),
        mac: Mac([2, 0, 0, 0, 0, index.try_into().unwrap()]),
    }
}

/// What the keeper's steps are made on.
struct Host {
    found: FoundAddresses,
    /// Addresses that another host on the network has.
    taken: BTreeSet<IpAddr>,
    now: MonoTime,
    keeper: Keeper,
    /// All that was done.
    done: Vec<Step>,
    notes: Vec<Note>,
}

impl Host {
    fn new() -> Self {
        Self {
            found: FoundAddresses {
                addresses: Vec::new(),
                links: vec![link("lo", 1), link("eth0", 2), link("eth1", 3)],
            },
            taken: BTreeSet::new(),
            now: MonoTime::from_boot(Duration::from_secs(1000)),
            keeper: Keeper::default(),
            done: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn puts(&mut self, addr: IpAddr, prefix: u8, interface: &str, proto: u8) {
        let index = self.found.link(interface).map_or(0, |l| l.index);
        let at = HostAddress {
            addr,
            prefix,
            index,
            interface: interface.to_owned(),
        };
        self.found.addresses.push(FoundAddress { at, proto });
    }

    fn is_on(&self, addr: IpAddr, interface: &str) -> bool {
        let mut all = self.found.addresses.iter();
        all.any(|f| f.at.addr == addr && f.at.interface == interface)
    }

    fn link_mut(&mut self, name: &str) -> &mut FoundLink {
        let mut all = self.found.links.iter_mut();
        all.find(|l| l.name == name).unwrap()
    }

    /// One turn, and what comes of it; whether anything was done.
    fn turn(&mut self, wanted: &Addresses) -> bool {
        let Turn { steps, notes, .. } = self.keeper.turn(wanted, &self.found, self.now);
        self.notes.extend(notes);
        let mut progress = false;
        for step in steps {
            match &step {
                Step::CreateDummy(name) => {
                    let index = 10 + u32::try_from(self.found.links.len()).unwrap();
                    self.found.links.push(link(name, index));
                }
                Step::LinkUp(name) => {
                    let link = self.link_mut(name);
                    (link.up, link.running) = (true, true);
                }
                Step::Probe(addr, on) => {
                    let answer = match self.taken.contains(addr) {
                        true => Answer::Taken(ALIEN),
                        false => Answer::Free,
                    };
                    let notes = self.keeper.answered(*addr, &on.name, answer, self.now);
                    self.notes.extend(notes);
                }
                Step::Add(addr, place, _) => {
                    self.puts(*addr, place.prefix, &place.interface, PROTO);
                }
                Step::Announce(..) => {}
                Step::Remove(f) => self.found.addresses.retain(|other| other != f),
            }
            if !matches!(step, Step::Announce(..) | Step::Probe(..)) {
                let notes = self.keeper.stepped(&step, Ok(()), self.now);
                self.notes.extend(notes);
            }
            progress |= !matches!(step, Step::Announce(..));
            self.done.push(step);
        }
        progress
    }

    /// Turns until nothing is left to do.
    fn settle(&mut self, wanted: &Addresses) {
        for _ in 0..20 {
            if !self.turn(wanted) {
                return;
            }
            // A second of asking.
            self.now = self.now.after(Duration::from_secs(1));
        }
        // Taken addresses are asked about for ever, but not at once.
        panic!("no end: {:?}", self.done);
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
    }

    fn words(&mut self) -> Vec<String> {
        let words = self.done.iter().map(Step::to_string).collect();
        self.done.clear();
        words
    }
}

#[test]
fn an_address_comes_after_a_probe_and_is_announced_some_times() {
    let mut host = Host::new();
    let want = one(place("eth0"), Presence::On);
    for _ in 0..10 {
        host.turn(&want);
        host.pass(1);
    }
    let announced = "announce 192.0.2.2 on eth0";
    assert_eq!(
        host.words(),
        [
            "ask on eth0 for 192.0.2.2",
            "put 192.0.2.2/32 on eth0",
            announced,
            announced,
            announced
        ]
    );
    assert_eq!(host.notes, []);
    assert!(host.keeper.presences().all(|(_, on)| on));
}

#[test]
fn a_restart_adopts_an_address_without_a_step() {
    for (proto, ours) in [(PROTO, true), (0, false)] {
        let mut host = Host::new();
        host.puts(vip(2), 32, "eth0", proto);
        let want = one(place("eth0"), Presence::On);
        host.settle(&want);
        assert_eq!(host.words(), [""; 0]);
        let told = Note::Adopted(vip(2), "eth0".to_owned(), ours);
        assert_eq!(host.notes, [told]);
    }
}

#[test]
fn an_address_that_another_host_has_stays_away_until_it_is_free() {
    let mut host = Host::new();
    host.taken.insert(vip(2));
    let want = one(place("eth0"), Presence::On);
    let mut asked = Vec::new();
    for second in 0..200 {
        let before = host.done.len();
        host.turn(&want);
        if host.done.len() > before {
            asked.push(second);
        }
        assert!(!host.is_on(vip(2), "eth0"));
        host.pass(1);
    }
    assert_eq!(asked, [0, 5, 15, 35, 75, 135, 195]);
    let trouble = Trouble::Taken(ALIEN, "eth0".to_owned());
    assert_eq!(host.notes, [Note::Trouble(vip(2), trouble.clone())]);
    let warnings = host.keeper.warnings();
    assert!(warnings[0].contains("0a:00:00:00:00:01"), "{warnings:?}");

    host.taken.clear();
    host.pass(60);
    host.settle(&want);
    assert!(host.is_on(vip(2), "eth0"));
    assert_eq!(host.notes[1..], [Note::Over(vip(2), trouble)]);
    assert_eq!(host.keeper.warnings(), [""; 0]);
}

#[test]
fn what_somebody_takes_off_is_told_and_put_back_after_a_probe() {
    let mut host = Host::new();
    let want = one(place("eth0"), Presence::On);
    host.settle(&want);
    host.words();
    host.found.addresses.clear();
    host.settle(&want);
    let words = host.words();
    assert_eq!(
        words[..2],
        ["ask on eth0 for 192.0.2.2", "put 192.0.2.2/32 on eth0"]
    );
    assert_eq!(host.notes, [Note::Lost(vip(2), "eth0".to_owned())]);
}

#[test]
fn nobody_is_asked_about_an_address_on_a_dummy_unless_a_network_is_named() {
    let mut host = Host::new();
    let mut at = place("vip0");
    at.create_dummy = true;
    let want = one(at.clone(), Presence::On);
    host.settle(&want);
    assert_eq!(
        host.words(),
        ["make dummy interface vip0", "put 192.0.2.2/32 on vip0"]
    );
    host.link_mut("vip0").up = false;
    host.found.addresses.clear();
    host.settle(&want);
    assert_eq!(
        host.words(),
        ["switch interface vip0 on", "put 192.0.2.2/32 on vip0"]
    );

    let mut host = Host::new();
    at.announce_on = AnnounceOn::Interface("eth1".to_owned());
    let want = one(at, Presence::On);
    host.settle(&want);
    assert_eq!(
        host.words(),
        [
            "make dummy interface vip0",
            "ask on eth1 for 192.0.2.2",
            "put 192.0.2.2/32 on vip0",
            "announce 192.0.2.2 on eth1"
        ]
    );
}

#[test]
fn what_the_operator_put_there_is_never_taken_off() {
    let mut host = Host::new();
    host.puts(vip(2), 24, "eth0", 0);
    let mut off = one(place("eth0"), Presence::Off);
    off.wanted.get_mut(&vip(2)).unwrap().shutdown = AddressPolicy::Withdraw;
    host.settle(&one(place("eth0"), Presence::On));
    host.settle(&off);
    assert_eq!(host.words(), [""; 0]);
    assert_eq!(host.keeper.warnings().len(), 1, "and that is told");
    assert_eq!(at_stop(&off, &host.found), []);
    // Nobody wants anything of it any more.
    host.settle(&wanted([]));
    assert!(host.is_on(vip(2), "eth0"));
}

#[test]
fn at_the_stop_goes_what_is_to_be_withdrawn_and_is_ours() {
    let mut host = Host::new();
    let mut want = one(place("eth0"), Presence::On);
    host.settle(&want);
    assert_eq!(at_stop(&want, &host.found), []);
    want.wanted.get_mut(&vip(2)).unwrap().shutdown = AddressPolicy::Withdraw;
    let steps = at_stop(&want, &host.found);
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0].to_string(), "take 192.0.2.2/32 off eth0");
}

#[test]
fn an_address_that_moves_is_at_its_new_place_before_it_leaves_the_old_one() {
    let mut host = Host::new();
    host.settle(&one(place("eth0"), Presence::On));
    host.words();
    let want = one(place("eth1"), Presence::On);
    host.settle(&want);
    assert_eq!(
        host.words(),
        [
            "ask on eth1 for 192.0.2.2",
            "put 192.0.2.2/32 on eth1",
            "announce 192.0.2.2 on eth1",
            "take 192.0.2.2/32 off eth0",
            "announce 192.0.2.2 on eth1"
        ]
    );
    assert_eq!(host.notes, []);
}

#[test]
fn an_address_is_left_when_its_service_stays_and_goes_with_it() {
    let mut host = Host::new();
    host.settle(&one(place("eth0"), Presence::On));
    let mut none = wanted([]);
    none.unmanaged.insert(vip(2));
    host.settle(&none);
    assert!(host.is_on(vip(2), "eth0"), "its service still serves");
    host.settle(&wanted([]));
    assert!(!host.is_on(vip(2), "eth0"));
}

#[test]
fn nothing_is_read_where_nothing_is_managed() {
    let mut keeper = Keeper::default();
    assert!(!keeper.is_concerned(&wanted([])));
    let want = one(place("eth0"), Presence::On);
    assert!(keeper.is_concerned(&want));
    keeper.turn(&want, &FoundAddresses::default(), MonoTime::ZERO);
    assert!(keeper.is_concerned(&wanted([])), "perhaps one is to go");
}

#[test]
fn without_its_interface_or_link_an_address_waits_and_that_is_told() {
    let mut host = Host::new();
    let spoils: [fn(&mut FoundLink); 3] = [
        |l| l.running = false,
        |l| l.up = false,
        |l| l.name = "eth7".to_owned(),
    ];
    for spoil in spoils {
        let whole = host.found.links.clone();
        spoil(host.link_mut("eth0"));
        host.settle(&one(place("eth0"), Presence::On));
        assert_eq!(host.words(), [""; 0]);
        assert_eq!(host.keeper.warnings().len(), 1);
        host.found.links = whole;
    }
    host.settle(&one(place("eth0"), Presence::On));
    assert!(host.is_on(vip(2), "eth0"));
    assert_eq!(host.keeper.warnings(), [""; 0]);
}

#[test]
fn neighbours_that_come_back_hear_of_it_again() {
    let mut host = Host::new();
    let want = one(place("eth0"), Presence::On);
    for _ in 0..8 {
        host.settle(&want);
        host.pass(1);
    }
    host.words();
    host.link_mut("eth0").running = false;
    host.settle(&want);
    assert_eq!(host.words(), [""; 0]);
    host.link_mut("eth0").running = true;
    host.settle(&want);
    assert_eq!(host.words(), ["announce 192.0.2.2 on eth0"]);
}

#[derive(Clone, Debug)]
enum Op {
    Want(u8, Option<Presence>, bool),
    OperatorPuts(u8, bool),
    SomebodyTakesOff(u8),
    Taken(u8, bool),
    Running(bool, bool),
    Turn,
    Wait(u8),
    /// The director is killed and started.
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let presence = prop_oneof![
        Just(None),
        Just(Some(Presence::On)),
        Just(Some(Presence::AsFound)),
        Just(Some(Presence::Off))
    ];
    prop_oneof![
        2 => (0..4_u8, presence, any::<bool>()).prop_map(|(n, p, eth1)| Op::Want(n, p, eth1)),
        1 => (0..4_u8, any::<bool>()).prop_map(|(n, eth1)| Op::OperatorPuts(n, eth1)),
        1 => (0..4_u8).prop_map(Op::SomebodyTakesOff),
        1 => (0..4_u8, any::<bool>()).prop_map(|(n, is)| Op::Taken(n, is)),
        1 => any::<(bool, bool)>().prop_map(|(eth1, is)| Op::Running(eth1, is)),
        6 => Just(Op::Turn),
        2 => (0..80_u8).prop_map(Op::Wait),
        1 => Just(Op::Restart),
    ]
}

fn name(eth1: bool) -> &'static str {
    if eth1 { "eth1" } else { "eth0" }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens in whatever order: nothing of anybody else's is taken off, nothing is put on that was not
    /// found free within seconds, and in the end there is what is wanted, however it came to that.
    #[test]
    fn no_order_of_things_breaks_what_holds(ops in prop::collection::vec(op(), 0..60)) {
        let mut host = Host::new();
        let mut want = wanted([]);
        let mut free: BTreeMap<(IpAddr, String), MonoTime> = BTreeMap::new();
        let mut managed = false;
        for op in ops {
            match op {
                Op::Want(n, None, _) => drop(want.wanted.remove(&vip(n))),
                Op::Want(n, Some(presence), eth1) => {
                    let more = wanted([(vip(n), place(name(eth1)), presence)]);
                    want.wanted.extend(more.wanted);
                }
                Op::OperatorPuts(n, eth1) => {
                    if !host.is_on(vip(n), name(eth1)) {
                        host.puts(vip(n), 32, name(eth1), 0);
                    }
                }
                Op::SomebodyTakesOff(n) => host.found.addresses.retain(|f| f.at.addr != vip(n)),
                Op::Taken(n, true) => drop(host.taken.insert(vip(n))),
                Op::Taken(n, false) => drop(host.taken.remove(&vip(n))),
                Op::Running(eth1, is) => host.link_mut(name(eth1)).running = is,
                Op::Wait(seconds) => host.pass(seconds.into()),
                Op::Restart => {
                    host.keeper = Keeper::default();
                    managed = false;
                }
                Op::Turn => {
                    let from = host.done.len();
                    let before = host.found.addresses.clone();
                    if !host.keeper.is_concerned(&want) {
                        continue;
                    }
                    managed = true;
                    host.turn(&want);
                    for step in &host.done[from..] {
                        match step {
                            Step::Remove(f) => {
                                prop_assert_eq!(f.proto, PROTO);
                                let wants = want.wanted.get(&f.at.addr);
                                let stays = wants.is_some_and(|w| w.presence != Presence::Off && w.place.interface == f.at.interface);
                                prop_assert!(!stays);
                            }
                            Step::Probe(addr, on) if !host.taken.contains(addr) => {
                                free.insert((*addr, on.name.clone()), host.now);
                            }
                            Step::Add(addr, place, _) => {
                                let at = free.get(&(*addr, place.interface.clone()));
                                prop_assert!(at.is_some_and(|at| host.now.since(*at) <= Duration::from_secs(3)));
                                prop_assert_eq!(want.wanted.get(addr).map(|w| w.presence), Some(Presence::On));
                            }
                            _ => {}
                        }
                    }
                    for f in before.iter().filter(|f| f.proto == 0) {
                        prop_assert!(host.found.addresses.contains(f));
                    }
                }
            }
        }
        // Nothing is in the way any more.
        host.taken.clear();
        for eth1 in [false, true] {
            host.link_mut(name(eth1)).running = true;
        }
        host.pass(61);
        if !host.keeper.is_concerned(&want) {
            return Ok(());
        }
        host.settle(&want);
        for n in 0..4 {
            let ours: Vec<_> = host.found.addresses.iter().filter(|f| f.at.addr == vip(n) && f.proto == PROTO).collect();
            match want.wanted.get(&vip(n)) {
                Some(w) if w.presence == Presence::On => {
                    prop_assert!(host.is_on(vip(n), &w.place.interface));
                    prop_assert!(ours.iter().all(|f| f.at.interface == w.place.interface));
                }
                Some(w) if w.presence == Presence::AsFound => {}
                Some(_) => prop_assert!(ours.is_empty()),
                None => prop_assert!(ours.is_empty() || !managed && want.wanted.is_empty()),
            }
        }
        prop_assert!(host.keeper.warnings().iter().all(|w| w.contains("by hand")));
    }
}
