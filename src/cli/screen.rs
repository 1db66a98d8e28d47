//! What is shown to people: tables that fit, colours where they are wanted, times in words.

use std::io::{self, IsTerminal};

/// What a piece of text says of how things stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
    Warn,
    /// Of less weight than the rest.
    Dim,
    Title,
}

/// Where text goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Screen {
    /// Columns, where it is a terminal.
    pub(super) width: Option<usize>,
    /// Lines, where it is a terminal.
    pub(super) height: Option<usize>,
    /// Whether in colours.
    pub(super) colour: bool,
    /// Whether health has a sign beside its word.
    pub(super) signs: bool,
}

impl Screen {
    /// Plain text of any width: a file, a pipe.
    pub(super) const PLAIN: Self = Self {
        width: None,
        height: None,
        colour: false,
        signs: false,
    };

    /// Standard output. Colours are for terminals, and not where `NO_COLOR` is set (no-color.org) or the terminal is
    /// dumb; signs where the locale has them.
    pub(super) fn stdout() -> Self {
        let out = io::stdout();
        if !out.is_terminal() {
            return Self::PLAIN;
        }
        let set = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        let size = rustix::termios::tcgetwinsize(&out).ok();
        let number = |n: u16| Some(usize::from(n)).filter(|n| *n > 0);
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let locale = locale.unwrap_or_default().to_lowercase();
        Self {
            width: size.and_then(|s| number(s.ws_col)),
            height: size.and_then(|s| number(s.ws_row)),
            colour: set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb"),
            signs: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// Text in its colour: codes of ECMA-48.
    pub(super) fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Bad => "1;31",
            Tone::Warn => "33",
            Tone::Dim => "2",
            Tone::Title => "1",
        };
        match self.colour && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// Text in lines that fit, each with so many blanks before it. A word that does not fit stands alone.
    pub(super) fn wrapped(&self, indent: usize, text: &str) -> Vec<String> {
        let room = self.width.map(|w| w.saturating_sub(indent).max(20));
        let mut lines = Vec::new();
        let mut line = String::new();
        for word in text.split_whitespace() {
            let fits = room.is_none_or(|room| length(&line) + 1 + length(word) <= room);
            if !line.is_empty() && !fits {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
        let blanks = " ".repeat(indent);
        lines.into_iter().map(|l| format!("{blanks}{l}")).collect()
    }
}

/// One field of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>, tone: Tone) -> Self {
        let text = text.into();
        Self { text, tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Numbers stand at the right.
    pub(super) right: bool,
    /// Of a table that is too wide the columns with the highest number go first; 0 stays.
    pub(super) spare: u8,
}

/// A table whose last column is words: they stand beside the others where there is room, and below otherwise. A
/// column that nobody fills is left out.
pub(super) fn table(screen: &Screen, columns: &[Column], rows: &[Vec<Cell>]) -> String {
    let Some(last) = columns.len().checked_sub(1) else {
        return String::new();
    };
    let cell = |row: &[Cell], n: usize| row.get(n).cloned().unwrap_or_default();
    let width = |n: usize| {
        let title = columns.get(n).map_or(0, |c| length(c.title));
        let cells = rows.iter().map(|row| length(&cell(row, n).text));
        cells.chain([title]).max().unwrap_or(0)
    };
    let filled = |n: &usize| {
        rows.iter()
            .any(|row| !matches!(cell(row, *n).text.as_str(), "" | "-"))
    };
    let spare = |n: usize| columns.get(n).map_or(0, |c| c.spare);
    let mut shown: Vec<usize> = (0..last).filter(|n| *n == 0 || filled(n)).collect();
    // Two blanks before the table, and two between its columns.
    let total = |shown: &[usize]| shown.iter().map(|n| width(*n) + 2).sum::<usize>();
    while screen.width.is_some_and(|w| total(&shown) > w) {
        let Some(least) = shown.iter().copied().max_by_key(|n| spare(*n)) else {
            break;
        };
        if spare(least) == 0 {
            break;
        }
        shown.retain(|n| *n != least);
    }
    let used = total(&shown) + 2;
    let beside = |text: &str| screen.width.is_none_or(|w| used + length(text) <= w);
    let line = |cells: &[Cell], words: Option<&Cell>| {
        let mut text = String::new();
        for (n, cell) in shown.iter().zip(cells) {
            let blanks = " ".repeat(width(*n).saturating_sub(length(&cell.text)));
            let painted = screen.paint(cell.tone, &cell.text);
            let right = columns.get(*n).is_some_and(|c| c.right);
            text.push_str("  ");
            text.push_str(&if right {
                blanks + &painted
            } else {
                painted + &blanks
            });
        }
        if let Some(words) = words.filter(|words| !words.text.is_empty()) {
            text.push_str("  ");
            text.push_str(&screen.paint(words.tone, &words.text));
        }
        let end = text.trim_end().len();
        text.truncate(end);
        text + "\n"
    };
    let title = |n: usize| Cell::new(columns.get(n).map_or("", |c| c.title), Tone::Dim);
    let titles: Vec<_> = shown.iter().map(|n| title(*n)).collect();
    let told = filled(&last) && beside(&title(last).text);
    let mut text = line(&titles, told.then(|| title(last)).as_ref());
    for row in rows {
        let cells: Vec<_> = shown.iter().map(|n| cell(row, *n)).collect();
        let words = cell(row, last);
        let fits = beside(&words.text);
        text.push_str(&line(&cells, fits.then_some(&words)));
        if !fits {
            for line in screen.wrapped(6, &words.text) {
                text.push_str(&screen.paint(words.tone, &line));
                text.push('\n');
            }
        }
    }
    text
}

/// Columns that a text takes on a terminal: all of ours are one wide.
fn length(text: &str) -> usize {
    text.chars().count()
}

/// A time in at most two units: `12s`, `3m 12s`, `5h 3m`, `3d 4h`.
pub(super) fn human(seconds: u64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (d, h, m) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, m) => format!("{m}m {}s", seconds % 60),
        (0, h, m) => format!("{h}h {}m", m % 60),
        (d, h, _) => format!("{d}d {}h", h % 24),
    }
}

/// A number and its thing, in the singular or the plural.
pub(super) fn count(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] = [
        Column {
            title: "SERVER",
            right: false,
            spare: 0,
        },
        Column {
            title: "WEIGHT",
            right: true,
            spare: 1,
        },
        Column {
            title: "KIND",
            right: false,
            spare: 2,
        },
        Column {
            title: "WHY",
            right: false,
            spare: 0,
        },
    ];

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec!["10.0.0.1:80".into(), "5".into(), "sorry".into(), "".into()],
            vec![
                "10.0.0.22:80".into(),
                Cell::new("100", Tone::Bad),
                "-".into(),
                "it fails, connection refused".into(),
            ],
        ]
    }

    fn screen(width: usize) -> Screen {
        Screen {
            width: Some(width),
            ..Screen::PLAIN
        }
    }

    #[test]
    fn columns_are_aligned_and_words_stand_beside() {
        assert_eq!(
            table(&Screen::PLAIN, &COLUMNS, &rows()),
            "  SERVER        WEIGHT  KIND   WHY\n  10.0.0.1:80        5  sorry\n  10.0.0.22:80     100  -      it fails, connection refused\n"
        );
    }

    #[test]
    fn on_a_narrow_terminal_words_go_below_and_columns_go() {
        let text = table(&screen(40), &COLUMNS, &rows());
        assert_eq!(
            text,
            "  SERVER        WEIGHT  KIND   WHY\n  10.0.0.1:80        5  sorry\n  10.0.0.22:80     100  -\n      it fails, connection refused\n"
        );
        assert!(text.lines().all(|l| length(l) <= 40));
        let text = table(&screen(24), &COLUMNS, &rows());
        assert!(!text.contains("KIND") && text.contains("WEIGHT"), "{text}");
        assert!(
            text.contains("      it fails,\n      connection refused\n")
                || text.contains("      it fails, connection\n      refused\n"),
            "{text}"
        );
        let text = table(&screen(10), &COLUMNS, &rows());
        assert!(
            text.contains("10.0.0.22:80") && !text.contains("WEIGHT"),
            "{text}"
        );
    }

    #[test]
    fn a_column_that_nobody_fills_is_left_out() {
        let rows = vec![vec!["a".into(), "-".into(), "".into(), "".into()]];
        assert_eq!(table(&Screen::PLAIN, &COLUMNS, &rows), "  SERVER\n  a\n");
    }

    #[test]
    fn colours_take_no_room() {
        let colours = Screen {
            colour: true,
            ..Screen::PLAIN
        };
        let painted = table(&colours, &COLUMNS, &rows());
        assert!(painted.contains("\x1b[1;31m100\x1b[0m"), "{painted:?}");
        let mut bare = painted;
        for code in ["\x1b[1;31m", "\x1b[2m", "\x1b[0m"] {
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, table(&Screen::PLAIN, &COLUMNS, &rows()));
    }

    #[test]
    fn times_are_said_in_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (192, "3m 12s"),
            (18_180, "5h 3m"),
            (273_600, "3d 4h"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }
}
