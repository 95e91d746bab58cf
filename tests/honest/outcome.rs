//! The outcome of a load, read from what each tool prints.

use std::{collections::BTreeMap, process::Output};

use serde::Deserialize;

use crate::tool::Tool;

/// The outcome of a load.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) calls: u64,
    /// How many calls failed, by kind: a gRPC code, an HTTP status, or the tool's own word.
    pub(crate) failures: BTreeMap<String, u64>,
    /// The longest call, in milliseconds.
    pub(crate) max_ms: f64,
    /// The longest time without any answer, minus the median call, in milliseconds. For tools that do not report that
    /// time, the longest call takes its place.
    #[serde(rename = "gap_ms")]
    pub(crate) stall_ms: f64,
    /// The message of one failure.
    #[serde(default)]
    pub(crate) example: String,
}

impl Outcome {
    /// The outcome of a load that reported nothing.
    pub(crate) fn failed(why: String) -> Self {
        Self { failures: [("no result".to_owned(), 1)].into(), example: why, ..Self::default() }
    }

    pub(crate) fn failed_calls(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The outcome of two loads that ran at the same time.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.calls += other.calls;
        for (kind, count) in other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        self.max_ms = self.max_ms.max(other.max_ms);
        self.stall_ms = self.stall_ms.max(other.stall_ms);
        if !other.example.is_empty() {
            self.example = other.example;
        }
        self
    }

    /// Without the kinds of failure that the load asked for.
    pub(crate) fn without(mut self, kinds: &[&str]) -> Self {
        self.failures.retain(|kind, _| !kinds.contains(&kind.as_str()));
        self
    }

    fn fail(&mut self, kind: &str, count: u64) {
        if count > 0 {
            *self.failures.entry(kind.to_owned()).or_default() += count;
        }
    }
}

impl Tool {
    /// The outcome in the output of a tool.
    pub(crate) fn outcome(self, output: &Output) -> Outcome {
        let out = String::from_utf8_lossy(&output.stdout);
        let told = String::from_utf8_lossy(&output.stderr);
        let all = format!("{out}{told}");
        let parsed = match self {
            Self::Own => own(&out),
            Self::Wrk => wrk(&out),
            Self::Ab => ab(&out),
            Self::H2load => h2load(&out),
            Self::Ghz => ghz(&out),
            Self::Redis => redis(&out),
            Self::Pgbench => pgbench(&all),
            Self::Sysbench => sysbench(&out),
            Self::Nats => nats(&all, output.status.success()),
        };
        match parsed {
            None => Outcome::failed(format!("{}: {all}", output.status)),
            Some(mut outcome) => {
                if !output.status.success() && outcome.failures.is_empty() {
                    outcome.fail(&output.status.to_string(), 1);
                    outcome.example = all;
                }
                if outcome.calls == 0 {
                    outcome.fail("no calls", 1);
                }
                outcome
            }
        }
    }
}

/// The suite's own programs. Calls that run side by side may end together. Then the time between two answers is as long
/// as a call, which is no stall.
fn own(text: &str) -> Option<Outcome> {
    #[derive(Deserialize)]
    struct Told {
        #[serde(default)]
        p50_ms: f64,
        #[serde(flatten)]
        outcome: Outcome,
    }
    let Told { p50_ms, mut outcome } = serde_json::from_str(text.trim()).ok()?;
    outcome.stall_ms = (outcome.stall_ms - p50_ms).max(0.0);
    Some(outcome)
}

/// The number right after `before`; with a unit (`us`, `ms`, `s`, `m`), in milliseconds.
fn after(text: &str, before: &str) -> Option<f64> {
    let (_, rest) = text.split_once(before)?;
    let word = rest.split_whitespace().next()?.trim_end_matches([',', ';']);
    number(word)
}

fn number(word: &str) -> Option<f64> {
    let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let value: f64 = word[..word.len() - unit.len()].parse().ok()?;
    Some(match unit {
        "us" => value / 1_000.0,
        "s" => value * 1_000.0,
        "m" => value * 60_000.0,
        _ => value,
    })
}

/// The words of the first line that begins with `start`.
fn words<'a>(text: &'a str, start: &str) -> Option<Vec<&'a str>> {
    let line = text.lines().map(str::trim).find(|line| line.starts_with(start))?;
    Some(line.split_whitespace().collect())
}

fn wrk(text: &str) -> Option<Outcome> {
    let requests = text.lines().find(|line| line.contains(" requests in "))?;
    let max = number(words(text, "Latency")?.get(3)?)?;
    let median = number(words(text, "50%")?.get(1)?)?;
    let calls = requests.split_whitespace().next()?.parse().ok()?;
    let mut outcome = Outcome { calls, max_ms: max, stall_ms: max - median, ..Outcome::default() };
    for kind in ["connect", "read", "write", "timeout"] {
        if let Some(errors) = text.lines().find(|line| line.contains("Socket errors:")) {
            outcome.fail(kind, after(errors, &format!("{kind} "))? as u64);
        }
    }
    outcome.fail("status", after(text, "Non-2xx or 3xx responses:").unwrap_or(0.0) as u64);
    Some(outcome)
}

fn ab(text: &str) -> Option<Outcome> {
    let total = words(text, "Total:")?;
    let (median, max) = (number(total.get(4)?)?, number(total.get(5)?)?);
    let calls = after(text, "Complete requests:")? as u64;
    let mut outcome = Outcome { calls, max_ms: max, stall_ms: max - median, ..Outcome::default() };
    // ab counts answers of another length than the first as failed.
    outcome.fail("failed", after(text, "Failed requests:")? as u64);
    outcome.fail("status", after(text, "Non-2xx responses:").unwrap_or(0.0) as u64);
    Some(outcome)
}

fn h2load(text: &str) -> Option<Outcome> {
    let requests = words(text, "requests:")?;
    let count = |place: usize| requests.get(place).and_then(|word| word.parse::<u64>().ok());
    let codes = words(text, "status codes:")?;
    let code = |place: usize| codes.get(place).and_then(|word| word.parse::<u64>().ok());
    let latency = words(text, "time for request:")?;
    let (max, mean) = (number(latency.get(4)?)?, number(latency.get(5)?)?);
    let mut outcome = Outcome { calls: count(5)?, max_ms: max, stall_ms: max - mean, ..Outcome::default() };
    let (client, server) = (code(6)?, code(8)?);
    outcome.fail("4xx", client);
    outcome.fail("5xx", server);
    // h2load counts 4xx and 5xx as failed, too.
    outcome.fail("failed", count(9)?.saturating_sub(client + server));
    Some(outcome)
}

/// `redis-benchmark` ends at the first error, so all that it reports has succeeded.
fn redis(text: &str) -> Option<Outcome> {
    let mut outcome = Outcome::default();
    let lines: Vec<&str> = text.lines().collect();
    for (place, line) in lines.iter().enumerate() {
        if let Some((calls, _)) = line.split_once(" requests completed in") {
            outcome.calls += calls.trim().rsplit(['\r', ' ']).next()?.parse::<u64>().ok()?;
        }
        if line.contains("latency summary") {
            // avg, min, p50, p95, p99, max
            let values: Vec<f64> = lines.get(place + 2)?.split_whitespace().filter_map(number).collect();
            outcome.max_ms = outcome.max_ms.max(*values.get(5)?);
            outcome.stall_ms = outcome.stall_ms.max(values[5] - values[2]);
        }
    }
    (outcome.calls > 0).then_some(outcome)
}

fn ghz(text: &str) -> Option<Outcome> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Report {
        count: u64,
        /// In nanoseconds.
        slowest: f64,
        average: f64,
        #[serde(default)]
        status_code_distribution: BTreeMap<String, u64>,
        #[serde(default)]
        error_distribution: BTreeMap<String, u64>,
    }
    let report: Report = serde_json::from_str(text).ok()?;
    let mut failures = report.status_code_distribution;
    failures.remove("OK");
    Some(Outcome {
        calls: report.count,
        failures,
        max_ms: report.slowest / 1e6,
        stall_ms: (report.slowest - report.average) / 1e6,
        example: report.error_distribution.into_keys().next().unwrap_or_default(),
    })
}

/// `pgbench` does not report the longest call.
fn pgbench(text: &str) -> Option<Outcome> {
    let calls = after(text, "number of transactions actually processed:")? as u64;
    let mut outcome = Outcome { calls, ..Outcome::default() };
    outcome.fail("failed", after(text, "number of failed transactions:")? as u64);
    // A client that loses its connection ends, and the others go on.
    outcome.fail("aborted", text.matches(" aborted").count() as u64);
    Some(outcome)
}

fn sysbench(text: &str) -> Option<Outcome> {
    let max = after(text, "max:")?;
    let calls = after(text, "transactions:")? as u64;
    let mut outcome = Outcome { calls, max_ms: max, stall_ms: max - after(text, "avg:")?, ..Outcome::default() };
    outcome.fail("errors", after(text, "ignored errors:")? as u64);
    outcome.fail("reconnects", after(text, "reconnects:")? as u64);
    Some(outcome)
}

/// `nats-bench` ends at the first error, and does not report the longest call. It reports messages per second.
fn nats(text: &str, is_done: bool) -> Option<Outcome> {
    let line = text.lines().find(|line| line.contains("NATS Pub/Sub stats:"))?;
    let rate = line.split_once("stats:")?.1.split_whitespace().next()?.replace(',', "");
    Some(Outcome { calls: rate.parse().ok().filter(|_| is_done)?, ..Outcome::default() })
}
