//! The last good snapshots on disk, for a start during an outage of the control plane.

use std::{
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use prost::Message;
use weft_contracts::weft::discovery::v1::{ContractOwner, Service};
use weft_mesh::limits;

use crate::control::retry::Trouble;

const NAME: &str = "snapshots.binpb";

/// What is kept.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Saved {
    #[prost(message, repeated, tag = "1")]
    pub(super) services: Vec<Service>,
    #[prost(message, repeated, tag = "2")]
    pub(super) owners: Vec<ContractOwner>,
}

/// Where it is kept.
pub(super) struct SnapshotFile {
    path: PathBuf,
    trouble: Trouble,
}

impl SnapshotFile {
    pub(super) fn new(dir: &Path) -> Self {
        Self { path: dir.join(NAME), trouble: Trouble::new("keeping snapshots on disk") }
    }

    /// The length of the file; 0 if there is none.
    pub(super) fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// What was saved last, and how long ago. A file that can't be used is ignored: it is only a cache.
    pub(super) fn load(&self) -> Option<(Saved, Duration)> {
        match self.try_load() {
            Ok(saved) => saved,
            Err(error) => {
                let file = self.path.display();
                tracing::warn!(%file, error = %format_args!("{error:#}"), "snapshots from the last run are ignored");
                None
            }
        }
    }

    fn try_load(&self) -> anyhow::Result<Option<(Saved, Duration)>> {
        let file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // If the clock was set back, the file counts as new, which does no harm.
        let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
        let mut bytes = Vec::new();
        file.take(limits::SNAPSHOT_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= limits::SNAPSHOT_FILE_BYTES, "longer than {} bytes", limits::SNAPSHOT_FILE_BYTES);
        Ok(Some((Saved::decode(bytes.as_slice())?, age)))
    }

    pub(super) fn save(&mut self, saved: &Saved) {
        match self.try_save(saved) {
            Ok(()) => self.trouble.is_over(),
            Err(error) => self.trouble.is(&format_args!("{error:#}")),
        }
    }

    /// Writes a file beside it and renames that, so that a reader sees either the old or the new one, complete.
    fn try_save(&self, saved: &Saved) -> anyhow::Result<()> {
        let bytes = saved.encode_to_vec();
        ensure!(bytes.len() as u64 <= limits::SNAPSHOT_FILE_BYTES, "they would take {} bytes", bytes.len());
        let dir = self.path.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| dir.display().to_string())?;
        let new = self.path.with_extension("new");
        let _ = std::fs::remove_file(&new);
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(&bytes))
            .with_context(|| new.display().to_string())?;
        std::fs::rename(&new, &self.path).with_context(|| self.path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_snapshots_are_loaded_and_garbage_is_ignored() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let mut file = SnapshotFile::new(&state_dir);
        assert_eq!(file.load(), None);
        let saved =
            Saved { services: vec![Service { name: "users.shop".into(), ..Default::default() }], owners: vec![] };
        file.save(&Saved::default());
        file.save(&saved);
        assert_eq!(file.load().map(|(saved, _)| saved), Some(saved));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&state_dir), mode(&state_dir.join(NAME))), (0o700, 0o600));
        std::fs::write(state_dir.join(NAME), b"\xff\xffgarbage").unwrap();
        assert_eq!(file.load(), None);
    }
}
