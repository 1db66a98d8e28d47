//! One time limit over all phases of a probe, fair to the server when this process was stopped.
//!
//! Two rules: an answer that is there is read before the time is said to be over; and a probe that
//! lost half of its time because this process did not run (SIGSTOP, a frozen guest, no CPU) says
//! nothing of the server.

use std::{pin::pin, time::Duration};

use tokio::{
    select,
    task::yield_now,
    time::{Instant, sleep_until},
};

use crate::model::{FailReason, Phase};

/// A stop is noticed by a timer that fires late. Eight timers over a probe notice every stop of
/// more than five eighths of its limit, wherever in the probe it fell.
const SLICES: u32 = 8;

/// Turns of the I/O driver between the last timer and the verdict: one would do where the driver is
/// this thread's own.
const LAST_TURNS: u32 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Deadline {
    limit: Duration,
    end: Instant,
    /// When the next timer should fire.
    tick: Instant,
    /// Time in which this process did not run although a timer was due.
    lost: Duration,
}

impl Deadline {
    /// The limit begins at `begun`.
    pub(super) fn new(begun: Instant, limit: Duration) -> Self {
        let mut deadline = Self {
            limit,
            end: begun + limit,
            tick: begun,
            lost: Duration::ZERO,
        };
        deadline.advance(begun);
        deadline
    }

    /// The whole of it.
    pub(super) const fn limit(&self) -> Duration {
        self.limit
    }

    /// Runs `phase_work` within what is left of the limit.
    pub(super) async fn hold<T>(
        &mut self,
        phase: Phase,
        phase_work: impl Future<Output = Result<T, FailReason>>,
    ) -> Result<T, FailReason> {
        let mut work = pin!(phase_work);
        loop {
            select! {
                // The result first: it may have come while the timer fired.
                biased;
                result = &mut work => return self.judge(result),
                // Cancel-safe: the tick stays due.
                () = sleep_until(self.tick) => {}
            }
            let now = Instant::now();
            self.advance(now);
            if now >= self.end {
                break;
            }
        }
        for _ in 0..LAST_TURNS {
            // Lets the driver ask the kernel what is readable before the work is polled again.
            yield_now().await;
            select! {
                biased;
                result = &mut work => return self.judge(result),
                () = std::future::ready(()) => {}
            }
        }
        self.judge(Err(FailReason::TimedOut(phase)))
    }

    /// Counts what the tick was late, and sets the next one.
    fn advance(&mut self, now: Instant) {
        self.lost += now.saturating_duration_since(self.tick);
        self.tick = self.end.min(now + self.limit / SLICES);
    }

    /// A failure is the server's only where this process ran: a server may well close a connection
    /// on which it heard nothing for a minute.
    pub(super) fn judge<T>(&self, result: Result<T, FailReason>) -> Result<T, FailReason> {
        // The clock is read for a failure only.
        let lost = || self.lost + Instant::now().saturating_duration_since(self.tick);
        match result {
            Err(_) if lost() >= self.limit / 2 => Err(FailReason::Local),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{join, sync::oneshot, time::advance};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);
    type Told = Result<(), FailReason>;

    #[tokio::test(start_paused = true)]
    async fn nothing_in_time_is_a_time_out_of_its_phase() {
        let begun = Instant::now();
        let told: Told = Deadline::new(Instant::now(), LIMIT)
            .hold(Phase::Answer, pending())
            .await;
        assert_eq!(told, Err(FailReason::TimedOut(Phase::Answer)));
        assert!(begun.elapsed() < LIMIT + Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn one_limit_covers_all_phases() {
        let begun = Instant::now();
        let mut deadline = Deadline::new(Instant::now(), LIMIT);
        let slow = async {
            tokio::time::sleep(LIMIT * 3 / 4).await;
            Ok(())
        };
        assert_eq!(deadline.hold(Phase::Connect, slow).await, Ok(()));
        let told: Told = deadline.hold(Phase::Answer, pending()).await;
        assert_eq!(told, Err(FailReason::TimedOut(Phase::Answer)));
        assert!(begun.elapsed() < LIMIT + Duration::from_millis(50));
    }

    /// The process is stopped for `stop` once `before` has passed, and runs again.
    async fn stopped(before: Duration, stop: Duration, work: impl Future<Output = Told>) -> Told {
        let mut deadline = Deadline::new(Instant::now(), LIMIT);
        let (told, ()) = join!(biased; deadline.hold(Phase::Answer, work), async {
            tokio::time::sleep(before).await;
            advance(stop).await;
        });
        told
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_process_blames_no_server() {
        for stop_ms in [700, 900, 1_500, 60_000] {
            for before_ms in [0, 10, 130, 240] {
                let told = stopped(
                    Duration::from_millis(before_ms),
                    Duration::from_millis(stop_ms),
                    pending(),
                );
                assert_eq!(
                    told.await,
                    Err(FailReason::Local),
                    "stopped {stop_ms} ms after {before_ms} ms"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_stop_is_no_excuse() {
        let told = stopped(
            Duration::from_millis(10),
            Duration::from_millis(200),
            pending(),
        );
        assert_eq!(
            told.await,
            Err(FailReason::TimedOut(Phase::Answer)),
            "most of the time was the server's"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_came_during_the_stop_counts() {
        let (tx, rx) = oneshot::channel();
        let mut deadline = Deadline::new(Instant::now(), LIMIT);
        let work = async { rx.await.map_err(|_gone| FailReason::Reset) };
        let (told, ()) = join!(biased; deadline.hold(Phase::Answer, work), async {
            advance(Duration::from_secs(60)).await;
            tx.send(()).unwrap();
        });
        assert_eq!(told, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_closed_during_the_stop_does_not_count() {
        let (tx, rx) = oneshot::channel::<()>();
        let mut deadline = Deadline::new(Instant::now(), LIMIT);
        let work = async { rx.await.map_err(|_gone| FailReason::Reset) };
        let (told, ()) = join!(biased; deadline.hold(Phase::Answer, work), async {
            advance(Duration::from_secs(60)).await;
            drop(tx);
        });
        assert_eq!(told, Err(FailReason::Local));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_seen_only_after_the_last_timer_counts() {
        // Stands for readiness that the driver reads a turn later than the timer.
        let mut polls_after_end = 0;
        let end = Instant::now() + LIMIT;
        let work = std::future::poll_fn(move |_| {
            if Instant::now() >= end {
                polls_after_end += 1;
            }
            if polls_after_end > 1 {
                std::task::Poll::Ready(Ok(()))
            } else {
                std::task::Poll::Pending
            }
        });
        let told: Told = Deadline::new(Instant::now(), LIMIT)
            .hold(Phase::Answer, work)
            .await;
        assert_eq!(told, Ok(()));
    }
}
