//! Certificates of a mesh's own CA, as its thief would make them: right ones, and wrong ones of any kind.

use std::{path::Path, sync::Arc, time::SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SignatureAlgorithm, date_time_ymd,
};
use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use weft_mesh::tls::{TrustBundle, install_crypto_provider};

use crate::Bed;

/// See the module.
pub struct Forge {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    bundle: TrustBundle,
}

/// A chain with its key, as one side of a handshake shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// DER, the leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn rustls::sign::SigningKey>,
}

impl Shown {
    /// With a key that need not be the leaf's.
    ///
    /// # Panics
    /// It is no key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Self {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = CryptoProvider::get_default().expect("it is installed");
        Self { chain, key: provider.key_provider.load_private_key(key).expect("a key that TLS knows") }
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        Arc::new(CertifiedKey::new(self.chain.clone(), Arc::clone(&self.key)))
    }
}

impl rustls::client::ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Shown {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl Forge {
    /// With the CA that a folder holds.
    ///
    /// # Panics
    /// It holds none.
    pub fn of(dir: &Path) -> Self {
        install_crypto_provider();
        let read = |file| std::fs::read_to_string(dir.join(file)).expect("a CA is kept there");
        let key = KeyPair::from_pem(&read("ca.key.pem")).expect("a key");
        let root = CertificateDer::from_pem_slice(read("ca.pem").as_bytes()).expect("a certificate");
        let issuer = Issuer::from_ca_cert_der(&root, key).expect("a CA");
        let bundle = TrustBundle::from_der([root.to_vec()]).expect("a root");
        Self { issuer, root, bundle }
    }

    /// With the CA of a mesh.
    pub fn stolen(bed: &Bed) -> Self {
        Self::of(&bed.state_dir().join("control"))
    }

    /// What its mesh trusts.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The CA's certificate, with its key.
    pub fn root(&self) -> Shown {
        Shown::new(vec![self.root.clone()], self.issuer.key())
    }

    /// What signs its certificates.
    pub fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// A certificate as the control plane would issue it for an identity, to be changed before it is signed.
    ///
    /// # Panics
    /// The name is not ASCII.
    pub fn params(id: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("an ASCII name"))];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2099, 1, 1);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    /// A certificate of these, signed, with a key of its own.
    ///
    /// # Panics
    /// They make no certificate.
    pub fn sign(&self, params: &CertificateParams, algorithm: &'static SignatureAlgorithm) -> Shown {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("it is signed");
        Shown::new(vec![leaf.der().clone()], &key)
    }

    /// What the control plane would issue for an identity.
    pub fn good(&self, id: &str) -> Shown {
        self.sign(&Self::params(id), &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// The same, which expires then.
    pub fn until(&self, id: &str, not_after: SystemTime) -> Shown {
        let mut params = Self::params(id);
        params.not_after = not_after.into();
        self.sign(&params, &rcgen::PKCS_ECDSA_P256_SHA256)
    }
}
