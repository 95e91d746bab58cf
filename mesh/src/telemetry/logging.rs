//! Logs. They go to standard error, so that standard output contains only a program's results.
//!
//! A thread that logs never waits for the reader of the log: see [`Outlet`].

use std::{
    backtrace::Backtrace,
    env, fmt,
    io::{self, IsTerminal, Write},
    panic,
    str::FromStr,
    sync::{Arc, OnceLock},
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer, Registry,
    filter::{ParseError, Targets},
    fmt::layer,
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

use super::{TelemetryError, outlet::Outlet};

/// The log of this process, once it is set up.
static LOG: OnceLock<Outlet> = OnceLock::new();

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people, with colours on a terminal.
    #[default]
    Text,
    /// For machines: one JSON object on each line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is not a log format; allowed are `text` and `json`")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// What this process logs. It can be changed while the process runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogFilter {
    handle: reload::Handle<Targets, Registry>,
    at_start: Arc<str>,
}

impl LogFilter {
    /// The directives at the start of the process.
    pub fn at_start(&self) -> &str {
        &self.at_start
    }

    /// Sets other directives: levels, separated by commas, each for a target (`weft_sidecar=debug`) or for all other
    /// targets (`info`). A target without a directive is not logged.
    ///
    /// # Errors
    /// One of them is not a directive. Then nothing changes.
    pub fn set(&self, directives: &str) -> Result<(), BadFilter> {
        let targets = targets(directives)?;
        // It fails only if the layer is gone, and with it all logs.
        let _ = self.handle.reload(targets);
        Ok(())
    }

    /// The directives now.
    pub fn now(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// A filter with a part that is not a directive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{part}` {problem}; allowed are LEVEL and TARGET=LEVEL, separated by commas, as in `info,weft_sidecar=debug`")]
pub struct BadFilter {
    part: String,
    problem: String,
}

fn targets(directives: &str) -> Result<Targets, BadFilter> {
    directives.split(',').try_fold(Targets::new(), |targets, part| {
        Ok(match directive(part.trim())? {
            (Some(target), level) => targets.with_target(target, level),
            (None, level) => targets.with_default(level),
        })
    })
}

/// Stricter than the filter's own parser, which takes a misspelled level for the name of a target and logs everything
/// of it.
fn directive(part: &str) -> Result<(Option<String>, LevelFilter), BadFilter> {
    let (target, level) = part.rsplit_once('=').map_or((None, part), |(target, level)| (Some(target), level));
    let bad = |problem| BadFilter { part: part.to_owned(), problem };
    // Its own parser takes a missing level for `error`.
    let Some(level) = level.parse().ok().filter(|_| !level.is_empty()) else {
        return Err(bad(format!("has the level `{level}`; a level is one of off, error, warn, info, debug and trace")));
    };
    let is_path = |target: &str| {
        !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte))
    };
    match target {
        Some(target) if !is_path(target) => Err(bad(format!(
            "has the target `{target}`; a target is the path of a module, such as weft_sidecar::transport::pool"
        ))),
        target => Ok((target.map(str::to_owned), level)),
    }
}

/// Sets up the logs of this process: to standard error, filtered by `RUST_LOG`, or at `info` and above without it.
/// Panics are logged as well, as a runtime catches those of tasks. At its end the process must drop a [`FlushLog`] or
/// call [`exit`].
///
/// # Errors
/// `RUST_LOG` is wrong, logs were set up before, or the system has no thread left.
pub fn init_logging(format: LogFormat) -> Result<LogFilter, TelemetryError> {
    let filter = log_filter()?;
    let at_start = filter.to_string().into();
    let (filter, handle) = reload::Layer::new(filter);
    let layer = lines(format).with_filter(filter);
    let outlet = Outlet::start("log", io::stderr(), |lost| {
        tracing::warn!("{lost} log lines were lost as nobody read them");
    });
    LOG.set(outlet.map_err(TelemetryError::LogThread)?).map_err(|_| TelemetryError::AlreadySet)?;
    tracing_subscriber::registry().with(layer).try_init().map_err(|_| TelemetryError::AlreadySet)?;
    panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        tracing::error!(%panic, %backtrace, "a task panicked");
    }));
    Ok(LogFilter { handle, at_start })
}

/// When it is dropped, also by a panic, waits until the log is written, at most [`crate::limits::LOG_FLUSH`].
#[derive(Debug)]
pub struct FlushLog;

impl Drop for FlushLog {
    fn drop(&mut self) {
        flush();
    }
}

fn flush() {
    if let Some(log) = LOG.get() {
        log.flush();
    }
}

/// Ends the process when its log is written, or after [`crate::limits::LOG_FLUSH`]. `std::process::exit` would lose
/// lines that wait.
pub fn exit(status: i32) -> ! {
    flush();
    std::process::exit(status)
}

/// Writes to standard error why the process ends, after all log lines and whatever the filter is. If logs are set up,
/// waits for a reader like [`FlushLog`], and otherwise like any program.
pub fn say_last(why: &str) {
    match LOG.get() {
        Some(log) => {
            log.push(format!("{why}\n").as_bytes());
            log.flush();
        }
        // An error is ignored: without standard error there is no place to report it.
        None => drop(writeln!(io::stderr(), "{why}")),
    }
}

/// How many log lines were lost because nobody read them in time.
pub fn log_lines_lost() -> u64 {
    LOG.get().map_or(0, Outlet::lost)
}

fn lines(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    match format {
        LogFormat::Text => {
            let has_colours =
                io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            layer().compact().with_ansi(has_colours).with_writer(|| ToLog).boxed()
        }
        LogFormat::Json => layer().json().flatten_event(true).with_span_list(false).with_writer(|| ToLog).boxed(),
    }
}

/// Takes one line at a time, as the layers above write them.
struct ToLog;

impl Write for ToLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(log) = LOG.get() {
            log.push(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The filter of `RUST_LOG`: `info` and above if it does not set a level for all targets.
pub fn log_filter() -> Result<Targets, TelemetryError> {
    filter(&env::var_os("RUST_LOG").unwrap_or_default().to_string_lossy())
}

fn filter(directives: &str) -> Result<Targets, TelemetryError> {
    let filter: Targets = match directives {
        "" => Targets::new(),
        directives => directives.parse().map_err(|e: ParseError| TelemetryError::Filter(e.to_string()))?,
    };
    Ok(match filter.default_level() {
        Some(_) => filter,
        None => filter.with_default(LevelFilter::INFO),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_info_by_default() {
        use tracing::Level;
        let logs = |directives: &str, target, level: &Level| filter(directives).unwrap().would_enable(target, level);
        assert!(logs("", "weft", &Level::INFO) && !logs("", "weft", &Level::DEBUG));
        assert!(logs("debug", "weft", &Level::DEBUG));
        assert!(logs("weft=debug", "weft::link", &Level::DEBUG) && logs("weft=debug", "hyper", &Level::INFO));
        assert!(!logs("off", "weft", &Level::ERROR));
        let error = filter("weft=loud").unwrap_err().to_string();
        assert!(error.starts_with("RUST_LOG is wrong: "), "{error}");
    }

    #[test]
    fn each_part_of_a_filter_needs_a_level() {
        for good in ["info", "off", "warn,weft_sidecar=debug", "weft_sidecar::transport::pool=trace, h2=OFF", "3"] {
            assert_eq!(targets(good).err(), None, "{good}");
        }
        for (bad, part) in [
            ("", "``"),
            ("debgu", "`debgu`"),
            ("info,weft=loud", "`weft=loud`"),
            ("info,=debug", "`=debug`"),
            ("info,[span]=debug", "`[span]=debug`"),
            ("info,,debug", "``"),
        ] {
            let error = targets(bad).unwrap_err().to_string();
            assert!(error.starts_with(part) && error.contains("allowed are"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_filter_at_the_start_can_be_set_again_as_shown() {
        for directives in ["", "debug", "warn,weft=debug,h2=off"] {
            let at_start = filter(directives).unwrap();
            assert_eq!(targets(&at_start.to_string()).unwrap(), at_start, "{directives}");
        }
    }

    #[test]
    fn formats_are_read_as_they_are_written() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<LogFormat>().unwrap_err().contains("allowed are `text` and `json`"));
    }
}
