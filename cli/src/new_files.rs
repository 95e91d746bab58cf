//! Files that a command writes into a user's folder. An existing file with other contents stays unless the user asks to
//! replace it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
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
    pub(crate) fn state_in(&self, folder: &Path) -> anyhow::Result<FileState> {
        let path = self.path(folder);
        match fs::read(&path) {
            Ok(bytes) if bytes == self.text.as_bytes() => Ok(FileState::Same),
            Ok(_) => Ok(FileState::Differs),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(FileState::Missing),
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
            refuse_links(folder, self.name)?;
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            // A file that was created in the meantime is not ours to replace.
            OpenOptions::new().write(true).create_new(true).open(&path)?.write_all(self.text.as_bytes())
        };
        write().with_context(|| format!("{} can't be written", path.display()))
    }

    /// Puts it in the place of what is there, as a whole or not at all.
    ///
    /// # Errors
    /// It cannot be written, or a part of its path is a link: the folder may be somebody else's work, such as a cloned
    /// repository, and the link may lead to a file of the user's.
    pub(crate) fn replace(&self, folder: &Path) -> anyhow::Result<()> {
        let path = self.path(folder);
        let write = || {
            refuse_links(folder, self.name)?;
            let parent = path.parent().unwrap_or(folder);
            let mut file =
                tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o644)).tempfile_in(parent)?;
            file.write_all(self.text.as_bytes())?;
            file.persist(&path).map_err(|error| error.error)
        };
        write().map(drop).with_context(|| format!("{} can't be written", path.display()))
    }
}

/// Refuses a path below the folder of which a part is a symbolic link.
fn refuse_links(folder: &Path, name: &str) -> io::Result<()> {
    let mut path = folder.to_owned();
    for part in Path::new(name) {
        path.push(part);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()) {
            return Err(io::Error::other(format!("{} is a link; remove it first", path.display())));
        }
    }
    Ok(())
}

/// How a [`NewFile`] compares to what is in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileState {
    /// There is no such file.
    Missing,
    /// It exists, with the same contents.
    Same,
    /// A file with its name exists, with other contents.
    Differs,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_is_neither_followed_nor_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let (project, secret) = (folder.path().join("project"), folder.path().join("secret"));
        fs::create_dir_all(project.join("a")).expect("a folder");
        fs::write(&secret, "mine").expect("a file");
        let new = |name| NewFile { name, text: "theirs" };
        symlink(&secret, project.join("a/file")).expect("a link");
        symlink(folder.path(), project.join("b")).expect("a link");
        let refused = |result: anyhow::Result<()>| format!("{:#}", result.unwrap_err());
        assert!(refused(new("a/file").replace(&project)).ends_with("a/file is a link; remove it first"));
        assert!(refused(new("b/secret").replace(&project)).ends_with("b is a link; remove it first"));
        assert!(refused(new("b/other").create(&project)).ends_with("b is a link; remove it first"));
        assert_eq!(fs::read_to_string(&secret).expect("it is there"), "mine");
        assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 2);

        new("a/c/file").create(&project).expect("it is new");
        NewFile { name: "a/c/file", text: "newer" }.replace(&project).expect("it is a file");
        assert_eq!(fs::read_to_string(project.join("a/c/file")).expect("it is there"), "newer");
    }
}
