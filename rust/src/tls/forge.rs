//! Identities that break one rule each, to drive real handshakes in tests. Nobody needs a secret of a victim to make them:
//! this is what a stranger can do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::Ed25519KeyPair;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::ResolvesClientCert;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::SignatureScheme;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::certificate::{node_of, unix_seconds, Draft};
use super::chain::{judge, Chain, PeerIdentity};
use super::identity::{new_key, LIFETIME};
use super::verifier::{map_tls_error, server_name, Verifier};
use super::{Identity, TlsContext};
use crate::addr::NodeId;
use crate::config::TlsConfig;
use crate::error::Result;

/// The leaf expired a day ago.
pub fn expired(now: SystemTime) -> Result<Identity> {
    valid_from_to(now - 2 * DAY, now - DAY)
}

/// The leaf becomes valid in a day.
pub fn not_yet_valid(now: SystemTime) -> Result<Identity> {
    valid_from_to(now + DAY, now + 2 * DAY)
}

/// A node with a leaf of these dates.
pub fn valid_from_to(from: SystemTime, until: SystemTime) -> Result<Identity> {
    let key = new_key()?;
    let node = node_of(&key)?;
    let leaf = certificate(&node, &node, &node, &key, from, until)?;
    forged(key, vec![leaf], from, until)
}

/// A stranger claims to be what `victim` was rotated to: its leaf names the victim as issuer, but the stranger signed it; the
/// victim's own certificates follow.
pub fn broken_chain(victim: &Identity, now: SystemTime) -> Result<Identity> {
    let key = new_key()?;
    let node = node_of(&key)?;
    let leaf = certificate(&node, &node, &victim.node_id(), &key, now, now + LIFETIME)?;
    with_tail(key, leaf, victim, now)
}

/// As [`broken_chain`], but the leaf is a sound self-signed one: the victim's certificates merely lie behind it.
pub fn unlinked_chain(victim: &Identity, now: SystemTime) -> Result<Identity> {
    let key = new_key()?;
    let node = node_of(&key)?;
    let leaf = certificate(&node, &node, &node, &key, now, now + LIFETIME)?;
    with_tail(key, leaf, victim, now)
}

/// Rotated once more than peers take; every signature holds.
pub fn over_long(now: SystemTime) -> Result<Identity> {
    let mut key = new_key()?;
    let node = node_of(&key)?;
    let mut chain = vec![certificate(&node, &node, &node, &key, now, now + LIFETIME)?];
    while chain.len() <= TlsConfig::default().max_chain {
        let next = new_key()?;
        let (node, issuer) = (node_of(&next)?, node_of(&key)?);
        chain.insert(0, certificate(&node, &node, &issuer, &key, now, now + LIFETIME)?);
        key = next;
    }
    forged(key, chain, now, now + LIFETIME)
}

/// A self-signed certificate in the name of `victim`.
pub fn lying_name(victim: &NodeId, now: SystemTime) -> Result<Identity> {
    let key = new_key()?;
    let leaf = certificate(victim, &node_of(&key)?, victim, &key, now, now + LIFETIME)?;
    forged(key, vec![leaf], now, now + LIFETIME)
}

/// Shows the victim's certificates without holding the key.
pub fn stolen_chain(victim: &Identity, now: SystemTime) -> Result<Identity> {
    forged(new_key()?, victim.chain().to_vec(), now, now + LIFETIME)
}

/// Shows these bytes as its certificates.
pub fn with_certificates(certificates: Vec<Vec<u8>>, now: SystemTime) -> Result<Identity> {
    forged(new_key()?, certificates.into_iter().map(CertificateDer::from).collect(), now, now + LIFETIME)
}

/// What the chain proves, as [`super::finish`] asks.
pub fn judged(chain: &[Vec<u8>], wanted: Option<&NodeId>, config: &TlsConfig, now: SystemTime) -> Result<PeerIdentity> {
    judge(chain, wanted, config, now)
}

/// The same as rustls asks it, by the dialler who wants a node or by the acceptor. No chain is no call.
pub fn verified(chain: &[Vec<u8>], wanted: Option<&NodeId>, config: &TlsConfig, now: SystemTime) -> Result<()> {
    let ders: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let Some((leaf, others)) = ders.split_first() else { return judge(chain, wanted, config, now).map(drop) };
    let verifier = Verifier { config: config.clone(), own: None };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(unix_seconds(now).unsigned_abs()));
    let verdict = match wanted {
        Some(wanted) => verifier.verify_server_cert(leaf, others, &server_name(wanted), &[], now).map(drop),
        None => verifier.verify_client_cert(leaf, others, now).map(drop),
    };
    verdict.map_err(|error| map_tls_error(&error))
}

/// The same context, except that as a dialler it shows no certificate.
pub fn without_client_certificate(context: &TlsContext) -> TlsContext {
    let mut client = (*context.client).clone();
    client.client_auth_cert_resolver = Arc::new(NoCertificate);
    TlsContext { client: Arc::new(client), server: context.server.clone() }
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

fn certificate(
    subject: &NodeId,
    key: &NodeId,
    issuer: &NodeId,
    signer: &Ed25519KeyPair,
    from: SystemTime,
    until: SystemTime,
) -> Result<CertificateDer<'static>> {
    Draft { subject: &subject.to_string(), key, issuer: &issuer.to_string(), signer, from, until }.sign()
}

fn with_tail(key: Ed25519KeyPair, leaf: CertificateDer<'static>, tail: &Identity, now: SystemTime) -> Result<Identity> {
    let mut chain = vec![leaf];
    chain.extend_from_slice(tail.chain());
    forged(key, chain, now, now + LIFETIME)
}

fn forged(
    key: Ed25519KeyPair,
    certificates: Vec<CertificateDer<'static>>,
    from: SystemTime,
    until: SystemTime,
) -> Result<Identity> {
    let leaf = node_of(&key)?;
    let (not_before, not_after) = (unix_seconds(from), unix_seconds(until));
    let chain = Chain { nodes: vec![leaf], leaf, leaf_is_self_issued: false, not_before, not_after };
    Identity::unchecked(key, certificates, chain)
}

const DAY: Duration = Duration::from_secs(86_400);
