//! The examples: small services whose files are part of this program.

use std::{ffi::OsString, fs, io, path::Path};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use weft_contracts::sources::OPTIONS;

use crate::{
    console::say,
    new_files::{FileState, NewFile},
};

/// The language of an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Example {
    /// Go, with grpc-go
    #[value(alias = "golang")]
    Go,
    /// Python, with grpcio
    #[value(alias = "python3", alias = "py")]
    Python,
    /// Node, with grpc-js
    #[value(alias = "nodejs", alias = "javascript", alias = "js")]
    Node,
    /// Java, with grpc-java and Maven
    Java,
    /// Rust, with tonic
    #[value(alias = "rs")]
    Rust,
}

/// The contract that all of them implement, and what it imports.
const CONTRACT: [NewFile<'static>; 2] = [
    NewFile { name: "proto/hello/v1/hello.proto", text: include_str!("../../templates/hello.proto") },
    NewFile { name: "proto/weft/options/v1/options.proto", text: OPTIONS.text },
];

macro_rules! template {
    ($folder:literal: $($name:literal $(from $file:literal)?,)*) => {
        &[$(NewFile { name: $name, text: template!(@text $folder $name $($file)?) },)*]
    };
    (@text $folder:literal $name:literal) => { include_str!(concat!("../../templates/", $folder, "/", $name)) };
    (@text $folder:literal $name:literal $file:literal) => {
        include_str!(concat!("../../templates/", $folder, "/", $file))
    };
}

impl Example {
    /// The files that only the example in this language has.
    fn own_files(self) -> &'static [NewFile<'static>] {
        match self {
            Self::Go => template! { "go":
                "mesh.yaml",
                "README.md",
                "main.go",
                "go.mod",
                "go.sum",
                "buf.gen.yaml",
                "proto/buf.yaml" from "../buf.yaml",
                "gen/hello/v1/hello.pb.go",
                "gen/hello/v1/hello_grpc.pb.go",
                "gen/weft/options/v1/options.pb.go",
                ".gitignore" from "gitignore",
            },
            Self::Python => template! { "python":
                "mesh.yaml",
                "README.md",
                "server.py",
                "build.sh",
                "requirements.txt",
                ".gitignore" from "gitignore",
            },
            Self::Node => template! { "node":
                "mesh.yaml",
                "README.md",
                "server.js",
                "package.json",
                ".gitignore" from "gitignore",
            },
            Self::Java => template! { "java":
                "mesh.yaml",
                "README.md",
                "src/Greeter.java",
                "pom.xml",
                ".gitignore" from "gitignore",
            },
            Self::Rust => template! { "rust":
                "mesh.yaml",
                "README.md",
                "src/main.rs",
                "build.rs",
                "Cargo.toml",
                ".gitignore" from "gitignore",
            },
        }
    }

    fn files(self) -> Vec<NewFile<'static>> {
        self.own_files().iter().copied().chain(CONTRACT).collect()
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Writes an example into a folder that is empty or does not exist yet.
///
/// # Errors
/// The folder is not empty, or cannot be written.
pub(super) fn write(example: Example, dir: &Path) -> anyhow::Result<()> {
    let shown = dir.display();
    let language = example.name();
    let there = visible(dir)?;
    if !there.is_empty() {
        let named: Vec<String> = there.iter().take(3).map(|name| name.to_string_lossy().into_owned()).collect();
        let more = if there.len() > 3 { format!(" and {} more", there.len() - 3) } else { String::new() };
        bail!(
            "{shown} is not empty ({}{more}); name a new folder for the example: weft init --example {language} greeter",
            named.join(", ")
        );
    }
    // Hidden files, such as a .gitignore, are not counted above.
    let files = example.files();
    for file in &files {
        if file.state_in(dir)? == FileState::Differs {
            bail!("{} exists already; nothing was written", file.path(dir).display());
        }
    }
    for file in &files {
        if file.state_in(dir)? == FileState::Missing {
            file.create(dir)?;
        }
    }
    let to = if dir == Path::new(".") { String::new() } else { format!("cd {shown} && ") };
    say(format_args!("wrote {} files: a service in {language}; README.md says what each file is", files.len()))?;
    say(format_args!("Start it:  {to}weft up"))?;
    say("Call it:   weft call hello.v1.Greeter/Hello '{\"name\":\"Ada\"}'   (in another terminal, in that folder)")?;
    Ok(())
}

/// The names in a folder except hidden ones, sorted; none if there is no folder.
fn visible(dir: &Path) -> anyhow::Result<Vec<OsString>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{} can't be read", dir.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("{} can't be read", dir.display()))?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::PathBuf};

    use prost::Message;
    use prost_types::FileDescriptorProto;

    use super::*;
    use crate::mesh_file::MeshFile;

    fn templates() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("templates")
    }

    /// The files under a folder, from there.
    fn files_under(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                files_under(&entry.path(), &format!("{name}/"), found);
            } else {
                found.insert(name);
            }
        }
    }

    #[test]
    fn every_file_of_a_template_is_written() {
        for example in Example::value_variants() {
            let mut there = BTreeSet::new();
            files_under(&templates().join(example.name()), "", &mut there);
            let of_others = "proto/buf.yaml";
            let written = example.own_files().iter().map(|file| file.name).filter(|name| *name != of_others);
            let written: BTreeSet<String> = written.map(|name| name.replace(".gitignore", "gitignore")).collect();
            assert_eq!(written, there, "{example:?}");
        }
    }

    #[test]
    fn an_example_s_contract_and_mesh_file_are_good() {
        for example in Example::value_variants() {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("greeter");
            write(*example, &folder).unwrap();
            // The build is replaced, so that neither Go nor Maven is needed.
            let path = folder.join("mesh.yaml");
            let text = fs::read_to_string(&path).unwrap();
            let (build, run) = (line(&text, "build: "), line(&text, "    run: "));
            let text = text.replace(build, "build: sh").replace(run, "    run: sh");
            fs::write(&path, text).unwrap();
            let mesh = MeshFile::load(&path, crate::mesh_file::Programs::MustExist).unwrap();
            let [service] = &mesh.services[..] else { panic!("one service") };
            assert_eq!(service.name.to_string(), "greeter.hello");
            assert_eq!(service.contracts.as_ref().unwrap().implements, ["hello.v1.Greeter"]);
        }
    }

    #[test]
    fn the_go_code_is_made_from_the_contracts_as_they_are_now() {
        let dir = tempfile::tempdir().unwrap();
        write(Example::Go, dir.path()).unwrap();
        let contract = "hello/v1/hello.proto";
        let compiled = protox::compile([contract], [dir.path().join("proto")]).unwrap().file;
        for name in [contract, OPTIONS.name] {
            let go = dir.path().join("gen").join(name.replace(".proto", ".pb.go"));
            let in_go = descriptor_in(&fs::read_to_string(go).unwrap());
            let now = compiled.iter().find(|file| file.name() == name).unwrap();
            assert_eq!(comparable(in_go), comparable(now.clone()), "{name}: run `go generate`, see CONTRIBUTING.md");
        }
    }

    /// Without comments, and without the packages of each language, which the generator adds as options of the file.
    fn comparable(file: FileDescriptorProto) -> FileDescriptorProto {
        FileDescriptorProto { source_code_info: None, options: None, ..file }
    }

    /// The descriptor that generated Go code contains, as string literals with a `+` between the lines.
    fn descriptor_in(go: &str) -> FileDescriptorProto {
        let (_, literals) = go.split_once("_rawDesc = \"\" +\n").unwrap();
        let mut bytes = Vec::new();
        for line in literals.lines() {
            let literal = line.trim().trim_end_matches(" +");
            unquote(literal.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap(), &mut bytes);
            if !line.ends_with('+') {
                break;
            }
        }
        FileDescriptorProto::decode(&*bytes).unwrap()
    }

    /// What is in a string literal (the Go language's specification, "Rune literals").
    fn unquote(text: &str, to: &mut Vec<u8>) {
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            let c = match c {
                '\\' => match rest.next().unwrap() {
                    'x' => {
                        to.push(u8::try_from(hex(&mut rest, 2)).unwrap());
                        continue;
                    }
                    'u' => char::from_u32(hex(&mut rest, 4)).unwrap(),
                    'a' => '\x07',
                    'b' => '\x08',
                    'f' => '\x0c',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'v' => '\x0b',
                    same @ ('\\' | '"') => same,
                    other => panic!("\\{other}"),
                },
                c => c,
            };
            to.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    fn hex(digits: &mut std::str::Chars<'_>, count: usize) -> u32 {
        u32::from_str_radix(&digits.take(count).collect::<String>(), 16).unwrap()
    }

    fn line<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(start)).unwrap()
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["notes.txt", "b", "c", "d"] {
            fs::write(dir.path().join(name), "mine").unwrap();
        }
        let told = write(Example::Python, dir.path()).unwrap_err().to_string();
        let expected =
            "is not empty (b, c, d and 1 more); name a new folder for the example: weft init --example python greeter";
        assert!(told.ends_with(expected), "{told}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    }

    #[test]
    fn hidden_files_do_not_matter_unless_they_are_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".git")).unwrap();
        fs::write(dir.path().join(".gitignore"), "mine").unwrap();
        let told = write(Example::Go, dir.path()).unwrap_err().to_string();
        assert!(told.ends_with(".gitignore exists already; nothing was written"), "{told}");
        assert!(!dir.path().join("mesh.yaml").exists());
        fs::remove_file(dir.path().join(".gitignore")).unwrap();
        write(Example::Go, dir.path()).unwrap();
        assert!(dir.path().join("proto/hello/v1/hello.proto").exists());
    }

    #[test]
    fn a_mistyped_language_is_reported_with_the_known_ones() {
        use clap::Parser;
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            args: super::super::Args,
        }
        let told = Cli::try_parse_from(["init", "--example", "pyhton"]).err().unwrap().to_string();
        assert!(
            told.contains("'pyhton'") && told.contains("[possible values: go, python, node, java, rust]"),
            "{told}"
        );
        assert_eq!(Cli::try_parse_from(["init", "-e", "golang"]).unwrap().args.example, Some(Example::Go));
    }
}
