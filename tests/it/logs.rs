//! What the logs look like on stderr.

use std::process::Command;

use tracing::{debug, info, warn};
use understudy::telemetry::{LogError, LogFormat, init_logs};

fn stderr_of(format: &str, filter: Option<&str>) -> String {
    let mut daemon = Command::new(std::env::current_exe().unwrap());
    daemon
        .args(["--exact", "logs::writes", "--ignored", "--nocapture"])
        .env("FORMAT", format)
        .env_remove("UNDERSTUDY_LOG");
    if let Some(filter) = filter {
        daemon.env("UNDERSTUDY_LOG", filter);
    }
    // A stream that is not this process's stderr: not the journal.
    let out = daemon.env("JOURNAL_STREAM", "1:1").output().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stderr).unwrap()
}

#[test]
#[ignore = "the process that the other tests start"]
fn writes() {
    let format = match std::env::var("FORMAT").unwrap().as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Auto,
    };
    init_logs(format).unwrap();
    debug!("probed");
    info!(server = "10.0.0.1:80", to = "down", "real server changed");
    warn!("state file could not be read");
    assert!(matches!(init_logs(format), Err(LogError::Again(_))));
}

#[test]
fn text_is_for_people_and_begins_at_info() {
    let text = stderr_of("auto", None);
    assert!(text.contains("INFO"), "{text}");
    assert!(text.contains("real server changed"), "{text}");
    assert!(!text.contains("probed"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours into a pipe: {text:?}");
}

#[test]
fn json_is_an_object_a_line_with_fields_as_keys() {
    let text = stderr_of("json", Some("warn,it::logs=debug"));
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let messages: Vec<_> = lines
        .iter()
        .map(|l| l["message"].as_str().unwrap())
        .collect();
    assert_eq!(
        messages,
        [
            "probed",
            "real server changed",
            "state file could not be read"
        ]
    );
    assert_eq!(lines[1]["server"], "10.0.0.1:80");
    assert_eq!(lines[1]["level"], "INFO");
}
