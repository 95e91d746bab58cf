//! The table at the end: direct beside mesh.

use std::{env, fmt::Write};

use weft_tests::result;

use crate::{
    cases::{Case, KNOWN},
    outcome::Outcome,
};

/// By how much longer than in a direct run nothing may be answered.
const STALL_MS: f64 = 20.0;

/// A server that can't keep up fails some calls, but never as many twice: up to so many times the direct run's are the same.
const SAME: f64 = 1.25;

/// How often a case is tried until it fares well.
const TRIES: usize = 3;

/// A case that was run.
pub(crate) struct Row {
    pub(crate) name: String,
    /// What came of the direct run, if there was one.
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

    /// Whether something fails in the mesh that does not fail without.
    pub(crate) fn is_worse(&self) -> bool {
        // By their number: a connection that a server resets is an answer of 502 through the mesh.
        let direct = self.direct.as_ref().map_or(0, Outcome::failed_calls);
        self.mesh.failed_calls() as f64 > direct as f64 * SAME
    }

    /// Whether it says enough after so many tries. One stall is the longest moment of a whole run and comes in direct runs,
    /// too: what counts is a case that stalls each time. So it is with failures that the direct run has as well; any other
    /// counts at once.
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

    /// Whether the test fails by it.
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
/// Something fails in the mesh that does not fail without.
pub(crate) fn judge(rows: &[Row]) {
    of(rows).lines().for_each(result);
    let broken: Vec<_> = rows.iter().filter(|row| row.is_broken()).collect();
    assert!(broken.is_empty(), "{} of {} cases suffer in the mesh:\n{}", broken.len(), rows.len(), of(broken));
}
