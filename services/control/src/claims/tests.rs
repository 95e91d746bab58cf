use super::*;

fn name(service: &str) -> ServiceName {
    ServiceName::parse(service).unwrap()
}

fn judge(claims: &mut Claims, service: &str, claim: &str) -> Denied {
    claims.judge(&name(service), [(claim, Kind::Pinned)].into_iter(), |_| true)
}

#[test]
fn the_file_wins_over_the_first_claimant() {
    let listed = BTreeMap::from([("shop.Users".to_owned(), name("users.shop"))]);
    let pinned = BTreeMap::from([("shop.Users".to_owned(), name("impostor.shop"))]);
    let mut claims = Claims::new(listed, Unlisted::Pin, pinned);
    let contested = [("shop.Users".to_owned(), name("users.shop"))];
    assert_eq!(judge(&mut claims, "impostor.shop", "shop.Users").contested, contested);
    assert_eq!(judge(&mut claims, "users.shop", "shop.Users"), Denied::default());
    let claim = (Arc::from("shop.Users"), Kind::Pinned);
    assert!(claims.gain(&name("impostor.shop"), [claim.clone()].iter(), |_| true).is_empty());
    assert_eq!(claims.gain(&name("users.shop"), [claim].iter(), |_| true), ["shop.Users"]);
    assert_eq!(claims.owner("shop.Users"), Some(&name("users.shop")));
}

#[test]
fn unproven_addresses_and_unlisted_contracts_are_not_pinned() {
    let judge_unproven = |claims: &mut Claims, service: &str, claim: &str| {
        claims.judge(&name(service), [(claim, Kind::Unproven)].into_iter(), |_| true)
    };
    let listed = BTreeMap::from([("203.0.113.1:443".to_owned(), name("proxy.shop"))]);
    let mut claims = Claims::new(listed.clone(), Unlisted::Pin, BTreeMap::new());
    // The API of Kubernetes, the metadata of clouds, a name server.
    for address in ["10.96.0.1:443", "169.254.169.254:80", "[fd00:ec2::254]:80", "10.0.0.53:53", "203.0.113.9:443"] {
        assert_eq!(judge_unproven(&mut claims, "greedy.shop", address).unlisted, [address]);
    }
    assert_eq!(judge_unproven(&mut claims, "proxy.shop", "203.0.113.1:443"), Denied::default(), "the file lists it");
    assert_eq!(judge(&mut claims, "users.shop", "10.96.0.1:80"), Denied::default(), "its token allows it");
    assert_eq!((claims.pins(), claims.refused()), (1, 5));
    assert_eq!(
        judge(&mut claims, "greedy.shop", "grpc.health.v1.Health"),
        Denied::default(),
        "allowed, but not pinned"
    );
    assert_eq!(claims.pins(), 1);

    let mut closed = Claims::new(listed, Unlisted::Refuse, BTreeMap::new());
    assert_eq!(judge(&mut closed, "users.shop", "shop.Users").unlisted, ["shop.Users"]);
    let mut closed = closed.with_unlisted_of(BTreeMap::from([(name("asked.shop"), Unlisted::Pin)]));
    assert_eq!(judge(&mut closed, "users.shop", "shop.Users").unlisted, ["shop.Users"], "only that service may");
    assert_eq!(judge(&mut closed, "asked.shop", "shop.Users"), Denied::default());
    assert_eq!(judge(&mut closed, "users.shop", "shop.Users").contested.len(), 1);
    assert_eq!(judge_unproven(&mut closed, "proxy.shop", "203.0.113.1:443"), Denied::default());
    assert_eq!(judge_unproven(&mut closed, "users.shop", "203.0.113.2:443").unlisted, ["203.0.113.2:443"]);
    assert_eq!(judge(&mut closed, "users.shop", "10.96.0.1:80"), Denied::default(), "its token allows it");
    let claim = (Arc::from("shop.Users"), Kind::Pinned);
    assert!(closed.gain(&name("users.shop"), [claim].iter(), |_| true).is_empty());
}

#[test]
fn a_granted_contract_is_the_service_s_alone() {
    let listed = BTreeMap::from([("shop.Users".to_owned(), name("users.shop"))]);
    let mut claims = Claims::new(listed, Unlisted::Refuse, BTreeMap::new());
    for service in ["asked.shop", "impostor.shop"] {
        assert_eq!(judge(&mut claims, service, "shop.Told").unlisted, ["shop.Told"], "before it is granted");
    }
    assert!(claims.grant("shop.Told", &name("asked.shop")));
    assert!(claims.grant("shop.Told", &name("asked.shop")), "once more changes nothing");
    assert!(claims.grant("shop.Users", &name("users.shop")), "it has it anyway");
    assert!(!claims.grant("shop.Told", &name("impostor.shop")) && !claims.grant("shop.Users", &name("asked.shop")));
    assert_eq!(claims.pins(), 1);
    assert_eq!(judge(&mut claims, "asked.shop", "shop.Told"), Denied::default());
    assert_eq!(judge(&mut claims, "asked.shop", "shop.Other").unlisted, ["shop.Other"], "nothing else");
    let contested = [("shop.Told".to_owned(), name("asked.shop"))];
    assert_eq!(judge(&mut claims, "impostor.shop", "shop.Told").contested, contested);
    for number in 1..limits::CLAIMS_PER_IDENTITY {
        assert!(claims.grant(&format!("t.S{number}"), &name("asked.shop")));
    }
    assert!(!claims.grant("t.More", &name("asked.shop")), "a limit holds for what is granted, too");
    assert!(claims.grant("t.S1", &name("asked.shop")));
}

#[test]
fn a_contract_that_waits_for_a_grant_has_no_owner_and_is_no_contest() {
    let waits = BTreeMap::from([(name("asked.shop"), Unlisted::Grant), (name("twin.shop"), Unlisted::Grant)]);
    let claims = Claims::new(BTreeMap::new(), Unlisted::Refuse, BTreeMap::new());
    let mut claims = claims.with_unlisted_of(waits);
    let gain = |claims: &mut Claims, service: &str| {
        claims.gain(&name(service), [(Arc::from("shop.Told"), Kind::Pinned)].iter(), |_| true)
    };
    for service in ["asked.shop", "twin.shop"] {
        assert_eq!(judge(&mut claims, service, "shop.Told"), Denied::default());
        assert!(gain(&mut claims, service).is_empty(), "{service} is not called by it yet");
    }
    assert_eq!(judge(&mut claims, "impostor.shop", "shop.Told").unlisted, ["shop.Told"]);
    let unproven = claims.judge(&name("asked.shop"), [("192.0.2.1:80", Kind::Unproven)].into_iter(), |_| true);
    assert_eq!((unproven.unlisted, claims.pins()), (vec!["192.0.2.1:80".to_owned()], 0), "addresses do not wait");
    assert!(claims.grant("shop.Told", &name("asked.shop")));
    assert_eq!(gain(&mut claims, "asked.shop"), ["shop.Told"]);
    assert_eq!(judge(&mut claims, "twin.shop", "shop.Told").contested, [("shop.Told".into(), name("asked.shop"))]);
}

#[test]
fn the_pins_of_one_identity_are_limited() {
    let mut claims = Claims::default();
    for number in 0..limits::CLAIMS_PER_IDENTITY {
        assert_eq!(judge(&mut claims, "greedy.shop", &format!("t.S{number}")), Denied::default());
    }
    assert_eq!(judge(&mut claims, "greedy.shop", "t.More").without_room, 1);
    assert_eq!(judge(&mut claims, "greedy.shop", "t.S0"), Denied::default(), "it keeps what it has");
    assert_eq!(judge(&mut claims, "users.shop", "t.More"), Denied::default());
    claims.release("t.S0").unwrap();
    assert_eq!(judge(&mut claims, "greedy.shop", "t.Another"), Denied::default());
}

/// Otherwise one identity could fill the ConfigMap in which all claims are kept on Kubernetes.
#[test]
fn long_names_count_as_several() {
    let mut claims = Claims::default();
    let long = |number: usize| format!("t.{number:0510}");
    let most = limits::CLAIMS_PER_IDENTITY / 9;
    for number in 0..most {
        assert_eq!(judge(&mut claims, "greedy.shop", &long(number)), Denied::default());
    }
    assert_eq!(judge(&mut claims, "greedy.shop", &long(most)).without_room, 1);
    claims.release(&long(0)).unwrap();
    assert_eq!(judge(&mut claims, "greedy.shop", &long(most)), Denied::default());
}

#[test]
fn listed_contests_are_limited_and_all_are_counted() {
    let mut claims = Claims::default();
    for number in 0..2 * limits::CONTESTS_PER_IDENTITY {
        judge(&mut claims, "users.shop", &format!("t.S{number}"));
        judge(&mut claims, "greedy.shop", &format!("t.S{number}"));
    }
    judge(&mut claims, "other.shop", "t.S0");
    let of = |claims: &Claims, claimant: &str| claims.contests().filter(|c| c.claimant == name(claimant)).count();
    assert_eq!((of(&claims, "greedy.shop"), of(&claims, "other.shop")), (limits::CONTESTS_PER_IDENTITY, 1));
    assert_eq!(claims.refused(), 2 * limits::CONTESTS_PER_IDENTITY as u64 + 1);
    claims.release("t.S0").unwrap();
    assert_eq!(of(&claims, "other.shop"), 0);
    assert!(judge(&mut claims, "greedy.shop", "t.S1").listed.is_empty());
    assert_eq!(judge(&mut claims, "greedy.shop", "t.S39").listed.len(), 1, "there is room again");
}

mod kept {
    use std::fs;

    use super::*;
    use crate::claims::{
        hosts::Hosts,
        store::{ClaimsError, Store},
    };

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &"weft.test".parse().unwrap()).unwrap();
        (dir, store)
    }

    #[test]
    fn pins_survive_a_restart() {
        let (_dir, store) = store();
        assert_eq!(store.load().unwrap(), (Saved::default(), Hosts::default()));
        let mut claims = Claims::default();
        judge(&mut claims, "users.shop", "shop.Users");
        judge(&mut claims, "impostor.shop", "shop.Users");
        let mut hosts = Hosts::default();
        hosts.allow(&name("users.shop"), vec!["10.1.0.0/16".parse().unwrap()]);
        let saved = claims.take_changes().unwrap();
        assert!(claims.take_changes().is_none());
        store.save(&saved, &hosts).unwrap();
        assert_eq!(store.load().unwrap(), (saved.clone(), hosts));
        assert_eq!(saved.contests.len(), 1);
        let mut restarted = Claims::new(BTreeMap::new(), Unlisted::Pin, store.load().unwrap().0.pinned);
        assert_eq!(judge(&mut restarted, "impostor.shop", "shop.Users").contested.len(), 1);
        assert_eq!(judge(&mut restarted, "users.shop", "shop.Users"), Denied::default());
    }

    #[test]
    fn a_release_is_returned_until_it_is_handled() {
        let (_dir, store) = store();
        assert!(matches!(store.release("shop.Users"), Err(ClaimsError::NotPinned(_))));
        assert!(matches!(store.release("no claim"), Err(ClaimsError::NoClaim(_))));
        let mut claims = Claims::default();
        judge(&mut claims, "users.shop", "shop.Users");
        judge(&mut claims, "users.shop", "10.96.0.1:80");
        store.save(&claims.take_changes().unwrap(), &Hosts::default()).unwrap();
        assert!(store.to_release().unwrap().is_empty());
        assert_eq!(store.release("shop.Users").unwrap().to_string(), "spiffe://weft.test/ns/shop/sa/users");
        assert_eq!(store.to_release().unwrap(), ["shop.Users"]);
        // Another release arrives while the first is being handled.
        store.release("10.96.0.1:80").unwrap();
        assert_eq!(store.to_release().unwrap(), ["shop.Users"], "the first is not handled yet");
        store.released().unwrap();
        assert_eq!(store.to_release().unwrap(), ["10.96.0.1:80"]);
        store.released().unwrap();
        assert!(store.to_release().unwrap().is_empty());
    }

    #[test]
    fn a_grant_is_returned_until_it_is_handled_or_forgotten() {
        let (dir, store) = store();
        let grant = |service: &str, contracts: &[&str]| {
            store.grant(&name(service), &contracts.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        let waiting = || store.to_grant().unwrap().into_iter().map(|(contract, _)| contract).collect::<Vec<_>>();
        assert!(waiting().is_empty());
        assert!(matches!(grant("users.shop", &["a.B", "a.C spiffe://weft.test\n"]), Err(ClaimsError::NoClaim(_))));
        grant("users.shop", &["a.B", "a.C"]).unwrap();
        assert_eq!(waiting(), ["a.B", "a.C"]);
        grant("web.shop", &["a.D"]).unwrap();
        assert_eq!(waiting(), ["a.B", "a.C"], "the first are not handled yet");
        store.granted().unwrap();
        assert_eq!(store.to_grant().unwrap(), [("a.D".to_owned(), name("web.shop"))]);
        grant("web.shop", &["a.E"]).unwrap();
        store.forget_grants().unwrap();
        assert!(waiting().is_empty());
        fs::write(dir.path().join("granted-claims"), "a.B users.shop\n").unwrap();
        let error = store.to_grant().unwrap_err().to_string();
        assert!(error.contains("granted-claims.taken: `users.shop` is not of the form"), "{error}");
    }

    #[test]
    fn a_damaged_store_is_reported_and_not_overwritten() {
        let (dir, store) = store();
        let file = dir.path().join("claims.json");
        for (text, why) in [
            ("{", "claims.json: EOF"),
            (r#"{"pinned":{"a.B":"users"}}"#, "claims.json: `users` is not of the form"),
            (r#"{"pinned":{"a.B":"spiffe://other/ns/shop/sa/users"}}"#, "is not of the trust domain weft.test"),
        ] {
            fs::write(&file, text).unwrap();
            let error = store.load().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

#[test]
fn the_owner_of_a_namespace_chooses_among_its_services_only() {
    let mut claims = Claims::default();
    let chosen = |service: &str, contracts: &[&str]| {
        contracts.iter().map(|contract| ((*contract).to_owned(), name(service))).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(judge(&mut claims, "first.shop", "a.Mine"), Denied::default());
    assert_eq!(judge(&mut claims, "victim.other", "a.Theirs"), Denied::default());
    assert_eq!(judge(&mut claims, "users.shop", "a.Mine").contested, [("a.Mine".to_owned(), name("first.shop"))]);
    assert_eq!(judge(&mut claims, "third.shop", "a.Mine").contested.len(), 1);
    let moved = claims.choose("shop", chosen("users.shop", &["a.Mine", "a.Theirs", "a.Unclaimed"]));
    assert_eq!(moved, chosen("users.shop", &["a.Mine"]), "what another namespace has stays there");
    assert_eq!(judge(&mut claims, "users.shop", "a.Mine"), Denied::default());
    assert_eq!(judge(&mut claims, "first.shop", "a.Mine").contested, [("a.Mine".to_owned(), name("users.shop"))]);
    let contested = [("a.Theirs".to_owned(), name("victim.other"))];
    assert_eq!(judge(&mut claims, "users.shop", "a.Theirs").contested, contested);
    // What is listed has the new owner, and the new owner contests nothing.
    let listed: Vec<String> = claims
        .contests()
        .map(|Contest { claim, owner, claimant }| format!("{claim}: {owner}, not {claimant}"))
        .collect();
    assert_eq!(
        listed,
        [
            "a.Mine: users.shop, not first.shop",
            "a.Mine: users.shop, not third.shop",
            "a.Theirs: victim.other, not users.shop"
        ]
    );
    // The namespace that claims it first has it, and the annotation says which of its Services.
    assert_eq!(
        judge(&mut claims, "first.shop", "a.Unclaimed").contested,
        [("a.Unclaimed".to_owned(), name("users.shop"))]
    );
    assert_eq!(judge(&mut claims, "late.other", "a.Unclaimed").contested.len(), 1);
    // Without the annotation it stays where it is.
    assert!(claims.choose("shop", BTreeMap::new()).is_empty());
    assert!(claims.chosen.is_empty());
    assert_eq!(judge(&mut claims, "users.shop", "a.Mine"), Denied::default());
    let pinned = claims.pinned_to(|owner| *owner == name("users.shop"));
    assert!(pinned.keys().eq(["a.Mine", "a.Unclaimed"]));
    assert_eq!(claims.pins(), 3);
}

#[test]
fn a_service_gets_no_more_contracts_by_annotation_than_by_claims() {
    let mut claims = Claims::default();
    for number in 0..limits::CLAIMS_PER_IDENTITY {
        assert_eq!(judge(&mut claims, "users.shop", &format!("t.S{number}")), Denied::default());
    }
    assert_eq!(judge(&mut claims, "first.shop", "t.More"), Denied::default());
    let more = BTreeMap::from([("t.More".to_owned(), name("users.shop")), ("t.New".to_owned(), name("users.shop"))]);
    assert!(claims.choose("shop", more).is_empty());
    assert_eq!(judge(&mut claims, "first.shop", "t.More"), Denied::default(), "it keeps it");
    assert_eq!(judge(&mut claims, "first.shop", "t.New").without_room, 1);
    // Back and forth counts each pin once.
    let back = |service: &str| BTreeMap::from([("t.S0".to_owned(), name(service))]);
    for _ in 0..10 {
        assert_eq!(claims.choose("shop", back("first.shop")).len(), 1);
        assert_eq!(claims.choose("shop", back("users.shop")).len(), 1);
    }
    assert_eq!(claims.pins(), limits::CLAIMS_PER_IDENTITY + 1);
}

#[test]
fn what_the_mesh_s_owner_says_wins_and_stays() {
    let mut claims = Claims::default();
    let owners = |all: &[(&str, &str)]| {
        all.iter().map(|(contract, service)| ((*contract).to_owned(), name(service))).collect::<BTreeMap<_, _>>()
    };
    judge(&mut claims, "thief.other", "a.B");
    judge(&mut claims, "users.shop", "a.B");
    let said = owners(&[("a.B", "users.shop"), ("a.New", "users.shop")]);
    assert_eq!(claims.own(&said), said);
    assert!(claims.own(&said).is_empty(), "once more changes nothing");
    let listed: Vec<Contest> = claims.contests().collect();
    assert!(listed.is_empty(), "the thief has not claimed it since: {listed:?}");
    assert_eq!(judge(&mut claims, "thief.other", "a.B").contested, [("a.B".to_owned(), name("users.shop"))]);
    assert_eq!(judge(&mut claims, "thief.other", "a.New").contested.len(), 1, "nobody has claimed it");
    // No annotation takes it away.
    assert!(claims.choose("shop", owners(&[("a.B", "other.shop")])).is_empty());
    assert!(claims.choose("other", owners(&[("a.B", "thief.other")])).is_empty());
    assert!(!claims.grant("a.B", &name("thief.other")) && claims.grant("a.B", &name("users.shop")));
    assert_eq!(claims.release("a.B").unwrap().0, name("users.shop"));
    assert_eq!(judge(&mut claims, "thief.other", "a.B").contested.len(), 1, "a release takes nothing away either");
    // It says otherwise, and then nothing: the namespace decides again.
    assert_eq!(claims.own(&owners(&[("a.B", "new.shop")])), owners(&[("a.B", "new.shop")]));
    assert_eq!(claims.own(&BTreeMap::new()), owners(&[("a.B", "other.shop")]));
    assert_eq!(judge(&mut claims, "thief.other", "a.New").contested, [("a.New".to_owned(), name("users.shop"))]);
    assert_eq!(judge(&mut claims, "other.shop", "a.B"), Denied::default());
}

#[test]
fn the_file_wins_over_what_is_said_later() {
    let listed = BTreeMap::from([("a.B".to_owned(), name("users.shop"))]);
    let mut claims = Claims::new(listed, Unlisted::Refuse, BTreeMap::new());
    let said = BTreeMap::from([("a.B".to_owned(), name("other.shop")), ("a.C".to_owned(), name("other.shop"))]);
    assert_eq!(claims.own(&said).into_keys().collect::<Vec<_>>(), ["a.C"]);
    assert_eq!(judge(&mut claims, "other.shop", "a.B").contested.len(), 1);
    assert_eq!(judge(&mut claims, "other.shop", "a.C"), Denied::default(), "a file need not name it");
}
