//! Names for the callers that a rule allows.

use std::{fmt, str::FromStr};

use crate::{
    identity::{SpiffeId, TrustDomain},
    names::{ServiceName, closest, is_label},
};

/// What a list of callers may have, for messages.
pub(super) const ALLOWED: &str = "the NAME or NAME.NAMESPACE of a service, *.NAMESPACE, a SPIFFE ID, any, nobody";

/// The most names in one list.
const NAMES: usize = 10_000;
/// The most of them that are SPIFFE IDs: each is compared with each caller.
const IDS: usize = 100;
/// The names that mean something else than a service in a list of callers.
pub const RESERVED_CALLERS: [&str; 3] = ["any", "nobody", "unauthenticated"];

/// The identities that may call.
///
/// They are kept so that whether a caller is among them is known without a walk over all names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// As they are written, in this order.
    written: Vec<String>,
    is_any: bool,
    /// Services in the namespace of the service that is called; sorted, as are the next two.
    neighbours: Vec<String>,
    services: Vec<ServiceName>,
    namespaces: Vec<String>,
    ids: Vec<IdPattern>,
}

/// `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME`, where NAMESPACE and NAME may be patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
struct IdPattern {
    trust_domain: TrustDomain,
    namespace: Label,
    name: Label,
}

/// A label, or all that begin with a text: `web-*`, `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Label {
    Is(String),
    BeginsWith(String),
}

impl Label {
    fn matches(&self, label: &str) -> bool {
        match self {
            Self::Is(text) => label == text,
            Self::BeginsWith(text) => label.starts_with(text.as_str()),
        }
    }
}

impl FromStr for Label {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_suffix('*') {
            None if is_label(text) => Ok(Self::Is(text.to_owned())),
            // A label may end where a pattern does: `web-*`.
            Some(begin) if begin.is_empty() || is_label(&format!("{begin}0")) => Ok(Self::BeginsWith(begin.to_owned())),
            _ => Err(()),
        }
    }
}

impl FromStr for IdPattern {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (domain, path) = text.strip_prefix("spiffe://").and_then(|text| text.split_once('/')).ok_or(())?;
        let parts: Vec<&str> = path.split('/').collect();
        let ["ns", namespace, "sa", name] = parts[..] else { return Err(()) };
        let trust_domain = domain.parse().map_err(|_| ())?;
        Ok(Self { trust_domain, namespace: namespace.parse()?, name: name.parse()? })
    }
}

impl Callers {
    /// Reads the names of a list.
    ///
    /// # Errors
    /// What is wrong, with what was found: a list without names, a text of another form, a name that is there twice, or
    /// `any` or `nobody` beside others.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, String> {
        let mut callers = Self::default();
        if names.is_empty() {
            return Err("without a name; write `nobody` if that is meant".to_owned());
        }
        if names.len() > NAMES {
            return Err(format!("{} names; at most {NAMES}", names.len()));
        }
        for name in names.iter().map(AsRef::as_ref) {
            callers.read(name)?;
            callers.written.push(name.to_owned());
            if matches!(name, "any" | "nobody") && names.len() > 1 {
                return Err(format!("`{name}` beside other names; it has to be alone"));
            }
        }
        if callers.ids.len() > IDS {
            return Err(format!("{} SPIFFE IDs; at most {IDS}", callers.ids.len()));
        }
        callers.neighbours.sort_unstable();
        callers.services.sort_unstable();
        callers.namespaces.sort_unstable();
        let mut sorted: Vec<&String> = callers.written.iter().collect();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("`{}` twice", pair[0])),
            None => Ok(callers),
        }
    }

    fn read(&mut self, name: &str) -> Result<(), String> {
        let wrong = || Err(format!("{:?}", crate::names::shown(name)));
        match name {
            "any" => self.is_any = true,
            "nobody" => {}
            "unauthenticated" => {
                return Err("`unauthenticated`, and callers without a certificate are never let in".to_owned());
            }
            _ if name.starts_with("spiffe:") => match name.parse() {
                Ok(pattern) => self.ids.push(pattern),
                Err(()) => return wrong(),
            },
            _ => match name.strip_prefix("*.") {
                Some(namespace) if is_label(namespace) => self.namespaces.push(namespace.to_owned()),
                Some(_) => return wrong(),
                None if is_label(name) => self.neighbours.push(name.to_owned()),
                None => match ServiceName::parse(name) {
                    Ok(service) => self.services.push(service),
                    Err(_) => return wrong(),
                },
            },
        }
        Ok(())
    }

    /// Whether a caller may call a service of the namespace `home`.
    pub fn admit(&self, caller: &SpiffeId, home: &str) -> bool {
        let service = caller.service();
        self.is_any
            || (service.namespace() == home && has(&self.neighbours, service.name()))
            || self.services.binary_search(service).is_ok()
            || has(&self.namespaces, service.namespace())
            || self.ids.iter().any(|pattern| {
                pattern.trust_domain == *caller.trust_domain()
                    && pattern.namespace.matches(service.namespace())
                    && pattern.name.matches(service.name())
            })
    }

    /// The names as they are written, in this order.
    pub fn written(&self) -> &[String] {
        &self.written
    }

    /// The names that match none of these services, each with the closest of them. `home` is the namespace of the service
    /// that is called.
    pub fn unknown<'c>(
        &'c self,
        members: &'c [SpiffeId],
        home: &'c str,
    ) -> impl Iterator<Item = (&'c str, Option<&'c str>)> + 'c {
        let matches = move |name: &str| {
            let one = Self::parse(&[name]).unwrap_or_default();
            members.iter().any(|member| one.admit(member, home))
        };
        let is_pattern = |name: &&String| !matches!(name.as_str(), "any" | "nobody");
        self.written.iter().filter(is_pattern).filter(move |name| !matches(name)).map(move |name| {
            let names = members.iter().map(|member| match name.contains('.') {
                true => member.service().as_str(),
                false => member.service().name(),
            });
            (name.as_str(), closest(name, names))
        })
    }
}

fn has(sorted: &[String], text: &str) -> bool {
    sorted.binary_search_by(|name| name.as_str().cmp(text)).is_ok()
}

impl fmt::Display for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SpiffeId {
        text.parse().unwrap()
    }

    #[test]
    fn each_form_of_a_name_matches_what_it_says() {
        let users = id("spiffe://weft.local/ns/shop/sa/users");
        for (name, home, admits) in [
            ("any", "other", true),
            ("nobody", "shop", false),
            ("users", "shop", true),
            ("users", "other", false),
            ("users.shop", "other", true),
            ("users.other", "shop", false),
            ("*.shop", "other", true),
            ("*.sho", "shop", false),
            ("spiffe://weft.local/ns/shop/sa/users", "other", true),
            ("spiffe://weft.local/ns/*/sa/users", "other", true),
            ("spiffe://weft.local/ns/sh*/sa/us*", "other", true),
            ("spiffe://weft.local/ns/shop/sa/users*", "other", true),
            ("spiffe://weft.local/ns/shop/sa/user", "other", false),
            ("spiffe://weft.local/ns/shop/sa/web-*", "other", false),
            ("spiffe://other.local/ns/*/sa/*", "shop", false),
        ] {
            assert_eq!(Callers::parse(&[name]).unwrap().admit(&users, home), admits, "{name} in {home}");
        }
    }

    #[test]
    fn what_is_no_name_or_contradicts_is_refused() {
        for (names, problem) in [
            (&[][..], "without a name; write `nobody` if that is meant"),
            (&["any", "users"], "`any` beside other names; it has to be alone"),
            (&["users", "nobody"], "`nobody` beside other names; it has to be alone"),
            (&["users", "web", "users"], "`users` twice"),
            (&["unauthenticated"], "`unauthenticated`, and callers without a certificate are never let in"),
            (&["Users"], "\"Users\""),
            (&["*"], "\"*\""),
            (&["*.*"], "\"*.*\""),
            (&["us*"], "\"us*\""),
            (&[""], "\"\""),
            (&["users.shop.svc"], "\"users.shop.svc\""),
            (&["users\u{202e}"], "\"users\\\\u{202e}\""),
            (&["spiffe://weft.local/ns/shop/sa/*x"], "\"spiffe://weft.local/ns/shop/sa/*x\""),
            (&["spiffe://weft.local/ns/shop/sa/-*"], "\"spiffe://weft.local/ns/shop/sa/-*\""),
            (&["spiffe://*/ns/shop/sa/users"], "\"spiffe://*/ns/shop/sa/users\""),
            (&["spiffe://weft.local/ns/shop"], "\"spiffe://weft.local/ns/shop\""),
        ] {
            assert_eq!(Callers::parse(names).unwrap_err(), problem, "{names:?}");
        }
        assert!(Callers::parse(&vec!["a"; NAMES + 1]).is_err());
        let ids: Vec<String> = (0..=IDS).map(|i| format!("spiffe://weft.local/ns/n{i}/sa/*")).collect();
        assert_eq!(Callers::parse(&ids).unwrap_err(), "101 SPIFFE IDs; at most 100");
    }

    #[test]
    fn names_that_match_no_member_are_found_with_the_closest() {
        let members = [id("spiffe://weft.local/ns/shop/sa/users"), id("spiffe://weft.local/ns/shop/sa/orders")];
        let callers =
            Callers::parse(&["userz", "orders", "*.data", "order.shop", "spiffe://weft.local/ns/*/sa/o*"]).unwrap();
        let unknown: Vec<_> = callers.unknown(&members, "shop").collect();
        assert_eq!(unknown, [("userz", Some("users")), ("*.data", None), ("order.shop", Some("orders.shop"))]);
        assert_eq!(Callers::parse(&["any"]).unwrap().unknown(&members, "shop").count(), 0);
    }

    /// Whether one name admits a caller, by what the documentation says of each form.
    fn plainly(name: &str, domain: &str, namespace: &str, service: &str, home: &str) -> bool {
        let like = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
            Some(begin) => text.starts_with(begin),
            None => text == pattern,
        };
        match name.split('/').collect::<Vec<_>>()[..] {
            ["spiffe:", "", of, "ns", space, "sa", account] => {
                of == domain && like(space, namespace) && like(account, service)
            }
            _ if name.contains('.') => name == format!("*.{namespace}") || name == format!("{service}.{namespace}"),
            _ => name == service && namespace == home,
        }
    }

    #[test]
    fn lists_of_any_size_decide_as_a_walk_over_their_names_does() {
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..300 {
            let count = 1 + random(40);
            let mut names: Vec<String> = (0..count)
                .map(|_| {
                    let (name, space) = (format!("s{}", random(30)), format!("n{}", random(4)));
                    match random(5) {
                        0 => name,
                        1 => format!("{name}.{space}"),
                        2 => format!("*.{space}"),
                        3 => format!("spiffe://weft.local/ns/{space}/sa/s{}*", random(3)),
                        _ => format!("spiffe://d{}.local/ns/n*/sa/{name}", random(2)),
                    }
                })
                .collect();
            names.sort();
            names.dedup();
            let list = Callers::parse(&names).unwrap();
            for _ in 0..50 {
                let domain = ["weft.local", "d0.local", "d1.local"][random(3) as usize];
                let (namespace, service) = (format!("n{}", random(4)), format!("s{}", random(30)));
                let caller = id(&format!("spiffe://{domain}/ns/{namespace}/sa/{service}"));
                let home = format!("n{}", random(4));
                let expected = names.iter().any(|name| plainly(name, domain, &namespace, &service, &home));
                assert_eq!(list.admit(&caller, &home), expected, "{names:?} {caller} {home}");
            }
        }
    }
}
