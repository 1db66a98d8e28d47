//! Mistakes in a file, each at its place.

use std::{collections::BTreeSet, fmt, ops::Range, path::Path};

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Diagnostic {
    span: Range<usize>,
    message: String,
}

/// All mistakes in one file, each printed as `path:line:column: message`, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    path: String,
    source: String,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// None yet, for the file at `path` with the text `source`.
    #[must_use]
    pub fn new(path: &Path, source: &str) -> Self {
        Self {
            path: path.display().to_string(),
            source: source.to_owned(),
            list: Vec::new(),
        }
    }

    /// Notes a mistake at `span` (bytes of the source).
    pub fn push(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.list.push(Diagnostic {
            span,
            message: message.into(),
        });
    }

    /// How many there are so far.
    #[must_use]
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// Forgets those from the `known`th on that are at a place of one of those before, from the `first`th on.
    pub(super) fn forget_repeated(&mut self, first: usize, known: usize) {
        let new = self.list.split_off(known.min(self.list.len()));
        let before = self.list.iter().skip(first);
        let before: BTreeSet<usize> = before.map(|d| d.span.start).collect();
        let fresh = new.into_iter();
        self.list
            .extend(fresh.filter(|d| !before.contains(&d.span.start)));
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// `Ok(value)` where there is no mistake.
    ///
    /// # Errors
    ///
    /// These mistakes, where there is one.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.list.is_empty() {
            Ok(value)
        } else {
            Err(self.sorted())
        }
    }

    /// The same mistakes in the file's order.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.list.sort_by_key(|d| d.span.start);
        self
    }

    /// The line and column (both from 1, the column in characters) of a byte of the source.
    #[must_use]
    pub fn position(&self, at: usize) -> (usize, usize) {
        let before = self.source.get(..at).unwrap_or(&self.source);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }

    /// Reads TOML into `T`, or the one mistake that stopped it.
    ///
    /// # Errors
    ///
    /// What the parser says, at its place.
    pub fn parse<T: serde::de::DeserializeOwned>(path: &Path, source: &str) -> Result<T, Self> {
        toml::from_str(source).map_err(|e| {
            let mut d = Self::new(path, source);
            d.push(e.span().unwrap_or(0..0), e.message());
            d
        })
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.list.iter().enumerate() {
            let (line, column) = self.position(d.span.start);
            let nl = if i == 0 { "" } else { "\n" };
            write!(f, "{nl}{}:{line}:{column}: {}", self.path, d.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
