//! A steady load on `probe.v1.Probe`, and the outcome of each call.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};
use tonic::{Status, transport::Channel};

use crate::probe;

/// The time between the starts of two calls.
const PACE: Duration = Duration::from_millis(20);

/// Calls that go on until [`Self::stop`].
pub struct Load {
    stop: watch::Sender<bool>,
    begun: watch::Receiver<usize>,
    calls: JoinHandle<Vec<Outcome>>,
}

/// A call of the load.
pub struct Outcome {
    /// When it began.
    pub began: Instant,
    /// The process that answered, or the status of the failure.
    pub answer: Result<String, Status>,
}

impl Load {
    /// Starts a call of `Say` every 20 ms, with `what` as its `x-do`. No call waits for another.
    pub fn start(channel: Channel, what: &str) -> Self {
        let what: Arc<str> = what.into();
        let (stop, mut stopped) = watch::channel(false);
        let (begins, begun) = watch::channel(0);
        let calls = tokio::spawn(async move {
            let (mut running, mut ticks) = (JoinSet::new(), interval(PACE));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {
                        running.spawn(one(channel.clone(), Arc::clone(&what)));
                        begins.send_modify(|count| *count += 1);
                    }
                    _ = stopped.changed() => break running.join_all().await,
                }
            }
        });
        Self { stop, begun, calls }
    }

    /// Waits until `more` further calls have started.
    ///
    /// # Panics
    /// The load has panicked.
    pub async fn calls(&self, more: usize) {
        let mut begun = self.begun.clone();
        let until = *begun.borrow() + more;
        begun.wait_for(|count| *count >= until).await.expect("the load goes on");
    }

    /// Waits for the calls that still run. Returns all calls in the order in which they started.
    ///
    /// # Panics
    /// A call panicked.
    pub async fn stop(self) -> Vec<Outcome> {
        self.stop.send_replace(true);
        let mut outcomes = self.calls.await.expect("the load does not panic");
        outcomes.sort_by_key(|outcome| outcome.began);
        outcomes
    }
}

async fn one(channel: Channel, what: Arc<str>) -> Outcome {
    let began = Instant::now();
    let answer = probe(&channel, "Say", &[("x-do", &what)]).await;
    let pid = |answer: tonic::Response<crate::Text>| {
        answer.metadata().get("x-pid").and_then(|pid| pid.to_str().ok()).unwrap_or_default().to_owned()
    };
    Outcome { began, answer: answer.map(pid) }
}
