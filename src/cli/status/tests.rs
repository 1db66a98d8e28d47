use serde_json::json;

use super::*;

/// As a director answers: one server is up, one fails and is on its way out, one is from the pool.
fn status() -> Status {
    let server = |server: &str, rest: serde_json::Value| {
        let mut all = json!({
            "server": server, "kind": "configured", "health": "up", "reason": null, "since_s": 192,
            "weight": 5, "wanted": 5, "connections": { "weight": 5, "active": 120, "inactive": 33, "persistent": 0 },
        });
        for (key, value) in rest.as_object().unwrap() {
            all[key] = value.clone();
        }
        all
    };
    let down = json!({
        "health": "down", "since_s": 12, "weight": 1, "wanted": null, "connections": null,
        "reason": "connection refused",
    });
    let spare = json!({ "kind": "stand-in", "since_s": 5 });
    let status = json!({
        "director": "lb1",
        "services": [
            {
                "service": "tcp/192.0.2.1:80", "scheduler": "wlc", "forward": "nat",
                "servers": [
                    server("10.0.0.1:80", json!({})),
                    server("10.0.0.2:80", down),
                    server("10.0.0.9:80", spare),
                ],
                "quorum": { "held": false, "live": 1, "quorum": 2, "hysteresis": 0, "sorry": false },
            },
            {
                "service": "udp/192.0.2.1:53", "scheduler": "rr", "forward": "gate",
                "servers": [server("10.0.0.3:53", json!({ "connections": null }))],
            },
        ],
        "incidents": [{ "failed": "10.0.0.2", "stage": "open", "replacement": null, "detail": "it has not failed for replace_after yet" }],
        "stand_ins": [{ "name": "spare9", "in_place_of": ["10.0.0.2"], "replacement": "r1", "state": "serving" }],
        "standbys": [
            { "name": "spare8", "in_place_of": ["10.0.0.1", "10.0.0.2"], "state": "failing", "places": [{
                "service": "tcp/192.0.2.1:80", "server": "10.0.0.8:80", "health": "down",
                "reason": "connection refused", "since_s": 3,
            }] },
        ],
        "drift": [],
        "warnings": ["the provisioner does not answer"],
    });
    serde_json::from_value(status).unwrap()
}

#[test]
fn a_table_says_who_serves_since_when_and_why_not() {
    assert_eq!(
        show(&Screen::PLAIN, &status()),
        "\
director lb1: 2 services, 4 of 4 places in service, 1 failed server, 1 stand-in, 1 warm spare, 1 warning

tcp/192.0.2.1:80 (wlc, nat): 3 of 3 in service, weight 11, 240 active
  QUORUM LOST: weight 1 is up, it takes 2; no sorry server serves, who is left goes on
  SERVER       HEALTH   SINCE  WEIGHT  ACTIVE  INACTIVE  KIND      WHY
  10.0.0.1:80  up      3m 12s       5     120        33
  10.0.0.2:80  down       12s    1->-       -         -            connection refused
  10.0.0.9:80  up          5s       5     120        33  stand-in

udp/192.0.2.1:53 (rr, gate): 1 of 1 in service, weight 5
  SERVER       HEALTH   SINCE  WEIGHT
  10.0.0.3:53  up      3m 12s       5

stand-ins
  NAME    STATE    REPLACEMENT  PLACE
  spare9  serving  r1           in place of 10.0.0.2

warm spares
  NAME    STATE    PLACE
  spare8  failing  could take that of 10.0.0.1 or 10.0.0.2; 10.0.0.8:80 of tcp/192.0.2.1:80: connection refused

failed servers
  SERVER    STAGE  WHAT IT WAITS FOR
  10.0.0.2  open   it has not failed for replace_after yet

warning: the provisioner does not answer
"
    );
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    for width in [40, 60, 80, 100] {
        let screen = Screen {
            width: Some(width),
            ..Screen::PLAIN
        };
        let text = show(&screen, &status());
        for line in text.lines().filter(|l| l.starts_with("  ")) {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
        assert!(
            text.contains("10.0.0.2:80") && text.contains("connection refused"),
            "{text}"
        );
    }
}

#[test]
fn a_name_is_a_service_or_a_server() {
    let of = |name: &str| filtered(status(), Only::parse(name).unwrap());
    let keys = |s: Status| {
        s.services
            .iter()
            .map(|s| s.service.to_string())
            .collect::<Vec<_>>()
    };
    for name in ["tcp/192.0.2.1:80", "192.0.2.1:80"] {
        let found = of(name).unwrap();
        assert_eq!(found.services[0].servers.len(), 3);
        assert_eq!(found.incidents.len(), 1);
        assert_eq!(keys(found), ["tcp/192.0.2.1:80"]);
    }
    assert_eq!(keys(of("192.0.2.1").unwrap()).len(), 2);
    let one = of("10.0.0.3").unwrap();
    assert_eq!(
        (
            one.services[0].servers.len(),
            one.incidents.len(),
            one.stand_ins.len()
        ),
        (1, 0, 0)
    );
    assert_eq!(keys(one), ["udp/192.0.2.1:53"]);
    let down = of("10.0.0.2:80").unwrap();
    assert_eq!(
        (
            down.services[0].servers.len(),
            down.incidents.len(),
            down.stand_ins.len()
        ),
        (1, 1, 1)
    );
    let warm = of("10.0.0.8").unwrap();
    assert_eq!((warm.services.len(), warm.standbys.len()), (0, 1));
    assert_eq!(
        of("10.0.0.1").unwrap().standbys.len(),
        1,
        "whose place it is"
    );
    assert_eq!(of("10.0.0.3").unwrap().standbys.len(), 0);
    let Err(Failure::Failed(why)) = of("10.0.0.77") else {
        panic!("nobody has it")
    };
    assert!(
        why.contains("no virtual service and no server 10.0.0.77"),
        "{why}"
    );
    assert!(matches!(Only::parse("web1"), Err(Failure::Wrong(_))));
}

#[test]
fn what_is_to_be_looked_at_is_not_well() {
    let mut all = status();
    assert!(!is_well(&all));
    all.warnings.clear();
    all.incidents.clear();
    assert!(!is_well(&all), "one is down");
    let order = json!({ "wish": "disabled", "reason": null, "by": "uid 0", "at": 0 });
    all.services[0].servers[1].order = Some(serde_json::from_value(order).unwrap());
    assert!(is_well(&all), "and was put aside");
    all.warnings.push("x".to_owned());
    assert!(!is_well(&all));
}

#[test]
fn what_does_not_fit_is_counted_and_nothing_scrolls() {
    let screen = Screen {
        height: Some(4),
        ..Screen::PLAIN
    };
    let drawn = redrawn(&screen, "1\n2\n3\n4\n5\n");
    assert!(
        drawn.starts_with("\x1b[H1\x1b[K\r\n2\x1b[K\r\n3 lines more"),
        "{drawn:?}"
    );
    assert!(drawn.ends_with("\x1b[K\x1b[J"));
    assert!(drawn.matches("\r\n").count() < 4, "{drawn:?}");
    let drawn = redrawn(&screen, "1\n2\n3\n");
    assert_eq!(drawn, "\x1b[H1\x1b[K\r\n2\x1b[K\r\n3\x1b[K\r\n\x1b[J");
}
