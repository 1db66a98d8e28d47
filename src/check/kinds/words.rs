//! The words in which a server, a file or a helper speaks of a server: `HAProxy`'s agent-check text. PURE.
//!
//! Words stand in any order on one line, separated by blanks, tabs or commas: `up`, `ready`, `down`,
//! `fail`, `stopped`, `drain`, `maint`, `75%`; after `#` follows a description (HAProxy's configuration
//! manual, `agent-check`), in capitals or not. Each line says the whole: a word that is no longer said no
//! longer counts. A whole number is the weight itself; keepalived's `FILE_CHECK` adds its number to the
//! weight.

use crate::model::{Advice, FailReason};

/// What they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The verdict.
    pub(super) down: Option<FailReason>,
    /// The weight.
    pub(super) advice: Option<Advice>,
    /// The description.
    pub(super) text: Option<String>,
}

/// Reads a line; the first word that is none of them is the error.
pub(super) fn read(line: &str) -> Result<Said, &str> {
    let (words, text) = match line.split_once('#') {
        Some((words, text)) => (words, Some(text.trim())),
        None => (line, None),
    };
    let mut said = Said {
        text: text.filter(|t| !t.is_empty()).map(str::to_owned),
        ..Said::default()
    };
    let mut any = false;
    for word in words
        .split([' ', '\t', ',', '\r'])
        .filter(|w| !w.is_empty())
    {
        any = true;
        match word.to_ascii_lowercase().as_str() {
            "up" | "ready" => {}
            "down" | "fail" | "stopped" => said.down = said.down.or(Some(FailReason::SaidDown)),
            "maint" => said.down = Some(FailReason::SaidMaintenance),
            "drain" => said.advice = Some(Advice::Percent(0)),
            // IPVS counts in thresholds of its own; the server's limit is not ours to set.
            word if word.starts_with("maxconn:") => {}
            _ => {
                let advice = number(word).ok_or(word)?;
                // What drains stays so, wherever it stands in the line.
                said.advice = Some(said.advice.map_or(advice, |a| a.min_with(advice)));
            }
        }
    }
    if any { Ok(said) } else { Err(line) }
}

fn number(word: &str) -> Option<Advice> {
    match word.strip_suffix('%') {
        Some(percent) => percent.parse().ok().map(Advice::Percent),
        None => word.parse().ok().map(Advice::Weight),
    }
}

impl Advice {
    /// The one that drains, if one does; else the later.
    fn min_with(self, later: Self) -> Self {
        match self {
            Self::Percent(0) | Self::Weight(0) => self,
            Self::Percent(_) | Self::Weight(_) => later,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(down: Option<FailReason>, advice: Option<Advice>) -> Said {
        Said {
            down,
            advice,
            text: None,
        }
    }

    #[test]
    fn the_words_of_haproxys_manual() {
        let (down, maint) = (FailReason::SaidDown, FailReason::SaidMaintenance);
        for (line, expected) in [
            ("up", said(None, None)),
            ("ready 75%", said(None, Some(Advice::Percent(75)))),
            ("75%,up\r", said(None, Some(Advice::Percent(75)))),
            ("UP Ready", said(None, None)),
            ("drain", said(None, Some(Advice::Percent(0)))),
            ("drain 50%", said(None, Some(Advice::Percent(0)))),
            ("12", said(None, Some(Advice::Weight(12)))),
            ("0", said(None, Some(Advice::Weight(0)))),
            ("down", said(Some(down), None)),
            ("fail", said(Some(down), None)),
            ("stopped", said(Some(down), None)),
            ("maint down", said(Some(maint), None)),
            ("up maxconn:30", said(None, None)),
        ] {
            assert_eq!(read(line), Ok(expected), "{line:?}");
        }
        let full = read("down # disk full").unwrap();
        assert_eq!(full.down, Some(down));
        assert_eq!(full.text.as_deref(), Some("disk full"));
    }

    #[test]
    fn what_is_none_of_them_is_named() {
        assert_eq!(read("up sideways"), Err("sideways"));
        assert_eq!(read("-5"), Err("-5"));
        assert_eq!(read("70000"), Err("70000"));
        assert_eq!(read("  "), Err("  "));
        assert_eq!(read("# only talk"), Err("# only talk"));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "\\PC{0,40}") {
            drop(read(&line));
        }
    }
}
