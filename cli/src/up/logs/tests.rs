//! Tests that take the place of the printing thread.

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn unprinted(is_verbose: bool) -> Logs {
    let source = |name: &str, is_own| Source { name: name.to_owned(), is_own };
    let sources = vec![source("users-1", false), source("auth-1", false), source("users-1·sidecar", true)];
    Logs::unprinted(sources, Look { is_verbose, ..Look::default() })
}

/// What would be printed now: `NAME: LINE`, with `weft` for weft's own, and the number of lines dropped before.
fn take(logs: &Logs) -> Vec<(String, u64)> {
    let batch = logs.0.shared.lock().take(logs.is_held()).unwrap_or_default();
    let name = |source: usize| logs.0.sources.get(source).map_or("weft", |followed| followed.source.name.as_str());
    batch
        .entries
        .into_iter()
        .map(|entry| (format!("{}: {}", name(entry.source), entry.line.text), entry.dropped))
        .collect()
}

fn texts(logs: &Logs) -> Vec<String> {
    take(logs).into_iter().map(|(text, _)| text).collect()
}

fn process(logs: &Logs, name: &str) -> (DuplexStream, JoinHandle<()>) {
    let (child, stream) = duplex(1_024);
    (child, logs.follow(name, stream).unwrap())
}

async fn say_all(logs: &Logs, name: &str, lines: &str) {
    let (mut child, reader) = process(logs, name);
    child.write_all(lines.as_bytes()).await.unwrap();
    drop(child);
    reader.await.unwrap();
}

fn flood(lines: usize) -> String {
    (0..lines).map(|n| format!("flood {n}\n")).collect()
}

const FLOOD: usize = 5_000;

#[tokio::test(start_paused = true)]
async fn a_flood_before_the_table_drops_no_line_of_another_service() {
    let logs = unprinted(false);
    say_all(&logs, "auth-1", "auth is listening\n").await;
    say_all(&logs, "users-1", &flood(FLOOD)).await;
    logs.say("the mesh is up");
    assert_eq!(texts(&logs), ["weft: the mesh is up"], "the rest is held back");
    logs.release();
    logs.show("the table");
    let mut taken = take(&logs);
    assert_eq!(taken.pop(), Some(("weft: the table".to_owned(), 0)), "it comes last");
    assert_eq!(taken[0], ("auth-1: auth is listening".to_owned(), 0));
    let (_, dropped) = taken[1];
    assert_eq!(dropped as usize + taken.len() - 1, FLOOD, "the missing lines were counted");
    assert_eq!(taken.last().unwrap().0, format!("users-1: flood {}", FLOOD - 1));
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_read_to_its_end_and_counted_even_if_nothing_is_printed() {
    let logs = unprinted(false);
    logs.release();
    say_all(&logs, "users-1", &flood(FLOOD)).await;
    say_all(&logs, "auth-1", "auth is listening\n").await;
    let taken = take(&logs);
    assert!(taken[0].1 > 0 && taken[0].1 as usize + taken.len() - 1 == FLOOD);
    assert_eq!(taken.last().unwrap(), &("auth-1: auth is listening".to_owned(), 0));
    let last = logs.last_lines("users-1");
    let expected = format!("flood {}", FLOOD - 1);
    assert_eq!((last.len(), last.last().map(String::as_str)), (KEPT, Some(expected.as_str())));
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_slowed_down_to_the_pace_of_the_printer() {
    let logs = unprinted(false);
    logs.release();
    let (mut child, reader) = process(&logs, "users-1");
    let writer = tokio::spawn(async move { child.write_all(flood(FLOOD).as_bytes()).await });
    let mut printed = Vec::new();
    while printed.len() < FLOOD {
        // The virtual clock stands still until all other tasks wait, so the printer is always in time.
        tokio::time::sleep(PATIENCE / 10).await;
        printed.extend(take(&logs));
        logs.0.shared.has_room.notify_waiters();
        assert!(printed.iter().all(|(_, dropped)| *dropped == 0), "nothing is lost");
    }
    writer.await.unwrap().unwrap();
    reader.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_line_without_its_end_is_printed_after_a_while() {
    let logs = unprinted(false);
    logs.release();
    let (mut child, _reader) = process(&logs, "users-1");
    child.write_all(b"password: ").await.unwrap();
    tokio::time::sleep(PARTIAL_AFTER * 2).await;
    assert_eq!(texts(&logs), ["users-1: password: "]);
}

#[tokio::test(start_paused = true)]
async fn lines_of_sidecars_below_warn_are_left_out_and_no_lines_of_services() {
    let info = "2026-01-31T12:00:00.123456Z  INFO weft_sidecar: has its identity";
    let warn = "2026-01-31T12:00:00.123456Z  WARN weft_sidecar: open files are limited";
    let lines = format!("{info}\n{warn}\nweft: it ends\n");
    for (is_verbose, shown) in [(false, vec![warn, "weft: it ends"]), (true, vec![info, warn, "weft: it ends"])] {
        let logs = unprinted(is_verbose);
        logs.release();
        say_all(&logs, "users-1·sidecar", &lines).await;
        let shown: Vec<String> = shown.into_iter().map(|line| format!("users-1·sidecar: {line}")).collect();
        assert_eq!(texts(&logs), shown);
        assert_eq!(logs.last_lines("users-1·sidecar").len(), 3, "all of them explain a death");
        say_all(&logs, "users-1", &format!("{info}\n")).await;
        assert_eq!(texts(&logs), [format!("users-1: {info}")]);
    }
}
