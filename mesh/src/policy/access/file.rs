//! The rules of a whole mesh, as its owner writes them: a file of their own, or the keys `access` of a `mesh.yaml`.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    AccessRule, Callers, DefaultAccess, MeshAccess, ServiceAccess,
    callers::ALLOWED,
    paths::{METHOD, PATH, PathRule, PathRules},
};
use crate::{
    config::{self, Node, Problems, Reader, Table, Value},
    names::{DEFAULT_NAMESPACE, LABEL, ServiceName, is_label, shown},
};

pub(super) const DEFAULTS: &str = "allow, deny";
const ROOT_KEYS: &[&str] = &["namespace", "access", "services"];
const ACCESS_KEYS: &[&str] = &["default", "audit", "namespaces"];
const RULE_KEYS: &[&str] = &["allow", "audit", "paths"];
const PATH_KEYS: &[&str] = &["path", "methods", "allow", "audit"];

/// The rules of a whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshRules {
    /// Whether every member may call what has no rule. `None`: nobody said so.
    pub is_allowed: Option<bool>,
    /// All rules are only tried.
    pub is_audit: bool,
    /// The same as `is_allowed` for some namespaces.
    pub namespaces: BTreeMap<String, bool>,
    /// The rules for services.
    pub services: BTreeMap<ServiceName, ServiceAccess>,
    /// On Kubernetes: which services have these contracts, whoever claims them.
    pub contracts: BTreeMap<String, ServiceName>,
}

impl MeshRules {
    /// What they say of one service.
    pub fn of(&self, service: &ServiceName) -> MeshAccess {
        let default = self.default_of(service.namespace());
        let service = self.services.get(service).cloned();
        MeshAccess { default, is_audit: self.is_audit, service, ..MeshAccess::default() }
    }

    /// What holds in a namespace where there is no rule.
    pub fn default_of(&self, namespace: &str) -> DefaultAccess {
        match (self.namespaces.get(namespace), self.is_allowed) {
            (Some(is_allowed), _) => DefaultAccess::Namespace { is_allowed: *is_allowed },
            (None, Some(is_allowed)) => DefaultAccess::Mesh { is_allowed },
            (None, None) => DefaultAccess::BuiltIn,
        }
    }

    /// Reads the text of a file of rules.
    ///
    /// ```yaml
    /// namespace: shop            # of names below that have none; default: `default`
    /// access: deny               # or a table; default: `allow`
    /// services:
    ///   web: [any]               # NAME or NAME.NAMESPACE: who may call it
    ///   reports:
    ///     allow: [web]
    ///     paths: [{ path: /admin/*, methods: [GET], allow: [ops], audit: true }]
    /// ```
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        config::parse(file, text, Self::read)
    }

    fn read(reader: &mut Reader<'_>, root: &Node) -> Option<Self> {
        let table = reader.table("", root, ROOT_KEYS)?;
        let namespace = reader.parsed(&table, "namespace", LABEL, |text| match is_label(text) {
            true => Ok(text.to_owned()),
            false => Err(format!("found the text {:?}; allowed: {LABEL}", shown(text))),
        });
        let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        let mut rules = read_mesh_access(reader, &table);
        let Some(node) = table.get("services") else { return Some(rules) };
        let services = reader.open_table("services", node, "a table of services by name")?;
        for entry in services.entries() {
            let field = services.path(&entry.key);
            let Ok(service) = ServiceName::parse_in(&entry.key, &namespace) else {
                let text = format!("found the name {:?}; allowed: NAME or NAME.NAMESPACE", shown(&entry.key));
                reader.problem(entry.line, &field, text);
                continue;
            };
            let access = read_rules(reader, &field, entry.node);
            if rules.services.insert(service.clone(), access).is_some() {
                reader.problem(entry.line, &field, format!("{service} is there twice; allowed: once"));
            }
        }
        Some(rules)
    }

    /// The text of a file that says the same.
    pub fn to_yaml(&self) -> String {
        let word = |is_allowed: bool| if is_allowed { "allow" } else { "deny" };
        let rule_of = |rule: &AccessRule| format!("allow: {:?}, audit: {}", rule.callers.written(), rule.is_audit);
        let namespaces: Vec<_> =
            self.namespaces.iter().map(|(name, is_allowed)| format!("{name:?}: {}", word(*is_allowed))).collect();
        let default = self.is_allowed.map_or(String::new(), |is_allowed| format!("default: {}, ", word(is_allowed)));
        let namespaces = match namespaces.is_empty() {
            true => String::new(),
            false => format!(", namespaces: {{ {} }}", namespaces.join(", ")),
        };
        let mut text = format!("access: {{ {default}audit: {}{namespaces} }}\n", self.is_audit);
        text.push_str(if self.services.is_empty() { "" } else { "services:\n" });
        for (service, access) in &self.services {
            let _ = writeln!(text, "  {service}:");
            if let Some(rule) = &access.rule {
                let _ = writeln!(text, "    allow: {:?}\n    audit: {}", rule.callers.written(), rule.is_audit);
            }
            text.push_str(if access.paths.written().is_empty() { "" } else { "    paths:\n" });
            for PathRule { path, methods, rule } in access.paths.written() {
                let methods = if methods.is_empty() { String::new() } else { format!("methods: {methods:?}, ") };
                let _ = writeln!(text, "      - {{ path: {path:?}, {methods}{} }}", rule_of(rule));
            }
        }
        text
    }
}

/// Reads the key `access` of a mesh: `allow`, `deny`, or a table.
pub fn read_mesh_access(reader: &mut Reader<'_>, table: &Table<'_>) -> MeshRules {
    let mut rules = MeshRules::default();
    reader.must_have_values(table, &["access"]);
    let Some(node) = table.get("access") else { return rules };
    if let Value::Text(_) = node.value {
        rules.is_allowed = read_default(reader, table, "access");
        return rules;
    }
    let field = table.path("access");
    let Some(access) = reader.table(&field, node, ACCESS_KEYS) else { return rules };
    reader.must_have_values(&access, ACCESS_KEYS);
    if access.entries().is_empty() {
        reader.problem(node.line, &field, "found an empty table; allowed: allow, deny, or a table with content");
    }
    rules.is_allowed = read_default(reader, &access, "default");
    rules.is_audit = reader.truth(&access, "audit").is_some_and(|audit| audit.value);
    if let Some(node) = access.get("namespaces")
        && let Some(namespaces) = reader.open_table(&access.path("namespaces"), node, "a table of namespaces by name")
    {
        if namespaces.entries().is_empty() {
            reader.problem(
                node.line,
                &access.path("namespaces"),
                "found an empty table; allowed: names, or no such key",
            );
        }
        for entry in namespaces.entries() {
            reader.must_have_values(&namespaces, &[&entry.key]);
            if !is_label(&entry.key) {
                let text = format!("found the name {:?}; allowed: {LABEL}", shown(&entry.key));
                reader.problem(entry.line, &namespaces.path(&entry.key), text);
            } else if let Some(is_allowed) = read_default(reader, &namespaces, &entry.key) {
                rules.namespaces.insert(entry.key.clone(), is_allowed);
            }
        }
    }
    rules
}

pub(super) fn read_default(reader: &mut Reader<'_>, table: &Table<'_>, key: &str) -> Option<bool> {
    reader.parsed(table, key, DEFAULTS, |text| match text {
        "allow" => Ok(true),
        "deny" => Ok(false),
        other => Err(format!("found the text {:?}; allowed: {DEFAULTS}", shown(other))),
    })
}

/// Reads the key `access` of a service: names of callers, or a table.
pub fn read_service_access(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<ServiceAccess> {
    reader.must_have_values(table, &["access"]);
    let node = table.get("access")?;
    Some(read_rules(reader, &table.path("access"), node))
}

fn read_rules(reader: &mut Reader<'_>, field: &str, node: &Node) -> ServiceAccess {
    if !matches!(node.value, Value::Map(_)) {
        let rule = read_callers(reader, field, node).map(|callers| AccessRule { callers, is_audit: false });
        return ServiceAccess { rule, paths: PathRules::default() };
    }
    let Some(table) = reader.table(field, node, RULE_KEYS) else { return ServiceAccess::default() };
    reader.must_have_values(&table, RULE_KEYS);
    if table.get("allow").is_none() && table.get("paths").is_none() {
        reader.problem(node.line, field, "without a rule; allowed: `allow`, `paths`, or both");
    }
    read_rule_and_paths(reader, &table)
}

/// The keys `allow`, `audit` and `paths`.
pub(super) fn read_rule_and_paths(reader: &mut Reader<'_>, table: &Table<'_>) -> ServiceAccess {
    let rule = read_rule(reader, table);
    let paths = table.get("paths").map(|node| read_paths(reader, &table.path("paths"), node)).unwrap_or_default();
    ServiceAccess { rule, paths }
}

/// The keys `allow` and `audit`.
fn read_rule(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<AccessRule> {
    let audit = reader.truth(table, "audit");
    let Some(node) = table.get("allow") else {
        if let Some(audit) = audit {
            reader.problem(audit.line, &table.path("audit"), "found without `allow`; allowed: beside it");
        }
        return None;
    };
    let callers = read_callers(reader, &table.path("allow"), node)?;
    Some(AccessRule { callers, is_audit: audit.is_some_and(|audit| audit.value) })
}

fn read_callers(reader: &mut Reader<'_>, field: &str, node: &Node) -> Option<Callers> {
    let text_of = |node: &'_ Node| match &node.value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    let texts: Option<Vec<String>> = match &node.value {
        Value::List(items) => items.iter().map(text_of).collect(),
        _ => text_of(node).map(|text| vec![text]),
    };
    let Some(texts) = texts else {
        reader.problem(node.line, field, format!("found {}; allowed: a list, each {ALLOWED}", node.describe()));
        return None;
    };
    match Callers::parse(&texts) {
        Ok(callers) => Some(callers),
        Err(found) => {
            reader.problem(node.line, field, format!("found {found}; allowed: {ALLOWED}"));
            None
        }
    }
}

fn read_paths(reader: &mut Reader<'_>, field: &str, node: &Node) -> PathRules {
    let Value::List(items) = &node.value else {
        reader.problem(node.line, field, format!("found {}; allowed: a list of tables", node.describe()));
        return PathRules::default();
    };
    if items.is_empty() {
        reader.problem(node.line, field, "found an empty list; allowed: a list of tables, or no such key");
    }
    let (mut rules, mut lines) = (Vec::new(), Vec::new());
    for (place, item) in items.iter().enumerate() {
        let Some(table) = reader.table(&format!("{field}[{place}]"), item, PATH_KEYS) else { continue };
        reader.must_have_values(&table, PATH_KEYS);
        if let Some(Node { line, value: Value::List(methods), .. }) = table.get("methods")
            && methods.is_empty()
        {
            reader.problem(
                *line,
                &table.path("methods"),
                format!("found an empty list; allowed: {METHOD}, or no such key"),
            );
        }
        let path = reader.text(&table, "path", PATH).map(|path| path.value);
        let methods = reader.texts(&table, "methods", METHOD).unwrap_or_default();
        let rule = read_rule(reader, &table);
        let (Some(path), Some(rule)) = (path, rule) else {
            for key in ["path", "allow"] {
                if table.get(key).is_none() {
                    reader.problem(item.line, &table.path(key), "missing");
                }
            }
            continue;
        };
        rules.push(PathRule { path, methods: methods.into_iter().map(|method| method.value).collect(), rule });
        lines.push((item.line, table.field));
    }
    PathRules::new(rules).unwrap_or_else(|(place, key, text)| {
        let (line, field) = &lines[place];
        reader.problem(*line, &format!("{field}.{key}"), text);
        PathRules::default()
    })
}

#[cfg(test)]
mod tests {
    use weft_contracts::weft::policy::v1 as wire;

    use super::*;
    use crate::policy::{DefaultAccess, MeshAccess};

    const FULL: &str = r#"namespace: shop
access: { default: deny, audit: true, namespaces: { data: allow, shop: deny } }
services:
  web: any
  users: [web, "*.ops"]
  db.data:
    allow: [nobody]
    audit: true
  reports:
    paths:
      - { path: /admin/*, methods: [GET, POST], allow: [ops] }
      - { path: '/a"b', allow: any, audit: true }
"#;

    fn problems(text: &str) -> String {
        MeshRules::parse("access.yaml", text).expect_err("a file with problems").to_string()
    }

    #[test]
    fn a_file_says_the_default_and_the_rules_of_services() {
        let rules = MeshRules::parse("access.yaml", FULL).unwrap();
        let of = |service: &str| rules.of(&ServiceName::parse(service).unwrap());
        assert_eq!(of("x.shop").default, DefaultAccess::Namespace { is_allowed: false });
        assert_eq!(of("x.data").default, DefaultAccess::Namespace { is_allowed: true });
        assert_eq!(of("x.other").default, DefaultAccess::Mesh { is_allowed: false });
        assert!(of("x.other").is_audit && of("x.other").service.is_none());
        let rule =
            |service: &str| of(service).service.unwrap().rule.map(|rule| (rule.callers.to_string(), rule.is_audit));
        assert_eq!(rule("web.shop"), Some(("any".into(), false)));
        assert_eq!(rule("users.shop"), Some(("web, *.ops".into(), false)));
        assert_eq!(rule("db.data"), Some(("nobody".into(), true)));
        assert_eq!(rule("reports.shop"), None);
        assert_eq!(of("reports.shop").service.unwrap().paths.written().len(), 2);
        assert_eq!(MeshRules::parse("f", "access: allow\n").unwrap().is_allowed, Some(true));
        assert_eq!(MeshRules::parse("f", "{}\n").unwrap(), MeshRules::default());
        for empty in
            ["access:\n", "access: { default: }\n", "access: { namespaces: { shop: } }\n", "services: { web: }\n"]
        {
            assert!(problems(empty).contains("found nothing"), "{empty}");
        }
    }

    #[test]
    fn what_says_nothing_is_an_error() {
        for (text, problem) in [
            ("access: {}\n", "f:1: access: found an empty table"),
            ("access: { default: deny, namespaces: {} }\n", "f:1: access.namespaces: found an empty table"),
        ] {
            let told = MeshRules::parse("f", text).expect_err("it says nothing").to_string();
            assert!(told.contains(problem), "{told}");
        }
    }

    #[test]
    fn what_is_written_is_read_again_as_the_same() {
        let rules = MeshRules::parse("access.yaml", FULL).unwrap();
        assert_eq!(MeshRules::parse("again.yaml", &rules.to_yaml()).unwrap(), rules);
        let none = MeshRules::default();
        assert_eq!(MeshRules::parse("none.yaml", &none.to_yaml()).unwrap(), none);
    }

    #[test]
    fn rules_survive_the_wire() {
        let rules = MeshRules::parse("access.yaml", FULL).unwrap();
        for service in ["web.shop", "users.shop", "db.data", "reports.shop", "x.other"] {
            let access = rules.of(&ServiceName::parse(service).unwrap());
            assert_eq!(MeshAccess::try_from(wire::MeshAccess::from(&access)), Ok(access));
        }
        let built_in = MeshAccess::default();
        assert_eq!(MeshAccess::try_from(wire::MeshAccess::from(&built_in)), Ok(built_in));
    }

    #[test]
    fn ten_thousand_rules_are_read_and_written() {
        let services: String = (0..10_000).map(|i| format!("  s{i}: [a{i}, \"*.n{i}\"]\n")).collect();
        let paths: String = (0..10_000).map(|i| format!("      - {{ path: /a/b{i}/*, allow: c{i} }}\n")).collect();
        let text = format!("namespace: shop\nservices:\n{services}  web:\n    paths:\n{paths}");
        let rules = MeshRules::parse("access.yaml", &text).unwrap();
        assert_eq!(MeshRules::parse("again.yaml", &rules.to_yaml()).unwrap(), rules);
        let web = ServiceName::parse("web.shop").unwrap();
        let access = crate::policy::AccessRules::new(&web, rules.of(&web));
        for (caller, is_allowed) in [("c9999", true), ("c9998", false)] {
            let caller = format!("spiffe://weft.local/ns/shop/sa/{caller}").parse().unwrap();
            let verdict = access.judge_path(b"GET", b"/a/b9999/x", &caller).expect("a rule is for it");
            assert_eq!(verdict.is_allowed, is_allowed);
        }
        let message = prost::Message::encoded_len(&wire::MeshAccess::from(&rules.of(&web)));
        assert!(message < crate::limits::CONTROL_MESSAGE_BYTES, "{message} bytes for the sidecar");
    }

    #[test]
    fn each_problem_names_its_line_and_field() {
        let text = problems(
            "access: { default: denied, audit: yes, namespaces: { Shop: deny, data: no } }\nservices:\n  web: [any, users]\n  \
             a: { audit: true }\n  b:\n    paths:\n      - { path: a, allow: any }\n      - { path: /a }\n  c: { allow: 7 \
             }\n  D: any\n  e: []\n  f: { paths: [{ path: /x, allow: a }, { path: /X/, allow: b }] }\n  g: { allow: , paths: [{ \
             path: /a, allow: b }] }\n  h: { paths: [{ path: /a, allow: b, methods: [] }] }\n  i: { paths: [] }\n",
        );
        for problem in [
            "access.yaml:1: access.default: found the text \"denied\"; allowed: allow, deny",
            "access.yaml:1: access.audit: found the text \"yes\"; allowed: true or false",
            "access.yaml:1: access.namespaces.Shop: found the name \"Shop\"; allowed: 1 to 63",
            "access.yaml:1: access.namespaces.data: found the text \"no\"; allowed: allow, deny",
            "access.yaml:3: services.web: found `any` beside other names; it has to be alone; allowed: the NAME",
            "access.yaml:4: services.a: without a rule; allowed: `allow`, `paths`, or both",
            "access.yaml:7: services.b.paths[0].path: found \"a\"; allowed: a path, as /a/b",
            "access.yaml:8: services.b.paths[1].allow: missing",
            "access.yaml:9: services.c.allow: found the number 7; allowed: a list, each the NAME",
            "access.yaml:10: services.D: found the name \"D\"",
            "access.yaml:11: services.e: found without a name; write `nobody` if that is meant",
            "access.yaml:13: services.g.allow: found nothing; allowed: a value, or no such key",
            "access.yaml:15: services.i.paths: found an empty list; allowed: a list of tables, or no such key",
            "access.yaml:14: services.h.paths[0].methods: found an empty list; allowed: a method",
            "access.yaml:12: services.f.paths[1].path: found \"/X/\", which \"/x\" has too",
        ] {
            assert!(text.contains(problem), "{problem}\nis not in\n{text}");
        }
    }
}
