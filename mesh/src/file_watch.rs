//! Notices that files have changed, by looking at them now and then.
//!
//! A look costs one `stat` a file. It sees a file that is written in place, and one that is replaced as a whole, as
//! editors do, and Kubernetes with mounted files.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Files, and what they were at the last look.
#[derive(Debug)]
pub struct FileWatch {
    files: Vec<PathBuf>,
    seen: Option<Vec<Stamp>>,
    is_settled: bool,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// A file is not as it was at the look before. Somebody may still be writing it, so an error in it need not be told
    /// yet. The first look finds this too.
    Changed,
    /// The first look after a change that finds no further one: the files are complete.
    Settled,
    /// All is as before.
    Unchanged,
}

impl FileWatch {
    /// Watches these files. They need not exist.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files, seen: None, is_settled: false }
    }

    /// Looks at the files.
    pub fn look(&mut self) -> Look {
        let now: Vec<Stamp> = self.files.iter().map(|file| Stamp::of(file)).collect();
        if self.seen.as_ref() != Some(&now) {
            (self.seen, self.is_settled) = (Some(now), false);
            return Look::Changed;
        }
        if std::mem::replace(&mut self.is_settled, true) { Look::Unchanged } else { Look::Settled }
    }

    /// Watches these files instead. Those that were watched before count as seen. The others count as changed, as they may
    /// still be being written when they are read.
    pub fn set_files(&mut self, files: Vec<PathBuf>) {
        let Some(seen) = &self.seen else { return self.files = files };
        let stamp = |file: &PathBuf| {
            let known = self.files.iter().position(|known| known == file).and_then(|place| seen.get(place));
            known.cloned().unwrap_or(Stamp::Unseen)
        };
        self.seen = Some(files.iter().map(stamp).collect());
        self.files = files;
    }
}

/// What tells a changed file from an unchanged one.
#[derive(Clone, Debug, PartialEq)]
enum Stamp {
    File {
        inode: u64,
        bytes: u64,
        changed: (i64, i64),
    },
    Missing(io::ErrorKind),
    /// It was not looked at yet.
    Unseen,
}

impl Stamp {
    fn of(file: &Path) -> Self {
        match fs::metadata(file) {
            Ok(file) => {
                Self::File { inode: file.ino(), bytes: file.size(), changed: (file.ctime(), file.ctime_nsec()) }
            }
            Err(error) => Self::Missing(error.kind()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_once_and_then_that_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        fs::write(&one, "1").unwrap();
        let mut watch = FileWatch::new(vec![one.clone(), other.clone()]);
        let mut looks = || [watch.look(), watch.look(), watch.look()];
        let change = [Look::Changed, Look::Settled, Look::Unchanged];
        assert_eq!(looks(), change, "the first look");
        fs::write(&one, "12").unwrap();
        assert_eq!(looks(), change, "written in place");
        fs::write(dir.path().join("new"), "34").unwrap();
        fs::rename(dir.path().join("new"), &one).unwrap();
        assert_eq!(looks(), change, "replaced by one of the same size");
        fs::write(&other, "").unwrap();
        assert_eq!(looks(), change, "another file has appeared");
        fs::remove_file(&one).unwrap();
        assert_eq!(looks(), change, "removed");
    }

    /// The file is a link to `..data/file`, and `..data` a link to a folder. A change makes a new folder, and a new link that
    /// takes the place of `..data`.
    #[test]
    fn a_change_of_a_mounted_config_map_is_seen() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let publish = |folder: &str, text: &str| {
            fs::create_dir(path(folder)).unwrap();
            fs::write(path(folder).join("file"), text).unwrap();
            symlink(folder, path("..data_tmp")).unwrap();
            fs::rename(path("..data_tmp"), path("..data")).unwrap();
        };
        publish("..2026_1", "1");
        symlink("..data/file", path("file")).unwrap();
        let mut watch = FileWatch::new(vec![path("file")]);
        let mut looks = || [watch.look(), watch.look(), watch.look()];
        let change = [Look::Changed, Look::Settled, Look::Unchanged];
        assert_eq!(looks(), change, "the first look");
        publish("..2026_2", "2");
        fs::remove_dir_all(path("..2026_1")).unwrap();
        assert_eq!(looks(), change, "of the same size");
        assert_eq!(fs::read_to_string(path("file")).unwrap(), "2");
    }

    #[test]
    fn a_change_that_goes_on_has_not_settled() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let mut watch = FileWatch::new(vec![file.clone()]);
        for bytes in 0..3 {
            fs::write(&file, "x".repeat(bytes)).unwrap();
            assert_eq!(watch.look(), Look::Changed);
        }
        assert_eq!(watch.look(), Look::Settled);
    }

    #[test]
    fn other_files_count_as_changed_and_those_before_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        let mut watch = FileWatch::new(vec![one.clone()]);
        while watch.look() != Look::Unchanged {}
        watch.set_files(vec![one.clone()]);
        assert_eq!(watch.look(), Look::Unchanged);
        watch.set_files(vec![other, one.clone()]);
        assert_eq!([watch.look(), watch.look(), watch.look()], [Look::Changed, Look::Settled, Look::Unchanged]);
        fs::write(&one, "").unwrap();
        assert_eq!(watch.look(), Look::Changed);
    }
}
