//! Where the values of a policy come from.

use std::fmt;

use weft_contracts::weft::policy::v1 as wire;

/// A value and its origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
}

impl<T> Sourced<T> {
    /// A value with its origin.
    pub fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }
}

/// Where a value came from, from weakest to strongest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Built into Weft.
    #[default]
    Default,
    /// An option of the protobuf service.
    ServiceOption,
    /// A MethodPolicy on Kubernetes, for the service.
    ServicePolicy,
    /// An option of the method.
    MethodOption,
    /// A MethodPolicy on Kubernetes, for the method.
    MethodPolicy,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::ServiceOption => "service option",
            Self::ServicePolicy => "MethodPolicy for the service",
            Self::MethodOption => "method option",
            Self::MethodPolicy => "MethodPolicy for the method",
        })
    }
}

impl From<Origin> for wire::Origin {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Default => Self::Default,
            Origin::ServiceOption => Self::ServiceOption,
            Origin::ServicePolicy => Self::ServicePolicy,
            Origin::MethodOption => Self::MethodOption,
            Origin::MethodPolicy => Self::MethodPolicy,
        }
    }
}

/// An origin that only a later version knows becomes the weakest one: origins are shown to people, and no decision
/// depends on them.
impl From<wire::Origin> for Origin {
    fn from(origin: wire::Origin) -> Self {
        match origin {
            wire::Origin::Default | wire::Origin::Unspecified => Self::Default,
            wire::Origin::ServiceOption => Self::ServiceOption,
            wire::Origin::ServicePolicy => Self::ServicePolicy,
            wire::Origin::MethodOption => Self::MethodOption,
            wire::Origin::MethodPolicy => Self::MethodPolicy,
        }
    }
}
