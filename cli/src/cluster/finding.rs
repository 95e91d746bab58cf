//! What is found, and how it is printed.

use serde::Serialize;
use serde_json::json;

use crate::{console::say, terminal};

/// The most objects of a finding that are named: on a terminal, and in JSON.
const SHOWN: usize = 10;
const KEPT: usize = 1_000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Good,
    /// Good to know.
    Note,
    /// It works for now, or could not be looked at.
    Warning,
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was looked at: a name for programs, which stays the same.
    pub(super) check: &'static str,
    pub(super) found: String,
    /// Which objects it is about, as NAMESPACE/NAME; at most [`KEPT`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) objects: Vec<String>,
    /// How many objects there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) count: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to_do: Option<String>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Finding {
    fn new(level: Level, check: &'static str, found: impl Into<String>) -> Self {
        Self { level, check, found: found.into(), objects: Vec::new(), count: 0, to_do: None }
    }

    pub(super) fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(Level::Good, check, found)
    }

    pub(super) fn note(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(Level::Note, check, found)
    }

    pub(super) fn warning(check: &'static str, found: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { to_do: Some(to_do.into()), ..Self::new(Level::Warning, check, found) }
    }

    pub(super) fn error(check: &'static str, found: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { to_do: Some(to_do.into()), ..Self::new(Level::Error, check, found) }
    }

    /// Which objects it is about.
    pub(super) fn about(self, mut objects: Vec<String>) -> Self {
        let count = objects.len();
        objects.sort_unstable();
        objects.truncate(KEPT);
        Self { objects, count, ..self }
    }

    fn text(&self) -> String {
        let level = match self.level {
            Level::Good => "ok",
            Level::Note => "note",
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
        };
        let mut text = format!("{level:<8} {}: {}", self.check, terminal::line(&self.found));
        for object in self.objects.iter().take(SHOWN) {
            text += &format!("\n           {}", terminal::line(object));
        }
        if self.count > SHOWN {
            text += &format!("\n           and {} more (--json has up to {KEPT})", self.count - SHOWN);
        }
        if let Some(to_do) = &self.to_do {
            text += &format!("\n         -> {}", terminal::line(to_do));
        }
        text
    }
}

/// All findings, in the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn add(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    pub(super) fn has_errors(&self) -> bool {
        self.count(Level::Error) > 0
    }

    fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|finding| finding.level == level).count()
    }

    /// # Errors
    /// It can't be printed.
    pub(super) fn print(&self, is_json: bool) -> anyhow::Result<()> {
        let (errors, warnings) = (self.count(Level::Error), self.count(Level::Warning));
        if is_json {
            let all = json!({ "findings": self.0, "errors": errors, "warnings": warnings });
            say(terminal::json(&serde_json::to_string_pretty(&all)?))?;
            return Ok(());
        }
        for finding in &self.0 {
            say(finding.text())?;
        }
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        say(format_args!("{}, {}", count(errors, "error"), count(warnings, "warning")))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_some_objects_and_says_what_to_do() {
        let objects = (0..1_234).map(|n| format!("shop/pod-{n:04}")).collect();
        let finding = Finding::error("pods", "no \u{1b}[2J sidecar", "restart them").about(objects);
        assert_eq!((finding.objects.len(), finding.count), (KEPT, 1_234));
        let text = finding.text();
        assert!(text.starts_with("ERROR    pods: no \\u{1b}[2J sidecar\n           shop/pod-0000\n"), "{text}");
        assert!(text.ends_with("and 1224 more (--json has up to 1000)\n         -> restart them"), "{text}");
        assert_eq!(Finding::good("pods", "all is well").text(), "ok       pods: all is well");
    }
}
