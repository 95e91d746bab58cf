//! What a stream tells its sidecar of who may call.

use std::{net::IpAddr, sync::Arc};

use tokio::sync::watch;
use weft_mesh::names::ServiceName;

use crate::rules::{Access, InForce, Listens, Rules, Said, Taking};

/// The rules, and what the sidecar was told of them.
pub(super) struct Telling {
    rules: watch::Receiver<Arc<InForce>>,
    listens: Listens,
    /// Whose rules hold for it. On Kubernetes: the last Services that the pod was seen to back. A pod that backs none any more
    /// goes on with the calls that it has, by the same rules.
    services: Vec<ServiceName>,
    told: Option<Access>,
}

/// The sidecar whose rules are asked for.
pub(super) enum Callee<'a> {
    /// One of this service.
    Service(&'a ServiceName),
    /// On Kubernetes: that of a pod in the namespace of its identity, with the Services that it backs.
    Pod(&'a ServiceName, Vec<ServiceName>),
}

impl Telling {
    /// For the sidecar with this identity on this host.
    pub(super) fn new(rules: &Rules, id: &ServiceName, host: IpAddr) -> Self {
        let listens = rules.listen(id.clone(), host);
        Self { rules: rules.changes(), listens, services: Vec::new(), told: None }
    }

    /// Has to be told what the connection takes of what this tells.
    pub(super) fn taking(&self) -> Taking {
        self.listens.taking()
    }

    /// Waits until the rules have changed: those of any service. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) {
        if self.rules.changed().await.is_err() {
            // They live as long as the control plane.
            std::future::pending::<()>().await;
        }
    }

    /// What to tell the sidecar. `None` if it was told the same before.
    pub(super) fn news(&mut self, callee: Callee<'_>) -> Option<Said> {
        let (access, version) = self.now(callee);
        if self.told.as_ref() == Some(&access) {
            self.listens.knows(&self.services, version);
            return None;
        }
        Some(self.say(access, version))
    }

    /// What holds for the sidecar, whatever it was told before.
    pub(super) fn again(&mut self, callee: Callee<'_>) -> Said {
        let (access, version) = self.now(callee);
        self.say(access, version)
    }

    fn say(&mut self, access: Access, version: u64) -> Said {
        let access = self.told.insert(access).clone();
        self.listens.is_told(&self.services, version, access)
    }

    /// What holds, by which version of the rules.
    fn now(&mut self, callee: Callee<'_>) -> (Access, u64) {
        let rules = self.rules.borrow_and_update();
        let access = match callee {
            Callee::Service(service) => {
                self.services = vec![service.clone()];
                rules.of_service(service)
            }
            Callee::Pod(id, services) => {
                if !services.is_empty() {
                    self.services = services;
                }
                rules.of_pod(id.namespace(), &self.services)
            }
        };
        (access, rules.version())
    }
}

#[cfg(test)]
mod tests {
    use weft_mesh::policy::MeshRules;

    use super::*;
    use crate::rules::Rules;

    fn name(text: &str) -> ServiceName {
        ServiceName::parse(text).unwrap()
    }

    fn set(rules: &Rules, text: &str) {
        assert!(rules.set(MeshRules::parse("access.yaml", text).unwrap().into()));
    }

    /// Otherwise whoever may write a rule of its own has all sidecars of the mesh told something, as often as it likes.
    #[test]
    fn a_sidecar_hears_only_of_its_own_rules() {
        let rules = Rules::new(None).unwrap();
        let mut telling = Telling::new(&rules, &name("account.shop"), [10, 0, 0, 1].into());
        let (web, other) = (name("web.shop"), name("other.data"));
        assert!(telling.news(Callee::Service(&web)).is_some(), "it has heard nothing yet");
        set(&rules, "services: { other.data: [any] }");
        assert_eq!(telling.news(Callee::Service(&web)), None);
        set(&rules, "services: { other.data: [any], web.shop: [users] }");
        assert!(telling.news(Callee::Service(&web)).is_some());
        telling.again(Callee::Service(&other));
        assert_eq!(telling.news(Callee::Service(&other)), None);
    }

    fn allowed(said: &Said) -> &[String] {
        said.access.service.as_ref().unwrap().rule.as_ref().unwrap().callers.written()
    }

    #[test]
    fn a_pod_that_backs_nothing_any_more_keeps_the_rules_that_it_had() {
        let rules = Rules::new(None).unwrap();
        set(&rules, "services: { web.shop: [users] }");
        let mut telling = Telling::new(&rules, &name("account.shop"), [10, 0, 0, 1].into());
        let id = name("account.shop");
        let pod = |services: &[&str]| Callee::Pod(&id, services.iter().map(|text| name(text)).collect());
        assert_eq!(allowed(&telling.again(pod(&[]))), ["nobody"]);
        assert_eq!(allowed(&telling.news(pod(&["web.shop"])).unwrap()), ["users"]);
        assert_eq!(telling.news(pod(&[])), None);
        set(&rules, "services: { web.shop: [ops] }");
        assert_eq!(allowed(&telling.news(pod(&[])).unwrap()), ["ops"]);
    }
}
