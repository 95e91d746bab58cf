//! Renewal by an SVID that has expired.
//!
//! A sidecar that was cut off for longer than its SVID's life cannot use the SVID in a handshake any more. By then its
//! join token has expired, too, unless someone replaced it. So for [`limits::SVID_GRACE`] the key of the expired SVID
//! is accepted as proof, and only for a new SVID of the same identity. This gives away no more than renewal does: a
//! holder of the key could also have renewed the SVID in time.

use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use weft_mesh::{
    identity::{IdentityError, SpiffeId},
    limits,
    tls::late_renewal,
};

use super::ca::Ca;

/// Why the proof is not accepted. The text is for the peer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LateError {
    #[error("the expired SVID is malformed: {0}")]
    Malformed(String),
    #[error("the expired SVID was not signed by this control plane's CA")]
    Forged,
    #[error("the expired SVID is not valid yet")]
    Early,
    #[error("the SVID expired more than {} days ago: a new join token is needed", limits::SVID_GRACE.as_secs() / 86_400)]
    TooLate,
    #[error("the proof of the expired SVID's key is wrong")]
    Unproven,
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The identity of an expired SVID, if the proof was made with its key.
pub(crate) fn verify(
    ca: &Ca,
    svid_der: &[u8],
    proof: &[u8],
    csr_der: &[u8],
    now: SystemTime,
) -> Result<SpiffeId, LateError> {
    let malformed = |e: &dyn std::fmt::Display| LateError::Malformed(e.to_string());
    let (rest, leaf) = x509_parser::parse_x509_certificate(svid_der).map_err(|e| malformed(&e))?;
    let (_, root) = x509_parser::parse_x509_certificate(ca.root_der()).map_err(|e| malformed(&e))?;
    if !rest.is_empty() {
        return Err(malformed(&"bytes follow it"));
    }
    let is_of_ca = leaf.issuer() == root.subject() && leaf.verify_signature(Some(root.public_key())).is_ok();
    if !is_of_ca || leaf.is_ca() {
        return Err(LateError::Forged);
    }
    let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if now < time(leaf.validity().not_before.timestamp()) {
        return Err(LateError::Early);
    }
    if now > time(leaf.validity().not_after.timestamp()) + limits::SVID_GRACE {
        return Err(LateError::TooLate);
    }
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &*leaf.public_key().subject_public_key.data);
    key.verify(&late_renewal(csr_der), proof).map_err(|_| LateError::Unproven)?;
    let id = SpiffeId::of_certificate(svid_der)?;
    if id.trust_domain() != ca.trust_domain() {
        return Err(LateError::Forged);
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use weft_mesh::tls::{Svid, WorkloadKey};

    use super::*;

    fn users() -> SpiffeId {
        "spiffe://weft.test/ns/shop/sa/users".parse().unwrap()
    }

    fn ca() -> (tempfile::TempDir, Ca) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), &"weft.test".parse().unwrap()).unwrap();
        (dir, ca)
    }

    fn svid(ca: &Ca) -> Svid {
        let key = WorkloadKey::generate().unwrap();
        let issued = ca.sign(&key.signing_request().unwrap(), &users()).unwrap();
        key.into_svid(issued.chain_der).unwrap()
    }

    #[test]
    fn the_key_of_an_expired_svid_proves_its_identity_for_a_limited_time() {
        weft_mesh::tls::install_crypto_provider();
        let (_dir, ca) = ca();
        let (svid, csr) = (svid(&ca), WorkloadKey::generate().unwrap().signing_request().unwrap());
        let proof = svid.prove_late(&csr).unwrap();
        let at = |now| verify(&ca, svid.leaf(), &proof, &csr, now);
        assert_eq!(at(svid.not_after() + Duration::from_secs(3_600)).unwrap(), users());
        assert_eq!(at(svid.not_after() + limits::SVID_GRACE).unwrap(), users());
        let too_late = at(svid.not_after() + limits::SVID_GRACE + Duration::from_secs(1)).unwrap_err();
        assert!(matches!(too_late, LateError::TooLate), "{too_late}");
        assert!(matches!(at(svid.not_before() - Duration::from_secs(1)), Err(LateError::Early)));
    }

    #[test]
    fn another_key_svid_or_request_is_refused() {
        weft_mesh::tls::install_crypto_provider();
        let (_dir, ca) = self::ca();
        let (_other_dir, forger) = self::ca();
        let csr = || WorkloadKey::generate().unwrap().signing_request().unwrap();
        let (own, other, request) = (svid(&ca), svid(&ca), csr());
        let late = own.not_after() + Duration::from_secs(60);
        let proof = own.prove_late(&request).unwrap();
        let refused = |svid: &[u8], proof: &[u8], csr: &[u8]| verify(&ca, svid, proof, csr, late).unwrap_err();
        assert!(matches!(refused(other.leaf(), &proof, &request), LateError::Unproven));
        assert!(
            matches!(refused(own.leaf(), &proof, &csr()), LateError::Unproven),
            "the proof was for another request"
        );
        assert!(matches!(refused(own.leaf(), &[], &request), LateError::Unproven));
        let forged = svid(&forger);
        assert!(matches!(refused(forged.leaf(), &forged.prove_late(&request).unwrap(), &request), LateError::Forged));
        assert!(matches!(refused(b"nonsense", &proof, &request), LateError::Malformed(_)));
        assert!(matches!(refused(ca.root_der(), &proof, &request), LateError::Forged), "the root is not an SVID");
    }
}
