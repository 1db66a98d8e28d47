//! `[kernel]` of `director.toml`: settings of the kernel, named as sysctl(8) names them.

use std::{collections::BTreeMap, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use toml::Spanned;

use super::Diagnostics;
use crate::model::{Sysctl, SysctlName, SysctlValue};

/// The section as it stands there. A name without quotes is a table in a table to TOML,
/// `net.ipv4.ip_forward = 1`: it is taken for what it looks like.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Raw(Table);

#[derive(Debug, Default)]
struct Table(Vec<(Spanned<String>, Spanned<Value>)>);

#[derive(Debug)]
enum Value {
    Of(SysctlValue),
    Table(Table),
    /// Something else: said at its place together with all other mistakes.
    Unfit,
}

impl Raw {
    /// The settings in the file's order: forwarding resets settings of interfaces, so that the order
    /// in which they are written counts. Each mistake is noted at its place.
    pub(super) fn read(self, bad: &mut Diagnostics) -> Vec<Sysctl> {
        let mut found = Vec::new();
        gather(self.0, "", &mut found, bad);
        found.sort_by_key(|(span, _)| span.start);
        let mut places: BTreeMap<SysctlName, usize> = BTreeMap::new();
        for (span, setting) in &found {
            if let Some(first) = places.insert(setting.name.clone(), span.start) {
                let (line, _) = bad.position(first);
                let name = &setting.name;
                bad.push(
                    span.clone(),
                    format!("{name} stands here a second time, first in line {line}: keep one"),
                );
            }
        }
        found.into_iter().map(|(_, setting)| setting).collect()
    }
}

fn gather(
    table: Table,
    before: &str,
    found: &mut Vec<(Range<usize>, Sysctl)>,
    bad: &mut Diagnostics,
) {
    for (key, value) in table.0 {
        let span = key.span();
        let name = format!("{before}{}", key.get_ref());
        let at = value.span();
        match value.into_inner() {
            Value::Table(inner) => gather(inner, &format!("{name}."), found, bad),
            Value::Unfit => bad.push(
                at,
                format!("{name} is a number, a boolean, or a text such as \"3 50\""),
            ),
            Value::Of(value) if value.as_str().is_empty() => {
                bad.push(at, format!("{name} has no value"));
            }
            Value::Of(value) => match name.parse() {
                Ok(name) => found.push((span, Sysctl { name, value })),
                Err(e) => {
                    let e: crate::model::SysctlNameError = e;
                    bad.push(span, e.to_string());
                }
            },
        }
    }
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(OfTable)
    }
}

struct OfTable;

impl<'de> Visitor<'de> for OfTable {
    type Value = Table;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of kernel settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
        let mut table = Table::default();
        while let Some(entry) = map.next_entry()? {
            table.0.push(entry);
        }
        Ok(table)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(OfValue)
    }
}

struct OfValue;

impl<'de> Visitor<'de> for OfValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a boolean or a text")
    }

    fn visit_bool<E>(self, on: bool) -> Result<Value, E> {
        Ok(Value::Of(on.into()))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Of(n.into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Unfit)
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        // The kernel takes one line.
        Ok(match text.contains(|c: char| c.is_control() && c != '\t') {
            true => Value::Unfit,
            false => Value::Of(SysctlValue::of(text)),
        })
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        while list.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(Value::Unfit)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        // Fails for a date alone, which comes as a map that is none.
        Ok(OfTable.visit_map(map).map_or(Value::Unfit, Value::Table))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::director::parse;

    const HEAD: &str = "[director]\nname = \"lb1\"\naddress = \"10.77.0.1\"\n";

    fn read(section: &str) -> Result<Vec<(String, String)>, String> {
        let config = parse(Path::new("d.toml"), &format!("{HEAD}{section}"));
        let config = config.map_err(|e| e.to_string())?;
        let text = |s: &crate::model::Sysctl| (s.name.to_string(), s.value.to_string());
        Ok(config.kernel.iter().map(text).collect())
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn settings_come_in_the_files_order_with_their_values() {
        let found = read(
            "[kernel]\n\"net.ipv4.vs.sync_threshold\" = \" 3  50\"\n\"net.ipv4.ip_forward\" = true\n\"net/ipv4/conf/eth0.1/rp_filter\" = 2\n",
        );
        let wanted = [
            pair("net.ipv4.vs.sync_threshold", "3 50"),
            pair("net.ipv4.ip_forward", "1"),
            pair("net.ipv4.conf.eth0/1.rp_filter", "2"),
        ];
        assert_eq!(found.unwrap(), wanted);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn a_name_without_quotes_is_the_same_name() {
        let found = read(
            "[kernel]\nnet.ipv4.vs.conntrack = 1\n[kernel.net.ipv6]\nconf.all.forwarding = true\n",
        );
        let wanted = [
            pair("net.ipv4.vs.conntrack", "1"),
            pair("net.ipv6.conf.all.forwarding", "1"),
        ];
        assert_eq!(found.unwrap(), wanted);
    }

    #[test]
    fn one_setting_in_two_spellings_is_there_twice() {
        let found = read("[kernel]\n\"net.ipv4.ip_forward\" = 1\nnet.ipv4.ip_forward = 0\n");
        let found = found.unwrap_err();
        assert!(
            found.starts_with(
                "d.toml:6:10: net.ipv4.ip_forward stands here a second time, first in line 5"
            ),
            "{found}"
        );
    }
}
