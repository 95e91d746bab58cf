//! Wall clocks that jump: those of the whole host, or of one part of the mesh, by ten minutes and by a day, forward and
//! back.
//!
//! A small library (`clock.c`) is preloaded into each program, and adds to its wall clock as many seconds as the test
//! says.

use std::{fs::OpenOptions, os::unix::fs::FileExt, path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;
use weft_tests::{Bed, eventually, probe, probe_service, root, skip};

/// A guard that only a very slow machine reaches. Some things happen only once a minute.
const LIMIT: Duration = Duration::from_secs(120);

const TEN_MINUTES: i64 = 600;
const A_DAY: i64 = 25 * 3_600;

/// The clocks of a mesh.
struct Clocks {
    dir: TempDir,
}

impl Clocks {
    /// None if there is no compiler for C.
    fn make() -> Option<(Self, [(&'static str, PathBuf); 2])> {
        let dir = TempDir::new().expect("a folder of its own");
        let library = dir.path().join("clock.so");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(root().join("tests/hostile/clock.c"));
        let compiled = compile.arg("-ldl").status();
        if compiled.is_err() {
            skip("`cc` is not installed");
            return None;
        }
        assert!(compiled.is_ok_and(|status| status.success()), "clock.c does not compile");
        let env = [("LD_PRELOAD", library), ("CLOCK_DIR", dir.path().to_owned())];
        Some((Self { dir }, env))
    }

    /// Sets the clocks of all processes, or of one, this many seconds ahead of the real time.
    fn set(&self, of: &str, seconds: i64) {
        // The file never shrinks: the programs have it mapped, and a read beyond its end would kill them (SIGBUS).
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.dir.path().join(of));
        let written = file.and_then(|file| file.write_all_at(&seconds.to_ne_bytes(), 0));
        written.expect("the folder can be written");
    }
}

async fn works(bed: &Bed) {
    let channel = bed.channel();
    eventually("calls are answered again", LIMIT, async || {
        // Several in a row, so that each replica is called.
        for _ in 0..10 {
            if probe(&channel, "Say", &[]).await.is_err() {
                return false;
            }
        }
        true
    })
    .await;
}

#[tokio::test]
async fn clocks_that_jump_do_no_lasting_harm() {
    let Some((clocks, env)) = Clocks::make() else { return };
    let bed = Bed::start_in(&probe_service(2), &[], &env).await;
    works(&bed).await;

    // If all clocks jump together, as on one host, no call notices ten minutes.
    for seconds in [TEN_MINUTES, -TEN_MINUTES, 0] {
        clocks.set("all", seconds);
        for _ in 0..20 {
            probe(&bed.channel(), "Say", &[]).await.unwrap_or_else(|e| panic!("{seconds} s: {e:?}"));
        }
    }
    // After a day every certificate has expired: each is renewed, and nothing has to restart.
    let pids = bed.pids();
    for seconds in [A_DAY, 0, -A_DAY, 0] {
        clocks.set("all", seconds);
        works(&bed).await;
    }
    // Only one part. If its clock is a day off, it trusts nobody and nobody trusts it. The others go on, and it comes
    // back.
    for part in ["control", "probe-1·sidecar"] {
        let pid = bed.pid(part).to_string();
        for seconds in [TEN_MINUTES, -TEN_MINUTES, A_DAY, -A_DAY] {
            clocks.set(&pid, seconds);
            works(&bed).await;
            clocks.set(&pid, 0);
            works(&bed).await;
        }
    }
    assert_eq!(bed.pids(), pids, "nothing has restarted");
}

const AN_HOUR: i64 = 3_600;

/// The number of log lines that contain all of these parts.
fn lines(bed: &Bed, parts: &[&str]) -> usize {
    bed.log().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

#[tokio::test]
async fn certificates_are_renewed_in_time_and_also_too_late() {
    let Some((clocks, env)) = Clocks::make() else { return };
    let bed = Bed::start_in(&probe_service(1), &[], &env).await;
    let pids = bed.pids();
    works(&bed).await;

    // In time: a sidecar renews its certificate and announces itself on a new stream. When the certificate of the older
    // stream expires, the control plane ends that stream, and no call notices.
    clocks.set("all", 17 * AN_HOUR);
    let renewed = |times: usize| {
        let bed = &bed;
        eventually("both sidecars have renewed their certificates", LIMIT, async move || {
            lines(bed, &["has renewed its certificate"]) >= 2 * times
        })
    };
    renewed(1).await;
    let is_announced = async || lines(&bed, &["joined", "probe.shop", "is_again=true"]) == 1;
    eventually("it is announced on a new stream", LIMIT, is_announced).await;
    clocks.set("all", 25 * AN_HOUR);
    eventually("the older streams are ended", LIMIT, async || lines(&bed, &["a watch is over", "expired"]) >= 1).await;
    works(&bed).await;
    assert_eq!(lines(&bed, &["stream broke"]), 0, "an endpoint was missed for a moment");

    // Too late: the certificates have expired, and so have the join tokens, which are valid for 7 days. Nothing has to
    // restart.
    clocks.set("all", 25 * AN_HOUR + 7 * 24 * AN_HOUR + 12 * AN_HOUR);
    renewed(2).await;
    works(&bed).await;
    assert!(lines(&bed, &["signed an SVID", "is_late=true"]) >= 2);
    assert_eq!(bed.pids(), pids, "nothing has restarted");
}
