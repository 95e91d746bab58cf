//! Where calls can go, as far as it is known.

pub(crate) mod balance;
pub(crate) mod catalog;
pub(crate) mod outside;
