//! Where calls can go: known services, their endpoints, and addresses outside the mesh.

pub(crate) mod balance;
pub(crate) mod catalog;
pub(crate) mod outside;
