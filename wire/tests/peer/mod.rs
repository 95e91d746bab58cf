//! A random peer: scripts of frames, and the connections that they are played to.
#![allow(dead_code, unreachable_pub, reason = "each test target uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code")]

pub mod blocks;
pub mod by_design;
pub mod chain;
pub mod chaos;
pub mod choices;
pub mod differences;
pub mod frames;
pub mod lists;
pub mod ours;
pub mod relay;
pub mod script;
pub mod seen;
pub mod theirs;
pub mod transfer;
pub mod uploader;
