//! The progress of the start, as the lines that a terminal shows meanwhile.

use std::time::Duration;

use super::logs::{LiveLine, Tone};

/// What is going on at present.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage<'a> {
    /// A command of the file's `build`.
    Build(&'a str),
    Start,
}

/// The state of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) replicas: usize,
    pub(crate) ready: usize,
    /// Why a replica is not ready yet: the latest reason that came.
    pub(crate) waits_for: Option<String>,
    /// A replica was not ready in time.
    pub(crate) has_failed: bool,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, replicas: usize) -> Self {
        Self { name: name.into(), replicas, ready: 0, waits_for: None, has_failed: false }
    }

    fn state(&self, stage: Stage<'_>) -> (String, Tone) {
        if matches!(stage, Stage::Build(_)) {
            return ("waits for the build".to_owned(), Tone::Faint);
        }
        if self.ready == self.replicas {
            return ("ready".to_owned(), Tone::Good);
        }
        let (mut text, tone) = if self.has_failed { ("NOT READY", Tone::Bad) } else { ("starting", Tone::Plain) };
        let some = format!("{text}, {} of {} ready", self.ready, self.replicas);
        if self.replicas > 1 {
            text = &some;
        }
        match &self.waits_for {
            Some(reason) => (format!("{text}: {reason}"), tone),
            None => (text.to_owned(), tone),
        }
    }
}

/// A line for the stage, and one for each service.
pub(crate) fn lines(stage: Stage<'_>, rows: &[Row], elapsed: Duration) -> Vec<LiveLine> {
    let what = match stage {
        Stage::Build(command) => format!("building: {command}"),
        Stage::Start => "starting the mesh".to_owned(),
    };
    let mut lines = vec![LiveLine { text: format!("{what} ({} s)", elapsed.as_secs()), tone: Tone::Plain }];
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    lines.extend(rows.iter().map(|row| {
        let (state, tone) = row.state(stage);
        LiveLine { text: format!("  {:width$}   {state}", row.name), tone }
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stage: Stage<'_>, rows: &[Row]) -> Vec<(String, Tone)> {
        lines(stage, rows, Duration::from_millis(3_900)).into_iter().map(|line| (line.text, line.tone)).collect()
    }

    fn line(text: &str, tone: Tone) -> (String, Tone) {
        (text.to_owned(), tone)
    }

    #[test]
    fn while_it_builds_all_services_wait() {
        let rows = [Row::new("users", 1), Row::new("notifications", 2)];
        assert_eq!(
            shown(Stage::Build("cargo build"), &rows),
            [
                line("building: cargo build (3 s)", Tone::Plain),
                line("  users           waits for the build", Tone::Faint),
                line("  notifications   waits for the build", Tone::Faint),
            ]
        );
    }

    #[test]
    fn each_service_has_its_state() {
        let rows = [
            Row { ready: 1, ..Row::new("users", 1) },
            Row { ready: 1, waits_for: Some("the local service is not up".into()), ..Row::new("products", 2) },
            Row::new("auth", 1),
            Row { has_failed: true, waits_for: Some("no answer".into()), ..Row::new("web", 1) },
        ];
        assert_eq!(
            shown(Stage::Start, &rows),
            [
                line("starting the mesh (3 s)", Tone::Plain),
                line("  users      ready", Tone::Good),
                line("  products   starting, 1 of 2 ready: the local service is not up", Tone::Plain),
                line("  auth       starting", Tone::Plain),
                line("  web        NOT READY: no answer", Tone::Bad),
            ]
        );
    }
}
