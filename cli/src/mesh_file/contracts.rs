//! Compiles a service's `.proto` files, so that no `protoc` is needed, and checks them before anything starts.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use prost::Message;
use weft_mesh::{
    config::Reader,
    names::closest,
    policy::{PolicyError, ServicePolicy},
};

use super::{Located, imports};

/// What a service's `.proto` files say.
#[derive(Debug, Clone)]
pub(crate) struct Contracts {
    /// A serialized `google.protobuf.FileDescriptorSet`: the files, their imports, every option.
    pub(crate) descriptor_set: Vec<u8>,
    /// The protobuf services defined in the files themselves: what this service implements.
    pub(crate) implements: Vec<String>,
    /// The files and their imports, except those that are in this program.
    pub(crate) sources: Vec<PathBuf>,
    /// What the options in the files say.
    pub(crate) policy: ServicePolicy,
    /// Where `mesh.yaml` names the files.
    pub(super) line: u64,
}

/// Where `.proto` files and their imports are looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup<'a> {
    /// What the files are relative to.
    pub(crate) folder: &'a Path,
    /// The same in words.
    pub(crate) folder_of: &'static str,
    /// The folders of imports.
    pub(crate) include: &'a [PathBuf],
    /// What sets them.
    pub(crate) include_by: &'static str,
}

/// What is wrong with one of several `.proto` files.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// Its place in the list.
    pub(crate) file: usize,
    pub(crate) text: String,
}

/// Where imports are looked up if nobody says.
pub(crate) fn default_include(folder: &Path) -> PathBuf {
    let proto = folder.join("proto");
    if proto.is_dir() { proto } else { folder.to_owned() }
}

impl Contracts {
    /// Compiles the files that a mesh file names, and checks the options in them.
    pub(super) fn compile(
        reader: &mut Reader<'_>,
        field: &str,
        files: &[Located<String>],
        include: &[PathBuf],
        folder: &Path,
    ) -> Option<Self> {
        let first_line = files.first()?.line;
        let names: Vec<&str> = files.iter().map(|file| file.value.as_str()).collect();
        let lookup = Lookup { folder, folder_of: "the mesh file", include, include_by: "proto_path" };
        match Self::of_files(&names, &lookup) {
            Ok(contracts) => Some(Self { line: first_line, ..contracts }),
            Err(wrong) => {
                for Wrong { file, text } in wrong {
                    reader.problem(files[file].line, field, text);
                }
                None
            }
        }
    }

    /// Compiles files and checks the options in them.
    ///
    /// # Errors
    /// All that is wrong.
    pub(crate) fn of_files(files: &[&str], lookup: &Lookup<'_>) -> Result<Self, Vec<Wrong>> {
        let mut compiler = protox::Compiler::with_file_resolver(imports::resolver(lookup.include));
        compiler.include_imports(true).include_source_info(false);
        let (mut wrong, mut told) = (Vec::new(), BTreeSet::new());
        for (place, file) in files.iter().enumerate() {
            // A broken import is reported once, even if many files import it.
            if let Err(text) = open(&mut compiler, file, lookup)
                && told.insert(text.clone())
            {
                wrong.push(Wrong { file: place, text });
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let own: BTreeSet<&str> = compiler.files().filter(|file| !file.is_import()).map(|file| file.name()).collect();
        // Not `file_descriptor_set()`: its types do not have custom options, so they would be lost.
        let descriptor_set = compiler.encode_file_descriptor_set();
        let implements = services_in(&descriptor_set, &own);
        let sources = compiler.files().filter_map(|file| file.path().map(Path::to_owned)).collect();
        if implements.is_empty() {
            let text = format!("no `service` is defined in {}; allowed: files that define one", files.join(", "));
            return Err(vec![Wrong { file: 0, text }]);
        }
        match ServicePolicy::from_descriptors(&descriptor_set, Some(&implements)) {
            Ok(policy) => Ok(Self { descriptor_set, implements, sources, policy, line: 0 }),
            Err(error) => Err(vec![Wrong { file: 0, text: with_line(&error, &compiler) }]),
        }
    }
}

/// An error with the line of the option that it is about.
fn with_line(error: &PolicyError, compiler: &protox::Compiler) -> String {
    let text = error.to_string();
    let PolicyError::InvalidOption { file, element, .. } = error else { return text };
    match line_of(compiler, file, element) {
        Some(line) => format!("{file}:{line}{}", text.strip_prefix(file.as_str()).unwrap_or(&text)),
        None => text,
    }
}

/// The line of Weft's option of `service a.b.C` or `method a.b.C/D`, or else of the service or the method itself.
fn line_of(compiler: &protox::Compiler, file: &str, element: &str) -> Option<i32> {
    // The field numbers in a location's path, as `google.protobuf.FileDescriptorProto` has them.
    const SERVICE: i32 = 6;
    const METHOD: i32 = 2;
    const SERVICE_OPTIONS: i32 = 3;
    const METHOD_OPTIONS: i32 = 4;
    const WEFT_OPTION: i32 = 50901;
    let file = compiler.descriptor_pool().get_file_by_name(file)?;
    let descriptor = file.file_descriptor_proto();
    let (_, full_name) = element.split_once(' ')?;
    let (service, method) = full_name.split_once('/').map_or((full_name, None), |(name, method)| (name, Some(method)));
    let name = service.rsplit('.').next()?;
    let index = descriptor.service.iter().position(|service| service.name() == name)?;
    let mut path = vec![SERVICE, i32::try_from(index).ok()?];
    let options = match method {
        None => SERVICE_OPTIONS,
        Some(name) => {
            let methods = &descriptor.service[index].method;
            let index = methods.iter().position(|method| method.name() == name)?;
            path.extend([METHOD, i32::try_from(index).ok()?]);
            METHOD_OPTIONS
        }
    };
    let locations = &descriptor.source_code_info.as_ref()?.location;
    let is_ours = |path: &[i32]| path.contains(&WEFT_OPTION);
    let of_option =
        |given: &[i32]| given.strip_prefix(&*path).is_some_and(|rest| rest.first() == Some(&options) && is_ours(rest));
    let found = locations.iter().find(|location| of_option(&location.path));
    let found = found.or_else(|| locations.iter().find(|location| location.path == path))?;
    Some(found.span.first()? + 1)
}

fn open(compiler: &mut protox::Compiler, file: &str, lookup: &Lookup<'_>) -> Result<(), String> {
    let Lookup { folder, folder_of, include, include_by } = *lookup;
    let path = folder.join(file);
    if !path.is_file() {
        let near = like_it(&path, folder).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
        return Err(format!("no such file: {}{near}; allowed: .proto files, relative to {folder_of}", path.display()));
    }
    if !include.iter().any(|root| path.starts_with(root)) {
        let roots = include.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(format!("{} is outside of `{include_by}`; allowed: files under {roots}", path.display()));
    }
    // Of this library's errors, only the `Debug` form has the file and the line.
    let told = |error: protox::Error| format!("{error:?}{}", imports::hint(&error, include, include_by));
    compiler.open_file(&path).map(|_| ()).map_err(told)
}

fn like_it(path: &Path, folder: &Path) -> Option<String> {
    let names: Vec<String> = std::fs::read_dir(path.parent()?)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".proto"))
        .collect();
    let near = path.with_file_name(closest(path.file_name()?.to_str()?, names.iter().map(String::as_str))?);
    Some(near.strip_prefix(folder).unwrap_or(&near).display().to_string())
}

fn services_in(descriptor_set: &[u8], own: &BTreeSet<&str>) -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(descriptor_set).unwrap_or_default();
    let files = set.file.iter().filter(|file| own.contains(file.name()));
    files
        .flat_map(|file| {
            file.service.iter().map(|service| match file.package() {
                "" => service.name().to_owned(),
                package => format!("{package}.{}", service.name()),
            })
        })
        .collect()
}
