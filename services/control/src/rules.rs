//! Who may call whom by the rules of the mesh: read from the file of `--access`, and told to the sidecars of the services
//! that are called. They decide.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use weft_contracts::weft::policy::v1 as wire;
use weft_mesh::{
    config::{Problem, Problems},
    file_watch::{FileWatch, Look},
    names::ServiceName,
    policy::MeshRules,
};

/// How often to look whether the file has changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(150);

/// A file of 10,000 rules has about 1 MiB. The rules for one service have to fit into a message.
const FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The rules that hold now.
pub(crate) struct Rules {
    /// The file that they are from, if there is one.
    file: Option<PathBuf>,
    current: watch::Sender<Arc<MeshRules>>,
}

impl Rules {
    /// Reads them. Without a file every member may call what its contract does not forbid.
    ///
    /// # Errors
    /// All that is wrong with the file.
    pub(crate) fn new(file: Option<&Path>) -> Result<Self, Problems> {
        let rules = file.map(read).transpose()?.unwrap_or_default();
        Ok(Self { file: file.map(Path::to_owned), current: watch::channel(Arc::new(rules)).0 })
    }

    /// Is told whenever they change.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<MeshRules>> {
        self.current.subscribe()
    }

    /// Reads the file again whenever it changes; never ends. A file that is wrong changes nothing.
    pub(crate) async fn keep(&self) {
        let Some(file) = self.file.clone() else { return std::future::pending().await };
        let mut watch = FileWatch::new(vec![file.clone()]);
        loop {
            sleep(LOOK_INTERVAL).await;
            // Half of a file may be good, too, and have fewer rules.
            if watch.look() == Look::Settled
                && let Err(problems) = self.read_again(&file).await
            {
                tracing::error!("the rules for who may call stay as they were: {problems}");
            }
        }
    }

    async fn read_again(&self, file: &Path) -> Result<(), String> {
        let reading = {
            let file = file.to_owned();
            spawn_blocking(move || read(&file))
        };
        let rules = reading.await.map_err(|e| e.to_string())?.map_err(|problems| lines(&problems))?;
        let set = |current: &mut Arc<MeshRules>| {
            let is_other = **current != rules;
            if is_other {
                *current = Arc::new(rules);
            }
            is_other
        };
        if self.current.send_if_modified(set) {
            tracing::info!("the rules for who may call have changed");
        }
        Ok(())
    }
}

/// What the rules say of one service, as its sidecar is told.
pub(crate) fn for_service(rules: &MeshRules, service: &ServiceName) -> wire::MeshAccess {
    (&rules.of(service)).into()
}

fn read(path: &Path) -> Result<MeshRules, Problems> {
    let shown = path.display().to_string();
    let text = read_text(path).map_err(|error| {
        Problems::new(vec![Problem::new(&shown, 0, "", format!("cannot be read: {error} (--access)"))])
    })?;
    MeshRules::parse(&shown, &text)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {FILE_BYTES} bytes")));
    }
    Ok(text)
}

fn lines(problems: &Problems) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_changed_file_is_taken_and_a_wrong_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.yaml");
        std::fs::write(&file, "access: deny\n").unwrap();
        let rules = Rules::new(Some(&file)).unwrap();
        let mut changes = rules.changes();
        assert_eq!(changes.borrow_and_update().is_allowed, Some(false));
        std::fs::write(&file, "access: denied\n").unwrap();
        let why = rules.read_again(&file).await.unwrap_err();
        assert!(why.ends_with("access.yaml:1: access: found the text \"denied\"; allowed: allow, deny"), "{why}");
        assert!(!changes.has_changed().unwrap());
        std::fs::write(&file, "access: deny\n# as before\n").unwrap();
        rules.read_again(&file).await.unwrap();
        assert!(!changes.has_changed().unwrap(), "it says the same");
        std::fs::write(&file, "access: allow\n").unwrap();
        tokio::select! {
            () = rules.keep() => {}
            changed = changes.changed() => changed.unwrap(),
        }
        assert_eq!(changes.borrow().is_allowed, Some(true));
        std::fs::write(&file, vec![b'#'; FILE_BYTES as usize + 1]).unwrap();
        let why = rules.read_again(&file).await.unwrap_err();
        assert!(why.contains("it has more than 4194304 bytes"), "{why}");
        assert!(Rules::new(Some(&dir.path().join("none"))).is_err());
    }
}
