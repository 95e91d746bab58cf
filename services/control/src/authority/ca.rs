//! The certificate authority of the trust domain.
//!
//! It is made at the first start: a P-256 key that only its owner can read, and a root certificate that is valid for
//! ten years. It signs workloads' keys: each X.509-SVID names exactly one SPIFFE ID. Names, usages and times in a
//! signing request are ignored: the identity comes from the proof that came with the request.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use weft_mesh::{
    identity::{ProvenBy, SpiffeId, TrustDomain},
    limits,
    tls::{Svid, TlsSetupError, TrustBundle, WorkloadKey},
};
use x509_parser::{certification_request::X509CertificationRequest, extensions::GeneralName, prelude::FromDer};

use super::{
    state_dir::{Access, StateDir, StateError},
    token_key::TokenKey,
};

pub(super) const CA_KEY: &str = "ca.key.pem";
pub(super) const CA_CERTIFICATE: &str = "ca.pem";
pub(super) const TOKEN_KEY: &str = "token-key.pem";
/// The file with the roots that the trust domain trusts: the CA's own and, during a rotation, the next or the previous
/// one.
pub(crate) const BUNDLE: &str = "bundle.pem";

const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates are valid from this long ago on, so that a peer whose clock is behind accepts them.
const BACKDATED: Duration = Duration::from_secs(3600);
/// RFC 5280, section 4.1.2.2, allows 20 bytes; 16 random ones are as unique as a UUID.
const SERIAL_BYTES: usize = 16;

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// One of the CA's two files is missing.
    #[error("{present} is there but {missing} is not: restore it, or remove {present} to start with a new CA")]
    Half {
        /// The file that is there.
        present: String,
        /// The file that is not.
        missing: String,
    },
    /// A file does not contain what it should.
    #[error("{file}: {why}")]
    Content {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate or key could not be made.
    #[error("no CA could be made: {0}")]
    Make(#[from] rcgen::Error),
    /// An SVID for the control plane itself could not be made.
    #[error("the control plane has no identity: {0}")]
    OwnIdentity(#[from] TlsSetupError),
    /// Its own request was refused.
    #[error("the control plane has no identity: {0}")]
    OwnRequest(#[from] SignError),
    /// The system's clock or random source does not work.
    #[error("the system has no {0}")]
    System(&'static str),
}

/// Why a request was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Not a signing request.
    #[error("not a certificate signing request (PKCS #10, DER): {0}")]
    Malformed(String),
    /// The sender does not have the key.
    #[error("the certificate signing request is not signed with its own key")]
    Unproven,
    /// A key of another kind.
    #[error("the key to sign is not an ECDSA P-256 key")]
    KeyKind,
    /// The identity is of another trust domain.
    #[error("{id} is not of the trust domain {trust_domain}")]
    Foreign {
        /// The identity that the certificate was asked for.
        id: SpiffeId,
        /// The CA's trust domain.
        trust_domain: TrustDomain,
    },
    /// The root certificate has expired.
    #[error("the CA's own certificate has expired: a new root is needed")]
    Expired,
    /// Signing itself failed.
    #[error("signing failed: {0}")]
    Signing(String),
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// DER, leaf first, without the root.
    pub chain_der: Vec<Vec<u8>>,
    /// When it expires.
    pub not_after: SystemTime,
}

/// The CA of one trust domain, with the key that signs its join tokens.
pub struct Ca {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    root_der: CertificateDer<'static>,
    root_not_after: SystemTime,
    bundle: TrustBundle,
    token_key: TokenKey,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Ca {
    /// Opens the CA kept in a folder, or makes one where there is none.
    ///
    /// # Errors
    /// A file can't be read or written, a key's file is open to others, a file does not contain what its name says, or
    /// the CA there is another trust domain's.
    pub fn open_or_create(state_dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let dir = StateDir::open(state_dir)?;
        let _lock = dir.lock()?;
        let key_pem = dir.read(CA_KEY, Access::Private)?;
        let root_pem = dir.read(CA_CERTIFICATE, Access::Public)?;
        let (key, root_pem) = match (key_pem, root_pem) {
            (Some(key), Some(root)) => (read_key(&dir, CA_KEY, &key)?, root),
            // A first start was interrupted between the two files: the key has signed nothing yet.
            (Some(key), None) => make_root(&dir, read_key(&dir, CA_KEY, &key)?, trust_domain)?,
            (None, Some(_)) => {
                let name = |file| dir.path(file).display().to_string();
                return Err(CaError::Half { present: name(CA_CERTIFICATE), missing: name(CA_KEY) });
            }
            (None, None) => make_root(&dir, make_key(&dir, CA_KEY)?, trust_domain)?,
        };
        let root = read_root(&dir, &root_pem, &key, trust_domain)?;
        let bundle = read_or_make_bundle(&dir, &root_pem, &root.der)?;
        let token_key = match dir.read(TOKEN_KEY, Access::Private)? {
            Some(pem) => read_key(&dir, TOKEN_KEY, &pem)?,
            None => make_key(&dir, TOKEN_KEY)?,
        };
        Ok(Self {
            trust_domain: trust_domain.clone(),
            issuer: Issuer::from_ca_cert_der(&root.der, key)?,
            root_der: root.der,
            root_not_after: root.not_after,
            bundle,
            token_key: TokenKey::new(&token_key),
        })
    }

    /// Whether a folder holds a CA.
    pub fn is_in(state_dir: &Path) -> bool {
        state_dir.join(CA_CERTIFICATE).exists()
    }

    /// The trust domain of the CA.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots that were trusted when the CA was opened.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The CA's own root, DER.
    pub(crate) fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    pub(crate) fn token_key(&self) -> &TokenKey {
        &self.token_key
    }

    /// Signs the key of a request for an identity, for 24 hours at most and never beyond the root's own life.
    ///
    /// # Errors
    /// The request is malformed or its key is not a P-256 key, the identity is of another trust domain, or the root has
    /// expired.
    pub fn sign(&self, csr_der: &[u8], id: &SpiffeId) -> Result<Issued, SignError> {
        self.sign_for(csr_der, id, limits::SVID_LIFE)
    }

    /// Like [`Self::sign`], for an identity that was proven in this way. The SVID says so.
    pub(crate) fn sign_proven(&self, csr_der: &[u8], id: &SpiffeId, by: ProvenBy) -> Result<Issued, SignError> {
        self.sign_with(csr_der, id, by, limits::SVID_LIFE)
    }

    /// Like [`Self::sign`], with another longest lifetime.
    pub(crate) fn sign_for(&self, csr_der: &[u8], id: &SpiffeId, life: Duration) -> Result<Issued, SignError> {
        self.sign_with(csr_der, id, ProvenBy::JoinToken, life)
    }

    fn sign_with(&self, csr_der: &[u8], id: &SpiffeId, by: ProvenBy, life: Duration) -> Result<Issued, SignError> {
        let key = requested_key(csr_der)?;
        if id.trust_domain() != &self.trust_domain {
            return Err(SignError::Foreign { id: id.clone(), trust_domain: self.trust_domain.clone() });
        }
        let now = SystemTime::now();
        let not_after = whole_second((now + life).min(self.root_not_after));
        if not_after <= now {
            return Err(SignError::Expired);
        }
        let mut params = base_params(now - BACKDATED, not_after).map_err(SignError::Signing)?;
        if by == ProvenBy::Cluster {
            params.distinguished_name.push(DnType::OrganizationalUnitName, ProvenBy::CLUSTER_UNIT);
        }
        params.subject_alt_names = vec![uri_name(&id.to_string()).map_err(|e| SignError::Signing(e.to_string()))?];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer).map_err(|e| SignError::Signing(e.to_string()))?;
        Ok(Issued { chain_der: vec![leaf.der().to_vec()], not_after })
    }

    /// A fresh certificate, and its key, for a server that is called by a DNS name. It is no SVID: it proves no identity in
    /// the mesh.
    ///
    /// # Errors
    /// The name is none, or signing failed.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn certificate_for(&self, dns_name: &str, life: Duration) -> Result<(Vec<u8>, Vec<u8>), SignError> {
        let failed = |e: rcgen::Error| SignError::Signing(e.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let now = SystemTime::now();
        let not_after = whole_second((now + life).min(self.root_not_after));
        let mut params = base_params(now - BACKDATED, not_after).map_err(SignError::Signing)?;
        params.subject_alt_names = vec![SanType::DnsName(dns_name.try_into().map_err(failed)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok((leaf.der().to_vec(), key.serialize_der()))
    }

    /// A fresh SVID for the control plane itself.
    pub(crate) fn own_svid(&self) -> Result<Svid, CaError> {
        let key = WorkloadKey::generate()?;
        let issued = self.sign(&key.signing_request()?, &SpiffeId::of_control_plane(&self.trust_domain))?;
        Ok(key.into_svid(issued.chain_der)?)
    }
}

struct Root {
    der: CertificateDer<'static>,
    not_after: SystemTime,
}

fn content(dir: &StateDir, file: &str, why: impl std::fmt::Display) -> CaError {
    CaError::Content { file: dir.path(file).display().to_string(), why: why.to_string() }
}

fn make_key(dir: &StateDir, file: &str) -> Result<KeyPair, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    dir.write(file, &key.serialize_pem(), Access::Private)?;
    Ok(key)
}

fn read_key(dir: &StateDir, file: &str, pem: &str) -> Result<KeyPair, CaError> {
    let key = KeyPair::from_pem(pem).map_err(|e| content(dir, file, format!("not a private key in PEM: {e}")))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(content(dir, file, "not an ECDSA P-256 key"));
    }
    Ok(key)
}

fn make_root(dir: &StateDir, key: KeyPair, trust_domain: &TrustDomain) -> Result<(KeyPair, String), CaError> {
    let now = SystemTime::now();
    let mut params = base_params(now - BACKDATED, now + ROOT_LIFE).map_err(|_| CaError::System("usable clock"))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Weft");
    params.distinguished_name.push(DnType::CommonName, trust_domain.as_str());
    // The SPIFFE ID of the trust domain itself (X.509-SVID, section 3.1). No name constraints: webpki refuses chains
    // under a root with URI constraints, and peers check identities themselves.
    params.subject_alt_names = vec![uri_name(&format!("spiffe://{trust_domain}"))?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = params.self_signed(&key)?.pem();
    dir.write(CA_CERTIFICATE, &pem, Access::Public)?;
    Ok((key, pem))
}

fn read_root(dir: &StateDir, pem: &str, key: &KeyPair, trust_domain: &TrustDomain) -> Result<Root, CaError> {
    let wrong = |why: String| content(dir, CA_CERTIFICATE, why);
    let der =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| wrong(format!("not a certificate in PEM: {e}")))?;
    let (_, root) = x509_parser::parse_x509_certificate(&der).map_err(|e| wrong(format!("not a certificate: {e}")))?;
    if !root.is_ca() {
        return Err(wrong("not the certificate of a CA".into()));
    }
    if root.public_key().raw != key.subject_public_key_info() {
        return Err(wrong(format!("not the certificate of the key in {}", dir.path(CA_KEY).display())));
    }
    let names = root.subject_alternative_name().ok().flatten();
    let expected = format!("spiffe://{trust_domain}");
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let found: Vec<_> = names.filter_map(|n| if let GeneralName::URI(uri) = n { Some(*uri) } else { None }).collect();
    if found != [expected.as_str()] {
        let found = found.join(", ");
        return Err(wrong(format!(
            "it is the CA of `{found}`, not of `{expected}`: use another state folder for another trust domain"
        )));
    }
    let seconds = u64::try_from(root.validity().not_after.timestamp()).unwrap_or(0);
    let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    if not_after <= SystemTime::now() {
        return Err(wrong("it has expired: a new root is needed".into()));
    }
    Ok(Root { not_after, der: der.clone() })
}

fn read_or_make_bundle(dir: &StateDir, root_pem: &str, root: &[u8]) -> Result<TrustBundle, CaError> {
    let pem = match dir.read(BUNDLE, Access::Public)? {
        Some(pem) => pem,
        None => {
            dir.write(BUNDLE, root_pem, Access::Public)?;
            root_pem.to_owned()
        }
    };
    parse_bundle(pem.as_bytes(), root).map_err(|why| content(dir, BUNDLE, why))
}

/// Reads a bundle, which must contain the CA's own root.
pub(crate) fn parse_bundle(pem: &[u8], root: &[u8]) -> Result<TrustBundle, String> {
    let bundle = TrustBundle::from_pem(pem).map_err(|e| e.to_string())?;
    if !bundle.der().any(|der| der == root) {
        return Err(format!("the root in {CA_CERTIFICATE} is not in it, so nobody would trust what the CA signs"));
    }
    Ok(bundle)
}

fn requested_key(csr_der: &[u8]) -> Result<SubjectPublicKeyInfo, SignError> {
    let (rest, csr) = X509CertificationRequest::from_der(csr_der).map_err(|e| SignError::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(SignError::Malformed("bytes follow it".into()));
    }
    let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|_| SignError::KeyKind)?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(SignError::KeyKind);
    }
    csr.verify_signature().map_err(|_| SignError::Unproven)?;
    Ok(key)
}

fn base_params(not_before: SystemTime, not_after: SystemTime) -> Result<CertificateParams, String> {
    let mut serial = [0u8; SERIAL_BYTES];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| "the system has no randomness".to_owned())?;
    // Positive and not zero (RFC 5280, section 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    Ok(params)
}

fn uri_name(uri: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(uri.try_into()?))
}

/// X.509 times are whole seconds, and the time that is reported must match the certificate.
fn whole_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn domain() -> TrustDomain {
        "weft.test".parse().unwrap()
    }

    fn users() -> SpiffeId {
        "spiffe://weft.test/ns/shop/sa/users".parse().unwrap()
    }

    fn new_ca() -> (tempfile::TempDir, Ca) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), &domain()).unwrap();
        (dir, ca)
    }

    #[test]
    fn a_ca_survives_a_restart_and_its_keys_are_private() {
        let (dir, first) = new_ca();
        for file in [CA_KEY, TOKEN_KEY] {
            assert_eq!(fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        }
        let second = Ca::open_or_create(dir.path(), &domain()).unwrap();
        assert_eq!(first.bundle(), second.bundle());
    }

    #[test]
    fn an_svid_has_what_peers_need_whatever_the_request_says() {
        let (_dir, ca) = new_ca();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.subject_alt_names.push(uri_name("spiffe://weft.test/ns/shop/sa/admin").unwrap());
        let request = params.serialize_request(&key).unwrap();
        let issued = ca.sign(request.der(), &users()).unwrap();

        let svid = Svid::new(issued.chain_der.clone(), key.serialize_der()).unwrap();
        assert_eq!(svid.id(), &users());
        assert_eq!(svid.not_after(), issued.not_after);
        let life = svid.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(life <= limits::SVID_LIFE && life > limits::SVID_LIFE - Duration::from_secs(60));
        assert!(svid.not_before() <= SystemTime::now() - BACKDATED);

        let (_, leaf) = x509_parser::parse_x509_certificate(svid.leaf()).unwrap();
        assert!(!leaf.is_ca());
        assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
        let usages = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usages.server_auth && usages.client_auth && !usages.any);
    }

    #[test]
    fn only_requests_for_p256_keys_are_signed() {
        let (_dir, ca) = new_ca();
        assert!(matches!(ca.sign(b"nonsense", &users()), Err(SignError::Malformed(_))));
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let request = CertificateParams::default().serialize_request(&other).unwrap();
        assert!(matches!(ca.sign(request.der(), &users()), Err(SignError::KeyKind)));

        let mut request = WorkloadKey::generate().unwrap().signing_request().unwrap();
        *request.last_mut().unwrap() ^= 1;
        assert!(matches!(ca.sign(&request, &users()), Err(SignError::Unproven | SignError::Malformed(_))));

        let request = WorkloadKey::generate().unwrap().signing_request().unwrap();
        let foreign = "spiffe://elsewhere/ns/shop/sa/users".parse().unwrap();
        assert!(matches!(ca.sign(&request, &foreign), Err(SignError::Foreign { .. })));
    }

    #[test]
    fn no_svid_outlives_the_root() {
        let (_dir, mut ca) = new_ca();
        let request = WorkloadKey::generate().unwrap().signing_request().unwrap();
        ca.root_not_after = whole_second(SystemTime::now() + Duration::from_secs(3600));
        assert_eq!(ca.sign(&request, &users()).unwrap().not_after, ca.root_not_after);
        ca.root_not_after = SystemTime::now() - Duration::from_secs(1);
        assert!(matches!(ca.sign(&request, &users()), Err(SignError::Expired)));
    }

    #[test]
    fn a_damaged_state_folder_is_reported_and_not_repaired() {
        let refused = |dir: &tempfile::TempDir, domain: &TrustDomain| {
            Ca::open_or_create(dir.path(), domain).unwrap_err().to_string()
        };
        let (dir, _) = new_ca();
        assert!(refused(&dir, &"other.test".parse().unwrap()).contains("another state folder"));

        fs::set_permissions(dir.path().join(CA_KEY), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused(&dir, &domain()).contains("chmod 600"));

        fs::remove_file(dir.path().join(CA_KEY)).unwrap();
        assert!(refused(&dir, &domain()).contains("ca.key.pem is not"));

        let (dir, _) = new_ca();
        fs::write(dir.path().join(CA_CERTIFICATE), "garbage").unwrap();
        assert!(refused(&dir, &domain()).contains("ca.pem: not a certificate"));

        let (dir, _) = new_ca();
        let (other, _) = new_ca();
        fs::copy(other.path().join(CA_CERTIFICATE), dir.path().join(BUNDLE)).unwrap();
        assert!(refused(&dir, &domain()).contains("bundle.pem: the root"));
    }

    #[test]
    fn an_interrupted_first_start_is_completed() {
        let (dir, _) = new_ca();
        fs::remove_file(dir.path().join(CA_CERTIFICATE)).unwrap();
        fs::remove_file(dir.path().join(BUNDLE)).unwrap();
        let ca = Ca::open_or_create(dir.path(), &domain()).unwrap();
        assert_eq!(ca.own_svid().unwrap().id(), &SpiffeId::of_control_plane(&domain()));
    }
}
