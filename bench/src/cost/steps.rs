//! What a call's instructions are spent on, told by the names of functions.

use std::collections::BTreeMap;

use super::callgrind::Profile;

/// What a function belongs to, in the order of the table. A function that the optimiser has put into another one counts
/// where it has ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    HeaderBlocks,
    Frames,
    Turns,
    Calls,
    Tls,
    Crypto,
    Runtime,
    Allocator,
    Memory,
    SystemCalls,
    Other,
}

/// All of them.
pub(super) const STEPS: [Step; 11] = [
    Step::HeaderBlocks,
    Step::Frames,
    Step::Turns,
    Step::Calls,
    Step::Tls,
    Step::Crypto,
    Step::Runtime,
    Step::Allocator,
    Step::Memory,
    Step::SystemCalls,
    Step::Other,
];

/// The begins of the names of each step's functions; the first that fits says what a function is.
const BEGINS: [(Step, &[&str]); 10] = [
    (Step::HeaderBlocks, &["weft_wire::hpack", "weft_wire::headers"]),
    (Step::Frames, &["weft_wire::"]),
    (Step::Turns, &["weft_sidecar::link", "weft_sidecar::tls_stream", "weft_sidecar::worker"]),
    (Step::Calls, &["weft_sidecar::", "weft_mesh::"]),
    (Step::Tls, &["rustls::", "tokio_rustls::", "webpki::"]),
    (Step::Crypto, &["aws_lc", "OPENSSL_", "EVP_", "aes_", "aesni_", "gcm_"]),
    (Step::Runtime, &["tokio::", "mio::", "futures_", "parking_lot", "std::thread", "std::sys::thread_local"]),
    (Step::Allocator, &ALLOCATOR),
    (Step::Memory, &["mem", "__mem", "bcmp", "__bcmp", "core::intrinsics::copy"]),
    (Step::SystemCalls, &SYSTEM_CALLS),
];

/// mimalloc's, the C library's, and what Rust has between them and the code.
const ALLOCATOR: [&str; 17] = [
    "mi_",
    "_mi_",
    "__rust",
    "_RNvCs",
    "__rg_",
    "__rdl_",
    "malloc",
    "calloc",
    "realloc",
    "free",
    "cfree",
    "_int_",
    "__libc_malloc",
    "posix_memalign",
    "aligned_alloc",
    "unlink_chunk",
    "alloc::alloc",
];

/// The C library's functions around them; what the kernel does is not counted.
const SYSTEM_CALLS: [&str; 13] = [
    "epoll",
    "read",
    "recv",
    "write",
    "send",
    "clock_gettime",
    "__errno",
    "__write",
    "__recv",
    "__send",
    "__read",
    "__pthread",
    "__internal_syscall",
];

impl Step {
    /// In the table.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::HeaderBlocks => "header blocks: HPACK, lists of fields",
            Self::Frames => "frames, streams, windows",
            Self::Turns => "turns of a connection: read, hand over, write",
            Self::Calls => "the call: target, endpoint, breaker, deadline, metrics",
            Self::Tls => "TLS records",
            Self::Crypto => "encryption",
            Self::Runtime => "tokio: wake-ups, timers, sockets",
            Self::Allocator => "allocator",
            Self::Memory => "memory moved and compared",
            Self::SystemCalls => "around system calls",
            Self::Other => "other",
        }
    }

    fn of(name: &str) -> Self {
        let name = plain(name);
        let fits = |begins: &[&str]| begins.iter().any(|begin| name.starts_with(begin));
        BEGINS.iter().find(|(_, begins)| fits(begins)).map_or(Self::Other, |(step, _)| *step)
    }
}

/// What a function is of: `a::B` of `<a::B as c::D>::e`, and what is dropped of the code that drops it.
fn plain(name: &str) -> &str {
    let name = name.strip_prefix("core::ptr::drop_in_place").unwrap_or(name);
    let name = name.trim_start_matches(['<', '&']);
    let name = name.strip_prefix("core::option::Option<").unwrap_or(name);
    name.strip_prefix("alloc::rc::Rc<").unwrap_or(name)
}

/// The instructions of each step.
pub(super) fn instructions(profile: &Profile) -> BTreeMap<Step, u64> {
    let mut steps = BTreeMap::new();
    for function in profile.functions() {
        *steps.entry(Step::of(&function.name)).or_default() += function.instructions;
    }
    steps
}

/// How often memory was asked for. What an allocator's function asks of another one is not counted again.
pub(super) fn allocations(profile: &Profile) -> u64 {
    let is_allocator = |name: &str| Step::of(name) == Step::Allocator;
    let calls = profile.calls().filter(|(caller, callee, _)| is_allocation(callee) && !is_allocator(caller));
    calls.map(|(_, _, call)| call.times).sum()
}

fn is_allocation(name: &str) -> bool {
    Step::of(name) == Step::Allocator
        && ["alloc", "memalign", "strdup", "mi_new"].iter().any(|what| name.contains(what))
        && !["dealloc", "free", "usable", "error"].iter().any(|what| name.contains(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_belong_to_what_they_are_of() {
        for (name, step) in [
            ("weft_wire::hpack::encoder::Encoder::encode", Step::HeaderBlocks),
            ("weft_wire::connection::receive::<impl weft_wire::connection::Connection<T>>::receive", Step::Frames),
            ("core::ptr::drop_in_place<weft_wire::headers::Headers>", Step::HeaderBlocks),
            ("core::ptr::drop_in_place<core::option::Option<weft_wire::headers::Headers>>", Step::HeaderBlocks),
            ("<weft_sidecar::tls_stream::Socket as std::io::Write>::write_vectored", Step::Turns),
            ("weft_sidecar::breaker::Breaker::admit", Step::Calls),
            ("aws_lc_0_40_0_aes_gcm_enc_update_vaes", Step::Crypto),
            ("mi_malloc_aligned", Step::Allocator),
            ("__memcpy_avx_unaligned_erms", Step::Memory),
            ("core::fmt::write", Step::Other),
        ] {
            assert_eq!(Step::of(name), step, "{name}");
        }
    }

    #[test]
    fn an_allocation_counts_once() {
        let dump = "events: Ir\nfn=(1) weft_sidecar::serve\ncfn=(2) mi_malloc_aligned\ncalls=3 0\n0 30\n\
                    cfn=(3) mi_free\ncalls=4 0\n0 40\nfn=(2)\n0 20\ncfn=(4) mi_malloc\ncalls=2 0\n0 10\n\
                    fn=(5) aws_lc_0_40_0_OPENSSL_malloc\ncfn=(6) malloc\ncalls=1 0\n0 5\n";
        assert_eq!(allocations(&Profile::parse(dump).unwrap()), 4);
    }
}
