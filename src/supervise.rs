//! Tasks that nobody forgets: all long-lived tasks of a daemon are started here, named and watched.
//! One that ends by itself ends the daemon, and systemd starts it anew.

use std::{collections::HashMap, time::Duration};

use tokio::{
    select,
    task::{Id, JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info_span};

/// Why the daemon does not end in order.
#[derive(Debug, thiserror::Error)]
pub enum Exit {
    /// A task that should run until it is stopped returned.
    #[error("task {0} ended by itself")]
    Ended(&'static str),
    /// A task panicked, while the daemon ran or while it stopped.
    #[error("task {name} panicked")]
    Panicked {
        /// Which.
        name: &'static str,
        /// How.
        #[source]
        source: JoinError,
    },
    /// Tasks did not end within the grace period, and were dropped where they stood.
    #[error("still running {grace:?} after the stop: {}", left.join(", "))]
    Overran {
        /// Which, by name.
        left: Vec<&'static str>,
        /// The period.
        grace: Duration,
    },
}

/// All long-lived tasks, and the token that stops them.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
    stop: CancellationToken,
}

impl Supervisor {
    /// Starts a task that runs until its token is cancelled.
    pub fn start<F, Fut>(&mut self, name: &'static str, task: F)
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let work = task(self.stop.child_token()).instrument(info_span!("task", name));
        let id = self.tasks.spawn(work).id();
        self.names.insert(id, name);
    }

    /// Runs until `shutdown` completes or a task ends by itself, then stops all tasks and waits for
    /// them, at most `grace`.
    ///
    /// # Errors
    ///
    /// The first of: a task ended by itself or panicked, a task panicked while it stopped, tasks
    /// did not end in time.
    pub async fn run(
        mut self,
        shutdown: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), Exit> {
        let mut verdict = select! {
            biased;
            // Cancel-safe per the docs of `join_next_with_id`.
            Some(end) = self.tasks.join_next_with_id() => match self.end(end) {
                Ok(name) => Err(Exit::Ended(name)),
                Err(exit) => Err(exit),
            },
            () = shutdown => Ok(()),
        };
        self.stop.cancel();
        let drained = timeout(grace, async {
            // Cancel-safe, as above.
            while let Some(end) = self.tasks.join_next_with_id().await {
                match self.end(end) {
                    Ok(name) => debug!(name, "task stopped"),
                    Err(exit) => {
                        error!(error = %crate::telemetry::Chain(&exit), "task failed while stopping");
                        verdict = std::mem::replace(&mut verdict, Ok(())).and(Err(exit));
                    }
                }
            }
        });
        if drained.await.is_err() {
            let mut left: Vec<_> = self.names.into_values().collect();
            left.sort_unstable();
            return verdict.and(Err(Exit::Overran { left, grace }));
        }
        verdict
    }

    /// The name of a task that ended, or how it failed. It is not counted as running any more.
    fn end(&mut self, end: Result<(Id, ()), JoinError>) -> Result<&'static str, Exit> {
        let id = match &end {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let name = self.names.remove(&id).unwrap_or("unnamed");
        match end {
            Ok(_) => Ok(name),
            Err(source) => Err(Exit::Panicked { name, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::telemetry::Chain;

    const GRACE: Duration = Duration::from_secs(5);

    async fn steady(stop: CancellationToken) {
        stop.cancelled().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_that_all_tasks_hear_is_in_order() {
        let mut s = Supervisor::default();
        s.start("check", steady);
        s.start("reconcile", steady);
        s.run(async {}, GRACE).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_by_itself_is_named_and_ends_the_others() {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let mut s = Supervisor::default();
        s.start("check", |stop| async move {
            stop.cancelled().await;
            tx.send(()).unwrap();
        });
        s.start("reconcile", |_| async {});
        let exit = s.run(pending(), GRACE).await.unwrap_err();
        assert!(matches!(exit, Exit::Ended("reconcile")), "{exit}");
        rx.await.expect("the other task was told to stop");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_told_with_its_task_and_words() {
        let mut s = Supervisor::default();
        s.start("check", steady);
        s.start("reconcile", |_| async { panic!("no such step") });
        let exit = s.run(pending(), GRACE).await.unwrap_err();
        let text = Chain(&exit).to_string();
        assert!(text.starts_with("task reconcile panicked: "), "{text}");
        assert!(text.contains("no such step"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_while_stopping_is_no_orderly_end() {
        let mut s = Supervisor::default();
        s.start("check", |stop| async move {
            stop.cancelled().await;
            panic!("late");
        });
        let exit = s.run(async {}, GRACE).await.unwrap_err();
        assert!(
            matches!(exit, Exit::Panicked { name: "check", .. }),
            "{exit}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_deaf_to_the_stop_are_named_after_the_grace() {
        let mut s = Supervisor::default();
        s.start("steady", steady);
        s.start("deaf", |_| pending());
        let exit = s.run(async {}, GRACE).await.unwrap_err();
        assert_eq!(exit.to_string(), "still running 5s after the stop: deaf");
    }
}
