use super::*;

fn explanation() -> Explanation {
    let explanation = r#"{
        "director": "lb1", "service": "tcp/192.0.2.1:80", "server": "10.0.0.1:80", "kind": "configured",
        "place": "out", "rule": "failed",
        "why": "it fails, connection refused: it is taken out, with its connections",
        "health": "down", "since_s": 192,
        "checks": [{
            "check": "http", "asks": "GET /health, status 200-299", "at": "10.0.0.1:80",
            "interval_ms": 1500, "timeout_ms": 1000, "rise": 2, "fall": 3, "health": "down", "since_s": 192,
            "passes": 1, "passes_needed": 2, "failures": 0, "found": "passed", "found_s": 1, "blind": 0
        }],
        "checks_needed": 1,
        "weight": { "configured": 5, "wanted": null, "kernel": null },
        "advice": null, "order": null, "quorum": null, "drift_policy": "repair", "drift": [],
        "not_applied": null, "kernel": null, "kernel_unread": null,
        "incident": {
            "stage": "open", "since_s": 12, "guard": "replace_after",
            "detail": "it has not failed for replace_after yet", "until_s": 48, "replacement": null
        },
        "stand_ins": [],
        "standbys": [{ "name": "spare9", "in_place_of": ["10.0.0.1"], "state": "ready", "places": [] }],
        "replacement": {
            "id": "r1", "key": "k", "director": "lb1", "failed": "10.0.0.1", "origin": "10.0.0.1",
            "state": "configuring", "reason": null, "spare": null,
            "passed_over": [{ "server": "spare7", "reason": "another system" }],
            "steps": [
                { "server": "spare8", "step": "os", "state": "done", "started_ms": 1000, "ended_ms": 5200, "detail": "Debian 12" },
                { "server": "spare8", "step": "install:nginx", "state": "running", "started_ms": 5200, "ended_ms": null, "detail": "" }
            ],
            "version": 3
        },
        "provisioner_silent": null
    }"#;
    serde_json::from_str(explanation).unwrap()
}

#[test]
fn each_line_says_what_and_why() {
    assert_eq!(
        show(&Screen::PLAIN, &explanation()),
        "\
10.0.0.1:80 in tcp/192.0.2.1:80: OUT OF SERVICE, down for 3m 12s
  why         it fails, connection refused: it is taken out, with its connections [failed]
  http        down for 3m 12s, passed 1 of 2 times in a row
              last, 1s ago: passed
              asks 10.0.0.1:80: GET /health, status 200-299, every 1.5s, for at most 1s; rise 2, fall 3
  weight      5 configured, none wanted, none in the kernel
  kernel      it is not in the table
  warm spare  spare9 could take the place of 10.0.0.1: ready
  failed      for 12s; no replacement yet: it has not failed for replace_after yet, for 48s more
  replacement r1 configuring
              passed over spare7: another system
              os on spare8: done after 4.2s: Debian 12
              install:nginx on spare8: running
"
    );
}

#[test]
fn a_silent_provisioner_and_an_unread_kernel_are_a_line_each() {
    let mut e = explanation();
    e.replacement = None;
    e.provisioner_silent = Some("nobody listens".to_owned());
    e.kernel_unread = Some("not permitted".to_owned());
    let text = show(&Screen::PLAIN, &e);
    assert!(
        text.contains("the provisioner does not tell: nobody listens\n"),
        "{text}"
    );
    assert!(
        text.contains("its connections cannot be read: not permitted\n"),
        "{text}"
    );
}

#[test]
fn on_a_narrow_terminal_lines_are_wrapped_under_their_name() {
    let screen = Screen {
        width: Some(60),
        ..Screen::PLAIN
    };
    let text = show(&screen, &explanation());
    let body = text.lines().skip(1);
    for line in body {
        assert!(line.chars().count() <= 60, "{line}");
        assert!(line.starts_with("  "), "{line}");
    }
}
