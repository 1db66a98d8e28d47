#![no_main]
//! Whatever a server, an agent or a file says, it is understood or refused.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| understudy_fuzz::check::read(bytes));
