//! Files that a command writes into a user's folder. An existing file with other contents stays unless the user asks to
//! replace it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// A file that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewFile<'a> {
    /// Its path from the folder that it goes into, with `/`.
    pub(crate) name: &'a str,
    /// Its contents.
    pub(crate) text: &'a str,
}

impl NewFile<'_> {
    /// Where it goes.
    pub(crate) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(self.name)
    }

    /// How it compares to what is in the folder.
    ///
    /// # Errors
    /// Something with that name exists but cannot be read as a file.
    pub(crate) fn state_in(&self, folder: &Path) -> anyhow::Result<State> {
        let path = self.path(folder);
        match fs::read(&path) {
            Ok(bytes) if bytes == self.text.as_bytes() => Ok(State::Same),
            Ok(_) => Ok(State::Differs),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::Missing),
            Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
        }
    }

    /// Writes it as a new file.
    ///
    /// # Errors
    /// It exists already, or cannot be written.
    pub(crate) fn create(&self, folder: &Path) -> anyhow::Result<()> {
        let path = self.path(folder);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            // A file that was created in the meantime is not ours to replace.
            OpenOptions::new().write(true).create_new(true).open(&path)?.write_all(self.text.as_bytes())
        };
        write().with_context(|| format!("{} can't be written", path.display()))
    }

    /// Writes it over what is there.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn replace(&self, folder: &Path) -> anyhow::Result<()> {
        let path = self.path(folder);
        fs::write(&path, self.text.as_bytes()).with_context(|| format!("{} can't be written", path.display()))
    }
}

/// How a [`NewFile`] compares to what is in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no such file.
    Missing,
    /// It exists, with the same contents.
    Same,
    /// A file with its name exists, with other contents.
    Differs,
}
