//! Logs. They go to standard error: what a program prints as its result stays clean.
//!
//! No thread that logs waits for whoever reads the log: see [`Outlet`].

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

/// Of this process's log, once it is set up.
static LOG: OnceLock<Outlet> = OnceLock::new();

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; in colours on a terminal.
    #[default]
    Text,
    /// For machines: an object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is no log format; allowed are `text` and `json`")),
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

/// What this process logs, to be changed while it runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogFilter {
    handle: reload::Handle<Targets, Registry>,
    at_start: Arc<str>,
}

impl LogFilter {
    /// What the process began with.
    pub fn at_start(&self) -> &str {
        &self.at_start
    }

    /// Logs by other directives from now on: levels, each for a target (`weft_sidecar=debug`) or for all others (`info`),
    /// separated by commas. What no directive names is not logged.
    ///
    /// # Errors
    /// One of them is no directive: then all stays as it is.
    pub fn set(&self, directives: &str) -> Result<(), BadFilter> {
        let targets = targets(directives)?;
        // It fails only when the layer is gone, and with it all logs.
        let _ = self.handle.reload(targets);
        Ok(())
    }

    /// What is logged now.
    pub fn now(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// A filter with a part that is none.
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

/// Stricter than what the filter's own parser takes: to it a level that is misspelled is the name of a target, of which
/// all is logged.
fn directive(part: &str) -> Result<(Option<String>, LevelFilter), BadFilter> {
    let (target, level) = part.rsplit_once('=').map_or((None, part), |(target, level)| (Some(target), level));
    let bad = |problem| BadFilter { part: part.to_owned(), problem };
    // To its own parser no level at all is `error`.
    let Some(level) = level.parse().ok().filter(|_| !level.is_empty()) else {
        return Err(bad(format!("has `{level}` for a level: one of off, error, warn, info, debug and trace")));
    };
    let is_path = |target: &str| {
        !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte))
    };
    match target {
        Some(target) if !is_path(target) => {
            Err(bad(format!("has `{target}` for a target: a module's path such as weft_sidecar::transport::pool")))
        }
        target => Ok((target.map(str::to_owned), level)),
    }
}

/// Sets up the logs of this process: to standard error, filtered by `RUST_LOG`, from `info` on where that says nothing.
/// Panics are logged too, since a runtime catches a task's. At its end the process drops a [`FlushLog`] or calls [`exit`].
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

/// Waits until the log is written when it is dropped, a panic included, for [`crate::limits::LOG_FLUSH`] at most.
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

/// Ends the process once its log is written, or at [`crate::limits::LOG_FLUSH`]; `std::process::exit` loses what waits.
pub fn exit(status: i32) -> ! {
    flush();
    std::process::exit(status)
}

/// Says on standard error why the process ends, behind all that was logged: on a line of its own, whatever is logged. Waits
/// for a reader as [`FlushLog`] does where logs are set up, and otherwise as any program does.
pub fn say_last(why: &str) {
    match LOG.get() {
        Some(log) => {
            log.push(format!("{why}\n").as_bytes());
            log.flush();
        }
        // Without standard error there is nobody to tell.
        None => drop(writeln!(io::stderr(), "{why}")),
    }
}

/// Lines of the log that nobody read in time.
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

/// Takes a line at a time, as the layers above write them.
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

/// What is logged by `RUST_LOG`: from `info` on where that says nothing.
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
    fn the_filter_is_info_unless_told_otherwise() {
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
    fn a_filter_that_is_set_has_a_level_in_each_part() {
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
    fn the_filter_at_the_start_reads_back_as_it_is_shown() {
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
