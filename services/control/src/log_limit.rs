//! Limits for log lines that peers can cause as often as they like. Left out lines are counted, and the count is
//! logged.

use weft_mesh::{
    names::ServiceName,
    telemetry::{LeftOut, LogLimit, SharedLogLimit},
};

/// Lines about peers without an SVID.
pub(crate) struct Strangers(LogLimit);

/// Lines about members, limited by identity.
#[derive(Debug, Default)]
pub(crate) struct Members(SharedLogLimit<ServiceName>);

pub(crate) static STRANGERS: Strangers = Strangers(LogLimit::new());
/// For members' connections and calls. Lines about their announcements have limits of their own, in the directory.
pub(crate) static MEMBERS: Members = Members(SharedLogLimit::new());

impl Strangers {
    /// Whether a line may be written now.
    pub(crate) fn allows(&self) -> bool {
        let allowed = self.0.take();
        if let Some(lines @ 1..) = allowed {
            tracing::warn!(lines, of = "strangers", "lines were left out, as there were too many");
        }
        allowed.is_some()
    }
}

impl Members {
    /// Whether a line that an identity caused may be written now.
    pub(crate) fn allows(&self, who: &ServiceName) -> bool {
        let allowed = self.0.take(who);
        if let Some(Some(LeftOut { lines, last })) = &allowed {
            tracing::warn!(lines, of = "members", %last, "lines were left out, as there were too many");
        }
        allowed.is_some()
    }
}
