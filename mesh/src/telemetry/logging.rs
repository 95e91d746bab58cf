//! Logs. They go to standard error: what a program prints as its result stays clean.

use std::{
    env, fmt,
    io::{self, IsTerminal},
    str::FromStr,
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer, Registry,
    filter::{ParseError, Targets},
    fmt::layer,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::TelemetryError;

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

/// Sets up the logs of this process: to standard error, filtered by `RUST_LOG`, from `info` on where that says nothing.
pub fn init_logging(format: LogFormat) -> Result<(), TelemetryError> {
    tracing_subscriber::registry().with(log_layer(format)?).try_init().map_err(|_| TelemetryError::AlreadySet)
}

pub(super) fn log_layer(format: LogFormat) -> Result<Box<dyn Layer<Registry> + Send + Sync>, TelemetryError> {
    let filter = log_filter()?;
    Ok(match format {
        LogFormat::Text => {
            let has_colours =
                io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            layer().compact().with_ansi(has_colours).with_writer(io::stderr).with_filter(filter).boxed()
        }
        LogFormat::Json => {
            layer().json().flatten_event(true).with_span_list(false).with_writer(io::stderr).with_filter(filter).boxed()
        }
    })
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
    fn formats_are_read_as_they_are_written() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<LogFormat>().unwrap_err().contains("allowed are `text` and `json`"));
    }
}
