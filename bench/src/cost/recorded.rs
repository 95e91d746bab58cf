//! The recorded figures, and how much new ones may differ from them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// How much a figure may differ, as a share of the recorded one.
const TOLERANCE: f64 = 0.03;
/// Fewer allocations per call than this come from a buffer that has grown once.
const ALLOCATIONS_TOLERANCE: f64 = 0.02;

/// The cost of one call in one sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cost {
    pub(super) instructions: f64,
    pub(super) allocations: f64,
}

/// The figures of one run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Costs {
    /// The compiler of the sidecar: another compiler makes other code.
    pub(super) compiler: String,
    /// By scenario and by sidecar.
    pub(super) per_call: BTreeMap<String, BTreeMap<String, Cost>>,
}

impl Costs {
    /// Reads the figures in `file`.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| {
            format!("can't read {}; `weft-bench cost --record` makes it, in the project's folder", file.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("{}", file.display()))
    }

    /// The cost of one scenario in one sidecar.
    pub(super) fn get(&self, scenario: &str, sidecar: &str) -> Option<Cost> {
        self.per_call.get(scenario)?.get(sidecar).copied()
    }
}

/// How much `now` is above the recorded figure, as a share of it, and whether that is too much.
pub(super) fn difference(now: f64, recorded: f64, slack: f64) -> (f64, bool) {
    let difference = now - recorded;
    let share = if difference == 0.0 { 0.0 } else { difference / recorded };
    (share, difference.abs() > (recorded * TOLERANCE).max(slack))
}

impl Cost {
    /// Each figure with its name, the recorded one and the difference that may be a coincidence.
    pub(super) fn beside(self, recorded: Option<Self>) -> [(&'static str, f64, Option<f64>, f64); 2] {
        [
            ("instructions", self.instructions, recorded.map(|it| it.instructions), 0.0),
            ("allocations", self.allocations, recorded.map(|it| it.allocations), ALLOCATIONS_TOLERANCE),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_higher_and_lower_costs_are_reported() {
        assert_eq!(difference(1_000.0, 1_000.0, 0.0), (0.0, false));
        assert!(!difference(1_029.0, 1_000.0, 0.0).1);
        assert!(difference(1_031.0, 1_000.0, 0.0).1);
        assert!(difference(969.0, 1_000.0, 0.0).1);
    }

    #[test]
    fn a_first_allocation_is_too_much() {
        assert_eq!(difference(0.0, 0.0, ALLOCATIONS_TOLERANCE), (0.0, false));
        assert!(!difference(0.01, 0.0, ALLOCATIONS_TOLERANCE).1);
        assert!(difference(1.0, 0.0, ALLOCATIONS_TOLERANCE).1);
    }
}
