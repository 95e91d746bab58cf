//! The cycles that exist today. The list may only get shorter.

/// Files and folders of one level that need each other.
pub(crate) struct Known {
    /// The crate's root file.
    pub(crate) root: &'static str,
    /// The module that contains them; empty for the crate itself.
    pub(crate) within: &'static str,
    pub(crate) members: &'static [&'static str],
}

impl Known {
    pub(crate) fn has_any(&self, members: &[String]) -> bool {
        members.iter().any(|member| self.members.contains(&member.as_str()))
    }
}

pub(crate) const CYCLES: &[Known] = &[];
