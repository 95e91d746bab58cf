//! On how many sidecars an accepted object holds, as its status says it, and when that is written again.

use std::sync::Arc;

use tokio::time::{Duration, Instant};
use weft_mesh::names::ServiceName;

use crate::rules::{OfService, Reach};

/// How long until the numbers of one object are written again, however often they change.
pub(super) const PAUSE: Duration = Duration::from_secs(10);
/// How long until it is tried again if they could not be written.
pub(super) const AGAIN: Duration = Duration::from_secs(60);

/// What the condition `Programmed` of an object says, with the numbers beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Programmed {
    /// Of which generation.
    pub(crate) generation: i64,
    /// `None` if the object is not accepted.
    pub(crate) reach: Option<Reach>,
}

impl Programmed {
    /// Whether all that it concerns have been told, and there are some.
    pub(crate) fn is_true(&self) -> bool {
        self.reach.is_some_and(|Reach { told, of }| told == of && of > 0)
    }

    pub(crate) fn reason(&self) -> &'static str {
        match self.reach {
            None => "NotAccepted",
            Some(Reach { of: 0, .. }) => "NoSidecars",
            Some(Reach { told, of }) if told < of => "Pending",
            Some(_) => "Programmed",
        }
    }

    pub(crate) fn message(&self) -> String {
        match self.reach {
            None => "it is not accepted".to_owned(),
            Some(Reach { of: 0, .. }) => "no sidecar that is connected has to obey it".to_owned(),
            Some(Reach { told, of }) => {
                format!("{told} of {of} connected sidecars that have to obey it have been told")
            }
        }
    }
}

/// What a status says of it, since when its condition has been true or not, as that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) programmed: Programmed,
    pub(crate) since: String,
}

/// Which sidecars have to obey an object.
#[derive(Debug, Clone)]
pub(crate) enum Subject {
    /// Those of the pods that back a Service.
    Service(ServiceName),
    Namespace(String),
    Everybody,
    /// Those that call the Service of a MethodPolicy.
    Callers(Arc<OfService>),
}

/// Whether an object is accepted, since the policies were settled last.
#[derive(Debug, Default)]
pub(super) enum Standing {
    /// It is newer than that.
    #[default]
    Undecided,
    Refused,
    Accepted(Subject),
}

/// What is kept of an object for this.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(super) standing: Standing,
    pub(super) said: Option<Said>,
    /// Until then nothing is written.
    pub(super) rests_until: Option<Instant>,
}

impl Counted {
    /// An object of which the status says this.
    pub(super) fn new(said: Option<Said>) -> Self {
        Self { said, ..Self::default() }
    }

    /// What to write now, if that is something else.
    pub(super) fn look(
        &mut self,
        generation: i64,
        reach: impl Fn(&Subject) -> Option<Reach>,
        now: Instant,
    ) -> Option<Programmed> {
        if self.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        let reach = match &self.standing {
            Standing::Undecided => return None,
            Standing::Refused => None,
            Standing::Accepted(subject) => Some(reach(subject)?),
        };
        let programmed = Programmed { generation, reach };
        match &self.said {
            Some(said) if said.programmed == programmed => return None,
            // Whether it is accepted is in a condition of its own.
            None if programmed.reach.is_none() => return None,
            _ => {}
        }
        self.rests_until = Some(now + PAUSE);
        Some(programmed)
    }
}
