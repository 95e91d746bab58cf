//! CPU profiles: where the process spends its time during some seconds.
//!
//! This needs a sampler that interrupts the threads (the feature `profile`). A stripped release build has no symbol
//! names to show, and is smaller without the sampler.

#[cfg(feature = "profile")]
mod flame;
#[cfg(feature = "profile")]
mod pprof;
#[cfg(feature = "profile")]
mod stacks;

use std::{str::FromStr, time::Duration};

use tokio::sync::Semaphore;
use weft_contracts::weft::admin::v1::profile_cpu_request as wire;
use weft_mesh::limits;

/// The length of a profile if none is given.
pub(super) const DEFAULT_TIME: Duration = Duration::from_secs(10);

/// One profile at a time: the process has only one timer for it.
static TURN: Semaphore = Semaphore::const_new(1);

/// How a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Collapsed,
    Svg,
    Pprof,
}

impl Format {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Collapsed => "text/plain; charset=utf-8",
            Self::Svg => "image/svg+xml",
            Self::Pprof => "application/octet-stream",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "collapsed" => Ok(Self::Collapsed),
            "svg" => Ok(Self::Svg),
            "pprof" => Ok(Self::Pprof),
            _ => Err(format!("`{text}` is not a format of profiles; allowed: collapsed, svg, pprof")),
        }
    }
}

impl From<wire::Format> for Format {
    fn from(format: wire::Format) -> Self {
        match format {
            wire::Format::Unspecified | wire::Format::Collapsed => Self::Collapsed,
            wire::Format::Svg => Self::Svg,
            wire::Format::Pprof => Self::Pprof,
        }
    }
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "this program was built without profiles; build it with: cargo build --release -p weft-sidecar --features profile"
    )]
    #[cfg_attr(feature = "profile", expect(dead_code, reason = "only without the feature"))]
    Absent,
    #[error("another profile is running, and there can be only one at a time; try again when it is done")]
    Busy,
    #[error("a profile can't take {0:?}; allowed is more than nothing, and at most {max:?}", max = limits::PROFILE_TIME)]
    Time(Duration),
    #[error("the profile failed: {0}")]
    #[cfg_attr(not(feature = "profile"), expect(dead_code, reason = "there is nothing that could fail"))]
    Failed(String),
}

/// Takes a CPU profile of this length.
pub(super) async fn cpu(time: Duration, format: Format) -> Result<Vec<u8>, Refused> {
    if time.is_zero() || time > limits::PROFILE_TIME {
        return Err(Refused::Time(time));
    }
    let _turn = TURN.try_acquire().map_err(|_| Refused::Busy)?;
    sampled(time, format).await
}

/// Without the sampler there are no profiles.
#[cfg(not(feature = "profile"))]
async fn sampled(_: Duration, _: Format) -> Result<Vec<u8>, Refused> {
    Err(Refused::Absent)
}

#[cfg(feature = "profile")]
async fn sampled(time: Duration, format: Format) -> Result<Vec<u8>, Refused> {
    let stacks = stacks::of(time).await.map_err(Refused::Failed)?;
    Ok(match format {
        Format::Collapsed => stacks::collapsed(&stacks).into_bytes(),
        Format::Svg => flame::graph(&stacks).into_bytes(),
        Format::Pprof => pprof::encode(&stacks, time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_parsed_by_name() {
        assert_eq!("svg".parse(), Ok(Format::Svg));
        assert_eq!("pprof".parse(), Ok(Format::Pprof));
        assert!("png".parse::<Format>().unwrap_err().contains("allowed: collapsed, svg, pprof"));
    }

    #[cfg(not(feature = "profile"))]
    #[tokio::test]
    async fn a_sidecar_without_profiles_says_how_to_get_them() {
        let refused = cpu(DEFAULT_TIME, Format::Svg).await.unwrap_err().to_string();
        assert!(refused.contains("--features profile"), "{refused}");
        assert!(matches!(cpu(Duration::ZERO, Format::Svg).await, Err(Refused::Time(_))));
    }
}
