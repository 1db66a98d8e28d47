//! The last events of a process.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Event, EventDraft, EventFilter, Role};
use crate::model::{DirectorName, WallMillis};

/// So many events are kept.
const KEPT: usize = 1_000;

/// So many are in one answer.
const A_PAGE: usize = 200;

/// The last events, each with its number.
#[derive(Clone, Debug)]
pub struct EventRing {
    run: u64,
    role: Role,
    director: Option<DirectorName>,
    /// The number of the newest; 0 before the first.
    newest: u64,
    kept: VecDeque<Arc<Event>>,
}

/// Part of the events, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// The life of the process.
    pub run: u64,
    /// Ask for those after this one next.
    pub next: u64,
    /// So many that were asked for are gone: the reader was too slow. Those that it did not look for are counted too.
    pub missed: u64,
    /// The events.
    pub events: Vec<Event>,
}

impl EventRing {
    /// Empty, of a process that began at `began`.
    #[must_use]
    pub fn new(role: Role, director: Option<DirectorName>, began: WallMillis) -> Self {
        Self {
            run: u64::try_from(began.0).unwrap_or(0),
            role,
            director,
            newest: 0,
            kept: VecDeque::new(),
        }
    }

    /// Gives an event its number, and keeps it. The oldest makes room.
    pub fn push(&mut self, draft: EventDraft, at: WallMillis) {
        self.newest += 1;
        self.kept.push_back(Arc::new(Event {
            run: self.run,
            number: self.newest,
            at,
            severity: draft.kind.severity(),
            kind: draft.kind,
            role: self.role,
            director: self.director.clone(),
            service: draft.service,
            server: draft.server,
            replacement: draft.replacement,
            reason: draft.reason,
            text: draft.text,
            actor: None,
            origin: None,
        }));
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// The number of the newest event; 0 before the first.
    #[must_use]
    pub const fn newest(&self) -> u64 {
        self.newest
    }

    /// The life of the process.
    #[must_use]
    pub const fn run(&self) -> u64 {
        self.run
    }

    /// How many were kept once after number `after`, and are not any more.
    #[must_use]
    pub fn missed(&self, after: u64) -> u64 {
        let oldest = self.kept.front().map_or(self.newest + 1, |e| e.number);
        oldest.saturating_sub(after.saturating_add(1))
    }

    /// Those after number `after`.
    pub fn after(&self, after: u64) -> impl Iterator<Item = &Arc<Event>> {
        // Numbers have no gaps.
        let gone = self.newest - u64::try_from(self.kept.len()).unwrap_or(self.newest);
        let skip = usize::try_from(after.saturating_sub(gone)).unwrap_or(usize::MAX);
        self.kept.iter().skip(skip)
    }

    /// A page of those after number `after`; without it from the oldest that is kept, and nothing was missed.
    #[must_use]
    pub fn page(&self, after: Option<u64>, filter: &EventFilter) -> EventPage {
        let missed = after.map_or(0, |after| self.missed(after));
        let mut page = EventPage {
            run: self.run,
            next: self.newest,
            missed,
            events: Vec::new(),
        };
        for event in self.after(after.unwrap_or(0)) {
            if page.events.len() == A_PAGE {
                break;
            }
            page.next = event.number;
            if filter.takes(event) {
                page.events.push(Event::clone(event));
            }
        }
        page
    }
}
