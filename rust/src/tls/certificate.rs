//! One certificate: what keynet writes, and what it takes (docs/protocol.md section 4; RFC 5280 section 4.1, RFC 8410).
//!
//! The outer SEQUENCE of an Ed25519 certificate ends in 74 bytes of known form, so it is taken apart here by offset and has
//! no second spelling; what lies inside is signed, and is read by `x509-parser`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, UnparsedPublicKey, ED25519};
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, PublicKeyData, SerialNumber, SignatureAlgorithm};
use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{oid, Oid, Tag};
use x509_parser::certificate::TbsCertificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AlgorithmIdentifier, X509Name, X509Version};

use crate::addr::NodeId;
use crate::error::{Error, Reason, Stage};

/// What is wrong with a certificate or a chain, before it is known whose it is: a peer's or our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub reason: Reason,
    pub what: String,
}

impl Fault {
    pub(super) fn new(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, what: what.into() }
    }
}

/// What a certificate of the right form says. Nothing is proven yet but that its name is its key's.
#[derive(Clone, Debug)]
pub(super) struct Certificate<'a> {
    pub node: NodeId,
    /// The issuer's common name, as it stands.
    pub issuer: &'a str,
    /// Seconds since 1970, both inclusive (RFC 5280 section 4.1.2.5).
    pub not_before: i64,
    pub not_after: i64,
    signed: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Reads DER. Fails with `CertificateInvalid` for anything but an X.509 v3 certificate of an Ed25519 key, signed with
    /// Ed25519, whose names are single common names and which has no critical extension (keynet needs none, and what it does
    /// not act upon it must not take); with `NameMismatch` when the subject is not the text of the key.
    pub(super) fn parse(der: &'a [u8]) -> Result<Self, Fault> {
        if der.len() > MAX_CERTIFICATE {
            return Err(invalid(format!("{} bytes, more than {MAX_CERTIFICATE}", der.len())));
        }
        let (signed, signature) = split(der).ok_or_else(|| invalid("not the DER of an Ed25519-signed certificate"))?;
        let (rest, tbs) = TbsCertificate::from_der(signed).map_err(|e| invalid(format!("cannot be read: {e}")))?;
        if !rest.is_empty() || tbs.as_ref().len() != signed.len() {
            return Err(invalid("data after the end"));
        }
        if tbs.version() != X509Version::V3 {
            return Err(invalid("not X.509 version 3"));
        }
        if !is_plain_ed25519(&tbs.signature) {
            return Err(invalid("not signed with Ed25519"));
        }
        let node = ed25519_key(&tbs)?;
        if let Some(extension) = tbs.extensions().iter().find(|extension| extension.critical) {
            return Err(invalid(format!("has a critical extension, {}", extension.oid)));
        }
        let subject = common_name(&tbs.subject).ok_or_else(|| invalid("the subject is not one common name"))?;
        let issuer = common_name(&tbs.issuer).ok_or_else(|| invalid("the issuer is not one common name"))?;
        if subject != node.to_string() {
            let what = format!("is in the name of {subject:?}, but its key is that of {node}");
            return Err(Fault::new(Reason::NameMismatch, what));
        }
        let (not_before, not_after) = (tbs.validity().not_before.timestamp(), tbs.validity().not_after.timestamp());
        Ok(Self { node, issuer, not_before, not_after, signed, signature })
    }

    /// Whether `key` made the signature (RFC 8032 section 5.1.7).
    pub(super) fn is_signed_by(&self, key: &NodeId) -> bool {
        UnparsedPublicKey::new(&ED25519, key.public_key()).verify(self.signed, self.signature).is_ok()
    }

    /// Names its own key as the one that signed it.
    pub(super) fn is_self_issued(&self) -> bool {
        self.issuer == self.node.to_string()
    }
}

/// What goes into a certificate.
pub(super) struct Draft<'a> {
    /// Common name and key need not belong together: forged certificates are made here as well.
    pub subject: &'a str,
    pub key: &'a NodeId,
    pub issuer: &'a str,
    pub signer: &'a Ed25519KeyPair,
    pub from: SystemTime,
    pub until: SystemTime,
}

impl Draft<'_> {
    /// Fails with `InvalidArgument` for dates that a certificate cannot hold (before 1970, after 9999).
    pub(super) fn sign(&self) -> Result<CertificateDer<'static>, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(self.subject);
        // rcgen's date type is not a dependency of ours; its epoch plus a duration makes one
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(certificate_seconds(self.from)?);
        params.not_after = epoch + Duration::from_secs(certificate_seconds(self.until)?);
        params.serial_number = Some(self.serial()?);
        let issuer_params = {
            let mut params = CertificateParams::default();
            params.distinguished_name = name(self.issuer);
            params
        };
        let issuer = Issuer::new(issuer_params, Signer(self.signer));
        let certificate = params
            .signed_by(&Subject(self.key.public_key()), &issuer)
            .map_err(|e| Error::new(Reason::Internal, Stage::Setup, format!("cannot sign a certificate: {e}")))?;
        Ok(certificate.into())
    }

    /// RFC 5280 section 4.1.2.2 wants issuer and serial to be unique together: a digest of key, issuer and dates is.
    fn serial(&self) -> Result<SerialNumber, Error> {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.key.public_key());
        context.update(self.issuer.as_bytes());
        context.update(&certificate_seconds(self.from)?.to_be_bytes());
        context.update(&certificate_seconds(self.until)?.to_be_bytes());
        let digest = context.finish();
        let serial: Vec<u8> = digest.as_ref().iter().copied().take(16).collect();
        Ok(SerialNumber::from(serial))
    }
}

/// The node that a key pair is.
pub(super) fn node_of(key: &Ed25519KeyPair) -> Result<NodeId, Error> {
    let unusable = |why: String| Error::new(Reason::Internal, Stage::Setup, why);
    let bytes: Result<[u8; 32], _> = key.public_key().as_ref().try_into();
    let bytes = bytes.map_err(|_| unusable("an Ed25519 public key of other than 32 bytes".to_owned()))?;
    NodeId::of_key(bytes).map_err(|bad| unusable(bad.to_string()))
}

/// Seconds since 1970, negative before.
pub(super) fn unix_seconds(moment: SystemTime) -> i64 {
    let (seconds, sign) = match moment.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs(), 1),
        Err(before) => (before.duration().as_secs(), -1),
    };
    i64::try_from(seconds).unwrap_or(i64::MAX) * sign
}

fn certificate_seconds(moment: SystemTime) -> Result<u64, Error> {
    u64::try_from(unix_seconds(moment)).ok().filter(|seconds| *seconds <= LAST_SECOND).ok_or_else(|| {
        Error::new(
            Reason::InvalidArgument,
            Stage::Setup,
            "a certificate's dates lie between 1970 and 9999: check the clock",
        )
    })
}

fn invalid(what: impl Into<String>) -> Fault {
    Fault::new(Reason::CertificateInvalid, what)
}

/// The signed part and the signature of an Ed25519-signed certificate.
fn split(der: &[u8]) -> Option<(&[u8], &[u8])> {
    // a certificate is longer than 127 bytes, and each length has one encoding (X.690 section 10.1)
    let content = match der {
        [0x30, 0x81, length, content @ ..] if *length >= 0x80 && usize::from(*length) == content.len() => content,
        [0x30, 0x82, high, low, content @ ..]
            if *high > 0 && usize::from(u16::from_be_bytes([*high, *low])) == content.len() =>
        {
            content
        }
        _ => return None,
    };
    let (rest, signature) = content.split_at_checked(content.len().checked_sub(64)?)?;
    let signed = rest.strip_suffix(&BEFORE_SIGNATURE)?;
    Some((signed, signature))
}

fn is_plain_ed25519(algorithm: &AlgorithmIdentifier) -> bool {
    algorithm.algorithm == ID_ED25519 && algorithm.parameters.is_none()
}

fn ed25519_key(tbs: &TbsCertificate) -> Result<NodeId, Fault> {
    let info = tbs.public_key();
    if !is_plain_ed25519(&info.algorithm) {
        return Err(invalid(format!("its key is not an Ed25519 key but of type {}", info.algorithm.algorithm)));
    }
    let bits = &info.subject_public_key;
    match <[u8; 32]>::try_from(bits.data.as_ref()) {
        Ok(key) if bits.unused_bits == 0 => NodeId::of_key(key).map_err(|bad| invalid(bad.to_string())),
        _ => Err(invalid("its Ed25519 key does not have 32 bytes")),
    }
}

/// The value of a name that is one common name and nothing else.
fn common_name<'a>(name: &X509Name<'a>) -> Option<&'a str> {
    let mut attributes = name.iter_attributes();
    let (attribute, None) = (attributes.next()?, attributes.next()) else { return None };
    let text = matches!(attribute.attr_value().tag(), Tag::Utf8String | Tag::PrintableString);
    if !text || *attribute.attr_type() != ID_COMMON_NAME {
        return None;
    }
    attribute.as_str().ok()
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

struct Subject<'a>(&'a [u8; 32]);

impl PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

struct Signer<'a>(&'a Ed25519KeyPair);

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.try_sign(message).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// keynet's own certificates have about 330 bytes. A session ticket holds the whole chain of a peer and has a 16-bit length:
/// 16 certificates of this size fit twice.
const MAX_CERTIFICATE: usize = 2048;

/// 9999-12-31 23:59:59, the last moment of a GeneralizedTime (RFC 5280 section 4.1.2.5).
const LAST_SECOND: u64 = 253_402_300_799;

/// RFC 8410 section 3.
const ID_ED25519: Oid<'static> = oid!(1.3.101 .112);

/// RFC 5280 appendix A.1.
const ID_COMMON_NAME: Oid<'static> = oid!(2.5.4 .3);

/// signatureAlgorithm = id-Ed25519 without parameters, then a BIT STRING of 64 bytes without unused bits.
const BEFORE_SIGNATURE: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::KeyPair as RcgenKeyPair;

    fn sample() -> (Ed25519KeyPair, NodeId, CertificateDer<'static>) {
        let key = Ed25519KeyPair::generate().unwrap();
        let node = node_of(&key).unwrap();
        let name = node.to_string();
        let from = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let draft = Draft {
            subject: &name,
            key: &node,
            issuer: &name,
            signer: &key,
            from,
            until: from + Duration::from_secs(3600),
        };
        let der = draft.sign().unwrap();
        (key, node, der)
    }

    /// A self-signed certificate made by rcgen alone.
    fn foreign(
        algorithm: &'static SignatureAlgorithm,
        change: impl Fn(&mut CertificateParams, &RcgenKeyPair),
    ) -> Vec<u8> {
        let key = RcgenKeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = match key.public_key_raw().try_into() {
            Ok(raw) => name(&NodeId::from_public_key(raw).to_string()),
            Err(_) => name("not a node"),
        };
        change(&mut params, &key);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn refusal(der: &[u8]) -> Fault {
        Certificate::parse(der).expect_err("it must be refused")
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (_, node, der) = sample();
        let certificate = Certificate::parse(&der).unwrap();
        assert_eq!((certificate.node, certificate.issuer), (node, node.to_string().as_str()));
        assert_eq!((certificate.not_before, certificate.not_after), (1_700_000_000, 1_700_003_600));
        assert!(certificate.is_signed_by(&node) && certificate.is_self_issued());
        assert!(!certificate.is_signed_by(&sample().1));
        assert!(der.len() < 400, "{}", der.len());
    }

    #[test]
    fn dates_after_2050_and_the_ends_of_time() {
        let (key, node, _) = sample();
        let until = |seconds| {
            let until = UNIX_EPOCH + Duration::from_secs(seconds);
            Draft { subject: "x", key: &node, issuer: "x", signer: &key, from: UNIX_EPOCH, until }.sign()
        };
        for seconds in [0, 2_524_607_999, 2_524_608_000, LAST_SECOND] {
            let der = until(seconds).unwrap();
            let (_, tbs) = TbsCertificate::from_der(split(&der).unwrap().0).unwrap();
            assert_eq!(tbs.validity().not_after.timestamp(), seconds as i64);
        }
        assert_eq!(until(LAST_SECOND + 1).unwrap_err().reason, Reason::InvalidArgument);
        assert_eq!(unix_seconds(UNIX_EPOCH - Duration::from_secs(5)), -5);
        assert!(certificate_seconds(UNIX_EPOCH - Duration::from_secs(5)).is_err());
    }

    #[test]
    fn a_certificate_of_other_programs_is_taken_if_it_keeps_the_rules() {
        let der = foreign(&rcgen::PKCS_ED25519, |params, _| {
            params.subject_alt_names = vec![rcgen::SanType::DnsName("example.org".try_into().unwrap())];
        });
        assert!(Certificate::parse(&der).is_ok());
    }

    #[test]
    fn other_kinds_of_keys_are_refused() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256] {
            assert_eq!(refusal(&foreign(algorithm, |_, _| ())).reason, Reason::CertificateInvalid);
        }
        // an ECDSA key inside a certificate that Ed25519 signed: past the outer form
        let (key, _, _) = sample();
        let other = RcgenKeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let issuer = Issuer::new(CertificateParams::default(), Signer(&key));
        let der = CertificateParams::default().signed_by(&other, &issuer).unwrap();
        let fault = refusal(der.der());
        assert!(fault.what.contains("not an Ed25519 key"), "{}", fault.what);
    }

    #[test]
    fn a_key_that_anyone_can_sign_with_is_in_no_certificate() {
        let (signer, issuer, _) = sample();
        for weak in [[0; 32], [255; 32]] {
            let node = NodeId::from_public_key(weak);
            let (subject, issuer) = (node.to_string(), issuer.to_string());
            let (from, until) = (UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(2_000_000_000));
            let draft = Draft { subject: &subject, key: &node, issuer: &issuer, signer: &signer, from, until };
            let fault = refusal(&draft.sign().unwrap());
            assert_eq!(fault.reason, Reason::CertificateInvalid);
            assert!(fault.what.contains("not a node id"), "{}", fault.what);
        }
    }

    #[test]
    fn names_are_one_common_name_that_is_the_keys() {
        let (_, other, _) = sample();
        let der = foreign(&rcgen::PKCS_ED25519, |params, _| params.distinguished_name = name(&other.to_string()));
        assert_eq!(refusal(&der).reason, Reason::NameMismatch);
        let der = foreign(&rcgen::PKCS_ED25519, |params, key| {
            let node = NodeId::from_public_key(key.public_key_raw().try_into().unwrap());
            params.distinguished_name = name(&node.to_string().to_uppercase());
        });
        assert_eq!(refusal(&der).reason, Reason::NameMismatch, "the text is lower case");
        let der = foreign(&rcgen::PKCS_ED25519, |params, _| params.distinguished_name.push(DnType::CountryName, "NL"));
        assert_eq!(refusal(&der).reason, Reason::CertificateInvalid);
        let der = foreign(&rcgen::PKCS_ED25519, |params, _| params.distinguished_name = DistinguishedName::new());
        assert_eq!(refusal(&der).reason, Reason::CertificateInvalid);
    }

    #[test]
    fn critical_extensions_are_refused_and_size_is_bounded() {
        let extension = |size: usize, critical: bool| {
            let mut extension = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 5], vec![4; size]);
            extension.set_criticality(critical);
            foreign(&rcgen::PKCS_ED25519, move |params, _| params.custom_extensions.push(extension.clone()))
        };
        assert!(Certificate::parse(&extension(9, false)).is_ok());
        assert!(refusal(&extension(9, true)).what.contains("critical extension"));
        assert!(refusal(&extension(MAX_CERTIFICATE, false)).what.contains("bytes"));
    }

    #[test]
    fn truncated_padded_and_garbage_are_refused() {
        let (_, _, der) = sample();
        for end in 0..der.len() {
            assert_eq!(refusal(&der[..end]).reason, Reason::CertificateInvalid, "{end} bytes");
        }
        let mut longer = der.to_vec();
        longer.push(0);
        refusal(&longer);
        refusal(b"");
        refusal(&[0x30, 0x80, 0, 0]);
        refusal(&[0xff; 400]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_changed_certificate_never_verifies(at: prop::sample::Index, flip in 1u8..) {
            let (_, node, der) = sample();
            let mut changed = der.to_vec();
            let at = at.index(changed.len());
            changed[at] ^= flip;
            if let Ok(certificate) = Certificate::parse(&changed) {
                prop_assert!(!certificate.is_signed_by(&node), "byte {} ^ {}", at, flip);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Certificate::parse(&bytes);
        }

        // in the form of a certificate, so that the bytes reach the inner parser
        #[test]
        fn any_signed_part_is_read_or_refused(start in 0usize..300, bytes in prop::collection::vec(any::<u8>(), 54..300)) {
            let (_, _, der) = sample();
            let (signed, signature) = split(&der).unwrap();
            let mut content = signed[..start.min(signed.len())].to_vec();
            content.extend([&bytes[..], &BEFORE_SIGNATURE, signature].concat());
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            let whole = if content.len() < 256 { [&[0x30, 0x81, length[1]], &content[..]].concat() } else { [&[0x30, 0x82, length[0], length[1]], &content[..]].concat() };
            prop_assert!(split(&whole).is_some());
            let _ = Certificate::parse(&whole);
        }
    }
}
