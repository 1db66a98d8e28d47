//! The director's side of the provisioner's API: what the core wants told is told until it is
//! answered, and the list of stand-ins is asked for again and again.

use std::{collections::BTreeSet, mem, sync::Arc, time::Duration};

use hyper::Method;
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    api::client::{Client, Error, NOTHING},
    config::{Director, ProvisionerLink},
    director::{Event, Outbox},
    model::{
        CheckSpec, IncidentKey, Need, ReplacementId, Via,
        wire::{
            Confirmation, Findings, Members, RegisteredServer, RegisteredService, Registration,
            RegistrationAnswer, Replacement, ReplacementRequest, Want,
        },
    },
    telemetry::Chain,
};

/// An answer that needs no waiting.
const LIMIT: Duration = Duration::from_secs(10);

/// How long the provisioner may hold the list of stand-ins back until it changes.
const WAIT: Duration = Duration::from_secs(30);

/// Between two attempts, and between two looks at a running replacement.
const PAUSE: Duration = Duration::from_secs(1);

/// An answer that nobody waits for.
const BRIEF: Duration = Duration::from_secs(2);

/// What is found of warm spares that fail is told again so often: it counts for some times as long.
const AGAIN: Duration = Duration::from_secs(60);

/// Registers, then follows the list of stand-ins, until `stop`.
pub async fn follow(
    mut in_force: watch::Receiver<Arc<Director>>,
    client: Client,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let work = async {
        loop {
            let config = Arc::clone(&in_force.borrow_and_update());
            let followed = tokio::select! {
                followed = follow_once(&config, &client, &events) => followed,
                // Cancel-safe, both: the list is asked for again, and `changed` only marks the value seen when
                // it returns. What is served has changed: it is registered anew.
                changed = in_force.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            let mut pause = PAUSE;
            if let Err(e) = followed {
                pause = e.retry_after().unwrap_or_default().max(PAUSE);
                if events.send(silent(&e)).await.is_err() {
                    return;
                }
            }
            time::sleep(pause).await;
        }
    };
    tokio::select! {
        // Cancel-safe: a request that was cut off is made again.
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn follow_once(
    config: &Director,
    client: &Client,
    events: &mpsc::Sender<Event>,
) -> Result<(), Error> {
    let name = &config.name;
    let body = registration(config);
    let path = format!("/v1/directors/{name}");
    let answer: RegistrationAnswer = client
        .ask(Method::PUT, &path, None, Some(&body), LIMIT)
        .await?;
    info!(
        services = body.services.len(),
        "virtual services were registered with the provisioner"
    );
    for w in answer.warnings {
        warn!(server = %w.server, reason = %w.code, detail = %w.detail, "real server could not be replaced if it failed now");
    }
    let mut after: Option<u64> = None;
    loop {
        let version = after.map(|v| format!("?after={v}&wait={}", WAIT.as_secs()));
        let path = format!(
            "/v1/directors/{name}/members{}",
            version.unwrap_or_default()
        );
        let list: Members = client
            .ask(Method::GET, &path, None, NOTHING, WAIT + LIMIT)
            .await?;
        if after == Some(list.version) {
            continue;
        }
        after = Some(list.version);
        debug!(
            version = list.version,
            members = list.members.len(),
            "stand-ins were listed"
        );
        if events.send(Event::Members(list)).await.is_err() {
            return Ok(());
        }
    }
}

/// Whether it says that it will never do this; what it cannot do now it may do later.
fn refused(e: &Error) -> bool {
    e.problem()
        .is_some_and(|p| p.status < 500 && p.status != 429)
}

fn silent(e: &Error) -> Event {
    Event::ProvisionerSilent(Chain(e).to_string())
}

/// A check as the provisioner can make it on a spare.
fn for_others(check: &Arc<CheckSpec>) -> Option<CheckSpec> {
    // On its own address a server behind DR may well refuse what it serves for the virtual one.
    if check.via.through {
        return None;
    }
    Some(CheckSpec {
        kind: check.kind.for_others()?,
        // This host's interfaces and marks mean nothing there.
        via: Via {
            port: check.via.port,
            ..Via::default()
        },
        timing: check.timing,
    })
}

/// What the provisioner is told of a director's services.
#[must_use]
pub fn registration(config: &Director) -> Registration {
    let services = config.services.iter().map(|(key, s)| RegisteredService {
        key: *key,
        scheduler: s.attrs.scheduler.clone(),
        forward: s.forward,
        checks: match s.checks.need {
            Need::All => s.checks.all.iter().filter_map(for_others).collect(),
            // Which of them a spare passes is for the director to see.
            Need::AtLeast(_) => Vec::new(),
        },
        servers: s
            .servers
            .iter()
            .map(|(d, a)| RegisteredServer {
                address: d.addr,
                port: d.port,
                weight: a.weight,
            })
            .collect(),
    });
    Registration {
        address: config.address,
        services: services.collect(),
    }
}

/// Tells what the outbox holds, again and again while it holds it, until `stop`.
pub async fn deliver(
    config: Arc<Director>,
    (link, client): (ProvisionerLink, Client),
    mut outbox: watch::Receiver<Outbox>,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let mut courier = Courier {
        client,
        later: Duration::ZERO,
        told: Findings::default(),
        told_at: time::Instant::now(),
        not_before: time::Instant::now(),
        config,
        link,
        events,
    };
    let work = async {
        let mut asked = BTreeSet::new();
        loop {
            let now = outbox.borrow_and_update().clone();
            let findings = now.findings.clone();
            let unanswered = now.messages() > 0;
            let newer = || outbox.has_changed().unwrap_or(false);
            if courier.round(now, &mut asked, newer).await.is_err() {
                return;
            }
            let later = mem::take(&mut courier.later);
            if later > PAUSE {
                // It asked for this, whatever is new.
                time::sleep(later).await;
                continue;
            }
            let until = match courier.tells_at(&findings) {
                _ if unanswered => Some(time::Instant::now() + PAUSE),
                next => next,
            };
            let pause = async {
                match until {
                    Some(until) => time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Cancel-safe: `changed` only marks the value seen when it returns.
                changed = outbox.changed() => if changed.is_err() { return },
                () = pause => {}
            }
        }
    };
    tokio::select! {
        // Cancel-safe: what was not answered stands in the outbox still.
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// How long after `told` was told `now` is: at once where somebody has begun to fail or to pass, and again as long as
/// somebody fails, for the provisioner may have forgotten whom it is to avoid.
fn due(told: &Findings, now: &Findings) -> Option<Duration> {
    let known = told.failing.keys().eq(now.failing.keys()) && told.passing == now.passing;
    match known {
        false => Some(Duration::ZERO),
        true => (!now.failing.is_empty()).then_some(AGAIN),
    }
}

struct Courier {
    client: Client,
    config: Arc<Director>,
    link: ProvisionerLink,
    events: mpsc::Sender<Event>,
    /// The provisioner gives no answer that counts: all that is left of the round waits so long.
    later: Duration,
    /// The findings that it was told last.
    told: Findings,
    told_at: time::Instant,
    /// What is found is not told before this: it was not taken.
    not_before: time::Instant,
}

/// The core is gone.
struct Gone;

impl Courier {
    /// Tells all that is in the outbox. What it is for the first time goes first: a failed server waits for it. What
    /// was asked before is asked again for news alone, and where something newer is to be told not to its end. Where
    /// there is no answer the rest waits: one that does not answer this does not answer the next.
    async fn round(
        &mut self,
        outbox: Outbox,
        asked: &mut BTreeSet<IncidentKey>,
        newer: impl Fn() -> bool,
    ) -> Result<(), Gone> {
        asked.retain(|key| outbox.requests.contains(key));
        let (again, first): (Vec<_>, Vec<_>) = outbox
            .requests
            .into_iter()
            .partition(|key| asked.contains(key));
        for key in first {
            if self.waits() {
                return Ok(());
            }
            self.request(key.clone()).await?;
            if !self.waits() {
                asked.insert(key);
            }
        }
        for (id, is) in outbox.confirms {
            if self.waits() {
                return Ok(());
            }
            self.confirm(id, is).await?;
        }
        for id in outbox.releases {
            if self.waits() {
                return Ok(());
            }
            self.release(id).await?;
        }
        for (key, id) in outbox.cancels {
            if self.waits() {
                return Ok(());
            }
            let path = format!("/v1/replacements/{id}/cancel");
            let answer = self
                .client
                .ask(Method::POST, &path, None, NOTHING, LIMIT)
                .await;
            self.tell(key, answer).await?;
        }
        for key in again {
            if self.waits() || newer() {
                return Ok(());
            }
            self.request(key).await?;
        }
        let due = self.tells_at(&outbox.findings);
        if !self.waits() && due.is_some_and(|due| due <= time::Instant::now()) {
            self.find(outbox.findings).await;
        }
        Ok(())
    }

    async fn request(&mut self, key: IncidentKey) -> Result<(), Gone> {
        let body = ReplacementRequest {
            failed: key.failed,
            director: self.config.address,
            centre: self.link.address,
            name: self.config.name.clone(),
        };
        let (path, text) = ("/v1/replacements", key.to_string());
        let answer = self
            .client
            .ask(Method::POST, path, Some(&text), Some(&body), LIMIT)
            .await;
        self.tell(key, answer).await
    }

    /// Whether the rest of this round waits.
    fn waits(&self) -> bool {
        !self.later.is_zero()
    }

    async fn confirm(&mut self, id: ReplacementId, is: Want) -> Result<(), Gone> {
        let path = format!("/v1/directors/{}/members/{id}", self.config.name);
        let body = Confirmation { is };
        match self
            .client
            .ask::<()>(Method::POST, &path, None, Some(&body), LIMIT)
            .await
        {
            Ok(()) => self.send(Event::Confirmed(id, is)).await,
            Err(e) if refused(&e) => {
                warn!(replacement = %id, error = %Chain(&e), "provisioner refused a confirmation");
                Ok(())
            }
            Err(e) => self.silent(&e).await,
        }
    }

    /// When what is found is to be told; never, where nothing is new.
    fn tells_at(&self, findings: &Findings) -> Option<time::Instant> {
        let due = self.told_at + due(&self.told, findings)?;
        Some(due.max(self.not_before))
    }

    /// Tells what is found of warm spares. A failure does not wait for it long, and nothing where it is not taken: whether
    /// the provisioner is there, others see.
    async fn find(&mut self, findings: Findings) {
        let path = format!("/v1/directors/{}/findings", self.config.name);
        let asked = self
            .client
            .ask::<()>(Method::PUT, &path, None, Some(&findings), BRIEF);
        let answer = asked.await;
        let now = time::Instant::now();
        match answer {
            Err(e) if !refused(&e) => {
                debug!(error = %Chain(&e), "provisioner was not told of warm spares");
                self.not_before = now + e.retry_after().unwrap_or_default().max(PAUSE);
                return;
            }
            // An older one does without.
            Err(e) => debug!(error = %Chain(&e), "provisioner takes no findings"),
            Ok(()) => {}
        }
        self.told = findings;
        self.told_at = now;
    }

    /// Gives a stand-in back. That it is wanted no longer comes with the list of stand-ins.
    async fn release(&mut self, id: ReplacementId) -> Result<(), Gone> {
        let path = format!("/v1/directors/{}/members/{id}/release", self.config.name);
        let asked = self
            .client
            .ask::<()>(Method::POST, &path, None, NOTHING, LIMIT);
        match asked.await {
            Ok(()) => Ok(()),
            Err(e) if refused(&e) => {
                warn!(replacement = %id, error = %Chain(&e), "provisioner does not take a stand-in back");
                Ok(())
            }
            Err(e) => self.silent(&e).await,
        }
    }

    async fn tell(
        &mut self,
        key: IncidentKey,
        answer: Result<Replacement, Error>,
    ) -> Result<(), Gone> {
        match answer {
            Ok(answer) => self.send(Event::Replacement(key, Box::new(answer))).await,
            Err(e) => match e.problem() {
                // It will know this director again as soon as that has registered.
                // And what cannot be cancelled any more, the list of stand-ins closes.
                Some(p) if p.code == "not_registered" || p.code == "too_late" => Ok(()),
                Some(p) if refused(&e) => {
                    let why = format!("{}: {}", p.code, p.detail);
                    self.send(Event::Refused(key, why)).await
                }
                Some(_) | None => self.silent(&e).await,
            },
        }
    }

    /// No answer that counts: it is asked again, later where it says so.
    async fn silent(&mut self, e: &Error) -> Result<(), Gone> {
        // What goes wrong there with this one holds up no other.
        if e.problem().is_none_or(|p| [429, 503].contains(&p.status)) {
            self.later = e.retry_after().unwrap_or_default().max(PAUSE);
        }
        self.send(silent(e)).await
    }

    async fn send(&self, event: Event) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_closed| Gone)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use axum::{
        Json, Router,
        extract::State,
        http::{HeaderMap, StatusCode},
        response::IntoResponse as _,
        routing::{post, put},
    };
    use tokio::{net::UnixListener, time::timeout};

    use super::*;
    use crate::model::wire::{Problem, ReplacementState};

    const LIMIT: Duration = Duration::from_secs(20);

    const CONFIG: &str = r#"
[director]
name = "lb1"
address = "10.77.0.1"
[provisioner]
address = "10.77.0.1"
"#;

    fn key(n: u8) -> IncidentKey {
        IncidentKey {
            director: "lb1".parse().unwrap(),
            failed: [10, 0, 0, n].into(),
            number: u64::from(n),
        }
    }

    /// Answers one request for each that is let through, and says what it was asked for.
    type Door = (mpsc::Sender<String>, Arc<tokio::sync::Semaphore>);

    async fn answer(State((asked, door)): State<Door>, headers: HeaderMap) -> Json<Replacement> {
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        asked.send(key.clone()).await.unwrap();
        door.acquire().await.unwrap().forget();
        Json(Replacement {
            id: "r1".parse().unwrap(),
            key,
            director: "lb1".parse().unwrap(),
            failed: [10, 0, 0, 1].into(),
            origin: [10, 0, 0, 1].into(),
            state: ReplacementState::Pending,
            role: None,
            reason: None,
            spare: None,
            passed_over: Vec::new(),
            steps: Vec::new(),
            version: 1,
        })
    }

    /// Delivers what `outbox` holds to a provisioner that answers so, until `play` ends.
    async fn played(
        router: Router,
        outbox: watch::Receiver<Outbox>,
        play: impl Future<Output = ()>,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let config = crate::config::director::parse(Path::new("d.toml"), CONFIG).unwrap();
        let to = (config.provisioner.clone().unwrap(), Client::unix(path));
        let (events, mut answers) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let drained = async { while answers.recv().await.is_some() {} };
        tokio::select! {
            () = play => {}
            () = drained => panic!("nobody delivers"),
            () = deliver(Arc::new(config), to, outbox, events, stop) => panic!("nobody stopped it"),
            _ = axum::serve(listener, router) => panic!("nobody answers"),
        }
    }

    fn found(failing: &[&str], passing: &[&str]) -> Findings {
        let named = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let failing = named(failing).into_iter();
        Findings {
            failing: failing.map(|n| (n, "refused".to_owned())).collect(),
            passing: named(passing).into_iter().collect(),
        }
    }

    #[test]
    fn findings_are_due_when_somebody_begins_to_fail_or_pass_and_again_while_somebody_fails() {
        let nothing = Findings::default();
        let mut fails = found(&["a"], &["b"]);
        let passes = found(&[], &["a", "b"]);
        let at_once = Some(Duration::ZERO);
        for (told, now, then) in [
            (&nothing, &nothing, None),
            (&nothing, &fails, at_once),
            (&fails, &fails, Some(AGAIN)),
            (&fails, &passes, at_once),
            (&passes, &passes, None),
        ] {
            assert_eq!(due(told, now), then, "{told:?} {now:?}");
        }
        // Another reason is no news.
        let told = fails.clone();
        fails.failing.insert("a".into(), "timed out".into());
        assert_eq!(due(&told, &fails), Some(AGAIN));
    }

    /// Those that it knows are not told again, though other things are.
    #[tokio::test]
    async fn findings_are_told_until_they_are_taken_and_then_no_more() {
        let (asked, mut requests) = mpsc::channel(64);
        let door = Arc::new(tokio::sync::Semaphore::new(64));
        // It takes none before the third.
        let away = Arc::new(std::sync::atomic::AtomicI32::new(2));
        let told = asked.clone();
        let find = async move |Json(body): Json<Findings>| {
            told.send(format!("{body:?}")).await.unwrap();
            match away.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) {
                1.. => {
                    let problem = Problem::new(503, "Service Unavailable", "store_away", "away");
                    (StatusCode::SERVICE_UNAVAILABLE, Json(problem)).into_response()
                }
                _ => StatusCode::NO_CONTENT.into_response(),
            }
        };
        let router = Router::new()
            .route("/v1/replacements", post(answer))
            .with_state((asked, door))
            .route("/v1/directors/lb1/findings", put(find));
        let (first, then) = (found(&["a"], &[]), found(&["a"], &["b"]));
        let holds = |findings: &Findings, requests: &[u8]| Outbox {
            findings: findings.clone(),
            requests: requests.iter().copied().map(key).collect(),
            ..Outbox::default()
        };
        let (outbox, changes) = watch::channel(holds(&first, &[1]));
        let play = async {
            let mut next = async || timeout(LIMIT, requests.recv()).await.unwrap().unwrap();
            // What is asked again does not wait for it.
            for _ in 0..3 {
                assert_eq!(next().await, key(1).to_string());
                assert_eq!(next().await, format!("{first:?}"));
            }
            outbox.send(holds(&then, &[])).unwrap();
            assert_eq!(next().await, format!("{then:?}"));
            outbox.send(holds(&then, &[1])).unwrap();
            for _ in 0..3 {
                assert_eq!(next().await, key(1).to_string());
            }
        };
        played(router, changes, play).await;
    }

    #[tokio::test]
    async fn what_is_asked_for_the_first_time_waits_for_no_news_of_what_was_asked_before() {
        let (asked, mut requests) = mpsc::channel(64);
        let door = Arc::new(tokio::sync::Semaphore::new(0));
        let state = (asked, Arc::clone(&door));
        let router = Router::new()
            .route("/v1/replacements", post(answer))
            .with_state(state);
        let old = Outbox {
            requests: [2, 3, 4].map(key).into(),
            ..Outbox::default()
        };
        let new = Outbox {
            requests: [1, 2, 3, 4, 5].map(key).into(),
            ..Outbox::default()
        };
        let (outbox, told) = watch::channel(old);
        let play = async {
            let mut next = async || timeout(LIMIT, requests.recv()).await.unwrap().unwrap();
            for n in [2, 3, 4] {
                door.add_permits(1);
                assert_eq!(next().await, key(n).to_string());
            }
            // The second time: while the first of these is asked for news, two servers more fail.
            assert_eq!(next().await, key(2).to_string());
            outbox.send(new).unwrap();
            for n in [1, 5, 2, 3, 4] {
                door.add_permits(1);
                assert_eq!(next().await, key(n).to_string());
            }
        };
        played(router, told, play).await;
    }

    #[tokio::test]
    async fn a_provisioner_that_wants_to_be_left_alone_is() {
        let (asked, mut requests) = mpsc::channel(64);
        let refuse = async move |headers: HeaderMap| {
            let key = headers["idempotency-key"].to_str().unwrap().to_owned();
            asked.send((time::Instant::now(), key)).await.unwrap();
            let problem = Problem::new(429, "Too Many Requests", "too_many_requests", "later");
            (StatusCode::TOO_MANY_REQUESTS, Json(problem.retry_after(3)))
        };
        let router = Router::new().route("/v1/replacements", post(refuse));
        let (outbox, told) = watch::channel(Outbox {
            requests: [1, 2].map(key).into(),
            ..Outbox::default()
        });
        let play = async {
            let mut next = async || timeout(LIMIT, requests.recv()).await.unwrap().unwrap();
            let (first, one) = next().await;
            // What is new changes nothing.
            outbox.send_modify(|o| o.requests.extend([key(3)]));
            let (second, again) = next().await;
            assert!(
                second - first >= Duration::from_secs(3),
                "{:?}",
                second - first
            );
            assert_eq!(one, again, "nothing else was asked meanwhile");
        };
        played(router, told, play).await;
    }
}
