//! The annotations by which Services say which contracts they have: those that have no effect.

use std::collections::{BTreeMap, HashMap};

use weft_control::kubernetes::{
    contracts::{self, MOST_OF_NAMESPACE},
    names::{MESH_DEFAULTS, POLICY_GROUP, POLICY_VERSION, annotation},
};

use super::{
    super::{
        api::Api,
        finding::{Finding, Findings},
        objects::{AnnotatedMeta, AnnotatedService, Policy},
    },
    cut, unread,
};

const CHECK: &str = "contracts";

/// The Services that have these contracts, as MeshDefaults says.
type Owners = BTreeMap<String, String>;

pub(super) async fn check(api: &Api, findings: &mut Findings) {
    let annotated = api.list("/api/v1/services", "", |AnnotatedService { mut metadata }: AnnotatedService| {
        metadata.annotations.retain(|key, _| key == annotation::CONTRACTS);
        (!metadata.annotations.is_empty()).then_some(metadata)
    });
    let listed = match annotated.await {
        Ok(listed) => listed,
        Err(trouble) => return findings.add(unread(CHECK, "list services in all namespaces", &trouble)),
    };
    if listed.is_cut {
        findings.add(cut(CHECK));
    }
    if listed.items.is_empty() {
        return;
    }
    let path = format!("/apis/{POLICY_GROUP}/{POLICY_VERSION}/{}", MESH_DEFAULTS.1);
    let defaults = api.list(&path, "", |policy: Policy| (policy.metadata.name == "default").then(|| owners(&policy)));
    // That it can't be read is told with the policies.
    let owners = defaults.await.ok().and_then(|mut listed| listed.items.pop()).unwrap_or_default();
    of_annotations(listed.items, &owners).into_iter().for_each(|finding| findings.add(finding));
}

fn owners(defaults: &Policy) -> Owners {
    let contracts = defaults.spec["contracts"].as_object().into_iter().flatten();
    contracts.filter_map(|(contract, owner)| Some((contract.clone(), owner.as_str()?.to_owned()))).collect()
}

fn of_annotations(mut services: Vec<AnnotatedMeta>, by_mesh: &Owners) -> Option<Finding> {
    // The time is in whole seconds. Of two Services of the same second, the name decides.
    let age = |of: &AnnotatedMeta| (of.namespace.clone(), of.creation_timestamp.clone(), of.name.clone());
    services.sort_by_cached_key(age);
    let mut wrong = Vec::new();
    let mut owners: HashMap<(&str, String), &str> = HashMap::new();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for AnnotatedMeta { namespace, name, annotations, .. } in &services {
        let Some(text) = annotations.get(annotation::CONTRACTS) else { continue };
        let contracts = match contracts::read(text) {
            Ok(contracts) => contracts,
            Err(why) => {
                wrong.push(format!("{namespace}/{name}: {why}"));
                continue;
            }
        };
        let count = counts.entry(namespace).or_default();
        for contract in contracts {
            if *count >= MOST_OF_NAMESPACE {
                let why = "all from there on come after the first";
                wrong.push(format!("{namespace}/{name}: {contract}: {why} {MOST_OF_NAMESPACE} of the namespace"));
                break;
            }
            *count += 1;
            let older = *owners.entry((namespace.as_str(), contract.clone())).or_insert(name);
            match by_mesh.get(&contract) {
                Some(owner) if *owner != format!("{name}.{namespace}") => {
                    wrong.push(format!("{namespace}/{name}: {contract} is {owner}'s, as MeshDefaults says"));
                }
                None if older != name => {
                    wrong.push(format!(
                        "{namespace}/{name}: {contract} is {older}'s, which names it too and comes first"
                    ));
                }
                _ => {}
            }
        }
    }
    let found = format!("the annotations {} of these Services have no effect, or not all", annotation::CONTRACTS);
    let to_do = "name full names of contracts with commas between them, each in one Service of the namespace";
    (!wrong.is_empty()).then(|| Finding::warning(CHECK, found, to_do).about(wrong))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::super::{finding::Level, tests},
        *,
    };

    fn service(name: &str, created: &str, text: &str) -> AnnotatedMeta {
        AnnotatedMeta {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            annotations: BTreeMap::from([(annotation::CONTRACTS.to_owned(), text.to_owned())]),
            creation_timestamp: created.to_owned(),
        }
    }

    const OLD: &str = "2026-01-01T00:00:00Z";
    const NEW: &str = "2026-11-01T00:00:00Z";

    fn told(services: Vec<AnnotatedMeta>, by_mesh: &Owners) -> Vec<String> {
        of_annotations(services, by_mesh).map(|finding| finding.objects).unwrap_or_default()
    }

    #[test]
    fn an_annotation_without_effect_is_told() {
        let none = Owners::new();
        assert_eq!(of_annotations(vec![service("a", NEW, "a.B"), service("b", OLD, "a.C")], &none), None);
        let all = vec![service("a", NEW, "a.B,a.D"), service("b", OLD, "a.B"), service("c", OLD, "a b")];
        let found = of_annotations(all, &none).unwrap();
        assert_eq!((found.check, found.level, found.objects.len()), ("contracts", Level::Warning, 2));
        assert!(found.objects[1].starts_with("shop/c: found the text \"a b\"; allowed: "), "{found:?}");
        assert_eq!(found.objects[0], "shop/a: a.B is b's, which names it too and comes first");
        let elsewhere = AnnotatedMeta { namespace: "other".to_owned(), ..service("a", NEW, "a.B") };
        assert_eq!(of_annotations(vec![elsewhere, service("b", OLD, "a.B")], &none), None);
    }

    #[test]
    fn what_mesh_defaults_give_to_another_is_told() {
        let by_mesh = Owners::from([("a.B".to_owned(), "a.shop".to_owned()), ("a.C".to_owned(), "c.other".to_owned())]);
        let all = vec![service("a", NEW, "a.B,a.C"), service("b", OLD, "a.B")];
        let expected =
            ["shop/a: a.C is c.other's, as MeshDefaults says", "shop/b: a.B is a.shop's, as MeshDefaults says"];
        assert_eq!(told(all, &by_mesh), expected);
    }

    #[test]
    fn what_comes_after_the_first_of_a_namespace_is_told() {
        let many =
            |from: usize| (from..from + 50).map(|number| format!("a.S{number:04}")).collect::<Vec<_>>().join(",");
        let of = |count: usize| -> Vec<_> {
            (0..count).map(|number| service(&format!("s{number:02}"), OLD, &many(number * 50))).collect()
        };
        assert!(told(of(20), &Owners::new()).is_empty());
        let found = told(of(22), &Owners::new());
        let why = "all from there on come after the first 1000 of the namespace";
        assert_eq!(found, [format!("shop/s20: a.S1000: {why}"), format!("shop/s21: a.S1050: {why}")]);
    }

    #[tokio::test]
    async fn services_and_mesh_defaults_are_read() {
        let annotated = |name: &str| {
            let annotations = json!({"weft.dev/contracts": "a.B", "other": "x"});
            json!({"metadata": {"name": name, "namespace": "shop", "annotations": annotations}})
        };
        let items = [annotated("a"), json!({"metadata": {"name": "b", "namespace": "shop"}})];
        let defaults = json!({"metadata": {"name": "default"}, "spec": {"contracts": {"a.B": "z.other"}}});
        let server = tests::api(move |request| match request.uri().path() {
            "/api/v1/services" => Some((200, json!({"items": items}))),
            "/apis/weft.dev/v1alpha1/meshdefaults" => Some((200, json!({"items": [defaults]}))),
            _ => Some((404, json!({"message": "there is none"}))),
        });
        let mut findings = Findings::default();
        check(&server, &mut findings).await;
        assert_eq!(findings.0.len(), 1);
        assert_eq!(findings.0[0].objects, ["shop/a: a.B is z.other's, as MeshDefaults says"]);
    }
}
