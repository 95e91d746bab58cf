//! The contracts of the local service: read from `--descriptors` at the start, and again when the file changes.
//!
//! A changed file that can't be used changes nothing. The contracts that were read before stay in force, and the log
//! says why.

use std::{
    fs,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::{task::spawn_blocking, time::sleep};
use weft_mesh::{
    file_watch::{FileWatch, Look},
    names::ServiceName,
    policy::{ServicePolicy, find_loop},
};

use super::Control;
use crate::{args::Args, shared::contracts::Contracts};

/// How often to look whether the file has changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Reads them. Without `--descriptors` the service has none.
///
/// # Errors
/// The file can't be read, is no descriptor set, or has options that are wrong. The error names the flag and the file.
pub(crate) fn read(args: &Args, local: Option<&ServiceName>) -> anyhow::Result<Contracts> {
    let Some(file) = &args.descriptors else { return Ok(Contracts::default()) };
    let flag = || format!("--descriptors {}", file.display());
    let bytes = fs::read(file).with_context(|| format!("{}: the file can't be read", flag()))?;
    let implemented = (!args.contracts.is_empty()).then_some(&*args.contracts);
    let policy = ServicePolicy::from_descriptors(&bytes, implemented).with_context(flag)?;
    if let Some(local) = local
        && let Some((_, way)) = find_loop(&[(local, &policy)])
    {
        bail!("{}: a fallback of {local} leads back to it: {way}", flag());
    }
    Ok(Contracts::new(policy, Some(Bytes::from(bytes))))
}

/// Watches the file. It is read at the first look, too, as it may have changed since the start.
pub(super) async fn run(control: Arc<Control>) -> anyhow::Result<()> {
    let Some(file) = control.shared.args.descriptors.clone() else { return Ok(()) };
    let mut watch = FileWatch::new(vec![file]);
    let mut trouble = None;
    loop {
        sleep(LOOK_INTERVAL).await;
        match watch.look() {
            Look::Changed => trouble = read_again(&control).await.err(),
            Look::Settled => {
                if let Some(error) = trouble.take() {
                    control.shared.metrics.counters.contracts_refused.fetch_add(1, Relaxed);
                    tracing::error!("the contracts of the local service stay as they were: {error:#}");
                }
            }
            Look::Unchanged => {}
        }
    }
}

async fn read_again(control: &Control) -> anyhow::Result<()> {
    let shared = &control.shared;
    let contracts = spawn_blocking({
        // Large descriptors take long to compile.
        let shared = Arc::clone(shared);
        move || read(&shared.args, shared.local_service.as_ref())
    });
    let contracts = contracts.await.context("reading the contracts failed")??;
    if contracts.descriptors != shared.local_contracts.get().descriptors {
        shared.local_contracts.replace(contracts);
        shared.metrics.counters.contracts_reloaded.fetch_add(1, Relaxed);
        tracing::info!("the contracts of the local service have changed");
        control.contracts_changed.send_replace(());
    }
    Ok(())
}
