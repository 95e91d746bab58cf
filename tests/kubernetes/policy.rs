//! Who may call, as custom resources.

use serde_json::{Value, json};

use super::{LIMIT, cluster::Cluster, shop, whole_shop};

const LIST: [&str; 3] = ["call", "shop.notifications.v1.Notifications/List", "{}"];

/// An AccessPolicy of the namespace `shop`.
fn policy(name: &str, spec: &Value) -> String {
    object("AccessPolicy", name, spec)
}

fn object(kind: &str, name: &str, spec: &Value) -> String {
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    .to_string()
}

fn defaults(access: &Value) -> String {
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshDefaults", "metadata": {"name": "default"},
        "spec": {"access": access}})
    .to_string()
}

impl Cluster {
    /// Waits until the condition `Accepted` of a policy is this, with this reason. Returns its message.
    fn accepted(&self, policy: &str, status: &str, reason: &str) -> String {
        let path = "jsonpath={.status.conditions[?(@.type==\"Accepted\")]}";
        let mut message = String::new();
        self.until(&format!("{policy} is {status} {reason}"), LIMIT, || {
            let told = self.kubectl(&["-n", "shop", "get", policy, "-o", path]);
            let condition: Value = serde_json::from_str(&told).map_err(|error| format!("{error}: {told}"))?;
            message = condition["message"].as_str().unwrap_or_default().to_owned();
            if condition["status"] == status && condition["reason"] == reason { Ok(()) } else { Err(told) }
        });
        message
    }

    /// Waits until a policy holds on so many sidecars, and all of them have been told.
    fn holds_on(&self, policy: &str, sidecars: u64) {
        let path = "jsonpath={.status}";
        self.until(&format!("{policy} holds on {sidecars} sidecars"), LIMIT, || {
            let told = self.kubectl(&["-n", "shop", "get", policy, "-o", path]);
            let status: Value = serde_json::from_str(&told).map_err(|error| format!("{error}: {told}"))?;
            let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let is_programmed = |condition: &&Value| condition["type"] == "Programmed" && condition["status"] == "True";
            let is_so = conditions.iter().any(|condition| is_programmed(&condition));
            match is_so && status["sidecars"] == json!({"told": sidecars, "of": sidecars}) {
                true => Ok(()),
                false => Err(told),
            }
        });
    }

    /// The reason of the condition `Programmed`, when that is this.
    fn programmed(&self, policy: &str, reason: &str) {
        let path = "jsonpath={.status.conditions[?(@.type==\"Programmed\")].reason}";
        self.until(&format!("{policy} is {reason}"), LIMIT, || {
            let told = self.kubectl(&["-n", "shop", "get", policy, "-o", path]);
            if told == reason { Ok(()) } else { Err(told) }
        });
    }

    /// Waits until a call is refused by a rule of this kind, which its error names.
    fn refused(&self, account: &str, call: &[&str], rule: &str) {
        self.until(&format!("{account} is refused"), LIMIT, || match self.call("shop", account, call) {
            Err(told) if told.contains("PERMISSION_DENIED") && told.contains(rule) => Ok(()),
            told => Err(format!("{told:?}")),
        });
    }

    /// Why the API server does not take an object.
    fn refuses(&self, manifest: &str) -> String {
        let args = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
        self.try_kubectl(&args, manifest).expect_err("it is wrong")
    }

    fn deleted(&self, policies: &[&str]) {
        self.kubectl(&[&["-n", "shop", "delete", "--ignore-not-found"], policies].concat());
    }
}

#[test]
fn a_policy_takes_the_place_of_the_contract_until_it_is_deleted() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let all = ["accesspolicy/notifications", "accesspolicy/second", "accesspolicy/wrong"];
    cluster.deleted(&all);
    cluster.call("shop", "keyboard", &LIST).expect("the contract allows it");
    cluster.apply(&policy("notifications", &json!({"service": "notifications", "allow": ["users", "orders"]})));
    cluster.accepted("accesspolicy/notifications", "True", "Accepted");
    cluster.refused("keyboard", &LIST, "the mesh's rule for the service (AccessPolicy shop/notifications)");
    // Those whom it names may call: `users` tells of its new user.
    let create = ["call", "shop.users.v1.Users/Create", r#"{"name":"Grace","email":"grace@example.com"}"#];
    cluster.call("shop", "keyboard", &create).expect("users may call notifications");

    // A younger one for the same Service has no effect, and says whose it is.
    cluster.apply(&policy("second", &json!({"service": "notifications", "allow": ["any"]})));
    let why = cluster.accepted("accesspolicy/second", "False", "Conflicted");
    assert!(why.contains("AccessPolicy shop/notifications"), "{why}");
    cluster.refused("keyboard", &LIST, "the mesh's rule for the service");
    let table = cluster.kubectl(&["-n", "shop", "get", "wap"]);
    assert!(table.contains("Conflicted") && table.contains("ACCEPTED") && table.contains("TOLD"), "{table}");
    // It is on the sidecars of the pods of its Service: there is one.
    cluster.holds_on("accesspolicy/notifications", 1);

    // What the schema can't refuse is told, and opens nothing: the last version stays.
    cluster.apply(&policy("notifications", &json!({"service": "notifications", "allow": ["unauthenticated"]})));
    let why = cluster.accepted("accesspolicy/notifications", "False", "Invalid");
    assert!(why.contains("spec.allow: found `unauthenticated`") && why.contains("before"), "{why}");
    cluster.programmed("accesspolicy/notifications", "NotAccepted");
    cluster.refused("keyboard", &LIST, "the mesh's rule for the service");

    // Of those that are left, the oldest holds.
    cluster.deleted(&["accesspolicy/notifications"]);
    cluster.accepted("accesspolicy/second", "True", "Accepted");
    cluster.deleted(&all);
    cluster.until("the contract holds again", LIMIT, || cluster.call("shop", "keyboard", &LIST).map(drop));
    cluster.refused("stranger", &LIST, "the option `access` of the protobuf service");
}

#[test]
fn the_api_server_refuses_what_can_be_no_policy() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let told = |manifest: &str| cluster.refuses(manifest);
    let many: Vec<String> = (0..201).map(|number| format!("a{number}")).collect();
    for (spec, why) in [
        (json!({}), "either service, with allow or paths, or default"),
        (json!({"service": "web", "default": "deny"}), "either service, with allow or paths, or default"),
        (json!({"service": "web"}), "service stands beside allow, paths, or both"),
        (json!({"default": "deny", "allow": ["web"]}), "allow, audit and paths stand beside service"),
        (json!({"default": "maybe"}), "supported values: \"allow\", \"deny\""),
        (json!({"service": "web", "allow": ["any", "users"]}), "any and nobody stand alone"),
        (json!({"service": "web", "allow": ["users", "users"]}), "duplicate entries"),
        (json!({"service": "web", "allow": ["Users"]}), "spec.allow[0]"),
        (json!({"service": "web.data", "allow": ["users"]}), "spec.service"),
        (json!({"service": "web", "allow": many}), "must have at most 200 items"),
        (json!({"service": "web", "paths": [{"path": "a", "allow": ["any"]}]}), "spec.paths[0].path"),
        (json!({"service": "web", "alow": ["users"]}), "field not declared in schema"),
    ] {
        let told = told(&policy("wrong", &spec));
        assert!(told.contains(why), "{spec}: {told}");
    }
    let other = defaults(&json!({"default": "deny"})).replace("\"name\":\"default\"", "\"name\":\"other\"");
    assert!(told(&other).contains("the one MeshDefaults has the name default"));
    assert!(told(&defaults(&json!({}))).contains("default, audit, namespaces, or several of them"));
}

/// `web` has no contract, so only the mesh's default says who may call it.
#[test]
fn the_defaults_of_the_mesh_hold_where_there_is_no_rule() {
    let Some(cluster) = shop() else { return };
    let _alone = cluster.alone();
    let call = ["call", "--service", "web", "shop.users.v1.Users/List", "{}"];
    let may = |what: &str| {
        cluster.until(what, LIMIT, || match cluster.call("shop", "keyboard", &call) {
            Err(told) if told.contains("PERMISSION_DENIED") => Err(told),
            _ => Ok(()),
        });
    };
    may("it may call");
    cluster.apply(&defaults(&json!({"default": "deny"})));
    cluster.accepted("meshdefaults/default", "True", "Accepted");
    cluster.refused("keyboard", &call, "the mesh's default (MeshDefaults default)");
    // Contracts hold on.
    cluster.call("shop", "keyboard", &["call", "shop.users.v1.Users/List", "{}"]).expect("the contract allows it");
    // The namespace is open by a policy of its own, until the mesh's owner says otherwise.
    cluster.apply(&policy("open", &json!({"default": "allow"})));
    may("its namespace is open");
    cluster.apply(&defaults(&json!({"default": "deny", "namespaces": {"shop": "deny"}})));
    cluster.accepted("accesspolicy/open", "False", "Conflicted");
    cluster.refused("keyboard", &call, "the namespace's default");
    cluster.deleted(&["accesspolicy/open", "meshdefaults/default"]);
    may("all is as before");
}

#[test]
fn a_method_policy_takes_the_place_of_a_deadline_until_it_is_deleted() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let all = ["methodpolicy/hasty", "methodpolicy/later"];
    cluster.deleted(&all);
    let list = ["call", "shop.users.v1.Users/List", "{}"];
    cluster.call("shop", "keyboard", &list).expect("the contract gives it more");
    // Without a deadline this stream never ends.
    let watch = ["call", "shop.users.v1.Users/Watch", "{}"];
    let method = json!({"method": "shop.users.v1.Users/Watch", "timeout": "1s"});
    cluster.apply(&object("MethodPolicy", "hasty", &json!({"service": "users", "methods": [method]})));
    let message = cluster.accepted("methodpolicy/hasty", "True", "Accepted");
    assert_eq!(message, "it holds for the Service users");
    let told = cluster.call("shop", "keyboard", &watch).expect_err("its time is over");
    assert!(told.contains("DEADLINE_EXCEEDED"), "{told}");
    // A younger one for the same Service waits for its turn.
    cluster.apply(&object("MethodPolicy", "later", &json!({"service": "users", "timeout": "30s"})));
    let message = cluster.accepted("methodpolicy/later", "False", "Conflicted");
    assert_eq!(message, "MethodPolicy shop/hasty is for the Service users too, and is older");
    cluster.deleted(&["methodpolicy/hasty"]);
    cluster.accepted("methodpolicy/later", "True", "Accepted");
    cluster.deleted(&all);
    cluster.until("the contract's deadline holds again", LIMIT, || cluster.call("shop", "keyboard", &list).map(drop));
    for (spec, problem) in [
        (json!({"service": "users"}), "timeout, breaker, fallback, methods, or several of them"),
        (json!({"service": "users", "timeout": "5"}), "spec.timeout"),
        (json!({"service": "users", "breaker": {"probes": 0}}), "spec.breaker.probes"),
        (json!({"service": "users", "breaker": {"failureCodes": ["OK"]}}), "spec.breaker.failureCodes"),
        (json!({"service": "users", "methods": [{"method": "Get", "timeout": "1s"}]}), "spec.methods[0].method"),
        (
            json!({"service": "users", "methods": [{"method": "a.B/C"}]}),
            "method stands beside timeout, hedge, fallback, or several of them",
        ),
        (json!({"service": "users", "fallback": {"service": "users"}}), "the fallback is another service"),
        (json!({"service": "users", "fallback": {}}), "spec.fallback.service"),
        (json!({"service": "users", "fallback": {"answer": "{}"}}), "spec.fallback"),
        (
            json!({"service": "users", "methods": [{"method": "a.B/C", "fallback": {"service": "A"}}]}),
            "spec.methods[0].fallback.service",
        ),
    ] {
        let told = cluster.refuses(&object("MethodPolicy", "wrong", &spec));
        assert!(told.contains(problem), "{spec}: {told}");
    }
}

#[test]
fn a_method_policy_says_on_how_many_sidecars_it_holds() {
    let Some((cluster, _whole)) = whole_shop() else { return };
    let all = ["methodpolicy/called", "methodpolicy/uncalled"];
    cluster.deleted(&all);
    // `users` tells of its new user, so its sidecar follows `notifications` from then on.
    let create = ["call", "shop.users.v1.Users/Create", r#"{"name":"Alan","email":"alan@example.com"}"#];
    cluster.call("shop", "keyboard", &create).expect("users may call notifications");
    cluster.apply(&object("MethodPolicy", "called", &json!({"service": "notifications", "timeout": "30s"})));
    cluster.apply(&object("MethodPolicy", "uncalled", &json!({"service": "nowhere", "timeout": "30s"})));
    cluster.programmed("methodpolicy/called", "Programmed");
    cluster.programmed("methodpolicy/uncalled", "NoSidecars");
    let table = cluster.kubectl(&["-n", "shop", "get", "wmp"]);
    assert!(table.contains("SIDECARS") && table.contains("TOLD"), "{table}");
    cluster.deleted(&all);
}

/// The API server takes times that only Go can read, and anybody may write them. Otherwise the watch of all objects of the kind
/// breaks with one such object, and a control plane that starts anew waits for ever.
#[test]
fn an_object_with_an_odd_time_blinds_nobody() {
    let Some(cluster) = shop() else { return };
    let _alone = cluster.alone();
    let all = ["accesspolicy/odd", "service/odd", "accesspolicy/after"];
    cluster.deleted(&all);
    cluster.apply(&policy("odd", &json!({"service": "nowhere", "allow": ["any"]})));
    cluster.accepted("accesspolicy/odd", "True", "Accepted");
    cluster.apply(
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "odd", "namespace": "shop"},
            "spec": {"ports": [{"port": 80}]}}"#,
    );
    for name in ["accesspolicy/odd", "service/odd"] {
        let found = cluster.kubectl(&["-n", "shop", "get", name, "-o", "json", "--show-managed-fields"]);
        let mut object: Value = serde_json::from_str(&found).expect("it is JSON");
        object["metadata"]["annotations"] = json!({"example.com/odd": "1"});
        let entry = json!({"manager": "x", "operation": "Update", "apiVersion": object["apiVersion"],
            "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:annotations": {"f:example.com/odd": {}}}},
            "time": "9999-12-31T23:59:59Z"});
        object["metadata"]["managedFields"].as_array_mut().expect("it has some").push(entry);
        cluster.try_kubectl(&["replace", "-f", "-"], &object.to_string()).expect("the API server takes it");
    }
    // A control plane that lists all anew can read them.
    cluster.kubectl(&["-n", "weft", "delete", "pod", "-l", "weft.dev/role=leader", "--wait=true"]);
    cluster.apply(&policy("after", &json!({"service": "elsewhere", "allow": ["any"]})));
    cluster.accepted("accesspolicy/after", "True", "Accepted");
    cluster.deleted(&all);
    cluster.until("calls work", LIMIT, || cluster.call("shop", "keyboard", &LIST).map(drop));
}
