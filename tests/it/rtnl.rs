//! Addresses of interfaces, read from the kernel.

use std::{collections::BTreeSet, net::IpAddr, process::Command, time::Duration};

use tokio::time::timeout;
use understudy::rtnl::{Change, Changes, host_addresses};

use crate::support::in_new_namespace;

#[test]
fn the_loopback_address_is_found() {
    let found = host_addresses().unwrap();
    let lo = found
        .iter()
        .find(|a| a.addr == IpAddr::from([127, 0, 0, 1]));
    let lo = lo.unwrap();
    assert_eq!((lo.prefix, lo.interface.as_str()), (8, "lo"), "{found:?}");
}

#[test]
fn all_addresses_of_a_namespace_are_found_and_no_others() {
    in_new_namespace(
        "ip link set lo up
         ip addr add 192.0.2.1/32 dev lo
         ip addr add 10.9.0.1 peer 10.9.0.2 dev lo
         ip addr add 2001:db8::1/128 dev lo nodad",
        "rtnl::sees_its_namespace",
    );
}

#[test]
fn a_namespace_without_addresses_is_empty() {
    in_new_namespace(":", "rtnl::sees_nothing");
}

#[test]
fn a_dump_of_many_messages_is_read_to_its_end() {
    in_new_namespace(
        "ip link set lo up
         i=0
         while [ $i -lt 1000 ]; do echo addr add 10.1.$((i / 250)).$((i % 250))/32 dev lo; i=$((i + 1)); done | ip -batch -",
        "rtnl::sees_a_thousand",
    );
}

#[test]
#[ignore = "run by all_addresses_of_a_namespace_are_found_and_no_others"]
fn sees_its_namespace() {
    let mut found: Vec<_> = host_addresses().unwrap().iter().map(|a| a.addr).collect();
    found.sort();
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    let wanted = ["10.9.0.1", "127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"];
    assert_eq!(found, wanted);
}

#[test]
#[ignore = "run by a_namespace_without_addresses_is_empty"]
fn sees_nothing() {
    assert_eq!(host_addresses().unwrap().len(), 0);
}

#[test]
#[ignore = "run by a_dump_of_many_messages_is_read_to_its_end"]
fn sees_a_thousand() {
    assert_eq!(host_addresses().unwrap().len(), 1_002);
}

#[test]
fn a_neighbour_that_fails_and_a_link_that_goes_down_are_told() {
    in_new_namespace(
        "ip link add one type veth peer two
         ip link set one up
         ip link set two up
         ip addr add 10.9.0.1/24 dev one",
        "rtnl::sees_changes",
    );
}

#[tokio::test]
#[ignore = "run by a_neighbour_that_fails_and_a_link_that_goes_down_are_told"]
async fn sees_changes() {
    let mut changes = Changes::listen().unwrap();
    let ip = |args: &str| {
        let mut ip = Command::new("ip");
        assert!(
            ip.args(args.split(' ')).status().unwrap().success(),
            "{args}"
        );
    };
    ip("neigh add 10.9.0.7 dev one lladdr 02:00:00:00:00:07 nud reachable");
    ip("neigh change 10.9.0.7 dev one nud failed");
    ip("link set two down");
    ip("link del two");
    let mut told = Vec::new();
    while told.len() < 3 {
        let news = timeout(Duration::from_secs(20), changes.next()).await;
        told.extend(news.expect("the kernel tells of it").unwrap());
    }
    // Neighbours and links are told of apart: in any order.
    let failed = Change::NeighbourFailed([10, 9, 0, 7].into());
    assert_eq!(told.iter().filter(|c| **c == failed).count(), 1, "{told:?}");
    // Both ends of the pair are down, each told once.
    let down: BTreeSet<_> = told
        .iter()
        .filter_map(|c| match c {
            Change::LinkDown(index) => Some(*index),
            Change::NeighbourFailed(_) | Change::LinkUp(_) => None,
        })
        .collect();
    assert_eq!(down.len(), 2, "{told:?}");
}
