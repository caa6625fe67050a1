//! Introductions by way of somebody who changes what is said, repeats what was said elsewhere, and speaks for itself.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keynet::addr::NodeId;
use keynet::config::TlsConfig;
use keynet::tls::introduction::{declined, Invitation, Kind, Welcomed};
use keynet::tls::Identity;

use super::input::Input;

/// Nobody passes for somebody else, nothing that was changed is believed, and what was not changed is.
pub fn messages(data: &[u8]) {
    let _ = (Kind::of(data), declined(data));
    let mut input = Input::new(data);
    let (config, [dialler, wanted, stranger]) = (TlsConfig::default(), nodes());
    let exchange: [u8; 16] = input.array();
    let other = [exchange[0] ^ 0x55; 16];

    let (invitation, invite) = Invitation::new(dialler, wanted.node_id(), exchange).expect("an Invite");
    let invites = [
        invite.clone(),
        Invitation::new(stranger, wanted.node_id(), exchange).expect("an Invite").1,
        Invitation::new(dialler, stranger.node_id(), exchange).expect("an Invite").1,
        Invitation::new(dialler, wanted.node_id(), other).expect("an Invite").1,
    ];
    let told = damaged(&invites, &mut input);
    match Welcomed::who(wanted, &exchange, &told, &config, now()) {
        // what stands behind an Invite is left to later versions
        Ok(peer) if peer.leaf == dialler.node_id() => assert!(told.starts_with(&invite), "a changed Invite"),
        Ok(peer) => assert!(peer.leaf == stranger.node_id() && told.starts_with(&invites[1]), "a changed Invite"),
        Err(_) => assert!(!told.starts_with(&invite) || told.len() > MAX, "a genuine Invite is refused"),
    }

    let peer = Welcomed::who(wanted, &exchange, &invite, &config, now()).expect("the Invite is for it");
    let answered = |by: &Identity, exchange, invite: &[u8]| {
        Welcomed::new(by, exchange, invite, peer.clone(), b"here").expect("an Answer")
    };
    let (welcomed, answer) = answered(wanted, exchange, &invite);
    let answers = [
        answer.clone(),
        answered(stranger, exchange, &invite).1,
        answered(wanted, exchange, &invites[1]).1,
        answered(wanted, other, &invite).1,
    ];
    let told = damaged(&answers, &mut input);
    assert_eq!(invitation.check(&told, &config, now()).is_ok(), told == answer);
    if told != answer {
        assert!(invitation.handle_answer(&told, b"there", &config, now()).is_err(), "a changed Answer");
        assert!(welcomed.handle_go(input.short()).is_err(), "a Go without its key");
        return;
    }
    let (met, go) = invitation.handle_answer(&told, b"there", &config, now()).expect("a genuine Answer");
    assert_eq!((met.peer.leaf, &met.said[..]), (wanted.node_id(), &b"here"[..]));

    let gos = [go.clone(), invite, answer, answers[3].clone()];
    let told = damaged(&gos, &mut input);
    match welcomed.handle_go(&told) {
        Ok(back) => {
            assert!(told == go, "a changed Go");
            assert_eq!(
                (back.peer.leaf, &back.said[..], back.keys.key),
                (dialler.node_id(), &b"there"[..], met.keys.key)
            );
        }
        Err(_) => assert!(told != go, "a genuine Go is refused"),
    }
}

/// One of the messages, the first if the input says nothing, and what may become of it on its way.
fn damaged(messages: &[Vec<u8>], input: &mut Input<'_>) -> Vec<u8> {
    let mut message = input.pick(&messages.iter().collect::<Vec<_>>()).clone();
    for _ in 0..input.u8() % 4 {
        let at = usize::from(input.u16()) % message.len().max(1);
        match input.u8() % 5 {
            0 => message.truncate(at),
            1 => message.extend_from_slice(input.short()),
            2 => message = input.long().to_vec(),
            3 => {
                let piece = input.short();
                message.splice(at.min(message.len())..at.min(message.len()), piece.iter().copied());
            }
            _ => {
                let bits = input.u8();
                message.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bits);
            }
        }
    }
    message
}

/// Who dials, who is wanted, and somebody else.
fn nodes() -> &'static [Identity; 3] {
    static ALL: OnceLock<[Identity; 3]> = OnceLock::new();
    ALL.get_or_init(|| {
        let all = [0; 3].map(|_| Identity::generate(now()).expect("an identity"));
        let names: Vec<NodeId> = all.iter().map(Identity::node_id).collect();
        assert!(names[0] != names[1] && names[1] != names[2]);
        all
    })
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// rendezvous.proto.
const MAX: usize = 40 << 10;
