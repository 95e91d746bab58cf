//! SPIFFE identities: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
//!
//! The form is that of the SPIFFE ID standard (section 2), with the path that meshes on Kubernetes use. The account of
//! a service has the service's name.

use std::{fmt, str::FromStr, sync::Arc};

use crate::names::{NameError, ServiceName, is_label, shown};

/// The namespace and account of the control plane.
const CONTROL: (&str, &str) = ("weft", "control");

/// The longest SPIFFE ID (SPIFFE ID standard, section 2.3).
const SPIFFE_ID_BYTES: usize = 2_048;

/// The name of a trust domain, whose members share roots of trust.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TrustDomain(Arc<str>);

/// The identity of a workload.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    service: ServiceName,
}

/// What proved an identity when its first SVID was signed. SVIDs say so in their subject, which the CA alone decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProvenBy {
    /// A join token of the control plane. Its SVIDs renew one another.
    JoinToken,
    /// The cluster, by the token of a service account. Such an identity ends with its pod, its service account and its
    /// namespace. Only the cluster knows of that, so only another token renews it, and not the SVID.
    Cluster,
}

impl ProvenBy {
    /// The organizational unit in the subject of SVIDs that say [`Self::Cluster`]. Others have an empty subject.
    pub const CLUSTER_UNIT: &str = "Kubernetes";

    /// What an SVID says. The SVID must be of the trust domain's CA.
    ///
    /// # Errors
    /// Not a certificate.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        use x509_parser::prelude::FromDer;
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
            .map_err(|e| IdentityError::Certificate(e.to_string()))?;
        let mut units = certificate.subject().iter_organizational_unit();
        Ok(match units.any(|unit| unit.as_str() == Ok(Self::CLUSTER_UNIT)) {
            true => Self::Cluster,
            false => Self::JoinToken,
        })
    }
}

/// Why a text or a certificate has no valid identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a trust domain.
    #[error("`{0}` is not a trust domain: 1 to 255 of a-z, 0-9, ., - and _")]
    TrustDomain(String),
    /// Not a SPIFFE ID in the mesh's form.
    #[error("`{0}` is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    Shape(String),
    /// The namespace or account is not a DNS label.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The certificate does not have exactly one SPIFFE ID.
    #[error("the certificate has {0} URI names; an SVID has exactly one")]
    UriNames(usize),
    /// The key may sign certificates, or may not sign a handshake.
    #[error("the certificate's key usage is not an SVID's: digitalSignature, and neither keyCertSign nor cRLSign")]
    KeyUsage,
    /// The bytes are not a certificate.
    #[error("not an X.509 certificate: {0}")]
    Certificate(String),
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let is_valid = (1..=255).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
        if is_valid { Ok(Self(text.into())) } else { Err(IdentityError::TrustDomain(shown(text))) }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TrustDomain {
    /// `weft.local`
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// The identity of a service's workloads.
    pub fn of_service(trust_domain: &TrustDomain, service: &ServiceName) -> Self {
        Self { trust_domain: trust_domain.clone(), service: service.clone() }
    }

    /// The identity of the control plane.
    pub fn of_control_plane(trust_domain: &TrustDomain) -> Self {
        let service = ServiceName::new(CONTROL.1, CONTROL.0).expect("both are labels");
        Self { trust_domain: trust_domain.clone(), service }
    }

    /// The identity in an SVID: its one URI name. Also checks the key usage, which webpki does not (X.509-SVID,
    /// sections 4.3 and 5.2). A certificate without a key usage is for any use (RFC 5280, section 4.2.1.3).
    ///
    /// # Errors
    /// Not a certificate, a key usage that is not an SVID's, not exactly one URI name, or a name of another form.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        use x509_parser::{extensions::GeneralName, prelude::FromDer};
        let invalid = |e: &dyn fmt::Display| IdentityError::Certificate(e.to_string());
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).map_err(|e| invalid(&e))?;
        let usage = certificate.key_usage().map_err(|e| invalid(&e))?;
        if usage.is_some_and(|usage| {
            !usage.value.digital_signature() || usage.value.key_cert_sign() || usage.value.crl_sign()
        }) {
            return Err(IdentityError::KeyUsage);
        }
        let names = certificate.subject_alternative_name().map_err(|e| invalid(&e))?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        match uris[..] {
            [uri] => uri.parse(),
            _ => Err(IdentityError::UriNames(uris.len())),
        }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The service whose workloads have this identity.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let shape = || IdentityError::Shape(shown(text));
        if text.len() > SPIFFE_ID_BYTES {
            return Err(shape());
        }
        let (domain, path) = text.strip_prefix("spiffe://").and_then(|t| t.split_once('/')).ok_or_else(shape)?;
        let parts: Vec<&str> = path.split('/').collect();
        let ["ns", namespace, "sa", account] = parts[..] else { return Err(shape()) };
        if !is_label(namespace) || !is_label(account) {
            return Err(shape());
        }
        Ok(Self { trust_domain: domain.parse()?, service: ServiceName::new(account, namespace)? })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, service } = self;
        write!(f, "spiffe://{trust_domain}/ns/{}/sa/{}", service.namespace(), service.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_and_written_in_the_same_form() {
        let id: SpiffeId = "spiffe://weft.local/ns/shop/sa/users".parse().unwrap();
        assert_eq!(id.to_string(), "spiffe://weft.local/ns/shop/sa/users");
        assert_eq!(id.service().as_str(), "users.shop");
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "https://weft.local/ns/shop/sa/users",
            "spiffe://weft.local/ns/shop/sa/users/",
            "spiffe://weft.local/ns//sa/users",
            "spiffe://Weft.local/ns/shop/sa/users",
            "spiffe://weft.local/ns/shop/sa/users?x",
            "spiffe:///ns/shop/sa/users",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
