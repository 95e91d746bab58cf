//! Policies of small `.proto` sources, for tests.

use super::{PolicyError, ServicePolicy};
use crate::schema::testing::compile;

/// The policy that a source compiles to.
pub(super) fn policy(source: &str) -> Result<ServicePolicy, PolicyError> {
    ServicePolicy::from_descriptors(&compile(&[("t.proto", source)]), None)
}

/// The error of a source whose service `t.S` has this body.
pub(super) fn refusal(service_body: &str) -> String {
    policy(&service(service_body)).unwrap_err().to_string()
}

/// A source with a message `t.M` and a service `t.S` of this body.
pub(super) fn service(body: &str) -> String {
    format!(
        r#"syntax = "proto3"; package t; import "weft/options/v1/options.proto";
           message M {{}}
           service S {{ {body} }}"#
    )
}
