//! The file of `--access`.

use std::{
    io::{self, Read as _},
    path::Path,
};

use weft_mesh::{
    config::{Problem, Problems},
    policy::MeshRules,
};

/// A file of 10,000 rules has about 1 MiB. The rules for one service have to fit into a message.
pub(super) const FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Reads it.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn read(path: &Path) -> Result<MeshRules, Problems> {
    let shown = path.display().to_string();
    let text = read_text(path).map_err(|error| {
        Problems::new(vec![Problem::new(&shown, 0, "", format!("cannot be read: {error} (--access)"))])
    })?;
    MeshRules::parse(&shown, &text)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {FILE_BYTES} bytes")));
    }
    Ok(text)
}
