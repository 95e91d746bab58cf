//! Why a try of a call failed, and how the call goes on.

use std::{fmt, sync::Arc, time::Duration};

use weft_wire::{CannotOpen, Cause, Code};

use crate::message::{failure::Failure, fixed::WholeAnswer};

/// Why a try failed.
pub(crate) enum Miss {
    /// There was no connection, or none with room. Nothing was sent.
    NotSent(ConnectError),
    /// The call was sent, but the endpoint has provably not processed it.
    Unseen(&'static str),
    /// The endpoint takes no more calls at present. It has not processed this one.
    Full(&'static str),
    /// The call was sent, and it is unknown whether the endpoint has processed it.
    Broke(String),
    /// The service reset the call instead of answering it.
    Reset(Code),
    /// The header list of the answer was over the limit.
    TooLarge,
    /// The call can't be expressed in the protocol that the service speaks.
    Malformed(String),
}

impl Miss {
    /// The stream was reset before the head of an answer.
    pub(crate) fn of_reset(code: Code, cause: Cause) -> Self {
        match (cause, code) {
            (Cause::Peer, Code::REFUSED_STREAM) => Self::Unseen("it refused the stream"),
            (Cause::Peer, code) => Self::Reset(code),
            (Cause::Rule, code) => Self::Broke(format!("it broke HTTP/2's rules ({code})")),
            (Cause::TooLarge, _) => Self::TooLarge,
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(crate) enum ConnectError {
    /// It could not be made.
    Failed(Arc<str>),
    /// There are as many connections as allowed, and all are full.
    Full,
}

impl From<CannotOpen> for ConnectError {
    fn from(why: CannotOpen) -> Self {
        match why {
            CannotOpen::Full | CannotOpen::Congested => Self::Full,
            CannotOpen::Going => Self::Failed("its connection is going away".into()),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) => f.write_str(why),
            Self::Full => f.write_str("every connection is at the peer's stream limit"),
        }
    }
}

/// How a call goes on after a failed try.
pub(crate) enum Next {
    /// It is tried again, after this time.
    Again { after: Duration },
    /// It gets this answer, which its contract gives in place of a failure.
    Answer(Box<WholeAnswer>),
    /// Its other try goes on in this one's place.
    Rival,
    /// It is answered with this failure.
    Fail(Failure),
    /// It is reset with this code instead of answered.
    Reset(Code),
}

impl Next {
    /// It is tried again at once.
    pub(crate) const AGAIN: Self = Self::Again { after: Duration::ZERO };
}
