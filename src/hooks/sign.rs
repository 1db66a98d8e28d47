//! Who sent an event, and that nobody changed it: HMAC-SHA256 (RFC 2104) of the time, a dot and the body. PURE.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The header's value: `t=1795889078,v1=…`, the time in seconds since 1970 and the code in hexadecimal digits. The
/// code is of the time's digits, a dot, and the body.
pub(super) fn signature(key: &[u8], seconds: i64, body: &[u8]) -> String {
    // A key of any length is taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return String::new();
    };
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body);
    let code = mac.finalize().into_bytes();
    let digits: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By another program: `printf '1795889078.{"number":1}' | openssl dgst -sha256 -hmac 'topsecret'`.
    #[test]
    fn the_code_is_the_one_that_openssl_says() {
        assert_eq!(
            signature(b"topsecret", 1_795_889_078, b"{\"number\":1}"),
            "t=1795889078,v1=f38042f4d9ed97f794a9349ec52f64d819277752e772a68d597476f6df463bd9"
        );
    }

    #[test]
    fn another_key_time_or_body_has_another_code() {
        let one = signature(b"key", 1, b"body");
        assert_ne!(one, signature(b"kez", 1, b"body"));
        assert_ne!(one, signature(b"key", 1, b"bodz"));
        let code = |text: &str| text.split_once("v1=").unwrap().1.to_owned();
        assert_ne!(code(&one), code(&signature(b"key", 2, b"body")));
    }
}
