//! Certificates of the floor and the peers, and TLS settings of the floor: those of the sidecars (P-256, TLS 1.3,
//! X25519MLKEM768, no resumption), but with names checked by rustls itself.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// The name in the certificate of both relays. The peers' configurations contain it, too.
pub(crate) const NAME: &str = "floor.bench";

const ROOT: &str = "root.pem";
const CERTIFICATE: &str = "relay.pem";
const KEY: &str = "relay.key.pem";
/// Certificate and key, as HAProxy wants them.
const BOTH: &str = "relay.both.pem";

/// Makes a root and one certificate for both relays, as files in `dir`.
pub(crate) fn write_certificates(dir: &Path) -> Result<()> {
    let mut root = CertificateParams::new([])?;
    root.distinguished_name.push(DnType::CommonName, "weft-bench");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?;

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut leaf = CertificateParams::new([NAME.to_owned()])?;
    // For peers that can't check the alternative name. Also, a certificate with its issuer's name would count as
    // self-signed.
    leaf.distinguished_name.push(DnType::CommonName, NAME);
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = leaf.signed_by(&key, &root)?;

    std::fs::write(dir.join(ROOT), root.pem())?;
    std::fs::write(dir.join(CERTIFICATE), leaf.pem())?;
    std::fs::write(dir.join(KEY), key.serialize_pem())?;
    std::fs::write(dir.join(BOTH), leaf.pem() + &key.serialize_pem())?;
    Ok(())
}

struct Files {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Files {
    fn read(dir: &Path) -> Result<Self> {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.join(ROOT)).context("the root's file")?)?;
        Ok(Self {
            provider: Arc::new(provider),
            roots: Arc::new(roots),
            chain: vec![CertificateDer::from_pem_file(dir.join(CERTIFICATE)).context("the certificate's file")?],
            key: PrivateKeyDer::from_pem_file(dir.join(KEY)).context("the key's file")?,
        })
    }
}

/// The TLS configuration of the out-relay.
pub(crate) fn client_config(dir: &Path) -> Result<ClientConfig> {
    let files = Files::read(dir)?;
    let mut config = ClientConfig::builder_with_provider(files.provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(files.roots)
        .with_client_auth_cert(files.chain, files.key)?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The TLS configuration of the in-relay, which demands a certificate.
pub(crate) fn server_config(dir: &Path) -> Result<ServerConfig> {
    let files = Files::read(dir)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(files.roots, Arc::clone(&files.provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(files.provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(files.chain, files.key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
