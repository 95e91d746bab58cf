//! Contracts, and rules for who may call, that are edited while the mesh runs. What they say takes effect at once, without a
//! restart.
//!
//! When a `.proto` file of a service or the mesh file changes, the whole mesh file is read again and checked, as `weft
//! check` does. If all is well, the files that the service's sidecars and the control plane read are replaced, and they use
//! them from then on. If not, all stays as it was, and a line says what is wrong. Other changes of the mesh file need a new
//! start.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

use tokio::time::sleep;
use weft_mesh::{
    file_watch::{FileWatch, Look},
    names::ServiceName,
};

use super::{
    launch::{access_file, contracts_file, write_secret},
    logs::Logs,
};
use crate::mesh_file::{Contracts, MeshFile, Problem, Programs};

/// How often to look whether a file has changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(150);

/// See the module. Never ends.
pub(super) async fn follow(file: &MeshFile, logs: &Logs) {
    let mut live = Live::new(file);
    loop {
        sleep(LOOK_INTERVAL).await;
        for line in live.look() {
            logs.say(line);
        }
    }
}

/// The contracts that the sidecars have.
struct Live {
    mesh_file: PathBuf,
    state_dir: PathBuf,
    /// Those of each service that has `protos`.
    current: HashMap<ServiceName, Current>,
    /// The rules for who may call, as the control plane reads them.
    access: String,
    /// What runs.
    services: Vec<ServiceName>,
    watch: FileWatch,
}

/// The contracts of one service.
struct Current {
    descriptor_set: Vec<u8>,
    implements: Vec<String>,
    /// What its files say that it implements. If that has changed, only a new start helps.
    said_to_implement: Vec<String>,
}

impl Live {
    fn new(file: &MeshFile) -> Self {
        let current = contracts(file).map(|(name, Contracts { descriptor_set, implements, .. })| {
            let [implements, said_to_implement] = [implements.clone(), implements.clone()];
            (name.clone(), Current { descriptor_set: descriptor_set.clone(), implements, said_to_implement })
        });
        Self {
            mesh_file: file.path.clone(),
            state_dir: file.state_dir(),
            current: current.collect(),
            access: file.access_file(),
            services: file.services.iter().map(|service| service.name.clone()).collect(),
            watch: FileWatch::new(sources(file)),
        }
    }

    /// Looks at the files, and does what has to be done. Returns what to say. A file that is still being written is not read:
    /// half of it may be valid, too, and have fewer rules.
    fn look(&mut self) -> Vec<String> {
        if self.watch.look() != Look::Settled {
            return Vec::new();
        }
        match MeshFile::load(&self.mesh_file, Programs::MayBeBuilt) {
            Ok(file) => {
                self.watch.set_files(sources(&file));
                self.take(&file)
            }
            Err(problems) => {
                let mut said: Vec<String> = problems.iter().map(Problem::to_string).collect();
                said.push("the contracts and rules stay as they were".to_owned());
                said
            }
        }
    }

    /// Replaces the contracts that have changed. Returns what to say.
    fn take(&mut self, file: &MeshFile) -> Vec<String> {
        let mut said = Vec::new();
        said.extend(self.take_access(file));
        for (name, Contracts { descriptor_set, implements, .. }) in contracts(file) {
            // A service that is new in the mesh file does not run.
            let Some(current) = self.current.get_mut(name) else { continue };
            let name = name.name();
            let is_told = current.said_to_implement == *implements;
            current.said_to_implement.clone_from(implements);
            if current.implements != *implements {
                if !is_told {
                    let implements = implements.join(", ");
                    said.push(format!(
                        "{name} implements other contracts now ({implements}): stop `weft up` and start it again to use \
                         them"
                    ));
                }
                continue;
            }
            if current.descriptor_set == *descriptor_set {
                continue;
            }
            current.descriptor_set.clone_from(descriptor_set);
            said.push(match write_secret(&contracts_file(&self.state_dir, name), descriptor_set) {
                Ok(()) => format!("{name} has a changed contract, which takes effect now"),
                Err(error) => format!("the changed contract of {name} can't be written: {error}"),
            });
        }
        said
    }
}

impl Live {
    /// Replaces the rules for who may call, if they have changed. Returns what to say.
    fn take_access(&mut self, file: &MeshFile) -> Option<String> {
        let access = file.access_file();
        if self.access == access {
            return None;
        }
        self.access.clone_from(&access);
        // Without its entry a service that runs on would have no rule.
        let names: BTreeSet<&ServiceName> = file.services.iter().map(|service| &service.name).collect();
        if let Some(gone) = self.services.iter().find(|name| !names.contains(name)) {
            return Some(format!(
                "{gone} runs and is no longer in the mesh file, so the rules for who may call stay as they were: stop \
                 `weft up` and start it again to use them"
            ));
        }
        Some(match write_secret(&access_file(&self.state_dir), access.as_bytes()) {
            Ok(()) => "the rules for who may call have changed, which takes effect now".to_owned(),
            Err(error) => {
                // The next change tries again, whatever it is.
                self.access.clear();
                format!("the changed rules for who may call can't be written: {error}")
            }
        })
    }
}

fn contracts(file: &MeshFile) -> impl Iterator<Item = (&ServiceName, &Contracts)> {
    file.services.iter().filter_map(|service| Some((&service.name, service.contracts.as_ref()?)))
}

/// The mesh file, and the `.proto` files that the contracts come from, with their imports.
fn sources(file: &MeshFile) -> Vec<PathBuf> {
    let protos = contracts(file).flat_map(|(_, contracts)| &contracts.sources);
    let sources: BTreeSet<&PathBuf> = protos.chain([&file.path]).collect();
    sources.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MESH: &str = "services:\n  users:\n    run: /bin/true\n    protos: [users.proto]\n";

    fn contract(timeout: &str, more: &str) -> String {
        format!(
            "syntax = \"proto3\";\npackage p;\nimport \"weft/options/v1/options.proto\";\nmessage M {{}}\nservice Users \
             {{\n  rpc Get(M) returns (M) {{ option (weft.options.v1.method) = {{ timeout: {{ {timeout} }} }}; \
             }}\n}}\n{more}"
        )
    }

    #[test]
    fn a_changed_contract_takes_effect_and_a_broken_one_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let edit = |text: &str| fs::write(dir.path().join("users.proto"), text).unwrap();
        edit(&contract("seconds: 1", ""));
        fs::write(dir.path().join("mesh.yaml"), MESH).unwrap();
        let file = MeshFile::load(&dir.path().join("mesh.yaml"), Programs::MustExist).unwrap();
        let compiled = contracts_file(&file.state_dir(), "users");
        fs::create_dir_all(compiled.parent().unwrap()).unwrap();
        let mut watched = Live::new(&file);
        let none: [String; 0] = [];
        assert_eq!([watched.look(), watched.look(), watched.look()].concat(), none, "nothing has changed");
        let mut look = || {
            assert_eq!(watched.look(), [""; 0], "it may still be written");
            watched.look()
        };
        assert!(!compiled.exists());

        edit(&contract("seconds: 2", ""));
        assert_eq!(look(), ["users has a changed contract, which takes effect now"]);
        let two = fs::read(&compiled).unwrap();
        edit(&contract("seconds: -1", ""));
        let said = look().join("\n");
        assert!(
            said.contains("users.proto:6") && said.ends_with("the contracts and rules stay as they were"),
            "{said}"
        );
        assert_eq!(fs::read(&compiled).unwrap(), two);
        fs::remove_file(dir.path().join("users.proto")).unwrap();
        assert!(look().join("\n").contains("no such file"));

        edit(&contract("seconds: 2", ""));
        look();
        fs::write(dir.path().join("mesh.yaml"), format!("access: deny\n{MESH}")).unwrap();
        assert_eq!(look(), ["the rules for who may call have changed, which takes effect now"]);
        assert!(fs::read_to_string(access_file(&file.state_dir())).unwrap().contains("default: deny"));
        let renamed = MESH.replace("  users:", "  people:");
        fs::write(dir.path().join("mesh.yaml"), format!("access: allow\n{renamed}")).unwrap();
        let said = look().join("\n");
        assert!(said.contains("users.default runs and is no longer in the mesh file"), "{said}");
        assert!(fs::read_to_string(access_file(&file.state_dir())).unwrap().contains("default: deny"), "it holds on");
        fs::write(dir.path().join("mesh.yaml"), format!("access: never\n{MESH}")).unwrap();
        let said = look().join("\n");
        assert!(said.contains("mesh.yaml:1: access: found the text \"never\"; allowed: allow, deny"), "{said}");
        fs::write(dir.path().join("mesh.yaml"), format!("access: deny\n# the same\n{MESH}")).unwrap();
        assert_eq!(
            look(),
            ["the rules for who may call have changed, which takes effect now"],
            "since the refused ones"
        );
        fs::write(dir.path().join("mesh.yaml"), format!("access: deny\n# still the same\n{MESH}")).unwrap();
        assert_eq!(look(), none);

        edit(&contract("seconds: 1", "service More {}\n"));
        assert!(look().concat().contains("users implements other contracts now (p.Users, p.More)"));
        edit(&contract("seconds: 3", "service More {}\n"));
        assert_eq!(look(), none, "said once");
        edit(&contract("seconds: 3", ""));
        assert_eq!(look(), ["users has a changed contract, which takes effect now"]);
    }
}
