//! The command line, and its environment variables.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use weft_mesh::{
    identity::{SpiffeId, TrustDomain},
    names::{ServiceName, port},
    telemetry::LogFormat,
};

use crate::authority::network::Network;

/// How the control plane runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The folder for the CA, its key and the trust bundle; made at the first start.
    #[arg(long, env = "WEFT_CONTROL_STATE_DIR", value_name = "DIR", default_value = "./weft-control-state")]
    pub state_dir: PathBuf,
    /// The address for sidecars: gRPC over TLS.
    #[arg(long, env = "WEFT_CONTROL_LISTEN", value_name = "IP:PORT", default_value_t = local(port::CONTROL))]
    pub listen: SocketAddr,
    /// The address of the dashboard, which also takes spans (OTLP over gRPC). It has no TLS, so keep it on loopback.
    #[arg(long, env = "WEFT_CONTROL_DASHBOARD", value_name = "IP:PORT", default_value_t = local(port::DASHBOARD))]
    pub dashboard: SocketAddr,
    /// A host name of the dashboard, in addition to `localhost` and IP addresses; can be repeated. Requests with
    /// another name are refused, so that no web site can read the dashboard through a name of its own (DNS rebinding).
    #[arg(long, env = "WEFT_CONTROL_DASHBOARD_HOST", value_name = "NAME", value_delimiter = ',')]
    pub dashboard_host: Vec<String>,
    /// Also take spans from other hosts, which do not prove their identity.
    #[arg(long, env = "WEFT_CONTROL_REMOTE_SPANS")]
    pub remote_spans: bool,
    /// A YAML file that says to which services contracts and virtual addresses belong. Without it, a contract belongs
    /// to the first identity that claims it.
    #[arg(long, env = "WEFT_CONTROL_SERVICES", value_name = "FILE")]
    pub services: Option<PathBuf>,
    /// A YAML file of rules for who may call whom. It may change while the control plane runs. Without it, every member may
    /// call what the contracts do not forbid. Not with --kubernetes, where the rules are AccessPolicies and MeshDefaults
    #[arg(long, env = "WEFT_CONTROL_ACCESS", value_name = "FILE", conflicts_with = "kubernetes")]
    pub access: Option<PathBuf>,
    /// Run in a Kubernetes cluster: pods prove their identity with tokens of their service accounts, and back the Services
    /// that the API server says.
    #[arg(long, env = "WEFT_CONTROL_KUBERNETES")]
    pub kubernetes: bool,
    /// With --kubernetes, the address of the webhook that adds sidecars to pods: HTTPS, for the API server
    #[arg(long, env = "WEFT_CONTROL_WEBHOOK", value_name = "IP:PORT", requires = "kubernetes")]
    pub webhook: Option<SocketAddr>,
    /// The configuration of that webhook, a YAML file
    #[arg(long, env = "WEFT_CONTROL_INJECT_CONFIG", value_name = "FILE", requires = "webhook")]
    pub inject_config: Option<PathBuf>,
    /// With --kubernetes, the name of the pod that it runs in. Of several control planes one acts, and the others stand by.
    /// In a pod its host name, if it is not given; elsewhere this one acts whatever others do
    #[arg(long, env = "WEFT_CONTROL_POD", value_name = "NAME", requires = "kubernetes")]
    pub pod: Option<String>,
    /// With --kubernetes, the address for the kubelet's probes: `/healthz` and `/readyz`, which is ready when it acts or
    /// stands by
    #[arg(long, env = "WEFT_CONTROL_HEALTH", value_name = "IP:PORT", requires = "kubernetes")]
    pub health: Option<SocketAddr>,
    /// The trust domain of the identities that it signs.
    #[arg(long, env = "WEFT_CONTROL_TRUST_DOMAIN", value_name = "NAME", default_value = "weft.local")]
    pub trust_domain: TrustDomain,
    /// The format of log lines.
    #[arg(long, env = "WEFT_CONTROL_LOG_FORMAT", value_name = "text|json", default_value = "text")]
    pub log_format: LogFormat,
}

/// A join token to make.
#[derive(Debug, Clone, clap::Args)]
pub struct TokenArgs {
    /// The identity that the token is for: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME`, or NAME.NAMESPACE for short.
    #[arg(long, value_name = "ID")]
    pub identity: String,
    /// How long the token is valid: a number with s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub ttl: Duration,
    /// Where the identity's endpoints may be, in addition to the host that announces them: an IP address or a network
    /// such as 10.1.0.0/16; up to 16. It holds until a token with other addresses is used for the identity.
    #[arg(long, value_name = "IP/CIDR", value_delimiter = ',')]
    pub address: Vec<Network>,
    /// The control plane's state folder.
    #[arg(long, env = "WEFT_CONTROL_STATE_DIR", value_name = "DIR", default_value = "./weft-control-state")]
    pub state_dir: PathBuf,
    /// The control plane's trust domain.
    #[arg(long, env = "WEFT_CONTROL_TRUST_DOMAIN", value_name = "NAME", default_value = "weft.local")]
    pub trust_domain: TrustDomain,
}

impl TokenArgs {
    pub(crate) fn spiffe_id(&self) -> anyhow::Result<SpiffeId> {
        if self.identity.starts_with("spiffe:") {
            return Ok(self.identity.parse()?);
        }
        Ok(SpiffeId::of_service(&self.trust_domain, &ServiceName::parse(&self.identity)?))
    }
}

/// A claim to release.
#[derive(Debug, Clone, clap::Args)]
pub struct ReleaseArgs {
    /// The full name of a contract, or the IP:PORT of a virtual address.
    #[arg(value_name = "CLAIM")]
    pub claim: String,
    /// The control plane that has the claim.
    #[command(flatten)]
    pub of: StateArgs,
}

/// A control plane, given by its state folder.
#[derive(Debug, Clone, clap::Args)]
pub struct StateArgs {
    /// The control plane's state folder; with `weft up` it is .weft/control.
    #[arg(long, env = "WEFT_CONTROL_STATE_DIR", value_name = "DIR", default_value = "./weft-control-state")]
    pub state_dir: PathBuf,
    /// The control plane's trust domain.
    #[arg(long, env = "WEFT_CONTROL_TRUST_DOMAIN", value_name = "NAME", default_value = "weft.local")]
    pub trust_domain: TrustDomain,
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Reads `30s`, `15m`, `24h` or `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let allowed = || format!("`{text}` is not a time: a positive number with s, m, h or d, as in 24h");
    let unit = text.chars().next_back().ok_or_else(allowed)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(allowed()),
    };
    // A century is long enough, and more could overflow a clock.
    let longest = 100 * 365 * 86_400;
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| allowed())?;
    match number.checked_mul(seconds) {
        Some(seconds @ 1..) if seconds <= longest => Ok(Duration::from_secs(seconds)),
        _ => Err(allowed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_with_a_unit() {
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "h", "24", "0s", "-1s", "1.5h", "1w", "99999999999999999999s", "18446744073709551615d", "1é"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_identity_may_be_given_in_short() {
        let of = |identity: &str| {
            let args = TokenArgs {
                identity: identity.into(),
                ttl: Duration::from_secs(1),
                address: Vec::new(),
                state_dir: PathBuf::new(),
                trust_domain: "weft.test".parse().unwrap(),
            };
            args.spiffe_id().map(|id| id.to_string())
        };
        assert_eq!(of("users.shop").unwrap(), "spiffe://weft.test/ns/shop/sa/users");
        assert_eq!(of("spiffe://a.b/ns/shop/sa/users").unwrap(), "spiffe://a.b/ns/shop/sa/users");
        assert!(of("users").is_err());
    }
}
