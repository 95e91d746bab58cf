//! Who may speak to whom, seen from outside.
