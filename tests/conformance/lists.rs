//! The cases of the suites that are run, and those that are not, with the reason.

/// How many cases h2spec has, with its strict ones.
pub(crate) const H2SPEC_CASES: usize = 146;

/// Cases of h2spec that do not pass at the outbound port, by their names in h2spec: `h2spec http2/6.5.3/1` runs one.
pub(crate) const H2SPEC_OUTBOUND: &[(&str, &str)] = &[(
    "http2/3.5/2",
    "bytes that do not begin with HTTP/2's preface are taken for HTTP/1.1, which answers this case's preface with 400",
)];

/// The same at the inbound port, which speaks nothing but HTTP/2.
pub(crate) const H2SPEC_INBOUND: &[(&str, &str)] = &[];

/// How many cases h2specd has.
pub(crate) const H2SPECD_CASES: usize = 57;

/// Cases of h2specd that do not pass.
pub(crate) const H2SPECD: &[(&str, &str)] = &[];

/// Cases of gRPC's interop client that pass through a pair of sidecars, with further arguments.
pub(crate) const INTEROP: &[(&str, &[&str])] = &[
    ("empty_unary", &[]),
    ("large_unary", &[]),
    ("client_streaming", &[]),
    ("server_streaming", &[]),
    ("ping_pong", &[]),
    ("empty_stream", &[]),
    ("timeout_on_sleeping_server", &[]),
    ("cancel_after_begin", &[]),
    ("cancel_after_first_response", &[]),
    ("status_code_and_message", &[]),
    ("special_status_message", &[]),
    ("custom_metadata", &[]),
    ("unimplemented_method", &[]),
    ("unimplemented_service", &[]),
    ("orca_per_rpc", &["--service_config_json", ORCA]),
    ("rpc_soak", SOAK),
    ("channel_soak", SOAK),
];

/// The client's own balancer, which uses the load that a server reports.
const ORCA: &str = r#"{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}"#;

/// Four at once, with time limits that are long enough for a busy machine.
const SOAK: &[&str] = &[
    "--soak_iterations=40",
    "--soak_num_threads=4",
    "--soak_per_iteration_max_acceptable_latency_ms=20000",
    "--soak_overall_timeout_seconds=240",
];

/// Cases of the interop client that are not run.
pub(crate) const INTEROP_LEFT_OUT: &[(&str, &str)] = &[
    ("compute_engine_creds", CLOUD),
    ("service_account_creds", CLOUD),
    ("jwt_token_creds", CLOUD),
    ("per_rpc_creds", CLOUD),
    ("oauth2_auth_token", CLOUD),
    ("google_default_credentials", CLOUD),
    ("compute_engine_channel_credentials", CLOUD),
    ("pick_first_unary", "it needs a server that reports its own id, and gRPC's Go server does not"),
    (
        "orca_oob",
        "it is about a connection to one endpoint, and a client's connection to its sidecar leads to all endpoints",
    ),
];

const CLOUD: &str = "it needs credentials of Google's cloud, over TLS that the client ends itself";
