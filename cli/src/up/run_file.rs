//! `.weft/run.json`: what runs, so that `weft down` can end it and `weft call` can find the dashboard.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

use super::{process::ProcessId, trust};
use crate::project_file;

const NAME: &str = "run.json";

/// The description of a run of `weft up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// It is in the environment of every process of the run.
    pub(crate) run_id: String,
    pub(crate) mesh_file: PathBuf,
    /// `weft up` itself.
    pub(crate) up: ProcessId,
    pub(crate) outbound_url: String,
    pub(crate) dashboard_url: String,
    pub(crate) control_url: String,
    /// Where traces go: OTLP/gRPC receivers, the dashboard among them.
    #[serde(default)]
    pub(crate) otlp: Vec<String>,
    /// The ports of each replica.
    #[serde(default)]
    pub(crate) replicas: BTreeMap<String, ReplicaPorts>,
    /// The ports that lead the person at the keyboard to one service each, by the services' names.
    #[serde(default)]
    pub(crate) forwards: BTreeMap<String, u16>,
    /// The processes by their names in the logs; each is the leader of a process group.
    #[serde(default)]
    pub(crate) processes: BTreeMap<String, ProcessId>,
}

/// The ports of one replica and its sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplicaPorts {
    /// The service itself; 0 if the sidecar has no service.
    pub(crate) app: u16,
    /// The sidecar, for the service's own calls.
    pub(crate) outbound: u16,
    /// The sidecar, for calls from other services.
    pub(crate) inbound: u16,
    pub(crate) admin: u16,
    pub(crate) metrics: u16,
}

impl Run {
    /// The file's content, if there is one.
    ///
    /// # Errors
    /// It can't be read, or it is not this user's.
    pub(crate) fn read(state_dir: &Path) -> io::Result<Option<Self>> {
        let path = state_dir.join(NAME);
        match trust::check(state_dir).and_then(|()| trust::check(&path)).and_then(|()| project_file::read(&path)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                io::Error::other(format!("{} is not as `weft up` writes it: {error}", state_dir.join(NAME).display()))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The run of the nearest `.weft` folder that can be trusted, from `from` upwards; `tell` gets an error for each
    /// folder that is skipped.
    pub(crate) fn nearest(from: &Path, mut tell: impl FnMut(&io::Error)) -> Option<Self> {
        from.ancestors().find_map(|dir| Self::read(&dir.join(".weft")).inspect_err(&mut tell).ok().flatten())
    }

    fn write(&self, state_dir: &Path) -> io::Result<()> {
        let temporary = state_dir.join(format!("{NAME}.new"));
        fs::write(&temporary, serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        trust::keep_others_out(&temporary)?;
        fs::rename(&temporary, state_dir.join(NAME))
    }

    /// Removes the file of a run that is over.
    pub(crate) fn remove(state_dir: &Path) {
        let _ = fs::remove_file(state_dir.join(NAME));
    }
}

/// The file of this process's own run, kept up to date.
#[derive(Debug)]
pub(crate) struct RunFile {
    state_dir: PathBuf,
    run: Mutex<Run>,
}

impl RunFile {
    /// Writes it for the first time.
    pub(crate) fn create(state_dir: &Path, run: Run) -> io::Result<Self> {
        run.write(state_dir)?;
        Ok(Self { state_dir: state_dir.to_owned(), run: Mutex::new(run) })
    }

    /// Changes and writes it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Run)) -> io::Result<()> {
        let mut run = self.run.lock().unwrap_or_else(|broken| broken.into_inner());
        change(&mut run);
        run.write(&self.state_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run {
            run_id: "4711".to_owned(),
            mesh_file: "mesh.yaml".into(),
            up: ProcessId { pid: 1, start_time: 2 },
            outbound_url: "http://127.0.0.1:15001".to_owned(),
            dashboard_url: "http://127.0.0.1:15080".to_owned(),
            control_url: "https://127.0.0.1:15010".to_owned(),
            otlp: Vec::new(),
            replicas: BTreeMap::new(),
            forwards: BTreeMap::new(),
            processes: BTreeMap::new(),
        }
    }

    #[test]
    fn a_run_is_read_as_it_was_written_from_anywhere_below() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join(".weft");
        let below = dir.path().join("a/b");
        fs::create_dir_all(&state_dir).unwrap();
        trust::keep_others_out(&state_dir).unwrap();
        fs::create_dir_all(&below).unwrap();
        assert_eq!(Run::read(&state_dir).unwrap(), None);

        let file = RunFile::create(&state_dir, run()).unwrap();
        let process = ProcessId { pid: 7, start_time: 8 };
        file.update(|run| {
            run.processes.insert("users-1".to_owned(), process);
        })
        .unwrap();
        let read = Run::nearest(&below, |error| panic!("{error}")).unwrap();
        assert_eq!(Run { processes: BTreeMap::new(), ..read.clone() }, run());
        assert_eq!(read.processes["users-1"], process);
        assert_eq!(fs::read_dir(&state_dir).unwrap().count(), 1, "no temporary file stays");

        Run::remove(&state_dir);
        assert_eq!(Run::read(&state_dir).unwrap(), None);
    }

    #[test]
    fn a_folder_that_others_may_write_is_reported_and_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let (own, above) = (dir.path().join(".weft"), dir.path().join("a/.weft"));
        for state_dir in [&own, &above] {
            fs::create_dir_all(state_dir).unwrap();
            trust::keep_others_out(state_dir).unwrap();
            RunFile::create(state_dir, run()).unwrap();
        }
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&above, open).unwrap();
        let mut told = Vec::new();
        let below = dir.path().join("a/b");
        assert_eq!(Run::nearest(&below, |error| told.push(error.to_string())), Some(run()), "the next one above");
        assert!(told.len() == 1 && told[0].contains("a/.weft can be written by others"), "{told:?}");
        assert!(Run::read(&above).is_err(), "nor would its processes be ended");
    }

    #[test]
    fn a_corrupt_file_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "{").unwrap();
        trust::keep_others_out(&dir.path().join(NAME)).unwrap();
        let told = Run::read(dir.path()).unwrap_err().to_string();
        assert!(told.contains("run.json is not as `weft up` writes it"), "{told}");
    }
}
