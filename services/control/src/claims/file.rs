//! The file of `--services`: what the mesh's owner states about its services. It wins over what they announce
//! themselves.
//!
//! ```yaml
//! namespace: shop            # for names below without a namespace; default: `default`
//! visibility: namespace      # who may know of a service: `all` (the default), or only its own namespace
//! unlisted: pin              # other contracts: `refuse` them (the default), `pin` each to its first claimant, or let
//!                            # those wait that `weft up` will `grant`
//! complete: true             # the mesh has no other services: it settles once these are there; default: false
//! services:
//!   users:                   # NAME, or NAME.NAMESPACE
//!     contracts: [shop.users.v1.Users]      # protobuf services, by full name
//!     addresses: ["10.96.0.10:80"]          # virtual addresses
//!     endpoints: 2                          # how many there are in a complete mesh; default: 1
//!     unlisted: pin                         # for the contracts that this service claims; default: as above
//! ```
//!
//! `weft up` makes one from `mesh.yaml`.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use weft_mesh::{
    config::{self, Node, Problem, Problems, Reader, Table},
    limits,
    names::{DEFAULT_NAMESPACE, ServiceName, is_contract_name, is_label, shown},
};

use super::{Unlisted, visibility::Visibility};

const ROOT_KEYS: &[&str] = &["namespace", "visibility", "unlisted", "complete", "services"];
const SERVICE_KEYS: &[&str] = &["contracts", "addresses", "endpoints", "unlisted"];

const LABEL: &str = "1 to 63 of a-z, 0-9 and -, no - at either end";
const VISIBILITY: &str = "all, namespace";
const UNLISTED: &str = "pin, refuse, grant";
const CONTRACT: &str = "the full name of a protobuf service, as shop.users.v1.Users";
const ADDRESS: &str = "IP:PORT, as 10.96.0.10:80 or [fd00::1]:80";

/// The content of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The owner of each claim.
    pub(crate) claims: BTreeMap<String, ServiceName>,
    pub(crate) visibility: Visibility,
    /// What happens to contracts that are not in the file.
    pub(crate) unlisted: Unlisted,
    /// The same for some services.
    pub(crate) unlisted_of: BTreeMap<ServiceName, Unlisted>,
    /// All services of the mesh with the number of their endpoints, if the file says that it is complete.
    pub(crate) mesh: Option<BTreeMap<ServiceName, usize>>,
}

impl Listed {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// All that is wrong with the file.
    pub(crate) fn read(path: &Path) -> Result<Self, Problems> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Problems::new(vec![Problem::new(&shown, 0, "", format!("cannot be read: {error} (--services)"))])
        })?;
        Self::parse(&shown, &text)
    }

    fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        config::parse(file, text, read_root)
    }
}

fn read_root(reader: &mut Reader<'_>, root: &Node) -> Option<Listed> {
    let table = reader.table("", root, ROOT_KEYS)?;
    let label = |text: &str| match is_label(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("found the text {:?}; allowed: {LABEL}", shown(text))),
    };
    let namespace = reader.parsed(&table, "namespace", LABEL, label);
    let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let visibility = reader.parsed(&table, "visibility", VISIBILITY, |text| match text {
        "all" => Ok(Visibility::All),
        "namespace" => Ok(Visibility::Namespace),
        other => Err(format!("found the text {:?}; allowed: {VISIBILITY}", shown(other))),
    });
    let unlisted = read_unlisted(reader, &table);
    let mut listed = Listed {
        claims: BTreeMap::new(),
        visibility: visibility.unwrap_or_default(),
        // With a file, other contracts are refused unless it says otherwise.
        unlisted: unlisted.unwrap_or(Unlisted::Refuse),
        unlisted_of: BTreeMap::new(),
        mesh: reader.truth(&table, "complete").is_some_and(|complete| complete.value).then(BTreeMap::new),
    };
    let Some(node) = table.get("services") else {
        reader.problem(1, "services", "missing; allowed: a table of services by name");
        return None;
    };
    let services = reader.open_table("services", node, "a table of services by name")?;
    let mut seen = BTreeMap::new();
    for entry in services.entries() {
        let field = services.path(&entry.key);
        let Ok(service) = ServiceName::parse_in(&entry.key, &namespace) else {
            let found = shown(&entry.key);
            let text = format!("found the name {found:?}; allowed: NAME or NAME.NAMESPACE, each {LABEL}");
            reader.problem(entry.line, &field, text);
            continue;
        };
        if let Some(first) = seen.insert(service.clone(), entry.line) {
            let text = format!("{service} is there twice, first in line {first}; allowed: once");
            reader.problem(entry.line, &field, text);
        }
        if let Some(table) = reader.table(&field, entry.node, SERVICE_KEYS) {
            read_service(reader, &table, &service, &mut listed);
        }
    }
    Some(listed)
}

fn read_unlisted(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Unlisted> {
    reader.parsed(table, "unlisted", UNLISTED, |text| match text {
        "pin" => Ok(Unlisted::Pin),
        "refuse" => Ok(Unlisted::Refuse),
        "grant" => Ok(Unlisted::Grant),
        other => Err(format!("found the text {:?}; allowed: {UNLISTED}", shown(other))),
    })
}

fn read_service(reader: &mut Reader<'_>, table: &Table<'_>, service: &ServiceName, listed: &mut Listed) {
    let endpoints = reader.whole_number(table, "endpoints", 1..=limits::ENDPOINTS_PER_SERVICE as i64, "");
    if let Some(mesh) = &mut listed.mesh {
        mesh.insert(service.clone(), endpoints.map_or(1, |endpoints| endpoints.value as usize));
    }
    if let Some(unlisted) = read_unlisted(reader, table) {
        listed.unlisted_of.insert(service.clone(), unlisted);
    }
    read_claims(reader, table, "contracts", CONTRACT, service, listed, |text| {
        is_contract_name(text).then(|| text.to_owned())
    });
    read_claims(reader, table, "addresses", ADDRESS, service, listed, |text| {
        let address: SocketAddr = text.parse().ok()?;
        let is_callable = !address.ip().is_unspecified() && address.port() != 0;
        is_callable.then(|| address.to_string())
    });
}

fn read_claims(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    key: &str,
    allowed: &str,
    service: &ServiceName,
    listed: &mut Listed,
    parse: impl Fn(&str) -> Option<String>,
) {
    for text in reader.texts(table, key, allowed).unwrap_or_default() {
        let field = table.path(key);
        let Some(claim) = parse(&text.value) else {
            let found = shown(&text.value);
            reader.problem(text.line, &field, format!("found the text {found:?}; allowed: {allowed}"));
            continue;
        };
        if let Some(other) = listed.claims.insert(claim.clone(), service.clone())
            && other != *service
        {
            let text_of = format!("found {claim}, which {other} has too; allowed: with one service");
            reader.problem(text.line, &field, text_of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        Listed::parse("services.yaml", text).expect_err("a file with problems").to_string()
    }

    #[test]
    fn each_claim_belongs_to_the_service_that_lists_it() {
        let text = "namespace: shop\nvisibility: namespace\nunlisted: pin\nservices:\n  users: { contracts: [shop.v1.Users, shop.v1.Admin] }\n  \
                    db.data: { addresses: \"[fd00::01]:5432\" }\n  web: {}\n";
        let listed = Listed::parse("services.yaml", text).unwrap();
        let owners: Vec<_> = listed.claims.iter().map(|(claim, owner)| (claim.as_str(), owner.as_str())).collect();
        let expected =
            [("[fd00::1]:5432", "db.data"), ("shop.v1.Admin", "users.shop"), ("shop.v1.Users", "users.shop")];
        assert_eq!(owners, expected);
        assert_eq!((listed.visibility, listed.unlisted), (Visibility::Namespace, Unlisted::Pin));
        let one = Listed::parse("services.yaml", "services: { users: { unlisted: pin }, web: {} }\n").unwrap();
        let of: Vec<_> = one.unlisted_of.iter().map(|(service, unlisted)| (service.as_str(), *unlisted)).collect();
        assert_eq!((one.unlisted, &of[..]), (Unlisted::Refuse, &[("users.default", Unlisted::Pin)][..]));
        let short = Listed::parse("services.yaml", "services: {}\n").unwrap();
        assert_eq!((short.visibility, short.unlisted), (Visibility::All, Unlisted::Refuse));
        assert_eq!(Listed::default().unlisted, Unlisted::Pin, "without a file");
    }

    #[test]
    fn a_file_may_say_that_it_is_complete() {
        let text = "complete: true\nservices: { users: { endpoints: 2 }, web: {} }\n";
        let mesh = Listed::parse("services.yaml", text).unwrap().mesh.unwrap();
        let listed: Vec<_> = mesh.iter().map(|(service, endpoints)| (service.as_str(), *endpoints)).collect();
        assert_eq!(listed, [("users.default", 2), ("web.default", 1)]);
        for text in ["complete: false\nservices: { users: {} }\n", "services: { users: { endpoints: 2 } }\n"] {
            assert_eq!(Listed::parse("services.yaml", text).unwrap().mesh, None, "others may be missing: {text}");
        }
        let problem = problems("services: { users: { endpoints: 0 } }\n");
        assert!(problem.starts_with("services.yaml:1: services.users.endpoints: found "), "{problem}");
    }

    #[test]
    fn problems_name_file_line_and_field() {
        for (text, expected) in [
            ("services: [users]\n", "services.yaml:1: services: found a list"),
            ("namespace: Shop\nservices: {}\n", "services.yaml:1: namespace: found the text \"Shop\""),
            (
                "service: {}\n",
                "services.yaml:1: service: unknown key; allowed: namespace, visibility, unlisted, complete, services (did you mean `services`?)",
            ),
            (
                "visibility: none\nservices: {}\n",
                "services.yaml:1: visibility: found the text \"none\"; allowed: all, namespace",
            ),
            ("services:\n  Users: {}\n", "services.yaml:2: services.Users: found the name \"Users\""),
            (
                "services:\n  users:\n    contracts: [a b]\n",
                "services.yaml:3: services.users.contracts: found the text \"a b\"; allowed: the full name",
            ),
            (
                "services:\n  users:\n    addresses: [\"0.0.0.0:80\"]\n",
                "services.yaml:3: services.users.addresses: found the text \"0.0.0.0:80\"; allowed: IP:PORT",
            ),
            (
                "services:\n  a: { contracts: [x.Y] }\n  b: { contracts: [x.Y] }\n",
                "services.yaml:3: services.b.contracts: found x.Y, which a.default has too; allowed: with one service",
            ),
            ("services:\n  a: {}\n  a.default: {}\n", "services.yaml:3: services.a.default: a.default is there twice"),
        ] {
            let problem = problems(text);
            assert!(problem.starts_with(expected), "{problem}");
        }
        let missing = Listed::read(Path::new("/nowhere/services.yaml")).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/services.yaml: cannot be read: "), "{missing}");
    }
}
