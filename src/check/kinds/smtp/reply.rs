//! A mail server's replies (RFC 5321, section 4.2). PURE.

use tokio_util::bytes::BytesMut;

use crate::model::FailReason;

/// RFC 5321, section 4.5.3.1.5, allows a line 512 octets; servers take more.
const LONGEST_LINE: usize = 4 * 1024;

/// Of all lines of a reply.
const LONGEST: usize = 64 * 1024;

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// Its code, the same in each line.
    pub(super) code: u16,
    /// Its lines.
    pub(super) text: BytesMut,
}

impl Reply {
    /// Whether an answer to `EHLO` names this extension: the first line is the greeting, each other
    /// begins with a keyword (RFC 5321, section 4.1.1.1).
    pub(super) fn offers(&self, keyword: &str) -> bool {
        let text: &[u8] = &self.text;
        let lines = text.split(|byte| *byte == b'\n').skip(1);
        let mut words = lines.filter_map(|line| {
            let words = line.get(4..)?;
            words.split(u8::is_ascii_whitespace).next()
        });
        words.any(|word| word.eq_ignore_ascii_case(keyword.as_bytes()))
    }
}

/// Takes a reply off the front of what has come; `None` where its end has not.
pub(super) fn take(seen: &mut BytesMut) -> Result<Option<Reply>, FailReason> {
    let Some((code, length)) = find(seen)? else {
        return Ok(None);
    };
    let text = seen.split_to(length);
    Ok(Some(Reply { code, text }))
}

/// Code and length of the first reply.
fn find(seen: &[u8]) -> Result<Option<(u16, usize)>, FailReason> {
    let mut length = 0;
    let mut known = None;
    // The end of a line is CR LF; LF alone is taken for it, too.
    for line in seen.split_inclusive(|byte| *byte == b'\n') {
        length += line.len();
        if line.len() > LONGEST_LINE || length > LONGEST {
            return Err(FailReason::TooLong);
        }
        let Some(whole) = line.strip_suffix(b"\n") else {
            // What can become none is none, whether or not its line ever ends.
            return match may_begin(line) {
                true => Ok(None),
                false => Err(FailReason::Garbled),
            };
        };
        let whole = whole.strip_suffix(b"\r").unwrap_or(whole);
        let (code, last) = read(whole).ok_or(FailReason::Garbled)?;
        if *known.get_or_insert(code) != code {
            return Err(FailReason::Garbled);
        }
        if last {
            return Ok(Some((code, length)));
        }
    }
    Ok(None)
}

/// Code of a line, and whether it is the last.
fn read(line: &[u8]) -> Option<(u16, bool)> {
    let (digits, rest) = line.split_first_chunk::<3>()?;
    let last = match rest {
        [b'-', ..] => false,
        [b' ', ..] | [] => true,
        _ => return None,
    };
    if !may_begin(line) {
        return None;
    }
    let code = digits.iter().fold(0, |n, d| n * 10 + u16::from(d & 0xf));
    Some((code, last))
}

/// Whether a line may begin so: 2 to 5, two more digits, a blank or a hyphen.
fn may_begin(line: &[u8]) -> bool {
    line.iter().take(4).enumerate().all(|(i, byte)| match i {
        0 => matches!(byte, b'2'..=b'5'),
        1 | 2 => byte.is_ascii_digit(),
        _ => matches!(byte, b' ' | b'-' | b'\r'),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(text: &str) -> Result<Option<(u16, String)>, FailReason> {
        let mut seen = BytesMut::from(text);
        let reply = take(&mut seen)?;
        Ok(reply.map(|reply| (reply.code, String::from_utf8(seen.to_vec()).unwrap())))
    }

    #[test]
    fn a_reply_ends_with_its_last_line() {
        let nothing = String::new;
        assert_eq!(taken("220 mx.example.org\r\n"), Ok(Some((220, nothing()))));
        assert_eq!(taken("220\r\n"), Ok(Some((220, nothing()))));
        assert_eq!(taken("220-one\r\n220 two\r\n"), Ok(Some((220, nothing()))));
        assert_eq!(
            taken("220 a\n250 b\r\n"),
            Ok(Some((220, "250 b\r\n".into())))
        );
        for part in [
            "",
            "2",
            "220",
            "220 mx",
            "220 mx\r",
            "220-one\r\n",
            "220-one\r\n22",
        ] {
            assert_eq!(taken(part), Ok(None), "{part:?}");
        }
    }

    #[test]
    fn what_is_none_is_seen_before_its_line_ends() {
        for bad in [
            "S",
            "SSH-2.0-",
            "22O",
            "220x",
            "120 ",
            "620 ",
            "220-a\r\n221 b\r\n",
            "220-a\r\n\r\n",
            "\r\n",
            "22\r\n",
        ] {
            assert_eq!(taken(bad), Err(FailReason::Garbled), "{bad:?}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let line = |n: usize| format!("220-{}\r\n", "x".repeat(n - 6));
        assert_eq!(taken(&line(4_096)), Ok(None));
        assert_eq!(taken(&line(4_097)), Err(FailReason::TooLong));
        let endless = format!("220-{}", "x".repeat(5_000));
        assert_eq!(taken(&endless), Err(FailReason::TooLong));
        assert_eq!(taken(&line(64).repeat(1_024)), Ok(None));
        assert_eq!(taken(&line(64).repeat(1_025)), Err(FailReason::TooLong));
    }

    #[test]
    fn an_extension_is_a_keyword_of_its_own_line() {
        let offers = |text: &str| {
            let mut seen = BytesMut::from(text);
            take(&mut seen).unwrap().unwrap().offers("STARTTLS")
        };
        assert!(offers("250-mx\r\n250-SIZE 1\r\n250 STARTTLS\r\n"));
        assert!(offers("250-mx\r\n250-starttls\r\n250 HELP\r\n"));
        assert!(
            !offers("250 STARTTLS\r\n"),
            "the greeting of a host of that name"
        );
        assert!(!offers("250-mx\r\n250 XSTARTTLS\r\n"));
        assert!(!offers("250-mx\r\n250-HELP STARTTLS\r\n250 8BITMIME\r\n"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            drop(take(&mut BytesMut::from(bytes.as_slice())));
        }

        /// A reply is the same however it is cut, and nothing after it is touched.
        #[test]
        fn a_reply_is_read_however_it_comes(
            code in 200_u16..600,
            texts in proptest::collection::vec("[ -~]{0,20}", 1..5),
            after in "[ -~\r\n]{0,10}",
            cut in 0_usize..80,
        ) {
            let last = texts.len() - 1;
            let lines: String = texts.iter().enumerate()
                .map(|(i, text)| format!("{code}{}{text}\r\n", if i == last { ' ' } else { '-' }))
                .collect();
            let mut part = BytesMut::from(&lines[..cut.min(lines.len() - 1)]);
            prop_assert_eq!(take(&mut part), Ok(None));
            let mut seen = BytesMut::from(format!("{lines}{after}").as_str());
            let reply = take(&mut seen).unwrap().unwrap();
            prop_assert_eq!(reply.code, code);
            prop_assert_eq!(&reply.text, lines.as_bytes());
            prop_assert_eq!(&seen, after.as_bytes());
        }
    }
}
