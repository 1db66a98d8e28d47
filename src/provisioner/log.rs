//! What a step printed, read in parts. PURE.
//!
//! An offset counts the bytes that were printed, those that were left out too: it stays right while
//! the middle of a long output goes away.

/// How a line begins and ends that says how much was left out.
const LEFT_OUT: (&str, &str) = ("\n[... ", " bytes left out ...]\n");

/// The part of `text` from the offset `after` on, and the offset of its end.
#[must_use]
pub fn since(text: &str, after: u64) -> (String, u64) {
    let Some((head, lost, tail)) = parts(text) else {
        return (rest(text, after).to_owned(), length(text));
    };
    let tail_at = length(head).saturating_add(lost);
    let next = tail_at.saturating_add(length(tail));
    let missed = |bytes| format!("{}{bytes}{}", LEFT_OUT.0, LEFT_OUT.1);
    let part = if after >= tail_at {
        rest(tail, after - tail_at).to_owned()
    } else if after > length(head) {
        missed(tail_at - after) + tail
    } else {
        rest(head, after).to_owned() + &missed(lost) + tail
    };
    (part, next)
}

/// Beginning, number of bytes left out, end.
fn parts(text: &str) -> Option<(&str, u64, &str)> {
    let (head, after) = text.split_once(LEFT_OUT.0)?;
    let (count, tail) = after.split_once(LEFT_OUT.1)?;
    Some((head, count.parse().ok()?, tail))
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn rest(text: &str, from: u64) -> &str {
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(text.len());
    text.get(text.ceil_char_boundary(from)..)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_left_out_is_said_once() {
        let text = "abc\n[... 10 bytes left out ...]\nxyz";
        assert_eq!(since(text, 0), (text.to_owned(), 16));
        assert_eq!(since(text, 3), (text[3..].to_owned(), 16));
        assert_eq!(
            since(text, 5),
            ("\n[... 8 bytes left out ...]\nxyz".to_owned(), 16)
        );
        assert_eq!(since(text, 14), ("yz".to_owned(), 16));
        assert_eq!(since(text, 99), (String::new(), 16));
    }

    proptest! {
        /// Whoever asks for what comes after the last part has read all in the end, once.
        #[test]
        fn parts_make_the_whole(lines in proptest::collection::vec("[a-zé]{0,9}\n", 0..20)) {
            let (mut read, mut at, mut text) = (String::new(), 0, String::new());
            for line in &lines {
                text.push_str(line);
                let (part, next) = since(&text, at);
                read.push_str(&part);
                at = next;
            }
            prop_assert_eq!(read, text);
        }
    }
}
