//! The files of a CA, so that they can be kept elsewhere as well.

use std::path::Path;

use super::{
    ca::{BUNDLE, CA_CERTIFICATE, CA_KEY, TOKEN_KEY},
    state_dir::{Access, StateDir, StateError},
};

/// All of them, with who may read them.
const FILES: [(&str, Access); 4] = [
    (CA_KEY, Access::Private),
    (CA_CERTIFICATE, Access::Public),
    (TOKEN_KEY, Access::Private),
    (BUNDLE, Access::Public),
];

/// The names of the files.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(file, _)| *file)
}

/// The files of a folder that has a CA, with their texts.
pub(crate) fn read(state_dir: &Path) -> Result<Vec<(&'static str, String)>, StateError> {
    let dir = StateDir::open(state_dir)?;
    let mut files = Vec::new();
    for (file, access) in FILES {
        if let Some(text) = dir.read(file, access)? {
            files.push((file, text));
        }
    }
    Ok(files)
}

/// Writes a file of a CA into a folder. Others are left alone.
pub(crate) fn write(state_dir: &Path, file: &str, text: &str) -> Result<(), StateError> {
    let access = FILES.iter().find(|(name, _)| *name == file).map_or(Access::Private, |(_, access)| *access);
    StateDir::open(state_dir)?.write(file, text, access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::ca::Ca;

    #[test]
    fn a_ca_made_of_its_files_is_the_same() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let domain = "weft.test".parse().unwrap();
        let first = Ca::open_or_create(from.path(), &domain).unwrap();
        let files = read(from.path()).unwrap();
        assert_eq!(files.iter().map(|(file, _)| *file).collect::<Vec<_>>(), names().collect::<Vec<_>>());
        files.iter().for_each(|(file, text)| write(to.path(), file, text).unwrap());
        let second = Ca::open_or_create(to.path(), &domain).unwrap();
        assert_eq!((first.bundle(), first.root_der()), (second.bundle(), second.root_der()));
    }
}
