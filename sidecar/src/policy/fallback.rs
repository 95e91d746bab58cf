//! What answers a call that its service cannot take, prepared once for all calls of a method.

use std::sync::atomic::{AtomicBool, AtomicU64};

use weft_mesh::{errors::Reason, names::ServiceName, policy::Fallback as Policy};

use crate::message::fixed::FixedAnswer;

/// See the module.
#[derive(Debug)]
pub(crate) struct Fallback {
    pub(crate) to: To,
    /// Where the answer comes from, for callers and traces: `answer`, `prices.shop`, `a.b.C/D` or `prices.shop/a.b.C/D`.
    pub(crate) name: Box<str>,
    /// The service that it leads to is being looked for.
    pub(crate) is_sought: AtomicBool,
    /// It was looked for in vain before any call needed it. Until then (milliseconds since the sidecar's start) it is not
    /// looked for again.
    pub(crate) not_sought_until_ms: AtomicU64,
    /// A call has looked for it in vain. Until then no other call does.
    pub(crate) missing_until_ms: AtomicU64,
}

/// Where the answer comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum To {
    Elsewhere {
        /// `None`: whichever service implements the method.
        service: Option<ServiceName>,
        /// The path of the other method, `/a.b.C/D`. `None`: that of the call.
        path: Option<Box<str>>,
    },
    Answer(FixedAnswer),
}

impl Fallback {
    /// The fallback of a method of this service.
    pub(crate) fn new(policy: &Policy, of: &ServiceName) -> Self {
        match policy {
            Policy::Answer { message, json } => {
                Self::leading(To::Answer(FixedAnswer::new(message, json)), "answer".to_owned())
            }
            Policy::Elsewhere { service, method } => {
                // It was checked when the policy was read.
                let service = service.as_ref().and_then(|service| ServiceName::parse_in(service, of.namespace()).ok());
                let name = match (&service, method) {
                    (Some(service), Some(method)) => format!("{service}/{method}"),
                    (Some(service), None) => service.to_string(),
                    (None, method) => method.clone().unwrap_or_default(),
                };
                let path = method.as_ref().map(|method| format!("/{method}").into());
                Self::leading(To::Elsewhere { service, path }, name)
            }
        }
    }

    fn leading(to: To, name: String) -> Self {
        Self {
            to,
            name: name.into(),
            is_sought: AtomicBool::new(false),
            not_sought_until_ms: AtomicU64::new(0),
            missing_until_ms: AtomicU64::new(0),
        }
    }

    /// The value of `x-weft-fallback` in an answer.
    pub(crate) fn header(&self, reason: Reason) -> String {
        format!("{}; to={}", reason.as_str(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fallback_says_where_its_answer_comes_from() {
        let of = ServiceName::parse("products.shop").unwrap();
        let header = |policy: Policy| Fallback::new(&policy, &of).header(Reason::BreakerOpen);
        let elsewhere = |service: Option<&str>, method: Option<&str>| {
            header(Policy::Elsewhere { service: service.map(Into::into), method: method.map(Into::into) })
        };
        assert_eq!(elsewhere(Some("prices"), None), "breaker-open; to=prices.shop");
        assert_eq!(elsewhere(Some("prices.other"), None), "breaker-open; to=prices.other");
        assert_eq!(elsewhere(None, Some("a.b.C/D")), "breaker-open; to=a.b.C/D");
        assert_eq!(elsewhere(Some("prices"), Some("a.b.C/D")), "breaker-open; to=prices.shop/a.b.C/D");
        assert_eq!(header(Policy::Answer { message: Vec::new().into(), json: "{}".into() }), "breaker-open; to=answer");
    }
}
