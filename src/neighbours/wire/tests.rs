use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const OWN: Mac = Mac([2, 0, 0, 0, 0, 0x17]);

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let pair = |p: &[char]| u8::from_str_radix(&p.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn claimed(frame: &[u8]) -> Option<(String, String)> {
    claim(frame).map(|c| (c.addr.to_string(), c.mac.to_string()))
}

/// As RFC 5227 draws them.
#[test]
fn arp_is_written_as_the_rfc_says() {
    let addr = "192.0.2.1".parse().unwrap();
    let head = "ffffffffffff 020000000017 0806 0001 0800 06 04 0001 020000000017";
    assert_eq!(
        probe(addr, OWN),
        bytes(&format!("{head} 00000000 000000000000 c0000201"))
    );
    assert_eq!(
        announcement(addr, OWN, false),
        bytes(&format!("{head} c0000201 000000000000 c0000201"))
    );
}

#[test]
fn neighbour_discovery_is_written_as_the_rfc_says() {
    let addr = "2001:db8::12:3456".parse().unwrap();
    let frame = probe(addr, OWN);
    assert_eq!(
        frame[..14],
        bytes("3333ff123456 020000000017 86dd")[..],
        "{frame:02x?}"
    );
    assert_eq!(
        frame[14..22],
        bytes("60000000 0018 3a ff")[..],
        "24 bytes of ICMPv6 that no router forwarded"
    );
    assert_eq!(frame[22..38], [0; 16], "from no address");
    assert_eq!(
        frame[38..54],
        bytes("ff02000000000000 00000001ff123456")[..]
    );
    assert_eq!(frame[54..56], [135, 0]);
    assert_eq!(frame[62..], bytes("20010db8000000000000000000123456")[..]);
    let frame = announcement(addr, OWN, true);
    assert_eq!(frame[..6], bytes("333300000001")[..]);
    assert_eq!(frame[54..56], [136, 0]);
    assert_eq!(frame[58..62], [0xa0, 0, 0, 0], "router, override");
    assert_eq!(frame[78..], bytes("0201 020000000017")[..]);
    assert_eq!(announcement(addr, OWN, false)[58], 0x20);
}

/// Off the wire: what Linux answered to a probe, and one of its own.
#[test]
fn whoever_has_an_address_claims_it() {
    let reply = bytes(
        "0200000000170a1b2c3d4e5f08060001080006040002 0a1b2c3d4e5f c0000201 020000000017 00000000",
    );
    let host = |addr: &str| Some((addr.to_owned(), "0a:1b:2c:3d:4e:5f".to_owned()));
    assert_eq!(claimed(&reply), host("192.0.2.1"));
    let mac = Mac([0x0a, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f]);
    for addr in ["192.0.2.1", "2001:db8::1"] {
        let ip = addr.parse().unwrap();
        assert_eq!(claimed(&announcement(ip, mac, true)), host(addr));
        assert_eq!(claimed(&probe(ip, mac)), host(addr), "about to take it");
    }
}

#[test]
fn who_only_looks_for_an_address_claims_nothing_of_it() {
    let mac = Mac([0x0a, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f]);
    // Who has 192.0.2.1? Tell 192.0.2.7.
    let mut asks = probe("192.0.2.1".parse().unwrap(), mac);
    asks[28..32].copy_from_slice(&[192, 0, 2, 7]);
    assert_eq!(claimed(&asks).unwrap().0, "192.0.2.7");
    let mut asks = probe("2001:db8::1".parse().unwrap(), mac);
    let from = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).octets();
    asks[22..38].copy_from_slice(&from);
    // Its sum is right again.
    let old = u16::from_be_bytes([asks[56], asks[57]]);
    let mut sum = u32::from(!old);
    for pair in from.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    let sum = (sum & 0xffff) + (sum >> 16);
    asks[56..58].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    assert_eq!(claimed(&asks), None);
}

#[test]
fn a_frame_that_is_not_sound_claims_nothing() {
    let mac = Mac([0x0a, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f]);
    let good = announcement("2001:db8::1".parse().unwrap(), mac, false);
    for (at, what) in [
        (14, "version"),
        (20, "next header"),
        (21, "forwarded"),
        (54, "type"),
        (55, "code"),
        (60, "checksum"),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 0x11;
        assert_eq!(claimed(&bad), None, "{what}");
    }
    let good = announcement("192.0.2.1".parse().unwrap(), mac, false);
    for at in [12, 14, 16, 18, 19, 21] {
        let mut bad = good.clone();
        bad[at] ^= 0x11;
        assert_eq!(claimed(&bad), None, "byte {at}");
    }
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    let v4 = any::<u32>().prop_filter("an address", |a| *a != 0);
    let v4 = v4.prop_map(|a| IpAddr::V4(Ipv4Addr::from(a)));
    let v6 = any::<u128>().prop_map(|a| IpAddr::V6(Ipv6Addr::from(a)));
    prop_oneof![
        v4,
        v6.prop_filter("unicast", |a| !a.is_multicast() && !a.is_unspecified())
    ]
}

proptest! {
    /// Also where the Ethernet filled the frame up.
    #[test]
    fn what_is_written_is_read(addr in addresses(), mac: [u8; 6], router: bool, filled in 0..40_usize) {
        let wanted = Some(Claim { addr, mac: Mac(mac) });
        for mut frame in [probe(addr, Mac(mac)), announcement(addr, Mac(mac), router)] {
            frame.extend(vec![0; filled]);
            prop_assert_eq!(claim(&frame), wanted);
        }
    }

    #[test]
    fn any_bytes_are_read_to_the_end(bytes: Vec<u8>, arp: bool) {
        let protocol = if arp { ARP } else { IPV6 };
        for frame in [ethernet(EVERYBODY, OWN, protocol, &bytes), bytes] {
            // A claim has its address in the frame.
            let named = |c: Claim| match c.addr {
                IpAddr::V4(a) => frame.windows(4).any(|w| w == a.octets()),
                IpAddr::V6(a) => frame.windows(16).any(|w| w == a.octets()),
            };
            prop_assert!(claim(&frame).is_none_or(named));
        }
    }

    /// A byte that changed on the way: whatever is read then is another frame's meaning, and no panic.
    #[test]
    fn one_changed_byte_of_neighbour_discovery_is_found(at in 14..86_usize, by in 1..=255_u8) {
        let good = announcement("2001:db8::1".parse().unwrap(), OWN, true);
        let mut bad = good.clone();
        bad[at] ^= by;
        // The class and label of the flow say nothing, and are not summed up.
        prop_assume!(!(14..18).contains(&at) || by & 0xf0 != 0 && at == 14);
        prop_assert_eq!(claim(&bad), None);
    }
}
