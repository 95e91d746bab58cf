//! The keys of a mesh file: the allowed values and the default of each.

use std::path::{Path, PathBuf};

use weft_mesh::{
    config::{Node, Reader, Table},
    identity::TrustDomain,
    names::{DEFAULT_NAMESPACE, ServiceName, is_label, port},
    policy::{MeshRules, RESERVED_CALLERS, find_loop, find_unwelcome, read_mesh_access, read_service_access},
};
use weft_sidecar::UpgradeName;

use super::{
    Contracts, Located, MeshFile, Port, Ports, Programs, Protocol, Service, default_include,
    program::{self, CommandLine},
};

const ROOT_KEYS: &[&str] =
    &["namespace", "trust_domain", "visibility", "access", "build", "ports", "traces", "services"];
const PORT_KEYS: &[&str] = &["outbound", "dashboard", "control"];
const TRACE_KEYS: &[&str] = &["otlp", "sample"];
const SERVICE_KEYS: &[&str] = &[
    "run",
    "protos",
    "proto_path",
    "protocol",
    "connect",
    "upgrades",
    "access",
    "health",
    "replicas",
    "port",
    "forward",
    "env",
];

/// Replicas of one service on one machine; each is two processes.
const MAX_REPLICAS: i64 = 50;

/// The service name in the identity of the sidecar that `weft up` runs for the person at the keyboard.
pub(crate) const KEYBOARD: &str = "keyboard";

const COMMAND: &str = "a command line, split as a shell would but run without a shell";
const VISIBILITY: &str = "all, namespace";
const PROTOCOLS: &str = "grpc, http1, tcp";
const LABEL: &str = "1 to 63 of a-z, 0-9 and -, no - at either end";

struct Context<'a> {
    folder: &'a Path,
    namespace: String,
    must_exist: bool,
}

pub(super) fn read(
    reader: &mut Reader<'_>,
    root: &Node,
    path: &Path,
    folder: &Path,
    programs: Programs,
) -> Option<MeshFile> {
    let table = reader.table("", root, ROOT_KEYS)?;
    let namespace = match reader.parsed(&table, "namespace", LABEL, label) {
        Some(namespace) => namespace,
        None => DEFAULT_NAMESPACE.to_owned(),
    };
    let trust_domain = reader
        .parsed(&table, "trust_domain", "1 to 255 of a-z, 0-9, ., - and _", str::parse::<TrustDomain>)
        .unwrap_or_else(|| "weft.local".parse().expect("a trust domain"));
    let visibility = reader.parsed(&table, "visibility", VISIBILITY, |text| match text {
        "all" | "namespace" => Ok(text.to_owned()),
        other => Err(format!("found the text {other:?}; allowed: {VISIBILITY}")),
    });
    let build = read_build(reader, &table, folder);
    let ports = read_ports(reader, &table);
    let (otlp, sample) = read_traces(reader, &table);
    let must_exist = programs == Programs::MustExist || table.get("build").is_none();
    let context = Context { folder, namespace: namespace.clone(), must_exist };
    let mut access = read_mesh_access(reader, &table);
    let services = read_services(reader, &table, &context, &mut access);
    check_fixed_ports(reader, &ports, &services);
    check_fallbacks(reader, &services);
    Some(MeshFile {
        path: path.to_owned(),
        folder: folder.to_owned(),
        namespace,
        trust_domain,
        visibility: visibility.unwrap_or_else(|| "all".to_owned()),
        access,
        build,
        ports,
        otlp,
        sample,
        services,
    })
}

fn label(text: &str) -> Result<String, String> {
    if is_label(text) { Ok(text.to_owned()) } else { Err(format!("found the text {text:?}; allowed: {LABEL}")) }
}

fn read_build(reader: &mut Reader<'_>, table: &Table<'_>, folder: &Path) -> Vec<CommandLine> {
    let texts = reader.texts(table, "build", COMMAND).unwrap_or_default();
    // The first command must exist; it may make the programs of the others.
    let read = |(index, text)| program::command_line(reader, "build", &text, folder, index == 0);
    texts.into_iter().enumerate().filter_map(read).collect()
}

fn read_ports(reader: &mut Reader<'_>, root: &Table<'_>) -> Ports {
    let table = root.get("ports").and_then(|node| reader.table("ports", node, PORT_KEYS));
    let mut read = |key: &str, default: u16| {
        let given =
            table.as_ref().and_then(|table| reader.whole_number(table, key, 0..=65_535, " (0: any that is free)"));
        match given {
            Some(Located { value, line }) => Port { number: value as u16, line: Some(line) },
            None => Port { number: default, line: None },
        }
    };
    Ports {
        outbound: read("outbound", port::OUTBOUND),
        dashboard: read("dashboard", port::DASHBOARD),
        control: read("control", port::CONTROL),
    }
}

fn read_traces(reader: &mut Reader<'_>, root: &Table<'_>) -> (Option<String>, f64) {
    let Some(table) = root.get("traces").and_then(|node| reader.table("traces", node, TRACE_KEYS)) else {
        return (None, 1.0);
    };
    let allowed = "the address of an OTLP/gRPC receiver, such as http://127.0.0.1:4317";
    let otlp =
        reader.parsed(&table, "otlp", allowed, |text| check_otlp(text).map_err(|e| format!("{e}; allowed: {allowed}")));
    (otlp, reader.share(&table, "sample").unwrap_or(1.0))
}

/// An OTLP endpoint: a URL with a host, and no path.
pub(crate) fn check_otlp(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("found the text {text:?}: {error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(format!("found the text {text:?}")),
    }
}

/// Reads the services, and adds the rules for who may call them to those of the mesh.
fn read_services(
    reader: &mut Reader<'_>,
    root: &Table<'_>,
    context: &Context<'_>,
    access: &mut MeshRules,
) -> Vec<Service> {
    let Some(node) = root.get("services") else {
        reader.problem(1, "services", "missing; allowed: a table of services by name");
        return Vec::new();
    };
    let Some(table) = reader.open_table("services", node, "a table of services by name") else {
        return Vec::new();
    };
    if table.entries().is_empty() {
        reader.problem(node.line, "services", "found no service; allowed: one or more by name");
    }
    let mut services = Vec::new();
    for entry in table.entries() {
        let field = table.path(&entry.key);
        let service = read_service(reader, &field, &entry.key, entry.line, entry.node, context, access);
        services.extend(service);
    }
    services
}

fn read_service(
    reader: &mut Reader<'_>,
    field: &str,
    key: &str,
    line: u64,
    node: &Node,
    context: &Context<'_>,
    access: &mut MeshRules,
) -> Option<Service> {
    let name = ServiceName::new(key, &context.namespace).ok();
    if name.is_none() {
        reader.problem(line, field, format!("found the name {key:?}; allowed: {LABEL}"));
    }
    if RESERVED_CALLERS.contains(&key) {
        reader.problem(line, field, "this name has a meaning of its own in lists of callers; allowed: any other");
    }
    if key == KEYBOARD {
        reader.problem(line, field, "this name is reserved for your own sidecar at the keyboard; allowed: any other");
    }
    let table = reader.table(field, node, SERVICE_KEYS)?;
    let run = read_run(reader, &table, line, context);
    let protocol = read_protocol(reader, &table);
    let replicas = reader.whole_number(&table, "replicas", 1..=MAX_REPLICAS, "");
    let port = reader.whole_number(&table, "port", 1..=65_535, "");
    if let (Some(port), Some(replicas)) = (&port, &replicas)
        && replicas.value > 1
    {
        let text = format!("found a fixed port with {} replicas; allowed: one or the other", replicas.value);
        reader.problem(port.line, &table.path("port"), text);
    }
    let forward = reader.whole_number(&table, "forward", 1..=65_535, "");
    let answers_connect = read_connect(reader, &table, protocol);
    let upgrades = read_upgrades(reader, &table, protocol);
    let health = read_health(reader, &table);
    let env = read_env(reader, &table);
    if let (Some(rules), Some(name)) = (read_service_access(reader, &table), &name) {
        if protocol == Protocol::Tcp && !rules.paths.written().is_empty() {
            let text = "found rules for paths with protocol tcp; allowed: with protocol http1 or grpc";
            reader.problem(line, &table.path("access.paths"), text);
        }
        access.services.insert(name.clone(), rules);
    }
    let contracts = read_contracts(reader, &table, context.folder);
    let is_asked = protocol == Protocol::Grpc && table.get("protos").is_none();
    Some(Service {
        name: name?,
        run: run?,
        protocol,
        answers_connect,
        upgrades,
        health,
        replicas: replicas.map_or(1, |r| r.value as u16),
        port: port.map(|p| Port { number: p.value as u16, line: Some(p.line) }),
        forward: forward.map(|p| Port { number: p.value as u16, line: Some(p.line) }),
        env,
        contracts,
        is_asked,
    })
}

fn read_run(reader: &mut Reader<'_>, table: &Table<'_>, line: u64, context: &Context<'_>) -> Option<CommandLine> {
    if table.get("run").is_none() {
        reader.problem(line, &table.path("run"), format!("missing; allowed: {COMMAND}"));
        return None;
    }
    let text = reader.text(table, "run", COMMAND)?;
    program::command_line(reader, &table.path("run"), &text, context.folder, context.must_exist)
}

fn read_protocol(reader: &mut Reader<'_>, table: &Table<'_>) -> Protocol {
    let parse = |text: &str| match text {
        "grpc" => Ok(Protocol::Grpc),
        "http1" => Ok(Protocol::Http1),
        "tcp" => Ok(Protocol::Tcp),
        other => Err(format!("found the text {other:?}; allowed: {PROTOCOLS}")),
    };
    reader.parsed(table, "protocol", PROTOCOLS, parse).unwrap_or(Protocol::Grpc)
}

fn read_connect(reader: &mut Reader<'_>, table: &Table<'_>, protocol: Protocol) -> bool {
    let Some(Located { value, line }) = reader.truth(table, "connect") else { return false };
    if value && protocol != Protocol::Http1 {
        let text = format!("found true with protocol {}; allowed: true with protocol http1", protocol.as_str());
        reader.problem(line, &table.path("connect"), text);
    }
    value
}

fn read_upgrades(reader: &mut Reader<'_>, table: &Table<'_>, protocol: Protocol) -> Vec<UpgradeName> {
    let field = table.path("upgrades");
    let mut upgrades = Vec::new();
    for Located { value, line } in reader.texts(table, "upgrades", "a protocol's name").unwrap_or_default() {
        match value.parse() {
            Ok(_) if protocol == Protocol::Tcp => {
                let text = "found a name with protocol tcp; allowed: with protocol http1 or grpc";
                reader.problem(line, &field, text);
            }
            Ok(name) => upgrades.push(name),
            Err(problem) => reader.problem(line, &field, problem),
        }
    }
    upgrades
}

fn read_health(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<String> {
    let allowed = "grpc, tcp, http:/path";
    reader.parsed(table, "health", allowed, |text| match text.strip_prefix("http:") {
        Some(path) if path.starts_with('/') => Ok(text.to_owned()),
        None if text == "grpc" || text == "tcp" => Ok(text.to_owned()),
        _ => Err(format!("found the text {text:?}; allowed: {allowed}")),
    })
}

fn read_env(reader: &mut Reader<'_>, table: &Table<'_>) -> Vec<(String, String)> {
    let Some(node) = table.get("env") else { return Vec::new() };
    let field = table.path("env");
    let Some(env) = reader.open_table(&field, node, "a table of variables") else { return Vec::new() };
    let mut variables = Vec::new();
    for entry in env.entries() {
        let (key, field) = (&entry.key, env.path(&entry.key));
        if key.is_empty() || key.contains(['=', '\0']) {
            reader.problem(entry.line, &field, "not the name of a variable; allowed: one without =");
            continue;
        }
        match entry.node.scalar_text() {
            Some(value) if !value.contains('\0') => variables.push((key.clone(), value)),
            _ => {
                let found = entry.node.describe();
                reader.problem(entry.node.line, &field, format!("found {found}; allowed: a text"));
            }
        }
    }
    variables
}

fn read_contracts(reader: &mut Reader<'_>, table: &Table<'_>, folder: &Path) -> Option<Contracts> {
    let roots = reader.texts(table, "proto_path", "a folder that imports are looked up in");
    let protos = reader.texts(table, "protos", "a .proto file")?;
    if protos.is_empty() {
        return None;
    }
    let mut include: Vec<PathBuf> = Vec::new();
    match roots {
        Some(roots) => {
            for root in roots {
                let path = folder.join(&root.value);
                if !path.is_dir() {
                    let text = format!("no such folder: {}; allowed: a folder that is there", path.display());
                    reader.problem(root.line, &table.path("proto_path"), text);
                }
                include.push(path);
            }
        }
        None => include.push(default_include(folder)),
    }
    Contracts::compile(reader, &table.path("protos"), &protos, &include, folder)
}

/// Finds port numbers that are used twice: without this check the services would fail only when they start.
fn check_fixed_ports(reader: &mut Reader<'_>, ports: &Ports, services: &[Service]) {
    let named =
        [("ports.outbound", ports.outbound), ("ports.dashboard", ports.dashboard), ("ports.control", ports.control)];
    let of_services = services.iter().flat_map(Service::named_ports);
    let mut taken: Vec<(String, Port)> = Vec::new();
    for (field, port) in named.map(|(field, port)| (field.to_owned(), port)).into_iter().chain(of_services) {
        let same = taken.iter().find(|(_, other)| other.number == port.number && port.number != 0);
        if let Some((other, at)) = same {
            let line = port.line.or(at.line).unwrap_or(1);
            reader.problem(
                line,
                &field,
                format!("found port {}, which {other} has too; allowed: one that is free", port.number),
            );
        }
        taken.push((field, port));
    }
}

/// Finds fallbacks of services that lead back to one another. Those within a contract are found when it is compiled.
fn check_fallbacks(reader: &mut Reader<'_>, services: &[Service]) {
    let policies = services.iter().filter_map(|service| Some((&service.name, &service.contracts.as_ref()?.policy)));
    let policies: Vec<_> = policies.collect();
    let (begin, text) = if let Some((begin, way)) = find_loop(&policies) {
        (begin, format!("its fallbacks lead back to where they began: {way}; allowed: fallbacks that end"))
    } else if let Some((begin, to)) = find_unwelcome(&policies) {
        let option = format!("stands_in_for: '{begin}'");
        (begin, format!("its fallback is {to}, whose contract does not say `{option}`; allowed: services that say so"))
    } else {
        return;
    };
    let service = services.iter().find(|service| service.name == *begin);
    let line = service.and_then(|service| service.contracts.as_ref()).map_or(1, |contracts| contracts.line);
    reader.problem(line, &format!("services.{}.protos", begin.name()), text);
}
