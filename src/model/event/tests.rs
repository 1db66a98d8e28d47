use super::*;

fn ring() -> EventRing {
    let name = "lb1".parse().unwrap();
    EventRing::new(Role::Director, Some(name), WallMillis(7))
}

fn draft(kind: EventKind, port: u16) -> EventDraft {
    let server = EventServer {
        addr: [10, 77, 1, 11].into(),
        port: Some(port),
    };
    EventDraft::new(kind, "it happened").server(server)
}

fn numbers(page: &EventPage) -> Vec<u64> {
    page.events.iter().map(|e| e.number).collect()
}

#[test]
fn an_event_is_the_same_after_the_wire() {
    let mut ring = ring();
    let draft = draft(EventKind::ServerDown, 80)
        .service("tcp/192.0.2.1:80".parse().unwrap())
        .reason("refused");
    ring.push(draft, WallMillis(1_795_889_078_007));
    let event = Event::clone(ring.after(0).next().unwrap());
    let json = serde_json::to_string(&event).unwrap();
    assert_eq!(
        json,
        concat!(
            r#"{"run":7,"number":1,"at":"2026-11-28T18:04:38.007Z","severity":"warning","kind":"server_down","#,
            r#""role":"director","director":"lb1","service":"tcp/192.0.2.1:80","server":"10.77.1.11:80","#,
            r#""replacement":null,"reason":"refused","text":"it happened"}"#
        )
    );
    assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    assert_eq!(event.id(), "lb1/7/1");
}

#[test]
fn words_of_kinds_are_their_labels_and_each_is_told_from_the_others() {
    for kind in EventKind::ALL {
        assert_eq!(kind.label().parse::<EventKind>().unwrap(), *kind);
        let json = serde_json::to_string(kind).unwrap();
        assert_eq!(json, format!("{:?}", kind.label()));
        let same = |k: &&EventKind| k.label() == kind.label();
        assert_eq!(EventKind::ALL.iter().filter(same).count(), 1);
    }
    let error = "server_gone".parse::<EventKind>().unwrap_err().to_string();
    assert!(error.starts_with("\"server_gone\" is no kind of event: write one of started, "));
}

#[test]
fn foreign_words_stay_on_one_line() {
    let draft = EventDraft::new(EventKind::Ordered, "because\r\nof \u{1b}[31m");
    assert_eq!(draft.text, "because  of  [31m");
}

#[test]
fn a_slow_reader_is_told_how_much_it_missed() {
    let mut ring = ring();
    let all = EventFilter::default();
    assert_eq!(ring.page(None, &all).next, 0);
    for _ in 0..1_005 {
        ring.push(draft(EventKind::ServerUp, 80), WallMillis(0));
    }
    let first = ring.page(None, &all);
    assert_eq!((first.missed, first.next), (0, 205), "from what there is");
    let late = ring.page(Some(2), &all);
    assert_eq!((late.missed, numbers(&late)[0]), (3, 6));
    let in_time = ring.page(Some(5), &all);
    assert_eq!((in_time.missed, numbers(&in_time)[0]), (0, 6));
    let end = ring.page(Some(1_004), &all);
    assert_eq!((numbers(&end), end.next), (vec![1_005], 1_005));
    let nothing = ring.page(Some(1_005), &all);
    assert_eq!((nothing.events.len(), nothing.next), (0, 1_005));
    // Pages follow one another without a gap.
    let (mut next, mut seen) = (5, 0);
    while next < 1_005 {
        let page = ring.page(Some(next), &all);
        assert_eq!(numbers(&page)[0], next + 1);
        seen += page.events.len();
        next = page.next;
    }
    assert_eq!(seen, 1_000);
}

#[test]
fn each_part_of_a_readers_filter_narrows_it() {
    let mut ring = ring();
    ring.push(draft(EventKind::ServerUp, 80), WallMillis(0));
    ring.push(draft(EventKind::ServerDown, 80), WallMillis(0));
    ring.push(draft(EventKind::ServerDown, 443), WallMillis(0));
    ring.push(
        EventDraft::new(EventKind::QuorumLost, "few").service("tcp/192.0.2.1:80".parse().unwrap()),
        WallMillis(0),
    );
    let page = |filter: EventFilter| numbers(&ring.page(None, &filter));
    let none = EventFilter::default;
    let server = |text: &str| Some(text.parse().unwrap());
    let down = [EventKind::ServerDown].into();
    for (filter, wanted) in [
        (none(), vec![1, 2, 3, 4]),
        (
            EventFilter {
                server: server("10.77.1.11"),
                ..none()
            },
            vec![1, 2, 3],
        ),
        (
            EventFilter {
                server: server("10.77.1.11:443"),
                ..none()
            },
            vec![3],
        ),
        (
            EventFilter {
                severity: Some(Severity::Warning),
                ..none()
            },
            vec![2, 3, 4],
        ),
        (
            EventFilter {
                kinds: down,
                server: server("10.77.1.11:80"),
                ..none()
            },
            vec![2],
        ),
        (
            EventFilter {
                service: Some("tcp/192.0.2.1:80".parse().unwrap()),
                ..none()
            },
            vec![4],
        ),
    ] {
        assert_eq!(page(filter.clone()), wanted, "{filter:?}");
    }
}

#[test]
fn each_part_of_what_a_hook_wants_adds_to_it() {
    let mut ring = ring();
    for kind in [
        EventKind::ServerUp,
        EventKind::ServerDown,
        EventKind::QuorumHeld,
    ] {
        ring.push(draft(kind, 80), WallMillis(0));
    }
    let wanted = Wanted {
        severity: Some(Severity::Warning),
        kinds: [EventKind::QuorumHeld].into(),
    };
    let told: Vec<_> = ring.after(0).map(|e| wanted.wants(e)).collect();
    assert_eq!(told, [false, true, true]);
}
