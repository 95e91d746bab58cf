use serde_json::{Value, json};
use weft_control::kubernetes::inject::{Config, Decision, Namespace, inject};

use super::{Input, yaml};

fn input<'a>(config: &'a Config) -> Input<'a> {
    Input { config, file: "pod.yaml" }
}

fn injected(text: &str) -> String {
    input(&Config::default()).inject(text).unwrap_or_else(|error| panic!("{error:#}: {text}"))
}

fn values(text: &str) -> Vec<Value> {
    yaml::read("out.yaml", text).unwrap().into_iter().map(|document| document.value).collect()
}

fn told(text: &str) -> String {
    format!("{:#}", input(&Config::default()).inject(text).expect_err("an error"))
}

/// An object whose pods are at `place`, as YAML of one line.
fn object(kind: &str, version: &str, place: &str) -> String {
    let pod = r#"{"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}}"#;
    let keys: Vec<&str> = place.split('/').filter(|key| !key.is_empty()).collect();
    let open: String = keys.iter().map(|key| format!("{{\"{key}\": ")).collect();
    let body = format!("{open}{pod}{}", "}".repeat(keys.len()));
    // The object's own fields are beside what the pod is in.
    format!("{{\"apiVersion\": \"{version}\", \"kind\": \"{kind}\", {}\n", &body[1..])
}

#[test]
fn the_pods_of_all_workloads_get_a_sidecar() {
    for (kind, version, place) in [
        ("Pod", "v1", ""),
        ("Deployment", "apps/v1", "/spec/template"),
        ("StatefulSet", "apps/v1", "/spec/template"),
        ("DaemonSet", "apps/v1", "/spec/template"),
        ("ReplicaSet", "apps/v1", "/spec/template"),
        ("Job", "batch/v1", "/spec/template"),
        ("CronJob", "batch/v1", "/spec/jobTemplate/spec/template"),
    ] {
        let out = values(&injected(&object(kind, version, place))).remove(0);
        assert_eq!((&out["kind"], &out["apiVersion"]), (&json!(kind), &json!(version)));
        let pod = out.pointer(place).unwrap();
        assert_eq!(pod["spec"]["initContainers"][0]["name"], "weft-sidecar", "{kind}");
        assert_eq!(pod["metadata"]["labels"]["app"], "a");
    }
}

#[test]
fn all_else_stays_as_it_is() {
    let job = object("Job", "batch.volcano.sh/v1alpha1", "/spec/template");
    let disabled = object("Pod", "v1", "").replace(r#""app": "a""#, r#""weft.dev/inject": "disabled""#);
    let text = format!(
        "# first\n---\n{job}---\n---\n{disabled}---\nkind: ConfigMap\napiVersion: v1\ndata: {{ a: b }}\n---\n[1, x]\n"
    );
    let out = injected(&text);
    assert_eq!(values(&out), values(&text));
    assert_eq!(out.matches("---").count(), 3);
    assert_eq!(injected(""), "");
    let once = injected(&object("Deployment", "apps/v1", "/spec/template"));
    assert_eq!(injected(&once), once, "twice is as once");
}

#[test]
fn the_objects_of_a_list_are_found() {
    let deployment = object("Deployment", "apps/v1", "/spec/template");
    let text = format!("apiVersion: v1\nkind: List\nitems:\n- {deployment}- kind: Service\n  apiVersion: v1\n");
    let out = values(&injected(&text)).remove(0);
    let pod = &out["items"][0]["spec"]["template"]["spec"];
    assert_eq!(
        (&pod["initContainers"][0]["name"], &out["items"][1]["kind"]),
        (&json!("weft-sidecar"), &json!("Service"))
    );
    let wrong = text.replace(r#""labels""#, r#""annotations": {"weft.dev/port": "x"}, "labels""#);
    let expected = "pod.yaml:1: document 1 (List): items[0].spec.template.metadata.annotations[weft.dev/port]: found";
    assert!(told(&wrong).starts_with(expected), "{}", told(&wrong));
}

#[test]
fn values_keep_their_types() {
    // Each is what kubectl reads, by YAML 1.1.
    let text = "kind: ConfigMap\napiVersion: v1\n\
        mode: 0644\nnew: 0o17\nhex: 0x1F\nbig: 18446744073709551615\nratio: 0.5\nexponent: 1e3\nhuge: 123456789012345678\n\
        yes: yes\noff: Off\nnone: ~\nempty:\ntime: 2026-11-30\nclock: 12:30:45\nversion: 1.10.0\nkey: \"on\"\n\
        octal: \"0644\"\nnumber: '1e3'\ntilde: \"~\"\nmerge: \"<<\"\nspace: \" x \"\nline: \"a: b # c\"\ndash: \"- x\"\n\
        tabs: \"\\t\"\nescape: \"\\e[0m\\u202e\"\nscript: |\n  #!/bin/sh\n    echo \"$X\"  \n\n  exit\nlast: |+\n  a\n\n\
        folded: >-\n  a\n  b\nlong: aaaaaaaaaa bbbbbbbbbb cccccccccc dddddddddd eeeeeeeeee ffffffffff gggggggggg hhhhhhhhhh  iii\n\
        base: &base { a: 1 }\nuses: *base\nmerged: { <<: *base, b: 2 }\n\"true\": 1\n\"8080\": 2\n";
    let read = values(text).remove(0);
    let expected = json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "mode": 420, "new": 15, "hex": 31, "big": 18_446_744_073_709_551_615_u64, "ratio": 0.5, "exponent": 1000.0,
        "huge": 123_456_789_012_345_678_u64,
        "yes": true, "off": false, "none": null, "empty": null, "time": "2026-11-30", "clock": "12:30:45",
        "version": "1.10.0", "key": "on", "octal": "0644", "number": "1e3", "tilde": "~", "merge": "<<",
        "space": " x ", "line": "a: b # c", "dash": "- x", "tabs": "\t", "escape": "\u{1b}[0m\u{202e}",
        "script": "#!/bin/sh\n  echo \"$X\"  \n\nexit\n", "last": "a\n\n", "folded": "a b",
        "long": "aaaaaaaaaa bbbbbbbbbb cccccccccc dddddddddd eeeeeeeeee ffffffffff gggggggggg hhhhhhhhhh  iii",
        "base": { "a": 1 }, "uses": { "a": 1 }, "merged": { "a": 1, "b": 2 }, "true": 1, "8080": 2,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(read.get(key), Some(value), "{key}");
    }
    let out = injected(text);
    assert_eq!(values(&out), [read], "{out}");
    assert!(out.contains("\n    echo \"$X\"  \n") && out.lines().count() < 50, "{out}");
}

#[test]
fn errors_name_file_document_and_field() {
    let pod = object("Pod", "v1", "");
    let with = |annotation: &str| {
        let metadata = format!(r#""name": "users", "annotations": {{{annotation}}}, "labels""#);
        format!("kind: Service\napiVersion: v1\n---\n{}", pod.replace(r#""labels""#, &metadata))
    };
    for (text, expected) in [
        (
            with(r#""weft.dev/protocol": "http""#),
            "pod.yaml:4: document 2 (Pod users): metadata.annotations[weft.dev/protocol]: found the text \"http\"; allowed: grpc,",
        ),
        (
            with(r#""weft.dev/port": 8080"#),
            "pod.yaml:4: document 2 (Pod users): metadata.annotations[weft.dev/port]: found the number 8080; allowed: a text, in quotes",
        ),
        (
            "kind: Deployment\napiVersion: apps/v1\nspec: {}\n".to_owned(),
            "pod.yaml:1: document 1 (Deployment): spec.template: missing",
        ),
        ("a: [\n".to_owned(), "pod.yaml:"),
        ("a: 1\n---\nb: 1\nb: 2\n".to_owned(), "pod.yaml:4: not YAML: "),
        ("kind: Pod\n\tapiVersion: v1\n".to_owned(), "pod.yaml:"),
    ] {
        let told = told(&text);
        assert!(told.starts_with(expected), "{told}");
    }
}

#[test]
fn the_patch_is_the_webhooks() {
    let config = Config::parse("inject.yaml", "sidecar_image: other:1\n").unwrap();
    let text = object("Pod", "v1", "").replace(r#""labels""#, r#""namespace": "shop", "labels""#);
    let pod = values(&text).remove(0);
    let Ok(Decision::Patch(operations)) = inject(&config, &Namespace::enabled("shop"), &pod) else { panic!() };
    let patch: Value = serde_json::from_str(&input(&config).patch(&text).unwrap()).unwrap();
    assert_eq!(patch, Value::Array(operations));
    assert!(patch.to_string().contains("other:1"));

    let told = |text: &str| format!("{:#}", input(&config).patch(text).expect_err("an error"));
    assert_eq!(told(&format!("{text}---\n{text}")), "pod.yaml: found 2 documents; allowed with --patch: one Pod");
    assert_eq!(told(""), "pod.yaml: found 0 documents; allowed with --patch: one Pod");
    let deployment = object("Deployment", "apps/v1", "/spec/template");
    assert_eq!(told(&deployment), "pod.yaml:1: document 1 (Deployment): found no Pod; allowed with --patch: one Pod");
}
