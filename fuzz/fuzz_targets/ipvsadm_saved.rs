#![no_main]
//! Whatever a saved table says, it is read or refused; and what was read can be written and read.

use std::{net::IpAddr, path::Path};

use understudy_fuzz::{
    import::ipvsadm::{Names, parse, write},
    model::Protocol,
};

/// Names that are found, are not, or are more than one.
struct Known;

impl Names for Known {
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        match name {
            "one" => Ok(vec![[192, 0, 2, 1].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()]),
            "many" => Ok(vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()]),
            _ => Err("unknown".to_owned()),
        }
    }

    fn port(&self, name: &str, _: Protocol) -> Option<u16> {
        (name == "http").then_some(80)
    }
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    match parse(Path::new("saved"), text, &Known) {
        Ok(saved) => {
            let again = parse(Path::new("written"), &write(&saved.table), &Known);
            assert_eq!(again.map(|s| s.table), Ok(saved.table));
        }
        Err(mistakes) => assert!(!mistakes.to_string().is_empty()),
    }
});
