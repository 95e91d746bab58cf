//! Whether a copy of a `.proto` file says anything that the file itself does not.
//!
//! Fields, values and methods are only ever added to Weft's files, so an older copy has nothing that the file itself
//! lacks. Comments, order and options do not matter.

use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    MethodDescriptorProto, ServiceDescriptorProto,
};

/// The first thing in `copy` that is missing in `own` or different there: "`Breaker.probes`".
pub(super) fn said_beyond(own: &FileDescriptorProto, copy: &FileDescriptorProto) -> Option<String> {
    if own.package() != copy.package() {
        return Some(format!("`package {}`", copy.package()));
    }
    let path = messages(&own.message_type, &copy.message_type)
        .or_else(|| enums(&own.enum_type, &copy.enum_type))
        .or_else(|| fields(&own.extension, &copy.extension))
        .or_else(|| services(&own.service, &copy.service));
    path.map(|path| format!("`{path}`"))
}

fn messages(own: &[DescriptorProto], copy: &[DescriptorProto]) -> Option<String> {
    first_beyond(own, copy, DescriptorProto::name, |own, copy| {
        fields(&own.field, &copy.field)
            .or_else(|| messages(&own.nested_type, &copy.nested_type))
            .or_else(|| enums(&own.enum_type, &copy.enum_type))
            .or_else(|| fields(&own.extension, &copy.extension))
    })
}

fn fields(own: &[FieldDescriptorProto], copy: &[FieldDescriptorProto]) -> Option<String> {
    let plain = |field: &FieldDescriptorProto| FieldDescriptorProto {
        options: None,
        json_name: None,
        oneof_index: None,
        ..field.clone()
    };
    first_beyond(own, copy, FieldDescriptorProto::name, |own, copy| differ(plain(own), plain(copy)))
}

fn enums(own: &[EnumDescriptorProto], copy: &[EnumDescriptorProto]) -> Option<String> {
    first_beyond(own, copy, EnumDescriptorProto::name, |own, copy| {
        first_beyond(&own.value, &copy.value, EnumValueDescriptorProto::name, |own, copy| {
            differ(own.number, copy.number)
        })
    })
}

fn services(own: &[ServiceDescriptorProto], copy: &[ServiceDescriptorProto]) -> Option<String> {
    let plain = |method: &MethodDescriptorProto| MethodDescriptorProto { options: None, ..method.clone() };
    first_beyond(own, copy, ServiceDescriptorProto::name, |own, copy| {
        first_beyond(&own.method, &copy.method, MethodDescriptorProto::name, |own, copy| {
            differ(plain(own), plain(copy))
        })
    })
}

/// An empty path if the two differ: the element itself is what differs.
fn differ<T: PartialEq>(own: T, copy: T) -> Option<String> {
    (own != copy).then(String::new)
}

/// The path to the first element of `copy` that `own` lacks, or in which `within` finds a difference.
fn first_beyond<T>(
    own: &[T],
    copy: &[T],
    name: impl Fn(&T) -> &str,
    within: impl Fn(&T, &T) -> Option<String>,
) -> Option<String> {
    copy.iter().find_map(|copy| {
        let deeper = match own.iter().find(|own| name(own) == name(copy)) {
            Some(own) => within(own, copy)?,
            None => String::new(),
        };
        Some(if deeper.is_empty() { name(copy).to_owned() } else { format!("{}.{deeper}", name(copy)) })
    })
}

#[cfg(test)]
mod tests {
    use protox::file::File;
    use weft_contracts::sources::OPTIONS;

    use super::*;

    /// What is found in a copy in which `from` is replaced by `to`.
    fn found(from: &str, to: &str) -> Option<String> {
        let copy = OPTIONS.text.replacen(from, to, 1);
        assert_ne!(copy, OPTIONS.text, "{from} is in the file");
        let parse = |text: &str| File::from_source(OPTIONS.name, text).unwrap();
        said_beyond(parse(OPTIONS.text).file_descriptor_proto(), parse(&copy).file_descriptor_proto())
    }

    #[test]
    fn an_older_copy_and_other_comments_are_accepted() {
        assert_eq!(found("  optional uint32 probes = 6;\n", ""), None);
        assert_eq!(found("    ABORTED = 10;\n", ""), None);
        assert_eq!(found("extend google.protobuf.MethodOptions {\n  MethodOptions method = 50901;\n}", ""), None);
        assert_eq!(found("// A circuit breaker", "// Another comment"), None);
        assert_eq!(found("// Not allowed in the list.", "\n"), None);
        assert_eq!(found("probes = 6;", "probes = 6 [deprecated = true];"), None);
    }

    #[test]
    fn what_is_added_or_changed_is_named() {
        let beyond = |from, to| found(from, to).unwrap_or_default();
        assert_eq!(beyond("probes = 6;", "probes = 6;\n  uint32 trials = 9;"), "`Breaker.trials`");
        assert_eq!(beyond("probes = 6;", "probes = 16;"), "`Breaker.probes`");
        assert_eq!(beyond("optional uint32 probes", "uint32 probes"), "`Breaker.probes`");
        assert_eq!(beyond("optional uint32 probes", "optional uint64 probes"), "`Breaker.probes`");
        assert_eq!(beyond("ABORTED = 10;", "ABORTED = 17;"), "`Breaker.Code.ABORTED`");
        assert_eq!(beyond("ABORTED = 10;", "ABORTED = 10;\n    CANCELLED = 1;"), "`Breaker.Code.CANCELLED`");
        assert_eq!(beyond("MethodOptions method = 50901;", "MethodOptions method = 50902;"), "`method`");
        assert_eq!(beyond("message MethodOptions {", "message Other {}\nmessage MethodOptions {"), "`Other`");
        assert_eq!(beyond("package weft.options.v1;", "package weft.options.v2;"), "`package weft.options.v2`");
    }
}
