//! Problems of a configuration file, described so that they can be fixed without the docs.

use std::fmt;

/// One problem of a file, and its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    file: String,
    line: u64,
    field: String,
    text: String,
}

impl Problem {
    /// `field` is the path of the value (`services.users.port`), or empty for the whole file.
    pub fn new(file: impl Into<String>, line: u64, field: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: file.into(), line, field: field.into(), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.text)
    }
}

/// All problems: one line each, in the order of the file.
#[derive(Debug)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// All problems. There must be at least one.
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        problems.dedup();
        Self(problems)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        match self.0.len() {
            1 => write!(f, "1 problem; nothing was started"),
            n => write!(f, "{n} problems; nothing was started"),
        }
    }
}

impl std::error::Error for Problems {}
