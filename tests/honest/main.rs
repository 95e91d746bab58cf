//! The honest suite: third-party programs under their own load, directly and through a pair of sidecars. The rule: the
//! mesh adds no failure to those of a direct run, and no stall of more than 20 ms.
//!
//! `tests/honest/install` installs the programs. Each case runs for 2 s, or for `WEFT_HONEST_SECONDS`.
//! `WEFT_HONEST_ONLY=go:,nginx` runs only cases whose name contains one of these. Stalls are always printed, but judged
//! only with `WEFT_HONEST_STALLS=1`: they mean something only on a machine that does nothing else.

use std::{env, path::PathBuf, time::Duration};

use tokio::sync::{Mutex, MutexGuard};
use weft_tests::{outside, root, skip};

mod cases;
mod curl;
mod intercepted;
mod outcome;
mod run;
mod server;
mod table;
mod tool;

use cases::Case;
use run::Runner;

/// How long a test waits for a single program.
const LIMIT: Duration = Duration::from_secs(120);

/// Waits until no other test of this suite runs: each has the machine for itself.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// The folder that `tests/honest/install` fills.
fn installed() -> PathBuf {
    root().join("target/honest")
}

/// The first thing that a case needs and that is missing: a file below `target/honest`, or a program.
fn missing<'a>(needs: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    needs.into_iter().find(|name| !installed().join(name).exists() && outside(name).is_none())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whatever_works_directly_works_through_the_mesh() {
    let _turn = turn().await;
    let only = env::var("WEFT_HONEST_ONLY").unwrap_or_default();
    let mut runner = Runner::default();
    let mut rows = Vec::new();
    let is_long = run::asked_seconds().is_some();
    let is_asked = |case: &&Case| (is_long || !case.is_extra) && only.split(',').any(|part| case.name.contains(part));
    for case in cases::all().iter().filter(is_asked) {
        if let Some(program) = missing(case.needs()) {
            skip(&format!("{}: {program} is not installed; tests/honest/install does it", case.name));
            continue;
        }
        rows.push(runner.run(case).await);
    }
    drop(runner);
    table::judge(&rows);
}
