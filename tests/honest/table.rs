//! The table at the end: each case directly and through the mesh.

use std::{env, fmt::Write};

use weft_tests::result;

use crate::{
    cases::{Case, KNOWN},
    outcome::Outcome,
};

/// How much longer than in a direct run a stall may be, in milliseconds.
const STALL_MS: f64 = 20.0;

/// An overloaded server fails a different number of calls in each run. Up to this factor, two numbers count as equal.
const SAME: f64 = 1.25;

/// How often a case is tried at most until it passes.
const TRIES: usize = 3;

/// A case that was run.
pub(crate) struct Row {
    pub(crate) name: String,
    /// The outcome of the direct run, if there was one.
    pub(crate) direct: Option<Outcome>,
    pub(crate) mesh: Outcome,
    /// Why it is known to fail.
    pub(crate) known: Option<&'static str>,
}

impl Row {
    pub(crate) fn new(case: &Case, direct: Option<Outcome>, mesh: Outcome) -> Self {
        let known = KNOWN.iter().find(|known| known.0 == case.name).map(|known| known.1);
        Self { name: case.name.clone(), direct, mesh, known }
    }

    /// Whether more calls fail through the mesh than directly.
    pub(crate) fn is_worse(&self) -> bool {
        // By number, not by kind: a connection that the server resets becomes a 502 through the mesh.
        let direct = self.direct.as_ref().map_or(0, Outcome::failed_calls);
        self.mesh.failed_calls() as f64 > direct as f64 * SAME
    }

    /// Whether the result is final after this many tries. A stall is the worst moment of a whole run, and direct runs
    /// have stalls, too: it counts only if the case stalls every time. The same holds for failures if the direct run
    /// also has some. Other failures count at once.
    pub(crate) fn is_sure(&self, tries: usize) -> bool {
        let fails_directly = self.direct.as_ref().is_some_and(|direct| direct.failed_calls() > 0);
        let fails_alone = self.is_worse() && !fails_directly;
        let is_sure = !self.is_broken() || fails_alone || tries == TRIES;
        if !is_sure {
            eprintln!("{} (once more)", self.line());
        }
        is_sure
    }

    fn stalls(&self) -> bool {
        self.direct.as_ref().is_some_and(|direct| self.mesh.stall_ms > direct.stall_ms + STALL_MS)
    }

    /// Whether the test fails because of this row.
    pub(crate) fn is_broken(&self) -> bool {
        let judges_stalls = env::var_os("WEFT_HONEST_STALLS").is_some();
        self.known.is_none() && (self.is_worse() || judges_stalls && self.stalls())
    }

    fn verdict(&self) -> String {
        let mut verdict = match (self.is_worse(), self.stalls()) {
            (true, _) => {
                let kinds = self.mesh.failures.iter().map(|(kind, count)| format!("{count} {kind}"));
                let example: String = self.mesh.example.chars().take(160).collect();
                format!("**fails**: {} {}", kinds.collect::<Vec<_>>().join(", "), example.replace(['\n', '|'], " "))
            }
            (false, true) => "**stalls**".to_owned(),
            (false, false) => "well".to_owned(),
        };
        if let Some(why) = self.known {
            let _ = write!(verdict, " (known: {why})");
        }
        verdict
    }

    /// The row as Markdown.
    pub(crate) fn line(&self) -> String {
        let cells =
            |of: &Outcome| format!("{} | {} | {:.0} | {:.0}", of.calls, of.failed_calls(), of.max_ms, of.stall_ms);
        let direct = self.direct.as_ref().map_or_else(|| "| | |".to_owned(), cells);
        format!("| {} | {direct} | {} | {} |", self.name, cells(&self.mesh), self.verdict())
    }
}

/// The rows as a Markdown table.
pub(crate) fn of<'a>(rows: impl IntoIterator<Item = &'a Row>) -> String {
    let head = "| case | direct: calls | failed | longest, ms | stall, ms | mesh: calls | failed | longest, ms | stall, ms | |";
    let mut table = format!("{head}\n|---|--:|--:|--:|--:|--:|--:|--:|--:|---|\n");
    for row in rows {
        table += &row.line();
        table.push('\n');
    }
    table
}

/// Prints all rows.
///
/// # Panics
/// A case fails that is not known to fail.
pub(crate) fn judge(rows: &[Row]) {
    of(rows).lines().for_each(result);
    let broken: Vec<_> = rows.iter().filter(|row| row.is_broken()).collect();
    assert!(broken.is_empty(), "{} of {} cases are worse through the mesh:\n{}", broken.len(), rows.len(), of(broken));
}
