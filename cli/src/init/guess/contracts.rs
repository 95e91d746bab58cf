//! The `.proto` files of a folder that define a service.

use std::path::Path;

use protox::file::File;

use super::{Tree, entries, read};

/// A `.proto` file that defines a service.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contract {
    /// Its path from the mesh's folder.
    pub(super) file: String,
    /// The folder that imports of it start from, as a path from the mesh's folder; empty if that is the folder.
    pub(super) root: String,
    /// The full names of the services that it defines.
    pub(super) services: Vec<String>,
}

impl Contract {
    /// The index of the service that most likely implements it, by name: for `shop.users.v1.Users` that is `users`, or
    /// else `shop-users`. A part of the name that fits several services is ignored.
    pub(super) fn owner(&self, names: &[&str]) -> Option<usize> {
        let only = |is_it: &dyn Fn(&str) -> bool| {
            let mut fitting = names.iter().enumerate().filter(|(_, name)| is_it(name));
            fitting.next().filter(|_| fitting.next().is_none()).map(|(place, _)| place)
        };
        // The protobuf service's name first, then the parts of its package from the last to the first.
        let mut parts = self.services.iter().flat_map(|service| service.rsplit('.')).map(plain);
        parts.find_map(|part| {
            only(&|name| plain(name) == part)
                .or_else(|| only(&|name| name.split('-').any(|piece| plain(piece) == part)))
        })
    }
}

/// `user` for `Users`, `user-service` and `UserService`.
fn plain(name: &str) -> String {
    let name = name.to_lowercase().replace(['-', '_'], "");
    let name = name.strip_suffix("service").filter(|rest| !rest.is_empty()).unwrap_or(&name);
    name.strip_suffix('s').unwrap_or(name).to_owned()
}

/// Every contract under a folder, and the errors of files that can't be parsed.
pub(super) fn find(folder: &Path, tree: &Tree) -> (Vec<Contract>, Vec<String>) {
    let (mut contracts, mut notes) = (Vec::new(), Vec::new());
    for at in &tree.0 {
        for name in entries(&folder.join(at), |entry| entry.path().extension().is_some_and(|end| end == "proto")) {
            let file = format!("{at}{name}");
            let Some(text) = read(folder, &file) else { continue };
            match File::from_source(&file, &text) {
                Ok(parsed) => contracts.extend(contract(file, at, parsed.file_descriptor_proto())),
                // The `Debug` form of this error has the file and the line.
                Err(error) => notes.push(format!("{error:?}")),
            }
        }
    }
    (contracts, notes)
}

fn contract(file: String, at: &str, parsed: &prost_types::FileDescriptorProto) -> Option<Contract> {
    let package = parsed.package();
    // The contracts of Weft, Google and gRPC are not implemented in this folder.
    if parsed.service.is_empty() || ["weft.", "google.", "grpc."].iter().any(|own| package.starts_with(own)) {
        return None;
    }
    let full = |name: &str| if package.is_empty() { name.to_owned() } else { format!("{package}.{name}") };
    let services = parsed.service.iter().map(|service| full(service.name())).collect();
    Some(Contract { file, root: root_of(at, package), services })
}

/// The folder that imports start from: `proto/` for a file in `proto/shop/users/v1/` with the package `shop.users.v1`,
/// and for any other file under `proto/`; else the file's own folder.
fn root_of(at: &str, package: &str) -> String {
    let path = format!("{}/", package.replace('.', "/"));
    let before = at.strip_suffix(&path).filter(|_| !package.is_empty());
    if let Some(root) = before.filter(|root| root.is_empty() || root.ends_with('/')) {
        return root.to_owned();
    }
    let mut root = String::new();
    for part in at.split_inclusive('/') {
        root.push_str(part);
        if ["proto/", "protos/"].contains(&part) {
            return root;
        }
    }
    at.to_owned()
}

/// The value of `proto_path` for these contracts; empty if the default is right.
pub(super) fn proto_path(folder: &Path, contracts: &[Contract]) -> Vec<String> {
    let default = if folder.join("proto").is_dir() { "proto/" } else { "" };
    let mut roots: Vec<&str> = contracts.iter().map(|contract| contract.root.as_str()).collect();
    // The deepest first: the name of a file starts from the first folder that contains it.
    roots.sort_unstable_by_key(|root| (std::cmp::Reverse(root.len()), *root));
    roots.dedup();
    if roots.iter().all(|root| *root == default) {
        return Vec::new();
    }
    let shown = |root: &&str| if root.is_empty() { ".".to_owned() } else { root.trim_end_matches('/').to_owned() };
    roots.iter().map(shown).collect()
}
