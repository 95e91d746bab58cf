//! The text of Weft's public `.proto` files: those that users' contracts may import.

/// A `.proto` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The name to import it by: `weft/options/v1/options.proto`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! sources {
    ($($name:literal,)*) => {
        &[$(Source { name: $name, text: include_str!(concat!("../proto/", $name)) },)*]
    };
}

/// The options of contracts, and the sidecar's admin API with what it imports.
///
/// The other files are for the parts of the mesh only, and may change with any version.
pub const PUBLIC: &[Source] = sources![
    "weft/admin/v1/admin.proto",
    "weft/discovery/v1/discovery.proto",
    "weft/options/v1/options.proto",
    "weft/policy/v1/policy.proto",
];

/// The file that contracts import for their options.
pub const OPTIONS: Source = PUBLIC[2];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn public_files_import_only_public_files_of_weft() {
        let names: BTreeSet<&str> = PUBLIC.iter().map(|source| source.name).collect();
        for source in PUBLIC {
            let imports = source.text.lines().filter_map(|line| line.strip_prefix("import \"")?.strip_suffix("\";"));
            for import in imports.filter(|import| import.starts_with("weft/")) {
                assert!(names.contains(import), "{} imports {import}", source.name);
            }
        }
        assert_eq!(OPTIONS.name, "weft/options/v1/options.proto");
    }
}
