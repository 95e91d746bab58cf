//! Reads files of a folder that may be somebody else's work: a link in it may lead to a device that never ends, and a pipe
//! blocks its reader.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::OFlags;

/// The longest file that is read, in bytes. A `mesh.yaml` or a `.proto` file has some thousands.
const MOST_BYTES: u64 = 4 << 20;

/// Why a file is not read; `None` if it may be.
pub(crate) fn refusal(metadata: &Metadata) -> Option<String> {
    if !metadata.is_file() {
        return Some("it is not a file".to_owned());
    }
    let bytes = metadata.len();
    (bytes > MOST_BYTES).then(|| format!("it has {bytes} bytes; allowed: at most {MOST_BYTES}"))
}

/// Reads a file. A link is followed.
///
/// # Errors
/// It can't be opened, is no regular file, or is too long.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file of text in UTF-8, as [`read`] does.
///
/// # Errors
/// Those of [`read`], and bytes that are no UTF-8.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn open(path: &Path) -> io::Result<File> {
    // To open a pipe would block until somebody writes.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    match refusal(&file.metadata()?) {
        None => Ok(file),
        Some(why) => Err(io::Error::other(why)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_files_of_a_sensible_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("text"), "a: b").unwrap();
        symlink("text", path("link")).unwrap();
        assert_eq!(read_text(&path("link")).unwrap(), "a: b");
        fs::write(path("binary"), b"\xff").unwrap();
        assert_eq!(read_text(&path("binary")).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&path("none")).unwrap_err().kind(), io::ErrorKind::NotFound);

        symlink("/dev/zero", path("endless")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
        assert!(pipe.success());
        for name in ["endless", "pipe", "."] {
            assert_eq!(read(&path(name)).unwrap_err().to_string(), "it is not a file", "{name}");
        }
        File::create(path("huge")).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert!(read(&path("huge")).unwrap_err().to_string().starts_with("it has 4194305 bytes; allowed:"));
    }
}
