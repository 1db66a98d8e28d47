//! This process's own calls: what goes into the store's file, to PostgreSQL, to a spare's sshd, to whoever asked the API;
//! and what a director writes into its state file, tells the kernel and asks the provisioner. Counted; at a named one the
//! process kills itself, or waits.
//!
//! The functions of the C library are defined here anew, so that the product's own code calls these: each makes the
//! system call of its name, and nothing else but to count.
#![expect(unsafe_code, reason = "system calls, and symbols of the C library")]

use std::{
    ffi::{CStr, c_char, c_int, c_long, c_void},
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use nix::{
    libc,
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, SockaddrLike as _, SockaddrStorage, UnixAddr, getpeername, getsockname,
        },
    },
    unistd::Pid,
};

/// Where in the process's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A transaction of the SQLite file: the calls from its first write to its fsync.
    Journal,
    /// A COMMIT sent to PostgreSQL.
    Commit,
    /// Anything else sent to PostgreSQL.
    Query,
    /// A packet of an SSH session.
    Ssh,
    /// A part of an answer of the API.
    Answer,
    /// A director's state file, written beside the old one.
    State,
    /// It takes the old one's place.
    Rename,
    /// A message to the kernel.
    Netlink,
    /// A director's request to its provisioner.
    Request,
}

impl Class {
    pub(crate) const ALL: [Self; 9] = [
        Self::Journal,
        Self::Commit,
        Self::Query,
        Self::Ssh,
        Self::Answer,
        Self::State,
        Self::Rename,
        Self::Netlink,
        Self::Request,
    ];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Commit => "commit",
            Self::Query => "query",
            Self::Ssh => "ssh",
            Self::Answer => "answer",
            Self::State => "state",
            Self::Rename => "rename",
            Self::Netlink => "netlink",
            Self::Request => "request",
        }
    }

    const fn letter(self) -> u8 {
        match self {
            Self::Journal => b'j',
            Self::Commit => b'c',
            Self::Query => b'q',
            Self::Ssh => b's',
            Self::Answer => b'a',
            Self::State => b't',
            Self::Rename => b'm',
            Self::Netlink => b'n',
            Self::Request => b'r',
        }
    }

    /// Whether it is all from the first write to the fsync.
    const fn is_file(self) -> bool {
        match self {
            Self::Journal | Self::State => true,
            Self::Commit
            | Self::Query
            | Self::Ssh
            | Self::Answer
            | Self::Rename
            | Self::Netlink
            | Self::Request => false,
        }
    }

    const fn count(self) -> &'static AtomicU64 {
        static COUNTS: [AtomicU64; 9] = [const { AtomicU64::new(0) }; 9];
        match self {
            Self::Journal => &COUNTS[0],
            Self::Commit => &COUNTS[1],
            Self::Query => &COUNTS[2],
            Self::Ssh => &COUNTS[3],
            Self::Answer => &COUNTS[4],
            Self::State => &COUNTS[5],
            Self::Rename => &COUNTS[6],
            Self::Netlink => &COUNTS[7],
            Self::Request => &COUNTS[8],
        }
    }
}

/// On which side of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum When {
    /// It is not made.
    Before,
    /// Of what is written to a file the first part is, and nothing more.
    Torn,
    /// It is made; of what is written to a file: it is on the disk.
    After,
}

impl When {
    const ALL: [Self; 3] = [Self::Before, Self::Torn, Self::After];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Torn => "torn",
            Self::After => "after",
        }
    }
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// SIGKILL.
    Die,
    /// The call is held until the one who watches has done something, see [`Hold`].
    Hold,
}

/// A moment in a process's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    pub(crate) class: Class,
    /// From 1 on.
    pub(crate) number: u64,
    pub(crate) when: When,
    pub(crate) what: What,
}

impl Point {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let class = words.next()?;
        let number = words.next()?.parse().ok()?;
        let when = words.next()?;
        Some(Self {
            class: Class::ALL.into_iter().find(|c| c.word() == class)?,
            number,
            when: When::ALL.into_iter().find(|w| w.word() == when)?,
            what: match words.next()? {
                "die" => What::Die,
                _ => What::Hold,
            },
        })
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.what {
            What::Die => "die",
            What::Hold => "hold",
        };
        let (class, number, when) = (self.class.word(), self.number, self.when.word());
        write!(f, "{class} {number} {when} {what}")
    }
}

/// Names of a process's environment.
pub(crate) const FOLDER: &str = "MATRIX_FOLDER";
pub(crate) const POINT: &str = "MATRIX_POINT";
pub(crate) const SSH_PORT: &str = "MATRIX_SSH_PORT";

/// A letter a call, in a process's folder.
const TRACE: &str = "trace";
const HELD: &str = "held";
const GO: &str = "go";

/// In its folder, once it has died: who is started again there dies no second time.
const DIED: &str = "died";

/// Where this file is named, calls count once it is there.
pub(crate) const BEGIN: &str = "MATRIX_BEGIN";

struct Armed {
    folder: PathBuf,
    trace: File,
    begin: Option<PathBuf>,
    point: Option<Point>,
    ssh_port: u16,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// From here on calls count, if this process was started to have them counted.
pub(crate) fn arm() -> bool {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return false;
    };
    let folder = PathBuf::from(folder);
    let trace = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join(TRACE))
        .unwrap();
    let point = std::env::var(POINT)
        .ok()
        .map(|text| Point::parse(&text).unwrap())
        .filter(|_| !has_died(&folder));
    let ssh_port = std::env::var(SSH_PORT).unwrap().parse().unwrap();
    let armed = Armed {
        begin: std::env::var_os(BEGIN).map(PathBuf::from),
        folder,
        trace,
        point,
        ssh_port,
    };
    assert!(ARMED.set(armed).is_ok(), "armed once");
    true
}

/// How many calls of a class a process made.
pub(crate) fn made(folder: &Path, class: Class) -> u64 {
    let trace = fs::read(folder.join(TRACE)).unwrap_or_default();
    let calls = trace.iter().filter(|b| **b == class.letter());
    u64::try_from(calls.count()).unwrap()
}

/// Whether the last calls of a process were of these classes, those to whoever asked the API left out.
pub(crate) fn ended_with(folder: &Path, classes: [Class; 2]) -> bool {
    let trace = fs::read(folder.join(TRACE)).unwrap_or_default();
    let others = trace.iter().rev().filter(|b| **b != Class::Answer.letter());
    let classes = classes.iter().rev().map(|c| c.letter());
    others.copied().take(2).eq(classes)
}

/// Whether a process has died there, or is about to.
pub(crate) fn has_died(folder: &Path) -> bool {
    folder.join(DIED).exists()
}

/// Whether the process waits at its point.
pub(crate) fn is_held(folder: &Path) -> bool {
    folder.join(HELD).exists()
}

/// Lets it go on.
pub(crate) fn let_go(folder: &Path) {
    fs::remove_file(folder.join(HELD)).unwrap();
    fs::write(folder.join(GO), "").unwrap();
}

impl Armed {
    fn reach(&self, class: Class, number: u64, when: When) {
        let Some(point) = self.point else { return };
        if (point.class, point.number, point.when) != (class, number, when) {
            return;
        }
        match point.what {
            What::Die => {
                fs::write(self.folder.join(DIED), "").unwrap();
                kill(Pid::this(), Signal::SIGKILL).unwrap();
                // Other threads may run on for a moment, this one makes no further call.
                loop {
                    sleep(Duration::from_secs(60));
                }
            }
            What::Hold => {
                fs::rename(self.held("new"), self.held("")).unwrap();
                while !self.folder.join(GO).exists() {
                    sleep(Duration::from_millis(2));
                }
            }
        }
    }

    fn held(&self, what: &str) -> PathBuf {
        let path = self.folder.join(format!("{HELD}{what}"));
        if !what.is_empty() {
            fs::write(&path, "").unwrap();
        }
        path
    }

    /// Whether calls count already.
    fn counts(&self) -> bool {
        self.begin.as_ref().is_none_or(|begin| begin.exists())
    }

    fn count(&self, class: Class) -> u64 {
        // One write in append mode: whole whoever else writes, and there whatever comes next.
        (&self.trace).write_all(&[class.letter()]).unwrap();
        class.count().fetch_add(1, Ordering::SeqCst) + 1
    }

    /// What is written to that descriptor.
    fn class(&self, fd: c_int, bytes: &[u8]) -> Option<Class> {
        if fd == self.trace.as_raw_fd() || !self.counts() {
            return None;
        }
        let target = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        let target = target.to_str()?;
        if target.ends_with("understudy.db") || target.ends_with("understudy.db-wal") {
            return Some(Class::Journal);
        }
        if target.ends_with("/state.json.new") {
            return Some(Class::State);
        }
        if !target.starts_with("socket:") {
            return None;
        }
        let unix = |a: &UnixAddr| a.path().map(|p| p.to_string_lossy().into_owned());
        if let Ok(here) = getsockname::<UnixAddr>(fd) {
            if unix(&here).is_some_and(|p| p.ends_with("provisioner.sock")) {
                return Some(Class::Answer);
            }
            let peer = unix(&getpeername::<UnixAddr>(fd).ok()?)?;
            if peer.ends_with("provisioner.sock") {
                return Some(Class::Request);
            }
            if !peer.contains(".s.PGSQL") {
                return None;
            }
            let commit = bytes.windows(6).any(|w| w == b"COMMIT");
            return Some(if commit { Class::Commit } else { Class::Query });
        }
        let here = getsockname::<SockaddrStorage>(fd).ok()?;
        if here.family() == Some(AddressFamily::Netlink) {
            return Some(Class::Netlink);
        }
        let peer = getpeername::<SockaddrStorage>(fd).ok()?;
        let port = peer.as_sockaddr_in().map(|a| a.port())?;
        (port == self.ssh_port).then_some(Class::Ssh)
    }
}

/// Between the first write to a file and its fsync; which one. A process has one such file, and writes it from one thread
/// at a time.
static WRITING: AtomicBool = AtomicBool::new(false);
static WRITTEN: AtomicU64 = AtomicU64::new(0);

fn writing(fd: c_int, bytes: &[u8], call: impl FnOnce() -> isize) -> isize {
    let Some(armed) = ARMED.get() else {
        return call();
    };
    match armed.class(fd, bytes) {
        None => call(),
        Some(class) if class.is_file() && WRITING.swap(true, Ordering::SeqCst) => call(),
        Some(class) => {
            let number = armed.count(class);
            if class.is_file() {
                WRITTEN.store(number, Ordering::SeqCst);
            }
            armed.reach(class, number, When::Before);
            let done = call();
            let after = if class.is_file() {
                When::Torn
            } else {
                When::After
            };
            armed.reach(class, number, after);
            done
        }
    }
}

fn synced(fd: c_int, call: impl FnOnce() -> c_long) -> c_int {
    let done = c_int::try_from(call()).unwrap_or(-1);
    if let Some(armed) = ARMED.get()
        && let Some(class) = armed.class(fd, &[]).filter(|c| c.is_file())
        && WRITING.swap(false, Ordering::SeqCst)
    {
        armed.reach(class, WRITTEN.load(Ordering::SeqCst), When::After);
    }
    done
}

/// # Safety
/// As of write(2): `buffer` is `length` bytes long.
unsafe fn bytes<'a>(buffer: *const c_void, length: usize) -> &'a [u8] {
    if buffer.is_null() {
        return &[];
    }
    // SAFETY: the caller says so, and nobody changes what is being written.
    unsafe { std::slice::from_raw_parts(buffer.cast(), length) }
}

fn narrow(done: c_long) -> isize {
    isize::try_from(done).unwrap_or(-1)
}

/// # Safety
/// As of write(2).
// SAFETY: has the name and the type of the C library's function, and does what that does.
#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, length: usize) -> isize {
    // SAFETY: the arguments are the caller's, who has to keep to write(2).
    unsafe {
        writing(fd, bytes(buffer, length), || {
            narrow(libc::syscall(libc::SYS_write, fd, buffer, length))
        })
    }
}

/// # Safety
/// As of pwrite(2).
// SAFETY: as `write`.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, buffer: *const c_void, length: usize, at: i64) -> isize {
    // SAFETY: as in `write`.
    unsafe {
        writing(fd, bytes(buffer, length), || {
            narrow(libc::syscall(libc::SYS_pwrite64, fd, buffer, length, at))
        })
    }
}

/// # Safety
/// As of writev(2).
// SAFETY: as `write`.
#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize {
    // SAFETY: as in `write`; what the parts hold is not looked at.
    unsafe {
        writing(fd, &[], || {
            narrow(libc::syscall(libc::SYS_writev, fd, parts, count))
        })
    }
}

/// # Safety
/// As of send(2).
// SAFETY: as `write`.
#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, buffer: *const c_void, length: usize, flags: c_int) -> isize {
    // SAFETY: as in `write`; send(2) is sendto(2) to nobody in particular.
    unsafe { sendto(fd, buffer, length, flags, std::ptr::null(), 0) }
}

/// # Safety
/// As of sendto(2).
// SAFETY: as `write`.
#[unsafe(no_mangle)]
unsafe extern "C" fn sendto(
    fd: c_int,
    buffer: *const c_void,
    length: usize,
    flags: c_int,
    to: *const libc::sockaddr,
    size: libc::socklen_t,
) -> isize {
    // SAFETY: as in `write`.
    unsafe {
        writing(fd, bytes(buffer, length), || {
            narrow(libc::syscall(
                libc::SYS_sendto,
                fd,
                buffer,
                length,
                flags,
                to,
                size,
            ))
        })
    }
}

/// # Safety
/// As of rename(2).
// SAFETY: as `write`.
#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: as in `write`: both are texts that end with a zero byte.
    let (call, is_state) = unsafe {
        let call = || {
            let here = libc::AT_FDCWD;
            let done = libc::syscall(libc::SYS_renameat2, here, from, here, to, 0);
            c_int::try_from(done).unwrap_or(-1)
        };
        (
            call,
            CStr::from_ptr(to).to_bytes().ends_with(b"/state.json"),
        )
    };
    let armed = ARMED.get().filter(|a| is_state && a.counts());
    let Some(armed) = armed else { return call() };
    let number = armed.count(Class::Rename);
    armed.reach(Class::Rename, number, When::Before);
    let done = call();
    armed.reach(Class::Rename, number, When::After);
    done
}

/// # Safety
/// As of fsync(2).
// SAFETY: as `write`.
#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: fsync(2) takes any number for a descriptor.
    synced(fd, || unsafe { libc::syscall(libc::SYS_fsync, fd) })
}

/// # Safety
/// As of fdatasync(2).
// SAFETY: as `write`.
#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: as in `fsync`.
    synced(fd, || unsafe { libc::syscall(libc::SYS_fdatasync, fd) })
}
