//! The contracts of the local service: read from `--descriptors` at the start, and again when the file changes.
//!
//! A changed file that can't be used changes nothing. The contracts that were read before stay in force, and the log
//! says why.

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
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
const LOOK_INTERVAL: Duration = Duration::from_millis(150);

/// Reads them. Without `--descriptors` the service has none, or it has to be [asked](super::asking).
///
/// # Errors
/// The file can't be read, is no descriptor set, or has options that are wrong. The error names the flag and the file.
pub(crate) fn read(args: &Args, local: Option<&ServiceName>) -> anyhow::Result<Contracts> {
    match &args.descriptors {
        Some(file) => compile_file(file, bytes_of(file)?, &args.contracts, local),
        None => Ok(Contracts::default()),
    }
}

fn bytes_of(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("--descriptors {}: the file can't be read", file.display()))
}

fn compile_file(
    file: &Path,
    bytes: Vec<u8>,
    implemented: &[String],
    local: Option<&ServiceName>,
) -> anyhow::Result<Contracts> {
    let implemented = names(implemented);
    let implemented = (!implemented.is_empty()).then_some(&*implemented);
    compile(&format!("--descriptors {}", file.display()), bytes, implemented, local)
}

/// The names in `--contracts`. As a file or a ConfigMap has them, there may be spaces and new lines around them, and a comma at
/// the end.
fn names(given: &[String]) -> Vec<String> {
    given.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// Compiles a serialized `FileDescriptorSet`.
///
/// # Errors
/// Options in it are wrong. `what` says what it is.
pub(super) fn compile(
    what: &str,
    descriptor_set: Vec<u8>,
    implemented: Option<&[String]>,
    local: Option<&ServiceName>,
) -> anyhow::Result<Contracts> {
    let policy = ServicePolicy::from_descriptors(&descriptor_set, implemented).with_context(|| what.to_owned())?;
    if let Some(local) = local
        && let Some((_, way)) = find_loop(&[(local, &policy)])
    {
        bail!("{what}: a fallback of {local} leads back to it: {way}");
    }
    Ok(Contracts::new(policy, Some(Bytes::from(descriptor_set))))
}

/// Replaces the contracts of the local service, and announces it again.
pub(super) fn set(control: &Control, contracts: Contracts) {
    control.shared.local_terms.set_contracts(contracts);
    control.contracts_changed.send_replace(());
}

/// Watches the file. It is read at the first look, too, as it may have changed since the start.
pub(super) async fn run(control: Arc<Control>) -> anyhow::Result<()> {
    let Some(file) = control.shared.args.descriptors.clone() else { return Ok(()) };
    let mut watch = FileWatch::new(vec![file.clone()]);
    loop {
        sleep(LOOK_INTERVAL).await;
        // Half of a file may be valid, too, and have fewer rules.
        if watch.look() == Look::Settled
            && let Err(error) = read_again(&control, &file).await
        {
            control.shared.metrics.counters.contracts_refused.fetch_add(1, Relaxed);
            tracing::error!("the contracts of the local service stay as they were: {error:#}");
        }
    }
}

/// Reads the file again. If it says the same as before, as at the first look, nothing is compiled.
async fn read_again(control: &Control, file: &Path) -> anyhow::Result<()> {
    let shared = &control.shared;
    let reading = spawn_blocking({
        // Large descriptors take long to compile.
        let (shared, file) = (Arc::clone(shared), file.to_owned());
        move || {
            let bytes = bytes_of(&file)?;
            let is_same = shared.local_terms.get().contracts.descriptors.as_deref() == Some(&*bytes);
            let contracts = || {
                let contracts = compile_file(&file, bytes, &shared.args.contracts, shared.local_service.as_ref())?;
                // An empty file is a valid set. Nobody means that.
                let had_some = !shared.local_terms.get().contracts.policy.contracts.is_empty();
                let has_none = contracts.policy.contracts.is_empty();
                ensure!(!(had_some && has_none), "--descriptors {}: no contract is left in it", file.display());
                Ok(contracts)
            };
            (!is_same).then(contracts).transpose()
        }
    });
    if let Some(contracts) = reading.await.context("reading the contracts failed")?? {
        set(control, contracts);
        shared.metrics.counters.contracts_reloaded.fetch_add(1, Relaxed);
        tracing::info!("the contracts of the local service have changed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_have_spaces_around_them() {
        let file = Path::new("users.binpb");
        let read = |contracts: &[&str]| {
            let given: Vec<String> = contracts.iter().map(|name| (*name).to_owned()).collect();
            let read = compile_file(file, weft_contracts::FILE_DESCRIPTOR_SET.to_vec(), &given, None)?;
            anyhow::Ok(read.policy.contracts.len())
        };
        assert_eq!(read(&["shop.users.v1.Users\n"]).unwrap(), 1);
        assert_eq!(read(&["shop.users.v1.Users", " shop.orders.v1.Orders", "\n"]).unwrap(), 2);
        // None is as if the flag was not given.
        let all = read(&[]).unwrap();
        assert!(all > 2);
        assert_eq!(read(&[""]).unwrap(), all);
        let told = format!("{:#}", read(&["shop.users.v1.Nobody"]).unwrap_err());
        assert!(told.contains("users.binpb") && told.contains("Nobody"), "{told}");
    }
}
