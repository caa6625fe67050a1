//! A chain of certificates: which nodes it proves its bearer to be (docs/protocol.md section 4).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::certificate::{unix_seconds, Certificate, Fault};
use crate::addr::NodeId;
use crate::config::TlsConfig;
use crate::error::{Error, Reason, Result, Stage};

/// Who a peer has proven to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The key in use now.
    pub leaf: NodeId,
    /// Every node on the chain, newest first; the leaf is the first.
    pub all: Vec<NodeId>,
}

impl PeerIdentity {
    /// Whether the peer is this node, by its key of now or by one that it has rotated away from.
    pub fn is(&self, node: &NodeId) -> bool {
        self.all.contains(node)
    }
}

/// A chain whose form, names and signatures hold. Its bearer may call itself any node on it, once it has proven to hold the
/// leaf's key.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// Newest first, each once.
    pub nodes: Vec<NodeId>,
    pub leaf: NodeId,
    /// The first certificate is a renewal: signed by the key that it is for.
    pub leaf_is_self_issued: bool,
    /// The dates of the leaf, in seconds since 1970. Those of the others do not count.
    pub not_before: i64,
    pub not_after: i64,
}

impl Chain {
    /// Proves the chain, leaf first. Fails with `CertificateMissing`, `ChainTooLong` (before a certificate is looked at),
    /// `CertificateInvalid` and `NameMismatch` (see [`Certificate::parse`]), and `ChainBroken`.
    pub(super) fn prove(ders: &[impl AsRef<[u8]>], max: usize) -> Result<Self, Fault> {
        if ders.len() > max {
            let what = format!("{} certificates, the cap is {max}", ders.len());
            return Err(Fault::new(Reason::ChainTooLong, what));
        }
        let place = |at: usize, what: String| format!("certificate {} of {}: {what}", at + 1, ders.len());
        let mut certificates = Vec::with_capacity(ders.len());
        for (at, der) in ders.iter().enumerate() {
            let parsed = Certificate::parse(der.as_ref());
            certificates.push(parsed.map_err(|fault| Fault::new(fault.reason, place(at, fault.what)))?);
        }
        let Some(leaf) = certificates.first() else {
            return Err(Fault::new(Reason::CertificateMissing, "the chain is empty"));
        };
        let mut nodes: Vec<NodeId> = Vec::with_capacity(certificates.len());
        for (at, certificate) in certificates.iter().enumerate() {
            // the last one is signed by itself
            let signer = certificates.get(at + 1).unwrap_or(certificate);
            check_link(certificate, signer).map_err(|what| Fault::new(Reason::ChainBroken, place(at, what)))?;
            if at == 1 && certificate.node == leaf.node {
                continue; // a renewal: the leaf, signed by its own key, in front of the leaf that it renews
            }
            if nodes.contains(&certificate.node) {
                let what = place(at, format!("{} is on the chain already", certificate.node));
                return Err(Fault::new(Reason::ChainBroken, what));
            }
            nodes.push(certificate.node);
        }
        Ok(Self {
            nodes,
            leaf: leaf.node,
            leaf_is_self_issued: leaf.is_self_issued(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        })
    }

    /// Fails with `CertificateExpired` when the leaf's last date is over. Its first date is no part of the judgement: the clock
    /// that it was made by may have been fast, or this one slow, and a key that is used exists.
    fn check_dates(&self, now: SystemTime) -> Result<(), Fault> {
        let now = unix_seconds(now);
        if now > self.not_after {
            let what =
                format!("the leaf expired {} ago, by this machine's clock", span(now.saturating_sub(self.not_after)));
            return Err(Fault::new(Reason::CertificateExpired, what));
        }
        Ok(())
    }

    /// The moment by which its bearer, whose clock says `now`, judges the dates of others. When its own leaf is not valid then,
    /// it is the clock that cannot be believed, or the leaf has indeed expired, which is for others to say: either way the
    /// moment at which the leaf was made has certainly passed, and is all that is certain.
    pub(super) fn judging_time(&self, now: SystemTime) -> SystemTime {
        match (self.not_before..=self.not_after).contains(&unix_seconds(now)) {
            true => now,
            false => UNIX_EPOCH + Duration::from_secs(u64::try_from(self.not_before).unwrap_or(0)),
        }
    }

    pub(super) fn not_after(&self) -> SystemTime {
        match u64::try_from(self.not_after) {
            Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds),
            Err(_) => UNIX_EPOCH, // a date before 1970 is as expired as one in 1970
        }
    }
}

/// Judges the chain that a peer shows. Whether the peer holds the leaf's key is TLS' part.
///
/// Fails as [`Chain::prove`] does, with `IdentityMismatch` when `wanted` is not on the chain, and with `CertificateExpired`.
pub(super) fn judge(
    ders: &[impl AsRef<[u8]>],
    wanted: Option<&NodeId>,
    config: &TlsConfig,
    now: SystemTime,
) -> Result<PeerIdentity> {
    let judged = Chain::prove(ders, config.max_chain).and_then(|chain| {
        if let Some(wanted) = wanted.filter(|wanted| !chain.nodes.contains(wanted)) {
            let what = format!("wanted {wanted}, but {} answers", chain.leaf);
            return Err(Fault::new(Reason::IdentityMismatch, what));
        }
        chain.check_dates(now)?;
        Ok(PeerIdentity { leaf: chain.leaf, all: chain.nodes })
    });
    judged.map_err(|fault| {
        let error = Error::new(fault.reason, Stage::Tls, fault.what);
        wanted.into_iter().fold(error, |error, wanted| error.with_node(*wanted))
    })
}

fn check_link(certificate: &Certificate, signer: &Certificate) -> Result<(), String> {
    if certificate.issuer != signer.node.to_string() {
        return Err(format!("its issuer is {:?}, but {} comes next", certificate.issuer, signer.node));
    }
    if !certificate.is_signed_by(&signer.node) {
        return Err(format!("{} did not sign it", signer.node));
    }
    Ok(())
}

fn span(seconds: i64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::certificate::{node_of, Draft};
    use crate::tls::identity::{new_key, LIFETIME};
    use crate::tls::{forge, Identity};
    use aws_lc_rs::signature::Ed25519KeyPair;
    use proptest::prelude::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn judged(ders: &[impl AsRef<[u8]>], wanted: Option<&NodeId>) -> Result<PeerIdentity> {
        judge(ders, wanted, &TlsConfig::default(), now())
    }

    fn reason(ders: &[impl AsRef<[u8]>]) -> Reason {
        judged(ders, None).expect_err("it must be refused").reason
    }

    /// A chain of `n` keys, rotated `n - 1` times.
    fn rotated(n: usize) -> Identity {
        (1..n).fold(Identity::generate(now()).unwrap(), |identity, _| identity.rotate(now()).unwrap())
    }

    fn signed(key: &Ed25519KeyPair, issuer: &NodeId, signer: &Ed25519KeyPair) -> Vec<u8> {
        let node = node_of(key).unwrap();
        let (subject, issuer) = (node.to_string(), issuer.to_string());
        let (from, until) = (now(), now() + LIFETIME);
        let draft = Draft { subject: &subject, key: &node, issuer: &issuer, signer, from, until };
        draft.sign().unwrap().to_vec()
    }

    #[test]
    fn a_peer_is_every_node_on_its_chain() {
        for length in [1, 2, 3, 16] {
            let identity = rotated(length);
            let peer = judged(identity.chain(), None).unwrap();
            assert_eq!((peer.leaf, &peer.all), (identity.node_id(), &identity.node_ids()));
            assert_eq!(peer.all.len(), length);
            for node in identity.node_ids() {
                assert!(peer.is(&node));
                assert_eq!(judged(identity.chain(), Some(&node)).unwrap(), peer);
            }
        }
    }

    #[test]
    fn another_node_is_not_on_it() {
        let other = rotated(1).node_id();
        let identity = rotated(2);
        let error = judged(identity.chain(), Some(&other)).unwrap_err();
        assert_eq!((error.reason, error.stage, error.node), (Reason::IdentityMismatch, Stage::Tls, Some(other)));
        assert!(error.detail.contains(&identity.node_id().to_string()), "{error}");
        assert!(!judged(identity.chain(), None).unwrap().is(&other));
    }

    #[test]
    fn what_was_rotated_away_from_says_nothing_of_what_came_after() {
        let old = rotated(1);
        let new = old.rotate(now()).unwrap();
        assert_eq!(judged(old.chain(), Some(&new.node_id())).unwrap_err().reason, Reason::IdentityMismatch);
    }

    #[test]
    fn lengths_are_bounded_at_both_ends() {
        let none: [&[u8]; 0] = [];
        assert_eq!(reason(&none), Reason::CertificateMissing);
        let long = forge::over_long(now()).unwrap();
        assert_eq!(long.chain().len(), 17);
        assert_eq!(reason(long.chain()), Reason::ChainTooLong);
        assert_eq!(reason(&vec![b"not even looked at"; 1_000]), Reason::ChainTooLong);
        let roomy = TlsConfig { max_chain: 17, ..TlsConfig::default() };
        assert_eq!(judge(long.chain(), None, &roomy, now()).unwrap().all.len(), 17);
    }

    #[test]
    fn strangers_cannot_put_themselves_before_a_victim() {
        let victim = rotated(2);
        for forged in [forge::broken_chain(&victim, now()).unwrap(), forge::unlinked_chain(&victim, now()).unwrap()] {
            for wanted in victim.node_ids() {
                let error = judged(forged.chain(), Some(&wanted)).unwrap_err();
                assert_eq!(error.reason, Reason::ChainBroken, "{error}");
            }
            assert_eq!(reason(forged.chain()), Reason::ChainBroken);
        }
    }

    #[test]
    fn links_lead_from_new_to_old_and_not_back() {
        let [old, new] = [new_key().unwrap(), new_key().unwrap()];
        let [old_id, new_id] = [&old, &new].map(|key| node_of(key).unwrap());
        let root = signed(&old, &old_id, &old);
        let leaf = signed(&new, &old_id, &old);
        judged(&[&leaf, &root], Some(&old_id)).unwrap();
        // oldest first
        assert_eq!(reason(&[&root, &leaf]), Reason::ChainBroken);
        // subject and issuer swapped: the new key vouches for the old one, which anybody's key can
        let swapped = signed(&old, &new_id, &new);
        assert_eq!(reason(&[&signed(&new, &new_id, &new), &swapped]), Reason::ChainBroken);
        // ... and what that chain does prove, it proves of the old key
        let new_root = signed(&new, &new_id, &new);
        assert_eq!(judged(&[&swapped, &new_root], None).unwrap().leaf, old_id);
        // the names fit, but the signer is another
        assert_eq!(reason(&[&signed(&new, &old_id, &new), &root]), Reason::ChainBroken);
        // the signature holds, but the issuer's name is another's
        assert_eq!(reason(&[&signed(&new, &new_id, &old), &root]), Reason::ChainBroken);
        // the last must be self-signed
        assert_eq!(reason(&[&leaf]), Reason::ChainBroken);
        assert_eq!(reason(&[&signed(&new, &new_id, &old)]), Reason::ChainBroken);
    }

    #[test]
    fn a_link_in_the_middle_counts_as_much_as_the_first() {
        let whole = rotated(4);
        for drop in 1..4 {
            let mut chain = whole.chain().to_vec();
            chain.remove(drop);
            assert_eq!(reason(&chain), Reason::ChainBroken, "without certificate {drop}");
        }
        for (a, b) in [(0, 1), (1, 2), (2, 3), (0, 3)] {
            let mut chain = whole.chain().to_vec();
            chain.swap(a, b);
            assert_eq!(reason(&chain), Reason::ChainBroken, "{a} and {b} swapped");
        }
        let other = rotated(4);
        let grafted = [&whole.chain()[..2], &other.chain()[2..]].concat();
        assert_eq!(reason(&grafted), Reason::ChainBroken);
    }

    #[test]
    fn a_key_is_on_a_chain_once_or_renews_the_leaf() {
        let [a, b] = [new_key().unwrap(), new_key().unwrap()];
        let [a_id, b_id] = [&a, &b].map(|key| node_of(key).unwrap());
        let (a_root, a_by_b, b_by_a) = (signed(&a, &a_id, &a), signed(&a, &b_id, &b), signed(&b, &a_id, &a));
        assert_eq!(reason(&[&a_by_b, &b_by_a, &a_root]), Reason::ChainBroken);
        let renewal = signed(&b, &b_id, &b);
        let peer = judged(&[&renewal, &b_by_a, &a_root], Some(&a_id)).unwrap();
        assert_eq!(peer.all, [b_id, a_id]);
        assert_eq!(reason(&[&renewal, &renewal, &b_by_a, &a_root]), Reason::ChainBroken);
        assert_eq!(judged(&[&a_root, &a_root], None).unwrap().all, [a_id]);
        assert_eq!(reason(&[&a_root, &a_root, &a_root]), Reason::ChainBroken);
    }

    #[test]
    fn names_and_forms_are_told_apart_by_reason() {
        let victim = rotated(1);
        let liar = forge::lying_name(&victim.node_id(), now()).unwrap();
        assert_eq!(judged(liar.chain(), Some(&victim.node_id())).unwrap_err().reason, Reason::NameMismatch);
        let mut chain = rotated(2).chain().to_vec();
        chain[1] = b"garbage".to_vec().into();
        let error = judged(&chain, None).unwrap_err();
        assert_eq!(error.reason, Reason::CertificateInvalid);
        assert!(error.detail.starts_with("certificate 2 of 2"), "{error}");
    }

    #[test]
    fn the_leaf_alone_has_dates() {
        let hour = Duration::from_secs(3600);
        let (from, until) = (now(), now() + 24 * hour);
        let leaf = forge::valid_from_to(from, until).unwrap();
        let at = |moment| judge(leaf.chain(), None, &TlsConfig::default(), moment).map_err(|error| error.reason);
        assert!(at(from).is_ok() && at(until).is_ok());
        assert_eq!(at(until + Duration::from_secs(1)), Err(Reason::CertificateExpired));
        assert!(at(from - 48 * hour).is_ok() && at(UNIX_EPOCH - hour).is_ok(), "a slow clock keeps nobody out");

        let later = now() + 10 * LIFETIME;
        let rotated = Identity::generate(now()).unwrap().rotate(later).unwrap();
        judge(rotated.chain(), None, &TlsConfig::default(), later).unwrap();
        judged(rotated.chain(), None).unwrap();
    }

    #[test]
    fn a_clock_by_which_the_own_leaf_is_not_valid_judges_nobody() {
        let day = Duration::from_secs(86_400);
        let own = Identity::generate(now()).unwrap();
        for (clock, judging) in [
            (now() + 2 * day, now() + 2 * day),
            (now() - 2 * day, now()),
            (UNIX_EPOCH, now()),
            (now() + LIFETIME + day, now()),
        ] {
            assert_eq!(own.judging_time(clock), judging);
        }
        // eleven years ahead, whenever the identities were made
        let ahead = now() + 11 * 365 * day;
        for made in [now(), ahead] {
            let own = Identity::generate(made).unwrap();
            for peer in [Identity::generate(now()).unwrap(), Identity::generate(ahead).unwrap()] {
                judge(peer.chain(), None, &TlsConfig::default(), own.judging_time(ahead)).unwrap();
                judge(own.chain(), None, &TlsConfig::default(), peer.judging_time(now())).unwrap();
            }
            // what expired before this node was made has expired
            let gone = forge::expired(made).unwrap();
            let error = judge(gone.chain(), None, &TlsConfig::default(), own.judging_time(ahead)).unwrap_err();
            assert_eq!(error.reason, Reason::CertificateExpired);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn a_damaged_chain_is_refused(which in 0usize..3, at: prop::sample::Index, flip in 1u8.., cut: bool) {
            let identity = rotated(3);
            let mut chain: Vec<Vec<u8>> = identity.chain().iter().map(|der| der.to_vec()).collect();
            let at = at.index(chain[which].len());
            if cut { chain[which].truncate(at) } else { chain[which][at] ^= flip }
            prop_assert!(judged(&chain, None).is_err());
        }

        #[test]
        fn any_bytes_are_judged(chain in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20)) {
            prop_assert!(judged(&chain, None).is_err());
        }
    }
}
