//! TOML tables read key by key, so that every mistake of a file is found and not only the first.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::config::Diagnostics;

/// No pool has more servers.
const MOST: u32 = 10_000;

/// One `[[section]]` of a file.
#[derive(Debug)]
pub(super) struct Entry<'s> {
    span: Range<usize>,
    table: DeTable<'s>,
}

/// The sections of a file.
#[derive(Debug)]
pub(super) struct Sections<'s> {
    pub(super) entries: Vec<Entry<'s>>,
    /// Whether the file is TOML: if not, that `entries` is empty says nothing.
    pub(super) whole: bool,
}

/// Reads the `[[section]]`s of a file that may hold these `keys`, noting everything else.
pub(super) fn sections<'s>(
    d: &mut Diagnostics,
    source: &'s str,
    section: &str,
    keys: &[&str],
) -> Sections<'s> {
    let [only] = several(d, source, [(section, keys)]);
    only
}

/// The same of a file with several kinds of sections.
pub(super) fn several<'s, const N: usize>(
    d: &mut Diagnostics,
    source: &'s str,
    kinds: [(&str, &[&str]); N],
) -> [Sections<'s>; N] {
    let (document, errors) = DeTable::parse_recoverable(source);
    let whole = errors.is_empty();
    for e in errors {
        d.push(e.span().unwrap_or(0..0), e.message());
    }
    let mut found = kinds.map(|_| Sections {
        entries: Vec::new(),
        whole,
    });
    if !whole {
        return found;
    }
    for (key, value) in document.into_inner() {
        let mut both = kinds.iter().zip(&mut found);
        let Some(((section, keys), into)) = both.find(|((s, _), _)| key.get_ref() == s) else {
            let there = kinds
                .map(|(section, _)| format!("[[{section}]]"))
                .join(" and ");
            let message = format!("unknown key `{key}`: this file holds {there} only");
            d.push(key.span(), message);
            continue;
        };
        let span = value.span();
        let DeValue::Array(array) = value.into_inner() else {
            d.push(span, format!("write [[{section}]], with two brackets"));
            continue;
        };
        for item in array {
            let span = item.span();
            match item.into_inner() {
                DeValue::Table(table) => into.entries.push(Entry { span, table }),
                _ => d.push(span, format!("a [[{section}]] is a table")),
            }
        }
        for entry in &into.entries {
            entry.only(d, &format!("[[{section}]]"), keys);
        }
    }
    found
}

impl<'s> Entry<'s> {
    /// Where it begins.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    fn get(&self, key: &str) -> Option<&Spanned<DeValue<'s>>> {
        self.table.get(key)
    }

    /// Whether it has this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Notes keys that it may not have.
    pub(super) fn only(&self, d: &mut Diagnostics, what: &str, keys: &[&str]) {
        for key in self.table.keys() {
            let name = key.get_ref();
            if !keys.iter().any(|k| k == name) {
                let message = format!("unknown key `{name}`: {what} has {}", keys.join(", "));
                d.push(key.span(), message);
            }
        }
    }

    /// A table that may be there; `hint` shows one.
    pub(super) fn table(&self, d: &mut Diagnostics, key: &str, hint: &str) -> Option<Self> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Self {
                span: value.span(),
                table: table.clone(),
            }),
            _ => {
                d.push(value.span(), format!("`{key}` is a table, {hint}"));
                None
            }
        }
    }

    /// A word of a closed set that may be there.
    pub(super) fn word<T: Copy>(
        &self,
        d: &mut Diagnostics,
        key: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let found = self.text(d, key)?;
        let known = words.iter().find(|(word, _)| word == found.get_ref());
        if known.is_none() {
            let there: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            d.push(found.span(), format!("`{key}` is {}", there.join(" or ")));
        }
        known.map(|(_, value)| *value)
    }

    /// A text that must be there.
    pub(super) fn required(&self, d: &mut Diagnostics, key: &str) -> Option<Spanned<String>> {
        if self.get(key).is_none() {
            d.push(self.span(), format!("`{key}` is missing here"));
        }
        self.text(d, key)
    }

    /// A text that may be there.
    pub(super) fn text(&self, d: &mut Diagnostics, key: &str) -> Option<Spanned<String>> {
        text(d, key, self.get(key)?)
    }

    /// A list of texts with something in it; `hint` says what.
    pub(super) fn list(&self, d: &mut Diagnostics, key: &str, hint: &str) -> Vec<Spanned<String>> {
        let empty = match self.get(key).map(Spanned::get_ref) {
            None => true,
            Some(DeValue::Array(array)) => array.is_empty(),
            Some(_) => false,
        };
        if empty {
            d.push(self.span(), format!("`{key}` is missing here: {hint}"));
        }
        self.texts(d, key)
    }

    /// A list of texts; empty where it is not there or no list.
    pub(super) fn texts(&self, d: &mut Diagnostics, key: &str) -> Vec<Spanned<String>> {
        match self.get(key).map(|v| (v.get_ref(), v.span())) {
            None => Vec::new(),
            Some((DeValue::Array(array), _)) => {
                array.iter().filter_map(|v| text(d, key, v)).collect()
            }
            Some((_, span)) => {
                d.push(span, format!("`{key}` is a list, as in {key} = [\"…\"]"));
                Vec::new()
            }
        }
    }

    /// Words by name, as in `{ rack = "r1" }`; empty where there are none.
    pub(super) fn words(&self, d: &mut Diagnostics, key: &str) -> BTreeMap<String, String> {
        match self.get(key).map(|v| (v.get_ref(), v.span())) {
            None => BTreeMap::new(),
            Some((DeValue::Table(table), _)) => {
                let word = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                    let name: &Cow<'_, str> = name.get_ref();
                    let value = text(d, &format!("{key}.{name}"), value)?;
                    Some((name.clone().into_owned(), value.into_inner()))
                };
                table.iter().filter_map(word).collect()
            }
            Some((_, span)) => {
                d.push(
                    span,
                    format!("`{key}` is a table, as in {key} = {{ rack = \"r1\" }}"),
                );
                BTreeMap::new()
            }
        }
    }

    /// A number of servers.
    pub(super) fn count(&self, d: &mut Diagnostics, key: &str, default: u32) -> u32 {
        let Some(value) = self.get(key) else {
            return default;
        };
        let count = match value.get_ref() {
            DeValue::Integer(n) => u32::from_str_radix(n.as_str(), n.radix()).ok(),
            _ => None,
        };
        if count.is_none_or(|n| n > MOST) {
            d.push(
                value.span(),
                format!("`{key}` is a number of servers, 0 to {MOST}"),
            );
        }
        count.unwrap_or(default)
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, d: &mut Diagnostics, key: &str, default: bool) -> bool {
        match self.get(key).map(|v| (v.get_ref(), v.span())) {
            None => default,
            Some((DeValue::Boolean(b), _)) => *b,
            Some((_, span)) => {
                d.push(span, format!("`{key}` is true or false"));
                default
            }
        }
    }

    /// A TCP port.
    pub(super) fn port(&self, d: &mut Diagnostics, key: &str, default: u16) -> u16 {
        let Some(value) = self.get(key) else {
            return default;
        };
        let port = match value.get_ref() {
            DeValue::Integer(n) => u16::from_str_radix(n.as_str(), n.radix()).ok(),
            _ => None,
        };
        if port.is_none_or(|p| p == 0) {
            d.push(value.span(), format!("`{key}` is a number, 1 to 65535"));
        }
        port.unwrap_or(default)
    }
}

fn text(d: &mut Diagnostics, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Spanned<String>> {
    match value.get_ref() {
        DeValue::String(s) if s.contains('\0') => {
            d.push(
                value.span(),
                format!("`{key}` contains a NUL byte: write a text without it"),
            );
            None
        }
        DeValue::String(s) => Some(Spanned::new(value.span(), s.clone().into_owned())),
        _ => {
            d.push(value.span(), format!("`{key}` is a text, in quotes"));
            None
        }
    }
}
