//! What holds for calls to a service: one compiled model, whatever it was written in, with the origin of each value.
//!
//! [`ServicePolicy::from_schema`] compiles it from the options that stand in a service's `.proto` files;
//! `weft.policy.v1` carries it from the control plane to the sidecars.

mod compile;
mod proto;

use std::{fmt, time::Duration};

pub use self::proto::MalformedPolicy;
pub use crate::schema::Idempotency;
use crate::schema::SchemaError;

/// The policy of one service of the mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicePolicy {
    /// The protobuf services that it implements.
    pub contracts: Vec<ContractPolicy>,
    /// When calls to it, or to one of its endpoints, are stopped.
    pub breaker: Sourced<BreakerPolicy>,
}

impl ServicePolicy {
    /// The policy of the protobuf service of that full name: `shop.users.v1.Users`.
    pub fn contract(&self, name: &str) -> Option<&ContractPolicy> {
        self.contracts.iter().find(|contract| contract.name == name)
    }

    /// The policy of a method: `("shop.users.v1.Users", "Create")`.
    pub fn method(&self, contract: &str, method: &str) -> Option<&MethodPolicy> {
        self.contract(contract)?.methods.iter().find(|candidate| candidate.name == method)
    }
}

/// The policy of one protobuf service.
#[derive(Clone, Debug, PartialEq)]
pub struct ContractPolicy {
    /// Its full name: `shop.users.v1.Users`.
    pub name: String,
    /// Every method that it has.
    pub methods: Vec<MethodPolicy>,
}

/// The policy of one method.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodPolicy {
    /// Its name without its service: `Create`.
    pub name: String,
    /// Whether the caller sends any number of messages.
    pub client_streaming: bool,
    /// Whether the service sends any number of messages.
    pub server_streaming: bool,
    /// How long a call may take in all. `None`: no limit but the caller's.
    pub timeout: Option<Sourced<Duration>>,
    /// What sending a call twice does.
    pub idempotency: Idempotency,
}

/// When a circuit breaker opens and closes. The two rules for opening work side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerPolicy {
    /// Opens after so many failures in a row; 0 switches this rule off.
    pub consecutive_failures: u32,
    /// Opens when this share of the calls in the window failed: above 0, at most 1.
    pub failure_ratio: f64,
    /// The ratio is judged from so many calls in the window on.
    pub minimum_calls: u32,
    /// The rolling window that the ratio looks at.
    pub window: Duration,
    /// How long an open breaker refuses calls before it lets one probe through.
    pub open_for: Duration,
    /// The breaker closes after so many probes in a row succeeded, one at a time. At least 1.
    pub probes: u32,
    /// The gRPC statuses of an answer that count as failures of the service.
    pub failure_codes: CodeSet,
}

/// A set of gRPC status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeSet(u32);

impl CodeSet {
    /// UNAVAILABLE, INTERNAL and DATA_LOSS.
    pub const FAILURES: Self = Self(1 << 13 | 1 << 14 | 1 << 15);

    /// Whether a code is in it.
    #[inline]
    pub fn has(self, code: u8) -> bool {
        code < 32 && self.0 & (1 << code) != 0
    }

    /// The codes in it, in their order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..32).filter(move |code| self.has(*code))
    }
}

impl FromIterator<u8> for CodeSet {
    fn from_iter<I: IntoIterator<Item = u8>>(codes: I) -> Self {
        Self(codes.into_iter().filter(|code| *code < 32).fold(0, |set, code| set | 1 << code))
    }
}

/// What `weft.options.v1.Breaker` promises for each field that is left out.
impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failure_ratio: 0.5,
            minimum_calls: 20,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
            probes: 1,
            failure_codes: CodeSet::FAILURES,
        }
    }
}

/// A value and where it came from.
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
    /// An option of the method.
    MethodOption,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::ServiceOption => "service option",
            Self::MethodOption => "method option",
        })
    }
}

/// Why descriptors give no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The descriptors themselves are no good.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A protobuf service is said to be implemented that the descriptors do not define.
    #[error("the descriptors define no service `{contract}`{}", closest.as_ref().map_or(String::new(), |name| format!("; did you mean `{name}`?")))]
    UnknownContract {
        /// What was asked for.
        contract: String,
        /// The most alike of the services that there are.
        closest: Option<String>,
    },
    /// An option has a value that it may not have.
    #[error("{file}: option {option} of {element}: {field} is {found}; allowed is {allowed}")]
    InvalidOption {
        /// The file that the option stands in.
        file: String,
        /// `(weft.options.v1.service)` or `(weft.options.v1.method)`.
        option: &'static str,
        /// `service a.b.C` or `method a.b.C/D`.
        element: String,
        /// The field of the option: `breaker.window`.
        field: &'static str,
        /// The value that stands there.
        found: String,
        /// The values that could.
        allowed: &'static str,
    },
    /// Two protobuf services of one service ask for different breakers.
    #[error(
        "the services {first} and {second} are implemented by the same service, which has one breaker, but their \
         `breaker` options differ; write the same in both, or write it in one only"
    )]
    BreakerConflict {
        /// `a.b.C (a.proto)`
        first: String,
        /// `d.e.F (d.proto)`
        second: String,
    },
}
