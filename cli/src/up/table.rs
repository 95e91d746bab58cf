//! What is shown once the mesh is up: the services, where they are, and what to try.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use prost::Message;
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};

use super::{
    launch::{Mesh, Replica},
    ports::loopback,
    reflect::Note,
};
use crate::mesh_file::{MeshFile, Protocol};

/// The contents of the table.
struct Picture {
    took: Duration,
    /// Name, address, whether it is ready, and the address of its sidecar's page.
    replicas: Vec<(String, SocketAddr, bool, SocketAddr)>,
    outbound: SocketAddr,
    /// The page of your sidecar.
    own_page: SocketAddr,
    dashboard: SocketAddr,
    /// Services that have a port of their own at your sidecar, and that address.
    forwards: Vec<(String, SocketAddr)>,
    otlp: Option<String>,
    /// What services have told by server reflection, or why nothing is known.
    told: Vec<String>,
    /// Commands to try.
    examples: Vec<String>,
}

/// The whole table. `unready` has the replicas that are not ready, by their index in `replicas`, and
/// `notes` what services were asked for.
pub(super) fn render(
    file: &MeshFile,
    mesh: &Mesh,
    replicas: &[Arc<Replica>],
    unready: &BTreeMap<usize, String>,
    notes: &[Note],
    took: Duration,
) -> String {
    let of_services = replicas.iter().enumerate().filter(|(_, replica)| replica.service.is_some());
    let keyboard = replicas.iter().find(|replica| replica.service.is_none());
    let (outbound, own_page) = keyboard.map_or((0, 0), |keyboard| {
        let ports = keyboard.ports.borrow();
        (ports.outbound, ports.admin)
    });
    let forwards = keyboard.iter().flat_map(|keyboard| &keyboard.forwards);
    let picture = Picture {
        took,
        replicas: of_services
            .map(|(index, replica)| {
                let ports = *replica.ports.borrow();
                let is_ready = !unready.contains_key(&index);
                (replica.name.clone(), loopback(ports.app), is_ready, loopback(ports.admin))
            })
            .collect(),
        outbound: loopback(outbound),
        own_page: loopback(own_page),
        dashboard: loopback(mesh.dashboard),
        forwards: forwards.map(|(service, port)| (service.name().to_owned(), loopback(*port))).collect(),
        otlp: file.otlp.clone(),
        told: notes.iter().map(|note| format!("{}: {}", note.service, note.text)).collect(),
        examples: examples(file, mesh, notes, outbound),
    };
    // Your own sidecar may be the one that is not ready.
    picture.text(unready.len(), replicas.len())
}

impl Picture {
    fn text(&self, unready: usize, all: usize) -> String {
        let took = self.took;
        let heading = match unready {
            0 => format!("the mesh is up after {took:.1?}"),
            n => format!("{n} of {all} sidecars are not ready after {took:.1?}"),
        };
        let mut rows = vec![["SERVICE", "ADDRESS", "STATE", "SIDECAR'S PAGE"].map(str::to_owned)];
        rows.extend(self.replicas.iter().map(|(name, address, is_ready, page)| {
            let state = if *is_ready { "ready" } else { "NOT READY" };
            [name.clone(), address.to_string(), state.to_owned(), format!("http://{page}/")]
        }));
        let mut lines = vec![heading, String::new()];
        lines.extend(aligned(&rows));
        lines.push(String::new());
        let mut say = |what: &str, text: &str| lines.push(format!("{what:12} {text}"));
        say("dashboard", &format!("http://{}/", self.dashboard));
        say("your sidecar", &format!("http://{}   (its page: http://{}/)", self.outbound, self.own_page));
        for (service, address) in &self.forwards {
            say(service, &address.to_string());
        }
        if let Some(otlp) = &self.otlp {
            say("traces to", &format!("{otlp} as well"));
        }
        for (index, told) in self.told.iter().enumerate() {
            say(if index == 0 { "contracts" } else { "" }, told);
        }
        for (index, example) in self.examples.iter().enumerate() {
            say(if index == 0 { "try" } else { "" }, example);
        }
        say("stop", "Ctrl-C");
        lines.push(String::new());
        lines.join("\n")
    }
}

fn aligned(rows: &[[String; 4]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let line = |row: &[String; 4]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}", cells.join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Commands that can be copied as they are.
fn examples(file: &MeshFile, mesh: &Mesh, notes: &[Note], outbound: u16) -> Vec<String> {
    let mut examples = Vec::new();
    let weft = typed_name(&mesh.weft);
    let address = match outbound {
        weft_mesh::names::port::OUTBOUND => String::new(),
        port => format!(" --address http://{}", loopback(port)),
    };
    let told = notes.iter().filter_map(|note| note.contracts.as_deref());
    let told = told.map(|told| (&told.descriptor_set, &told.implements));
    let of_file = file.services.iter().filter_map(|service| service.contracts.as_ref());
    let of_file = of_file.map(|contracts| (&contracts.descriptor_set, &contracts.implements));
    let contracts: Vec<_> = of_file.chain(told).collect();
    if let Some(method) = contracts.iter().find_map(|(set, implements)| harmless_method(set, implements)) {
        examples.push(format!("{weft} call{address} {method} '{{}}'"));
    }
    if let Some(service) = file.services.iter().find(|service| service.protocol == Protocol::Http1) {
        examples.push(format!("curl http://{}/{}/", loopback(outbound), service.name.name()));
    }
    if !contracts.is_empty() {
        examples.push(format!("{weft} call{address}   (lists what can be called)"));
    }
    examples
}

/// How this program is started from here: by its name if it is the one in `PATH`, else by its path.
fn typed_name(weft: &Path) -> String {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&paths).map(|dir| dir.join("weft")).find(|path| path.is_file());
    if in_path.and_then(|path| path.canonicalize().ok()).is_some_and(|path| path == weft) {
        return "weft".to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    weft.strip_prefix(here).unwrap_or(weft).display().to_string()
}

/// A unary method that only reads, preferably `List`, which should need no argument.
fn harmless_method(descriptor_set: &[u8], implements: &[String]) -> Option<String> {
    let set = FileDescriptorSet::decode(descriptor_set).ok()?;
    let mut methods = Vec::new();
    for file in &set.file {
        for definition in &file.service {
            let name = match file.package() {
                "" => definition.name().to_owned(),
                package => format!("{package}.{}", definition.name()),
            };
            let is_harmless = |m: &&prost_types::MethodDescriptorProto| {
                let level = m.options.as_ref().map(prost_types::MethodOptions::idempotency_level);
                level == Some(IdempotencyLevel::NoSideEffects) && !m.client_streaming() && !m.server_streaming()
            };
            if implements.contains(&name) {
                methods.extend(definition.method.iter().filter(is_harmless).map(|m| format!("{name}/{}", m.name())));
            }
        }
    }
    let list = methods.iter().find(|method| method.ends_with("/List")).cloned();
    list.or_else(|| methods.into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        Picture {
            took: Duration::from_millis(2_345),
            replicas: vec![
                ("users-1".into(), loopback(4_001), true, loopback(4_002)),
                ("notifications-1".into(), loopback(4_003), false, loopback(4_004)),
            ],
            outbound: loopback(15_001),
            own_page: loopback(4_005),
            dashboard: loopback(15_080),
            forwards: vec![("db".into(), loopback(15_432))],
            otlp: None,
            told: vec!["users: no contract known".into()],
            examples: vec!["weft call shop.users.v1.Users/List '{}'".into(), "weft call".into()],
        }
    }

    #[test]
    fn the_table_says_what_there_is_and_what_to_try() {
        let expected = "\
2 of 3 sidecars are not ready after 2.3s

  SERVICE           ADDRESS          STATE       SIDECAR'S PAGE
  users-1           127.0.0.1:4001   ready       http://127.0.0.1:4002/
  notifications-1   127.0.0.1:4003   NOT READY   http://127.0.0.1:4004/

dashboard    http://127.0.0.1:15080/
your sidecar http://127.0.0.1:15001   (its page: http://127.0.0.1:4005/)
db           127.0.0.1:15432
contracts    users: no contract known
try          weft call shop.users.v1.Users/List '{}'
             weft call
stop         Ctrl-C
";
        assert_eq!(picture().text(2, 3), expected);
        assert!(picture().text(0, 3).starts_with("the mesh is up after 2.3s\n"));
    }
}
