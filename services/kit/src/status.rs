//! Errors with details that a program can read, by Google's [error model](https://google.aip.dev/193).
//!
//! ```
//! use weft_kit::status::{self, Violations};
//!
//! # fn check(name: &str, email: &str) -> Result<(), tonic::Status> {
//! let mut violations = Violations::new();
//! violations.check((1..=100).contains(&name.chars().count()), "name", "must have 1 to 100 characters");
//! violations.check(email.contains('@'), "email", "must have an @");
//! violations.finish()
//! # }
//! let refused = check("", "ada").unwrap_err();
//! assert_eq!(refused.code(), tonic::Code::InvalidArgument);
//! assert_eq!(status::violations(&refused)[1].field, "email");
//! ```

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
pub use tonic_types::{ErrorInfo, FieldViolation, PreconditionViolation, ResourceInfo};

/// What is wrong with a request, field by field.
#[derive(Debug, Default)]
pub struct Violations {
    found: Vec<FieldViolation>,
}

impl Violations {
    /// Nothing is wrong yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a violation: the value of a field is not accepted.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.found.push(FieldViolation {
            field: field.into(),
            description: description.into(),
            ..FieldViolation::default()
        });
    }

    /// Adds the violation unless the rule holds.
    pub fn check(&mut self, holds: bool, field: impl Into<String>, description: impl Into<String>) {
        if !holds {
            self.add(field, description);
        }
    }

    /// An error with everything that was found, if there is anything.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with `google.rpc.BadRequest` when something was found.
    pub fn finish(self) -> Result<(), Status> {
        if self.found.is_empty() {
            return Ok(());
        }
        let message =
            self.found.iter().map(|v| format!("{}: {}", v.field, v.description)).collect::<Vec<_>>().join("; ");
        let mut details = ErrorDetails::new();
        details.set_bad_request(self.found);
        Err(Status::with_error_details(Code::InvalidArgument, message, details))
    }
}

impl From<Vec<FieldViolation>> for Violations {
    fn from(found: Vec<FieldViolation>) -> Self {
        Self { found }
    }
}

/// `INVALID_ARGUMENT` for one field.
pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Status {
    let (field, description) = (field.into(), description.into());
    let details = ErrorDetails::with_bad_request_violation(field.clone(), description.clone());
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {description}"), details)
}

/// `NOT_FOUND` with the `google.rpc.ResourceInfo` of what was asked for: its type (`user`) and its name or id.
pub fn not_found(resource_type: &str, name: &str) -> Status {
    let details = ErrorDetails::with_resource_info(resource_type, name, "", "does not exist");
    Status::with_error_details(Code::NotFound, format!("there is no {resource_type} `{name}`"), details)
}

/// `ALREADY_EXISTS` with the `google.rpc.ResourceInfo` of what is there.
pub fn already_exists(resource_type: &str, name: &str, description: &str) -> Status {
    let details = ErrorDetails::with_resource_info(resource_type, name, "", description);
    Status::with_error_details(Code::AlreadyExists, description, details)
}

/// `FAILED_PRECONDITION` with `google.rpc.PreconditionFailure`: the kind of condition (`STOCK`), its subject, and what
/// the caller can do.
pub fn failed_precondition(kind: &str, subject: &str, description: &str) -> Status {
    let details = ErrorDetails::with_precondition_failure_violation(kind, subject, description);
    Status::with_error_details(Code::FailedPrecondition, description, details)
}

/// Any code with `google.rpc.ErrorInfo`: a reason in UPPER_SNAKE_CASE, within the domain that defines it.
pub fn with_reason(code: Code, message: &str, reason: &str, domain: &str, metadata: HashMap<String, String>) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, domain, metadata))
}

/// The field violations of a status, if it has any.
pub fn violations(status: &Status) -> Vec<FieldViolation> {
    status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default()
}

/// The resource that a status is about.
pub fn resource(status: &Status) -> Option<ResourceInfo> {
    status.get_details_resource_info()
}

/// The conditions that did not hold.
pub fn preconditions(status: &Status) -> Vec<PreconditionViolation> {
    status.get_details_precondition_failure().map(|details| details.violations).unwrap_or_default()
}

/// The reason, in a form that a program can compare.
pub fn reason(status: &Status) -> Option<ErrorInfo> {
    status.get_details_error_info()
}

/// What a service answers when a call that it needed has failed.
///
/// A failure that may pass with time (`UNAVAILABLE`, `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`, `CANCELLED`, `ABORTED`)
/// keeps its code and details. Any other becomes this service's own failure, `INTERNAL`, and its text goes to the log.
/// Metadata is never passed on: `x-weft-error` in it says that *that* answer was made by the mesh, which is not true of
/// this one.
pub fn relay(service: &str, status: &Status) -> Status {
    match status.code() {
        code @ (Code::Unavailable
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Cancelled
        | Code::Aborted) => Status::with_details(
            code,
            format!("{service}: {}", status.message()),
            bytes::Bytes::copy_from_slice(status.details()),
        ),
        code => {
            tracing::error!(service, ?code, message = status.message(), "a call that this one needs was refused");
            Status::internal(format!("{service} refused a call that this one needs"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_read_back_as_they_were_written() {
        assert_eq!(violations(&invalid("email", "no @"))[0].field, "email");
        assert_eq!(resource(&not_found("user", "7")).unwrap().resource_name, "7");
        assert_eq!(resource(&already_exists("user", "7", "taken")).unwrap().description, "taken");
        assert_eq!(preconditions(&failed_precondition("STOCK", "tea", "sold out"))[0].subject, "tea");
        let why = with_reason(Code::Aborted, "no", "NOT_NOW", "shop", HashMap::from([("k".into(), "v".into())]));
        assert_eq!(reason(&why).unwrap().metadata["k"], "v");
        assert!(Violations::new().finish().is_ok());
        assert!(violations(&Status::internal("plain")).is_empty());
    }

    #[test]
    fn a_failed_dependency_keeps_what_a_caller_can_use_and_hides_the_rest() {
        let mut down = with_reason(Code::Unavailable, "no endpoint", "no-endpoint", "weft", HashMap::new());
        down.metadata_mut().insert("x-weft-error", "no-endpoint".parse().unwrap());
        let relayed = relay("auth", &down);
        assert_eq!((relayed.code(), relayed.message()), (Code::Unavailable, "auth: no endpoint"));
        assert_eq!(reason(&relayed).unwrap().reason, "no-endpoint");
        assert!(relayed.metadata().get("x-weft-error").is_none());

        let hidden = relay("auth", &Status::permission_denied("secret"));
        assert_eq!(hidden.code(), Code::Internal);
        assert!(!hidden.message().contains("secret"));
    }
}
