//! What a hook has still to tell, and when. PURE.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crate::model::{Event, Hook, MonoTime};

/// No hook keeps more events that it could not tell yet.
const ROOM: usize = 1_000;

/// So many stand in one mail; nobody reads more.
const IN_A_MAIL: usize = 100;

const AN_HOUR: Duration = Duration::from_hours(1);

/// How events are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// So many at once.
    pub(super) together: usize,
    /// So many are kept; then the oldest makes room.
    pub(super) room: usize,
    /// How long others are waited for after the first.
    pub(super) window: Duration,
    /// So often an hour.
    pub(super) per_hour: Option<u32>,
    /// What is so old and could not be told is given up.
    pub(super) keep_for: Duration,
}

impl Rule {
    pub(super) const fn of(hook: &Hook) -> Self {
        match hook {
            Hook::Webhook(webhook) => Self {
                together: 1,
                room: ROOM,
                window: Duration::ZERO,
                per_hour: None,
                keep_for: webhook.retry_for,
            },
            Hook::Mail(mail) => Self {
                together: IN_A_MAIL,
                room: IN_A_MAIL,
                window: mail.window,
                per_hour: Some(mail.per_hour),
                keep_for: mail.retry_for,
            },
        }
    }
}

/// What is told at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parcel {
    /// In order, at least one.
    pub(super) events: Vec<Arc<Event>>,
    /// So many before them were left out.
    pub(super) left_out: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pile {
    rule: Rule,
    held: VecDeque<(Arc<Event>, MonoTime)>,
    /// Dropped since something was told.
    left_out: u64,
    /// When it was told within the last hour.
    told: VecDeque<MonoTime>,
}

impl Pile {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            held: VecDeque::new(),
            left_out: 0,
            told: VecDeque::new(),
        }
    }

    /// From now on another rule.
    pub(super) fn change(&mut self, rule: Rule) {
        self.rule = rule;
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Takes an event. How many were dropped for it.
    pub(super) fn push(&mut self, event: Arc<Event>, now: MonoTime) -> u64 {
        self.held.push_back((event, now));
        let mut dropped = 0;
        while self.held.len() > self.rule.room {
            self.held.pop_front();
            dropped += 1;
        }
        self.left_out += dropped;
        dropped
    }

    /// Events were gone before they could be taken.
    pub(super) fn missed(&mut self, count: u64) {
        self.left_out += count;
    }

    /// When there is something to tell; none: there is nothing.
    pub(super) fn due(&self) -> Option<MonoTime> {
        let (_, first) = self.held.front()?;
        let gathered = first.after(self.rule.window);
        let most = self
            .rule
            .per_hour
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let used_up = most.and_then(|most| self.told.len().checked_sub(most));
        let again = used_up.and_then(|at| self.told.get(at));
        Some(again.map_or(gathered, |told| told.after(AN_HOUR).max(gathered)))
    }

    /// What is to be told.
    pub(super) fn parcel(&self) -> Option<Parcel> {
        let first = self.held.iter().take(self.rule.together);
        let events: Vec<_> = first.map(|(event, _)| Arc::clone(event)).collect();
        (!events.is_empty()).then_some(Parcel {
            events,
            left_out: self.left_out,
        })
    }

    /// It was told.
    pub(super) fn done(&mut self, parcel: &Parcel, now: MonoTime) {
        self.forget(parcel);
        self.left_out = self.left_out.saturating_sub(parcel.left_out);
        self.told.push_back(now);
        self.told.retain(|told| now.since(*told) < AN_HOUR);
    }

    /// It could not be told. How many events are given up for their age.
    pub(super) fn failed(&mut self, now: MonoTime) -> u64 {
        let before = self.held.len();
        let keep_for = self.rule.keep_for;
        self.held.retain(|(_, came)| now.since(*came) < keep_for);
        let given_up = u64::try_from(before - self.held.len()).unwrap_or(0);
        self.left_out += given_up;
        given_up
    }

    /// Those of the parcel that are still held: some may have made room meanwhile.
    fn forget(&mut self, parcel: &Parcel) {
        let Some(last) = parcel.events.last() else {
            return;
        };
        let told = |event: &Event| (event.run, event.number) <= (last.run, last.number);
        while self.held.front().is_some_and(|(event, _)| told(event)) {
            self.held.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
