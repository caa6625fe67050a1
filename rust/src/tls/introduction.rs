//! Introductions: two nodes that can reach each other only through a third prove who they are and agree on keys, so that the
//! third learns nothing and can change nothing (docs/protocol.md section 7).
//!
//! Three messages, as a signed Diffie-Hellman exchange (SIGMA, with fresh X25519 keys on both sides): **Invite** shows the
//! dialler's chain and key; **Answer** the other's, with what it has to say sealed; **Go** what the dialler has to say, sealed.
//! An Invite that is repeated by somebody else leads to an Answer that only the first sender can open, and to no Go.

use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_256_GCM};
use aws_lc_rs::agreement::{agree_ephemeral, EphemeralPrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::hkdf::{KeyType, Salt, HKDF_SHA256};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{UnparsedPublicKey as Verifier, ED25519};
use zeroize::Zeroizing;

use super::chain::{self, PeerIdentity};
use super::identity::Identity;
use crate::addr::{NodeId, PingKeys};
use crate::config::TlsConfig;
use crate::error::{Error, Reason, Result, Stage};

/// The dialler's side, between its Invite and the Answer.
pub struct Invitation {
    exchange: [u8; 16],
    own: NodeId,
    wanted: NodeId,
    private: EphemeralPrivateKey,
    public: [u8; 32],
}

/// The other side, between its Answer and the dialler's Go.
pub struct Welcomed {
    exchange: [u8; 16],
    pub peer: PeerIdentity,
    secrets: Secrets,
}

/// What both sides have in the end.
pub struct Introduced {
    pub peer: PeerIdentity,
    /// What the peer had to say.
    pub said: Vec<u8>,
    /// For the pings of this meeting.
    pub keys: PingKeys,
}

/// What a message is, before anything in it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Invite,
    Answer,
    Go,
    /// The other node does not want to meet. Anyone on the way could say that, as anyone on the way could say nothing.
    Declined,
}

struct Secrets {
    dialler_seals: Zeroizing<[u8; 32]>,
    other_seals: Zeroizing<[u8; 32]>,
    /// As the dialler has them.
    keys: PingKeys,
}

impl Kind {
    /// `None`: nothing that is known here.
    pub fn of(message: &[u8]) -> Option<Self> {
        match message.first()? {
            1 => Some(Self::Invite),
            2 => Some(Self::Answer),
            3 => Some(Self::Go),
            4 => Some(Self::Declined),
            _ => None,
        }
    }
}

impl Invitation {
    /// A dialler's Invite to `wanted`. `exchange` names the exchange and must be random.
    pub fn new(identity: &Identity, wanted: NodeId, exchange: [u8; 16]) -> Result<(Self, Vec<u8>)> {
        let (private, public) = fresh_key()?;
        let own = identity.node_id();
        let mut message = vec![INVITE];
        push_chain(&mut message, identity);
        message.extend_from_slice(&public);
        let signed = transcript(INVITE, &exchange, &own, &wanted, &[&public]);
        message.extend_from_slice(identity.sign(&signed).as_ref());
        Ok((Self { exchange, own, wanted, private, public }, message))
    }

    /// Whether the Answer is from the one who was invited. One that is not leaves the invitation as it was: the right one may
    /// still come, by way of another rendezvous. Errors: as [`Self::handle_answer`].
    pub fn check(&self, answer: &[u8], config: &TlsConfig, now: SystemTime) -> Result<()> {
        self.author(&Parts::read(answer, ANSWER)?, config, now).map(drop)
    }

    /// Reads the Answer; `say` is sealed into the Go for it. Errors: a chain's faults, `IdentityMismatch`,
    /// `ProtocolViolation`.
    pub fn handle_answer(
        self,
        answer: &[u8],
        say: &[u8],
        config: &TlsConfig,
        now: SystemTime,
    ) -> Result<(Introduced, Vec<u8>)> {
        let parts = Parts::read(answer, ANSWER)?;
        let peer = self.author(&parts, config, now)?;
        let names = Names { exchange: &self.exchange, dialler: &self.own, other: &peer.leaf };
        let secrets = agree(self.private, &self.public, parts.public, parts.public, &names)?;
        let said = open(&secrets.other_seals, ANSWER, &self.exchange, parts.rest)?;
        let mut go = vec![GO];
        go.extend_from_slice(&seal(&secrets.dialler_seals, GO, &self.exchange, say)?);
        Ok((Introduced { peer, said, keys: secrets.keys }, go))
    }

    fn author(&self, parts: &Parts<'_>, config: &TlsConfig, now: SystemTime) -> Result<PeerIdentity> {
        let peer = parts.judge(Some(&self.wanted), config, now)?;
        let mut signed = transcript(ANSWER, &self.exchange, &peer.leaf, &self.own, &[&self.public, parts.public]);
        signed.extend_from_slice(parts.rest);
        parts.verify(&signed, &peer)?;
        Ok(peer)
    }
}

impl Welcomed {
    /// Who invites, to one of this node's names. Nothing has been spent yet but the proof itself. Errors: a chain's faults,
    /// `ProtocolViolation` (also when the Invite is for somebody else).
    pub fn who(
        identity: &Identity,
        exchange: &[u8; 16],
        invite: &[u8],
        config: &TlsConfig,
        now: SystemTime,
    ) -> Result<PeerIdentity> {
        let parts = Parts::read(invite, INVITE)?;
        let peer = parts.judge(None, config, now)?;
        let meant = |name: &NodeId| {
            let signed = transcript(INVITE, exchange, &peer.leaf, name, &[parts.public]);
            parts.verify(&signed, &peer).is_ok()
        };
        if !identity.node_ids().iter().any(meant) {
            return Err(violation("the signature of the invitation does not hold for this node"));
        }
        Ok(peer)
    }

    /// The Answer to an Invite of which [`Self::who`] has told who sent it.
    pub fn new(
        identity: &Identity,
        exchange: [u8; 16],
        invite: &[u8],
        peer: PeerIdentity,
        say: &[u8],
    ) -> Result<(Self, Vec<u8>)> {
        let parts = Parts::read(invite, INVITE)?;
        let own = identity.node_id();
        let (private, public) = fresh_key()?;
        let names = Names { exchange: &exchange, dialler: &peer.leaf, other: &own };
        let mut secrets = agree(private, parts.public, &public, parts.public, &names)?;
        let mut message = vec![ANSWER];
        push_chain(&mut message, identity);
        message.extend_from_slice(&public);
        let sealed = seal(&secrets.other_seals, ANSWER, &exchange, say)?;
        let mut signed = transcript(ANSWER, &exchange, &own, &peer.leaf, &[parts.public, &public]);
        // whoever checks the Answer before it uses its own key up sees a changed seal as well
        signed.extend_from_slice(&sealed);
        message.extend_from_slice(identity.sign(&signed).as_ref());
        message.extend_from_slice(&sealed);
        let PingKeys { key, local_name, remote_name } = secrets.keys;
        secrets.keys = PingKeys { key, local_name: remote_name, remote_name: local_name };
        Ok((Self { exchange, peer, secrets }, message))
    }

    /// Reads the dialler's Go. Errors: `ProtocolViolation`; then the right one may still come.
    pub fn handle_go(&self, go: &[u8]) -> Result<Introduced> {
        let sealed = go.strip_prefix(&[GO]).ok_or_else(|| violation("no Go"))?;
        let said = open(&self.secrets.dialler_seals, GO, &self.exchange, sealed)?;
        Ok(Introduced { peer: self.peer.clone(), said, keys: self.secrets.keys.clone() })
    }
}

/// Whether a message may be an Invite of this sender, by what costs nothing to look at: it is complete, and the first certificate
/// has the sender's key in it. Whether it is one, [`Welcomed::who`] finds out.
pub fn may_invite(message: &[u8], sender: &[u8; 32]) -> bool {
    let leaf = Parts::read(message, INVITE).ok().and_then(|parts| parts.chain.first().copied());
    leaf.is_some_and(|leaf| leaf.windows(sender.len()).any(|bytes| bytes == sender))
}

/// The message that declines an invitation.
pub fn decline(reason: Reason) -> Vec<u8> {
    let [high, low] = reason.code().to_be_bytes();
    vec![DECLINED, high, low]
}

/// The message that puts an invitation off: the dialler may come again after so long.
pub fn put_off(retry_after: Duration) -> Vec<u8> {
    let mut message = decline(Reason::PeerBusy);
    message.extend_from_slice(&u16::try_from(retry_after.as_millis()).unwrap_or(u16::MAX).to_be_bytes());
    message
}

/// What a message that declines says, and after how long the dialler may come again; `PeerOffline` when it makes no sense. What
/// stands behind that is left to later versions.
pub fn declined(message: &[u8]) -> (Reason, Option<Duration>) {
    let [DECLINED, high, low, rest @ ..] = message else { return (Reason::PeerOffline, None) };
    match Reason::from_code(u16::from_be_bytes([*high, *low])) {
        Some(Reason::PeerBusy) => {
            let millis = rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
            (Reason::PeerBusy, millis.map(|millis| Duration::from_millis(millis.into())))
        }
        Some(Reason::AccessDenied) => (Reason::AccessDenied, None),
        _ => (Reason::PeerOffline, None),
    }
}

/// An Invite or an Answer, taken apart: kind, chain (a count, then each with its length in two bytes), key, signature, the rest.
struct Parts<'a> {
    chain: Vec<&'a [u8]>,
    public: &'a [u8; 32],
    signature: &'a [u8; 64],
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    fn read(message: &'a [u8], kind: u8) -> Result<Self> {
        let short = || violation("an introduction that is cut short");
        if message.len() > MAX_MESSAGE {
            return Err(violation(format!("an introduction of {} bytes", message.len())));
        }
        let rest = message.strip_prefix(&[kind]).ok_or_else(|| violation("an introduction of another kind"))?;
        let (count, mut rest) = rest.split_first().ok_or_else(short)?;
        let mut chain = Vec::new();
        for _ in 0..*count {
            let (length, tail) = rest.split_first_chunk::<2>().ok_or_else(short)?;
            let (der, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or_else(short)?;
            chain.push(der);
            rest = tail;
        }
        let (public, rest) = rest.split_first_chunk::<32>().ok_or_else(short)?;
        let (signature, rest) = rest.split_first_chunk::<64>().ok_or_else(short)?;
        Ok(Self { chain, public, signature, rest })
    }

    fn judge(&self, wanted: Option<&NodeId>, config: &TlsConfig, now: SystemTime) -> Result<PeerIdentity> {
        if self.chain.is_empty() {
            return Err(Error::new(
                Reason::CertificateMissing,
                Stage::Rendezvous,
                "the introduction has no certificate",
            ));
        }
        chain::judge(&self.chain, wanted, config, now).map_err(|error| Error { stage: Stage::Rendezvous, ..error })
    }

    fn verify(&self, signed: &[u8], peer: &PeerIdentity) -> Result<()> {
        let verifier = Verifier::new(&ED25519, peer.leaf.public_key());
        let failed = |_| violation("the signature of the introduction does not hold").with_node(peer.leaf);
        verifier.verify(signed, self.signature).map_err(failed)
    }
}

struct Names<'a> {
    exchange: &'a [u8; 16],
    dialler: &'a NodeId,
    other: &'a NodeId,
}

/// What is signed: who says it to whom in which exchange, and every key so far.
fn transcript(kind: u8, exchange: &[u8; 16], from: &NodeId, to: &NodeId, keys: &[&[u8; 32]]) -> Vec<u8> {
    let mut text = LABEL.to_vec();
    text.push(kind);
    text.extend_from_slice(exchange);
    text.extend_from_slice(from.public_key());
    text.extend_from_slice(to.public_key());
    for key in keys {
        text.extend_from_slice(*key);
    }
    text
}

/// RFC 7748 and RFC 5869: everything comes from the shared secret, bound to names and keys. The dialler's key first.
fn agree(
    private: EphemeralPrivateKey,
    dialler: &[u8; 32],
    other: &[u8; 32],
    peers: &[u8; 32],
    names: &Names<'_>,
) -> Result<Secrets> {
    let info = transcript(0, names.exchange, names.dialler, names.other, &[dialler, other]);
    let mut okm = Zeroizing::new([0; 128]);
    let failed = || violation("the key of the introduction is no X25519 key");
    agree_ephemeral(private, UnparsedPublicKey::new(&X25519, peers), failed(), |secret| {
        let prk = Salt::new(HKDF_SHA256, LABEL).extract(secret);
        let info = [info.as_slice()];
        let okm_of = prk.expand(&info, Length).map_err(|_| failed())?;
        okm_of.fill(&mut okm[..]).map_err(|_| failed())
    })?;
    let mut secrets = Secrets {
        dialler_seals: Zeroizing::new([0; 32]),
        other_seals: Zeroizing::new([0; 32]),
        keys: PingKeys { key: [0; 32], local_name: [0; 16], remote_name: [0; 16] },
    };
    secrets.dialler_seals.copy_from_slice(&okm[..32]);
    secrets.other_seals.copy_from_slice(&okm[32..64]);
    secrets.keys.key.copy_from_slice(&okm[64..96]);
    secrets.keys.local_name.copy_from_slice(&okm[96..112]);
    secrets.keys.remote_name.copy_from_slice(&okm[112..]);
    Ok(secrets)
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        128
    }
}

/// Each key seals one message, so the nonce may be zero.
fn seal(key: &[u8; 32], kind: u8, exchange: &[u8; 16], text: &[u8]) -> Result<Vec<u8>> {
    let mut sealed = text.to_vec();
    let aad = Aad::from([&[kind][..], exchange].concat());
    let done = sealing_key(key)?.seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), aad, &mut sealed);
    done.map_err(|_| Error::new(Reason::Internal, Stage::Rendezvous, "sealing failed"))?;
    Ok(sealed)
}

fn open(key: &[u8; 32], kind: u8, exchange: &[u8; 16], sealed: &[u8]) -> Result<Vec<u8>> {
    let mut text = sealed.to_vec();
    let aad = Aad::from([&[kind][..], exchange].concat());
    let opened = sealing_key(key)?.open_in_place(Nonce::assume_unique_for_key([0; 12]), aad, &mut text);
    let length = opened.map_err(|_| violation("the seal of the introduction is broken"))?.len();
    text.truncate(length);
    Ok(text)
}

fn sealing_key(key: &[u8; 32]) -> Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, key);
    Ok(LessSafeKey::new(key.map_err(|_| Error::new(Reason::Internal, Stage::Rendezvous, "the key was refused"))?))
}

fn fresh_key() -> Result<(EphemeralPrivateKey, [u8; 32])> {
    let none = |_| Error::new(Reason::Internal, Stage::Rendezvous, "the operating system gives no randomness");
    let private = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(none)?;
    let public = private.compute_public_key().map_err(none)?;
    let mut bytes = [0; 32];
    bytes.copy_from_slice(public.as_ref());
    Ok((private, bytes))
}

fn push_chain(message: &mut Vec<u8>, identity: &Identity) {
    // bounded by the cap of chains, 16
    message.push(identity.chain().len() as u8);
    for der in identity.chain() {
        message.extend_from_slice(&(der.len() as u16).to_be_bytes());
        message.extend_from_slice(der);
    }
}

fn violation(what: impl Into<String>) -> Error {
    Error::new(Reason::ProtocolViolation, Stage::Rendezvous, what)
}

const LABEL: &[u8] = b"keynet-introduction-1";
const INVITE: u8 = 1;
const ANSWER: u8 = 2;
const GO: u8 = 3;
const DECLINED: u8 = 4;
/// 16 certificates of 2 KiB, key and signature, and 4 KiB to say (rendezvous.proto: bodies of 40 KiB).
const MAX_MESSAGE: usize = 40 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn node() -> Identity {
        Identity::generate(now()).unwrap()
    }

    fn config() -> TlsConfig {
        TlsConfig::default()
    }

    /// Everything in order, up to where the messages are given to `change`.
    fn introduce(
        dialler: &Identity,
        wanted: NodeId,
        other: &Identity,
        change: impl Fn(Kind, &mut Vec<u8>),
    ) -> Result<(Introduced, Introduced)> {
        let exchange = [7; 16];
        let (invitation, mut invite) = Invitation::new(dialler, wanted, exchange)?;
        change(Kind::Invite, &mut invite);
        let peer = Welcomed::who(other, &exchange, &invite, &config(), now())?;
        let (welcomed, mut answer) = Welcomed::new(other, exchange, &invite, peer, b"here I am")?;
        change(Kind::Answer, &mut answer);
        let (at_dialler, mut go) = invitation.handle_answer(&answer, b"and I there", &config(), now())?;
        change(Kind::Go, &mut go);
        Ok((at_dialler, welcomed.handle_go(&go)?))
    }

    #[test]
    fn both_learn_who_and_what_and_share_keys() {
        let (a, b) = (node(), node());
        let (at_a, at_b) = introduce(&a, b.node_id(), &b, |_, _| {}).unwrap();
        assert_eq!((at_a.peer.leaf, at_b.peer.leaf), (b.node_id(), a.node_id()));
        assert_eq!((&at_a.said[..], &at_b.said[..]), (&b"here I am"[..], &b"and I there"[..]));
        assert_eq!(at_a.keys.key, at_b.keys.key);
        assert_eq!((at_a.keys.local_name, at_a.keys.remote_name), (at_b.keys.remote_name, at_b.keys.local_name));
        assert_ne!(at_a.keys.local_name, at_a.keys.remote_name);
        let (again, _) = introduce(&a, b.node_id(), &b, |_, _| {}).unwrap();
        assert_ne!(again.keys.key, at_a.keys.key, "fresh keys in each exchange");
    }

    #[test]
    fn a_node_is_found_by_the_name_that_it_has_rotated_away_from() {
        let (a, old) = (node(), node());
        let new = old.rotate(now()).unwrap();
        let (at_a, at_b) = introduce(&a, old.node_id(), &new, |_, _| {}).unwrap();
        assert!(at_a.peer.is(&old.node_id()) && at_a.peer.leaf == new.node_id());
        assert_eq!(at_b.peer.leaf, a.node_id());
        let (_, at_b) = introduce(&new, a.node_id(), &a, |_, _| {}).unwrap();
        assert!(at_b.peer.is(&old.node_id()));
    }

    #[test]
    fn who_answers_must_be_the_one_who_was_invited() {
        let (a, b, c) = (node(), node(), node());
        let exchange = [1; 16];
        let (invitation, invite) = Invitation::new(&a, b.node_id(), exchange).unwrap();
        let refused = Welcomed::who(&c, &exchange, &invite, &config(), now()).unwrap_err();
        assert_eq!(refused.reason, Reason::ProtocolViolation, "it is not for this node");
        // one who answers all the same
        let dialler = PeerIdentity { leaf: a.node_id(), all: vec![a.node_id()] };
        let (_, forged) = Welcomed::new(&c, exchange, &invite, dialler.clone(), b"x").unwrap();
        assert!(invitation.check(&forged, &config(), now()).is_err());
        let (_, genuine) = Welcomed::new(&b, exchange, &invite, dialler, b"x").unwrap();
        assert_eq!(invitation.check(&genuine, &config(), now()), Ok(()), "it may still come");
        let mut changed = genuine;
        *changed.last_mut().unwrap() ^= 1;
        assert!(invitation.check(&changed, &config(), now()).is_err());
        let error = invitation.handle_answer(&forged, b"", &config(), now()).err().unwrap();
        assert_eq!(error.reason, Reason::IdentityMismatch);
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let (a, b) = (node(), node());
        for kind in [Kind::Invite, Kind::Answer, Kind::Go] {
            for place in (0..2_000).step_by(7) {
                let damaged = introduce(&a, b.node_id(), &b, |which, message| {
                    let length = message.len();
                    if which == kind {
                        message[place % length] ^= 0x20;
                    }
                });
                assert!(damaged.is_err(), "{kind:?}, byte {place}");
            }
        }
    }

    #[test]
    fn a_repeated_invitation_leads_nowhere() {
        let (a, b) = (node(), node());
        let exchange = [3; 16];
        let (_, invite) = Invitation::new(&a, b.node_id(), exchange).unwrap();
        // somebody on the way repeats it later, gets an answer, and has no key to go on with
        let peer = Welcomed::who(&b, &exchange, &invite, &config(), now()).unwrap();
        let (welcomed, answer) = Welcomed::new(&b, exchange, &invite, peer, b"secret addresses").unwrap();
        assert!(!answer.windows(6).any(|bytes| bytes == b"secret"));
        let (other, _) = Invitation::new(&a, b.node_id(), exchange).unwrap();
        assert!(other.handle_answer(&answer, b"", &config(), now()).is_err());
        assert!(welcomed.handle_go(&[GO; 60]).is_err());
        // nor does another exchange's name
        assert!(Welcomed::who(&b, &[4; 16], &invite, &config(), now()).is_err());
    }

    #[test]
    fn cut_short_and_empty_messages_are_refused() {
        let (a, b) = (node(), node());
        let (_, invite) = Invitation::new(&a, b.node_id(), [0; 16]).unwrap();
        for end in 0..invite.len() {
            assert!(Welcomed::who(&b, &[0; 16], &invite[..end], &config(), now()).is_err(), "cut at {end}");
        }
        assert!(Welcomed::who(&b, &[0; 16], &vec![INVITE; MAX_MESSAGE + 1], &config(), now()).is_err());
        let mut none = vec![INVITE, 0];
        none.extend_from_slice(&[0; 96]);
        let error = Welcomed::who(&b, &[0; 16], &none, &config(), now()).unwrap_err();
        assert_eq!(error.reason, Reason::CertificateMissing);
    }

    #[test]
    fn what_cannot_be_an_invitation_is_seen_by_its_lengths_and_its_key() {
        let (a, b) = (node(), node());
        let (_, invite) = Invitation::new(&a, b.node_id(), [1; 16]).unwrap();
        assert!(may_invite(&invite, a.node_id().public_key()));
        assert!(!may_invite(&invite, b.node_id().public_key()), "of somebody else");
        for end in 0..invite.len() {
            assert!(!may_invite(&invite[..end], a.node_id().public_key()), "cut at {end}");
        }
        assert!(!may_invite(b"\x01garbage", &[0; 32]));
    }

    #[test]
    fn what_is_declined_says_so_and_no_more() {
        assert_eq!(declined(&decline(Reason::AccessDenied)), (Reason::AccessDenied, None));
        assert_eq!(declined(&decline(Reason::Internal)), (Reason::PeerOffline, None));
        assert_eq!(declined(&[DECLINED]), (Reason::PeerOffline, None));
        assert_eq!(declined(&decline(Reason::PeerBusy)), (Reason::PeerBusy, None), "as older nodes say it");
        let mut later = put_off(Duration::from_millis(1_500));
        assert_eq!(declined(&later), (Reason::PeerBusy, Some(Duration::from_millis(1_500))));
        later.push(9);
        assert_eq!(declined(&later), (Reason::PeerBusy, Some(Duration::from_millis(1_500))));
        assert_eq!(Kind::of(&decline(Reason::PeerBusy)), Some(Kind::Declined));
        assert_eq!((Kind::of(&[]), Kind::of(&[99])), (None, None));
    }
}
