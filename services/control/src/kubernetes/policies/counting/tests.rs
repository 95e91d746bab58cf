//! Whose numbers are written, and when.

use serde_json::{Value, json};

use super::*;
use crate::kubernetes::policies::{Object, Settled, programmed::PAUSE};

fn object(generation: i64, spec: Value) -> Object {
    Object { uid: "uid".into(), created: 1, generation, spec, told: None, said: None }
}

fn key() -> Key {
    ("shop".to_owned(), "orders".to_owned())
}

fn allow(names: &[&str]) -> Value {
    json!({"service": "orders", "allow": names})
}

/// Sets an AccessPolicy, and decides whether it holds.
fn set(policies: &mut Policies, generation: i64, spec: Value) -> Settled {
    policies.set(Kind::AccessPolicy, key(), object(generation, spec));
    policies.settle(|_| true)
}

/// What is to be written if so many sidecars were told.
fn count(policies: &mut Policies, told: usize, of: usize) -> Option<(i64, &'static str, String)> {
    let mut changed = policies.count(|_| Some(Reach { told, of }), Instant::now());
    assert!(changed.len() <= 1);
    let (kind, key, programmed) = changed.pop()?;
    let said = Said { programmed: programmed.clone(), since: "then".into() };
    policies.counted(kind, &key, Some(said), Instant::now());
    Some((programmed.generation, programmed.reason(), programmed.message()))
}

#[tokio::test(start_paused = true)]
async fn numbers_are_written_when_they_change_and_not_too_often() {
    let mut policies = Policies::default();
    set(&mut policies, 1, allow(&["web"]));
    let told = |number: usize| format!("{number} of 3 connected sidecars that have to obey it have been told");
    assert_eq!(count(&mut policies, 1, 3), Some((1, "Pending", told(1))));
    assert_eq!(count(&mut policies, 3, 3), None, "it was written just now");
    tokio::time::advance(PAUSE).await;
    assert_eq!(count(&mut policies, 3, 3), Some((1, "Programmed", told(3))));
    tokio::time::advance(PAUSE).await;
    assert_eq!(count(&mut policies, 3, 3), None, "it says so already");
    assert_eq!(policies.programmed_since(Kind::AccessPolicy, &key()), Some((true, "then".into())));
    assert_eq!(count(&mut policies, 0, 0).unwrap().1, "NoSidecars");
    tokio::time::advance(PAUSE).await;
    // It could not be written.
    assert_eq!(policies.count(|_| Some(Reach { told: 1, of: 1 }), Instant::now()).len(), 1);
    policies.counted(Kind::AccessPolicy, &key(), None, Instant::now());
    tokio::time::advance(PAUSE).await;
    assert_eq!(count(&mut policies, 1, 1), None);
    tokio::time::advance(AGAIN).await;
    assert!(count(&mut policies, 1, 1).is_some());
    // Nothing is known of it.
    tokio::time::advance(PAUSE).await;
    assert!(policies.count(|_| None, Instant::now()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_accepted_holds_on_no_sidecar() {
    let mut policies = Policies::default();
    set(&mut policies, 1, allow(&["unauthenticated"]));
    assert_eq!(count(&mut policies, 1, 1), None, "the condition Accepted says all");
    set(&mut policies, 2, allow(&["web"]));
    assert_eq!(count(&mut policies, 1, 1).unwrap().0, 2);
    let said = policies.known(Kind::AccessPolicy, &key()).unwrap().counted.said.clone();
    let wrong = Object { said, ..object(3, allow(&["unauthenticated"])) };
    policies.set(Kind::AccessPolicy, key(), wrong);
    tokio::time::advance(PAUSE).await;
    assert_eq!(count(&mut policies, 1, 1), None, "it is not decided yet");
    policies.settle(|_| true);
    assert_eq!(count(&mut policies, 1, 1), Some((3, "NotAccepted", "it is not accepted".into())));
    tokio::time::advance(PAUSE).await;
    assert_eq!(count(&mut policies, 1, 1), None);
}

/// Our own writes come back with the watch. If they counted as changes, each would lead to the next.
#[tokio::test(start_paused = true)]
async fn a_status_that_comes_back_changes_nothing() {
    let mut policies = Policies::default();
    set(&mut policies, 1, allow(&["web"]));
    let programmed = Programmed { generation: 1, reach: Some(Reach { told: 2, of: 2 }) };
    let said = Some(Said { programmed, since: "then".into() });
    policies.set(Kind::AccessPolicy, key(), Object { said, ..object(1, allow(&["web"])) });
    assert!(policies.changed.is_empty());
    assert_eq!(count(&mut policies, 2, 2), None, "its status says so");
    assert!(count(&mut policies, 2, 3).is_some());
}

#[tokio::test(start_paused = true)]
async fn each_kind_counts_those_who_have_to_obey_it() {
    let mut policies = Policies::default();
    let named = |name: &str| ("shop".to_owned(), name.to_owned());
    policies.set(Kind::AccessPolicy, named("of-service"), object(1, allow(&["web"])));
    policies.set(Kind::AccessPolicy, named("of-namespace"), object(1, json!({"default": "deny"})));
    policies.set(Kind::MethodPolicy, named("methods"), object(1, json!({"service": "users", "timeout": "5s"})));
    let defaults = object(1, json!({"access": {"default": "deny"}}));
    policies.set(Kind::MeshDefaults, (String::new(), DEFAULTS.to_owned()), defaults);
    policies.settle(|_| true);
    let of = |subject: &Subject| match subject {
        Subject::Service(service) if service.to_string() == "orders.shop" => 1,
        Subject::Namespace(namespace) if namespace == "shop" => 2,
        Subject::Callers(methods) if methods.service.to_string() == "users.shop" => 3,
        Subject::Everybody => 4,
        other => panic!("{other:?}"),
    };
    let counted = policies.count(|subject| Some(Reach { told: 0, of: of(subject) }), Instant::now());
    let mut counted: Vec<_> =
        counted.iter().map(|(_, key, programmed)| (key.1.as_str(), programmed.reach.unwrap().of)).collect();
    counted.sort_unstable();
    assert_eq!(counted, [("default", 4), ("methods", 3), ("of-namespace", 2), ("of-service", 1)]);
}
