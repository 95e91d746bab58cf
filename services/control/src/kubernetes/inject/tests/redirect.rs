//! Pods whose connections are redirected.

use super::*;

fn redirected(more: Value) -> Value {
    let mut pod = with(json!({ "weft.dev/redirect": "enabled" }));
    pod["metadata"]["annotations"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    pod
}

fn names(pod: &Value) -> Vec<&str> {
    pod["spec"]["initContainers"].as_array().unwrap().iter().map(|of| of["name"].as_str().unwrap()).collect()
}

fn variable(sidecar: &Value, name: &str) -> Option<String> {
    let found = sidecar["env"].as_array()?.iter().find(|variable| variable["name"] == name)?;
    found["value"].as_str().map(str::to_owned)
}

#[test]
fn a_redirected_pod_gets_a_container_that_does_it_before_its_sidecar() {
    let mut pod = redirected(json!({
        "weft.dev/exclude-inbound-ports": "9090, 8000-8100",
        "weft.dev/exclude-outbound-ports": "5432",
        "weft.dev/exclude-outbound-ranges": "169.254.169.254,fd00::/8",
        "weft.dev/outside": "deny",
    }));
    pod["spec"]["initContainers"] = json!([{ "name": "migrate" }]);
    let injected = injected(&pod);
    assert_eq!(names(&injected), ["weft-redirect", "weft-sidecar", "migrate"]);
    let expected = json!({
        "name": "weft-redirect",
        "image": concat!("weft/redirect:", env!("CARGO_PKG_VERSION")),
        "imagePullPolicy": "IfNotPresent",
        "args": [
            "redirect", "--uid", "15001", "--exclude-inbound-ports", "9090,8000-8100", "--exclude-outbound-ports", "5432",
            "--exclude-outbound-ranges", "169.254.169.254/32,fd00::/8",
        ],
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "cpu": "1", "memory": "64Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    let inits = &injected["spec"]["initContainers"];
    assert_eq!(inits[0], expected);
    let sidecar = &inits[1];
    assert_eq!(sidecar["securityContext"]["runAsUser"], 15_001, "its own connections are left alone");
    let found = ["WEFT_INTERCEPT", "WEFT_OUTSIDE"].map(|name| variable(sidecar, name));
    assert_eq!(found, [Some("true".to_owned()), Some("deny".to_owned())]);
    assert_eq!(inits[2]["env"][0]["name"], "WEFT_OUTBOUND");
    assert_eq!(inject(&Config::default(), &shop(), &injected), Ok(Decision::Skip(Reason::HasSidecar)));
}

#[test]
fn the_default_is_that_of_the_configuration_and_the_pod_wins() {
    let with_default = |default: &str, pod: &Value| {
        let config =
            Config::parse("inject.yaml", &format!("redirect: {default}\nredirect_image: x/redirect:1\n")).unwrap();
        let Decision::Patch(operations) = inject(&config, &shop(), pod).unwrap() else { panic!("skipped") };
        apply(pod, operations)
    };
    let plain = with(json!({}));
    let disabled = with(json!({ "weft.dev/redirect": "disabled" }));
    for (default, pod, is_redirected) in [
        ("enabled", &plain, true),
        ("disabled", &plain, false),
        ("enabled", &disabled, false),
        ("disabled", &redirected(json!({})), true),
    ] {
        let injected = with_default(default, pod);
        let sidecar = &injected["spec"]["initContainers"][usize::from(is_redirected)];
        assert_eq!(names(&injected)[0] == "weft-redirect", is_redirected, "{default}");
        assert_eq!(variable(sidecar, "WEFT_INTERCEPT").is_some(), is_redirected);
        assert_eq!(variable(sidecar, "WEFT_OUTSIDE"), None, "the sidecar's own default");
        if is_redirected {
            assert_eq!(injected["spec"]["initContainers"][0]["image"], "x/redirect:1");
        }
    }
}

#[test]
fn a_bad_annotation_is_an_error_that_names_it() {
    let many = vec!["80"; 65].join(",");
    for (key, value, said) in [
        ("redirect", json!("yes"), "found the text \"yes\"; allowed: enabled, disabled"),
        ("redirect", json!(true), "found the truth value `true`; allowed: a text, in quotes"),
        ("outside", json!("maybe"), "found the text \"maybe\"; allowed: allow, deny"),
        ("exclude-inbound-ports", json!("http"), "found the text \"http\"; allowed: up to 64 ports or ranges of ports"),
        ("exclude-inbound-ports", json!(""), "found the text \"\"; allowed: up to 64 ports"),
        ("exclude-inbound-ports", json!("80,"), "found the text \"80,\"; allowed: up to 64 ports"),
        ("exclude-inbound-ports", json!(many), "found the text \"80,80,"),
        ("exclude-outbound-ports", json!("0"), "found the text \"0\"; allowed: up to 64 ports"),
        ("exclude-outbound-ports", json!("1 --remove"), "found the text \"1 --remove\"; allowed: up to 64 ports"),
        ("exclude-outbound-ranges", json!("10.0.0.1/8"), "found the text \"10.0.0.1/8\"; allowed: up to 64 networks"),
        ("exclude-outbound-networks", json!("10.0.0.0/8"), "unknown annotation; allowed: "),
    ] {
        let told = refused(&redirected(json!({ format!("weft.dev/{key}"): value })));
        assert!(told.starts_with(&format!("metadata.annotations[weft.dev/{key}]: {said}")), "{told}");
    }
    for key in ["exclude-inbound-ports", "exclude-outbound-ports", "exclude-outbound-ranges", "outside"] {
        let key = format!("weft.dev/{key}");
        let value = if key.ends_with("outside") {
            "deny"
        } else if key.ends_with("ranges") {
            "10.0.0.0/8"
        } else {
            "80"
        };
        let said = format!(
            "metadata.annotations[{key}]: found no redirection that it is for; allowed: with weft.dev/redirect: enabled"
        );
        assert_eq!(refused(&with(json!({ &*key: value }))), said);
        assert_eq!(refused(&with(json!({ "weft.dev/redirect": "disabled", &*key: value }))), said);
    }
}

/// The connections of such a container would not be redirected.
#[test]
fn no_other_container_of_a_redirected_pod_runs_as_the_user_of_its_sidecar() {
    let said = "found the number 15001; allowed: another user: that of the sidecar is 15001";
    for list in ["containers", "initContainers"] {
        let mut pod = redirected(json!({}));
        pod["spec"][list] = json!([{ "name": "a" }, { "name": "b", "securityContext": { "runAsUser": 15_001 } }]);
        let told = refused(&pod);
        assert!(told.starts_with(&format!("spec.{list}[1].securityContext.runAsUser: {said}")), "{told}");
        // Without redirection it is a user as any other.
        pod["metadata"]["annotations"] = json!({});
        injected(&pod);
    }
    let mut pod = redirected(json!({}));
    pod["spec"]["securityContext"] = json!({ "runAsUser": 15_001 });
    let told = refused(&pod);
    assert!(told.starts_with(&format!("spec.securityContext.runAsUser: {said}")), "{told}");
    pod["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 1_000 });
    let mut pod = injected(&pod);
    // Another webhook has added it to a pod that has its sidecar.
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({ "name": "agent" }));
    assert!(refused(&pod).starts_with(&format!("spec.securityContext.runAsUser: {said}")));
    // The user of many images, and of sidecars that are not redirected.
    let mut pod = redirected(json!({}));
    pod["spec"]["securityContext"] = json!({ "runAsUser": 65_532, "runAsNonRoot": true });
    injected(&pod);
}

#[test]
fn the_name_of_the_container_must_be_free() {
    for list in ["containers", "initContainers"] {
        let mut pod = redirected(json!({}));
        pod["spec"][list] = json!([{ "name": "weft-redirect" }]);
        let told = refused(&pod);
        assert!(told.starts_with(&format!("spec.{list}[0].name: found the text \"weft-redirect\"")), "{told}");
    }
}

/// Its owner would believe that nobody reaches it but through its sidecar.
#[test]
fn a_pod_that_has_a_sidecar_without_the_redirection_that_it_is_to_have_is_refused() {
    let config = |default: &str| Config::parse("inject.yaml", &format!("redirect: {default}\n")).unwrap();
    let injected = |default: &str, pod: &Value| {
        let Decision::Patch(operations) = inject(&config(default), &shop(), pod).unwrap() else { panic!("skipped") };
        apply(pod, operations)
    };
    let explicit = injected("disabled", &with(json!({})));
    assert!(inject(&config("disabled"), &shop(), &explicit).is_ok());
    let by_default = inject(&config("enabled"), &shop(), &explicit).unwrap_err().to_string();
    let mut asks = explicit.clone();
    asks["metadata"]["annotations"]["weft.dev/redirect"] = json!("enabled");
    let by_annotation = inject(&config("disabled"), &shop(), &asks).unwrap_err().to_string();
    for error in [by_default, by_annotation] {
        assert!(error.contains("spec.initContainers") && error.contains("without the redirection"), "{error}");
    }
    let redirected = injected("enabled", &with(json!({})));
    assert!(inject(&config("enabled"), &shop(), &redirected).is_ok());
    // With another container between the two, or the sidecar as another user.
    let mut moved = redirected.clone();
    moved["spec"]["initContainers"].as_array_mut().unwrap().insert(1, json!({"name": "between"}));
    let mut other = redirected;
    other["spec"]["initContainers"][1]["securityContext"]["runAsUser"] = json!(65532);
    for wrong in [moved, other] {
        assert!(inject(&config("enabled"), &shop(), &wrong).is_err());
    }
}
