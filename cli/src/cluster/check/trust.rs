//! The roots that the mesh trusts: how long they are good, and whether all namespaces have them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use weft_control::kubernetes::names::{CONFIG_MAP_TRUST, CONTROL, NAMESPACE, TRUST_BUNDLE};
use weft_mesh::tls::{TrustBundle, expiry};

use super::{
    super::{
        api::{Api, escaped},
        finding::{Finding, Findings},
        objects::ConfigMap,
    },
    unread,
};

const CHECK: &str = "trust";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// From when on the end of a root is a warning, and an error, in days.
const WARNED: u64 = 60;
const LATE: u64 = 7;

/// `bundle` is what the API server trusts. `enabled` are the namespaces whose pods get sidecars.
pub(super) async fn check(api: &Api, bundle: Option<&str>, enabled: &[&str], findings: &mut Findings) {
    let query = format!("&fieldSelector={}", escaped(&format!("metadata.name={CONFIG_MAP_TRUST}")));
    let listed = api.list("/api/v1/configmaps", &query, |map: ConfigMap| {
        let bundle = map.data.get(TRUST_BUNDLE).cloned().unwrap_or_default();
        Some((map.metadata.namespace, bundle))
    });
    let found: BTreeMap<String, String> = match listed.await {
        Ok(listed) => listed.items.into_iter().collect(),
        Err(trouble) => {
            findings.add(unread(CHECK, "list configmaps in all namespaces", &trouble));
            if let Some(bundle) = bundle {
                findings.add(of_expiry(bundle, SystemTime::now()));
            }
            return;
        }
    };
    let bundle = bundle.or_else(|| enabled.iter().find_map(|namespace| found.get(*namespace)).map(String::as_str));
    let Some(bundle) = bundle else { return };
    findings.add(of_expiry(bundle, SystemTime::now()));
    of_namespaces(bundle, enabled, &found).into_iter().for_each(|finding| findings.add(finding));
}

/// How long the first of the roots is good.
fn of_expiry(bundle: &str, now: SystemTime) -> Finding {
    let ends = TrustBundle::from_pem(bundle.as_bytes()).map_err(|error| error.to_string()).and_then(|bundle| {
        let roots: Vec<&[u8]> = bundle.der().collect();
        expiry(&roots).map_err(|error| error.to_string())
    });
    let ends = match ends {
        Ok(ends) => ends,
        Err(error) => {
            let to_do = format!("see kubectl -n {NAMESPACE} logs deployment/{CONTROL}");
            return Finding::error(CHECK, format!("the roots of the mesh can't be read: {error}"), to_do);
        }
    };
    let days = ends.duration_since(now).map(|left| left.as_secs() / DAY.as_secs());
    let to_do = "plan an installation with a new CA before that: docs/kubernetes.md, `Uninstall`";
    match days {
        Ok(days) if days >= WARNED => Finding::good(CHECK, format!("the root of the mesh is good for {days} days")),
        Ok(days) if days >= LATE => {
            Finding::warning(CHECK, format!("a root of the mesh expires in {days} days"), to_do)
        }
        Ok(days) => Finding::error(CHECK, format!("a root of the mesh expires in {days} days"), to_do),
        Err(_) => Finding::error(CHECK, "a root of the mesh has expired", to_do),
    }
}

/// Whether each namespace with the label has the bundle.
fn of_namespaces(bundle: &str, enabled: &[&str], found: &BTreeMap<String, String>) -> Vec<Finding> {
    let (mut lacking, mut other) = (Vec::new(), Vec::new());
    let has_other = |text: &String| text.trim() != bundle.trim();
    for namespace in enabled.iter().copied() {
        match found.get(namespace) {
            None => lacking.push(namespace.to_owned()),
            Some(text) if has_other(text) => other.push(namespace.to_owned()),
            Some(_) => {}
        }
    }
    let elsewhere = found.iter().filter(|(namespace, text)| !enabled.contains(&namespace.as_str()) && has_other(text));
    let elsewhere: Vec<String> = elsewhere.map(|(namespace, _)| namespace.clone()).collect();
    let logs = format!("see why the control plane does not write it: kubectl -n {NAMESPACE} logs deployment/{CONTROL}");
    let mut findings = Vec::new();
    let lacking_or_other = lacking.len() + other.len();
    if !lacking.is_empty() {
        let found =
            format!("namespaces with the label have no ConfigMap {CONFIG_MAP_TRUST}, so their new pods wait for it");
        findings.push(Finding::error(CHECK, found, logs.clone()).about(lacking));
    }
    if !other.is_empty() {
        let found = format!("namespaces have other roots in their ConfigMap {CONFIG_MAP_TRUST} than the webhook");
        let to_do = format!("wait a minute, as the control plane writes it again; if it stays, {logs}");
        findings.push(Finding::error(CHECK, found, to_do).about(other));
    }
    if !elsewhere.is_empty() {
        let found = format!(
            "namespaces without the label have other roots in a ConfigMap {CONFIG_MAP_TRUST}: it is left over from an earlier \
             mesh, unless a pod there has the label"
        );
        findings.push(Finding::note(CHECK, found).about(elsewhere));
    }
    if lacking_or_other == 0 && !enabled.is_empty() {
        findings.push(Finding::good(CHECK, format!("all {} namespaces with the label have it", enabled.len())));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::super::finding::Level, *};

    #[test]
    fn each_namespace_has_the_same_roots() {
        let found = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let good = of_namespaces("A\n", &["shop", "till"], &found(&[("shop", "A"), ("till", "A\n"), ("x", "A")]));
        assert_eq!(good.iter().map(|finding| finding.level).collect::<Vec<_>>(), [Level::Good]);
        let bad = of_namespaces("A", &["shop", "till"], &found(&[("till", "B"), ("x", "C")]));
        let about: Vec<_> = bad.iter().map(|finding| (finding.level, finding.objects.join(" "))).collect();
        let expected = [(Level::Error, "shop"), (Level::Error, "till"), (Level::Note, "x")];
        assert_eq!(about, expected.map(|(level, names)| (level, names.to_owned())));
        assert!(of_namespaces("A", &[], &BTreeMap::new()).is_empty());
    }

    #[test]
    fn a_root_that_ends_soon_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let ca = weft_control::ca::Ca::open_or_create(dir.path(), &"weft.test".parse().unwrap()).unwrap();
        drop(ca);
        let pem = std::fs::read_to_string(dir.path().join("ca.pem")).unwrap();
        let in_days = |days: u32| of_expiry(&pem, SystemTime::now() + days * DAY).level;
        assert_eq!(in_days(0), Level::Good);
        assert_eq!(in_days(3_650 - 30), Level::Warning);
        assert_eq!(in_days(3_650 - 3), Level::Error);
        assert_eq!(in_days(3_651), Level::Error);
        assert_eq!(of_expiry("x", SystemTime::now()).level, Level::Error);
    }
}
