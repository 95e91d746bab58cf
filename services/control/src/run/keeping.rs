//! Keeps the claims: saves them when they change, and does what commands have written into the state folder meanwhile.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use weft_mesh::limits;

use crate::{
    claims::store::{ClaimsError, Store},
    directory::Directory,
};

/// How often released and granted claims are looked for, after [`STORE_PAUSE`]. The start of `weft up` waits for grants.
const ORDERS_POLL: Duration = Duration::from_millis(100);
/// The shortest time between two writes of the store, however often claims change.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// Waits until the last claims are saved, for [`limits::CONTROL_STOP`] at most: a disk may hang.
pub(super) async fn kept(keeping: JoinHandle<()>) {
    match timeout(limits::CONTROL_STOP, keeping).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "claims are no longer saved"),
        Err(_) => tracing::error!(
            within = ?limits::CONTROL_STOP,
            "the last claims could not be saved in time: after a restart they belong to the first claimant"
        ),
    }
}

/// Saves claims when they change, and handles releases and grants, until `last` is cancelled. Then it saves the last changes and
/// ends.
pub(super) async fn keep_claims(directory: Arc<Directory>, store: Arc<Store>, last: CancellationToken) {
    while !last.is_cancelled() {
        keep(&directory, &store).await;
        handle(&directory, &store, "released", Store::to_release, Directory::release, Store::released).await;
        handle(&directory, &store, "granted", Store::to_grant, Directory::grant, Store::granted).await;
        let pause = async {
            tokio::time::sleep(STORE_PAUSE).await;
            let _ = tokio::time::timeout(ORDERS_POLL, directory.has_to_keep()).await;
        };
        tokio::select! {
            () = pause => {}
            () = last.cancelled() => {}
        }
    }
    keep(&directory, &store).await;
}

/// Reads a list of claims, and does with them what it is for. They stay on the list until the result is saved.
async fn handle<T: Send + 'static>(
    directory: &Directory,
    store: &Arc<Store>,
    list: &str,
    read: fn(&Store) -> Result<Vec<T>, ClaimsError>,
    act: fn(&Directory, &[T]),
    clear: fn(&Store) -> Result<(), ClaimsError>,
) {
    let reading = Arc::clone(store);
    match elsewhere(move || read(&reading)).await {
        Ok(claims) if !claims.is_empty() => {
            act(directory, &claims);
            let clearing = Arc::clone(store);
            if keep(directory, store).await
                && let Err(error) = elsewhere(move || clear(&clearing)).await
            {
                tracing::error!(%error, "{list} claims can't be removed from the list");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "{list} claims can't be read"),
    }
}

/// Saves the changes. False if that failed.
async fn keep(directory: &Directory, store: &Arc<Store>) -> bool {
    let Some((saved, hosts)) = directory.take_changes() else { return true };
    let writing = Arc::clone(store);
    let kept = elsewhere(move || writing.save(&saved, &hosts)).await;
    if let Err(error) = &kept {
        tracing::error!(%error, "claims can't be saved: after a restart they belong to the first claimant");
        directory.keep_again();
    }
    kept.is_ok()
}

/// Runs disk operations on another thread, while this one serves requests.
pub(super) async fn elsewhere<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, ClaimsError> + Send + 'static,
) -> Result<T, ClaimsError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(result) => result,
        // It panicked, which is logged. The files are whole: each is replaced at once.
        Err(error) => Err(ClaimsError::Content { file: "the store".to_owned(), why: error.to_string() }),
    }
}
