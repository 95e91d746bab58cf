//! Who may call whom by the rules of the mesh: from the file of `--access` (`file`) or, on Kubernetes, from resources of the
//! cluster. The sidecars of the services that are called are told what holds for them (`of_sidecar`). They decide.
//!
//! On Kubernetes, resources say other things besides, in place of what a service's contracts do (`of_service`).
//!
//! How many sidecars have been told what holds now is counted (`listeners`).

mod file;
mod listeners;
mod of_service;
mod of_sidecar;

#[cfg(feature = "kubernetes")]
use std::sync::OnceLock;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};
use weft_mesh::{
    config::Problems,
    file_watch::{FileWatch, Look},
    names::ServiceName,
    policy::MeshRules,
};

#[cfg(feature = "kubernetes")]
pub(crate) use self::listeners::AccessReach;
use self::listeners::Listeners;
pub(crate) use self::{
    listeners::{Listens, Reach, Said, Taking},
    of_service::{ByService, OfService},
    of_sidecar::{Access, InForce, Origins, nobody},
};

/// How often to look whether the file has changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(150);

/// The rules that hold now.
pub(crate) struct Rules {
    /// The file that they are from, if there is one.
    file: Option<PathBuf>,
    current: watch::Sender<Arc<InForce>>,
    methods: watch::Sender<Arc<ByService>>,
    listeners: Arc<Listeners>,
    #[cfg(feature = "kubernetes")]
    followers: OnceLock<Followers>,
}

/// How many sidecars follow the service of a MethodPolicy, and how many of them have been sent its values.
#[cfg(feature = "kubernetes")]
type Followers = Box<dyn Fn(&Arc<OfService>) -> Reach + Send + Sync>;

impl Rules {
    /// Reads them. Without a file every member may call what its contract does not forbid.
    ///
    /// # Errors
    /// All that is wrong with the file.
    pub(crate) fn new(file: Option<&Path>) -> Result<Self, Problems> {
        let rules = file.map(file::read).transpose()?.unwrap_or_default();
        Ok(Self {
            file: file.map(Path::to_owned),
            current: watch::channel(Arc::new(rules.into())).0,
            methods: watch::Sender::default(),
            listeners: Arc::default(),
            #[cfg(feature = "kubernetes")]
            followers: OnceLock::new(),
        })
    }

    /// Is told whenever they change.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<InForce>> {
        self.current.subscribe()
    }

    /// From now on these hold. Says whether that is a change.
    pub(crate) fn set(&self, mut rules: InForce) -> bool {
        self.current.send_if_modified(|current| {
            let is_other = !current.says(&rules);
            if is_other {
                rules.follow(current);
                *current = Arc::new(rules);
            }
            is_other
        })
    }

    /// A place for a sidecar that is told who may call it.
    pub(crate) fn listen(&self, id: ServiceName, host: IpAddr) -> Listens {
        self.listeners.add(id, host)
    }

    /// How many sidecars have been told what holds now of who may call.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn reach_of_access(&self) -> AccessReach {
        let version = self.current.borrow().version();
        self.listeners.reach(version)
    }

    /// From now on it is known how many sidecars follow which services. The first time counts.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn set_followers(&self, followers: impl Fn(&Arc<OfService>) -> Reach + Send + Sync + 'static) {
        let _ = self.followers.set(Box::new(followers));
    }

    /// How many sidecars follow the service of a MethodPolicy, and how many of them have been sent its values. `None` as long as
    /// that is not known.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn reach_of_methods(&self, methods: &Arc<OfService>) -> Option<Reach> {
        Some(self.followers.get()?(methods))
    }

    /// What MethodPolicies say, now and whenever it changes.
    pub(crate) fn methods(&self) -> watch::Receiver<Arc<ByService>> {
        self.methods.subscribe()
    }

    /// From now on MethodPolicies say this. Says whether that is a change.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn set_methods(&self, methods: ByService) -> bool {
        self.methods.send_if_modified(|current| {
            let is_other = **current != methods;
            if is_other {
                *current = Arc::new(methods);
            }
            is_other
        })
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
            spawn_blocking(move || file::read(&file))
        };
        let rules: MeshRules = reading.await.map_err(|e| e.to_string())?.map_err(|problems| lines(&problems))?;
        if self.set(rules.into()) {
            tracing::info!("the rules for who may call have changed");
        }
        Ok(())
    }
}

/// All problems on one line.
pub(crate) fn lines(problems: &Problems) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use weft_mesh::policy::DefaultAccess;

    use super::*;

    #[tokio::test]
    async fn a_changed_file_is_taken_and_a_wrong_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access.yaml");
        std::fs::write(&file, "access: deny\n").unwrap();
        let rules = Rules::new(Some(&file)).unwrap();
        let mut changes = rules.changes();
        assert_eq!(changes.borrow_and_update().default_of("shop"), DefaultAccess::Mesh { is_allowed: false });
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
        assert_eq!(changes.borrow().default_of("shop"), DefaultAccess::Mesh { is_allowed: true });
        std::fs::write(&file, vec![b'#'; file::FILE_BYTES as usize + 1]).unwrap();
        let why = rules.read_again(&file).await.unwrap_err();
        assert!(why.contains("it has more than 4194304 bytes"), "{why}");
        assert!(Rules::new(Some(&dir.path().join("none"))).is_err());
    }
}
