//! A difference of two tables as lines: `+` adds, `~` changes, `-` removes.

use super::{count, words};
use crate::model::{DestAttrs, Family, ServiceAttrs, Step, Table, Weight};

/// The steps as lines, those of a service together: a plan makes all services before destinations,
/// a person reads one service after the other.
pub(super) fn lines(steps: &[Step], live: &Table) -> String {
    let mut steps: Vec<_> = steps.iter().collect();
    steps.sort_by_key(|s| s.service());
    let mut text = String::new();
    for step in steps {
        text.push_str(&line(step, live));
        text.push('\n');
    }
    text
}

/// One step as a line, `live` being what it changes.
fn line(step: &Step, live: &Table) -> String {
    let service = live.get(&step.service());
    match step {
        Step::NewService(key, to) => {
            format!("+ {key}: {}", words::service(to, key.family()).join(", "))
        }
        Step::SetService(key, to) => {
            let from = service.map(|s| &s.attrs);
            let changes = from.map(|from| of_service(from, to, key.family()));
            format!("~ {key}: {}", changes.unwrap_or_default().join(", "))
        }
        Step::DelService(key) => match service.map_or(0, |s| s.dests.len()) {
            0 => format!("- {key}"),
            dests => format!("- {key} and its {}", count(dests, "destination")),
        },
        Step::NewDest(key, dest, to) => {
            let mut words = vec![forward(to), format!("weight {}", to.weight)];
            if to.upper != 0 {
                words.push(format!("upper {}", to.upper));
            }
            if to.lower != 0 {
                words.push(format!("lower {}", to.lower));
            }
            format!("+ {dest} in {key}: {}", words.join(", "))
        }
        Step::SetDest(key, dest, to) => {
            let changes = service
                .and_then(|s| s.dests.get(dest))
                .map(|from| of_dest(from, to));
            let changes = changes.unwrap_or_default().join(", ");
            format!("~ {dest} in {key}: {changes}")
        }
        Step::DelDest(key, dest) => format!("- {dest} in {key}"),
    }
}

fn change(what: &str, from: String, to: String) -> Option<String> {
    (from != to).then(|| format!("{what} {from} -> {to}"))
}

fn of_service(from: &ServiceAttrs, to: &ServiceAttrs, family: Family) -> Vec<String> {
    let persistence = |a: &ServiceAttrs| {
        let some = a.persistence.as_ref();
        some.map_or_else(none, |p| words::persistence(p, family))
    };
    // In one scheduler's words: a flag that stays is no change.
    let flags = |a: &ServiceAttrs| match words::flags(a.flags, &to.scheduler) {
        flags if flags.is_empty() => none(),
        flags => flags.join("+"),
    };
    let changes = [
        change(
            "scheduler",
            from.scheduler.to_string(),
            to.scheduler.to_string(),
        ),
        change("persistence", persistence(from), persistence(to)),
        change("flags", flags(from), flags(to)),
    ];
    changes.into_iter().flatten().collect()
}

fn of_dest(from: &DestAttrs, to: &DestAttrs) -> Vec<String> {
    let number =
        |what, of: fn(&DestAttrs) -> u32| change(what, of(from).to_string(), of(to).to_string());
    let changes = [
        change("forward", forward(from), forward(to)),
        number("weight", |a| Weight::get(a.weight)),
        number("upper", |a| a.upper),
        number("lower", |a| a.lower),
    ];
    changes.into_iter().flatten().collect()
}

fn none() -> String {
    "none".to_owned()
}

fn forward(attrs: &DestAttrs) -> String {
    let mut word = String::new();
    words::forward(&mut word, attrs);
    word
}

/// How many steps add, change, remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) added: usize,
    pub(super) changed: usize,
    pub(super) removed: usize,
}

impl Tally {
    pub(super) fn count(&mut self, step: &Step) {
        match step {
            Step::NewService(..) | Step::NewDest(..) => self.added += 1,
            Step::SetService(..) | Step::SetDest(..) => self.changed += 1,
            Step::DelService(..) | Step::DelDest(..) => self.removed += 1,
        }
    }

    pub(super) const fn all(self) -> usize {
        self.added + self.changed + self.removed
    }
}

impl<'a> FromIterator<&'a Step> for Tally {
    fn from_iter<I: IntoIterator<Item = &'a Step>>(steps: I) -> Self {
        let mut tally = Self::default();
        for step in steps {
            tally.count(step);
        }
        tally
    }
}

#[cfg(test)]
mod tests;
