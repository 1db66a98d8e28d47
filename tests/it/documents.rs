//! Completions and man pages are made of the command line's own definitions, and work.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_understudy");

fn understudy(args: &[&str]) -> String {
    let ran = Command::new(PROGRAM).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert!(ran.status.success(), "{args:?}: {}", text(ran.stderr));
    text(ran.stdout)
}

/// Every verb, with the words that lead to it.
fn verbs(above: &[&str]) -> Vec<Vec<String>> {
    let help = understudy(&[above, &["--help"]].concat());
    let Some((_, commands)) = help.split_once("\nCommands:\n") else {
        return Vec::new();
    };
    let commands = commands.lines().take_while(|l| !l.trim().is_empty());
    // Further lines of a description are indented more.
    let names = commands.filter_map(|l| l.strip_prefix("  ")?.split(' ').next());
    let mut all = Vec::new();
    for name in names.filter(|n| !n.is_empty() && *n != "help") {
        let path = [above, &[name]].concat();
        all.push(path.iter().map(|w| (*w).to_owned()).collect());
        all.extend(verbs(&path));
    }
    all
}

#[test]
fn each_verb_has_a_man_page_that_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    // A folder that is not there yet.
    let dir = dir.path().join("man1");
    assert_eq!(understudy(&["man", dir.to_str().unwrap()]), "");
    let verbs = verbs(&[]);
    assert!(verbs.contains(&vec![
        "ipvs".to_owned(),
        "sync".to_owned(),
        "start".to_owned()
    ]));
    let mut pages = BTreeSet::from(["understudy.1".to_owned()]);
    pages.extend(
        verbs
            .iter()
            .map(|v| format!("understudy-{}.1", v.join("-"))),
    );
    let written = fs::read_dir(&dir).unwrap();
    let written: BTreeSet<_> = written
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(written, pages);
    for page in &pages {
        let text = fs::read_to_string(dir.join(page)).unwrap();
        for part in [".TH ", ".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n"] {
            assert!(text.contains(part), "{page} has no {part}");
        }
        lint(&dir.join(page));
    }
    let explain = fs::read_to_string(dir.join("understudy-explain.1")).unwrap();
    assert!(explain.contains("Examples:"), "{explain}");
}

/// Where groff is there it has nothing to complain of.
fn lint(page: &Path) {
    let ran = Command::new("groff")
        .args(["-man", "-ww", "-Tutf8", "-z"])
        .arg(page)
        .output();
    let Ok(Output { status, stderr, .. }) = ran else {
        return;
    };
    let said = String::from_utf8_lossy(&stderr);
    assert!(
        status.success() && said.is_empty(),
        "{}: {said}",
        page.display()
    );
}

#[test]
fn bash_completes_verbs_and_options_with_what_is_generated() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("understudy");
    fs::write(&script, understudy(&["completions", "bash"])).unwrap();
    let complete = |words: &[&str]| -> Vec<String> {
        let (word, before) = (words.last().unwrap(), words[words.len() - 2]);
        let line = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={}; _understudy understudy '{word}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.join(" "),
            words.len() - 1
        );
        let ran = Command::new("bash")
            .args(["--norc", "--noprofile", "-c", &line])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success() && said.is_empty(), "{said}");
        let found = String::from_utf8(ran.stdout).unwrap();
        found.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(complete(&["understudy", "exp"]), ["explain"]);
    assert_eq!(complete(&["understudy", "ipvs", "res"]), ["restore"]);
    assert_eq!(complete(&["understudy", "status", "--wa"]), ["--watch"]);
    assert_eq!(
        complete(&["understudy", "status", "--output", ""]),
        ["text", "json"]
    );
}

#[test]
fn other_shells_have_their_scripts_with_every_verb() {
    for (shell, sign) in [
        ("zsh", "#compdef understudy"),
        ("fish", "complete -c understudy"),
    ] {
        let script = understudy(&["completions", shell]);
        assert!(script.contains(sign), "{shell}");
        for verb in verbs(&[]) {
            let name = verb.last().unwrap();
            assert!(
                script.contains(name.as_str()),
                "{shell} does not know {name}"
            );
        }
    }
}
