//! A breaker that has opened or closed, and why.

use weft_mesh::policy::BreakerPolicy;

use super::owner::Owner;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It was closed.
    Opened(Why),
    /// It was half-open, and its probe has failed or was slow.
    OpenedAgain,
    /// Its probes have succeeded.
    Closed,
    /// What it is for was replaced, or is up again.
    Reset,
}

/// The rule by which a breaker has opened, with what it has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    InARow { failures: u32 },
    Failures { failures: u32, calls: u32 },
    Slow { slow: u32, calls: u32 },
}

impl Change {
    /// What has happened, for the log.
    pub(super) fn describe(self, owner: Option<&Owner>, policy: &BreakerPolicy) -> String {
        let name = owner.map_or_else(String::new, |owner| format!(" of {owner}"));
        let (open_for, window) = (policy.open_for, policy.window);
        match self {
            Self::Opened(why) => {
                let why = match why {
                    Why::InARow { failures } => format!("{failures} calls in a row failed"),
                    Why::Failures { failures, calls } => format!("{failures} of {calls} calls in {window:?} failed"),
                    Why::Slow { slow, calls } => {
                        let longer_than = policy.slow_call.map(|slow_call| slow_call.longer_than).unwrap_or_default();
                        format!("{slow} of {calls} calls in {window:?} took longer than {longer_than:?}")
                    }
                };
                format!("the breaker{name} has opened for {open_for:?}: {why}")
            }
            Self::OpenedAgain => {
                format!("the breaker{name} has opened for {open_for:?} again: its probe failed or was slow")
            }
            Self::Closed => format!("the breaker{name} has closed: its probes succeeded"),
            Self::Reset => format!("the breaker{name} has closed: it was replaced, or is up again"),
        }
    }
}
