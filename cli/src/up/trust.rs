//! Which state folders are trusted. The contents of a `.weft` folder decide which processes are ended and where calls
//! go. The folder is searched for from the current folder upwards, so the one that is found may belong to anybody.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

/// The mode bits that let others than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Accepts what belongs to this user or to root, and what nobody else can write.
///
/// # Errors
/// It does not exist, or others own it or can write it: [`io::ErrorKind::PermissionDenied`].
pub(crate) fn check(path: &Path) -> io::Result<()> {
    // Of a symbolic link, both the link and its target are checked.
    let refused = match (whose(path, &fs::symlink_metadata(path)?), fs::metadata(path)?) {
        (Some(why), _) => Some(why),
        (None, metadata) if metadata.mode() & WRITABLE_BY_OTHERS != 0 => {
            Some(format!("{} can be written by others (mode {:o})", path.display(), metadata.mode() & 0o7777))
        }
        (None, metadata) => whose(path, &metadata),
    };
    match refused {
        None => Ok(()),
        Some(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{why}, so it is not used"))),
    }
}

/// Whose it is, if it belongs to another user.
fn whose(path: &Path, metadata: &Metadata) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    let is_trusted = [own, 0].contains(&metadata.uid());
    (!is_trusted).then(|| format!("{} belongs to the user {}, not to {own}", path.display(), metadata.uid()))
}

/// Removes the right of others to write, which some systems give to a user's group by default.
///
/// # Errors
/// It belongs to another user.
pub(crate) fn keep_others_out(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.mode() & 0o7777;
    fs::set_permissions(path, fs::Permissions::from_mode(mode & !WRITABLE_BY_OTHERS))?;
    check(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn is_refused(path: &Path) -> bool {
        check(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn what_others_own_or_may_write_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.json");
        fs::write(&file, "{}").unwrap();
        for mode in [0o620, 0o602, 0o666] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert!(is_refused(&file), "{mode:o}");
            keep_others_out(&file).unwrap();
            check(&file).unwrap();
        }
        assert!(check(&dir.path().join("none")).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
        let link = dir.path().join("link");
        symlink(&file, &link).unwrap();
        check(&link).unwrap();
        // Only root can give something away.
        if rustix::process::geteuid().is_root() {
            chown(&file, Some(4321), None).unwrap();
            assert!(is_refused(&file) && is_refused(&link));
            assert!(check(&file).unwrap_err().to_string().contains("belongs to the user 4321"));
        }
    }
}
