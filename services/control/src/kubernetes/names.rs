//! What Weft's things are called on a cluster: each name once.

/// The namespace of the control plane.
pub const NAMESPACE: &str = "weft";

/// The label of the control plane's pod that acts: [`LEADER`]. The Service `control` leads to it alone.
pub const LABEL_ROLE: &str = "weft.dev/role";
/// The value of [`LABEL_ROLE`].
pub const LEADER: &str = "leader";
/// The Service by which the API server calls the webhook, of any control plane.
pub const WEBHOOK_SERVICE: &str = "control-webhook";
/// The control plane's Deployment, its Service, and the value of its label `app.kubernetes.io/name`.
pub const CONTROL: &str = "control";
/// The MutatingWebhookConfiguration.
pub const WEBHOOK: &str = "weft-injector";
/// The Secret with the CA.
pub const SECRET_CA: &str = "weft-ca";

/// The label of a namespace or a pod that says whether pods get a sidecar: [`ENABLED`] or [`DISABLED`]. The pod's wins.
pub const LABEL_INJECT: &str = "weft.dev/inject";
/// A value of [`LABEL_INJECT`] and [`annotation::REDIRECT`].
pub const ENABLED: &str = "enabled";
/// A value of [`LABEL_INJECT`] and [`annotation::REDIRECT`].
pub const DISABLED: &str = "disabled";

/// The container that is added to a pod.
pub const CONTAINER: &str = "weft-sidecar";
/// The init container that has a pod's connections redirected to its sidecar.
pub const CONTAINER_REDIRECT: &str = "weft-redirect";
/// The volume with the service account token that proves to the control plane who the sidecar is.
pub const VOLUME_TOKEN: &str = "weft-token";
/// The volume with the trust bundle.
pub const VOLUME_TRUST: &str = "weft-trust";
/// The ConfigMap with the trust bundle, in each namespace whose pods get sidecars.
pub const CONFIG_MAP_TRUST: &str = "weft-trust";
/// The volume with the contracts of a pod's application, if its annotation names a ConfigMap with them.
pub const VOLUME_CONTRACTS: &str = "weft-contracts";
/// The key of a ConfigMap with contracts, and the name of the file in [`VOLUME_CONTRACTS`]: a serialized
/// `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &str = "descriptors.binpb";
/// The key of a ConfigMap with contracts that says which of them the application implements, separated by commas. It may be
/// left out.
pub const IMPLEMENTED: &str = "contracts";
/// The key of [`CONFIG_MAP_TRUST`], and the name of the file in [`VOLUME_TRUST`].
pub const TRUST_BUNDLE: &str = "bundle.pem";
/// The name of the file in [`VOLUME_TOKEN`].
pub const TOKEN: &str = "token";
/// The audience of the token: other receivers must not accept it, and the control plane accepts no other.
pub const TOKEN_AUDIENCE: &str = "weft";

/// The API group of the policies.
pub const POLICY_GROUP: &str = "weft.dev";
/// Its version.
pub const POLICY_VERSION: &str = "v1alpha1";
/// A kind of policies: its name in objects, and in addresses of the API server.
pub type PolicyKind = (&'static str, &'static str);
/// Who may call a Service.
pub const ACCESS_POLICY: PolicyKind = ("AccessPolicy", "accesspolicies");
/// Timeouts, hedging and the breaker of a Service.
pub const METHOD_POLICY: PolicyKind = ("MethodPolicy", "methodpolicies");
/// What holds in all of the mesh.
pub const MESH_DEFAULTS: PolicyKind = ("MeshDefaults", "meshdefaults");

/// What the name of an object may be.
pub const OBJECT_NAMES: &str =
    "a-z, 0-9, - and ., up to 253 characters; each part between dots has some, and no - at either end";

/// Whether most objects, such as a ConfigMap, can have this name: a subdomain of DNS, as Kubernetes checks it (RFC 1123).
pub fn is_object_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_part =
        |part: &str| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.bytes().all(is_inner);
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Annotations of pods.
pub mod annotation {
    /// On a pod that has a sidecar: the version of Weft that added it.
    pub const INJECTED: &str = "weft.dev/injected";
    /// The port of the application that other services call.
    pub const PORT: &str = "weft.dev/port";
    /// What the application speaks on that port.
    pub const PROTOCOL: &str = "weft.dev/protocol";
    /// How the sidecar asks whether the application is up.
    pub const HEALTH: &str = "weft.dev/health";
    /// The ConfigMap of the pod's namespace that has the application's contracts.
    pub const CONTRACTS: &str = "weft.dev/contracts";
    /// Whether the pod's connections are redirected to its sidecar: [`super::ENABLED`] or [`super::DISABLED`].
    pub const REDIRECT: &str = "weft.dev/redirect";
    /// Ports at which others reach the pod without its sidecar.
    pub const EXCLUDE_INBOUND_PORTS: &str = "weft.dev/exclude-inbound-ports";
    /// Ports to which the pod connects without its sidecar.
    pub const EXCLUDE_OUTBOUND_PORTS: &str = "weft.dev/exclude-outbound-ports";
    /// Networks to which the pod connects without its sidecar.
    pub const EXCLUDE_OUTBOUND_RANGES: &str = "weft.dev/exclude-outbound-ranges";
    /// What happens to redirected connections that leave the mesh.
    pub const OUTSIDE: &str = "weft.dev/outside";
    /// The format of the sidecar's log lines.
    pub const LOG_FORMAT: &str = "weft.dev/log-format";
    /// What all connections of the sidecar may hold together.
    pub const MEMORY: &str = "weft.dev/memory";
    /// How long calls that run may go on after the pod was told to end.
    pub const DRAIN_SECONDS: &str = "weft.dev/drain-seconds";
    /// The share of new traces that is recorded.
    pub const SAMPLE_RATIO: &str = "weft.dev/sample-ratio";
    /// The CPU that is reserved for the sidecar.
    pub const CPU_REQUEST: &str = "weft.dev/cpu-request";
    /// The CPU that the sidecar may use at most.
    pub const CPU_LIMIT: &str = "weft.dev/cpu-limit";
    /// The memory that is reserved for the sidecar.
    pub const MEMORY_REQUEST: &str = "weft.dev/memory-request";
    /// The memory that the sidecar may use at most.
    pub const MEMORY_LIMIT: &str = "weft.dev/memory-limit";

    /// Those that a pod's owner may set.
    pub const SETTINGS: &[&str] = &[
        PORT,
        PROTOCOL,
        HEALTH,
        CONTRACTS,
        REDIRECT,
        EXCLUDE_INBOUND_PORTS,
        EXCLUDE_OUTBOUND_PORTS,
        EXCLUDE_OUTBOUND_RANGES,
        OUTSIDE,
        DRAIN_SECONDS,
        SAMPLE_RATIO,
        LOG_FORMAT,
        MEMORY,
        CPU_REQUEST,
        CPU_LIMIT,
        MEMORY_REQUEST,
        MEMORY_LIMIT,
    ];
}

#[cfg(test)]
mod tests {
    use super::is_object_name;

    #[test]
    fn names_of_objects_are_those_that_kubernetes_takes() {
        let long = ["a".repeat(253), "a.".repeat(126) + "a"];
        for name in ["a", "0", "users-contracts", "a.b-c.d", "1.2"].into_iter().chain(long.iter().map(String::as_str)) {
            assert!(is_object_name(name), "{name}");
        }
        let too_long = "a".repeat(254);
        for name in ["", ".", "a.", ".a", "a..b", "-a", "a-", "a.-b", "a-.b", "A", "a_b", "a/b", "a b", "ä", &too_long]
        {
            assert!(!is_object_name(name), "{name}");
        }
    }
}
