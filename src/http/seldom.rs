//! What strangers can cause is said seldom.

use std::{
    mem,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So often at most.
const EVERY: Duration = Duration::from_secs(10);

/// Whether it is time to say something again.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// How often it was not said since the last time, where it is to be said now.
    pub(super) fn now(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unsaid) = &mut *state;
        if last.is_some_and(|at| at.elapsed() < EVERY) {
            *unsaid += 1;
            return None;
        }
        *last = Some(Instant::now());
        Some(mem::take(unsaid))
    }
}
