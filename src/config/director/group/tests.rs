use std::path::Path;

use crate::{
    config::{Director, director::parse},
    model::DestKey,
};

const HEAD: &str = "[director]\nname = \"lb1\"\naddress = \"10.77.0.1\"\n[[virtual_service]]\nscheduler = \"wlc\"\n";

fn read(service: &str) -> Result<Director, String> {
    parse(Path::new("d.toml"), &format!("{HEAD}{service}")).map_err(|e| e.to_string())
}

/// The real servers of each service, as text.
fn servers(config: &Director) -> Vec<(String, Vec<String>)> {
    let text = |d: &DestKey| d.to_string();
    let services = config.services.iter();
    services
        .map(|(key, s)| (key.to_string(), s.servers.keys().map(text).collect()))
        .collect()
}

fn wanted(table: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    let text = |s: &&str| (*s).to_owned();
    table
        .iter()
        .map(|(key, servers)| ((*key).to_owned(), servers.iter().map(text).collect()))
        .collect()
}

#[test]
fn each_service_of_a_group_has_the_servers_at_its_own_port() {
    let config = read(
        "address = [\"192.0.2.1:80\", \"192.0.2.1:443\", \"192.0.2.2:80\"]\nforward = \"dr\"\nreal_server = [{ address = \"10.77.1.11\", weight = 3 }, { address = \"10.77.1.12\" }]\n",
    )
    .unwrap();
    let table = wanted(&[
        ("tcp/192.0.2.1:80", &["10.77.1.11:80", "10.77.1.12:80"]),
        ("tcp/192.0.2.1:443", &["10.77.1.11:443", "10.77.1.12:443"]),
        ("tcp/192.0.2.2:80", &["10.77.1.11:80", "10.77.1.12:80"]),
    ]);
    assert_eq!(servers(&config), table);
    let weights = config.services.values().map(|s| s.servers.values());
    for mut weights in weights {
        assert_eq!(weights.next().map(|a| a.weight.get()), Some(3));
    }
}

#[test]
fn by_nat_one_port_may_serve_them_all_and_marks_keep_the_clients() {
    let config = read(
        "address = [\"192.0.2.1:80\", \"192.0.2.1:443\"]\nforward = \"nat\"\nreal_server = [{ address = \"10.77.1.11:8080\" }]\n[[virtual_service]]\nscheduler = \"rr\"\nfwmark = [5, 6]\nforward = \"dr\"\ncheck.connect_port = 80\nreal_server = [{ address = \"10.77.1.11\" }]\n",
    )
    .unwrap();
    let table = wanted(&[
        ("tcp/192.0.2.1:80", &["10.77.1.11:8080"]),
        ("tcp/192.0.2.1:443", &["10.77.1.11:8080"]),
        ("fwmark/5", &["10.77.1.11:0"]),
        ("fwmark/6", &["10.77.1.11:0"]),
    ]);
    assert_eq!(servers(&config), table);
}

#[test]
fn of_two_families_each_service_has_its_own_and_by_tunnel_any() {
    let both = "real_server = [{ address = \"10.77.1.11\" }, { address = \"fd77::11\" }]\nsorry_server = [{ address = \"fd77::99\" }, { address = \"10.77.1.99\" }]\n";
    let vips = "address = [\"192.0.2.1:80\", \"[2001:db8::1]:80\"]\n";
    let config = read(&format!("{vips}forward = \"dr\"\n{both}")).unwrap();
    let table = wanted(&[
        ("tcp/192.0.2.1:80", &["10.77.1.11:80"]),
        ("tcp/[2001:db8::1]:80", &["[fd77::11]:80"]),
    ]);
    assert_eq!(servers(&config), table);
    let sorry = config.services.values().map(|s| s.sorry.len());
    assert_eq!(sorry.collect::<Vec<_>>(), [1, 1]);

    let v4 = "real_server = [{ address = \"10.77.1.11\" }]\n";
    let config = read(&format!("{vips}forward = \"tun\"\n{v4}")).unwrap();
    let table = wanted(&[
        ("tcp/192.0.2.1:80", &["10.77.1.11:80"]),
        ("tcp/[2001:db8::1]:80", &["10.77.1.11:80"]),
    ]);
    assert_eq!(servers(&config), table);
    let found = read(&format!("{vips}forward = \"dr\"\n{v4}")).unwrap_err();
    assert_eq!(
        found,
        "d.toml:6:28: none of the real servers is of the family of tcp/[2001:db8::1]:80"
    );
}

#[test]
fn one_service_needs_no_list_and_no_port_either() {
    let config = read(
        "address = \"192.0.2.1:80\"\nforward = \"nat\"\nreal_server = [{ address = \"10.77.1.11\" }]\n",
    );
    let table = wanted(&[("tcp/192.0.2.1:80", &["10.77.1.11:80"])]);
    assert_eq!(servers(&config.unwrap()), table);
}
