//! Whether an answer is the expected one, while it still comes in. PURE.

use regex::bytes::Regex;
use sha2::{Digest, Sha256};

use super::Unprepared;
use crate::model::Expect;

/// Answers are read up to this many bytes, as far as a check has to see them.
pub(super) const LONGEST: usize = 1 << 20;

/// What an answer is held against.
#[derive(Debug)]
pub(super) enum Matcher {
    Text(Vec<u8>),
    Regex(Regex),
    Bytes(Vec<(u8, u8)>),
    Sha256([u8; 32]),
}

impl Matcher {
    pub(super) fn prepare(expect: &Expect) -> Result<Self, Unprepared> {
        Ok(match expect {
            Expect::Text(text) => Self::Text(text.clone().into_bytes()),
            Expect::Regex(pattern) => {
                Self::Regex(Expect::compile(pattern).map_err(Unprepared::Option)?)
            }
            Expect::Bytes(pairs) => Self::Bytes(pairs.clone()),
            Expect::Sha256(digest) => Self::Sha256(*digest),
        })
    }

    /// Whether the answer passes, once that is sure: `seen` is what has come of it, `whole` says that
    /// nothing more comes.
    pub(super) fn judge(&self, seen: &[u8], whole: bool) -> Option<bool> {
        let found = match self {
            Self::Text(text) => contains(seen, text),
            // What matches may depend on what follows: `$`, a look at the end of a word.
            Self::Regex(_) if !whole => return None,
            Self::Regex(regex) => regex.is_match(seen),
            Self::Bytes(pairs) => {
                let differs = |((byte, mask), seen): (&(u8, u8), &u8)| (byte ^ seen) & mask != 0;
                if pairs.iter().zip(seen).any(differs) {
                    return Some(false);
                }
                seen.len() >= pairs.len()
            }
            Self::Sha256(_) if !whole => return None,
            Self::Sha256(digest) => Sha256::digest(seen).as_slice() == digest,
        };
        (found || whole).then_some(found)
    }

    /// The same before the end, for what comes in pieces: only the last `fresh` bytes are new. A text is
    /// looked for in these alone, or ever smaller pieces would make a long answer ever dearer.
    pub(super) fn judge_piece(&self, seen: &[u8], fresh: usize) -> Option<bool> {
        let Self::Text(text) = self else {
            return self.judge(seen, false);
        };
        let from = seen.len().saturating_sub(fresh.saturating_add(text.len()));
        contains(seen.get(from..).unwrap_or_default(), text).then_some(true)
    }

    /// For a talk in which the other side goes on waiting: a regular expression that matches what has
    /// come so far is enough.
    pub(super) fn judge_open(&self, seen: &[u8], fresh: usize) -> Option<bool> {
        match self {
            Self::Regex(regex) => regex.is_match(seen).then_some(true),
            Self::Sha256(digest) => (Sha256::digest(seen).as_slice() == digest).then_some(true),
            Self::Text(_) | Self::Bytes(_) => self.judge_piece(seen, fresh),
        }
    }
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    part.is_empty() || all.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(expect: &Expect) -> Matcher {
        Matcher::prepare(expect).unwrap()
    }

    #[test]
    fn a_text_is_found_as_soon_as_it_is_there() {
        let m = matcher(&Expect::Text("ready".into()));
        assert_eq!(m.judge(b"not rea", false), None);
        assert_eq!(m.judge(b"not ready", false), Some(true));
        assert_eq!(m.judge(b"not rea", true), Some(false));
    }

    #[test]
    fn a_regular_expression_is_held_against_the_whole() {
        let m = matcher(&Expect::Regex("^ok$".into()));
        assert_eq!(m.judge(b"ok", false), None);
        assert_eq!(m.judge(b"okay", true), Some(false));
        assert_eq!(m.judge(b"ok", true), Some(true));
        assert_eq!(m.judge_open(b"ok", 2), Some(true));
    }

    #[test]
    fn bytes_count_as_far_as_their_masks() {
        let m = matcher(&Expect::Bytes(vec![(0x12, 0xff), (0x30, 0xf0)]));
        assert_eq!(m.judge(&[0x12], false), None);
        assert_eq!(m.judge(&[0x12], true), Some(false), "cut short");
        assert_eq!(m.judge(&[0x12, 0x3f, 0], false), Some(true));
        assert_eq!(m.judge(&[0x13], false), Some(false), "wrong at once");
    }

    #[test]
    fn a_digest_is_of_the_whole() {
        let m = matcher(&Expect::Sha256(Sha256::digest(b"body").into()));
        assert_eq!(m.judge(b"body", false), None);
        assert_eq!(m.judge(b"body", true), Some(true));
        assert_eq!(m.judge(b"bodx", true), Some(false));
    }

    #[test]
    fn a_bad_expression_says_what_is_wrong() {
        let why = Expect::compile("a(b").unwrap_err();
        assert_eq!(why, "\"a(b\" is no regular expression: unclosed group");
        assert!(
            Expect::compile(&"(a{1000}){1000}".repeat(9)).is_err(),
            "too large"
        );
    }

    proptest! {
        /// What is judged before the end is judged the same at the end.
        #[test]
        fn an_early_verdict_is_the_last_one(text in "[ab]{0,3}", body in "[ab]{0,12}", cut in 0_usize..12) {
            for expect in [Expect::Text(text.clone()), Expect::Bytes(text.bytes().map(|b| (b, 0xff)).collect())] {
                let m = matcher(&expect);
                let early = m.judge(&body.as_bytes()[..cut.min(body.len())], false);
                let last = m.judge(body.as_bytes(), true);
                prop_assert!(early.is_none() || early == last);
            }
        }

        #[test]
        fn pieces_are_judged_as_the_whole(text in "[ab]{1,3}", pieces in proptest::collection::vec("[ab]{0,4}", 0..6)) {
            let m = matcher(&Expect::Text(text.clone()));
            let mut seen = Vec::new();
            let mut verdict = None;
            for piece in &pieces {
                seen.extend_from_slice(piece.as_bytes());
                verdict = verdict.or(m.judge_piece(&seen, piece.len()));
            }
            prop_assert_eq!(verdict.or(m.judge(&seen, true)), m.judge(&seen, true));
            prop_assert_eq!(verdict, m.judge(&seen, false));
        }
    }
}
