//! The table as a person reads it. Ten thousand destinations are listed about as fast as the kernel
//! tells them: one text, no other for a cell, and addresses are written once.

use std::{
    fmt::{Display, Write},
    net::{IpAddr, SocketAddr},
};

use super::{count, words};
use crate::{
    ipvs::codec::Version,
    model::{DestKey, DestState, KernelTable, ServiceState, Stats},
};

/// What stands beside each destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// Weight, forwarding method, thresholds, connections.
    Now,
    /// Counters.
    Totals,
    /// Counters a second.
    Rates,
}

/// From here on a number is cut to thousands, millions, ..., as ipvsadm does.
const LONG: u64 = 100_000_000;

/// Blanks before a number's column.
const GAP: usize = 2;

const BLANKS: &str = "                                                                ";

/// The whole list.
pub(super) fn table(
    version: Version,
    buckets: u32,
    table: &KernelTable,
    view: View,
    exact: bool,
) -> String {
    let addresses = Addresses::of(table);
    let columns = columns(table, view, exact);
    let forward_width = match view {
        View::Now => forwards(table),
        View::Totals | View::Rates => 0,
    };
    let indent = "  ";
    let mut name_width = addresses.longest + indent.len();
    if view != View::Now {
        for key in table.keys() {
            // Once a service, not a destination.
            name_width = name_width.max(key.to_string().len());
        }
    }
    let dests: usize = table.values().map(|s| s.dests.len()).sum();
    let width =
        columns.iter().map(|c| GAP + c.width).sum::<usize>() + name_width + forward_width + 3;
    let mut out = String::with_capacity((dests + 2) * width + 128 * table.len());

    let head = format!(
        "IPVS {version}, {buckets} buckets, {}, {}\n",
        count(table.len(), "service"),
        count(dests, "destination")
    );
    out.push_str(&head);
    if table.is_empty() {
        return out;
    }
    out.push_str("SERVICE");
    pad(&mut out, name_width.saturating_sub("SERVICE".len()));
    for (n, c) in columns.iter().enumerate() {
        pad(&mut out, GAP + c.width.saturating_sub(c.label.len()));
        out.push_str(c.label);
        if n == 0 && forward_width > 0 {
            out.push_str("  FORWARD");
            pad(&mut out, forward_width.saturating_sub("FORWARD".len()));
        }
    }
    out.push('\n');

    let mut names = addresses.iter();
    for (key, service) in table {
        let from = out.len();
        print(&mut out, key);
        match view {
            View::Now => {
                for word in words::service(&service.attrs, key.family()) {
                    out.push_str("  ");
                    out.push_str(&word);
                }
            }
            View::Totals | View::Rates => {
                let used = out.len() - from;
                pad(&mut out, name_width.saturating_sub(used));
                for c in &columns {
                    (c.write)(&mut out, (c.of)(Row::Service(service)), GAP + c.width);
                }
            }
        }
        out.push('\n');
        for dest in service.dests.values() {
            let name = names.next().unwrap_or_default();
            out.push_str(indent);
            out.push_str(name);
            pad(
                &mut out,
                name_width.saturating_sub(indent.len() + name.len()),
            );
            for (n, c) in columns.iter().enumerate() {
                (c.write)(&mut out, (c.of)(Row::Dest(dest)), GAP + c.width);
                if n == 0 && forward_width > 0 {
                    out.push_str("  ");
                    let from = out.len();
                    words::forward(&mut out, &dest.attrs);
                    let used = out.len() - from;
                    pad(&mut out, forward_width.saturating_sub(used));
                }
            }
            out.push('\n');
        }
        if service.dests.is_empty() && view == View::Now {
            out.push_str("  no destinations\n");
        }
    }
    out
}

/// A line with numbers.
#[derive(Clone, Copy)]
enum Row<'a> {
    Service(&'a ServiceState),
    Dest(&'a DestState),
}

impl Row<'_> {
    fn stats(&self) -> Stats {
        match self {
            Self::Service(s) => s.stats,
            Self::Dest(d) => d.stats(),
        }
    }
}

struct Column {
    label: &'static str,
    width: usize,
    largest: u64,
    of: fn(Row<'_>) -> u64,
    write: fn(&mut String, u64, usize),
}

/// The columns of a view, as wide as their widest number.
fn columns(table: &KernelTable, view: View, exact: bool) -> Vec<Column> {
    macro_rules! of_dest {
        ($($field:tt)+) => {
            |row| match row {
                Row::Dest(d) => u64::from(d.$($field)+),
                Row::Service(_) => 0,
            }
        };
    }
    type Of = fn(Row<'_>) -> u64;
    let any_threshold = |table: &KernelTable| {
        let mut dests = table.values().flat_map(|s| s.dests.values());
        dests.any(|d| d.attrs.upper != 0 || d.attrs.lower != 0)
    };
    let cells: Vec<(&'static str, Of)> = match view {
        View::Now => {
            let mut cells: Vec<(_, Of)> = vec![("WEIGHT", of_dest!(attrs.weight.get()))];
            if any_threshold(table) {
                cells.push(("UPPER", of_dest!(attrs.upper)));
                cells.push(("LOWER", of_dest!(attrs.lower)));
            }
            cells.push(("ACTIVE", of_dest!(active_connections)));
            cells.push(("INACTIVE", of_dest!(inactive_connections)));
            cells.push(("PERSISTENT", of_dest!(persistent_connections)));
            cells
        }
        View::Totals => vec![
            ("CONNECTIONS", |r| r.stats().connections),
            ("PACKETS-IN", |r| r.stats().packets_in),
            ("PACKETS-OUT", |r| r.stats().packets_out),
            ("BYTES-IN", |r| r.stats().bytes_in),
            ("BYTES-OUT", |r| r.stats().bytes_out),
        ],
        View::Rates => vec![
            ("CONNECTIONS/S", |r| r.stats().connection_rate),
            ("PACKETS-IN/S", |r| r.stats().packet_rate_in),
            ("PACKETS-OUT/S", |r| r.stats().packet_rate_out),
            ("BYTES-IN/S", |r| r.stats().byte_rate_in),
            ("BYTES-OUT/S", |r| r.stats().byte_rate_out),
        ],
    };
    let scaled = view != View::Now && !exact;
    let mut columns: Vec<Column> = cells
        .into_iter()
        .map(|(label, of)| Column {
            label,
            width: 0,
            largest: 0,
            of,
            write: if scaled { short } else { number },
        })
        .collect();
    for service in table.values() {
        let rows = service.dests.values().map(Row::Dest);
        for row in rows.chain([Row::Service(service)]) {
            for c in &mut columns {
                c.largest = c.largest.max((c.of)(row));
            }
        }
    }
    for c in &mut columns {
        let digits = if scaled {
            // A number that is just not cut may be longer than one that is.
            let mut longest = String::new();
            short(&mut longest, c.largest, 0);
            longest.len().max(length(c.largest.min(LONG - 1)))
        } else {
            length(c.largest)
        };
        c.width = digits.max(c.label.len());
    }
    columns
}

/// The length of the longest forwarding method.
fn forwards(table: &KernelTable) -> usize {
    let mut longest = "FORWARD".len();
    let mut word = String::new();
    for dest in table.values().flat_map(|s| s.dests.values()) {
        word.clear();
        words::forward(&mut word, &dest.attrs);
        longest = longest.max(word.len());
    }
    longest
}

/// The destinations' addresses and ports, in the table's order, in one text.
struct Addresses {
    text: String,
    ends: Vec<usize>,
    longest: usize,
}

impl Addresses {
    fn of(table: &KernelTable) -> Self {
        let dests = table.values().map(|s| s.dests.len()).sum();
        let mut all = Self {
            text: String::with_capacity(24 * dests),
            ends: Vec::with_capacity(dests),
            longest: 0,
        };
        for key in table.values().flat_map(|s| s.dests.keys()) {
            let from = all.text.len();
            address(&mut all.text, *key);
            all.longest = all.longest.max(all.text.len() - from);
            all.ends.push(all.text.len());
        }
        all
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let mut from = 0;
        self.ends.iter().map(move |end| {
            let name = self.text.get(from..*end).unwrap_or_default();
            from = *end;
            name
        })
    }
}

fn address(out: &mut String, key: DestKey) {
    match key.addr {
        IpAddr::V4(v4) => {
            let mut dot = "";
            for octet in v4.octets() {
                out.push_str(dot);
                number(out, octet.into(), 0);
                dot = ".";
            }
            out.push(':');
            number(out, key.port.into(), 0);
        }
        IpAddr::V6(_) => print(out, SocketAddr::new(key.addr, key.port)),
    }
}

fn print(out: &mut String, what: impl Display) {
    // Writing to a text cannot fail.
    write!(out, "{what}").unwrap_or_default();
}

fn pad(out: &mut String, mut width: usize) {
    while width > 0 {
        let blanks = BLANKS.get(..width).unwrap_or(BLANKS);
        out.push_str(blanks);
        width -= blanks.len();
    }
}

fn length(n: u64) -> usize {
    itoa::Buffer::new().format(n).len()
}

/// A number, blanks before it up to `width`.
fn number(out: &mut String, n: u64, width: usize) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(n);
    pad(out, width.saturating_sub(digits.len()));
    out.push_str(digits);
}

/// The same, long numbers cut: 123456K.
fn short(out: &mut String, n: u64, width: usize) {
    let (mut n, mut unit) = (n, None);
    for next in ['K', 'M', 'G', 'T'] {
        if n < LONG {
            break;
        }
        (n, unit) = (n / 1000, Some(next));
    }
    number(out, n, width.saturating_sub(usize::from(unit.is_some())));
    out.extend(unit);
}

#[cfg(test)]
mod tests;
