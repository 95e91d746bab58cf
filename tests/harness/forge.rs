//! Certificates signed with a mesh's own CA, as an attacker who stole its key could make them: correct ones, and wrong
//! ones of any kind.

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

/// A chain with its key, as one side of a handshake presents it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// DER, the leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn rustls::sign::SigningKey>,
}

impl Shown {
    /// `key` need not be the leaf's key.
    ///
    /// # Panics
    /// TLS does not support the key.
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
    /// Signs with the CA in a folder.
    ///
    /// # Panics
    /// The folder holds none.
    pub fn of(dir: &Path) -> Self {
        install_crypto_provider();
        let read = |file| std::fs::read_to_string(dir.join(file)).expect("a CA is kept there");
        let key = KeyPair::from_pem(&read("ca.key.pem")).expect("a key");
        let root = CertificateDer::from_pem_slice(read("ca.pem").as_bytes()).expect("a certificate");
        let issuer = Issuer::from_ca_cert_der(&root, key).expect("a CA");
        let bundle = TrustBundle::from_der([root.to_vec()]).expect("a root");
        Self { issuer, root, bundle }
    }

    /// Signs with the CA of a mesh.
    pub fn stolen(bed: &Bed) -> Self {
        Self::of(&bed.state_dir().join("control"))
    }

    /// The trust bundle of its mesh.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The CA's certificate, with its key.
    pub fn root(&self) -> Shown {
        Shown::new(vec![self.root.clone()], self.issuer.key())
    }

    /// The issuer that signs its certificates.
    pub fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// The parameters of a certificate as the control plane would issue it for an identity, to change and then sign.
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

    /// A signed certificate with these parameters and a new key.
    ///
    /// # Panics
    /// The parameters are invalid.
    pub fn sign(&self, params: &CertificateParams, algorithm: &'static SignatureAlgorithm) -> Shown {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("it is signed");
        Shown::new(vec![leaf.der().clone()], &key)
    }

    /// The certificate that the control plane would issue for an identity.
    pub fn good(&self, id: &str) -> Shown {
        self.sign(&Self::params(id), &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// As [`Self::good`], but it expires at `not_after`.
    pub fn until(&self, id: &str, not_after: SystemTime) -> Shown {
        let mut params = Self::params(id);
        params.not_after = not_after.into();
        self.sign(&params, &rcgen::PKCS_ECDSA_P256_SHA256)
    }
}
