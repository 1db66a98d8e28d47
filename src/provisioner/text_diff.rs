//! What differs between two texts, line by line. PURE.

/// Longer than this in the part that differs, a text is shown whole: comparing costs the product.
const LINES: usize = 2000;

/// Lines that go begin with `-`, lines that come with `+`, others are left out. Empty where the texts
/// are equal.
#[must_use]
pub fn diff(old: &str, new: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let same = |(a, b): &(&&str, &&str)| a == b;
    let begin = old.iter().zip(&new).take_while(same).count();
    let (old, new) = (old.split_at(begin).1, new.split_at(begin).1);
    let end = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(same)
        .count();
    let (old, new) = (
        old.split_at(old.len() - end).0,
        new.split_at(new.len() - end).0,
    );
    let kept = if old.len() > LINES || new.len() > LINES {
        Vec::new()
    } else {
        common(old, new)
    };
    let mut text = String::new();
    let (mut at, mut to) = (0, 0);
    let ends = std::iter::once((old.len(), new.len()));
    for (a, b) in kept.into_iter().chain(ends) {
        for (sign, lines) in [('-', old.get(at..a)), ('+', new.get(to..b))] {
            for line in lines.unwrap_or_default() {
                text.push(sign);
                text.push_str(line);
                text.push('\n');
            }
        }
        (at, to) = (a + 1, b + 1);
    }
    text
}

/// The longest common subsequence: positions in both.
fn common(old: &[&str], new: &[&str]) -> Vec<(usize, usize)> {
    let width = new.len() + 1;
    let mut longest = vec![0_u32; (old.len() + 1) * width];
    let at = |table: &[u32], a: usize, b: usize| table.get(a * width + b).copied().unwrap_or(0);
    for (a, x) in old.iter().enumerate().rev() {
        for (b, y) in new.iter().enumerate().rev() {
            let n = if x == y {
                at(&longest, a + 1, b + 1) + 1
            } else {
                at(&longest, a + 1, b).max(at(&longest, a, b + 1))
            };
            if let Some(cell) = longest.get_mut(a * width + b) {
                *cell = n;
            }
        }
    }
    let (mut a, mut b, mut pairs) = (0, 0, Vec::new());
    while let (Some(x), Some(y)) = (old.get(a), new.get(b)) {
        if x == y {
            pairs.push((a, b));
            (a, b) = (a + 1, b + 1);
        } else if at(&longest, a + 1, b) >= at(&longest, a, b + 1) {
            a += 1;
        } else {
            b += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_differs_is_shown() {
        assert_eq!(diff("a\nb\nc\nd\n", "a\nx\nc\nd\ne\n"), "-b\n+x\n+e\n");
        assert_eq!(diff("", "a\n"), "+a\n");
        assert_eq!(diff("a\n", "a\n"), "");
    }

    proptest! {
        /// What goes and what stays is the old text, what stays and what comes the new one.
        #[test]
        fn nothing_is_lost(old in "([ab]\n){0,12}", new in "([ab]\n){0,12}") {
            let shown = diff(&old, &new);
            let count = |sign| shown.lines().filter(|l| l.starts_with(sign)).count();
            let stays = old.lines().count() - count('-');
            prop_assert_eq!(stays, new.lines().count() - count('+'));
            prop_assert_eq!(shown.is_empty(), old == new);
        }
    }
}
