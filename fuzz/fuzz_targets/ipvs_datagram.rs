#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _understood = understudy_fuzz::ipvs::codec::answers(bytes);
});
