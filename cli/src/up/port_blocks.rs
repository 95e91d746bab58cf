//! Blocks of ports that one `weft up` keeps to itself, so that meshes that start at the same time never choose the same
//! port: between its choice and the moment when its owner listens on it, nothing else would show that it is taken.
//!
//! A block is taken by a lock on a file in a folder that belongs to the user. The kernel releases the lock when the process
//! ends, however it ends. Other users and other programs do not know these locks; against them a port is tried by binding
//! it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Ports in a block: as many as a mesh of 30 replicas takes.
const BLOCK: u16 = 128;

/// The blocks that this process has taken.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// `None` where there can be no locks; then no block can be taken.
    folder: Option<PathBuf>,
    taken: Vec<File>,
    /// Ports of the last block that were not given yet.
    rest: Range<u16>,
}

impl Default for Blocks {
    fn default() -> Self {
        let own = rustix::process::geteuid().as_raw();
        let folder = std::env::temp_dir().join(format!("weft-ports-{own}"));
        Self::within(&folder, own)
    }
}

impl Blocks {
    fn within(folder: &Path, own: u32) -> Self {
        Self { folder: prepare(folder, own).ok().map(|()| folder.to_owned()), taken: Vec::new(), rest: 0..0 }
    }

    /// The next port of a block within `range`; `None` if no block can be taken.
    pub(crate) fn next(&mut self, range: &Range<u16>) -> Option<u16> {
        if self.rest.is_empty() {
            self.rest = self.take(range)?;
        }
        self.rest.next()
    }

    fn take(&mut self, range: &Range<u16>) -> Option<Range<u16>> {
        let folder = self.folder.as_ref()?;
        let blocks = (range.end - range.start) / BLOCK;
        let start = fastrand::u16(..blocks.max(1));
        // From a random one on, so that a new mesh seldom gets the ports of one that has just ended: its clients may still
        // be asking for it there.
        let (first, lock) = (0..blocks).find_map(|at| {
            let first = range.start + (start + at) % blocks * BLOCK;
            Some((first, lock(&folder.join(first.to_string()))?))
        })?;
        self.taken.push(lock);
        Some(first..first + BLOCK)
    }
}

/// Makes the folder, or sees that nobody else can write to it.
fn prepare(folder: &Path, own: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() || found.uid() != own || found.mode() & 0o022 != 0 {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    Ok(())
}

/// `None` if another process has it.
fn lock(file: &Path) -> Option<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, os::unix::fs::symlink};

    use super::*;

    const RANGE: Range<u16> = 16_384..16_384 + 4 * BLOCK;

    fn blocks(folder: &Path) -> Blocks {
        Blocks::within(folder, rustix::process::geteuid().as_raw())
    }

    #[test]
    fn two_meshes_never_get_the_same_port() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("ports");
        let (mut one, mut other) = (blocks(&folder), blocks(&folder));
        let mut seen = HashSet::new();
        for _ in 0..2 * BLOCK {
            assert!(seen.insert(one.next(&RANGE).expect("there are blocks")));
            assert!(seen.insert(other.next(&RANGE).expect("there are blocks")));
        }
        assert!(seen.iter().all(|port| RANGE.contains(port)));
        assert_eq!(one.next(&RANGE), None, "all blocks are taken");
        drop(other);
        assert!(one.next(&RANGE).is_some(), "those of a mesh that has ended are free");
    }

    #[test]
    fn a_folder_that_another_user_could_write_to_is_not_used() {
        let parent = tempfile::tempdir().expect("a folder");
        let own = rustix::process::geteuid().as_raw();
        let (foreign, link) = (parent.path().join("foreign"), parent.path().join("link"));
        fs::create_dir(&foreign).expect("a folder");
        assert_eq!(Blocks::within(&foreign, own + 1).next(&RANGE), None);
        symlink(&foreign, &link).expect("a link");
        assert_eq!(Blocks::within(&link, own).next(&RANGE), None);
        assert_eq!(Blocks::within(&parent.path().join("no/such"), own).next(&RANGE), None);
    }
}
