//! Whole handshakes, two rustls connections back to back in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::{ClientConnection, Connection, HandshakeKind, ServerConnection};

use super::*;

/// Both ends after their handshake, or what each of them died of.
struct Met {
    client: Result<PeerIdentity>,
    server: Result<PeerIdentity>,
    ends: [Connection; 2],
}

impl Met {
    fn kinds(&self) -> [Option<HandshakeKind>; 2] {
        [self.ends[0].handshake_kind(), self.ends[1].handshake_kind()]
    }

    fn reasons(&self) -> (Option<Reason>, Option<Reason>) {
        (self.client.as_ref().err().map(|e| e.reason), self.server.as_ref().err().map(|e| e.reason))
    }
}

/// Moves bytes until both are silent. The first error of each end is kept, alerts are delivered.
fn drive(ends: &mut [Connection; 2]) -> [Option<rustls::Error>; 2] {
    let mut errors = [None, None];
    for _ in 0..20 {
        for from in 0..2 {
            let mut bytes = Vec::new();
            while ends[from].wants_write() {
                ends[from].write_tls(&mut bytes).unwrap();
            }
            let (to, mut bytes) = (1 - from, &bytes[..]);
            while !bytes.is_empty() && errors[to].is_none() {
                ends[to].read_tls(&mut bytes).unwrap();
                errors[to] = ends[to].process_new_packets().err();
            }
        }
    }
    errors
}

fn meet_as(client: &TlsContext, server: &TlsContext, wanted: &NodeId, now: SystemTime) -> Met {
    let name = TlsContext::server_name(wanted);
    let mut ends = [
        Connection::from(ClientConnection::new(client.client_config(), name).unwrap()),
        Connection::from(ServerConnection::new(server.server_config()).unwrap()),
    ];
    let errors = drive(&mut ends);
    let config = TlsConfig::default();
    let verdict = |at: usize, wanted| match &errors[at] {
        Some(error) => Err(map_tls_error(error)),
        None => finish(&ends[at], wanted, &config, now),
    };
    Met { client: verdict(0, Some(wanted)), server: verdict(1, None), ends }
}

fn meet(client: &TlsContext, server: &TlsContext, wanted: &NodeId) -> Met {
    meet_as(client, server, wanted, SystemTime::now())
}

fn identity() -> Identity {
    Identity::generate(SystemTime::now()).unwrap()
}

fn context(identity: &Identity) -> TlsContext {
    TlsContext::new(identity, &TlsConfig::default()).unwrap()
}

fn exported(end: &Connection) -> [u8; 64] {
    match end {
        Connection::Client(c) => c.export_keying_material([0; 64], PING_KEYS_LABEL, Some(b"")).unwrap(),
        Connection::Server(s) => s.export_keying_material([0; 64], PING_KEYS_LABEL, Some(b"")).unwrap(),
    }
}

#[test]
fn both_learn_who_the_other_is() {
    let (a, b) = (identity(), identity());
    let met = meet(&context(&a), &context(&b), &b.node_id());
    assert_eq!(met.client.as_ref().unwrap(), &PeerIdentity { leaf: b.node_id(), all: vec![b.node_id()] });
    assert_eq!(met.server.as_ref().unwrap(), &PeerIdentity { leaf: a.node_id(), all: vec![a.node_id()] });
    for end in &met.ends {
        assert_eq!(end.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(end.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(end.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(end.handshake_kind(), Some(HandshakeKind::Full), "no second round trip");
    }
}

#[test]
fn the_wire_tells_no_names() {
    let (a, b) = (identity(), identity());
    let name = TlsContext::server_name(&b.node_id());
    let mut client = ClientConnection::new(context(&a).client_config(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let text = b.node_id().to_string();
    assert!(!hello.windows(8).any(|window| window == &text.as_bytes()[..8]));
    assert!(!hello.windows(8).any(|window| window == &b.node_id().public_key()[..8]));

    let mut server = ServerConnection::new(context(&b).server_config()).unwrap();
    server.read_tls(&mut &hello[..]).unwrap();
    server.process_new_packets().unwrap();
    assert_eq!(server.server_name(), None);
}

#[test]
fn ping_keys_are_mirrored() {
    let (a, b) = (identity(), identity());
    let met = meet(&context(&a), &context(&b), &b.node_id());
    let dialler = ping_keys(&exported(&met.ends[0]), true);
    let acceptor = ping_keys(&exported(&met.ends[1]), false);
    assert_eq!(dialler.key, acceptor.key);
    assert_eq!((dialler.local_name, dialler.remote_name), (acceptor.remote_name, acceptor.local_name));
    assert_ne!(dialler.local_name, dialler.remote_name);
    let mut bytes = [0u8; 64];
    bytes.iter_mut().zip(0..).for_each(|(byte, at)| *byte = at);
    let keys = ping_keys(&bytes, true);
    assert_eq!((keys.key[31], keys.local_name[0], keys.remote_name[0], keys.remote_name[15]), (31, 32, 48, 63));
}

#[test]
fn the_second_session_resumes_and_keeps_the_names() {
    let (a, b) = (identity().rotate(SystemTime::now()).unwrap(), identity().rotate(SystemTime::now()).unwrap());
    let (client, server) = (context(&a), context(&b));
    let old_name = b.node_ids()[1];
    let first = meet(&client, &server, &old_name);
    for _ in 0..3 {
        let met = meet(&client.clone(), &server.clone(), &old_name);
        assert_eq!(met.kinds(), [Some(HandshakeKind::Resumed); 2]);
        assert_eq!(met.client.as_ref().unwrap(), first.client.as_ref().unwrap());
        assert_eq!(met.server.as_ref().unwrap(), first.server.as_ref().unwrap());
        assert_eq!(met.server.unwrap().all, a.node_ids());
        assert_ne!(exported(&met.ends[0]), exported(&first.ends[0]), "each session has keys of its own");
        assert_eq!(exported(&met.ends[0]), exported(&met.ends[1]));
    }
    // the cache goes by the node that was asked for, so another name of the same peer is a full handshake
    assert_eq!(meet(&client, &server, &b.node_id()).kinds(), [Some(HandshakeKind::Full); 2]);
}

#[test]
fn no_early_data_is_offered_or_taken() {
    let (a, b) = (context(&identity()), identity());
    let server = context(&b);
    meet(&a, &server, &b.node_id());
    let mut client = ClientConnection::new(a.client_config(), TlsContext::server_name(&b.node_id())).unwrap();
    assert!(client.early_data().is_none());
    assert_eq!(server.server_config().max_early_data_size, 0);
}

#[test]
fn a_resumed_session_is_judged_with_todays_date() {
    let soon = SystemTime::now() + Duration::from_secs(3600);
    let short = forge::valid_from_to(SystemTime::now(), soon).unwrap();
    let long = identity();
    let after = soon + Duration::from_secs(1);
    for (a, b) in [(&short, &long), (&long, &short)] {
        let (client, server) = (context(a), context(b));
        meet(&client, &server, &b.node_id());
        let met = meet_as(&client, &server, &b.node_id(), after);
        assert_eq!(met.kinds(), [Some(HandshakeKind::Resumed); 2]);
        let expired = Some(Reason::CertificateExpired);
        let wanted = if std::ptr::eq(a, &short) { (None, expired) } else { (expired, None) };
        assert_eq!(met.reasons(), wanted);
    }
}

#[test]
fn another_key_at_the_address() {
    let (a, b, other) = (identity(), identity(), identity());
    let met = meet(&context(&a), &context(&b), &other.node_id());
    assert_eq!(met.reasons(), (Some(Reason::IdentityMismatch), Some(Reason::RejectedByPeer)));
    let error = met.client.unwrap_err();
    assert_eq!((error.stage, error.node), (Stage::Tls, Some(other.node_id())));
    assert!(error.detail.contains(&b.node_id().to_string()), "{error}");
}

#[test]
fn tickets_of_one_node_do_not_open_another() {
    let (a, b, other) = (context(&identity()), identity(), identity());
    meet(&a, &context(&b), &b.node_id());
    // the same name, but somebody else sits at the address: the ticket means nothing there
    let met = meet(&a, &context(&other), &b.node_id());
    assert_eq!(met.reasons().0, Some(Reason::IdentityMismatch));
}

#[test]
fn without_a_certificate_nobody_comes_in() {
    let b = identity();
    let anonymous = forge::without_client_certificate(&context(&identity()));
    let met = meet(&anonymous, &context(&b), &b.node_id());
    // the dialler's handshake is over when the acceptor's alert comes: it is an error of its first read
    assert_eq!(met.reasons(), (Some(Reason::RejectedByPeer), Some(Reason::CertificateMissing)));
}

#[test]
fn every_forged_identity_fails_for_its_own_reason_in_both_roles() {
    let now = SystemTime::now();
    let victim = identity().rotate(now).unwrap();
    let ecdsa = rcgen::generate_simple_self_signed([]).unwrap().cert.der().to_vec();
    let name = victim.node_id();
    let cases = [
        (forge::expired(now), None, Reason::CertificateExpired),
        (forge::broken_chain(&victim, now), Some(name), Reason::ChainBroken),
        (forge::unlinked_chain(&victim, now), Some(name), Reason::ChainBroken),
        (forge::over_long(now), None, Reason::ChainTooLong),
        (forge::lying_name(&name, now), Some(name), Reason::NameMismatch),
        (forge::stolen_chain(&victim, now), Some(name), Reason::CertificateInvalid),
        (forge::with_certificates(vec![b"garbage".to_vec()], now), None, Reason::CertificateInvalid),
        (forge::with_certificates(vec![Vec::new()], now), None, Reason::CertificateInvalid),
        (forge::with_certificates(vec![ecdsa], now), None, Reason::CertificateInvalid),
    ];
    let honest = identity();
    for (forged, claimed, reason) in cases {
        let forged = forged.unwrap();
        let wanted = claimed.unwrap_or(forged.node_id());
        let met = meet(&context(&honest), &context(&forged), &wanted);
        assert_eq!(met.reasons(), (Some(reason), Some(Reason::RejectedByPeer)), "as acceptor");
        let met = meet(&context(&forged), &context(&honest), &honest.node_id());
        assert_eq!(met.reasons(), (Some(Reason::RejectedByPeer), Some(reason)), "as dialler");
    }
}

#[test]
fn a_node_without_ed25519_finds_no_common_ground() {
    let b = identity();
    let key = rcgen::generate_simple_self_signed([]).unwrap();
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(
        &rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
    );
    let certified = rustls::sign::CertifiedKey::new(vec![key.cert.der().clone()], signer.unwrap());
    let ecdsa = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    let mut foreign = context(&b);
    Arc::make_mut(&mut foreign.client).client_auth_cert_resolver = ecdsa.clone();
    Arc::make_mut(&mut foreign.server).cert_resolver = ecdsa;
    let met = meet(&context(&b), &foreign, &b.node_id());
    assert_eq!(met.reasons(), (Some(Reason::TlsFailed), Some(Reason::TlsFailed)));
    // as a dialler it has nothing that it could show
    let met = meet(&foreign, &context(&b), &b.node_id());
    assert_eq!(met.reasons(), (Some(Reason::RejectedByPeer), Some(Reason::CertificateMissing)));
}

#[test]
fn both_must_speak_keynet() {
    let (a, b) = (identity(), identity());
    for protocols in [vec![], vec![b"h2".to_vec()]] {
        let mut other = context(&b);
        Arc::make_mut(&mut other.server).alpn_protocols = protocols.clone();
        assert_eq!(meet(&context(&a), &other, &b.node_id()).reasons().0, Some(Reason::TlsFailed), "{protocols:?}");
        let mut other = context(&a);
        Arc::make_mut(&mut other.client).alpn_protocols = protocols.clone();
        assert_eq!(meet(&other, &context(&b), &b.node_id()).reasons().1, Some(Reason::TlsFailed), "{protocols:?}");
    }
}

#[test]
fn a_rotated_node_answers_to_its_old_names() {
    let now = SystemTime::now();
    let first = identity();
    let second = first.rotate(now).unwrap();
    // twice, the second time through PEM as a restarted node would
    let third = Identity::from_pem(&second.to_pem()).unwrap().rotate(now).unwrap();
    let third = Identity::from_pem(&third.to_pem()).unwrap();
    let a = context(&identity());
    for (node, names) in [(&first, 1), (&second, 2), (&third, 3)] {
        for wanted in [&first, &second, &third].iter().take(names) {
            let met = meet(&a, &context(node), &wanted.node_id());
            assert_eq!(met.reasons(), (None, None));
            let peer = met.client.unwrap();
            assert!(peer.is(&wanted.node_id()) && peer.leaf == node.node_id());
        }
    }
    // as a dialler it is known by all of them too
    let b = identity();
    assert_eq!(meet(&context(&third), &context(&b), &b.node_id()).server.unwrap().all, third.node_ids());
    // whoever wants the new name does not take the old key
    let met = meet(&a, &context(&first), &third.node_id());
    assert_eq!(met.reasons().0, Some(Reason::IdentityMismatch));
}

#[test]
fn a_rotated_node_resumes_no_session_of_its_old_key() {
    let first = identity();
    let second = first.rotate(SystemTime::now()).unwrap();
    let a = context(&identity());
    meet(&a, &context(&first), &first.node_id());
    let met = meet(&a, &context(&second), &first.node_id());
    assert_eq!(met.kinds(), [Some(HandshakeKind::Full); 2]);
    assert_eq!(met.client.unwrap().leaf, second.node_id());
}

/// A clock that is days behind, or an identity made by one that was ahead.
#[test]
fn a_leaf_of_tomorrow_is_taken() {
    let tomorrow = forge::not_yet_valid(SystemTime::now()).unwrap();
    let (a, b) = (context(&identity()), context(&tomorrow));
    assert_eq!(meet(&a, &b, &tomorrow.node_id()).reasons(), (None, None));
    let wanted = identity();
    assert_eq!(meet(&b, &context(&wanted), &wanted.node_id()).reasons(), (None, None));
}

#[test]
fn a_renewed_node_is_taken_again() {
    let now = SystemTime::now();
    let expired = forge::expired(now).unwrap();
    // the forged one has no proven chain: through PEM it becomes an identity like any other
    let expired = Identity::from_pem(&expired.to_pem()).unwrap();
    let a = context(&identity());
    assert_eq!(meet(&a, &context(&expired), &expired.node_id()).reasons().0, Some(Reason::CertificateExpired));
    let renewed = expired.renew(now).unwrap();
    assert_eq!(meet(&a, &context(&renewed), &expired.node_id()).reasons(), (None, None));
    let rotated = renewed.rotate(now).unwrap().renew(now).unwrap();
    let met = meet(&a, &context(&rotated), &expired.node_id());
    assert_eq!(met.client.unwrap().all, [rotated.node_id(), expired.node_id()]);
}

#[test]
fn finish_before_the_end_is_an_error_of_ours() {
    let (a, b) = (identity(), identity());
    let client = ClientConnection::new(context(&a).client_config(), TlsContext::server_name(&b.node_id())).unwrap();
    let error = finish(&client, Some(&b.node_id()), &TlsConfig::default(), SystemTime::now()).unwrap_err();
    assert_eq!(error.reason, Reason::Internal);
}

#[test]
fn a_name_that_is_no_node_fails_the_handshake() {
    let (a, b) = (context(&identity()), context(&identity()));
    let client = ClientConnection::new(a.client_config(), "example.org".try_into().unwrap()).unwrap();
    let server = ServerConnection::new(b.server_config()).unwrap();
    let errors = drive(&mut [client.into(), server.into()]);
    assert_eq!(map_tls_error(errors[0].as_ref().unwrap()).reason, Reason::Internal);
}

#[test]
fn errors_of_rustls_have_a_reason() {
    use rustls::{AlertDescription, CertificateError, Error as Tls};
    let reason = |error: Tls| map_tls_error(&error).reason;
    assert_eq!(reason(Tls::AlertReceived(AlertDescription::CertificateUnknown)), Reason::RejectedByPeer);
    assert_eq!(reason(Tls::AlertReceived(AlertDescription::CertificateRequired)), Reason::RejectedByPeer);
    assert_eq!(reason(Tls::AlertReceived(AlertDescription::InternalError)), Reason::TlsFailed);
    assert_eq!(reason(Tls::InvalidCertificate(CertificateError::BadEncoding)), Reason::CertificateInvalid);
    assert_eq!(reason(Tls::NoCertificatesPresented), Reason::CertificateMissing);
    assert_eq!(reason(Tls::DecryptError), Reason::TlsFailed);
}
