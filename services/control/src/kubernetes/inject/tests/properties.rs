//! What holds for all pods.

use proptest::{collection::vec, option, prelude::*};
use serde_json::{Map, Value, json};

use super::{
    super::{Config, Decision, Namespace, Reason, inject},
    apply,
};

/// Any JSON, as in fields that Weft does not know.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no others", |number| number.is_finite()).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            vec(("[a-z~/.\"]{0,6}", inner), 0..4).prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// A table with some of these keys, and one that Weft does not know.
fn table(known: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let known: Vec<_> =
        known.into_iter().map(|(key, value)| option::of(value).prop_map(move |value| (key, value))).collect();
    (known, option::of(anything()))
        .prop_map(|(known, unknown)| {
            let known = known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
            let unknown = unknown.map(|value| ("x/~unknown".to_owned(), value));
            Value::Object(known.chain(unknown).collect::<Map<_, _>>())
        })
        .boxed()
}

fn list(of: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    prop_oneof![4 => vec(of, 0..4).prop_map(Value::Array), 1 => Just(Value::Null)].boxed()
}

fn text(pattern: &'static str) -> BoxedStrategy<Value> {
    pattern.prop_map(Value::from).boxed()
}

fn container() -> BoxedStrategy<Value> {
    let variable = table(vec![("name", text("WEFT_OUTBOUND|WEFT_NAMESPACE|[A-Z]{1,5}")), ("value", text(".{0,8}"))]);
    let port = (1_u16..15_000).prop_map(Value::from).boxed();
    let port =
        table(vec![("name", text("http|grpc-x|")), ("protocol", text("TCP|UDP|SCTP"))]).prop_flat_map(move |of| {
            port.clone().prop_map(move |number| {
                let mut of = of.clone();
                of["containerPort"] = number;
                of
            })
        });
    table(vec![("name", text("[a-z]{1,5}")), ("env", list(variable)), ("ports", list(port.boxed()))])
}

fn pod() -> BoxedStrategy<Value> {
    let annotations =
        table(vec![("weft.dev/port", text("80")), ("weft.dev/injected", text("0.1.0")), ("a/b", text(".{0,5}"))]);
    let metadata = table(vec![
        ("generateName", text("[a-z]{1,5}-")),
        ("annotations", prop_oneof![annotations, Just(Value::Null)].boxed()),
        ("labels", table(vec![("weft.dev/inject", text("enabled"))])),
    ]);
    let volume = table(vec![("name", text("[a-z]{1,5}"))]);
    let spec = table(vec![
        ("containers", list(container())),
        ("initContainers", list(container())),
        ("volumes", list(volume)),
        ("terminationGracePeriodSeconds", (0_i64..100).prop_map(Value::from).boxed()),
    ]);
    (spec, option::of(prop_oneof![4 => metadata, 1 => Just(Value::Null).boxed()]))
        .prop_map(|(spec, metadata)| match metadata {
            Some(metadata) => json!({ "spec": spec, "metadata": metadata }),
            None => json!({ "spec": spec }),
        })
        .boxed()
}

/// Whether all that is in `old` is in `new`: each field of a table, and each entry of a list, in order.
fn survives(old: &Value, new: &Value) -> bool {
    match (old, new) {
        // Absent.
        (Value::Null, _) => true,
        (Value::Object(old), Value::Object(new)) => old
            .iter()
            .all(|(key, value)| new.get(key).is_some_and(|new| key == "weft.dev/injected" || survives(value, new))),
        (Value::Array(old), Value::Array(new)) => {
            let mut new = new.iter();
            old.iter().all(|value| new.any(|new| survives(value, new)))
        }
        _ => old == new,
    }
}

proptest! {
    #[test]
    fn all_of_a_pod_survives_and_twice_is_as_once(pod in pod()) {
        let (config, namespace) = (Config::default(), Namespace::enabled("shop"));
        let decision = inject(&config, &namespace, &pod).expect("nothing is wrong with it");
        let Decision::Patch(operations) = decision else { panic!("{decision:?}") };
        let injected = apply(&pod, operations);
        prop_assert!(survives(&pod, &injected), "{injected}");
        prop_assert_eq!(&injected["spec"]["initContainers"][0]["name"], "weft-sidecar");
        let again = inject(&config, &namespace, &injected);
        prop_assert_eq!(again, Ok(Decision::Skip(Reason::HasSidecar)));
    }

    #[test]
    fn any_json_is_a_pod_or_an_error(value in anything()) {
        let _ = inject(&Config::default(), &Namespace::enabled("shop"), &json!({ "spec": value.clone(), "metadata": value.clone() }));
        let _ = inject(&Config::default(), &Namespace::enabled("shop"), &value);
    }
}
