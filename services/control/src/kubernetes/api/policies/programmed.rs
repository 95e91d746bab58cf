//! On how many sidecars policies hold, in their statuses.
//!
//! The numbers have a manager of their own, so that they and the condition `Accepted` are written apart.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{COUNT_PAUSE, Done, Keeper, TOLD_BYTES, began, write};
use crate::{
    kubernetes::{
        policies::{Kind, Programmed, Said, Subject},
        workloads::Key,
    },
    rules::{Reach, Rules},
};

/// Our name for the API server's record of who wrote which field.
const MANAGER: &str = "weft-control-sidecars";
const CONDITION: &str = "Programmed";

impl Keeper {
    /// Counts the sidecars on which each policy holds.
    pub(super) fn count(&mut self, rules: &Rules) {
        let now = Instant::now();
        self.count_at = now + COUNT_PAUSE;
        let of_access = rules.reach_of_access();
        let reach = |subject: &Subject| match subject {
            Subject::Everybody => Some(of_access.everybody()),
            Subject::Namespace(namespace) => Some(of_access.namespace(namespace)),
            Subject::Service(service) => Some(of_access.service(service)),
            Subject::Callers(methods) => rules.reach_of_methods(methods),
        };
        for (kind, key, programmed) in self.policies.count(reach, now) {
            self.counts.set(kind, key, programmed);
        }
    }

    /// Starts to write numbers, as many as may be written at once.
    pub(super) fn write_counts(&mut self, now: Instant) {
        while let Some((kind, key, programmed)) = self.counts.next(now) {
            let since = self.policies.programmed_since(kind, &key);
            let client = self.client.clone();
            self.running.push(Box::pin(async move {
                let since = began(since, programmed.is_true());
                let said = Said { programmed, since };
                let written = write(&client, MANAGER, kind, &key, status_of(&said)).await;
                Done::Counted(kind, key, written.map(|()| said))
            }));
        }
    }

    /// Numbers were written, or could not be.
    pub(super) fn counted(&mut self, kind: Kind, key: &Key, said: Result<Said, String>) {
        self.counts.done(kind, key);
        match &said {
            Ok(_) => self.are_counts_failing = false,
            // Once for each trouble.
            Err(error) => {
                if !std::mem::replace(&mut self.are_counts_failing, true) {
                    tracing::warn!(
                        error,
                        "the status of a policy can't say on how many sidecars it holds; it is tried again: `weft install \
                         --crds` has definitions that allow it"
                    );
                }
            }
        }
        self.policies.counted(kind, key, said.ok(), Instant::now());
    }
}

fn status_of(Said { programmed, since }: &Said) -> Value {
    let mut status = json!({"conditions": [{
        "type": CONDITION,
        "status": status_word(programmed),
        "reason": programmed.reason(),
        "message": programmed.message(),
        "observedGeneration": programmed.generation,
        "lastTransitionTime": since,
    }]});
    if let Some(Reach { told, of }) = programmed.reach {
        status["sidecars"] = json!({"told": told, "of": of});
    }
    status
}

fn status_word(programmed: &Programmed) -> &'static str {
    if programmed.is_true() { "True" } else { "False" }
}

/// What a status says. `None` if it is not as the control plane writes it.
pub(super) fn said(status: &Value) -> Option<Said> {
    let condition = status["conditions"].as_array()?.iter().find(|condition| condition["type"] == CONDITION)?;
    let number = |name: &str| usize::try_from(status["sidecars"][name].as_u64()?).ok();
    let reach = match status.get("sidecars") {
        Some(_) => Some(Reach { told: number("told")?, of: number("of")? }),
        None => None,
    };
    let programmed = Programmed { generation: condition["observedGeneration"].as_i64()?, reach };
    let is_ours = condition["status"] == status_word(&programmed)
        && condition["reason"] == programmed.reason()
        && condition["message"] == programmed.message();
    let since = condition["lastTransitionTime"].as_str().filter(|text| text.len() <= TOLD_BYTES)?;
    is_ours.then(|| Said { programmed, since: since.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        for reach in [None, Some((0, 0)), Some((0, 3)), Some((3, 3))] {
            let reach = reach.map(|(told, of)| Reach { told, of });
            let written = Said { programmed: Programmed { generation: 7, reach }, since: "then".into() };
            let mut status = status_of(&written);
            assert_eq!(said(&status), Some(written));
            status["conditions"][0]["message"] = "something else".into();
            assert_eq!(said(&status), None);
        }
        assert_eq!(said(&json!({})), None);
        assert_eq!(said(&json!({"sidecars": {"told": -1, "of": 3}, "conditions": [{"type": CONDITION}]})), None);
    }
}
