//! How long the API took to answer, as the directors' own client says.

use std::{
    collections::BTreeMap,
    fmt::{Debug, Write as _},
    mem,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer as _, Registry, filter::Targets, layer::Context, layer::SubscriberExt as _,
};

/// Microseconds of each answer, by route.
pub(crate) type Times = BTreeMap<String, Vec<u64>>;

/// Takes them from what the client says.
#[derive(Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<Times>>);

impl Asked {
    /// Listens from now on.
    pub(crate) fn listen() -> Self {
        let asked = Self::default();
        let client = Targets::new().with_target("understudy::api::client", Level::DEBUG);
        let all = Registry::default().with(Layer(asked.clone()).with_filter(client));
        tracing::subscriber::set_global_default(all).unwrap();
        asked
    }

    /// What was asked since the last time.
    pub(crate) fn take(&self) -> Times {
        mem::take(&mut self.0.lock().unwrap())
    }
}

struct Layer(Asked);

impl<S: Subscriber> tracing_subscriber::Layer<S> for Layer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        // Other lines of the client say nothing of an answer.
        if let (Some(us), Some(status)) = (line.elapsed_us, line.status) {
            let route = route(&line.method, &line.path);
            let route = match status {
                200..300 => route,
                _ => format!("{route}: {status}"),
            };
            let mut all = self.0.0.lock().unwrap();
            all.entry(route).or_default().push(us);
        }
    }
}

#[derive(Default)]
struct Line {
    method: String,
    path: String,
    status: Option<u64>,
    elapsed_us: Option<u64>,
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "status" => self.status = Some(value),
            "elapsed_us" => self.elapsed_us = Some(value),
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "path" {
            value.clone_into(&mut self.path);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "method" {
            write!(self.method, "{value:?}").unwrap();
        }
    }
}

/// The part of a long poll that waits is no time to answer: they are apart.
pub(crate) const POLL: &str = "GET members, waiting";

fn route(method: &str, path: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let parts: Vec<_> = path.split('/').skip(2).collect();
    match (method, parts.as_slice()) {
        (_, ["directors", _]) => "PUT director".to_owned(),
        (_, ["directors", _, "members"]) if query.contains("wait") => POLL.to_owned(),
        (_, ["directors", _, "members"]) => "GET members".to_owned(),
        (_, ["directors", _, "members", _]) => "POST confirmation".to_owned(),
        (_, ["directors", _, "members", _, "release"]) => "POST release of a stand-in".to_owned(),
        (method, ["replacements"]) => format!("{method} replacements"),
        (method, ["servers", _, verb]) => format!("{method} server {verb}"),
        (method, _) => format!("{method} {path}"),
    }
}

/// The value below which this part of all is.
pub(crate) fn quantile(sorted: &[u64], part: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(clippy::as_conversions, reason = "an index of a list")]
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(0)
}
