//! `understudy status` on a terminal: drawn in place, and the terminal given back.

use std::{collections::BTreeMap, process::Command, sync::Arc};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use understudy::{
    api::operator::{self, Admission, Counted, Desk, Directory, Found, Kernel, Question},
    director::status::Status,
    http::Doors,
    model::ServiceKey,
};

#[derive(Debug)]
struct Nothing;

impl Directory for Nothing {
    fn groups(&self, _uid: u32, gid: u32) -> Found<'_, Arc<[u32]>> {
        Box::pin(async move { Ok([gid].into()) })
    }
}

impl Kernel for Nothing {
    fn count(&self, _services: Vec<ServiceKey>) -> Found<'_, Counted> {
        Box::pin(async { Ok(BTreeMap::new()) })
    }
}

/// One server of one service, which is down.
const STATUS: &str = r#"{"director":"lb1","services":[{"service":"tcp/192.0.2.1:80","scheduler":"wlc",
"forward":"nat","servers":[{"server":"10.0.0.1:80","kind":"configured","health":"down","reason":"connection refused",
"since_s":12,"weight":null}]}],"incidents":[],"stand_ins":[],"warnings":[]}"#;

/// Runs `understudy status` with these arguments on a terminal, or without one, while a director answers; its exit
/// status, what it wrote, and how often it asked.
async fn status(args: &str, env: &[(&str, &str)], terminal: bool) -> (Option<i32>, String, usize) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("d.sock");
    let doors = Doors::open(Some(&socket), None).await.unwrap();
    let (questions, mut asked) = mpsc::channel(4);
    let settled = Admission {
        settled: true,
        ..Admission::default()
    };
    let desk = Desk {
        questions,
        readings: mpsc::channel(1).0,
        ring: watch::channel(understudy::model::EventRing::new(
            understudy::model::Role::Director,
            None,
            understudy::model::WallMillis(1),
        ))
        .1,
        admission: watch::channel(settled).1,
        directory: Arc::new(Nothing),
        kernel: Arc::new(Nothing),
        provisioner: None,
    };
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(operator::serve(doors, desk, stop.clone()));
    let mut core = JoinSet::new();
    core.spawn(async move {
        let mut count = 0;
        while let Some(question) = asked.recv().await {
            let Question::Status(answer) = question else {
                panic!("it asked for something else");
            };
            let status: Status = serde_json::from_str(STATUS).unwrap();
            answer.send(status).unwrap();
            count += 1;
        }
        count
    });
    let program = env!("CARGO_BIN_EXE_understudy");
    // Ctrl-C comes after three seconds to whoever still runs.
    let line = format!(
        "timeout --foreground --preserve-status -s INT 3 {program} status {args} --socket {}",
        socket.display()
    );
    let mut command = match terminal {
        true => Command::new("script"),
        false => Command::new("sh"),
    };
    match terminal {
        true => command.args(["-qec", &line, "/dev/null"]),
        false => command.args(["-c", &line]),
    };
    command
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .env("LC_ALL", "C.UTF-8");
    command.envs(env.iter().copied());
    let ran = tokio::task::spawn_blocking(move || command.output().unwrap());
    let ran = ran.await.unwrap();
    stop.cancel();
    serving.join_next().await.unwrap().unwrap();
    let asked = core.join_next().await.unwrap().unwrap();
    (
        ran.status.code(),
        String::from_utf8(ran.stdout).unwrap(),
        asked,
    )
}

#[tokio::test]
async fn watching_draws_in_place_and_gives_the_terminal_back_at_ctrl_c() {
    let (code, text, asked) = status("--watch 1", &[], true).await;
    assert_eq!(code, Some(0), "{text:?}");
    assert!(asked >= 2, "{asked} times: {text:?}");
    let inside = text.strip_prefix("\x1b[?1049h\x1b[?25l").unwrap();
    // The terminal may show the ^C.
    let inside = inside
        .trim_end()
        .strip_suffix("\x1b[?25h\x1b[?1049l")
        .unwrap();
    assert_eq!(inside.matches("\x1b[H").count(), asked, "{inside:?}");
    assert!(inside.contains("connection refused"), "{inside:?}");
}

#[tokio::test]
async fn colours_and_signs_are_for_terminals() {
    let (_, text, _) = status("", &[], true).await;
    assert!(text.contains("\x1b[1;31m✗ down"), "{text:?}");
    let (_, text, _) = status("", &[("NO_COLOR", "1"), ("LC_ALL", "C")], true).await;
    assert!(!text.contains('\x1b') && !text.contains('✗'), "{text:?}");
    let (_, text, _) = status("", &[], false).await;
    assert!(!text.contains('\x1b') && !text.contains('✗'), "{text:?}");
    assert!(text.contains("10.0.0.1:80  down"), "{text}");
}

#[tokio::test]
async fn the_exit_status_says_whether_all_is_well_where_that_is_asked() {
    for (args, code) in [
        ("", 0),
        ("--check", 3),
        ("--check 192.0.2.1:80", 3),
        ("10.0.0.9", 1),
    ] {
        let (found, text, _) = status(args, &[], false).await;
        assert_eq!(found, Some(code), "{args}: {text}");
    }
}
