//! Client requests at a steady rate, each one recorded.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::{Lab, now};

/// A request that takes longer is a lost one, unless it is said otherwise.
const LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Nanoseconds of CLOCK_BOOTTIME.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The body of a 200, which names the server that answered; or what went wrong.
    pub(crate) outcome: Result<String, String>,
}

/// Ends, and is waited for, when dropped.
#[derive(Debug)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    rate: u32,
    count: u32,
    limit: Duration,
    begin: Instant,
    next: AtomicU32,
    stop: AtomicBool,
    requests: Mutex<Vec<Request>>,
}

impl Traffic {
    /// Up to `count` requests from the lab's client, `rate` a second. Enough threads that the rate
    /// holds while a tenth of the requests runs into its limit; beyond that requests start late.
    pub(crate) fn start(lab: &Lab, target: SocketAddr, rate: u32, count: u32) -> Self {
        Self::with_limit(lab, target, rate, count, LIMIT)
    }

    /// The same, where a request is lost only after `limit`: more than the guest can carry makes it slow.
    pub(crate) fn with_limit(
        lab: &Lab,
        target: SocketAddr,
        rate: u32,
        count: u32,
        limit: Duration,
    ) -> Self {
        let shared = Arc::new(Shared {
            target,
            rate,
            count,
            limit,
            begin: Instant::now(),
            next: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            requests: Mutex::new(Vec::new()),
        });
        let threads = lab.client.run(|| {
            (0..rate / 10 + 4)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    // A thread begins in the namespace of the one that starts it.
                    Builder::new()
                        .stack_size(256 << 10)
                        .spawn(move || shared.work())
                        .unwrap()
                })
                .collect()
        });
        Self { shared, threads }
    }

    /// What is complete so far, in the order of completion.
    pub(crate) fn so_far(&self) -> Vec<Request> {
        self.shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Starts no more requests, waits for the last; all of them in the order of their starts.
    pub(crate) fn stop(mut self) -> Vec<Request> {
        self.end();
        let mut requests = self.so_far();
        requests.sort_by_key(|r| r.start);
        requests
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn work(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                return;
            }
            let due = self.begin + Duration::from_secs(1) * number / self.rate;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let start = now();
            let outcome = get_within(self.target, self.limit);
            let request = Request {
                start,
                end: now(),
                outcome,
            };
            self.requests
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(request);
        }
    }
}

/// One `GET /` from the calling thread's namespace.
pub(crate) fn get(target: SocketAddr) -> Result<String, String> {
    get_within(target, LIMIT)
}

fn get_within(target: SocketAddr, limit: Duration) -> Result<String, String> {
    let deadline = Instant::now() + limit;
    let error = |what: &str| {
        let what = what.to_owned();
        move |e: std::io::Error| format!("{what}: {e}")
    };
    let mut stream = TcpStream::connect_timeout(&target, limit).map_err(error("connect"))?;
    stream.set_nodelay(true).map_err(error("nodelay"))?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
        .map_err(error("send"))?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("receive: time limit".to_owned());
        }
        stream
            .set_read_timeout(Some(left))
            .map_err(error("time limit"))?;
        match stream.read(&mut buffer).map_err(error("receive"))? {
            0 => break,
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.trim_end().to_owned()),
        _ => Err(format!(
            "answer: {}",
            answer.lines().next().unwrap_or("none")
        )),
    }
}
