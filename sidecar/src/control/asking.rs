//! With `--ask-contracts`: asks the local service for its contracts by gRPC server reflection.
//!
//! It is asked once it is up, and again after it was down: it may be another version by then. Until it was asked, nobody may
//! call it, as its contracts may say who may. A service without server reflection has no contracts. One that tells them in
//! vain has those from before, and none if there are none.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::reflection::{ReflectionError, Told, told_by};

use super::{
    Control,
    contracts::{compile, set},
};
use crate::shared::contracts::Contracts;

/// How long it is asked again when it could not be asked, or not be understood.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two questions.
const PAUSE: Duration = Duration::from_millis(250);

/// For as long as the sidecar runs.
pub(super) async fn run(control: Arc<Control>, app: SocketAddr) -> anyhow::Result<()> {
    let mut health = control.health.subscribe();
    loop {
        health.wait_for(|health| *health == Health::Up).await?;
        ask(&control, app).await?;
        health.changed().await?;
    }
}

async fn ask(control: &Arc<Control>, app: SocketAddr) -> anyhow::Result<()> {
    let asked_since = Instant::now();
    loop {
        let why = match told_by(app).await {
            Ok(told) => match take(control, told).await? {
                Ok(()) => return Ok(()),
                Err(error) => format!("{error:#}"),
            },
            Err(ReflectionError::Missing(_)) => {
                tracing::info!("the local service does not answer server reflection: no contract of it is known");
                set(control, Contracts::default());
                return Ok(());
            }
            Err(error) => error.to_string(),
        };
        if *control.health.borrow() != Health::Up {
            return Ok(());
        }
        if asked_since.elapsed() >= PATIENCE {
            give_up(control, &why);
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

/// Takes what it has told. The inner error says what is wrong with it.
async fn take(control: &Arc<Control>, told: Told) -> anyhow::Result<anyhow::Result<()>> {
    let shared = Arc::clone(&control.shared);
    // Large descriptors take long to compile.
    let compiling = spawn_blocking(move || {
        let is_same = shared.local_terms.get().contracts.descriptors.as_deref() == Some(&*told.descriptor_set);
        let compile = || {
            let what = "what the local service tells by server reflection";
            compile(what, told.descriptor_set, Some(&told.implements), shared.local_service.as_ref())
        };
        (!is_same).then(compile).transpose()
    });
    Ok(compiling.await.context("reading the contracts failed")?.map(|contracts| {
        if let Some(contracts) = contracts {
            tracing::info!(contracts = contracts.policy.contracts.len(), "the local service has told its contracts");
            set(control, contracts);
        }
    }))
}

fn give_up(control: &Control, why: &str) {
    control.shared.metrics.counters.contracts_refused.fetch_add(1, Relaxed);
    if control.shared.local_terms.get().contracts.are_known {
        tracing::error!("the contracts of the local service stay as they were: {why}");
    } else {
        tracing::error!("no contract of the local service is known: {why}");
        set(control, Contracts::default());
    }
}
