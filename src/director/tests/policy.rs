//! Services that share their servers, and how a server that is new comes in.

use super::*;

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
