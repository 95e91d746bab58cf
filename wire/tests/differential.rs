//! Feeds the same bytes to our connection and to the h2 crate's. Both must accept, reset or refuse the same, except
//! where a table says why they differ.

mod peer;

use std::collections::BTreeMap;

use peer::by_design::{BY_DESIGN, by_design};
use peer::choices::Choices;
use peer::differences::{Difference, compare};
use peer::script::Script;

const SCRIPTS: u64 = 6_000;

/// This many scripts make use of every row of the table.
const SCRIPTS_FOR_ALL_ROWS: u64 = 50_000;

#[test]
fn connections_treat_frames_like_the_h2_crate() {
    let scripts = std::env::var("SCRIPTS").map_or(SCRIPTS, |scripts| scripts.parse().expect("SCRIPTS is a number"));
    let first = std::env::var("SEED").map_or(0, |seed| seed.parse().expect("SEED is a number"));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in first..first + scripts {
        let script = Script::write(&mut Choices::seeded(seed));
        let Some(difference) = unexplained(&script, Some(&mut counts)) else { continue };
        let (script, difference) = smallest(script, difference);
        panic!(
            "seed {seed}: {:?} {:?}, is_reading {}\n{:#?}\nat {} {:?}\nours   {:?}\ntheirs {:?}",
            script.role,
            script.answer,
            script.is_reading,
            script.frames,
            difference.at,
            difference.frame,
            difference.ours,
            difference.theirs
        );
    }
    println!("{scripts} scripts; by design: {counts:#?}");
    if first == 0 && scripts >= SCRIPTS_FOR_ALL_ROWS {
        let unseen: Vec<_> =
            BY_DESIGN.iter().filter(|row| !counts.contains_key(row.what)).map(|row| row.what).collect();
        assert!(unseen.is_empty(), "no script needs these rows of the table: {unseen:#?}");
    }
}

fn unexplained(script: &Script, counts: Option<&mut BTreeMap<&str, usize>>) -> Option<Difference> {
    let difference = compare(script)?;
    let Some(row) = by_design(script, &difference) else { return Some(difference) };
    if let Some(counts) = counts {
        *counts.entry(row.what).or_default() += 1;
    }
    None
}

/// The script without the frames that are not needed to show the difference.
fn smallest(mut script: Script, mut difference: Difference) -> (Script, Difference) {
    script.frames.truncate(difference.at + 1);
    let mut at = script.frames.len();
    while at > 2 {
        at -= 1;
        let mut shorter = script.clone();
        shorter.frames.remove(at.min(shorter.frames.len() - 1));
        if let Some(still) = unexplained(&shorter, None) {
            (script, difference) = (shorter, still);
            script.frames.truncate(difference.at + 1);
            at = at.min(script.frames.len());
        }
    }
    (script, difference)
}
