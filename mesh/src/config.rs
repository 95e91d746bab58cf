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

/// A value of a file and its line.
#[derive(Debug, Clone)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its line, from 1.
    pub line: u64,
}
