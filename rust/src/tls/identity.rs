//! Our own identity: a key and the chain that leads from it to the keys before it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::prelude::{Engine, BASE64_STANDARD};
use rustls_pki_types::pem::{self, PemObject, SectionKind};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::certificate::{node_of, Draft, Fault};
use super::chain::Chain;
use super::file;
use crate::addr::NodeId;
use crate::config::TlsConfig;
use crate::error::{Error, Reason, Result, Stage};

/// A node's private key with its certificate chain, leaf first. A clone shares both.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    key: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    certificates: Vec<CertificateDer<'static>>,
    chain: Chain,
}

impl Identity {
    /// A new node. Fails with `InvalidArgument` when `now` is before 1970 or the certificate would end after 9999.
    pub fn generate(now: SystemTime) -> Result<Self> {
        let key = new_key()?;
        let leaf = issue(&key, &key, now)?;
        Self::assemble(key, vec![leaf])
    }

    /// Reads a PEM text: one PKCS#8 `PRIVATE KEY` and the `CERTIFICATE`s of its chain, leaf first; text around them is
    /// skipped. An expired leaf is read as well: it can be renewed.
    ///
    /// Fails with `IdentityInvalid`.
    pub fn from_pem(text: &str) -> Result<Self> {
        let mut key = None;
        let mut certificates = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
            let (kind, der) = section.map_err(|e| unusable(format!("not PEM, or cut off: {}", pem_fault(&e))))?;
            let der = Zeroizing::new(der);
            match kind {
                SectionKind::PrivateKey if key.is_some() => return Err(unusable("holds two private keys")),
                SectionKind::PrivateKey => key = Some(der),
                SectionKind::Certificate => certificates.push(CertificateDer::from(der.to_vec())),
                other => {
                    return Err(unusable(format!("holds {other:?}: only PRIVATE KEY and CERTIFICATE belong in it")))
                }
            }
        }
        let key = key.ok_or_else(|| unusable("holds no PRIVATE KEY (PKCS#8, not encrypted)"))?;
        let key = Ed25519KeyPair::from_pkcs8(&key)
            .map_err(|e| unusable(format!("the private key is not an Ed25519 key in PKCS#8: {e}")))?;
        Self::assemble(key, certificates)
    }

    /// The text that [`Self::from_pem`] reads. It holds the private key.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        // room for all of it: a string that grows leaves copies of the key behind
        text.reserve(1024 + self.0.certificates.iter().map(|der| 128 + der.len() * 3 / 2).sum::<usize>());
        push_section(&mut text, "PRIVATE KEY", &self.0.pkcs8);
        for certificate in &self.0.certificates {
            push_section(&mut text, "CERTIFICATE", certificate);
        }
        text
    }

    /// Reads an identity file; symbolic links are followed. Fails with `IdentityExposed` when others than this user and root
    /// can read it (the group may read one of root's) or put another in its place, with `IdentityInvalid` for everything
    /// else: it is missing, not a plain file, too large, or its content is not an identity.
    pub fn load(path: &Path) -> Result<Self> {
        let text = file::read(path)?;
        Self::from_pem(&text).map_err(|e| Error { detail: format!("{}: {}", path.display(), e.detail), ..e })
    }

    /// Writes the identity with mode 0600, whole or not at all; what was there is replaced. Fails with `IdentityInvalid`.
    pub fn save(&self, path: &Path) -> Result<()> {
        file::replace(path, &self.to_pem())
    }

    /// Loads the identity, or makes a new one when there is no file. Processes that do this at the same time end with the
    /// same identity.
    pub fn load_or_create(path: &Path, now: SystemTime) -> Result<Self> {
        if !file::exists(path)? {
            // whoever puts its file there first has made the identity; the others read it
            file::create(path, &Self::generate(now)?.to_pem())?;
        }
        Self::load(path)
    }

    /// The node of the key in use.
    pub fn node_id(&self) -> NodeId {
        self.0.chain.leaf
    }

    /// Every node on the chain, newest first.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.0.chain.nodes.clone()
    }

    /// The last moment at which peers take the leaf. Whole seconds.
    pub fn not_after(&self) -> SystemTime {
        self.0.chain.not_after()
    }

    /// By which moment this node judges the dates of others, when its clock says `now`: that, unless its own leaf is not valid
    /// then.
    pub fn judging_time(&self, now: SystemTime) -> SystemTime {
        self.0.chain.judging_time(now)
    }

    /// A new key whose certificate the old key signs; peers that know an older name still find it on the chain. The old key
    /// can be thrown away, and should.
    ///
    /// Fails with `ChainTooLong` when peers would no longer take the chain: [`Self::without_past`] makes room. (The oldest
    /// certificate cannot be dropped alone: the one before it is not self-signed, and the key to sign it again is gone.)
    pub fn rotate(&self, now: SystemTime) -> Result<Self> {
        let key = new_key()?;
        let leaf = issue(&key, &self.0.key, now)?;
        // a renewed leaf has done its work: dates of older certificates do not count
        let old = if self.has_renewal() { &self.0.certificates[1..] } else { &self.0.certificates[..] };
        Self::assemble_bounded(key, leaf, old)
    }

    /// The same key with new dates. The key signs its own new leaf, which takes the place of a leaf like it (the first
    /// certificate of a node, or an earlier renewal); a leaf that links to an older key stays behind it.
    ///
    /// Fails with `ChainTooLong` as [`Self::rotate`] does.
    pub fn renew(&self, now: SystemTime) -> Result<Self> {
        let leaf = issue(&self.0.key, &self.0.key, now)?;
        let old = &self.0.certificates;
        let old = if self.0.chain.leaf_is_self_issued { old.get(1..).unwrap_or_default() } else { &old[..] };
        Self::assemble_bounded(self.copy_key()?, leaf, old)
    }

    /// The same key on a chain of one. Peers that know the node by an older name no longer find it.
    pub fn without_past(&self, now: SystemTime) -> Result<Self> {
        let leaf = issue(&self.0.key, &self.0.key, now)?;
        Self::assemble(self.copy_key()?, vec![leaf])
    }

    /// Signs with the key in use (RFC 8032).
    pub(super) fn sign(&self, text: &[u8]) -> aws_lc_rs::signature::Signature {
        self.0.key.sign(text)
    }

    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.0.pkcs8
    }

    /// The certificates, leaf first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }

    fn copy_key(&self) -> Result<Ed25519KeyPair> {
        Ed25519KeyPair::from_pkcs8(&self.0.pkcs8).map_err(|e| internal(format!("own key refused: {e}")))
    }

    fn has_renewal(&self) -> bool {
        self.0.chain.leaf_is_self_issued && self.0.certificates.len() > 1
    }

    fn assemble_bounded(
        key: Ed25519KeyPair,
        leaf: CertificateDer<'static>,
        old: &[CertificateDer<'static>],
    ) -> Result<Self> {
        let cap = TlsConfig::default().max_chain;
        if old.len() >= cap {
            let what =
                format!("the chain has {} certificates, peers take {cap}: drop the older names first", old.len());
            return Err(Error::new(Reason::ChainTooLong, Stage::Setup, what));
        }
        let mut certificates = vec![leaf];
        certificates.extend_from_slice(old);
        Self::assemble(key, certificates)
    }

    /// Puts key and chain together after the same proof that a peer will ask for, the dates apart.
    fn assemble(key: Ed25519KeyPair, certificates: Vec<CertificateDer<'static>>) -> Result<Self> {
        let chain = Chain::prove(&certificates, TlsConfig::default().max_chain).map_err(|fault: Fault| {
            let what = match fault.reason {
                Reason::CertificateMissing => "holds no CERTIFICATE".to_owned(),
                _ => fault.what,
            };
            unusable(what)
        })?;
        let node = node_of(&key)?;
        if chain.leaf != node {
            let what = format!("the first certificate is that of {}, the private key that of {node}", chain.leaf);
            return Err(unusable(what));
        }
        Self::unchecked(key, certificates, chain)
    }

    /// For forged identities: the chain need not be what it says.
    pub(super) fn unchecked(
        key: Ed25519KeyPair,
        certificates: Vec<CertificateDer<'static>>,
        chain: Chain,
    ) -> Result<Self> {
        // version 1, without the public key: OpenSSL reads no other for Ed25519
        let pkcs8 = key.to_pkcs8v1().map_err(|_| internal("own key cannot be written"))?;
        let pkcs8 = Zeroizing::new(pkcs8.as_ref().to_vec());
        Ok(Self(Arc::new(Inner { key, pkcs8, certificates, chain })))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("nodes", &self.0.chain.nodes).finish_non_exhaustive()
    }
}

/// How long a leaf lasts: 30 years. Its own key can renew it at any time, so the dates guard nothing against a thief; they
/// are the end of what nobody cares for any more. A clock that is wrong by less, in whichever direction, keeps no node out.
pub(super) const LIFETIME: Duration = Duration::from_secs(10_957 * 86_400);

pub(super) fn new_key() -> Result<Ed25519KeyPair> {
    Ed25519KeyPair::generate().map_err(|_| internal("the operating system gives no randomness"))
}

/// A certificate for `key` by `signer`, from `now` on.
fn issue(key: &Ed25519KeyPair, signer: &Ed25519KeyPair, now: SystemTime) -> Result<CertificateDer<'static>> {
    let (node, issuer) = (node_of(key)?, node_of(signer)?);
    let until = now
        .checked_add(LIFETIME)
        .ok_or_else(|| Error::new(Reason::InvalidArgument, Stage::Setup, "the clock is at the end of time"))?;
    Draft { subject: &node.to_string(), key: &node, issuer: &issuer.to_string(), signer, from: now, until }.sign()
}

fn push_section(text: &mut String, label: &str, der: &[u8]) {
    let body = Zeroizing::new(BASE64_STANDARD.encode(der));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // lines of 64 characters (RFC 7468 section 2)
        let (line, next) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = next;
    }
    text.push_str(&format!("-----END {label}-----\n"));
}

/// What is wrong with a PEM text. Nothing of the text is shown: with its line breaks lost, a whole private key stands in what
/// the parser takes for the name of a section.
pub fn pem_fault(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            match LABELS.iter().find(|label| label.as_bytes() == end_marker.as_slice()) {
                Some(label) => format!("the section {label} does not end"),
                None => "a section does not end, or its line breaks are lost".to_owned(),
            }
        }
        pem::Error::IllegalSectionStart { .. } => {
            "a BEGIN line does not stand alone in its line: were the line breaks lost on the way?".to_owned()
        }
        pem::Error::Base64Decode(_) => "a section is not base64".to_owned(),
        pem::Error::NoItemsFound => "there is no section in it".to_owned(),
        _ => "it cannot be read".to_owned(),
    }
}

/// Sections that may be named in a message.
const LABELS: &[&str] = &["PRIVATE KEY", "CERTIFICATE", "RSA PRIVATE KEY", "EC PRIVATE KEY"];

fn unusable(what: impl Into<String>) -> Error {
    Error::new(Reason::IdentityInvalid, Stage::Setup, what)
}

fn internal(what: impl Into<String>) -> Error {
    Error::new(Reason::Internal, Stage::Setup, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn generate() -> Identity {
        Identity::generate(now()).unwrap()
    }

    fn section(label: &str, der: &[u8]) -> String {
        let mut text = String::new();
        push_section(&mut text, label, der);
        text
    }

    fn refusal(text: &str) -> String {
        let error = Identity::from_pem(text).expect_err("it must be refused");
        assert_eq!((error.reason, error.stage), (Reason::IdentityInvalid, Stage::Setup));
        error.detail
    }

    #[test]
    fn pem_round_trip() {
        let identity = (0..3).fold(generate(), |identity, _| identity.rotate(now()).unwrap());
        let text = identity.to_pem();
        let again = Identity::from_pem(&text).unwrap();
        assert_eq!(again.node_ids(), identity.node_ids());
        assert_eq!(again.to_pem(), text);
        assert!(text.lines().all(|line| line.len() <= 64) && text.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        let with_words = format!("my node\n{}\nthe end", text.replace('\n', "\r\n"));
        assert_eq!(Identity::from_pem(&with_words).unwrap().node_id(), identity.node_id());
    }

    #[test]
    fn a_file_that_is_cut_off_is_called_so() {
        let text = generate().to_pem();
        let cut = text.find("-----END").unwrap();
        assert!(refusal(&text[..cut]).contains("the section PRIVATE KEY does not end"), "{}", refusal(&text[..cut]));
    }

    #[test]
    fn both_versions_of_pkcs8_are_read() {
        let identity = generate();
        let with_public_key = identity.0.key.to_pkcs8().unwrap();
        let text = section("PRIVATE KEY", with_public_key.as_ref()) + &section("CERTIFICATE", &identity.chain()[0]);
        assert_eq!(Identity::from_pem(&text).unwrap().to_pem(), identity.to_pem());
    }

    #[test]
    fn what_is_not_one_key_and_its_chain_is_refused() {
        let (identity, other) = (generate(), generate());
        let key = section("PRIVATE KEY", identity.pkcs8());
        let certificate = section("CERTIFICATE", &identity.chain()[0]);
        let other_certificate = section("CERTIFICATE", &other.chain()[0]);
        assert!(refusal("").contains("no PRIVATE KEY"));
        assert!(refusal(&certificate).contains("no PRIVATE KEY"));
        assert!(refusal(&key).contains("no CERTIFICATE"));
        assert!(refusal(&format!("{key}{key}{certificate}")).contains("two private keys"));
        assert!(refusal(&format!("{key}{other_certificate}")).contains("the first certificate is that of"));
        assert!(refusal(&format!("{key}{certificate}{other_certificate}")).contains("certificate 1 of 2"));
        assert!(refusal(&format!("{key}{}", section("CERTIFICATE", b"garbage"))).contains("certificate 1 of 1"));
        assert!(refusal(&format!("{}{certificate}", section("PRIVATE KEY", b"garbage"))).contains("not an Ed25519 key"));
        assert!(refusal(&format!("{}{certificate}", section("EC PRIVATE KEY", b"x"))).contains("EcPrivateKey"));
        assert!(refusal(&format!("{}{certificate}", section("ENCRYPTED PRIVATE KEY", b"x"))).contains("not encrypted"));
        let elliptic = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let elliptic = section("PRIVATE KEY", elliptic.serialized_der());
        assert!(refusal(&format!("{elliptic}{certificate}")).contains("not an Ed25519 key"));
    }

    #[test]
    fn every_beginning_of_a_file_is_refused() {
        let identity = generate().rotate(now()).unwrap();
        let text = identity.to_pem();
        for end in 0..text.len() {
            match Identity::from_pem(&text[..end]) {
                Err(error) => assert_eq!(error.reason, Reason::IdentityInvalid),
                Ok(_) => assert!(text[end..].trim().is_empty(), "accepted {end} of {} bytes", text.len()),
            }
        }
    }

    #[test]
    fn rotation_keeps_the_names_and_forgets_the_key() {
        let first = generate();
        let second = first.rotate(now()).unwrap();
        let third = second.rotate(now()).unwrap();
        assert_eq!(third.node_ids(), [third.node_id(), second.node_id(), first.node_id()]);
        assert_ne!(third.pkcs8(), second.pkcs8());
        let full = (1..16).fold(first, |identity, _| identity.rotate(now()).unwrap());
        assert_eq!(full.rotate(now()).unwrap_err().reason, Reason::ChainTooLong);
        assert_eq!(full.renew(now()).unwrap_err().reason, Reason::ChainTooLong);
        let alone = full.without_past(now()).unwrap();
        assert_eq!(alone.node_ids(), [full.node_id()]);
        assert_eq!(alone.rotate(now()).unwrap().node_ids()[1], full.node_id());
    }

    #[test]
    fn renewal_changes_the_dates_alone_and_does_not_pile_up() {
        let later = now() + LIFETIME;
        let first = generate();
        assert_eq!(first.not_after(), now() + LIFETIME);
        let renewed = first.renew(later).unwrap();
        assert_eq!((renewed.node_ids(), renewed.chain().len()), (first.node_ids(), 1));
        assert_eq!(renewed.not_after(), later + LIFETIME);

        let rotated = first.rotate(now()).unwrap();
        let renewed = rotated.renew(later).unwrap().renew(later).unwrap();
        assert_eq!((renewed.node_ids(), renewed.chain().len()), (rotated.node_ids(), 3));
        assert_eq!(renewed.not_after(), later + LIFETIME);
        assert_eq!(Identity::from_pem(&renewed.to_pem()).unwrap().node_ids(), renewed.node_ids());
        let again = renewed.rotate(later).unwrap();
        assert_eq!(again.chain().len(), 3, "the renewal made room");
        assert_eq!(again.node_ids()[1..], renewed.node_ids());
    }

    #[test]
    fn clocks_out_of_range_are_refused() {
        let early = Identity::generate(UNIX_EPOCH - Duration::from_secs(1)).unwrap_err();
        let late = Identity::generate(UNIX_EPOCH + Duration::from_secs(253_402_300_799)).unwrap_err();
        assert_eq!((early.reason, late.reason), (Reason::InvalidArgument, Reason::InvalidArgument));
    }

    #[test]
    fn a_pem_whose_line_breaks_were_lost_is_refused_without_a_piece_of_its_key() {
        let text = generate().to_pem();
        let key = text.split("-----").nth(2).unwrap().trim().to_owned();
        let mangled = [
            text.replace('\n', "\\n"),
            text.replace('\n', " "),
            text.replace('\n', ""),
            text.replace("-----\n", "-----"),
            text.replace("\n-----", "-----"),
            text.replace("-----BEGIN", "----BEGIN"),
            text.replace("PRIVATE KEY", "PRIVATE KEYS"),
            text.replacen("-----END PRIVATE KEY-----", "", 1),
            text.replace("-----END", "----END"),
            key.clone(),
            format!("-----BEGIN {key}-----"),
            format!("-----BEGIN PRIVATE KEY-----\n{key}!\n-----END PRIVATE KEY-----"),
        ];
        for text in mangled {
            let refusal = refusal(&text);
            let shown = key.as_bytes().windows(8).any(|piece| refusal.contains(std::str::from_utf8(piece).unwrap()));
            assert!(!shown && refusal.len() < 200, "{refusal}");
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let identity = generate();
        let text = format!("{identity:?}");
        assert!(text.contains(&identity.node_id().to_string()) && text.len() < 120, "{text}");
    }
}
