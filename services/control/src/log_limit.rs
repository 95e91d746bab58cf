//! Log lines that peers can cause at will, and how many of them were left out.

use weft_mesh::{
    names::ServiceName,
    telemetry::{LeftOut, LogLimit, SharedLogLimit},
};

/// Lines about those who have shown no SVID.
pub(crate) struct Strangers(LogLimit);

/// Lines about members, by their identity.
#[derive(Debug, Default)]
pub(crate) struct Members(SharedLogLimit<ServiceName>);

pub(crate) static STRANGERS: Strangers = Strangers(LogLimit::new());
/// About members' connections and calls. What they announce has limits of its own, in the directory.
pub(crate) static MEMBERS: Members = Members(SharedLogLimit::new());

impl Strangers {
    /// Whether one may be written now.
    pub(crate) fn allows(&self) -> bool {
        let allowed = self.0.take();
        if let Some(lines @ 1..) = allowed {
            tracing::warn!(lines, of = "strangers", "lines were left out, as there were too many");
        }
        allowed.is_some()
    }
}

impl Members {
    /// Whether one that an identity has caused may be written now.
    pub(crate) fn allows(&self, who: &ServiceName) -> bool {
        let allowed = self.0.take(who);
        if let Some(Some(LeftOut { lines, last })) = &allowed {
            tracing::warn!(lines, of = "members", %last, "lines were left out, as there were too many");
        }
        allowed.is_some()
    }
}
