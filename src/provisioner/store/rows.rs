//! Columns to values: a value that this version does not write is an error that names it.

use std::str::FromStr;

use sqlx::{Row, any::AnyRow};

use super::{StoreError, failed};

/// Typed access to a row's columns.
pub(super) trait Columns {
    fn text(&self, column: &'static str) -> Result<String, StoreError>;
    fn text_opt(&self, column: &'static str) -> Result<Option<String>, StoreError>;
    fn bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, StoreError>;
    fn number(&self, column: &'static str) -> Result<i64, StoreError>;
    fn number_opt(&self, column: &'static str) -> Result<Option<i64>, StoreError>;

    /// A text that must parse.
    fn parsed<T: FromStr>(&self, column: &'static str) -> Result<T, StoreError> {
        let text = self.text(column)?;
        text.parse().map_err(|_unread| corrupt(column, text))
    }

    /// A text that must parse, where there is one.
    fn parsed_opt<T: FromStr>(&self, column: &'static str) -> Result<Option<T>, StoreError> {
        self.text_opt(column)?
            .map(|text| text.parse().map_err(|_unread| corrupt(column, text)))
            .transpose()
    }

    /// A word of a closed set.
    fn word<T>(
        &self,
        column: &'static str,
        from: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, StoreError> {
        let text = self.text(column)?;
        from(&text).ok_or_else(|| corrupt(column, text))
    }

    /// JSON.
    fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|e| corrupt(column, e.to_string()))
    }

    /// JSON, where there is some.
    fn json_opt<T: serde::de::DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let text = self.text_opt(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|e| corrupt(column, e.to_string())))
            .transpose()
    }

    /// A number that is never negative.
    fn count(&self, column: &'static str) -> Result<u64, StoreError> {
        let n = self.number(column)?;
        u64::try_from(n).map_err(|_negative| corrupt(column, n.to_string()))
    }
}

impl Columns for AnyRow {
    fn text(&self, column: &'static str) -> Result<String, StoreError> {
        self.try_get(column).map_err(failed("read a column"))
    }

    fn text_opt(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        self.try_get(column).map_err(failed("read a column"))
    }

    fn bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        self.try_get(column).map_err(failed("read a column"))
    }

    fn number(&self, column: &'static str) -> Result<i64, StoreError> {
        self.try_get(column).map_err(failed("read a column"))
    }

    fn number_opt(&self, column: &'static str) -> Result<Option<i64>, StoreError> {
        self.try_get(column).map_err(failed("read a column"))
    }
}

pub(super) fn corrupt(what: &'static str, found: impl Into<String>) -> StoreError {
    StoreError::Corrupt {
        what,
        found: found.into(),
    }
}

/// JSON of a value that always has one.
pub(super) fn json<T: serde::Serialize>(
    what: &'static str,
    value: &T,
) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| corrupt(what, e.to_string()))
}

/// A count as the store keeps it.
pub(super) fn stored(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
