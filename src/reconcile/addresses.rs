//! Virtual addresses: from what is wanted and what is there to the next steps. PURE.
//!
//! [`Keeper`] remembers between its turns only what cannot be read: which addresses were asked about and how
//! that ended, which were there at the turn before, which are still to be announced. Whose an address is, the
//! kernel remembers (`IFA_PROTO`).
//!
//! ```text
//!            asked, nobody has it
//!  missing ───────────────────────► free ──added──► on, announced 3 times
//!     │  ▲                                           │
//!     │  └────────────── somebody took it off ───────┘
//!     └─ another host answers: told, asked again after 5 s, 10 s, … 60 s
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use crate::model::{
    AddressPlace, AddressPolicy, Addresses, AnnounceOn, FoundAddress, FoundAddresses, FoundLink,
    Mac, MonoTime, Presence,
};

/// How often an address that came is announced. RFC 5227 says twice (`ANNOUNCE_NUM`), RFC 4861 up to three
/// times (`MAX_NEIGHBOR_ADVERTISEMENT`): a frame may be lost.
const ANNOUNCEMENTS: u8 = 3;

/// From one announcement to the next (`RETRANS_TIMER` in RFC 4861; RFC 5227 has 2 s).
const BETWEEN: Duration = Duration::from_secs(1);

/// That nobody has an address holds for so long.
const FRESH: Duration = Duration::from_secs(3);

/// After the first attempt that failed; doubled with each.
const RETRY: Duration = Duration::from_secs(5);

/// Never longer than this. RFC 5227 has it for hosts that met ten conflicts (`RATE_LIMIT_INTERVAL`).
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Addresses that are asked about in one turn: the answers of a network must find room.
const AT_ONCE: usize = 128;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a dummy interface of this name.
    CreateDummy(String),
    /// Switch an interface on.
    LinkUp(String),
    /// Ask the neighbours on an interface whether anybody has an address.
    Probe(IpAddr, FoundLink),
    /// Put an address on an interface.
    Add(IpAddr, AddressPlace, FoundLink),
    /// Tell the neighbours on an interface that an address is here.
    Announce(IpAddr, FoundLink),
    /// Take an address off.
    Remove(FoundAddress),
}

/// What the neighbours said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody has the address.
    Free,
    /// This host has it.
    Taken(Mac),
    /// They could not be asked, in words.
    Unasked(String),
}

/// Why a wanted address is not there, or an unwanted one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Another host has it, seen on this interface.
    Taken(Mac, String),
    /// There is no such interface.
    NoInterface(String),
    /// The interface is switched off.
    Off(String),
    /// The interface has no link.
    NoLink(String),
    /// Neighbours could not be asked on this interface, in words.
    Unasked(String, String),
    /// The kernel refused, in words.
    Refused(String),
    /// It should go, but somebody else put it there, on this interface.
    Theirs(String),
}

impl Trouble {
    /// For people: what is so, why, and what to do.
    #[must_use]
    pub fn about(&self, addr: IpAddr) -> String {
        match self {
            Self::Taken(mac, on) => format!(
                "virtual address {addr} is not put on: another host, {mac} on {on}, answers for it; take it off there, it is asked again within {} s",
                LONGEST_RETRY.as_secs()
            ),
            Self::NoInterface(name) => format!(
                "virtual address {addr} is not put on: there is no interface {name}; make it, or write create_dummy = true for a dummy"
            ),
            Self::Off(name) => format!(
                "virtual address {addr} is not put on: interface {name} is down; ip link set {name} up"
            ),
            Self::NoLink(name) => format!(
                "virtual address {addr} is not put on: interface {name} has no link, so that nobody there can be asked whether it is free; look at its cable and switch"
            ),
            Self::Unasked(name, why) => format!(
                "virtual address {addr} is not put on: nobody could be asked on {name} whether it is free: {why}; asking takes CAP_NET_RAW and AF_PACKET"
            ),
            Self::Refused(why) => format!("virtual address {addr} is not as wanted: {why}"),
            Self::Theirs(name) => format!(
                "virtual address {addr} should be withdrawn and stays on {name}: this director did not put it there; take it off by hand, and leave it to the director"
            ),
        }
    }
}

/// Something worth a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// An address that was there is gone, and nobody here took it off.
    Lost(IpAddr, String),
    /// An address was found where it belongs, and is kept: whether this director put it there.
    Adopted(IpAddr, String, bool),
    /// A new trouble.
    Trouble(IpAddr, Trouble),
    /// A trouble is over.
    Over(IpAddr, Trouble),
}

/// The outcome of a turn.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// What to do, in this order.
    pub steps: Vec<Step>,
    /// What to tell.
    pub notes: Vec<Note>,
    /// When the next turn is due at the latest, if time alone makes one.
    pub wake: Option<MonoTime>,
}

impl Turn {
    fn wake_at(&mut self, at: MonoTime) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}

/// What is remembered of one address.
#[derive(Debug)]
struct Entry {
    /// Where it belongs: of another place nothing is known.
    place: AddressPlace,
    /// Whether it was on its interface at the last turn; none before the first.
    on: Option<bool>,
    /// When nobody had it.
    free: Option<MonoTime>,
    /// Attempts that failed in a row, and when the next one is due.
    failed: u32,
    next: Option<MonoTime>,
    /// Announcements that are left, and when the next one is due.
    announce: Option<(u8, MonoTime)>,
    /// As it was told.
    trouble: Option<Trouble>,
}

impl Entry {
    const fn new(place: AddressPlace) -> Self {
        Self {
            place,
            on: None,
            free: None,
            failed: 0,
            next: None,
            announce: None,
            trouble: None,
        }
    }

    /// Notes what is wrong now, and tells what is new.
    fn stands(&mut self, addr: IpAddr, now: Option<Trouble>, notes: &mut Vec<Note>) {
        if self.trouble == now {
            return;
        }
        match (self.trouble.take(), &now) {
            (_, Some(new)) => notes.push(Note::Trouble(addr, new.clone())),
            (Some(old), None) => notes.push(Note::Over(addr, old)),
            (None, None) => {}
        }
        self.trouble = now;
    }

    fn failed(&mut self, now: MonoTime) {
        let doubled = RETRY.saturating_mul(1 << self.failed.min(8));
        self.failed = self.failed.saturating_add(1);
        self.free = None;
        self.next = Some(now.after(doubled.min(LONGEST_RETRY)));
    }

    fn settled(&mut self) {
        self.failed = 0;
        self.free = None;
        self.next = None;
    }

    fn is_free(&self, now: MonoTime) -> bool {
        self.free.is_some_and(|at| now.since(at) <= FRESH)
    }
}

/// Where an address's interface and its neighbours stand.
enum Ground {
    /// There, and these neighbours are to be asked, if any.
    Ready(FoundLink, Option<FoundLink>),
    /// To be made so first.
    First(Step),
    Missing(Trouble),
}

/// Keeps the virtual addresses as they are wanted.
#[derive(Debug, Default)]
pub struct Keeper {
    entries: BTreeMap<IpAddr, Entry>,
    /// Interfaces that had a link at the last turn; none before the first.
    running: Option<BTreeSet<String>>,
    /// Whether any address was ever managed in this life.
    managed: bool,
}

impl Keeper {
    /// Whether there is anything to do: where no address is managed, nor was, nothing is read nor changed.
    #[must_use]
    pub fn is_concerned(&self, wanted: &Addresses) -> bool {
        self.managed || !wanted.wanted.is_empty()
    }

    /// The next steps. Their outcomes go to [`Self::answered`] and [`Self::stepped`].
    pub fn turn(&mut self, wanted: &Addresses, found: &FoundAddresses, now: MonoTime) -> Turn {
        self.managed |= !wanted.wanted.is_empty();
        let mut turn = Turn::default();
        self.entries.retain(|addr, entry| {
            let want = wanted.wanted.get(addr);
            want.is_some_and(|want| want.place == entry.place)
        });
        let mut asked = 0;
        for (addr, want) in &wanted.wanted {
            let place = &want.place;
            let at_place = at_place(*addr, place, wanted.proto, found);
            let entry = self.entries.entry(*addr);
            let entry = entry.or_insert_with(|| Entry::new(place.clone()));
            let was = entry.on.replace(at_place.is_some());
            let name = || place.interface.clone();
            match (want.presence, was, at_place) {
                (Presence::On | Presence::AsFound, None, Some(at)) => {
                    let ours = at.proto == wanted.proto;
                    turn.notes.push(Note::Adopted(*addr, name(), ours));
                }
                (Presence::On, Some(true), None) => turn.notes.push(Note::Lost(*addr, name())),
                _ => {}
            }
            match (want.presence, at_place) {
                (Presence::Off, at) => {
                    entry.settled();
                    entry.announce = None;
                    let theirs = at.filter(|at| at.proto != wanted.proto);
                    let trouble = theirs.map(|_| Trouble::Theirs(name()));
                    entry.stands(*addr, trouble, &mut turn.notes);
                }
                (Presence::AsFound, _) => entry.stands(*addr, None, &mut turn.notes),
                (Presence::On, Some(_)) => {
                    entry.settled();
                    entry.stands(*addr, None, &mut turn.notes);
                    self.announce(*addr, place, found, now, &mut turn);
                }
                (Presence::On, None) => {
                    entry.announce = None;
                    let ground = ground(place, found);
                    if let Ground::Missing(trouble) = ground {
                        entry.settled();
                        entry.stands(*addr, Some(trouble), &mut turn.notes);
                        continue;
                    }
                    if let Some(next) = entry.next.filter(|next| *next > now) {
                        turn.wake_at(next);
                        continue;
                    }
                    let step = match ground {
                        Ground::Ready(_, Some(near)) if !entry.is_free(now) => {
                            asked += 1;
                            if asked > AT_ONCE {
                                turn.wake_at(now);
                                continue;
                            }
                            Step::Probe(*addr, near)
                        }
                        Ground::Ready(link, _) => Step::Add(*addr, place.clone(), link),
                        Ground::First(step) => step,
                        Ground::Missing(_) => continue,
                    };
                    if !turn.steps.contains(&step) {
                        turn.steps.push(step);
                    }
                }
            }
        }
        turn.steps.extend(superfluous(wanted, found));
        let running = found.links.iter().filter(|l| l.running);
        self.running = Some(running.map(|l| l.name.clone()).collect());
        turn
    }

    /// Announces an address that is on: some times after it came, and when its neighbours come back.
    fn announce(
        &mut self,
        addr: IpAddr,
        place: &AddressPlace,
        found: &FoundAddresses,
        now: MonoTime,
        turn: &mut Turn,
    ) {
        let Some(entry) = self.entries.get_mut(&addr) else {
            return;
        };
        let Some(near) = neighbours(place, found).filter(|link| link.running) else {
            return;
        };
        let ran = self.running.as_ref();
        let came_back = ran.is_some_and(|ran| !ran.contains(&near.name));
        if came_back {
            entry.announce = Some((ANNOUNCEMENTS, now));
        }
        let Some((left, due)) = entry.announce else {
            return;
        };
        if due > now {
            turn.wake_at(due);
            return;
        }
        turn.steps.push(Step::Announce(addr, near.clone()));
        entry.announce = match left {
            0 | 1 => None,
            left => {
                let next = now.after(BETWEEN);
                turn.wake_at(next);
                Some((left - 1, next))
            }
        };
    }

    /// Takes what the neighbours on an interface said of an address.
    pub fn answered(
        &mut self,
        addr: IpAddr,
        interface: &str,
        answer: Answer,
        now: MonoTime,
    ) -> Vec<Note> {
        let mut notes = Vec::new();
        let Some(entry) = self.entries.get_mut(&addr) else {
            return notes;
        };
        let trouble = match answer {
            Answer::Free => {
                entry.free = Some(now);
                None
            }
            Answer::Taken(mac) => Some(Trouble::Taken(mac, interface.to_owned())),
            Answer::Unasked(why) => Some(Trouble::Unasked(interface.to_owned(), why)),
        };
        if trouble.is_some() {
            entry.failed(now);
            entry.stands(addr, trouble, &mut notes);
        }
        notes
    }

    /// Takes how a step ended, a refusal in words. Each that ends well makes another turn due.
    pub fn stepped(
        &mut self,
        step: &Step,
        outcome: Result<(), String>,
        now: MonoTime,
    ) -> Vec<Note> {
        let mut notes = Vec::new();
        match (step, outcome) {
            (Step::Add(addr, ..), Ok(())) => {
                if let Some(entry) = self.entries.get_mut(addr) {
                    entry.on = Some(true);
                    entry.announce = Some((ANNOUNCEMENTS, now));
                    entry.settled();
                    entry.stands(*addr, None, &mut notes);
                }
            }
            (Step::Add(addr, ..), Err(why)) => {
                if let Some(entry) = self.entries.get_mut(addr) {
                    entry.failed(now);
                    entry.stands(*addr, Some(Trouble::Refused(why)), &mut notes);
                }
            }
            (Step::CreateDummy(name) | Step::LinkUp(name), Err(why)) => {
                // All that wait for it.
                for (addr, entry) in &mut self.entries {
                    if entry.on == Some(false) && entry.next.is_none_or(|next| next <= now) {
                        entry.failed(now);
                        let why = format!("interface {name} could not be had: {why}");
                        entry.stands(*addr, Some(Trouble::Refused(why)), &mut notes);
                    }
                }
            }
            (Step::Remove(found), Ok(())) => {
                if let Some(entry) = self.entries.get_mut(&found.at.addr) {
                    // It is not missed at the next turn.
                    entry.on = Some(false);
                }
            }
            (Step::Remove(_) | Step::Announce(..) | Step::Probe(..), Err(_)) | (_, Ok(())) => {}
        }
        notes
    }

    /// What is not as it should be, for `status`.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let troubled =
            |(addr, entry): (&IpAddr, &Entry)| Some(entry.trouble.as_ref()?.about(*addr));
        self.entries.iter().filter_map(troubled).collect()
    }

    /// The managed addresses, and whether each was on its interface at the last turn.
    pub fn presences(&self) -> impl Iterator<Item = (IpAddr, bool)> {
        let on = |(addr, entry): (&IpAddr, &Entry)| (*addr, entry.on == Some(true));
        self.entries.iter().map(on)
    }
}

/// What is to be taken off when the director stops.
#[must_use]
pub fn at_stop(wanted: &Addresses, found: &FoundAddresses) -> Vec<Step> {
    let goes = |f: &&FoundAddress| {
        let want = wanted.wanted.get(&f.at.addr);
        let withdraws = want.is_some_and(|want| want.shutdown == AddressPolicy::Withdraw);
        withdraws && f.proto == wanted.proto
    };
    let all = found.addresses.iter().filter(goes);
    all.cloned().map(Step::Remove).collect()
}

/// Where an address is on its interface. One of ours has its prefix too; of IPv6 the kernel keeps one
/// prefix only (`ipv6_add_addr` in net/ipv6/addrconf.c), so that it is no other address.
fn at_place<'a>(
    addr: IpAddr,
    place: &AddressPlace,
    proto: u8,
    found: &'a FoundAddresses,
) -> Option<&'a FoundAddress> {
    found.addresses.iter().find(|f| {
        let fits = f.proto != proto || f.at.prefix == place.prefix || addr.is_ipv6();
        f.at.addr == addr && f.at.interface == place.interface && fits
    })
}

/// What this director put on and nobody wants there any more. One that moves goes only after it has come to
/// its new place; one of a service that is no longer managed stays, as that still serves.
fn superfluous<'a>(
    wanted: &'a Addresses,
    found: &'a FoundAddresses,
) -> impl Iterator<Item = Step> + 'a {
    let ours = found.addresses.iter().filter(|f| f.proto == wanted.proto);
    let goes = |f: &&FoundAddress| {
        let addr = f.at.addr;
        let Some(want) = wanted.wanted.get(&addr) else {
            return !wanted.unmanaged.contains(&addr);
        };
        let at = at_place(addr, &want.place, wanted.proto, found);
        match want.presence {
            Presence::Off => true,
            Presence::AsFound => false,
            Presence::On => at.is_some_and(|at| at != *f),
        }
    };
    ours.filter(goes).cloned().map(Step::Remove)
}

/// Whose neighbours are asked and told.
fn neighbours<'a>(place: &AddressPlace, found: &'a FoundAddresses) -> Option<&'a FoundLink> {
    match &place.announce_on {
        AnnounceOn::Nowhere => None,
        AnnounceOn::Own => found.link(&place.interface).filter(|l| l.neighbours),
        AnnounceOn::Interface(name) => found.link(name),
    }
}

fn ground(place: &AddressPlace, found: &FoundAddresses) -> Ground {
    let name = &place.interface;
    let link = match found.link(name) {
        None if place.create_dummy => return Ground::First(Step::CreateDummy(name.clone())),
        None => return Ground::Missing(Trouble::NoInterface(name.clone())),
        Some(link) if link.up => link,
        Some(_) if place.create_dummy => return Ground::First(Step::LinkUp(name.clone())),
        Some(_) => return Ground::Missing(Trouble::Off(name.clone())),
    };
    let near = neighbours(place, found);
    match (&place.announce_on, near) {
        (AnnounceOn::Interface(name), None) => Ground::Missing(Trouble::NoInterface(name.clone())),
        (_, Some(near)) if !near.up => Ground::Missing(Trouble::Off(near.name.clone())),
        (_, Some(near)) if !near.running => Ground::Missing(Trouble::NoLink(near.name.clone())),
        (_, near) => Ground::Ready(link.clone(), near.cloned()),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateDummy(name) => write!(f, "make dummy interface {name}"),
            Self::LinkUp(name) => write!(f, "switch interface {name} on"),
            Self::Probe(addr, on) => write!(f, "ask on {} for {addr}", on.name),
            Self::Add(addr, place, _) => {
                write!(f, "put {addr}/{} on {}", place.prefix, place.interface)
            }
            Self::Announce(addr, on) => write!(f, "announce {addr} on {}", on.name),
            Self::Remove(found) => {
                let at = &found.at;
                write!(f, "take {}/{} off {}", at.addr, at.prefix, at.interface)
            }
        }
    }
}

#[cfg(test)]
mod tests;
