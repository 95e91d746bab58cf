//! The pods: which should have a sidecar and have none, which have an old one, and which are not ready.

use std::collections::BTreeMap;

use weft_control::kubernetes::{inject::Reason, names::LABEL_INJECT};

use super::super::{
    finding::{Finding, Findings},
    pods::{Pod, Sidecar},
};

const CHECK: &str = "pods";

/// `version` is the control plane's.
pub(super) fn check(pods: &[Pod], version: Option<&str>, enabled: &[&str], findings: &mut Findings) {
    let (mut with_sidecar, mut lacking, mut refused, mut never) = (0, Vec::new(), Vec::new(), Vec::new());
    let (mut other_version, mut not_ready) = (Vec::new(), Vec::new());
    let mut left_alone: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods {
        let name = pod.full_name();
        match &pod.sidecar {
            Sidecar::Has(of) => {
                with_sidecar += 1;
                if version.is_some_and(|version| version != of) {
                    other_version.push(format!("{name}: {of}"));
                }
                if let Some(why) = &pod.not_ready {
                    not_ready.push(format!("{name}: {why}"));
                }
            }
            Sidecar::Lacks => lacking.push(name),
            Sidecar::Refused(why) => refused.push(format!("{name}: {why}")),
            Sidecar::NeverAsked => never.push(name),
            Sidecar::LeftAlone(Reason::Disabled) if !enabled.contains(&pod.namespace.as_str()) => {}
            Sidecar::LeftAlone(reason) if reason.is_refusal() || *reason == Reason::Disabled => {
                left_alone.entry(reason.to_string()).or_default().push(name);
            }
            Sidecar::LeftAlone(_) => {}
        }
    }
    let restart = "restart them, for example: kubectl -n NAMESPACE rollout restart deployment";
    if with_sidecar == 0 && lacking.is_empty() {
        let found =
            format!("no pod has a sidecar; new ones get it with: kubectl label namespace NAME {LABEL_INJECT}=enabled");
        findings.add(Finding::note(CHECK, found));
    } else if lacking.is_empty() {
        findings.add(Finding::good(CHECK, format!("{with_sidecar} pods have a sidecar, and none lacks one")));
    } else {
        let found =
            "these pods have no sidecar, although a label asks for it: they were made before the label or the webhook";
        findings.add(Finding::error(CHECK, found, restart).about(lacking));
    }
    if !refused.is_empty() {
        let found = "these pods have no sidecar, and would be refused if they were made today";
        findings.add(Finding::error(CHECK, found, "correct what is named, then restart them").about(refused));
    }
    for (reason, names) in left_alone {
        findings.add(Finding::note(CHECK, format!("left alone: {reason}")).about(names));
    }
    if !never.is_empty() {
        let found = "left alone: the webhook is never asked about pods of this namespace";
        findings.add(Finding::note(CHECK, found).about(never));
    }
    if !other_version.is_empty() {
        let found =
            format!("these sidecars have another version than the control plane ({})", version.unwrap_or_default());
        findings.add(Finding::warning("sidecar-version", found, restart).about(other_version));
    }
    if !not_ready.is_empty() {
        let to_do = "kubectl -n NAMESPACE describe pod NAME; kubectl -n NAMESPACE logs NAME -c weft-sidecar";
        findings.add(Finding::warning("ready", "these pods with a sidecar are not ready", to_do).about(not_ready));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::finding::Level, *};

    fn pod(name: &str, sidecar: Sidecar) -> Pod {
        let (namespace, account) = ("shop".to_owned(), "a".to_owned());
        Pod { namespace, name: name.to_owned(), ip: None, account, sidecar, not_ready: None, port: None }
    }

    fn found(pods: &[Pod]) -> Vec<(Level, String)> {
        let mut findings = Findings::default();
        check(pods, Some("2.0.0"), &["shop"], &mut findings);
        findings.0.into_iter().map(|finding| (finding.level, finding.objects.join(" "))).collect()
    }

    #[test]
    fn each_kind_of_pod_has_its_finding() {
        let has = |version: &str| Sidecar::Has(version.to_owned());
        assert_eq!(found(&[pod("a", has("2.0.0"))]), [(Level::Good, String::new())]);
        assert_eq!(found(&[]), [(Level::Note, String::new())]);
        assert_eq!(found(&[pod("a", has("2.0.0")), pod("b", Sidecar::Lacks)]), [(Level::Error, "shop/b".to_owned())]);
        let old = found(&[pod("a", has("1.9.0"))]);
        assert_eq!(old[1], (Level::Warning, "shop/a: 1.9.0".to_owned()));
        let waits = Pod { not_ready: Some("it waits".to_owned()), ..pod("a", has("2.0.0")) };
        assert_eq!(found(&[waits])[1], (Level::Warning, "shop/a: it waits".to_owned()));
        let host = pod("h", Sidecar::LeftAlone(Reason::HostNetwork));
        let nobody_asked = pod("n", Sidecar::LeftAlone(Reason::NotEnabled));
        let all = [pod("a", has("2.0.0")), host, nobody_asked, pod("r", Sidecar::Refused("why".to_owned()))];
        let told = [(Level::Error, "shop/r: why".to_owned()), (Level::Note, "shop/h".to_owned())];
        assert_eq!(found(&all)[1..], told);
    }
}
