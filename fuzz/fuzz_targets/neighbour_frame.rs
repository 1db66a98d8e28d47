#![no_main]
//! Whatever anybody on the network sends, it is understood or passed over; what it claims stands in it.

use std::net::IpAddr;

use understudy_fuzz::neighbours::wire;

libfuzzer_sys::fuzz_target!(|frame: &[u8]| {
    let Some(claim) = wire::claim(frame) else {
        return;
    };
    let stands = match claim.addr {
        IpAddr::V4(addr) => frame.windows(4).any(|w| w == addr.octets()),
        IpAddr::V6(addr) => frame.windows(16).any(|w| w == addr.octets()),
    };
    assert!(stands);
    // Whoever has it may announce it, and is understood.
    let again = wire::announcement(claim.addr, claim.mac, true);
    assert_eq!(wire::claim(&again), Some(claim));
});
