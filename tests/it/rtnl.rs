//! Addresses of interfaces, read from the kernel.

use understudy::rtnl::local_addresses;

use crate::support::in_new_namespace;

#[test]
fn the_loopback_address_is_found() {
    let found = local_addresses().unwrap();
    assert!(found.contains(&"127.0.0.1".parse().unwrap()), "{found:?}");
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
    let found: Vec<_> = local_addresses()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    let wanted = ["10.9.0.1", "127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"];
    assert_eq!(found, wanted);
}

#[test]
#[ignore = "run by a_namespace_without_addresses_is_empty"]
fn sees_nothing() {
    assert_eq!(local_addresses().unwrap().len(), 0);
}

#[test]
#[ignore = "run by a_dump_of_many_messages_is_read_to_its_end"]
fn sees_a_thousand() {
    assert_eq!(local_addresses().unwrap().len(), 1_002);
}
