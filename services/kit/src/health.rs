//! Health by the [gRPC health protocol](https://github.com/grpc/grpc/blob/master/doc/health-checking.md): of the
//! service itself under the empty name, and of each dependency under `dependency/NAME`.
//!
//! A *required* dependency takes the service down with it. That is right for the service's own database, but wrong for
//! another service of the mesh, whose failure would then spread to all its callers. Such a dependency is *optional*: it
//! is checked, shown and counted, and the service stays up.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{sync::Mutex, time::Instant};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_check_response, health_client::HealthClient, health_server::HealthServer},
    server::{HealthReporter, HealthService},
};
use weft_mesh::limits;

use crate::{Channel, metrics::Metrics};

/// The time between two checks of a dependency.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The time between two checks of a dependency that is starting: it was most likely started together with this service.
const STARTING_INTERVAL: Duration = Duration::from_millis(250);
/// How long one check of a dependency may take.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

type Check = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// Something that a service needs for all or part of its work.
#[derive(Clone)]
pub struct Dependency {
    name: String,
    is_required: bool,
    interval: Duration,
    check: Check,
}

impl Dependency {
    /// A dependency without which no call can be answered: until its check succeeds, the service is `NOT_SERVING`.
    pub fn required<F, Fut>(name: &str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let check: Check = Arc::new(move || Box::pin(check()));
        Self { name: name.to_owned(), is_required: true, interval: CHECK_INTERVAL, check }
    }

    /// A dependency without which the service can still answer some calls.
    pub fn optional<F, Fut>(name: &str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self { is_required: false, ..Self::required(name, check) }
    }

    /// Another service of the mesh, asked for its health through the local sidecar.
    pub(crate) fn service(name: &str, channel: Channel) -> Self {
        Self::optional(name, move || {
            let mut health = HealthClient::new(channel.clone());
            async move {
                let answer = health.check(HealthCheckRequest { service: String::new() }).await;
                let answer = answer.map_err(|status| anyhow::anyhow!("{:?}: {}", status.code(), status.message()))?;
                let state = answer.into_inner().status();
                anyhow::ensure!(
                    state == health_check_response::ServingStatus::Serving,
                    "its health is {}",
                    state.as_str_name()
                );
                Ok(())
            }
        })
    }

    /// Checks at another interval than [`CHECK_INTERVAL`].
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }
}

/// What the checks of a dependency have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Unknown,
    /// It was never up, which is normal for [`limits::STARTING_TIME`].
    Starting,
    Up,
    Down,
}

impl Seen {
    /// The state after one more check.
    fn then(self, is_up: bool, may_be_starting: bool) -> Self {
        match self {
            _ if is_up => Self::Up,
            Self::Unknown | Self::Starting if may_be_starting => Self::Starting,
            _ => Self::Down,
        }
    }
}

/// The service's health, as it is reported to callers. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Once the service's own code is ready.
    is_up: bool,
    is_stopping: bool,
    says_serving: bool,
    required_down: BTreeSet<String>,
}

impl Health {
    /// Down until [`Health::set_up`] and until every required dependency has been seen.
    pub(crate) async fn new(dependencies: &[Dependency]) -> Self {
        let required_down = dependencies.iter().filter(|d| d.is_required).map(|d| d.name.clone()).collect();
        let state = State { is_up: false, is_stopping: false, says_serving: true, required_down };
        let health = Self { reporter: HealthReporter::new(), state: Arc::new(Mutex::new(state)) };
        health.update(|_| ()).await;
        for dependency in dependencies {
            health.reporter.set_service_status(entry(&dependency.name), ServingStatus::Unknown).await;
        }
        health
    }

    /// The gRPC service that answers.
    pub(crate) fn server(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.reporter.clone()))
    }

    /// For the service's own code: a service that is not serving gets no new calls from the mesh.
    pub async fn set_serving(&self, is_serving: bool) {
        self.update(|state| state.says_serving = is_serving).await;
    }

    /// The service's code has started.
    pub(crate) async fn set_up(&self) {
        self.update(|state| state.is_up = true).await;
    }

    /// The service is stopping. Ends the watches of its health, which would keep their connections open otherwise.
    pub(crate) async fn set_stopping(&self) {
        self.update(|state| state.is_up = false).await;
        self.state.lock().await.is_stopping = true;
        self.reporter.clone().clear_service_status("").await;
    }

    /// Checks one dependency for as long as it is polled.
    pub(crate) async fn watch(self, dependency: Dependency, metrics: Metrics) {
        let gauge = metrics.dependency(&dependency.name);
        let starts_until = Instant::now() + limits::STARTING_TIME;
        let mut seen = Seen::Unknown;
        loop {
            let outcome = match tokio::time::timeout(CHECK_TIMEOUT, (dependency.check)()).await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow::anyhow!("no answer within {CHECK_TIMEOUT:?}")),
            };
            let is_up = outcome.is_ok();
            let before = seen;
            seen = before.then(is_up, Instant::now() < starts_until);
            if seen != before {
                gauge.set(i64::from(is_up));
                self.changed(&dependency, seen, outcome.err()).await;
            }
            let pause = match seen {
                Seen::Starting => STARTING_INTERVAL.min(dependency.interval),
                _ => dependency.interval,
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Reports the new state of a dependency, and updates the service's own health.
    async fn changed(&self, dependency: &Dependency, seen: Seen, why: Option<anyhow::Error>) {
        let (name, is_up) = (dependency.name.as_str(), seen == Seen::Up);
        let error = why.map(|why| format!("{why:#}")).unwrap_or_default();
        match seen {
            Seen::Unknown => {}
            Seen::Starting => tracing::debug!(dependency = name, error, "dependency is not up yet"),
            Seen::Up => tracing::info!(dependency = name, "dependency is up"),
            Seen::Down => tracing::warn!(dependency = name, error, "dependency is down"),
        }
        self.reporter.set_service_status(entry(name), serving(is_up)).await;
        if dependency.is_required {
            self.update(|state| match is_up {
                true => drop(state.required_down.remove(name)),
                false => drop(state.required_down.insert(name.to_owned())),
            })
            .await;
        }
    }

    /// Changes the state and reports it as one step, so that no other change comes between.
    async fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().await;
        if state.is_stopping {
            return;
        }
        change(&mut state);
        let is_serving = state.is_up && state.says_serving && state.required_down.is_empty();
        self.reporter.set_service_status("", serving(is_serving)).await;
    }
}

fn entry(name: &str) -> String {
    format!("dependency/{name}")
}

fn serving(is_serving: bool) -> ServingStatus {
    if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_that_was_never_up_is_down_only_after_its_starting_time() {
        assert_eq!(Seen::Unknown.then(false, true), Seen::Starting);
        assert_eq!(Seen::Starting.then(false, true), Seen::Starting);
        assert_eq!(Seen::Starting.then(false, false), Seen::Down);
        assert_eq!(Seen::Starting.then(true, true), Seen::Up);
        assert_eq!(Seen::Up.then(false, true), Seen::Down, "it was up");
        assert_eq!(Seen::Down.then(false, true), Seen::Down);
    }
}
