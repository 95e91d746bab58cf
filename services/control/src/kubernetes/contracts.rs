//! Which Services implement which contracts, as the owners of namespaces say: by the annotation `weft.dev/contracts` of a
//! Service. It decides within the Service's own namespace only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_mesh::names::{ServiceName, is_contract_name, is_grpcs_own, shown};

/// The namespace and name of a Service.
type Key = (String, String);

/// The most contracts that one Service may name.
pub const MOST: usize = 64;
/// How many contracts count that the Services of one namespace name. One that several of them name counts each time:
/// otherwise there would be no limit to what is read.
pub const MOST_OF_NAMESPACE: usize = 1_000;

/// Reads the value of the annotation: names of contracts with commas between them.
///
/// # Errors
/// What was found, and what is allowed.
pub fn read(text: &str) -> Result<BTreeSet<String>, String> {
    let allowed = "the full names of protobuf services with commas between them, as shop.users.v1.Users";
    let mut contracts = BTreeSet::new();
    for name in text.split(',').map(str::trim) {
        if !is_contract_name(name) {
            return Err(format!("found the text {:?}; allowed: {allowed}", shown(name)));
        }
        if is_grpcs_own(name) {
            return Err(format!("found {name}, which belongs to no service; allowed: contracts of your own"));
        }
        contracts.insert(name.to_owned());
        if contracts.len() > MOST {
            return Err(format!("found more than {MOST} contracts; allowed: at most {MOST}"));
        }
    }
    Ok(contracts)
}

/// What a Service says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// When the Service was made, in seconds since 1970.
    pub(crate) created: i64,
    pub(crate) contracts: BTreeSet<String>,
}

/// The Services of a namespace by the contracts that they have.
pub(crate) type Chosen = BTreeMap<String, ServiceName>;

/// What all Services say.
#[derive(Debug, Default)]
pub(crate) struct Annotated {
    services: BTreeMap<Key, Arc<Named>>,
    /// The namespaces that may say something else than before.
    changed: BTreeSet<String>,
}

impl Annotated {
    /// A Service names these contracts, or none.
    pub(crate) fn set(&mut self, key: &Key, named: Option<&Arc<Named>>) {
        let before = match named {
            // The same `Arc` as elsewhere, even if it says the same as before.
            Some(named) => self.services.insert(key.clone(), Arc::clone(named)),
            None => self.services.remove(key),
        };
        if before.as_ref() != named {
            self.changed.insert(key.0.clone());
        }
    }

    /// Whether [`Self::take`] has something to say.
    pub(crate) fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// What each namespace says that may say something else than at the last call.
    pub(crate) fn take(&mut self) -> Vec<(String, Chosen)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed
            .map(|namespace| {
                let chosen = self.of_namespace(&namespace);
                (namespace, chosen)
            })
            .collect()
    }

    /// Of two Services that name the same contract, the older one has it.
    fn of_namespace(&self, namespace: &str) -> Chosen {
        let from = (namespace.to_owned(), String::new());
        let of_it = self.services.range(from..).take_while(|(key, _)| key.0 == namespace);
        let mut by_age: Vec<(i64, &str, &BTreeSet<String>)> =
            of_it.map(|((_, name), named)| (named.created, name.as_str(), &named.contracts)).collect();
        by_age.sort_unstable();
        let mut chosen = Chosen::new();
        let named =
            by_age.iter().flat_map(|(_, name, contracts)| contracts.iter().map(move |contract| (name, contract)));
        for (name, contract) in named.take(MOST_OF_NAMESPACE) {
            if !chosen.contains_key(contract)
                && let Ok(service) = ServiceName::new(name, namespace)
            {
                chosen.insert(contract.clone(), service);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(created: i64, contracts: &str) -> Arc<Named> {
        Arc::new(Named { created, contracts: read(contracts).unwrap() })
    }

    fn key(namespace: &str, name: &str) -> Key {
        (namespace.to_owned(), name.to_owned())
    }

    fn shown_of(chosen: &Chosen) -> Vec<String> {
        chosen.iter().map(|(contract, service)| format!("{contract} {service}")).collect()
    }

    #[test]
    fn the_annotation_names_contracts() {
        assert_eq!(read("b.C, a.B,b.C").unwrap().into_iter().collect::<Vec<_>>(), ["a.B", "b.C"]);
        let many = |count: usize| (0..count).map(|number| format!("a.S{number}")).collect::<Vec<_>>().join(",");
        assert_eq!(read(&many(MOST)).unwrap().len(), MOST);
        for (text, why) in [
            ("", "found the text \"\"; allowed: the full names of protobuf services"),
            ("a.B,", "found the text \"\"; allowed: "),
            ("a B", "found the text \"a B\"; allowed: "),
            ("a.B;c.D", "found the text \"a.B;c.D\"; allowed: "),
            ("10.0.0.1:80", "found the text \"10.0.0.1:80\"; allowed: "),
            ("grpc.health.v1.Health", "found grpc.health.v1.Health, which belongs to no service"),
            (&many(MOST + 1), "found more than 64 contracts; allowed: at most 64"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.starts_with(why), "{told}");
        }
        assert!(read(&"x".repeat(200_000)).unwrap_err().len() < 1_000);
    }

    #[test]
    fn of_two_services_the_older_one_has_a_contract() {
        let mut all = Annotated::default();
        all.set(&key("shop", "b"), Some(&named(1, "x.X,x.Y")));
        all.set(&key("shop", "a"), Some(&named(2, "x.X,x.Z")));
        all.set(&key("shop", "c"), Some(&named(1, "x.X")));
        all.set(&key("shopping", "a"), Some(&named(0, "x.X")));
        let said = all.take();
        assert_eq!(said.iter().map(|(namespace, _)| namespace.as_str()).collect::<Vec<_>>(), ["shop", "shopping"]);
        assert_eq!(shown_of(&said[0].1), ["x.X b.shop", "x.Y b.shop", "x.Z a.shop"]);
        assert_eq!(shown_of(&said[1].1), ["x.X a.shopping"]);
        // Only what may be different is said again.
        all.set(&key("shop", "a"), Some(&named(2, "x.X,x.Z")));
        all.set(&key("shop", "none"), None);
        assert!(!all.has_changed() && all.take().is_empty());
        all.set(&key("shop", "b"), None);
        assert_eq!(shown_of(&all.take()[0].1), ["x.X c.shop", "x.Z a.shop"]);
        all.set(&key("shopping", "a"), None);
        assert_eq!(all.take(), [("shopping".to_owned(), Chosen::new())]);
    }

    #[test]
    fn a_namespace_says_so_much_and_no_more() {
        let mut all = Annotated::default();
        for service in 0..100 {
            let contracts: Vec<String> = (0..MOST).map(|number| format!("a.S{service}x{number}")).collect();
            all.set(&key("shop", &format!("s{service}")), Some(&named(service, &contracts.join(","))));
        }
        let chosen = &all.take()[0].1;
        assert_eq!(chosen.len(), MOST_OF_NAMESPACE);
        assert!(chosen.contains_key("a.S0x0"), "the oldest come first");
        // What several Services name counts each time.
        let same: Vec<String> = (0..MOST).map(|number| format!("a.S{number}")).collect();
        for service in 0..100 {
            let also = if service == 99 { "z.Last".to_owned() } else { same.join(",") };
            all.set(&key("same", &format!("s{service}")), Some(&named(service, &also)));
        }
        assert_eq!(all.take()[0].1.len(), MOST, "no more is read than that");
        // What says the same is kept once, as it is elsewhere.
        let (old, new) = (named(1, "a.B"), named(1, "a.B"));
        all.set(&key("one", "a"), Some(&old));
        all.set(&key("one", "a"), Some(&new));
        assert_eq!((Arc::strong_count(&old), Arc::strong_count(&new)), (1, 2));
    }
}
