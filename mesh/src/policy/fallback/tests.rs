use super::{
    answers::{ANSWER_TEXT_BYTES, ANSWERS_SIZE, ANSWERS_STEPS},
    *,
};
use crate::{policy::testing::policy, schema::testing::compile};

/// A contract `t.S` of this body, and another, `t.Other`, that it may fall back to.
fn source(body: &str) -> String {
    format!(
        r#"syntax = "proto3"; package t; import "weft/options/v1/options.proto";
           message In {{}}
           message Out {{ int64 price_cents = 1; string name = 2; }}
           service S {{ {body} }}
           service Other {{
               rpc Get(In) returns (Out);
               rpc Watch(In) returns (stream Out);
           }}"#
    )
}

/// The policy of a service that implements `t.S` only.
fn of(body: &str) -> Result<ServicePolicy, PolicyError> {
    let own = ["t.S".to_owned()];
    ServicePolicy::from_descriptors(&compile(&[("t.proto", &source(body))]), Some(&own))
}

fn get(fallback: &str) -> String {
    format!("rpc Get(In) returns (Out) {{ option (weft.options.v1.method) = {{ fallback: {{ {fallback} }} }}; }}")
}

fn fallback(body: &str, method: &str) -> Option<Sourced<Fallback>> {
    of(body).unwrap().method("t.S", method).unwrap().fallback.clone()
}

fn refusal(body: &str) -> String {
    of(body).unwrap_err().to_string()
}

fn elsewhere(service: Option<&str>, method: Option<&str>) -> Fallback {
    Fallback::Elsewhere { service: service.map(Into::into), method: method.map(Into::into) }
}

#[test]
fn a_method_falls_back_to_a_service_a_method_or_both() {
    for (option, expected) in [
        ("service: 'cache'", elsewhere(Some("cache"), None)),
        ("service: 'cache.other'", elsewhere(Some("cache.other"), None)),
        ("method: 't.Other/Get'", elsewhere(None, Some("t.Other/Get"))),
        ("service: 'cache' method: 't.S/Get2'", elsewhere(Some("cache"), Some("t.S/Get2"))),
    ] {
        let body = format!("{} rpc Get2(In) returns (Out);", get(option));
        assert_eq!(fallback(&body, "Get"), Some(Sourced::new(expected, Origin::MethodOption)), "{option}");
        assert_eq!(fallback(&body, "Get2"), None);
    }
}

#[test]
fn a_fixed_answer_is_encoded_once() {
    let answer = Some(Fallback::Answer {
        message: Bytes::from_static(b"\x08\x07\x12\x01x"),
        json: r#"{"priceCents":"7","name":"x"}"#.into(),
    });
    let body = get(r#"answer: '{"price_cents": 7, "name": "x"}'"#);
    assert_eq!(fallback(&body, "Get").map(|fallback| fallback.value), answer);
    let empty = Some(Fallback::Answer { message: Bytes::new(), json: "{}".into() });
    assert_eq!(fallback(&get("answer: '{}'"), "Get").map(|fallback| fallback.value), empty);
}

#[test]
fn a_services_option_is_the_default_of_its_methods() {
    let body = |option: &str| {
        format!(
            "option (weft.options.v1.service) = {{ fallback: {{ {option} }} }};
             rpc Get(In) returns (Out);
             rpc None(In) returns (Out) {{ option (weft.options.v1.method) = {{ fallback: {{}} }}; }}
             rpc Watch(In) returns (stream Out);"
        )
    };
    let from_service = |fallback| Some(Sourced::new(fallback, Origin::ServiceOption));
    let cache = body("service: 'cache'");
    for method in ["Get", "Watch"] {
        assert_eq!(fallback(&cache, method), from_service(elsewhere(Some("cache"), None)));
    }
    assert_eq!(fallback(&cache, "None"), None, "its own option says that there is none");
    let answer = body("answer: '{}'");
    assert_eq!(fallback(&answer, "Get"), from_service(Fallback::Answer { message: Bytes::new(), json: "{}".into() }));
    assert_eq!(fallback(&answer, "Watch"), None, "an answer is one message");
}

#[test]
fn what_can_not_answer_is_refused_by_name() {
    let error = refusal(&get(r#"answer: '{"prize_cents": 7}'"#));
    assert!(
        error.starts_with(
            "t.proto: option (weft.options.v1.method) of method t.S/Get: fallback.answer is `{\"prize_cents\": 7}` for Get \
             (this is not JSON of `t.Out`: "
        ),
        "{error}"
    );
    assert!(error.ends_with("; allowed is a message of the method's response type in JSON"), "{error}");
    for (option, named) in [
        ("answer: '{}' service: 'cache'", "fallback.answer is given beside another service or method;"),
        ("service: 'Not a name'", "fallback.service is `Not a name`; allowed is NAME, or NAME.NAMESPACE,"),
        ("method: 't.Other/Got'", "fallback.method is `t.Other/Got`; allowed is the full name of a method"),
        ("method: 'Get'", "fallback.method is `Get`;"),
        (
            "method: 't.Other/Watch'",
            "fallback.method is `t.Other/Watch` (t.In) returns (stream t.Out), while t.S/Get is",
        ),
        ("method: 't.S/Get'", "fallback.method is `t.S/Get`, a method of the same service;"),
    ] {
        let error = refusal(&get(option));
        assert!(error.contains(&format!("of method t.S/Get: {named}")), "{error}");
    }
    let streaming =
        "rpc Watch(In) returns (stream Out) { option (weft.options.v1.method) = { fallback: { answer: '{}' } }; }";
    assert!(refusal(streaming).contains("fallback.answer is given for Watch, which streams its answers;"));
    let long = get(&format!("answer: '{{\"name\": \"{}\"}}'", "x".repeat(limits::FALLBACK_ANSWER_BYTES)));
    assert!(refusal(&long).contains("bytes; allowed is at most 16 KiB"));
    let of_service = |option: &str| {
        refusal(&format!(
            "option (weft.options.v1.service) = {{ fallback: {{ {option} }} }}; rpc Get(In) returns (Out);"
        ))
    };
    for (option, named) in [
        ("method: 't.Other/Get'", "of service t.S: fallback.method is t.Other/Get; allowed is a `service`"),
        ("", "of service t.S: fallback is empty;"),
        (r#"answer: '{"x": 1}'"#, "of service t.S: fallback.answer is `{\"x\": 1}` for Get ("),
    ] {
        let error = of_service(option);
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn methods_that_fall_back_to_one_another_are_refused() {
    let file = r#"syntax = "proto3"; package t; import "weft/options/v1/options.proto";
        message M {}
        service A { rpc Do(M) returns (M) { option (weft.options.v1.method) = { fallback: { method: 't.B/Do' } }; } }
        service B { rpc Do(M) returns (M) { option (weft.options.v1.method) = { fallback: { method: 't.C/Do' } }; } }
        service C { rpc Do(M) returns (M) { option (weft.options.v1.method) = { fallback: { method: 't.A/Do' } }; } }"#;
    let compiled = |contract: &str| {
        ServicePolicy::from_descriptors(&compile(&[("t.proto", file)]), Some(&[contract.to_owned()])).unwrap_err()
    };
    assert_eq!(
        compiled("t.A").to_string(),
        "t.proto: option (weft.options.v1.method) of method t.A/Do: fallback.method is t.A/Do → t.B/Do → t.C/Do → t.A/Do; \
         allowed is a method whose own fallback does not lead back"
    );
}

#[test]
fn services_that_fall_back_to_one_another_are_found() {
    let name = |name: &str| ServiceName::parse_in(name, "shop").unwrap();
    let policy = |contract: &str, fallback: &str| {
        policy(&format!(
            r#"syntax = "proto3"; package {contract}; import "weft/options/v1/options.proto";
               message M {{}}
               service S {{ rpc Do(M) returns (M) {{ option (weft.options.v1.method) = {{ fallback: {{ {fallback} }} }}; }} }}"#
        ))
        .unwrap()
    };
    let (a, b) = (name("a"), name("b"));
    let (to_b, to_a) = (policy("p", "service: 'b'"), policy("p", "service: 'a.shop'"));
    let (begin, way) = find_loop(&[(&a, &to_b), (&b, &to_a)]).expect("a leads to b, and b to a");
    assert_eq!((begin, way.as_str()), (&a, "a.shop p.S/Do → b.shop p.S/Do → a.shop p.S/Do"));
    assert!(find_loop(&[(&b, &to_b)]).is_some(), "b leads to itself");
    assert_eq!(find_loop(&[(&a, &to_b), (&b, &policy("q", "service: 'a'"))]), None, "b has another method");
    assert_eq!(find_loop(&[(&a, &to_b), (&b, &policy("p", "answer: '{}'"))]), None);
}

#[test]
fn a_fallback_survives_the_wire() {
    let answer = Fallback::Answer { message: Bytes::from_static(b"\x08\x07"), json: "{}".into() };
    for value in [elsewhere(Some("cache"), None), elsewhere(None, Some("t.S/Do")), answer] {
        let fallback = Sourced::new(value, Origin::MethodOption);
        assert_eq!(from_wire(wire::Fallback::from(&fallback)), Ok(Some(fallback)));
    }
    assert_eq!(from_wire(wire::Fallback::default()), Ok(None), "of a later version");
}

#[test]
fn what_could_break_a_sidecar_is_refused_from_the_wire() {
    let refusal = |value| from_wire(wire::Fallback::from(&Sourced::new(value, Origin::default()))).unwrap_err().field;
    assert_eq!(refusal(elsewhere(Some("not a name"), None)), "Fallback.elsewhere.service");
    for method in ["Do", "t.S/", "t.S/a.b", "/t.S/Do", "t.S/Do?x\r\n"] {
        assert_eq!(refusal(elsewhere(None, Some(method))), "Fallback.elsewhere.method", "{method}");
    }
    assert_eq!(refusal(elsewhere(None, None)), "Fallback.elsewhere.method", "it leads nowhere");
    let large = vec![0; limits::FALLBACK_ANSWER_BYTES + 1].into();
    assert_eq!(refusal(Fallback::Answer { message: large, json: "".into() }), "Fallback.answer");
}

/// Any service of the mesh may ask the control plane to compile its contracts.
#[test]
fn what_answers_take_is_bounded() {
    let blanks = " ".repeat(ANSWER_TEXT_BYTES);
    let error = refusal(&get(&format!("answer: '{blanks}{{}}'")));
    assert!(error.ends_with("; allowed is at most 16 KiB"), "{error}");

    let name = "x".repeat(limits::FALLBACK_ANSWER_BYTES - 100);
    let service = |methods: usize| {
        let methods: String = (0..methods).map(|number| format!("rpc M{number}(In) returns (Out);")).collect();
        let answer = format!(r#"fallback: {{ answer: '{{"name": "{name}"}}' }}"#);
        format!("option (weft.options.v1.service) = {{ {answer} }}; {methods}")
    };
    let most = limits::POLICY_BYTES / (2 * limits::FALLBACK_ANSWER_BYTES);
    let policy = of(&service(most / 2)).unwrap();
    let answers = policy.contracts[0].methods.iter().map(|method| match &method.fallback.as_ref().unwrap().value {
        Fallback::Answer { message, json } => (message.as_ptr(), json.as_ptr()),
        other => panic!("{other:?}"),
    });
    assert_eq!(answers.collect::<std::collections::HashSet<_>>().len(), 1, "methods share it");
    let error = refusal(&service(2 * most));
    assert!(error.contains("(weft.options.v1.service)") && error.ends_with(ANSWERS_SIZE), "{error}");
}

#[test]
fn fallbacks_one_after_the_other_are_few() {
    let chain = |length: usize| -> String {
        let method = |number: usize| match number < length {
            true => {
                get(&format!("service: 'other' method: 't.S/M{}'", number + 1)).replace("Get", &format!("M{number}"))
            }
            false => format!("rpc M{number}(In) returns (Out);"),
        };
        (0..=length).map(method).collect()
    };
    let most = limits::FALLBACKS as usize;
    assert!(of(&chain(most)).is_ok());
    let error = refusal(&chain(most + 1));
    assert!(error.contains("t.S/M0 → t.S/M1") && error.ends_with(CHAIN), "{error}");
}

#[test]
fn long_names_do_not_make_long_answers() {
    let name = "V".repeat(400);
    let text = format!(
        r#"syntax = "proto3"; package t; import "weft/options/v1/options.proto";
           enum E {{ {name} = 0; }}
           message Out {{ repeated E e = 1; }}
           service S {{ {} }}"#,
        get(&format!("answer: '{{\"e\":[{}0]}}'", "0,".repeat(2_000))).replace("(In)", "(Out)")
    );
    let error = ServicePolicy::from_descriptors(&compile(&[("t.proto", &text)]), None).unwrap_err().to_string();
    assert!(error.contains("its JSON has more than 16384 bytes"), "{error}");
}

/// The library compares each value of an answer with the values of its enum, one by one: otherwise a member keeps a thread of
/// the control plane busy for minutes.
#[test]
fn values_of_answers_times_the_size_of_types_are_bounded() {
    let compiled = |values: usize| {
        let of_enum: String = (1..3_000).map(|number| format!("V{number} = {number};")).collect();
        let text = format!(
            r#"syntax = "proto3"; package t; import "weft/options/v1/options.proto";
               enum E {{ Z = 0; {of_enum} }}
               message Out {{ repeated E e = 1; }}
               service S {{ {} }}"#,
            get(&format!("answer: '{{\"e\":[0{}]}}'", ",0".repeat(values - 1))).replace("(In)", "(Out)")
        );
        ServicePolicy::from_descriptors(&compile(&[("t.proto", &text)]), None)
    };
    assert!(compiled(3_000).is_ok());
    let error = compiled(4_000).unwrap_err().to_string();
    assert!(error.ends_with(ANSWERS_STEPS), "{error}");
}

#[test]
fn a_contract_says_for_whom_it_stands_in() {
    let policy = of("option (weft.options.v1.service) = { stands_in_for: ['b.other', 'a', 'a'] };").unwrap();
    assert_eq!(policy.contracts[0].stands_in_for, ["a", "b.other"]);
    let name = |name: &str| ServiceName::parse(name).unwrap();
    assert!(policy.is_stand_in_for(&name("own.shop"), Some("t.S"), &name("a.shop")));
    assert!(policy.is_stand_in_for(&name("own.shop"), None, &name("b.other")));
    assert!(!policy.is_stand_in_for(&name("own.shop"), None, &name("a.other")));
    assert!(!policy.is_stand_in_for(&name("own.shop"), Some("t.Other"), &name("a.shop")), "its other contracts do not");
    let error = refusal("option (weft.options.v1.service) = { stands_in_for: 'A/B' };");
    assert!(error.contains("service t.S: stands_in_for is `A/B`"), "{error}");
    let many: String = (0..=limits::STANDS_IN_FOR).map(|number| format!("stands_in_for: 's{number}' ")).collect();
    let error = refusal(&format!("option (weft.options.v1.service) = {{ {many} }};"));
    assert!(error.ends_with(STANDS_IN_FOR_MOST), "{error}");
}
