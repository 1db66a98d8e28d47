//! A bare epoll loop: connects, asks, reads, closes, with as few system calls as there can be, spread
//! over each second.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a measure that cannot be taken fails loudly where it stands"
)]

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        resource::{UsageWho, getrusage},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, connect, getsockopt, setsockopt, socket,
            sockopt,
        },
    },
};

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: loop\r\nConnection: close\r\n\r\n";

/// What the loop does.
pub(crate) struct Work<'a> {
    /// The `n`th server.
    pub(crate) address: &'a dyn Fn(u32) -> Ipv4Addr,
    pub(crate) port: u16,
    /// Servers, each of which is asked once a second.
    pub(crate) count: u32,
    /// Whether a request is sent and its answer read.
    pub(crate) http: bool,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
}

/// User and system time of this process.
pub(crate) fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let of = |t: nix::sys::time::TimeVal| {
        Duration::from_secs(t.tv_sec().try_into().unwrap())
            + Duration::from_micros(t.tv_usec().try_into().unwrap())
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// Runs it; how many connections there were within the window, and the CPU time that they took.
pub(crate) fn run(work: &Work<'_>) -> (u64, Duration) {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut open: HashMap<u64, OwnedFd> = HashMap::new();
    let (mut done, mut next) = (0_u64, 0_u32);
    let mut began = Instant::now();
    let mut before = cpu_time();
    let mut warm = false;
    let gap = Duration::from_secs(1) / work.count;
    let mut due = Instant::now();
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let now = Instant::now();
        if !warm && now - began >= work.warm_up {
            (warm, began, before, done) = (true, now, cpu_time(), 0);
        } else if warm && now - began >= work.window {
            return (done, cpu_time() - before);
        }
        while due <= now {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
            let linger = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&fd, sockopt::Linger, &linger).unwrap();
            let at = SocketAddrV4::new((work.address)(next % work.count), work.port);
            match connect(fd.as_raw_fd(), &SockaddrIn::from(at)) {
                Ok(()) | Err(Errno::EINPROGRESS) => {}
                Err(error) => panic!("{error}"),
            }
            let id = u64::from(next);
            epoll
                .add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLOUT, id))
                .unwrap();
            open.insert(id, fd);
            next += 1;
            due += gap;
        }
        let left = due.saturating_duration_since(Instant::now());
        let wait = EpollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap();
        let ready = epoll.wait(&mut events, wait).unwrap();
        for event in events.iter().take(ready) {
            let id = event.data();
            let fd = open.get(&id).unwrap();
            if event.events().contains(EpollFlags::EPOLLOUT) {
                assert_eq!(getsockopt(fd, sockopt::SocketError).unwrap(), 0);
                if work.http {
                    nix::unistd::write(fd, REQUEST).unwrap();
                    let mut readable = EpollEvent::new(EpollFlags::EPOLLIN, id);
                    epoll.modify(fd.as_fd(), &mut readable).unwrap();
                    continue;
                }
            } else {
                let mut answer = [0; 1024];
                let length = nix::unistd::read(fd, &mut answer).unwrap();
                assert!(answer.get(..length).unwrap().starts_with(b"HTTP/1.1 200"));
            }
            open.remove(&id);
            done += 1;
        }
    }
}
