//! The folder where the control plane keeps its secrets. Files are written completely or not at all, and only their
//! owner can read keys.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Another process holds the lock for some milliseconds, while it makes a CA.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// What went wrong with a file of the state folder.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key that others can read.
    #[error("{} can be read by others (mode {mode:03o}): a key is its owner's alone; chmod 600 it", path.display())]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another process holds the lock of the folder.
    #[error("{} is held by another process; it makes a CA there and does not finish", path.display())]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
}

/// Whether a file is for all or for its owner only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Public,
    Private,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// Opens the folder, and makes it if it does not exist.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let make = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        make.map_err(|source| StateError::Io { what: "create the folder", path: path.to_owned(), source })?;
        Ok(Self(path.to_owned()))
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// Keeps other processes from making files here until the value is dropped.
    pub(crate) fn lock(&self) -> Result<File, StateError> {
        let path = self.path(".lock");
        let io = |what| move |path: PathBuf, source| StateError::Io { what, path, source };
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| io("open")(path.clone(), e))?;
        let until = Instant::now() + LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_RETRY),
                Err(TryLockError::WouldBlock) => return Err(StateError::Locked { path }),
                Err(TryLockError::Error(source)) => return Err(io("lock")(path, source)),
            }
        }
    }

    /// A file's text; `None` if there is no such file.
    pub(crate) fn read(&self, file: &str, access: Access) -> Result<Option<String>, StateError> {
        let path = self.path(file);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Io { what: "read", path, source }),
        };
        if access == Access::Private {
            let mode = match fs::metadata(&path) {
                Ok(metadata) => metadata.permissions().mode() & 0o777,
                Err(source) => return Err(StateError::Io { what: "look at", path, source }),
            };
            if mode & 0o077 != 0 {
                return Err(StateError::Exposed { path, mode });
            }
        }
        Ok(Some(text))
    }

    /// Replaces a file at once: a reader sees the old or the new file, and so does the next start after a crash.
    pub(crate) fn write(&self, file: &str, text: &str, access: Access) -> Result<(), StateError> {
        let path = self.path(file);
        let temporary = self.path(&format!(".{file}.new"));
        let mode = if access == Access::Private { 0o600 } else { 0o644 };
        let put = || -> io::Result<()> {
            // May be left over from a crash: its mode and content cannot be trusted.
            match fs::remove_file(&temporary) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
            out.write_all(text.as_bytes())?;
            out.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.0)?.sync_all()
        };
        put().map_err(|source| StateError::Io { what: "write", path: path.clone(), source })
    }
}
