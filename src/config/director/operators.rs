//! `[operators]`: which groups may ask the director, and which may order.

use std::{collections::BTreeSet, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor, value},
};
use toml::Spanned;

use super::Reader;
use crate::model::{GroupName, Operators};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOperators {
    read: Option<Spanned<RawGroups>>,
    change: Option<Spanned<RawGroups>>,
}

/// One group, or a list of them.
pub(super) enum RawGroups {
    One(RawGroup),
    Many(Vec<Spanned<RawGroup>>),
}

/// A name or a number.
pub(super) enum RawGroup {
    Name(String),
    Id(i64),
}

struct Of<T>(PhantomData<T>);

const EXPECTED: &str = "a group's name or number, or a list of them";

impl<'de> Visitor<'de> for Of<RawGroup> {
    type Value = RawGroup;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<RawGroup, E> {
        Ok(RawGroup::Id(n))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<RawGroup, E> {
        Ok(RawGroup::Name(name.to_owned()))
    }
}

impl<'de> Deserialize<'de> for RawGroup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Of::<Self>(PhantomData))
    }
}

impl<'de> Visitor<'de> for Of<RawGroups> {
    type Value = RawGroups;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<RawGroups, E> {
        Ok(RawGroups::One(RawGroup::Id(n)))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<RawGroups, E> {
        Ok(RawGroups::One(RawGroup::Name(name.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RawGroups, A::Error> {
        let many = Vec::deserialize(value::SeqAccessDeserializer::new(list))?;
        Ok(RawGroups::Many(many))
    }
}

impl<'de> Deserialize<'de> for RawGroups {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Of::<Self>(PhantomData))
    }
}

impl RawGroup {
    fn read(&self) -> Result<GroupName, String> {
        match self {
            // The highest number means 'no change' to chown(2), and is no group's.
            Self::Id(n) => u32::try_from(*n)
                .ok()
                .filter(|gid| *gid != u32::MAX)
                .map(GroupName::Id)
                .ok_or_else(|| format!("a group's number is 0 to 4294967294, not {n}")),
            Self::Name(name) => {
                let bad = |c: char| c.is_whitespace() || c.is_control() || c == ':' || c == ',';
                match name.is_empty() || name.contains(bad) {
                    true => Err(format!(
                        "{name:?} is no name of a group: write one group a string, [\"lvs-read\", \"lvs-admin\"]"
                    )),
                    false => Ok(GroupName::Name(name.clone())),
                }
            }
        }
    }
}

impl Reader {
    pub(super) fn operators(&mut self, raw: &RawOperators) -> Operators {
        Operators {
            read: self.groups(raw.read.as_ref()),
            change: self.groups(raw.change.as_ref()),
        }
    }

    fn groups(&mut self, raw: Option<&Spanned<RawGroups>>) -> BTreeSet<GroupName> {
        let Some(raw) = raw else {
            return BTreeSet::new();
        };
        let each = match raw.get_ref() {
            RawGroups::One(one) => vec![(one.read(), raw.span())],
            RawGroups::Many(many) => {
                let many = many.iter();
                many.map(|g| (g.get_ref().read(), g.span())).collect()
            }
        };
        let mut groups = BTreeSet::new();
        for (group, span) in each {
            match group {
                Ok(group) => drop(groups.insert(group)),
                Err(why) => self.bad.push(span, why),
            }
        }
        groups
    }
}
