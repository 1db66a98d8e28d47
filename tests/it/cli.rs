//! The command line as an operator meets it, at the binary itself.
//!
//! `UPDATE_GOLDEN=1` writes the expected texts anew, for review.

use std::{
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Command,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What a run of the program came to.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs the program in the project's folder.
fn understudy(args: &[&str]) -> Ran {
    let ran = Command::new(env!("CARGO_BIN_EXE_understudy"))
        .args(args)
        .current_dir(ROOT)
        .env_remove("UNDERSTUDY_LOG")
        .output()
        .unwrap();
    Ran {
        code: ran.status.code(),
        out: String::from_utf8(ran.stdout).unwrap(),
        err: String::from_utf8(ran.stderr).unwrap(),
    }
}

fn assert_golden(file: &Path, found: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(file, found).unwrap();
    }
    let wanted = fs::read_to_string(file).unwrap_or_default();
    assert_eq!(found, wanted, "{}", file.display());
}

const SUBCOMMANDS: [&[&str]; 43] = [
    &[],
    &["director"],
    &["provisioner"],
    &["check"],
    &["check-config"],
    &["status"],
    &["explain"],
    &["completions"],
    &["man"],
    &["reload"],
    &["plan"],
    &["disable"],
    &["drain"],
    &["maintenance"],
    &["enable"],
    &["weight"],
    &["members"],
    &["members", "list"],
    &["members", "export"],
    &["events"],
    &["inventory"],
    &["inventory", "apply"],
    &["inventory", "list"],
    &["inventory", "release"],
    &["replacement"],
    &["role"],
    &["replacement", "list"],
    &["replacement", "show"],
    &["replacement", "cancel"],
    &["replacement", "retry"],
    &["role", "plan"],
    &["role", "verify"],
    &["role", "release"],
    &["ipvs"],
    &["ipvs", "list"],
    &["ipvs", "save"],
    &["ipvs", "restore"],
    &["ipvs", "flush"],
    &["ipvs", "zero"],
    &["ipvs", "timeouts"],
    &["ipvs", "sync"],
    &["ipvs", "sync", "start"],
    &["ipvs", "sync", "stop"],
];

#[test]
fn help_is_as_documented_and_fits_a_terminal() {
    let mut all = String::new();
    for command in SUBCOMMANDS {
        let ran = understudy(&[command, &["--help"]].concat());
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{command:?}");
        all.push_str(&format!(
            "$ {}\n{}\n",
            [&["understudy"], command, &["--help"]].concat().join(" "),
            ran.out
        ));
    }
    for line in all.lines() {
        assert!(line.chars().count() <= 100, "too wide: {line}");
        assert_ne!(line.trim_end(), "      --", "an option without a name");
    }
    assert_golden(&Path::new(ROOT).join("tests/it/golden/help.txt"), &all);
}

#[test]
fn the_version_says_the_commit() {
    let ran = understudy(&["--version"]);
    assert_eq!(ran.code, Some(0));
    let words: Vec<_> = ran.out.split_whitespace().collect();
    let [name, version, commit] = words.as_slice() else {
        panic!("{ran:?}")
    };
    assert_eq!((*name, *version), ("understudy", env!("CARGO_PKG_VERSION")));
    let commit = commit.trim_matches(['(', ')']);
    let hex = commit.len() == 12 && commit.chars().all(|c| c.is_ascii_hexdigit());
    assert!(hex || commit == "unknown", "{commit}");
}

#[test]
fn a_command_line_that_says_too_little_or_nonsense_ends_with_2() {
    for (args, says) in [
        (&[][..], "Usage: understudy <COMMAND>"),
        (&["inventory"], "Usage: understudy inventory <COMMAND>"),
        (&["check-config"], "<PATH>..."),
        (&["director"], "--config <FILE>"),
        (&["--verbose"], "unexpected argument '--verbose'"),
        (
            &["status", "--wacth"],
            "a similar argument exists: '--watch'",
        ),
        (&["statsu"], "a similar subcommand exists: 'status'"),
        (
            &["provisioner", "--config", "x", "--log-format", "xml"],
            "[possible values: auto, text, json]",
        ),
    ] {
        let ran = understudy(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(ran.err.contains(says), "{args:?}: {}", ran.err);
    }
}

#[test]
fn the_shipped_examples_are_good() {
    let ran = understudy(&[
        "check-config",
        "config/director.toml",
        "config/provisioner.toml",
        "config/inventory",
    ]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(
        ran.out,
        "config/director.toml: good director configuration\n\
         config/provisioner.toml: good provisioner configuration\n\
         config/inventory: good inventory folder\n"
    );
}

/// Each file beside its `.stderr`, the very lines that are to be said of it.
#[test]
fn bad_configurations_say_each_mistake_at_its_place() {
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(ROOT).join("tests/it/config")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        seen += 1;
        let name = format!("tests/it/config/{}", file.file_name().unwrap().display());
        let ran = understudy(&["check-config", &name]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{name}");
        let mut last = 0;
        for line in ran.err.lines() {
            let place = line.strip_prefix(&format!("{name}:")).unwrap_or_default();
            let number = place.split(':').next().and_then(|n| n.parse().ok());
            let number: u32 = number.unwrap_or_else(|| panic!("no place: {line}"));
            assert!(number >= last, "not in the file's order: {line}");
            last = number;
        }
        assert_golden(&file.with_extension("stderr"), &ran.err);
        // A daemon says the same, and starts nothing.
        let role = match fs::read_to_string(&file)
            .unwrap()
            .starts_with("[provisioner]")
        {
            true => "provisioner",
            false => "director",
        };
        let daemon = understudy(&[role, "--config", &name]);
        assert_eq!(daemon.code, Some(2), "{name}");
        if !name.ends_with("/neither.toml") && !name.ends_with("/empty.toml") {
            assert_eq!(daemon.err, ran.err, "{name}");
        }
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn a_live_check_needs_a_directors_file_and_ipvs() {
    let ran = understudy(&["check-config", "--live", "config/provisioner.toml"]);
    assert_eq!(ran.code, Some(2));
    assert_eq!(
        ran.err,
        "--live compares this host with a director.toml: name one\n"
    );
    // Mistakes come first, whatever the host.
    let bad = "tests/it/config/kernel.toml";
    let ran = understudy(&["check-config", "--live", "config/director.toml", bad]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.starts_with(bad), "{}", ran.err);

    let ran = understudy(&["check-config", "--live", "config/director.toml"]);
    match ran.code {
        Some(0) => assert!(
            ran.out.contains(": warning: no interface of this host has"),
            "{ran:?}"
        ),
        other => {
            assert_eq!(other, Some(1), "{ran:?}");
            let says = "this host was not checked: the kernel has no IPVS: load it: modprobe ip_vs";
            assert!(ran.err.contains(says), "{}", ran.err);
        }
    }
}

#[test]
fn a_saved_table_without_services_changes_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let name = file.path().to_str().unwrap();
    let ran = understudy(&["ipvs", "restore", name]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (
            Some(0),
            "the file names no virtual service: nothing to change\n",
            ""
        )
    );
    let ran = understudy(&["ipvs", "restore", "--exact", name]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains("ipvs flush"), "{}", ran.err);
}

#[test]
fn good_and_bad_files_together_are_told_apart() {
    let ran = understudy(&[
        "check-config",
        "config/director.toml",
        "tests/it/config/syntax.toml",
        "no/such/file.toml",
        "tests/it/inventory/syntax",
    ]);
    assert_eq!(ran.code, Some(2));
    assert_eq!(
        ran.out,
        "config/director.toml: good director configuration\n"
    );
    for place in [
        "tests/it/config/syntax.toml:2:",
        "no/such/file.toml: cannot be read: No such file",
        "tests/it/inventory/syntax/",
    ] {
        assert!(ran.err.lines().any(|l| l.starts_with(place)), "{}", ran.err);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("x.toml");
    fs::write(&binary, [0xff, 0xfe]).unwrap();
    let binary = binary.display().to_string();
    for (path, says) in [
        (
            "no/such.toml",
            "cannot be read: No such file or directory (os error 2)",
        ),
        (binary.as_str(), "is not UTF-8 text"),
    ] {
        for args in [
            vec!["check-config", path],
            vec!["director", "--config", path],
            vec!["provisioner", "--config", path],
        ] {
            let ran = understudy(&args);
            let line = format!("{path}: {says}\n");
            assert_eq!((ran.code, ran.err.as_str()), (Some(2), line.as_str()));
        }
    }
}

/// A path of a socket that is not there, and one that a dead process left.
fn sockets(dir: &Path) -> [PathBuf; 2] {
    let left = dir.join("left.sock");
    drop(UnixListener::bind(&left).unwrap());
    [dir.join("none.sock"), left]
}

#[test]
fn without_a_daemon_one_line_says_what_is_missing_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for (socket, why) in sockets(dir.path())
        .iter()
        .zip(["there is no such socket", "nobody listens on the socket"])
    {
        let socket = socket.display().to_string();
        for (role, args) in [
            ("director", &["status"][..]),
            ("director", &["status", "--json"]),
            ("provisioner", &["inventory", "list"]),
            ("provisioner", &["inventory", "release", "spare1"]),
            ("provisioner", &["inventory", "apply", "config/inventory"]),
        ] {
            let ran = understudy(&[args, &["--socket", &socket]].concat());
            assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{args:?}");
            assert_eq!(
                ran.err,
                format!(
                    "no {role} at {socket}: {why}; start it (systemctl start \
                     understudy-{role}), or name its socket with --socket\n"
                )
            );
        }
    }
}

#[test]
fn a_broken_inventory_is_said_whole_and_asks_nobody() {
    let folder = "tests/it/inventory/references";
    let wanted = fs::read_to_string(Path::new(ROOT).join(folder).join("stderr")).unwrap();
    // No provisioner listens here: it would end with 1.
    let apply = understudy(&["inventory", "apply", folder, "--socket", "/nowhere"]);
    assert_eq!(apply.code, Some(2));
    assert_eq!(apply.err.replace(&format!("{folder}/"), ""), wanted);
    assert!(wanted.lines().count() > 5, "several files' mistakes");
    assert_eq!(understudy(&["check-config", folder]).err, apply.err);

    let ran = understudy(&["inventory", "apply", "no/such"]);
    assert_eq!(ran.code, Some(2));
    assert_eq!(
        ran.err,
        "no/such: is no folder: an inventory is a folder with roles.toml, software.toml, \
         service_config.toml, servers.toml\n"
    );
}

#[test]
fn a_log_filter_that_is_none_is_said_before_anything_starts() {
    let ran = Command::new(env!("CARGO_BIN_EXE_understudy"))
        .args(["director", "--config", "config/director.toml"])
        .current_dir(ROOT)
        .env("UNDERSTUDY_LOG", "understudy=loud")
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let err = String::from_utf8(ran.stderr).unwrap();
    assert!(
        err.starts_with("UNDERSTUDY_LOG is not a log filter: "),
        "{err}"
    );
}
