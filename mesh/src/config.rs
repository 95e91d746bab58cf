//! Configuration files in YAML. Each problem names its file, line and field.
//!
//! [`Node`] is the tree of a file, in which everything has its line. A [`Reader`] takes values out of it and collects
//! each [`Problem`], so that one run reports all of them.

mod problem;
mod reader;
mod yaml;

pub use self::{
    problem::{Problem, Problems},
    reader::{Entry, Reader, Table},
    yaml::{Node, Value},
};

/// Reads the text of a file. `read` takes the values out of its tree; it returns `None` only after it has noted a problem.
///
/// # Errors
/// The text is not YAML, or all problems that `read` has noted.
pub fn parse<T>(file: &str, text: &str, read: impl FnOnce(&mut Reader<'_>, &Node) -> Option<T>) -> Result<T, Problems> {
    let root = Node::parse(file, text).map_err(|problem| Problems::new(vec![problem]))?;
    take(file, &root, read)
}

/// Takes the values out of a tree, as [`parse`] does. `origin` is what problems name as its file.
///
/// # Errors
/// All problems that `read` has noted.
pub fn take<T>(
    origin: &str,
    root: &Node,
    read: impl FnOnce(&mut Reader<'_>, &Node) -> Option<T>,
) -> Result<T, Problems> {
    let mut reader = Reader { file: origin, problems: Vec::new() };
    match read(&mut reader, root) {
        Some(value) if reader.problems.is_empty() => Ok(value),
        _ => Err(Problems::new(reader.problems)),
    }
}

/// A value of a file and its line.
#[derive(Debug, Clone)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its line, from 1.
    pub line: u64,
}
