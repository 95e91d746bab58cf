//! What is shown once the mesh is there: the services, where they are, and what to try.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use prost::Message;
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};

use super::{
    launch::{Mesh, Replica},
    ports::loopback,
};
use crate::mesh_file::{MeshFile, Protocol, Service};

/// The whole picture. `unready` has the replicas that are not, by their place in `replicas`.
pub(crate) fn render(
    file: &MeshFile,
    mesh: &Mesh,
    replicas: &[Arc<Replica>],
    unready: &BTreeMap<usize, String>,
    took: Duration,
) -> String {
    let mut rows = vec![["SERVICE", "READY", "PROTOCOL", "LISTENS ON", "CALLS THROUGH"].map(str::to_owned)];
    for (index, replica) in replicas.iter().enumerate() {
        let Some(service) = file.services.iter().find(|s| replica.service.as_ref().is_some_and(|l| l.name == s.name))
        else {
            continue;
        };
        let ports = *replica.ports.borrow();
        rows.push([
            replica.name.clone(),
            if unready.contains_key(&index) { "NO" } else { "yes" }.to_owned(),
            service.protocol.as_str().to_owned(),
            loopback(ports.app).to_string(),
            loopback(ports.outbound).to_string(),
        ]);
    }
    let outbound = replicas.iter().find(|r| r.service.is_none()).map_or(0, |r| r.ports.borrow().outbound);
    let heading = match unready.len() {
        0 => format!("the mesh is up after {took:.1?}"),
        n => format!("{n} of {} replicas are not ready after {took:.1?}", replicas.len()),
    };
    let mut lines = vec![heading, String::new()];
    lines.extend(aligned(&rows));
    lines.push(String::new());
    lines.push(format!("call in     http://{}", loopback(outbound)));
    lines.push(format!("dashboard   http://{}", loopback(mesh.dashboard)));
    let keyboard = replicas.iter().find(|replica| replica.service.is_none());
    for (service, port) in keyboard.iter().flat_map(|keyboard| &keyboard.forwards) {
        lines.push(format!("{:11} {}", service.name(), loopback(*port)));
    }
    if let Some(otlp) = &file.otlp {
        lines.push(format!("traces to   {otlp}, too"));
    }
    lines.extend(examples(file, mesh, outbound));
    lines.push("stop        Ctrl-C".to_owned());
    lines.push(String::new());
    lines.join("\n")
}

fn aligned(rows: &[[String; 5]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}", cells.join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Calls that can be typed as they stand.
fn examples(file: &MeshFile, mesh: &Mesh, outbound: u16) -> Vec<String> {
    let mut examples = Vec::new();
    let weft = typed_name(&mesh.weft);
    let address = match outbound {
        weft_mesh::names::port::OUTBOUND => String::new(),
        port => format!(" --address http://{}", loopback(port)),
    };
    if let Some(method) = file.services.iter().find_map(harmless_method) {
        examples.push(format!("{weft} call{address}"));
        examples.push(format!("{weft} call{address} {method} '{{}}'"));
        examples.push(format!("grpcurl -plaintext {} list", loopback(outbound)));
    }
    if let Some(service) = file.services.iter().find(|service| service.protocol == Protocol::Http1) {
        examples.push(format!("curl http://{}/{}/", loopback(outbound), service.name.name()));
    }
    let label = |(index, example): (usize, String)| {
        format!("{}{example}", if index == 0 { "try         " } else { "            " })
    };
    examples.into_iter().enumerate().map(label).collect()
}

/// How this program is called from here: by its name where it is the one in `PATH`, else by the way to it.
fn typed_name(weft: &Path) -> String {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&paths).map(|dir| dir.join("weft")).find(|path| path.is_file());
    if in_path.and_then(|path| path.canonicalize().ok()).is_some_and(|path| path == weft) {
        return "weft".to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    weft.strip_prefix(here).unwrap_or(weft).display().to_string()
}

/// A unary method that only reads, best one that needs nothing in particular: `List`.
fn harmless_method(service: &Service) -> Option<String> {
    let contracts = service.contracts.as_ref()?;
    let set = FileDescriptorSet::decode(contracts.descriptor_set.as_slice()).ok()?;
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
            if contracts.implements.contains(&name) {
                methods.extend(definition.method.iter().filter(is_harmless).map(|m| format!("{name}/{}", m.name())));
            }
        }
    }
    let list = methods.iter().find(|method| method.ends_with("/List")).cloned();
    list.or_else(|| methods.into_iter().next())
}
