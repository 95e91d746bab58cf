//! Changes the log filter while the sidecar runs: until the next change, or for a while, after which the earlier filter
//! returns.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use weft_contracts::weft::admin::v1 as wire;
use weft_mesh::{
    limits,
    telemetry::{BadFilter, LogFilter},
};

use super::message::duration;
use crate::control::Control;

/// The longest time for a temporary filter: set one that is needed for longer without a time.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// See the module.
pub(in crate::control) struct Log {
    filter: LogFilter,
    lent: watch::Sender<Option<Lent>>,
}

/// A temporary filter.
#[derive(Clone, Debug)]
struct Lent {
    until: Instant,
    /// The filter that returns then.
    then: String,
}

/// Why a new filter is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the filter is wrong: {0}")]
    Filter(#[from] BadFilter),
    #[error("the filter is longer than {} bytes", limits::LOG_FILTER_BYTES)]
    Long,
    #[error("a filter can't be set for {0:?}: allowed is more than nothing, and at most 24 h")]
    Time(Duration),
}

impl Log {
    pub(in crate::control) fn new(filter: LogFilter) -> Self {
        Self { filter, lent: watch::Sender::new(None) }
    }

    /// Sets the filter, or the one from the start if `filter` is empty; for a time, or until it is changed again.
    pub(super) fn set(&self, filter: &str, time: Option<Duration>) -> Result<(), Refused> {
        if filter.len() > limits::LOG_FILTER_BYTES {
            return Err(Refused::Long);
        }
        if let Some(time) = time.filter(|time| time.is_zero() || *time > LONGEST) {
            return Err(Refused::Time(time));
        }
        let filter = if filter.is_empty() { self.filter.at_start() } else { filter };
        let mut result = Ok(());
        self.lent.send_modify(|lent| {
            // After several temporary filters in a row, the one from before the first returns.
            let before = lent.as_ref().map_or_else(|| self.filter.now(), |lent| lent.then.clone());
            result = self.filter.set(filter);
            if result.is_ok() {
                *lent = time.map(|time| Lent { until: Instant::now() + time, then: before });
            }
        });
        result?;
        let time = time.map(|time| format!(" for {time:?}")).unwrap_or_default();
        // At WARN, so that a reader of the log sees why the lines changed, even if little is logged.
        tracing::warn!("told through the admin port to log `{}`{time}", self.filter.now());
        Ok(())
    }

    pub(super) fn state(&self) -> wire::Log {
        let left = self.lent.borrow().as_ref().map(|lent| lent.until.saturating_duration_since(Instant::now()));
        wire::Log {
            filter: self.filter.now(),
            filter_at_start: self.filter.at_start().into(),
            left: left.and_then(duration),
        }
    }

    /// Ends temporary filters when their time is up.
    async fn keep(&self) {
        let mut lent = self.lent.subscribe();
        loop {
            let until = lent.borrow_and_update().as_ref().map(|lent| lent.until);
            let is_up = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives as long as `self`.
                _ = lent.changed() => {}
                () = is_up => self.take_back(),
            }
        }
    }

    fn take_back(&self) {
        let is_over = self.lent.send_if_modified(|lent| {
            let Some(Lent { then, .. }) = lent.take_if(|lent| lent.until <= Instant::now()) else { return false };
            // It can't fail: this filter was in use before.
            let _ = self.filter.set(&then);
            true
        });
        if is_over {
            tracing::info!("the temporary log filter has ended; the filter is `{}` again", self.filter.now());
        }
    }
}

/// Ends temporary filters for as long as the sidecar runs.
pub(in crate::control) async fn keep_log(control: Arc<Control>) -> anyhow::Result<()> {
    control.log.keep().await;
    Ok(())
}

/// Parses a time such as `90s`, `5m` or `1h`; without a unit, in seconds.
pub(super) fn time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let unit = match &text[digits.len()..] {
        "ms" => return Some(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.checked_mul(unit).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_with_their_units() {
        let seconds = |text| time(text).map(|time| time.as_secs_f64());
        assert_eq!(["30", "30s", "5m", "1h", "250ms"].map(seconds), [30.0, 30.0, 300.0, 3600.0, 0.25].map(Some));
        for bad in ["", "s", "-5s", "1.5h", "5 m", "5d", "99999999999999999999h"] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }
}
