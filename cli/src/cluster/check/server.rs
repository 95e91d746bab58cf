//! The API server: whether it answers, its version and its clock.

use std::time::{Duration, SystemTime};

use super::super::{
    api::Api,
    finding::{Finding, Findings},
    objects::ServerVersion,
};

const CHECK: &str = "api-server";
/// The oldest Kubernetes with all that Weft needs.
const OLDEST: (u32, u32) = (1, 30);
/// How far clocks may be apart: certificates are valid from an hour before they are made on, so this is early.
const SKEW_WARNED: Duration = Duration::from_secs(30);
const SKEW: Duration = Duration::from_secs(30 * 60);

/// False if nothing else can be looked at.
pub(super) async fn check(api: &Api, findings: &mut Findings) -> bool {
    let before = SystemTime::now();
    let (version, date) = match api.get_dated::<ServerVersion>("/version").await {
        Ok(answer) => answer,
        Err(trouble) => {
            let to_do = "see whether `kubectl version` works with the same KUBECONFIG";
            findings.add(Finding::error(CHECK, trouble.to_string(), to_do));
            return false;
        }
    };
    findings.add(of_version(&version, api.server()));
    if let Some(date) = date {
        findings.add(of_clock(before, SystemTime::now(), date));
    }
    true
}

fn of_version(version: &ServerVersion, server: &str) -> Finding {
    let git_version = &version.git_version;
    let digits = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    let (major, minor) = OLDEST;
    match digits(&version.major).zip(digits(&version.minor)) {
        Some(found) if found >= OLDEST => Finding::good(CHECK, format!("{server} has Kubernetes {git_version}")),
        Some(_) => Finding::error(
            CHECK,
            format!(
                "{server} has Kubernetes {git_version}, which has no native sidecar containers or admission policies"
            ),
            format!("upgrade it to {major}.{minor} or newer"),
        ),
        None => Finding::warning(
            CHECK,
            format!("{server} says that its version is {git_version}"),
            format!("make sure that it is {major}.{minor} or newer"),
        ),
    }
}

/// The API server's clock against this machine's. The date has full seconds, and was made between the two times.
fn of_clock(before: SystemTime, after: SystemTime, date: SystemTime) -> Finding {
    let apart = |a: SystemTime, b: SystemTime| a.duration_since(b).unwrap_or_default();
    let is_behind = date < before;
    let skew = apart(before, date + Duration::from_secs(1)).max(apart(date, after));
    let found = format!(
        "the API server's clock is {} s {} this machine's",
        skew.as_secs(),
        if is_behind { "behind" } else { "ahead of" }
    );
    let to_do = "set the clocks by NTP, on the nodes too: certificates are valid only for a time";
    match skew {
        skew if skew >= SKEW => Finding::error("clock", found, to_do),
        skew if skew >= SKEW_WARNED => Finding::warning("clock", found, to_do),
        _ => Finding::good("clock", "the API server's clock agrees with this machine's"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::finding::Level, *};

    #[test]
    fn an_old_api_server_is_an_error() {
        let of = |major: &str, minor: &str| {
            let text = |text: &str| text.to_owned();
            of_version(&ServerVersion { git_version: text("v1"), major: text(major), minor: text(minor) }, "x").level
        };
        assert_eq!(of("1", "30"), Level::Good);
        assert_eq!(of("1", "34+"), Level::Good, "as some clouds have it");
        assert_eq!(of("2", "0"), Level::Good);
        assert_eq!(of("1", "29"), Level::Error);
        assert_eq!(of("", "x"), Level::Warning);
    }

    #[test]
    fn clocks_that_differ_are_found() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let of = |seconds: i64| {
            let by = Duration::from_secs(seconds.unsigned_abs());
            of_clock(now, now, if seconds < 0 { now - by } else { now + by })
        };
        assert_eq!((of(0).level, of(-1).level, of(29).level), (Level::Good, Level::Good, Level::Good));
        assert_eq!((of(60).level, of(-60).level), (Level::Warning, Level::Warning));
        assert_eq!((of(3_600).level, of(-3_600).level), (Level::Error, Level::Error));
        assert!(of(-600).found.contains("599 s behind") && of(600).found.contains("600 s ahead"));
        // An answer that took long proves nothing.
        assert_eq!(of_clock(now, now + Duration::from_secs(100), now + Duration::from_secs(50)).level, Level::Good);
    }
}
