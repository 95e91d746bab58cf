//! Logs and traces of the process.

use tracing_subscriber::EnvFilter;

use crate::Settings;

/// Sets up logs and traces, until the value that is returned is dropped.
pub(crate) fn start(_name: &str, settings: &Settings) -> Result<(), String> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if settings.is_log_json { builder.json().try_init() } else { builder.try_init() };
    started.map_err(|e| e.to_string())
}
