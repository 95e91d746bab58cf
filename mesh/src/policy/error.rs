//! What can be wrong with a policy: with the options that it is compiled from, or with the message that carries it.

use crate::schema::SchemaError;

/// Why descriptors give no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The descriptors themselves cannot be used.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The service is said to implement a protobuf service that the descriptors do not define.
    #[error("the descriptors define no service `{contract}`{}", closest.as_ref().map_or(String::new(), |name| format!("; did you mean `{name}`?")))]
    UnknownContract {
        /// The name that was asked for.
        contract: String,
        /// The most similar name among the services that are defined.
        closest: Option<String>,
    },
    /// An option has a value that is not allowed.
    #[error("{file}: option {option} of {element}: {field} is {found}; allowed is {allowed}")]
    InvalidOption {
        /// The file that contains the option.
        file: String,
        /// `(weft.options.v1.service)` or `(weft.options.v1.method)`.
        option: &'static str,
        /// `service a.b.C` or `method a.b.C/D`.
        element: String,
        /// The field of the option: `breaker.window`.
        field: &'static str,
        /// The value that was found.
        found: String,
        /// The values that are allowed.
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

/// A `weft.policy.v1` message has a field with a value that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("weft.policy.v1: {field} is {found}; allowed is {allowed}")]
pub struct MalformedPolicy {
    /// The field, with its message: `Breaker.window`.
    pub field: &'static str,
    /// The value that was found.
    pub found: String,
    /// The values that are allowed.
    pub allowed: &'static str,
}
