//! Keeps the claims: saves them when they change, and does what commands have written into the state folder meanwhile.
//! On Kubernetes each saved file is also copied to where it outlives the pod.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use weft_mesh::limits;

use crate::{
    claims::store::{Backup, ClaimsError, Store},
    directory::Directory,
};

/// How often released and granted claims are looked for, after [`STORE_PAUSE`]. The start of `weft up` waits for grants.
const ORDERS_POLL: Duration = Duration::from_millis(100);
/// The shortest time between two writes of the store, however often claims change.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How long until a copy that failed is tried again, unless claims change sooner.
const BACKUP_PAUSE: Duration = Duration::from_secs(5);

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
/// ends. What is saved goes to the backup, if there is one; nothing else waits for that.
pub(super) async fn keep_claims(
    directory: Arc<Directory>,
    store: Arc<Store>,
    backup: Option<Arc<dyn Backup>>,
    last: CancellationToken,
) {
    let all_saved = CancellationToken::new();
    let saving = async {
        save_until(&last, &directory, &store).await;
        all_saved.cancel();
    };
    let backing_up = async {
        if let Some(backup) = &backup {
            back_up(&store, &**backup, &all_saved).await;
        }
    };
    tokio::join!(saving, backing_up);
}

/// Copies the file of claims whenever it was saved. Once all is saved, it makes one more try and ends.
async fn back_up(store: &Arc<Store>, backup: &dyn Backup, all_saved: &CancellationToken) {
    let mut saved = store.saved();
    let mut copied = None;
    let mut is_failing = false;
    loop {
        // Before the file is read: if it is saved after that, there is another round.
        let is_last = all_saved.is_cancelled();
        saved.mark_unchanged();
        let reading = Arc::clone(store);
        let copying = async {
            if let Some(text) = elsewhere(move || reading.text()).await?
                && copied.as_ref() != Some(&text)
            {
                backup.put(&text).await?;
                copied = Some(text);
            }
            anyhow::Ok(())
        };
        match copying.await {
            Ok(()) if is_failing => {
                is_failing = false;
                tracing::info!("the claims are copied again");
            }
            Ok(()) => {}
            Err(error) => {
                // Once for each trouble, not for each try.
                if !is_failing || is_last {
                    let error = format_args!("{error:#}");
                    tracing::error!(%error, "claims can't be copied to where they outlive this pod; the last copy stays");
                }
                is_failing = true;
            }
        }
        if is_last {
            return;
        }
        tokio::select! {
            _ = saved.changed() => {}
            () = tokio::time::sleep(BACKUP_PAUSE), if is_failing => {}
            () = all_saved.cancelled() => {}
        }
    }
}

async fn save_until(last: &CancellationToken, directory: &Arc<Directory>, store: &Arc<Store>) {
    while !last.is_cancelled() {
        keep(directory, store).await;
        handle(directory, store, "released", Store::to_release, Directory::release, Store::released).await;
        handle(directory, store, "granted", Store::to_grant, Directory::grant, Store::granted).await;
        let pause = async {
            tokio::time::sleep(STORE_PAUSE).await;
            let _ = tokio::time::timeout(ORDERS_POLL, directory.has_to_keep()).await;
        };
        tokio::select! {
            () = pause => {}
            () = last.cancelled() => {}
        }
    }
    keep(directory, store).await;
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::BoxFuture;
    use tokio::time::Instant;
    use weft_mesh::names::ServiceName;

    use super::*;
    use crate::claims::{Saved, hosts::Hosts};

    /// Fails so often at first, and keeps what it was given.
    #[derive(Default)]
    struct Copies {
        fails: Mutex<usize>,
        given: Mutex<Vec<String>>,
    }

    impl Backup for Copies {
        fn put<'a>(&'a self, text: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
            Box::pin(async move {
                let mut fails = self.fails.lock().unwrap();
                if *fails > 0 {
                    *fails -= 1;
                    anyhow::bail!("no");
                }
                self.given.lock().unwrap().push(text.to_owned());
                Ok(())
            })
        }
    }

    fn save(store: &Store, contract: &str) {
        let mut saved = Saved::default();
        saved.pinned.insert(contract.to_owned(), ServiceName::parse("users.shop").unwrap());
        store.save(&saved, &Hosts::default()).unwrap();
    }

    /// Otherwise a control plane that replaces this one gives the contracts to whoever comes back first.
    #[tokio::test(start_paused = true)]
    async fn what_is_saved_is_copied_also_if_the_first_tries_fail_and_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), &"weft.test".parse().unwrap()).unwrap());
        save(&store, "a.Before");
        let copies = Arc::new(Copies { fails: Mutex::new(3), ..Copies::default() });
        let all_saved = CancellationToken::new();
        let task = {
            let (store, copies, all_saved) = (Arc::clone(&store), Arc::clone(&copies), all_saved.clone());
            tokio::spawn(async move { back_up(&store, &*copies, &all_saved).await })
        };
        let started = Instant::now();
        let copied = async |contract: &str| {
            let has = || copies.given.lock().unwrap().last().is_some_and(|text| text.contains(contract));
            while !has() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        copied("a.Before").await;
        assert!(started.elapsed() >= 3 * BACKUP_PAUSE);
        save(&store, "a.Later");
        copied("a.Later").await;
        save(&store, "a.Last");
        all_saved.cancel();
        task.await.unwrap();
        let given = copies.given.lock().unwrap();
        assert!(given.last().unwrap().contains("a.Last"), "{given:?}");
        assert_eq!(given.len(), 3, "each once: {given:?}");
    }
}
