//! Imports run one way: no crate has a cycle between its files or folders, and crates depend on one another only in the
//! direction that ARCHITECTURE.md gives. [`modules`] reads the sources, [`cycles`] looks for cycles, and [`known`]
//! lists those that are left.
//!
//! Files that lie side by side must not import each other in a circle, and neither must folders. At each level, a file
//! and the folder of its name count as one part, within which files may import each other. Code under `#[cfg(test)]`
//! does not count.

mod crates;
mod cycles;
mod known;
mod modules;
mod tests;

use std::collections::BTreeSet;

use cycles::Cycle;
use modules::Crate;

#[test]
fn no_crate_has_a_cycle_of_imports() {
    let problems: Vec<String> = crates::roots()
        .iter()
        .flat_map(|root| {
            let found = cycles::find(&Crate::read(&crates::workspace().join(root)));
            judge(root, &found, known::CYCLES)
        })
        .collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// What is wrong with the cycles of a crate, given those that are known.
fn judge(root: &str, found: &[Cycle], known: &[known::Known]) -> Vec<String> {
    let known: Vec<_> = known.iter().filter(|known| known.root == root).collect();
    let mut problems = Vec::new();
    for cycle in found {
        let listed = known.iter().find(|known| known.within == cycle.within && known.has_any(&cycle.members));
        let is_new = |member: &&String| !listed.is_some_and(|known| known.members.contains(&member.as_str()));
        if let Some(new) = cycle.members.iter().find(is_new) {
            let more = if listed.is_some() { ", which joins a cycle that is known" } else { "" };
            problems.push(format!("{root}: {new} is in a cycle of imports{more}:\n{}", cycle.chain_through(new)));
        }
    }
    for known in known {
        let left: BTreeSet<&str> = found
            .iter()
            .filter(|cycle| cycle.within == known.within)
            .flat_map(|cycle| cycle.members.iter().map(String::as_str))
            .collect();
        for gone in known.members.iter().filter(|member| !left.contains(*member)) {
            problems.push(format!(
                "{root}: {gone} is in no cycle any more: take it off the list in tests/imports/known.rs"
            ));
        }
    }
    problems
}

#[test]
fn crates_depend_only_on_those_that_they_may() {
    let problems = crates::misdirected(&crates::manifests());
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
