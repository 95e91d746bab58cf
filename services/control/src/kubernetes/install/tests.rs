//! What is rendered, and which values are refused.

use std::collections::BTreeSet;

use weft_mesh::{
    config::{Node, Value},
    names::port,
};

use super::*;
use crate::kubernetes::inject::Config;

/// The values of a map.
fn get<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Node> {
    let [key, rest @ ..] = path else { return Some(node) };
    let Value::Map(entries) = &node.value else { return None };
    let (_, found) = entries.iter().find(|(name, _)| name.scalar_text().as_deref() == Some(key))?;
    get(found, rest)
}

fn text(node: &Node, path: &[&str]) -> String {
    get(node, path).and_then(Node::scalar_text).unwrap_or_else(|| panic!("no text at {path:?}"))
}

fn documents(yaml: &str) -> Vec<Node> {
    yaml.split("---\n").map(|text| Node::parse("rendered", text).unwrap()).collect()
}

fn of_kind(yaml: &str, kind: &str) -> Node {
    documents(yaml).into_iter().find(|node| text(node, &["kind"]) == kind).unwrap()
}

fn with(single: &[&str]) -> Result<Values, String> {
    let single: Vec<String> = single.iter().map(|text| (*text).to_owned()).collect();
    Values::read(&[], &single).map_err(|problems| problems.to_string())
}

fn with_file(yaml: &str) -> Result<Values, String> {
    Values::read(&[("weft.yaml".to_owned(), yaml.to_owned())], &[]).map_err(|problems| problems.to_string())
}

const CRD: &str = "CustomResourceDefinition";

#[test]
fn equal_values_give_equal_manifests_that_are_yaml_and_hold_no_secret() {
    let rendered = manifests(&Values::default());
    assert_eq!(rendered, manifests(&Values::read(&[], &[]).unwrap()));
    assert!(!rendered.contains("{{"), "each place has its value");
    let kinds: Vec<String> = documents(&rendered).iter().map(|node| text(node, &["kind"])).collect();
    assert_eq!(kinds.len(), 21, "{kinds:?}");
    assert_eq!(kinds[..4], [&[CRD; 3][..], &["Namespace"]].concat());
    assert!(rendered.starts_with(crds()));
    assert!(!kinds.contains(&"Secret".to_owned()) && !rendered.contains("PRIVATE KEY"));
    assert!(!rendered.lines().any(|line| line.trim_start().starts_with("caBundle:")), "the control plane sets it");
}

#[test]
fn the_removal_names_the_same_objects_with_the_webhook_first_and_namespace_and_policies_last() {
    let name = |node: &Node| {
        let namespace = get(node, &["metadata", "namespace"]).and_then(Node::scalar_text);
        (text(node, &["kind"]), namespace, text(node, &["metadata", "name"]), text(node, &["apiVersion"]))
    };
    let names = |yaml: &str| documents(yaml).iter().map(name).collect::<Vec<_>>();
    let removed = names(&removal());
    assert_eq!(removed[0].0, "MutatingWebhookConfiguration");
    let kinds: Vec<&str> = removed.iter().rev().map(|name| name.0.as_str()).collect();
    assert_eq!(kinds[..4], [&[CRD; 3][..], &["Namespace"]].concat());
    let all = |names: Vec<_>| names.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(all(removed), all(names(&manifests(&Values::default()))));
}

fn list<'a>(node: &'a Node, path: &[&str]) -> &'a [Node] {
    match get(node, path).map(|node| &node.value) {
        Some(Value::List(entries)) => entries,
        _ => panic!("no list at {path:?}"),
    }
}

fn texts(node: &Node, path: &[&str]) -> Vec<String> {
    list(node, path).iter().filter_map(Node::scalar_text).collect()
}

/// Who takes the control plane over has its rights.
#[test]
fn the_control_plane_writes_in_the_cluster_only_to_what_it_has_by_name() {
    let role = of_kind(&manifests(&Values::default()), "ClusterRole");
    for rule in list(&role, &["rules"]) {
        let resources = texts(rule, &["resources"]);
        let verbs = texts(rule, &["verbs"]);
        let is_reading = verbs.iter().all(|verb| verb == "list" || verb == "watch");
        // They change nothing: a review is only answered, and an Event is only read by people.
        let is_harmless = verbs == ["create"] && (resources == ["tokenreviews"] || resources == ["events"]);
        let is_named = get(rule, &["resourceNames"]).is_some();
        let is_status = resources.iter().all(|resource| resource.ends_with("/status"));
        assert!(is_reading || is_named || is_status || is_harmless, "{resources:?}");
    }
}

/// A field that it does not compare would be the control plane's to change.
#[test]
fn the_policy_compares_every_field_of_the_webhooks_but_the_certificate() {
    let rendered = manifests(&Values::default());
    let policy = of_kind(&rendered, "ValidatingAdmissionPolicy");
    let condition = text(&list(&policy, &["spec", "matchConditions"])[0], &["expression"]);
    let account = format!("system:serviceaccount:{}:control", crate::kubernetes::names::NAMESPACE);
    assert_eq!(condition, format!("request.userInfo.username == {account:?}"));
    let compared = text(&list(&policy, &["spec", "validations"])[0], &["expression"]);
    let webhook = of_kind(&rendered, "MutatingWebhookConfiguration");
    for hook in list(&webhook, &["webhooks"]) {
        let Value::Map(fields) = &hook.value else { panic!("no map") };
        let fields = fields.iter().filter_map(|(name, _)| name.scalar_text()).filter(|field| field != "clientConfig");
        for field in fields
            .map(|field| if field == "name" { field } else { format!("?{field}") })
            .chain(["clientConfig.?service", "clientConfig.?url", "?matchConditions"].map(str::to_owned))
        {
            assert!(compared.contains(&format!("now.{field} == before.{field}")), "{field}");
        }
    }
}

#[test]
fn what_is_rendered_obeys_the_values() {
    let values = with_file(
        "trust_domain: prod.example\notlp: [http://a:4317, 'http://b:4317']\nsample_ratio: 1\n\
         control: { image: 'registry.example/control@sha256:00', dashboard_host: weft.example }\n\
         sidecar: { image: 'x/sidecar:1', cpu_limit: 2, memory_limit: 1Gi }\n",
    )
    .unwrap();
    let rendered = manifests(&values);
    let inject = text(&of_kind(&rendered, "ConfigMap"), &["data", "inject.yaml"]);
    let inject = Config::parse("inject.yaml", &inject).unwrap();
    assert_eq!(inject, values.sidecars, "the webhook reads what was chosen");
    assert_eq!((inject.sidecar_image.as_str(), inject.trust_domain.as_str()), ("x/sidecar:1", "prod.example"));
    let deployment = of_kind(&rendered, "Deployment");
    let pod = get(&deployment, &["spec", "template", "spec"]).unwrap();
    let Value::List(containers) = &get(pod, &["containers"]).unwrap().value else { panic!("no containers") };
    assert_eq!(text(&containers[0], &["image"]), "registry.example/control@sha256:00");
    let Value::List(args) = &get(&containers[0], &["args"]).unwrap().value else { panic!("no args") };
    let args: Vec<String> = args.iter().filter_map(Node::scalar_text).collect();
    assert!(args.contains(&"--trust-domain=prod.example".to_owned()), "{args:?}");
    assert!(args.iter().any(|arg| arg.starts_with("--dashboard-host=") && arg.ends_with(",weft.example")), "{args:?}");
    let digest = ["spec", "template", "metadata", "annotations", "weft.dev/inject-config"];
    let before = text(&of_kind(&manifests(&Values::default()), "Deployment"), &digest);
    assert_ne!(text(&deployment, &digest), before, "the control plane starts anew with the new configuration");
}

#[test]
fn ports_are_those_of_the_mesh() {
    let rendered = manifests(&Values::default());
    for port in [port::CONTROL, port::DASHBOARD] {
        assert!(rendered.contains(&format!("0.0.0.0:{port}\n")), "{port}");
        assert!(rendered.contains(&format!("port: {port}\n")), "{port}");
    }
}

#[test]
fn every_key_can_be_set_and_has_the_default_that_its_row_says() {
    for (key, default, _) in KEYS {
        let default = default.replace("VERSION", env!("CARGO_PKG_VERSION"));
        let values = with(&[&format!("{key}={default}")]).unwrap();
        assert_eq!(manifests(&values), manifests(&Values::default()), "{key}");
    }
}

#[test]
fn single_values_win_over_files_and_later_ones_over_earlier_ones() {
    let files =
        [("a.yaml", "sample_ratio: 0.1\ntrust_domain: a\n"), ("b.yaml", "trust_domain: b\n"), ("c.yaml", "# \n")];
    let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let values = Values::read(&files, &["sample_ratio=0.2".to_owned(), "sample_ratio=0.3".to_owned()]).unwrap();
    assert_eq!((values.sidecars.trust_domain.as_str(), values.sidecars.sample_ratio), ("b", 0.3));
}

#[test]
fn a_wrong_value_is_named_with_file_line_and_key() {
    for (yaml, said) in [
        ("trust: x\n", "weft.yaml:1: trust: unknown key; allowed: trust_domain,"),
        ("sidecar:\n  images: x\n", "weft.yaml:2: sidecar.images: unknown key; allowed: image, cpu_request"),
        (
            "control: { replicas: 0 }\n",
            "weft.yaml:1: control.replicas: found the number 0; allowed: a whole number from 1 to 10",
        ),
        (
            "sidecar: { image: 'a b' }\n",
            "weft.yaml:1: sidecar.image: found the text \"a b\"; allowed: the name of an image",
        ),
        ("sidecar:\n  cpu_limit: 1MB\n", "weft.yaml:2: sidecar.cpu_limit: found the text \"1MB\"; allowed: an amount"),
        (
            "sidecar:\n  memory_limit: 8Mi\n",
            "weft.yaml:2: sidecar.memory_limit: the request of 32Mi is more than the limit of 8Mi",
        ),
        ("otlp: [jaeger]\n", "weft.yaml:1: otlp: `jaeger` is not a target for spans"),
        ("sample_ratio: 2\n", "weft.yaml:1: sample_ratio: found the number 2; allowed: a number from 0 to 1"),
        ("image_pull_policy: Maybe\n", "weft.yaml:1: image_pull_policy: found the text \"Maybe\"; allowed: Always,"),
        ("trust_domain:\n", "weft.yaml:1: trust_domain: found nothing"),
        ("- a\n", "weft.yaml:1: found a list; allowed: a table of"),
        ("a: [\n", "not YAML"),
    ] {
        let found = with_file(yaml).unwrap_err();
        assert!(found.contains(said), "{yaml}: {found}");
    }
    for (set, said) in [
        ("sidecar", "--set: found \"sidecar\"; allowed: KEY=VALUE"),
        ("side.image=x", "--set side.image: side: unknown key"),
        ("sidecar.imag=x", "--set sidecar.imag: sidecar.imag: unknown key"),
        ("sidecar.image=", "--set sidecar.image: sidecar.image: found nothing"),
        ("sidecar=x", "--set sidecar: sidecar: found the text \"x\"; allowed: a table of"),
        (
            "sidecar.cpu_request=2",
            "--set sidecar.cpu_request: sidecar.cpu_request: the request of 2 is more than the limit of 1",
        ),
        ("otlp={", "not YAML"),
    ] {
        let found = with(&[set]).unwrap_err();
        assert!(found.contains(said), "{set}: {found}");
    }
    assert!(with(&["sidecar.cpu_request=2", "sidecar.cpu_limit=3"]).is_ok(), "only the whole counts");
}

#[test]
fn a_second_control_plane_can_stand_by() {
    let replicas = |values: &Values| text(&of_kind(&manifests(values), "Deployment"), &["spec", "replicas"]);
    assert_eq!(replicas(&Values::default()), "1");
    let preset = ("--ha".to_owned(), Values::HIGHLY_AVAILABLE.to_owned());
    assert_eq!(replicas(&Values::read(std::slice::from_ref(&preset), &[]).unwrap()), "2");
    let own = ("own.yaml".to_owned(), "control: { replicas: 3 }".to_owned());
    assert_eq!(replicas(&Values::read(&[preset, own], &[]).unwrap()), "3");
}
