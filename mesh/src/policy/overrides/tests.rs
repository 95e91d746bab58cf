//! What MethodPolicies say, and what follows from it.

use serde_json::{Value, json};

use super::*;
use crate::policy::{
    Fallback, ServicePolicy,
    testing::{policy, service},
};

fn read(spec: Value) -> Result<Overrides, String> {
    let lines = |problems: Problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    Overrides::read("MethodPolicy shop/slow", &Node::of_json(&spec)).map_err(lines)
}

const CONTRACT: &str = r#"
    option (weft.options.v1.service) = {
        timeout: { seconds: 5 }
        breaker: { probes: 2 open_for: { seconds: 3 } }
        hedge: { after: { nanos: 50000000 } }
    };
    rpc Plain(M) returns (M);
    rpc Own(M) returns (M) { option (weft.options.v1.method) = { timeout: { seconds: 1 } }; }
    rpc Read(M) returns (M) { option idempotency_level = NO_SIDE_EFFECTS; }
    rpc Watch(M) returns (stream M);"#;

fn wire_policy() -> wire::ServicePolicy {
    (&policy(&service(CONTRACT)).unwrap()).into()
}

fn applied(spec: Value) -> ServicePolicy {
    let mut of_service = wire_policy();
    let overrides = read(spec).unwrap();
    overrides.apply("shop/slow", &mut of_service);
    assert_eq!(of_service.method_policy, "shop/slow");
    ServicePolicy::try_from(of_service).expect("it is well-formed")
}

#[test]
fn what_is_said_of_a_method_wins_over_what_is_said_of_the_service() {
    let policy = applied(json!({
        "service": "users", "timeout": "2s",
        "methods": [
            {"method": "t.S/Read", "timeout": "1m30s", "hedge": "never"},
            {"method": "t.S/Watch", "timeout": "1h"},
            {"method": "t.S/Plain", "hedge": "20ms"},
        ],
    }));
    let method = |name: &str| policy.method("t.S", name).unwrap();
    let of = |seconds, origin| Some(Sourced::new(Duration::from_secs(seconds), origin));
    assert_eq!(method("Plain").timeout, of(2, Origin::ServicePolicy));
    assert_eq!(method("Plain").hedge, None, "it may not be safe to repeat");
    assert_eq!(method("Own").timeout, of(1, Origin::MethodOption), "the contract says it of the method");
    assert_eq!(method("Read").timeout, of(90, Origin::MethodPolicy));
    assert_eq!(method("Read").hedge, None);
    assert_eq!(method("Watch").timeout, of(3600, Origin::MethodPolicy));
    let policy = applied(json!({"service": "users", "timeout": "2s"}));
    assert_eq!(policy.method("t.S", "Watch").unwrap().timeout, None, "it is for unary methods");
    let hedged = applied(json!({"service": "users", "methods": [{"method": "t.S/Read", "hedge": "20ms"}]}));
    let hedge = hedged.method("t.S", "Read").unwrap().hedge.unwrap();
    assert_eq!((hedge.value.after, hedge.origin), (Duration::from_millis(20), Origin::MethodPolicy));
    assert_eq!(hedged.breaker.origin, Origin::ServiceOption);
}

#[test]
fn fallbacks_lead_to_another_service_or_nowhere() {
    let contract = service(
        "option (weft.options.v1.service) = { fallback: { service: 'spare' } };
         rpc Plain(M) returns (M);
         rpc Own(M) returns (M) { option (weft.options.v1.method) = { fallback: { service: 'own' } }; }
         rpc Never(M) returns (M) { option (weft.options.v1.method) = { fallback: {} }; }
         rpc Fixed(M) returns (M) { option (weft.options.v1.method) = { fallback: { answer: '{}' } }; }",
    );
    let of_contract = wire::ServicePolicy::from(&policy(&contract).unwrap());
    let applied = |spec: Value| {
        let mut applied = of_contract.clone();
        read(spec).unwrap().apply("shop/slow", &mut applied);
        let applied = ServicePolicy::try_from(applied).expect("it is well-formed");
        ["Plain", "Own", "Never", "Fixed"].map(|name| {
            let fallback = applied.method("t.S", name).unwrap().fallback.clone()?;
            let to = match fallback.value {
                Fallback::Elsewhere { service, method: None } => service.unwrap_or_default(),
                other => format!("{other:?}"),
            };
            Some((if to.starts_with("Answer") { "answer".to_owned() } else { to }, fallback.origin))
        })
    };
    let to = |service: &str, origin| Some((service.to_owned(), origin));
    let (own, fixed) = (to("own", Origin::MethodOption), to("answer", Origin::MethodOption));
    let untouched = json!({"service": "users", "timeout": "1s"});
    assert_eq!(applied(untouched), [to("spare", Origin::ServiceOption), own.clone(), None, fixed.clone()]);
    // What the contract says of a method wins, also that it has none.
    let of_service = json!({"service": "users", "fallback": {"service": "cache.data"}});
    assert_eq!(applied(of_service), [to("cache.data", Origin::ServicePolicy), own, None, fixed]);
    let of_methods = json!({"service": "users", "methods": [
        {"method": "t.S/Plain", "fallback": {}}, {"method": "t.S/Own", "fallback": {"service": "cache"}},
        {"method": "t.S/Never", "fallback": {"service": "cache"}}, {"method": "t.S/Fixed", "fallback": {}}]});
    let cache = || to("cache", Origin::MethodPolicy);
    assert_eq!(applied(of_methods), [None, cache(), cache(), None]);
}

#[test]
fn a_fallback_to_the_service_itself_is_found() {
    let users = ServiceName::parse("users.shop").unwrap();
    let found = |spec: Value| read(spec).unwrap().fallback_to_itself(&users);
    for (to, is_itself) in [("users", true), ("users.shop", true), ("users.data", false), ("cache", false)] {
        let of_service = found(json!({"service": "users", "fallback": {"service": to}}));
        assert_eq!(of_service, is_itself.then(|| "spec.fallback.service".to_owned()), "{to}");
        let method = json!({"method": "a.B/C", "fallback": {"service": to}});
        let of_method = found(json!({"service": "users", "methods": [method]}));
        assert_eq!(of_method, is_itself.then(|| "spec.methods: fallback.service of a.B/C".to_owned()), "{to}");
    }
}

#[test]
fn each_problem_names_the_object_and_the_field() {
    let many: Vec<Value> = (0..201).map(|n| json!({"method": format!("a.B/M{n}"), "timeout": "1s"})).collect();
    for (spec, problem) in [
        (json!({"service": "users"}), "spec: without a value; allowed: `service` with"),
        (json!({"timeout": "1s"}), "spec.service: missing; allowed: 1 to 63 of"),
        (json!({"service": "users.shop", "timeout": "1s"}), "spec.service: found the text \"users.shop\""),
        (json!({"service": "users", "timeout": null}), "spec.timeout: found nothing; allowed: a value"),
        (json!({"service": "users", "timeout": 2}), "spec.timeout: found the number 2; allowed: a positive time of"),
        (json!({"service": "users", "timeout": "2"}), "spec.timeout: found the text \"2\"; allowed: a positive time"),
        (json!({"service": "users", "timeout": "0s"}), "spec.timeout: found the text \"0s\"; allowed: a positive time"),
        (json!({"service": "users", "timout": "1s"}), "spec.timout: unknown key; allowed: service, timeout,"),
        (json!({"service": "users", "methods": {}}), "spec.methods: found a table of keys and values; allowed: a list"),
        (json!({"service": "users", "methods": []}), "spec.methods: found 0 entries; allowed: 1 to 200"),
        (json!({"service": "users", "methods": many}), "spec.methods: found 201 entries; allowed: 1 to 200"),
        (
            json!({"service": "users", "methods": [{"method": "a.B/C"}]}),
            "spec.methods[0]: without a value; allowed: `method` with",
        ),
        (json!({"service": "users", "methods": [{"timeout": "1s"}]}), "spec.methods[0].method: missing; allowed: PACK"),
        (
            json!({"service": "users", "methods": [{"method": "Get", "timeout": "1s"}]}),
            "spec.methods[0].method: found the text \"Get\"; allowed: PACKAGE.SERVICE/METHOD",
        ),
        (json!({"service": "users", "fallback": {}}), "spec.fallback: without a value; allowed: `service`"),
        (json!({"service": "users", "fallback": "cache"}), "spec.fallback: found the text \"cache\"; allowed: a table"),
        (
            json!({"service": "users", "fallback": {"service": "a.b.c"}}),
            "spec.fallback.service: found the text \"a.b.c\"; allowed: NAME, or",
        ),
        (
            json!({"service": "users", "fallback": {"answer": "{}"}}),
            "spec.fallback.answer: found here; allowed: only in the contract",
        ),
        (
            json!({"service": "users", "methods": [{"method": "a.B/C", "fallback": {"method": "a.B/D"}}]}),
            "spec.methods[0].fallback.method: found here; allowed: only in the contract",
        ),
        (
            json!({"service": "users", "methods": [{"method": "a.B/C", "hedge": "0.5s"}]}),
            "spec.methods[0].hedge: found the text \"0.5s\"; allowed: a time from 1 ms",
        ),
        (
            json!({"service": "users", "methods":
                [{"method": "a.B/C", "timeout": "1s"}, {"method": "a.B/C", "hedge": "never"}]}),
            "spec.methods[1].method: a.B/C is there twice; allowed: once",
        ),
    ] {
        let told = read(spec.clone()).expect_err("it is wrong");
        assert!(told.contains(&format!("MethodPolicy shop/slow: {problem}")), "{spec}: {told}");
    }
}
