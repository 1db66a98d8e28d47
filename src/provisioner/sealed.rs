//! Secrets in steps. PURE.
//!
//! A step that is journaled holds names: in a file's text the call of the template, `{{ secret("x") }}`,
//! as it stands there, and of a script's environment the name alone. Values come in when the step is
//! ordered, and are covered in all that the spare says.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::order::Step;

/// A secret that a step uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Its name.
    pub name: String,
    /// Says whether it is still the same: see [`digest`].
    pub digest: String,
}

impl Sealed {
    /// A secret of which only the name is known yet.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            digest: String::new(),
        }
    }
}

/// Values by name.
pub type Values = BTreeMap<String, String>;

/// What says whether a secret is still the same, by name: see [`digest`].
pub type Digests = BTreeMap<String, String>;

/// What must not be seen in what a spare says. Shows nothing of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Masks(Vec<String>);

impl fmt::Debug for Masks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Masks({})", self.0.len())
    }
}

/// A secret is not shorter: every word would be covered.
pub const SHORTEST: usize = 4;
/// Of a secret of many lines, a key, each line that is not shorter is covered by itself.
const LINE: usize = 8;
const COVER: &str = "********";

/// What a text holds in a secret's place until the step is ordered.
#[must_use]
pub fn placeholder(name: &str) -> String {
    format!("{{{{ secret({name:?}) }}}}")
}

/// Sixteen bits of a secret's SHA-256: enough to see that it was changed, and of no use to find it
/// out: of a million guesses some fifteen look right, whatever machine guesses.
#[must_use]
pub fn digest(name: &str, value: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(b"understudy secret ");
    hash.update(name);
    hash.update(b"\0");
    hash.update(value);
    hex(&hash.finalize()).chars().take(4).collect()
}

/// The same of all of them.
#[must_use]
pub fn digests(values: &Values) -> Digests {
    let of = |(name, value): (&String, &String)| (name.clone(), digest(name, value));
    values.iter().map(of).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Step {
    /// The secrets that it uses.
    #[must_use]
    pub fn secrets(&self) -> Vec<&Sealed> {
        match self {
            Self::Install { secrets, .. } => secrets.iter().collect(),
            Self::Configure { files, .. } | Self::Test { sealed: files, .. } => {
                files.iter().flat_map(|f| &f.secrets).collect()
            }
            Self::Look
            | Self::OsInstall { .. }
            | Self::Fence
            | Self::Os { .. }
            | Self::Clean { .. } => Vec::new(),
        }
    }

    fn secrets_mut(&mut self) -> Vec<&mut Sealed> {
        match self {
            Self::Install { secrets, .. } => secrets.iter_mut().collect(),
            Self::Configure { files, .. } | Self::Test { sealed: files, .. } => {
                files.iter_mut().flat_map(|f| &mut f.secrets).collect()
            }
            Self::Look
            | Self::OsInstall { .. }
            | Self::Fence
            | Self::Os { .. }
            | Self::Clean { .. } => Vec::new(),
        }
    }

    /// Writes down what its secrets are now, as far as they are known.
    pub fn seal(&mut self, known: &Digests) {
        for secret in self.secrets_mut() {
            if let Some(digest) = known.get(&secret.name) {
                secret.digest.clone_from(digest);
            }
        }
    }

    /// Forgets it: the same step whatever its secrets were.
    pub fn unseal(&mut self) {
        for secret in self.secrets_mut() {
            secret.digest.clear();
        }
    }

    /// Puts values in the places of names.
    #[must_use]
    pub fn reveal(mut self, values: &Values) -> Self {
        match &mut self {
            Self::Install {
                variables, secrets, ..
            } => {
                for secret in secrets {
                    if let Some(value) = values.get(&secret.name) {
                        variables.insert(secret.name.clone(), value.clone());
                    }
                }
            }
            Self::Configure { files, .. } => files.iter_mut().for_each(|f| f.reveal(values)),
            Self::Test {
                digests, sealed, ..
            } => {
                for file in sealed {
                    file.reveal(values);
                    for (_, digest) in digests.iter_mut().filter(|(path, _)| *path == file.path) {
                        digest.clone_from(&file.sha256);
                    }
                }
            }
            Self::Look
            | Self::OsInstall { .. }
            | Self::Fence
            | Self::Os { .. }
            | Self::Clean { .. } => {}
        }
        self
    }
}

impl super::order::RenderedFile {
    /// Puts values in the places of names.
    pub fn reveal(&mut self, values: &Values) {
        if self.secrets.is_empty() {
            return;
        }
        let mut text = String::from_utf8_lossy(&self.body).into_owned();
        for secret in &self.secrets {
            if let Some(value) = values.get(&secret.name) {
                text = text.replace(&placeholder(&secret.name), value);
            }
        }
        self.body = text.into_bytes();
        self.sha256 = hex(&Sha256::digest(&self.body));
    }
}

impl Masks {
    /// Covers these.
    #[must_use]
    pub fn of(values: &Values) -> Self {
        let mut all: Vec<String> = Vec::new();
        for value in values.values() {
            all.push(value.clone());
            let lines = value.lines().filter(|l| l.len() >= LINE);
            all.extend(lines.map(str::to_owned));
        }
        // What contains another one goes first.
        all.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        all.dedup();
        Self(all)
    }

    /// Covers all that must not be seen, also what is left of it where the middle of an output was
    /// left out.
    #[must_use]
    pub fn cover(&self, text: String) -> String {
        if self.0.is_empty() {
            return text;
        }
        let mut text = text;
        for value in &self.0 {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), COVER);
            }
        }
        let Some((head, gap)) = text.split_once("\n[... ") else {
            return text;
        };
        let Some((count, tail)) = gap.split_once(" bytes left out ...]\n") else {
            return text;
        };
        let (head, mut tail) = (self.cover_end(head), tail.to_owned());
        for value in &self.0 {
            for end in parts(value).map(|(_begin, end)| end) {
                if end.len() >= SHORTEST
                    && let Some(rest) = tail.strip_prefix(end)
                {
                    tail = format!("{COVER}{rest}");
                }
            }
        }
        format!("{head}\n[... {count} bytes left out ...]\n{tail}")
    }

    /// Covers all that must not be seen in a text of which the end was cut off.
    #[must_use]
    pub fn cover_cut(&self, text: String) -> String {
        if self.0.is_empty() {
            return text;
        }
        let text = self.cover(text);
        // What is left of a character that was cut.
        self.cover_end(text.trim_end_matches('\u{fffd}'))
    }

    /// Covers the beginning of a secret at the end of a text.
    fn cover_end(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.0 {
            for (begin, _end) in parts(value) {
                if let Some(rest) = text.strip_suffix(begin) {
                    text = format!("{rest}{COVER}");
                }
            }
        }
        text
    }
}

/// A secret cut in two, the longest beginning first.
fn parts(value: &str) -> impl Iterator<Item = (&str, &str)> {
    let cuts = (SHORTEST..value.len()).rev();
    cuts.filter_map(|at| value.split_at_checked(at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(secret: &str) -> Values {
        Values::from([("x".to_owned(), secret.to_owned())])
    }

    #[test]
    fn a_digest_says_little() {
        assert_eq!(digest("x", "secret").len(), 4);
        assert_ne!(digest("x", "secret"), digest("y", "secret"));
        assert_ne!(digest("x", "secret"), digest("x", "Secret"));
    }

    #[test]
    fn what_is_cut_in_two_is_covered_too() {
        let masks = Masks::of(&values("opensesame"));
        let text = "a\nopense\n[... 9 bytes left out ...]\nsesame\nb".to_owned();
        assert_eq!(
            masks.cover(text),
            "a\n********\n[... 9 bytes left out ...]\n********\nb"
        );
        assert_eq!(format!("{masks:?}"), "Masks(1)");
    }

    #[test]
    fn what_is_cut_off_at_the_end_is_covered_too() {
        let masks = Masks::of(&values("opensésame"));
        for cut in ["a opens", "a opens\u{fffd}", "a opensésam"] {
            assert_eq!(masks.cover_cut(cut.to_owned()), "a ********", "{cut}");
        }
        assert_eq!(masks.cover_cut("a ope".to_owned()), "a ope");
        assert_eq!(
            Masks::default().cover_cut("a\u{fffd}".to_owned()),
            "a\u{fffd}"
        );
    }

    #[test]
    fn each_line_of_a_key_is_covered() {
        let masks = Masks::of(&values("first-line-of-it\nsecond-line-of-it\nend"));
        assert_eq!(
            masks.cover("> second-line-of-it <".to_owned()),
            "> ******** <"
        );
    }

    proptest! {
        #[test]
        fn no_secret_is_seen(secret in "[a-z]{4,12}", before in "[A-Z \n]{0,20}", after in "[A-Z \n]{0,20}") {
            let masks = Masks::of(&values(&secret));
            let covered = masks.cover(format!("{before}{secret}{after}{secret}"));
            prop_assert!(!covered.contains(&secret));
        }
    }
}
