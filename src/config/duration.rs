//! Durations as configuration writes them: a whole number and a unit, `"800ms"`, `"5s"`, `"2m"`,
//! `"1h"`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error};

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is no duration: write a whole number and a unit, \
     as in \"800ms\", \"5s\", \"2m\" or \"1h\""
)]
pub struct DurationError {
    found: String,
}

/// Reads a duration.
///
/// # Errors
///
/// Where the text is no whole number with one of the units `ms`, `s`, `m`, `h`, or too large.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use understudy::config::duration;
///
/// assert_eq!(duration::parse("800ms").unwrap(), Duration::from_millis(800));
/// assert!(duration::parse("1.5s").is_err());
/// ```
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError {
        found: text.to_owned(),
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(error)?;
    let number: u64 = number.parse().map_err(|_not_a_number| error())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(error()),
    };
    let millis = number.checked_mul(millis).ok_or_else(error)?;
    Ok(Duration::from_millis(millis))
}

/// For `#[serde(deserialize_with = "…")]`, where nothing else is to be said about the value.
///
/// # Errors
///
/// As [`parse`].
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units() {
        for (text, millis) in [
            ("0s", 0),
            ("1ms", 1),
            ("5s", 5000),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(millis));
        }
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for text in [
            "",
            "5",
            "s",
            "5 s",
            " 5s",
            "-5s",
            "+5s",
            "1.5s",
            "5S",
            "5sec",
            "1m30s",
            "٥s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.starts_with(&format!("{text:?} is no duration")), "{e}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            drop(parse(&text));
        }

        #[test]
        fn reads_what_it_should(n in 0_u64..1_000_000) {
            prop_assert_eq!(parse(&format!("{n}s")).unwrap(), Duration::from_secs(n));
        }
    }
}
