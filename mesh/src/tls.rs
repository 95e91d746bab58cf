//! Mutual TLS between the parts of the mesh: TLS 1.3 only, X25519MLKEM768 preferred, peers identified by their SPIFFE
//! ID.
//!
//! webpki checks a chain against the trust bundle (signatures, times, usages). The peer's identity comes from the one
//! URI name of its leaf, and never from a host name. Sessions are not resumed, as a resumed session would skip these
//! checks.

use std::{fmt, sync::Arc, time::SystemTime};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject};

use crate::identity::{IdentityError, SpiffeId, TrustDomain};

/// Why keys, certificates or configurations could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// The certificate is malformed, or has no valid identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// rustls refused its input.
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] TlsError),
    /// The trust bundle is unusable.
    #[error("the trust bundle is unusable: {0}")]
    Bundle(String),
    /// A key or a request could not be made.
    #[error("no key could be made: {0}")]
    Key(#[from] rcgen::Error),
}

/// Makes aws-lc-rs the provider of the process. Call it first in `main`. Calling it again is harmless.
pub fn install_crypto_provider() {
    // An error only means that one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

/// The roots that a trust domain trusts. Cheap to clone.
#[derive(Clone)]
pub struct TrustBundle {
    der: Arc<[CertificateDer<'static>]>,
    roots: Arc<RootCertStore>,
}

impl TrustBundle {
    /// A bundle of DER certificates.
    ///
    /// # Errors
    /// It is empty, or one certificate is not a usable root.
    pub fn from_der(der: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, TlsSetupError> {
        let der: Arc<[_]> = der.into_iter().map(CertificateDer::from).collect();
        let mut roots = RootCertStore::empty();
        for root in der.iter() {
            roots.add(root.clone()).map_err(|e| TlsSetupError::Bundle(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(TlsSetupError::Bundle("it holds no certificate".into()));
        }
        Ok(Self { der, roots: Arc::new(roots) })
    }

    /// A bundle of PEM certificates.
    ///
    /// # Errors
    /// As for [`Self::from_der`], or it is not PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsSetupError> {
        let der: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).map(|c| c.map(|c| c.to_vec())).collect();
        Self::from_der(der.map_err(|e| TlsSetupError::Bundle(e.to_string()))?)
    }

    /// The certificates, DER.
    pub fn der(&self) -> impl Iterator<Item = &[u8]> {
        self.der.iter().map(AsRef::as_ref)
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} roots)", self.der.len())
    }
}

/// A new P-256 key of a workload. It never leaves the process.
pub struct WorkloadKey(rcgen::KeyPair);

impl WorkloadKey {
    /// Makes a key.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> Result<Self, TlsSetupError> {
        Ok(Self(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?))
    }

    /// A certificate signing request (PKCS #10, DER) for this key. It contains no name.
    ///
    /// # Errors
    /// Signing failed.
    pub fn signing_request(&self) -> Result<Vec<u8>, TlsSetupError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }

    /// Joins the key with the chain that was issued for it.
    ///
    /// # Errors
    /// The chain is empty, its leaf is not an SVID, or it is for another key.
    pub fn into_svid(self, chain_der: Vec<Vec<u8>>) -> Result<Svid, TlsSetupError> {
        Svid::new(chain_der, self.0.serialize_der())
    }
}

/// A workload's identity and its proof: an X.509-SVID and its private key. Cheap to clone.
#[derive(Clone)]
pub struct Svid {
    id: SpiffeId,
    key: Arc<rustls::sign::CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Svid {
    /// An SVID from its chain (DER, leaf first) and its key (PKCS #8, DER).
    ///
    /// # Errors
    /// The chain is empty, its leaf is not an SVID, or the key is not the leaf's.
    pub fn new(chain_der: Vec<Vec<u8>>, key_pkcs8: Vec<u8>) -> Result<Self, TlsSetupError> {
        let leaf = chain_der.first().ok_or_else(|| IdentityError::Certificate("the chain is empty".into()))?;
        let id = SpiffeId::of_certificate(leaf)?;
        let (not_before, not_after) = validity(leaf)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8));
        let chain = chain_der.into_iter().map(CertificateDer::from).collect();
        let key = Arc::new(rustls::sign::CertifiedKey::from_der(chain, key, &provider())?);
        Ok(Self { id, key, not_before, not_after })
    }

    /// The identity.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When it becomes valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When it expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The leaf, DER.
    pub fn leaf(&self) -> &[u8] {
        &self.key.cert[0]
    }

    /// Proves, after the SVID's expiry, that the requester of a certificate has its key: a signature of
    /// [`late_renewal`]'s message (ECDSA with SHA-256, ASN.1).
    ///
    /// # Errors
    /// The key is of another kind, or signing failed.
    pub fn prove_late(&self, csr_der: &[u8]) -> Result<Vec<u8>, TlsSetupError> {
        let signer = self.key.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let signer = signer.ok_or_else(|| TlsError::General("the key is not an ECDSA P-256 key".into()))?;
        Ok(signer.sign(&late_renewal(csr_der))?)
    }
}

/// The message that the key of an expired SVID signs to get a new key certified. No TLS signature can cover such a
/// message, as those start with 64 spaces (RFC 8446, section 4.4.3).
pub fn late_renewal(csr_der: &[u8]) -> Vec<u8> {
    [b"weft.identity.v1 late renewal\0", csr_der].concat()
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("id", &self.id).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl rustls::client::ResolvesClientCert for Svid {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Svid {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.key))
    }
}

/// When the first certificate of a chain (DER) expires. Then connections with this chain must end.
///
/// # Errors
/// The chain is empty, or contains something else than certificates.
pub fn expiry<C: AsRef<[u8]>>(chain: &[C]) -> Result<SystemTime, IdentityError> {
    let mut first: Option<SystemTime> = None;
    for certificate in chain {
        let (_, not_after) = validity(certificate.as_ref())?;
        first = Some(first.map_or(not_after, |first| first.min(not_after)));
    }
    first.ok_or_else(|| IdentityError::Certificate("the chain is empty".into()))
}

fn validity(der: &[u8]) -> Result<(SystemTime, SystemTime), IdentityError> {
    use x509_parser::prelude::FromDer;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
        .map_err(|e| IdentityError::Certificate(e.to_string()))?;
    let time = |t: x509_parser::time::ASN1Time| {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or(0))
    };
    Ok((time(certificate.validity().not_before), time(certificate.validity().not_after)))
}

/// The client's side of a connection to a peer that must be exactly `expected`. Without an SVID the client shows no
/// certificate: only the control plane accepts that, for a peer that brings a join token.
///
/// # Errors
/// rustls refused the combination.
pub fn client_config(
    svid: Option<&Svid>,
    bundle: &TrustBundle,
    expected: SpiffeId,
) -> Result<Arc<ClientConfig>, TlsSetupError> {
    let provider = provider();
    let verifier = ExactPeer {
        expected,
        roots: Arc::clone(&bundle.roots),
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(svid.clone())),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Whether a server accepts a client without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// A client must show an SVID of the trust domain.
    Required,
    /// A client need not show a certificate. If it does, that must be an SVID of the trust domain.
    Optional,
}

/// The server's side of connections, for clients of its own trust domain.
///
/// # Errors
/// rustls refused the combination.
pub fn server_config(
    svid: &Svid,
    bundle: &TrustBundle,
    client_certificate: ClientCertificate,
) -> Result<Arc<ServerConfig>, TlsSetupError> {
    let provider = provider();
    let mut chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&bundle.roots), Arc::clone(&provider));
    if client_certificate == ClientCertificate::Optional {
        chain = chain.allow_unauthenticated();
    }
    let chain = chain.build().map_err(|e| TlsSetupError::Bundle(e.to_string()))?;
    let verifier = TrustDomainPeer { trust_domain: svid.id.trust_domain().clone(), chain };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(svid.clone()));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// The name that a client puts into SNI: a hint for people who look at the traffic, and never a proof.
pub fn server_name(id: &SpiffeId) -> ServerName<'static> {
    ServerName::try_from(id.service().as_str().to_owned()).expect("two DNS labels are a DNS name")
}

fn refused(why: Refused) -> TlsError {
    TlsError::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(why))))
}

/// Why a certificate that webpki accepts is refused.
#[derive(thiserror::Error)]
enum Refused {
    #[error("the peer is {found}, expected {expected}")]
    WrongPeer { found: String, expected: String },
    #[error(transparent)]
    NoSvid(#[from] IdentityError),
}

/// rustls shows this error with `Debug`, so that is what logs and answers of the refused peer contain.
impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identity in a peer's certificate.
fn identity_of(leaf: &CertificateDer<'_>) -> Result<SpiffeId, TlsError> {
    SpiffeId::of_certificate(leaf).map_err(|why| refused(why.into()))
}

/// Accepts one identity.
#[derive(Debug)]
struct ExactPeer {
    expected: SpiffeId,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ExactPeer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, self.algorithms.all)?;
        let found = identity_of(end_entity)?;
        if found != self.expected {
            return Err(refused(Refused::WrongPeer { found: found.to_string(), expected: self.expected.to_string() }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("only TLS 1.3 is supported".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Accepts every workload of a trust domain.
#[derive(Debug)]
struct TrustDomainPeer {
    trust_domain: TrustDomain,
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for TrustDomainPeer {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Every client has only one SVID, so hints would only cost bytes.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let found = identity_of(end_entity)?;
        if found.trust_domain() != &self.trust_domain {
            let expected = format!("a member of {}", self.trust_domain);
            return Err(refused(Refused::WrongPeer { found: found.to_string(), expected }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
