//! What a director does with its services when it is told to end.

use std::time::Duration;

use super::{RawDirector, Reader};
use crate::model::{OnStop, StopPolicy};

/// How long a drain lasts at most, where it is not said.
const TIMEOUT: Duration = Duration::from_secs(60);

impl Reader {
    /// Reads `on_stop` and `stop_timeout`.
    pub(super) fn stop(&mut self, raw: &RawDirector) -> StopPolicy {
        let on_stop = raw.on_stop.as_ref();
        let on_stop = on_stop.and_then(|text| self.value(text, str::parse::<OnStop>));
        let timeout = self.duration(raw.stop_timeout.as_ref(), TIMEOUT);
        let at = raw.stop_timeout.as_ref();
        self.at_least(at, timeout, Duration::from_secs(1), "stop_timeout");
        let wrong = raw.on_stop.is_some() && on_stop.is_none();
        let on_stop = on_stop.unwrap_or_default();
        if let Some(at) = at
            && on_stop != OnStop::Drain
            && !wrong
        {
            let message = "stop_timeout is for on_stop = \"drain\": nothing else waits";
            self.bad.push(at.span(), message);
        }
        StopPolicy { on_stop, timeout }
    }
}
