//! Services that share their servers, and how a server that is new comes in.

use super::*;
use crate::director::Reload;

/// A configuration of one `[[virtual_service]]` with these lines.
fn config(service: &str) -> String {
    let head = CONFIG.find("[[virtual_service]]").unwrap();
    format!(
        "{}[[virtual_service]]\nscheduler = \"wlc\"\nforward = \"nat\"\n{service}",
        &CONFIG[..head]
    )
}

fn forgot() -> Recall {
    Recall::Forgot("there is no state file".into())
}

/// For each place that is asked, how many services want to know.
fn asked(text: &str) -> Vec<(String, usize)> {
    let w = World::of(text, forgot(), Kernel::new());
    let targets = w.core.targets().into_iter();
    targets
        .map(|((at, _), slots)| (at.to_string(), slots.len()))
        .collect()
}

#[test]
fn a_server_of_a_group_is_asked_once_at_each_port() {
    let servers = "address = [\"192.0.2.1:80\", \"192.0.2.2:80\", \"192.0.2.1:443\"]\nreal_server = [{ address = \"10.0.0.1\" }]\n";
    let each = |list: &[(&str, usize)]| -> Vec<(String, usize)> {
        list.iter().map(|(at, n)| ((*at).to_owned(), *n)).collect()
    };
    assert_eq!(
        asked(&config(servers)),
        each(&[("10.0.0.1:80", 2), ("10.0.0.1:443", 1)])
    );
    let once = format!("{servers}check.connect_port = 80\n");
    assert_eq!(asked(&config(&once)), each(&[("10.0.0.1:80", 3)]));
    let one_port = servers.replace("10.0.0.1", "10.0.0.1:8080");
    assert_eq!(asked(&config(&one_port)), each(&[("10.0.0.1:8080", 3)]));
}

/// The first service of `CONFIG` with these lines too, and these servers.
fn with(lines: &str, servers: &[u8]) -> String {
    let server = |n: &u8| format!("{{ address = \"10.0.0.{n}:80\" }}");
    let servers: Vec<_> = servers.iter().map(server).collect();
    let (head, rest) = CONFIG.split_once("check = ").unwrap();
    let (check, rest) = rest.split_once('\n').unwrap();
    let (_, rest) = rest.split_once('\n').unwrap();
    let servers = servers.join(", ");
    format!("{head}{lines}\ncheck = {check}\nreal_server = [{servers}]\n{rest}")
}

fn in_service(w: &World) -> Vec<String> {
    let want = w.core.desired(service(80)).unwrap();
    want.service.dests.keys().map(ToString::to_string).collect()
}

fn reload(w: &mut World, text: &str, found: Kernel) {
    let config = config::director::parse(Path::new("d.toml"), text).unwrap();
    let config = Arc::new(config);
    w.event(Event::Reload(Box::new(Reload { config, found })));
}

const UP: &str = "initial = \"up\"";

#[test]
fn a_new_server_waits_for_its_checks_or_is_in_until_it_fails() {
    for (lines, first) in [("", vec![]), (UP, vec!["10.0.0.1:80", "10.0.0.2:80"])] {
        let mut w = World::of(&with(lines, &[1, 2]), forgot(), Kernel::new());
        w.members(vec![]);
        assert_eq!(in_service(&w), first, "{lines}");
        w.probe(2, FAIL);
        w.all_pass(&[1]);
        w.dies(2);
        assert_eq!(in_service(&w), ["10.0.0.1:80"], "{lines}");
    }
}

#[test]
fn who_is_missing_in_a_service_that_the_kernel_has_is_not_new() {
    let kernel = Kernel::from([(service(80), [(dest(1, 80), attrs(1))].into())]);
    let w = World::of(&with(UP, &[1, 2]), forgot(), kernel);
    assert_eq!(in_service(&w), ["10.0.0.1:80"]);
}

#[test]
fn a_reload_lets_in_who_is_new_and_nobody_else() {
    let mut w = World::of(&with(UP, &[1, 2]), forgot(), Kernel::new());
    w.members(vec![]);
    w.all_pass(&[1]);
    w.dies(2);
    // Who failed is checked otherwise now, and is not new for that.
    let other = with(UP, &[1, 2, 3]).replacen("rise = 2", "rise = 3", 1);
    reload(&mut w, &other, Kernel::new());
    assert_eq!(in_service(&w), ["10.0.0.1:80", "10.0.0.3:80"]);
    w.dies(3);
    assert_eq!(in_service(&w), ["10.0.0.1:80"]);
    // A service that somebody else has made is taken over as it is.
    let mut w = World::of(&with("", &[1]), forgot(), Kernel::new());
    w.members(vec![]);
    let moved = with(UP, &[1, 2]).replacen("192.0.2.1:80", "192.0.2.1:81", 1);
    let found = Kernel::from([(service(81), [(dest(1, 80), attrs(1))].into())]);
    reload(&mut w, &moved, found);
    let want = w.core.desired(service(81)).unwrap();
    assert_eq!(want.service.dests.len(), 1);
}

#[test]
fn a_stand_in_has_to_pass_wherever_it_is() {
    let mut w = World::of(&with(UP, &[1, 2]), forgot(), Kernel::new());
    w.members(vec![member("r1", 1, 9, Want::Attach)]);
    assert_eq!(in_service(&w), ["10.0.0.1:80", "10.0.0.2:80"]);
    w.all_pass(&[2, 9]);
    assert!(in_service(&w).contains(&"10.0.0.9:80".to_owned()));
}
