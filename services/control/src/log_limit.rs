//! Warnings that peers can cause at will, and how many of them were left out.

use weft_mesh::telemetry::LogLimit;

/// Warnings of one kind.
pub(crate) struct Warnings {
    of: &'static str,
    limit: LogLimit,
}

/// About those who have shown no SVID.
pub(crate) static STRANGERS: Warnings = Warnings { of: "strangers", limit: LogLimit::new() };
/// About those who have.
pub(crate) static MEMBERS: Warnings = Warnings { of: "members", limit: LogLimit::new() };

impl Warnings {
    /// Whether one may be written now.
    pub(crate) fn allows(&self) -> bool {
        let allowed = self.limit.take();
        if let Some(lines @ 1..) = allowed {
            tracing::warn!(lines, of = self.of, "warnings were left out, as there were too many");
        }
        allowed.is_some()
    }
}
