//! Files that a command writes into a user's folder. An existing file with other contents stays unless the user asks to
//! replace it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rustix::fs::OFlags;

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

    /// How it compares to what is in the folder. At most one byte more than its own text is read.
    ///
    /// # Errors
    /// Something with that name exists but is not a file or cannot be read, or a part of its path is a link: the folder
    /// may be somebody else's work, and the link may lead to a device that never ends.
    pub(crate) fn state_in(&self, folder: &Path) -> anyhow::Result<FileState> {
        let path = self.path(folder);
        let look = || {
            refuse_links(folder, self.name)?;
            // What the path leads to may have changed since. A pipe without a writer would block the opening.
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FileState::Missing),
                opened => opened?,
            };
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("it is not a file; remove it first"));
            }
            let mut bytes = Vec::new();
            file.take(self.text.len() as u64 + 1).read_to_end(&mut bytes)?;
            Ok(if bytes == self.text.as_bytes() { FileState::Same } else { FileState::Differs })
        };
        look().with_context(|| format!("{} can't be read", path.display()))
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

    use rustix::fs::{CWD, FileType, Mode, mknodat};

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
        let state = |name| new(name).state_in(&project).map(|_| ());
        assert!(refused(state("a/file")).ends_with("a/file is a link; remove it first"));
        assert!(refused(state("b/secret")).ends_with("b is a link; remove it first"));
        assert_eq!(fs::read_to_string(&secret).expect("it is there"), "mine");
        assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 2);

        new("a/c/file").create(&project).expect("it is new");
        NewFile { name: "a/c/file", text: "newer" }.replace(&project).expect("it is a file");
        assert_eq!(fs::read_to_string(project.join("a/c/file")).expect("it is there"), "newer");
    }

    #[test]
    fn no_more_is_read_than_is_compared() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = |name| NewFile { name, text: "theirs" }.state_in(folder.path());
        let refused = |name| format!("{:#}", state(name).unwrap_err());
        let is = |name, expected| assert_eq!(state(name).expect("it can be read"), expected, "{name}");
        is("file", FileState::Missing);
        fs::write(folder.path().join("file"), "theirs").expect("a file");
        is("file", FileState::Same);
        for other in ["their", "theirs!", ""] {
            fs::write(folder.path().join("file"), other).expect("a file");
            is("file", FileState::Differs);
        }
        // A sparse file, larger than any memory.
        let huge = fs::File::create(folder.path().join("huge")).expect("a file");
        huge.set_len(1 << 40).expect("it has holes only");
        is("huge", FileState::Differs);
        symlink("/dev/zero", folder.path().join("zero")).expect("a link");
        assert!(refused("zero").ends_with("zero is a link; remove it first"));
        fs::create_dir(folder.path().join("sub")).expect("a folder");
        assert!(refused("sub").ends_with("sub can't be read: it is not a file; remove it first"));
        // A pipe, from which nothing ever comes.
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
        assert!(refused("pipe").ends_with("pipe can't be read: it is not a file; remove it first"));
    }
}
