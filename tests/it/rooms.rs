//! The rooms that decide do no I/O: their sources are read, tests left out, and must not name a
//! clock, task, channel, lock, socket, file or log, nor a room that has one.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

/// A PURE room and the rooms that it may know.
struct Room {
    /// File, or folder with all that is in it, below `src/`.
    place: &'static str,
    knows: &'static [&'static str],
}

const ORDERS: &[&str] = &[
    "model",
    "provisioner::order",
    "provisioner::plan",
    "provisioner::quarantine",
    "provisioner::readiness",
    "provisioner::render",
    "provisioner::sealed",
    "provisioner::select",
    "provisioner::upkeep",
    "provisioner::warm",
    "provisioner::workflow",
];

const TELLING: &[&str] = &["model", "hooks::pile", "hooks::letter"];

const PURE: [Room; 32] = [
    Room {
        place: "model",
        knows: &["model"],
    },
    Room {
        place: "config",
        knows: &["config", "model"],
    },
    Room {
        place: "import",
        knows: &["import", "model", "config::Diagnostics"],
    },
    Room {
        place: "health",
        knows: &["health", "model"],
    },
    Room {
        place: "director",
        knows: &[
            "director",
            "model",
            "config",
            "health",
            "reconcile::plan",
            "reconcile::drift",
        ],
    },
    Room {
        place: "reconcile/plan.rs",
        knows: &["reconcile::plan", "reconcile::drift", "model"],
    },
    Room {
        place: "reconcile/addresses.rs",
        knows: &["reconcile::addresses", "model"],
    },
    Room {
        place: "neighbours/wire",
        knows: &["neighbours::wire", "model"],
    },
    Room {
        place: "reconcile/drift.rs",
        knows: &["reconcile::drift", "model"],
    },
    Room {
        place: "hooks/pile.rs",
        knows: TELLING,
    },
    Room {
        place: "hooks/letter.rs",
        knows: TELLING,
    },
    Room {
        place: "hooks/backoff.rs",
        knows: TELLING,
    },
    Room {
        place: "hooks/sign.rs",
        knows: TELLING,
    },
    Room {
        place: "ipvs/codec",
        knows: &["ipvs::codec", "model"],
    },
    Room {
        place: "provisioner/workflow.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/select.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/plan.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/granted.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/render.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/quarantine.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/readiness.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/upkeep.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/warm.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/order.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/driver/redfish/decide.rs",
        knows: &["model", "provisioner::driver::redfish::decide"],
    },
    Room {
        place: "provisioner/driver/redfish/words.rs",
        knows: &["model", "provisioner::driver::redfish::decide"],
    },
    Room {
        place: "provisioner/driver/protocol.rs",
        knows: &[
            "model",
            "provisioner::driver::Progress",
            "provisioner::order",
        ],
    },
    Room {
        place: "provisioner/pace.rs",
        knows: &["model"],
    },
    Room {
        place: "provisioner/sealed.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/same_cause.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/log.rs",
        knows: ORDERS,
    },
    Room {
        place: "provisioner/text_diff.rs",
        knows: ORDERS,
    },
];

/// What has no place there. Matched where a word begins.
const FORBIDDEN: [&str; 34] = [
    "tokio",
    "tokio_util",
    "tracing",
    "log::",
    "hyper",
    "axum",
    "sqlx",
    "russh",
    "nix",
    "netlink_sys",
    "neli",
    "prometheus_client",
    "Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "fs::",
    "File",
    "OpenOptions",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "ToSocketAddrs",
    "thread",
    "mpsc",
    "oneshot",
    "Mutex",
    "RwLock",
    "Atomic",
    "env::",
    "process::",
    "println",
    "stdin",
];

/// The rule, broken.
#[derive(Debug, PartialEq, Eq)]
struct Breach {
    file: PathBuf,
    line: usize,
    word: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        write!(f, "{file}:{}: {}", self.line, self.word)
    }
}

/// The source with comments, texts and the tests at its end blanked out: lines stay lines.
fn code(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("#[cfg(test)]\nmod tests {") {
            rest.len()
        } else if c == '"' && !out.ends_with(['\'', '\\']) {
            let mut escaped = false;
            let end = rest.char_indices().skip(1).find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |(at, _)| at + 1)
        } else {
            out.push(c);
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
            continue;
        };
        let (gone, left) = rest.split_at(skipped);
        out.extend(gone.chars().filter(|c| *c == '\n'));
        rest = left;
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` begins in `code`, as a word of its own: `Instant` is not found in `Instantly`, but
/// `Atomic` in `AtomicU64`. What `hyper::http` shows is another crate's: types that read texts.
fn places(code: &str, word: &str) -> Vec<usize> {
    let open_end = word.ends_with(':') || word == "Atomic" || word == "println";
    let found = code.match_indices(word).filter(|(at, _)| {
        let before = code.get(..*at).and_then(|b| b.chars().next_back());
        let after = code.get(at + word.len()..).and_then(|a| a.chars().next());
        let types = code
            .get(*at..)
            .is_some_and(|c| c.starts_with("hyper::http::"));
        !types && !before.is_some_and(is_word) && (open_end || !after.is_some_and(is_word))
    });
    found.map(|(at, _)| at).collect()
}

/// The paths that a `use` tree spells: `a::{b, c::{d, e}}` is `a::b`, `a::c::d`, `a::c::e`.
fn paths(tree: &str, prefix: &str, out: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, inner)) = tree.split_once('{') else {
        let path = tree.split_whitespace().next().unwrap_or_default();
        out.push(format!("{prefix}{path}"));
        return;
    };
    let prefix = format!("{prefix}{}", head.trim());
    let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
    let (mut depth, mut from) = (0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                paths(inner.get(from..at).unwrap_or_default(), &prefix, out);
                from = at + 1;
            }
            _ => {}
        }
    }
    let last = inner.get(from..).unwrap_or_default();
    if !last.trim().is_empty() {
        paths(last, &prefix, out);
    }
}

/// What is named after `crate::` or `super::` at the beginning of `text`.
fn tree_at(text: &str) -> &str {
    let mut depth = 0;
    let end = text.char_indices().find(|(_, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        let inside = is_word(*c) || ":{}*".contains(*c);
        depth < 0 || (depth == 0 && !inside)
    });
    text.get(..end.map_or(text.len(), |(at, _)| at))
        .unwrap_or_default()
}

/// The module of a file below `src/`.
fn module(file: &Path) -> Vec<String> {
    let mut parts: Vec<_> = file
        .with_extension("")
        .iter()
        .map(|p| p.to_string_lossy().into_owned())
        .collect();
    parts.pop_if(|last| last == "mod");
    parts
}

/// All breaches of the rule in one file, `file` being its path below `src/`.
fn breaches(file: &Path, source: &str, knows: &[&str]) -> Vec<Breach> {
    let code = code(source);
    let mut found = BTreeSet::new();
    for word in FORBIDDEN {
        for at in places(&code, word) {
            found.insert((at, word.to_owned()));
        }
    }
    for start in ["crate::", "super::"] {
        for at in places(&code, start) {
            // Whom it is shown to is not whom it knows.
            if code.get(..at).is_some_and(|b| b.ends_with("pub(in ")) {
                continue;
            }
            let text = code.get(at..).unwrap_or_default();
            let (mut base, mut rest) = (module(file), text);
            if let Some(r) = text.strip_prefix("crate::") {
                (base, rest) = (Vec::new(), r);
            } else {
                // In the middle of `super::super::`, which was seen from its beginning.
                if code.get(..at).is_some_and(|b| b.ends_with("super::")) {
                    continue;
                }
                while let Some(r) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = r;
                }
            }
            let mut named = Vec::new();
            let prefix: String = base.iter().map(|p| format!("{p}::")).collect();
            paths(tree_at(rest), &prefix, &mut named);
            for path in named {
                let known = knows
                    .iter()
                    .any(|k| path == *k || path.starts_with(&format!("{k}::")));
                if !known {
                    found.insert((at, path));
                }
            }
        }
    }
    let line = |at: usize| code.get(..at).unwrap_or_default().matches('\n').count() + 1;
    found
        .into_iter()
        .map(|(at, word)| Breach {
            file: Path::new("src").join(file),
            line: line(at),
            word,
        })
        .collect()
}

/// Sources of a room, without files and folders of tests.
fn sources(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        let is_tests = path
            .file_stem()
            .is_some_and(|s| s == "tests" || s == "testing");
        if !is_tests && (path.is_dir() || path.extension().is_some_and(|e| e == "rs")) {
            all.extend(sources(&path));
        }
    }
    all.sort();
    all
}

#[test]
fn the_pure_rooms_do_no_io_and_know_no_room_that_does() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for room in PURE {
        let files = sources(&src.join(room.place));
        assert!(!files.is_empty(), "{} is gone", room.place);
        for file in files {
            let source = fs::read_to_string(&file).unwrap();
            let file = file.strip_prefix(&src).unwrap();
            found.extend(breaches(file, &source, room.knows));
        }
    }
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "in PURE rooms:\n{}", lines.join("\n"));
}

/// Sources outside the rooms that may, and what they must not name.
fn named_outside(may: &[&str], words: &[&str]) -> Vec<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for path in sources(&src) {
        let file = path.strip_prefix(&src).unwrap();
        if may.iter().any(|m| file.starts_with(m)) {
            continue;
        }
        let code = code(&fs::read_to_string(&path).unwrap());
        for (line, text) in (1..).zip(code.lines()) {
            for word in words.iter().filter(|w| text.contains(**w)) {
                found.push(format!("src/{}:{line}: {word}", file.display()));
            }
        }
    }
    found
}

/// The daemon's one writer is the reconciler. By hand one writes through `cli/ipvs/write.rs`, which
/// asks the lock of a running director first: there all that a verb changes must pass.
#[test]
fn only_the_reconciler_writes_to_ipvs() {
    let writes = [
        ".new_service(",
        ".set_service(",
        ".del_service(",
        ".new_dest(",
        ".set_dest(",
        ".del_dest(",
        "kernel.flush()",
        "ipvs.flush()",
        ".zero(",
        ".set_timeouts(",
        ".start_daemon(",
        ".stop_daemon(",
        "kernel.apply(",
        "ipvs.apply(",
    ];
    let may = ["ipvs", "reconcile/task.rs", "cli/ipvs/write.rs"];
    // ipvs/probe.rs writes too, to the table of a namespace that it makes for that and leaves: the
    // namespace comes first.
    let probe = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ipvs/probe.rs");
    let probe = code(&fs::read_to_string(probe).unwrap());
    let at = |word| probe.find(word).unwrap_or_else(|| panic!("no {word}"));
    assert!(at("unshare(CloneFlags::CLONE_NEWNET)") < at("Ipvs::connect()"));
    assert_eq!(probe.matches("Ipvs::connect()").count(), 1);
    assert_eq!(named_outside(&may, &writes), [""; 0]);
    // Nobody else is given the kernel either.
    assert_eq!(named_outside(&may, &["Kernel,", "Kernel;"]), [""; 0]);
    let connects = [
        "ipvs",
        "agent/director.rs",
        "agent/reader.rs",
        "cli/check.rs",
        "cli/ipvs/mod.rs",
        "cli/live.rs",
    ];
    assert_eq!(named_outside(&connects, &["Ipvs::connect("]), [""; 0]);
    let found = named_outside(&["ipvs"], &writes);
    assert!(!found.is_empty(), "the words are those of the code");
}

#[test]
fn no_queue_is_without_a_bound_and_no_task_is_forgotten() {
    let words = [
        "unbounded_channel",
        "UnboundedSender",
        "sync::mpsc::channel()",
        "task::spawn(",
        "thread::spawn(",
    ];
    assert_eq!(named_outside(&[], &words), [""; 0]);
    // The beginning of a transaction, waited for where it stands: only its caller may be dropped.
    let begins = ["provisioner/store/mod.rs"];
    assert_eq!(named_outside(&begins, &["tokio::spawn("]), [""; 0]);
    // Tasks of a second supervisor would be watched and stopped by nobody.
    for role in ["director", "provisioner"] {
        let file = format!("{}/src/agent/{role}.rs", env!("CARGO_MANIFEST_DIR"));
        let code = code(&fs::read_to_string(file).unwrap());
        assert_eq!(code.matches("Supervisor::default()").count(), 1, "{role}");
    }
}

/// The rule's own test: each line of a bad file is found, and nothing else.
#[test]
fn a_room_that_does_io_is_found_out_at_its_line() {
    let bad = r#"//! Knows tokio::time by its comment alone.
use std::{fs::File, time::Instant};
use crate::{
    model::{DestKey, Weight},
    telemetry::Chain,
    provisioner::{plan, store::{Store, Work}},
};
use super::store::Note;
use super::super::clock;

pub(in crate::ipvs) fn decide(now: MonoTime) -> &'static str {
    // Instant::now() in a comment, std::thread too.
    let at = Instant::now();
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    std::net::TcpStream::connect("tokio::net");
    crate::api::client::ask();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    tracing::info!("a thread, a Mutex: \" only words");
    Instantly::now("File")
    text.parse::<hyper::http::Uri>();
    hyper::client::conn::http1::handshake(stream);
}

#[cfg(test)]
mod tests {
    use std::thread;
}
"#;
    let file = Path::new("provisioner/select.rs");
    let found: Vec<_> = breaches(file, bad, &["model", "provisioner::plan"])
        .iter()
        .map(ToString::to_string)
        .collect();
    let at = |line: usize, word: &str| format!("src/provisioner/select.rs:{line}: {word}");
    assert_eq!(
        found,
        [
            at(2, "fs::"),
            at(2, "File"),
            at(2, "Instant"),
            at(3, "provisioner::store::Store"),
            at(3, "provisioner::store::Work"),
            at(3, "telemetry::Chain"),
            at(8, "provisioner::store::Note"),
            at(9, "clock"),
            at(13, "Instant"),
            at(14, "tokio"),
            at(14, "mpsc"),
            at(15, "TcpStream"),
            at(16, "api::client::ask"),
            at(17, "Atomic"),
            at(17, "Atomic"),
            at(18, "tracing"),
            at(21, "hyper"),
        ]
    );
}

/// A second one would hide the first, whose tasks then nobody watches.
#[test]
fn each_role_has_one_supervisor() {
    for role in ["director", "provisioner"] {
        let source = fs::read_to_string(format!("src/agent/{role}.rs")).unwrap();
        let made = source.matches("Supervisor::default()").count();
        assert_eq!(made, 1, "{role}");
    }
}
