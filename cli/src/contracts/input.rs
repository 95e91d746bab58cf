//! A service's contracts, from files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use weft_mesh::{policy::ServicePolicy, schema};

use crate::{
    mesh_file::{Contracts, Lookup, default_include},
    project_file,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Input {
    /// What the service implements, in the order of their names.
    pub(super) contracts: Vec<String>,
    /// A serialized `google.protobuf.FileDescriptorSet` with all imports and without comments.
    pub(super) descriptor_set: Vec<u8>,
}

impl Input {
    /// Reads and checks files: sources, or one compiled set. `contracts` are those that the service implements, if it is said.
    ///
    /// # Errors
    /// All that is wrong with the first step that something is wrong with.
    pub(super) fn read(
        folder: &Path,
        files: &[String],
        proto_path: &[String],
        contracts: &[String],
    ) -> anyhow::Result<Self> {
        let is_source = |file: &String| Path::new(file).extension().is_some_and(|end| end == "proto");
        let (descriptor_set, defined) = match files {
            files if files.iter().all(is_source) => compile(folder, files, proto_path)?,
            [file] => {
                ensure!(
                    proto_path.is_empty(),
                    "{file}: it is compiled already; allowed with --proto-path: .proto files"
                );
                compiled(folder, file)?
            }
            files => bail!("found {}; allowed: .proto files only, or one compiled descriptor set", files.join(", ")),
        };
        let mut contracts = match contracts {
            [] => defined,
            chosen => {
                ServicePolicy::from_descriptors(&descriptor_set, Some(chosen)).context("--contracts")?;
                chosen.to_vec()
            }
        };
        contracts.sort_unstable();
        contracts.dedup();
        Ok(Self { contracts, descriptor_set })
    }
}

/// A descriptor set, and the contracts that the service implements if nobody says.
type Defined = (Vec<u8>, Vec<String>);

fn compile(folder: &Path, files: &[String], proto_path: &[String]) -> anyhow::Result<Defined> {
    let mut include: Vec<PathBuf> = proto_path.iter().map(|root| folder.join(root)).collect();
    for (root, path) in proto_path.iter().zip(&include) {
        ensure!(path.is_dir(), "--proto-path {root}: no such folder");
    }
    if include.is_empty() {
        include.push(default_include(folder));
    }
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    let lookup = Lookup { folder, folder_of: "the current folder", include: &include, include_by: "--proto-path" };
    match Contracts::of_files(&names, &lookup) {
        Ok(contracts) => Ok((contracts.descriptor_set, contracts.implements)),
        Err(wrong) => {
            let lines: Vec<String> = wrong.into_iter().map(|wrong| wrong.text).collect();
            bail!("the contracts can't be used; nothing was written\n{}", lines.join("\n"))
        }
    }
}

fn compiled(folder: &Path, file: &str) -> anyhow::Result<Defined> {
    let bytes = project_file::read(&folder.join(file)).with_context(|| format!("{file} can't be read"))?;
    let descriptor_set = schema::without_comments(&bytes).with_context(|| {
        format!("{file}: not a serialized google.protobuf.FileDescriptorSet with all its imports that can be used")
    })?;
    let policy = ServicePolicy::from_descriptors(&descriptor_set, None).with_context(|| file.to_owned())?;
    let defined: Vec<String> = policy.contracts.into_iter().map(|contract| contract.name).collect();
    ensure!(!defined.is_empty(), "{file}: no `service` is defined in it; allowed: a set that defines one");
    Ok((descriptor_set, defined))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const USERS: &str = r#"syntax = "proto3";
package demo.v1;
import "weft/options/v1/options.proto";
import "common.proto";
// Who there is.
service Users {
  rpc Get(common.Request) returns (common.Request) {
    option (weft.options.v1.method) = { timeout: { seconds: 2 } };
  }
}
service Admin { rpc Remove(common.Request) returns (common.Request); }
"#;
    const COMMON: &str = r#"syntax = "proto3";
package common;
message Request {}
service Common { rpc Get(Request) returns (Request); }
"#;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("proto")).unwrap();
        fs::write(dir.path().join("proto/users.proto"), USERS).unwrap();
        fs::write(dir.path().join("proto/common.proto"), COMMON).unwrap();
        dir
    }

    fn read(dir: &tempfile::TempDir, files: &[&str], contracts: &[&str]) -> Result<Input, String> {
        let [files, contracts] = [files, contracts].map(|texts| texts.iter().map(|text| (*text).to_owned()).collect());
        let (files, contracts): (Vec<String>, Vec<String>) = (files, contracts);
        Input::read(dir.path(), &files, &[], &contracts)
            .map_err(|error| format!("{error:#}").replace(dir.path().to_str().unwrap(), "FOLDER"))
    }

    #[test]
    fn a_service_implements_what_its_own_files_define() {
        let dir = folder();
        let input = read(&dir, &["proto/users.proto"], &[]).unwrap();
        assert_eq!(input.contracts, ["demo.v1.Admin", "demo.v1.Users"]);
        let policy = ServicePolicy::from_descriptors(&input.descriptor_set, Some(&input.contracts)).unwrap();
        assert_eq!(policy.method("demo.v1.Users", "Get").unwrap().timeout.unwrap().value.as_secs(), 2);
        let chosen = read(&dir, &["proto/users.proto"], &["demo.v1.Users", "demo.v1.Users"]).unwrap();
        assert_eq!(chosen.contracts, ["demo.v1.Users"]);
        assert_eq!(chosen.descriptor_set, input.descriptor_set, "imports and the rest stay as they are");
    }

    #[test]
    fn a_compiled_set_says_the_same() {
        let dir = folder();
        let input = read(&dir, &["proto/users.proto"], &[]).unwrap();
        fs::write(dir.path().join("users.binpb"), &input.descriptor_set).unwrap();
        let compiled = read(&dir, &["users.binpb"], &[]).unwrap();
        // Nobody knows of it which files are imports.
        assert_eq!(compiled.contracts, ["common.Common", "demo.v1.Admin", "demo.v1.Users"]);
        let compiled = read(&dir, &["users.binpb"], &["demo.v1.Users"]).unwrap();
        let of = |input: &Input| ServicePolicy::from_descriptors(&input.descriptor_set, None).unwrap();
        assert_eq!(of(&compiled), of(&input));
    }

    #[test]
    fn what_is_wrong_is_told_as_by_check() {
        let dir = folder();
        let write = |name: &str, text: &str| fs::write(dir.path().join("proto").join(name), text).unwrap();
        write("wrong.proto", &USERS.replace("seconds: 2", "seconds: -2"));
        write("broken.proto", "syntax = \"proto3\";\nmessage {");
        write("empty.proto", "syntax = \"proto3\";");
        fs::write(dir.path().join("text.binpb"), "text").unwrap();
        fs::write(dir.path().join("other.proto"), COMMON).unwrap();
        let told = |files: &[&str]| read(&dir, files, &[]).unwrap_err();
        let wrong = told(&["proto/wrong.proto"]);
        let expected = "the contracts can't be used; nothing was written\nwrong.proto:8: option (weft.options.v1.method) of \
                        method demo.v1.Users/Get: timeout is ";
        assert!(wrong.starts_with(expected), "{wrong}");
        let broken = told(&["proto/broken.proto", "proto/none.proto"]);
        assert!(broken.contains("\nbroken.proto:2:9: expected an identifier"), "{broken}");
        assert!(broken.contains("\nno such file: FOLDER/proto/none.proto"), "{broken}");
        assert!(broken.ends_with("; allowed: .proto files, relative to the current folder"), "{broken}");
        assert!(
            told(&["proto/empty.proto"])
                .ends_with("no `service` is defined in proto/empty.proto; allowed: files that define one")
        );
        let outside = told(&["other.proto"]);
        assert!(
            outside.ends_with("other.proto is outside of `--proto-path`; allowed: files under FOLDER/proto"),
            "{outside}"
        );
        let text = told(&["text.binpb"]);
        assert!(text.starts_with("text.binpb: not a serialized google.protobuf.FileDescriptorSet"), "{text}");
        assert!(told(&["none.binpb"]).starts_with("none.binpb can't be read"));
        let mixed = told(&["proto/users.proto", "text.binpb"]);
        assert!(mixed.starts_with("found proto/users.proto, text.binpb; allowed: "), "{mixed}");
        let unknown = read(&dir, &["proto/users.proto"], &["demo.v1.User"]).unwrap_err();
        assert!(
            unknown.starts_with("--contracts: ") && unknown.ends_with("did you mean `demo.v1.Users`?"),
            "{unknown}"
        );
    }
}
