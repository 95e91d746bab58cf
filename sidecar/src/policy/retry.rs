//! Why a try comes to nothing, and how a call goes on then.

use std::{fmt, sync::Arc};

use weft_wire::Code;

use crate::message::failure::Failure;

/// Why a try came to nothing.
pub(crate) enum Miss {
    /// No connection, or none with room: nothing was sent.
    NotSent(ConnectError),
    /// It was sent, but provably not looked at.
    Unseen(&'static str),
    /// The endpoint takes no more calls at present: it was not looked at.
    Full(&'static str),
    /// It was sent, and nobody knows whether it was looked at.
    Broke(String),
    /// The service ended the call with a code instead of an answer.
    Reset(Code),
    /// The header list of its answer was over the limit.
    TooLarge,
    /// It can't be sent in the form that the service speaks.
    Malformed(String),
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(crate) enum ConnectError {
    /// It could not be made.
    Failed(Arc<str>),
    /// There are as many as may be, and all are full.
    Full,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) => f.write_str(why),
            Self::Full => f.write_str("every connection is at the peer's stream limit"),
        }
    }
}

/// What becomes of a call after a try.
pub(crate) enum Next {
    /// It is tried again.
    Again,
    /// It is answered in the service's stead.
    Fail(Failure),
    /// It ends with this code instead of an answer.
    Reset(Code),
}
