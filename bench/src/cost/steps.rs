//! Assigns a call's instructions, allocations and system calls to steps, by the names of functions.

use super::callgrind::{Call, Function, Profile};

/// A part of a call's path.
struct Step {
    /// Its name in the table.
    title: &'static str,
    /// Prefixes of its functions' names. The longest matching prefix of all steps decides.
    begins: &'static [&'static str],
}

const fn step(title: &'static str, begins: &'static [&'static str]) -> Step {
    Step { title, begins }
}

/// The steps in the order of the table. An inlined function counts for the function that contains it.
const STEPS: &[Step] = &[
    step(
        "sockets: read and write",
        &[
            "weft_sidecar::transport::tls_stream",
            // Reading of records: nothing else here borrows a thread-local value.
            "std::thread::local::LocalKey",
            "tokio::net::",
            "tokio::runtime::io::registration",
            "tokio::runtime::io::scheduled_io",
            "mio::net",
            "std::net",
            "std::fs::File",
            "std::io::",
        ],
    ),
    step("TLS: records", &["rustls::", "tokio_rustls::", "[u8] as std::io::Read"]),
    step("TLS: encryption", &["aws_lc", "OPENSSL_", "EVP_", "aead_", "aes_", "aesni_", "_aesni_", "gcm_"]),
    step(
        "HTTP/2: turns of a connection",
        // The functions that serve a connection contain its driver, inlined.
        &[
            "weft_sidecar::transport::link",
            "weft_sidecar::accept::http2",
            "weft_sidecar::accept::clients",
            "weft_sidecar::accept::members",
            "weft_sidecar::transport::pool::Pool::attend",
            "weft_sidecar::thread::worker",
        ],
    ),
    step("HTTP/2: frames, streams, windows", &["weft_wire::"]),
    step("HTTP/2: checks of messages", &["weft_wire::connection::message"]),
    step("HPACK: decode", &["weft_wire::hpack::decoder", "weft_wire::hpack::huffman", "weft_wire::hpack::table"]),
    step("HPACK: encode", &["weft_wire::hpack"]),
    step("lists of header fields", &["weft_wire::headers"]),
    step("call: from target to connection", &["weft_sidecar::", "weft_mesh::"]),
    step("call: trace", &["weft_sidecar::telemetry::span", "weft_mesh::trace_context"]),
    step("call: breaker, balancer", &["weft_sidecar::policy::breaker", "weft_sidecar::endpoints::balance"]),
    step("call: deadline", &["weft_sidecar::message::deadline", "weft_sidecar::time::timer"]),
    step("call: state of its two sides", &["weft_sidecar::call", "weft_sidecar::transport::pipe"]),
    step(
        "call: record, metrics",
        &["weft_sidecar::call::record", "weft_sidecar::telemetry::metrics", "weft_sidecar::policy::outcome"],
    ),
    step("tokio: tasks, wake-ups", &["tokio::", "parking_lot"]),
    step(
        "tokio: waiting, timers",
        &["tokio::runtime::driver", "tokio::runtime::io", "tokio::runtime::time", "tokio::time", "mio::"],
    ),
    step("clock", &["std::time", "std::sys::pal::unix::time", "tokio::time::instant", "clock_gettime", "__vdso"]),
    step("allocator", &ALLOCATOR),
    step("memory moved and compared", &["mem", "__mem", "bcmp", "__bcmp", "core::intrinsics::copy"]),
    step(
        "around system calls",
        &["epoll", "read", "recv", "write", "send", "syscall", "__errno", "__pthread", "__internal_syscall"],
    ),
    step("standard library", &["core::", "alloc::", "std::", "hashbrown::", "__udivti3"]),
    step("other", &[""]),
];
const COUNT: usize = STEPS.len();

/// The C library's allocator, and Rust's functions around it.
const ALLOCATOR: [&str; 11] = [
    "__rust",
    "__rdl_",
    "malloc",
    "calloc",
    "realloc",
    "free",
    "cfree",
    "_int_",
    "posix_memalign",
    "alloc_perturb",
    "sysmalloc",
];

/// The functions of the C library that allocate memory.
const ALLOCATE: [&str; 6] = ["malloc", "calloc", "realloc", "memalign", "posix_memalign", "aligned_alloc"];

/// The C library's functions that make system calls, in the order of the table.
const SYSTEM_CALLS: [(&str, &[&str]); 4] = [
    ("reads", &["recv", "recvfrom", "recvmsg", "read", "readv"]),
    ("writes", &["send", "sendto", "sendmsg", "write", "writev"]),
    ("waits", &["epoll_wait", "epoll_pwait", "epoll_pwait2"]),
    ("others", &["syscall", "epoll_ctl", "mmap", "munmap", "mprotect", "madvise", "brk"]),
];

/// One figure for each step.
pub(super) struct BySteps([f64; COUNT]);

impl BySteps {
    /// The figures with the steps' names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        std::iter::zip(STEPS, self.0).map(|(step, figure)| (step.title, figure))
    }
}

/// The index of a function's step in the table.
fn step_of(name: &str) -> usize {
    let name = plain(name);
    let fit = |step: &Step| step.begins.iter().filter(|begin| name.starts_with(**begin)).map(|it| it.len()).max();
    let fits = STEPS.iter().enumerate().filter_map(|(index, step)| Some((fit(step)?, index)));
    fits.max_by_key(|(length, _)| *length).map_or(COUNT - 1, |(_, index)| index)
}

/// The type that a function belongs to: `a::B` for `<a::B as c::D>::e`, and the dropped type for code that drops it.
fn plain(name: &str) -> &str {
    const AROUND: [&str; 6] = [
        "core::option::Option<",
        "core::cell::RefCell<",
        "alloc::rc::Rc<",
        "alloc::sync::Arc<",
        "alloc::boxed::Box<",
        "<",
    ];
    let name = name.trim_start_matches("__rustc::");
    let Some(mut dropped) = name.strip_prefix("core::ptr::drop_in_place<") else {
        return name.trim_start_matches(['<', '&']);
    };
    while let Some(inner) = AROUND.iter().find_map(|around| dropped.strip_prefix(around)) {
        dropped = inner;
    }
    dropped
}

/// The instructions of each step.
pub(super) fn instructions(profile: &Profile) -> BySteps {
    let mut steps = [0.0; COUNT];
    for function in profile.functions() {
        steps[step_of(&function.name)] += function.instructions as f64;
    }
    BySteps(steps)
}

/// The number of allocations.
pub(super) fn allocations(profile: &Profile) -> u64 {
    direct_allocations(profile).iter().sum()
}

/// How often a `Vec` had to grow.
pub(super) fn growths(profile: &Profile) -> u64 {
    let grows = |call: &Call| profile.functions()[call.callee].name.contains("raw_vec::RawVecInner");
    profile.calls().filter(|(_, call)| grows(call)).map(|(_, call)| call.times).sum()
}

/// The number of allocations that each function made by calling the C library. Calls within the C library are not
/// counted again.
fn direct_allocations(profile: &Profile) -> Vec<u64> {
    let is_one = |function: usize| ALLOCATE.contains(&c_name(&profile.functions()[function].name));
    let count = |(caller, function): (usize, &Function)| {
        if is_one(caller) {
            return 0;
        }
        function.calls.iter().filter(|call| is_one(call.callee)).map(|call| call.times).sum()
    };
    profile.functions().iter().enumerate().map(count).collect()
}

/// The number of allocations for each step. Those of a library's function count for its callers, in proportion to their
/// calls.
pub(super) fn allocations_by_step(profile: &Profile) -> BySteps {
    /// The most library functions between Weft's code and the allocator.
    const DEPTH: usize = 16;
    let functions = profile.functions();
    let is_library =
        |function: usize| ["allocator", "standard library"].contains(&STEPS[step_of(&functions[function].name)].title);
    let mut called = vec![0; functions.len()];
    for (_, call) in profile.calls() {
        called[call.callee] += call.times;
    }
    let mut asked: Vec<f64> = direct_allocations(profile).into_iter().map(|count| count as f64).collect();
    for _ in 0..DEPTH {
        let mut next: Vec<f64> = (0..functions.len())
            .map(|function| if is_library(function) && called[function] > 0 { 0.0 } else { asked[function] })
            .collect();
        for (caller, call) in profile.calls().filter(|(_, call)| is_library(call.callee) && call.times > 0) {
            next[caller] += asked[call.callee] * call.times as f64 / called[call.callee] as f64;
        }
        asked = next;
    }
    let mut steps = [0.0; COUNT];
    for (function, count) in asked.into_iter().enumerate() {
        steps[step_of(&functions[function].name)] += count;
    }
    BySteps(steps)
}

/// The number of system calls by kind.
pub(super) fn system_calls(profile: &Profile) -> [(&'static str, u64); SYSTEM_CALLS.len()] {
    let name = |function: usize| c_name(&profile.functions()[function].name);
    SYSTEM_CALLS.map(|(title, names)| {
        let calls = profile.calls().filter(|(_, call)| names.contains(&name(call.callee)));
        (title, calls.map(|(_, call)| call.times).sum())
    })
}

/// A function of the C library without its version.
fn c_name(name: &str) -> &str {
    name.split_once('@').map_or(name, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_belong_to_their_steps() {
        for (name, title) in [
            ("weft_wire::hpack::encoder::Encoder::encode", "HPACK: encode"),
            ("weft_wire::hpack::decoder::Block::string", "HPACK: decode"),
            (
                "weft_wire::connection::receive::<impl weft_wire::connection::Connection<T>>::receive",
                "HTTP/2: frames, streams, windows",
            ),
            ("core::ptr::drop_in_place<core::option::Option<weft_wire::headers::Headers>>", "lists of header fields"),
            (
                "core::ptr::drop_in_place<core::option::Option<alloc::boxed::Box<weft_sidecar::telemetry::span::Span>>>",
                "call: trace",
            ),
            (
                "<weft_sidecar::transport::tls_stream::Socket as std::io::Write>::write_vectored",
                "sockets: read and write",
            ),
            ("weft_sidecar::proxy::outbound::carry::{{closure}}", "call: from target to connection"),
            ("weft_sidecar::policy::breaker::Breaker::admit", "call: breaker, balancer"),
            ("aws_lc_0_40_0_aes_gcm_enc_update_vaes", "TLS: encryption"),
            ("clock_gettime@@GLIBC_2.17", "clock"),
            ("__rustc::__rust_alloc", "allocator"),
            ("alloc::rc::Rc<T,A>::drop_slow", "standard library"),
            ("__memcpy_avx_unaligned_erms", "memory moved and compared"),
            ("0x00000000001", "other"),
        ] {
            assert_eq!(STEPS[step_of(name)].title, title, "{name}");
        }
    }

    const DUMP: &str = "events: Ir
fn=(1) weft_sidecar::call::Call::begin
cfn=(2) __rustc::__rust_alloc
calls=3 0
0 30
cfn=(3) alloc::raw_vec::finish_grow
calls=1 0
0 30
cfn=(8) recv
calls=5 0
0 5
fn=(4) weft_sidecar::time::timer::Wheel<T>::set
cfn=(3)
calls=1 0
0 30
fn=(3)
cfn=(2)
calls=2 0
0 10
fn=(2)
cfn=(5) malloc
calls=5 0
0 30
fn=(6) realloc
cfn=(5)
calls=1 0
0 5
fn=(7) aws_lc_0_40_0_OPENSSL_malloc
cfn=(5)
calls=1 0
0 5
";

    #[test]
    fn an_allocation_counts_once_and_for_the_right_step() {
        let profile = Profile::parse(DUMP).unwrap();
        assert_eq!(allocations(&profile), 6);
        let found: Vec<_> = allocations_by_step(&profile).iter().filter(|(_, count)| *count > 0.0).collect();
        assert_eq!(found, [("TLS: encryption", 1.0), ("call: deadline", 1.0), ("call: state of its two sides", 4.0)]);
    }

    #[test]
    fn system_calls_are_told_apart() {
        let profile = Profile::parse(DUMP).unwrap();
        assert_eq!(system_calls(&profile), [("reads", 5), ("writes", 0), ("waits", 0), ("others", 0)]);
    }
}
