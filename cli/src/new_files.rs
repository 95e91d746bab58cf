//! Files that a command writes into a user's folder: all of them or none, and never over a text that differs.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// A file that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewFile<'a> {
    /// From the folder that it goes into, with `/`.
    pub(crate) name: &'a str,
    /// What is in it.
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
    /// Something of that name is there that cannot be read as a file.
    pub(crate) fn state_in(&self, folder: &Path) -> anyhow::Result<State> {
        let path = self.path(folder);
        match fs::read(&path) {
            Ok(bytes) if bytes == self.text.as_bytes() => Ok(State::Same),
            Ok(_) => Ok(State::Differs),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::Missing),
            Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
        }
    }

    /// Writes it where nothing of its name is.
    ///
    /// # Errors
    /// It is there, or cannot be written.
    pub(crate) fn create(&self, folder: &Path) -> anyhow::Result<()> {
        let path = self.path(folder);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            // Whatever has come there meanwhile is not ours to replace.
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
    /// It is there, with the same text.
    Same,
    /// A file of its name is there, with another text.
    Differs,
}
