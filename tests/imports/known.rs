//! The cycles that are there today. The list may only get shorter.

/// Files and folders of one level that need each other.
pub(crate) struct Known {
    /// The file that a crate begins with.
    pub(crate) root: &'static str,
    /// The module whose parts they are; empty for the crate itself.
    pub(crate) within: &'static str,
    pub(crate) members: &'static [&'static str],
}

impl Known {
    pub(crate) fn has_any(&self, members: &[String]) -> bool {
        members.iter().any(|member| self.members.contains(&member.as_str()))
    }
}

pub(crate) const CYCLES: &[Known] = &[];
