//! Who holds how many connections.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::unistd::Uid;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Limits;
use crate::model::CertificateNames;

/// Whose connections are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// A user of this host.
    User(u32),
    /// An address, where no certificate is shown.
    Address(IpAddr),
    /// Where somebody begins TLS from, or showed a certificate of nobody who is listed.
    Greeting(IpAddr),
    /// A certificate.
    Names(CertificateNames),
}

/// The seats of all doors.
#[derive(Clone, Debug)]
pub(super) struct Guests {
    limits: Limits,
    own: u32,
    /// Of the Unix socket.
    pub(super) unix: Arc<Semaphore>,
    /// Of the Unix socket, for others than root and this process's user.
    others: Arc<Semaphore>,
    /// Of the port, for who has begun TLS where that is spoken.
    pub(super) tcp: Arc<Semaphore>,
    /// Of the port, for who begins TLS.
    pub(super) greeting: Arc<Semaphore>,
    held: Held,
}

/// So many at once begin TLS: each for a moment, or until it is cut off.
const GREETINGS: usize = 64;

/// And so many of them from one place. Behind it may be some directors, which come again.
const GREETINGS_EACH: usize = 8;

/// Where an address is: who has one of IPv6 has all of its network's last 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let host = u128::from(u64::MAX);
            Ipv6Addr::from_bits(v6.to_bits() & !host).into()
        }
    }
}

type Held = Arc<Mutex<HashMap<Who, usize>>>;

/// One connection's place; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    _permits: Vec<OwnedSemaphorePermit>,
    _counted: Option<Counted>,
}

#[derive(Debug)]
struct Counted {
    who: Who,
    held: Held,
}

fn lock(held: &Held) -> MutexGuard<'_, HashMap<Who, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        if let Some(n) = held.get_mut(&self.who) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                held.remove(&self.who);
            }
        }
    }
}

impl Guests {
    pub(super) fn new(limits: Limits) -> Self {
        let seats = |n| Arc::new(Semaphore::new(n));
        Self {
            limits,
            own: Uid::effective().as_raw(),
            unix: seats(limits.connections),
            others: seats(limits.connections.saturating_sub(limits.reserved)),
            tcp: seats(limits.connections),
            greeting: seats(GREETINGS),
            held: Held::default(),
        }
    }

    /// A place for a process of this user.
    pub(super) fn local(&self, uid: u32) -> Option<Seat> {
        let mut permits = vec![Arc::clone(&self.unix).try_acquire_owned().ok()?];
        if uid == 0 || uid == self.own {
            return Some(Seat {
                _permits: permits,
                _counted: None,
            });
        }
        permits.push(Arc::clone(&self.others).try_acquire_owned().ok()?);
        Some(Seat {
            _permits: permits,
            _counted: Some(self.count(Who::User(uid))?),
        })
    }

    /// A place for somebody at the port.
    pub(super) fn distant(&self, who: Who) -> Option<Seat> {
        let permit = Arc::clone(&self.tcp).try_acquire_owned().ok()?;
        Some(Seat {
            _permits: vec![permit],
            _counted: Some(self.count(who)?),
        })
    }

    /// A place for somebody who begins TLS: none of those that who is known has.
    pub(super) fn greeted(&self, from: IpAddr) -> Option<Seat> {
        let permit = Arc::clone(&self.greeting).try_acquire_owned().ok()?;
        Some(Seat {
            _permits: vec![permit],
            _counted: Some(self.count(Who::Greeting(network(from)))?),
        })
    }

    /// A place for who began TLS at `seat`, and showed a certificate with these names.
    pub(super) fn moved(&self, seat: Seat, names: &CertificateNames) -> Option<Seat> {
        let known = self.distant(Who::Names(names.clone()))?;
        drop(seat);
        Some(known)
    }

    fn count(&self, who: Who) -> Option<Counted> {
        let mut held = lock(&self.held);
        let n = held.entry(who.clone()).or_default();
        let most = match who {
            Who::Address(_) => self.limits.unknown,
            Who::Greeting(_) => GREETINGS_EACH,
            Who::User(_) | Who::Names(_) => self.limits.each,
        };
        if *n >= most {
            return None;
        }
        *n += 1;
        drop(held);
        let held = Arc::clone(&self.held);
        Some(Counted { who, held })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nobody_holds_more_than_its_part() {
        let guests = Guests::new(Limits {
            connections: 10,
            header: Duration::ZERO,
            lasting: Duration::ZERO,
            keep_alive: false,
            reserved: 2,
            each: 3,
            unknown: 3,
        });
        let (mallory, alice) = (4_000_001, 4_000_002);
        let mut held: Vec<_> = (0..5).filter_map(|_| guests.local(mallory)).collect();
        assert_eq!(held.len(), 3, "its part and no more");
        assert!(guests.local(alice).is_some(), "others have theirs");
        held.pop();
        held.extend(guests.local(mallory));
        assert_eq!(held.len(), 3, "what was given back is free again");
        held.extend((0..20).filter_map(|n| guests.local(5_000_000 + n)));
        assert_eq!(held.len(), 8, "all others together leave what is reserved");
        assert!(guests.local(0).is_some(), "and root gets in");

        let at = |n: u8| Who::Address([192, 0, 2, n].into());
        let names = |n: &str| CertificateNames::new([n]);
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        let seat = |n: u8, name: &str| guests.moved(guests.greeted(from(n))?, &names(name));
        let shown: Vec<_> = (0..5).filter_map(|_| seat(1, "lb1")).collect();
        assert_eq!(shown.len(), 3, "a certificate has its part");
        assert!(seat(1, "lb2").is_some(), "another of that address has too");
        let mute: Vec<_> = (0..9).filter_map(|_| guests.distant(at(1))).collect();
        assert_eq!(mute.len(), 3, "who has shown none has that of its address");
        assert!(guests.distant(at(2)).is_some());
        drop((shown, mute));
        assert!(lock(&guests.held).len() <= 19, "nobody is counted for ever");
    }

    #[test]
    fn who_begins_tls_takes_no_place_of_who_is_known() {
        let guests = Guests::new(Limits {
            connections: 2,
            header: Duration::ZERO,
            lasting: Duration::ZERO,
            keep_alive: false,
            reserved: 0,
            each: 2,
            unknown: 2,
        });
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let many = |of: &dyn Fn(usize) -> IpAddr| -> Vec<Seat> {
            (0..1000).filter_map(|n| guests.greeted(of(n))).collect()
        };
        let one = many(&|n| ip(&format!("2001:db8:0:1::{n:x}")));
        assert_eq!(one.len(), GREETINGS_EACH, "a network is one place");
        let mapped = many(&|_| ip("::ffff:192.0.2.1"));
        assert_eq!(mapped.len(), GREETINGS_EACH);
        assert!(guests.greeted(ip("192.0.2.1")).is_none(), "it is the same");
        let names = |n: &str| CertificateNames::new([n]);
        let other = || guests.greeted(ip("2001:db8:0:2::1")).unwrap();
        let known = guests.moved(other(), &names("lb1")).unwrap();
        let rest = many(&|n| ip(&format!("10.0.{}.{}", n / 250, n % 250)));
        assert_eq!(one.len() + mapped.len() + rest.len(), GREETINGS);
        drop((one, mapped, rest));
        let second = guests.moved(other(), &names("lb2")).unwrap();
        assert!(
            guests.moved(other(), &names("lb3")).is_none(),
            "all are taken"
        );
        drop((known, second));
        assert_eq!(guests.greeting.available_permits(), GREETINGS);
        assert_eq!(guests.tcp.available_permits(), 2);
    }
}
