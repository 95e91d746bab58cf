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

impl Contracts {
    /// Compiles the files and checks the options in them.
    pub(super) fn compile(
        reader: &mut Reader<'_>,
        field: &str,
        files: &[Located<String>],
        include: &[PathBuf],
        folder: &Path,
    ) -> Option<Self> {
        let first_line = files.first()?.line;
        let before = reader.problems.len();
        let mut compiler = protox::Compiler::with_file_resolver(imports::resolver(include));
        compiler.include_imports(true).include_source_info(false);
        let mut told = BTreeSet::new();
        for file in files {
            // A broken import is reported once, even if many files import it.
            if let Err(text) = open(&mut compiler, file, include, folder)
                && told.insert(text.clone())
            {
                reader.problem(file.line, field, text);
            }
        }
        if reader.problems.len() > before {
            return None;
        }
        let own: BTreeSet<&str> = compiler.files().filter(|file| !file.is_import()).map(|file| file.name()).collect();
        // Not `file_descriptor_set()`: its types do not have custom options, so they would be lost.
        let descriptor_set = compiler.encode_file_descriptor_set();
        let implements = services_in(&descriptor_set, &own);
        let sources = compiler.files().filter_map(|file| file.path().map(Path::to_owned)).collect();
        if implements.is_empty() {
            let names = files.iter().map(|f| f.value.as_str()).collect::<Vec<_>>().join(", ");
            reader.problem(
                first_line,
                field,
                format!("no `service` is defined in {names}; allowed: files that define one"),
            );
            return None;
        }
        match ServicePolicy::from_descriptors(&descriptor_set, Some(&implements)) {
            Ok(policy) => Some(Self { descriptor_set, implements, sources, policy, line: first_line }),
            Err(error) => {
                reader.problem(first_line, field, with_line(&error, &compiler));
                None
            }
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

fn open(
    compiler: &mut protox::Compiler,
    file: &Located<String>,
    include: &[PathBuf],
    folder: &Path,
) -> Result<(), String> {
    let path = folder.join(&file.value);
    if !path.is_file() {
        let near = like_it(&path, folder).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
        return Err(format!(
            "no such file: {}{near}; allowed: .proto files, relative to the mesh file",
            path.display()
        ));
    }
    if !include.iter().any(|root| path.starts_with(root)) {
        let roots = include.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(format!("{} is outside of `proto_path`; allowed: files under {roots}", path.display()));
    }
    // Of this library's errors, only the `Debug` form has the file and the line.
    compiler.open_file(&path).map(|_| ()).map_err(|error| format!("{error:?}{}", imports::hint(&error, include)))
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
