//! A session against a server of a few lines, in virtual time.

use stun_types::attribute::{AttributeType, RawAttribute};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageType, MessageWrite, MessageWriteExt,
    MessageWriteVec, Method,
};

use super::*;
use crate::turn::message::{Writer, DATA, DATA_ATTRIBUTE, XOR_PEER_ADDRESS, XOR_RELAYED_ADDRESS};

const START: Time = Time::from_millis(1 << 30);
const REALM: &[u8] = b"wonderland";

/// Answers what it is asked; what it does not like is set beforehand.
struct Server {
    nonce: &'static [u8],
    realm: &'static [u8],
    /// Codes for the next authenticated requests.
    errors: VecDeque<u16>,
    signs: bool,
    seen: Vec<(u16, u16)>,
}

impl Server {
    fn new() -> Self {
        Self { nonce: b"one", realm: REALM, errors: VecDeque::new(), signs: true, seen: Vec::new() }
    }

    fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let method = u16::from_be_bytes([request[0], request[1]]);
        let nonce = attribute(request, 0x0015);
        let code = match nonce.as_deref() {
            None => Some(401),
            Some(nonce) if nonce != self.nonce => Some(438),
            Some(_) => self.errors.pop_front(),
        };
        self.seen.push((method, code.unwrap_or(0)));
        let class = if code.is_some() { MessageClass::Error } else { MessageClass::Success };
        let kind = MessageType::from_class_method(class, Method::new(method));
        let mut wide = [0; 16];
        wide[4..].copy_from_slice(&request[8..20]);
        let mut answer = Message::builder(kind, u128::from_be_bytes(wide).into(), MessageWriteVec::new());
        let mut add = |kind: u16, value: &[u8]| {
            answer.push_attribute_unchecked(&RawAttribute::new(AttributeType::new(kind), value));
        };
        if let Some(code) = code {
            if code != NO_CODE {
                add(0x0009, &[0, 0, (code / 100) as u8, (code % 100) as u8, b'n', b'o']);
            }
            add(0x0014, self.realm);
            add(0x0015, self.nonce);
            if code == 300 {
                // 192.0.2.7:3478, as it is
                add(0x8023, &[0, 1, 0x0d, 0x96, 192, 0, 2, 7]);
                add(0x8003, b"b.example");
            }
        } else if method == 0x003 {
            // 192.0.2.1:5000, XORed with the cookie
            add(0x0016, &[0, 1, 0x32, 0x9a, 0xe1, 0x12, 0xa6, 0x43]);
        }
        if code.is_none() {
            add(0x000d, &attribute(request, 0x000d).unwrap_or_else(|| 600_u32.to_be_bytes().to_vec()));
        }
        if code.is_none() && self.signs {
            let credentials = LongTermKeyCredentials::new("alice".into(), "secret".into(), "wonderland".into());
            let key = credentials.make_key(IntegrityAlgorithm::Sha1);
            answer.add_message_integrity_with_key(&key, IntegrityAlgorithm::Sha1).unwrap();
        }
        answer.finish()
    }
}

fn attribute(message: &[u8], wanted: u16) -> Option<Vec<u8>> {
    let mut rest = &message[20..];
    while let [a, b, c, d, behind @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        if u16::from_be_bytes([*a, *b]) == wanted {
            return Some(behind[..length].to_vec());
        }
        rest = &behind[length.next_multiple_of(4)..];
    }
    None
}

struct Test {
    now: Time,
    session: Session,
    server: Server,
    /// Nothing gets through.
    dead: bool,
    /// What went to peers.
    carried: u64,
}

impl Test {
    fn new() -> Self {
        let now = START;
        let session = Session::new(now, "alice", "secret", false, [7; 32]);
        Self { now, session, server: Server::new(), dead: false, carried: 0 }
    }

    fn allocated() -> Self {
        let mut test = Self::new();
        assert!(matches!(test.settle(), Some(Event::Allocated(_))));
        test.server.seen.clear();
        test
    }

    /// Messages go to and fro until there is quiet.
    fn settle(&mut self) -> Option<Event> {
        while let Some(transmit) = self.session.poll_transmit() {
            self.carried += transmit.datagrams;
            if transmit.datagrams == 0 && !self.dead {
                let answer = self.server.answer(&transmit.contents);
                assert_eq!(self.session.handle_packet(self.now, &answer), None);
            }
        }
        self.session.poll_event()
    }

    /// Lets the time go on until something happens, or for so long.
    fn pass(&mut self, time: Duration) -> Option<Event> {
        let end = self.now + time;
        loop {
            if let Some(event) = self.settle() {
                return Some(event);
            }
            match self.session.poll_timeout() {
                Some(at) if at <= end => self.now = at.max(self.now),
                _ => {
                    self.now = end;
                    return None;
                }
            }
            self.session.handle_timeout(self.now);
        }
    }

    fn send(&mut self, port: u16) {
        let peer = ([198, 51, 100, 1], port).into();
        self.session.handle_outgoing(self.now, Datagrams { peer, contents: vec![1; 10], stride: 10 });
    }
}

fn failed(event: Option<Event>) -> Error {
    match event {
        Some(Event::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn credentials_follow_when_they_are_asked_for() {
    let mut test = Test::new();
    let Some(Event::Allocated(granted)) = test.settle() else { panic!("no allocation") };
    assert_eq!(granted.relayed, vec!["192.0.2.1:5000".parse().unwrap()]);
    assert_eq!(test.server.seen, vec![(3, 401), (3, 0)]);
}

#[test]
fn a_wrong_password_is_not_tried_twice() {
    let mut test = Test::new();
    test.server.errors = VecDeque::from([401, 401]);
    let error = failed(test.settle());
    assert!(error.reason == Reason::RelayRefused && error.detail.contains("password"), "{error}");
    assert_eq!(test.server.seen.len(), 2);
}

#[test]
fn a_success_without_signature_is_not_believed() {
    let mut test = Test::new();
    test.server.signs = false;
    assert_eq!(failed(test.pass(PATIENCE * 2)).reason, Reason::RelayUnreachable);
}

#[test]
fn a_success_that_says_it_is_about_credentials_is_not_believed_either() {
    let mut test = Test::new();
    let first = test.session.poll_transmit().unwrap();
    let challenge = test.server.answer(&first.contents);
    test.session.handle_packet(test.now, &challenge);
    let question = test.session.poll_transmit().unwrap().contents;
    let transaction = *question[8..].first_chunk().unwrap();
    for code in [UNAUTHORIZED, STALE_NONCE] {
        let mut lie = Writer::new(MessageClass::Success, 0x003, transaction);
        lie.put_error(code);
        lie.put_address(XOR_RELAYED_ADDRESS, ([192, 0, 2, 66], 5).into());
        test.session.handle_packet(test.now, &lie.finish());
        assert_eq!(test.session.poll_event(), None, "{code}");
    }
    let answer = test.server.answer(&question);
    test.session.handle_packet(test.now, &answer);
    assert!(matches!(test.session.poll_event(), Some(Event::Allocated(_))));
}

#[test]
fn a_server_that_does_not_answer_is_asked_four_times() {
    let mut test = Test::new();
    test.dead = true;
    let (mut sent, begun) = (0, test.now);
    let error = loop {
        while test.session.poll_transmit().is_some() {
            sent += 1;
        }
        if let Some(event) = test.session.poll_event() {
            break failed(Some(event));
        }
        test.now = test.session.poll_timeout().unwrap();
        test.session.handle_timeout(test.now);
    };
    assert_eq!((error.reason, sent, test.now.since(begun)), (Reason::RelayUnreachable, TRIES, PATIENCE));
}

#[test]
fn one_family_is_better_than_none() {
    let mut test = Test::new();
    test.server.errors = VecDeque::from([FAMILY_NOT_SUPPORTED]);
    assert!(matches!(test.settle(), Some(Event::Allocated(_))));
    let mut test = Test::new();
    test.server.errors = VecDeque::from([FAMILY_NOT_SUPPORTED; 3]);
    assert_eq!(failed(test.settle()).reason, Reason::RelayRefused);
}

#[test]
fn a_stale_nonce_is_replaced_but_not_for_ever() {
    let mut test = Test::allocated();
    test.server.nonce = b"two";
    test.send(1);
    assert_eq!(test.settle(), None);
    assert_eq!((test.server.seen.clone(), test.carried), (vec![(9, 438), (9, 0)], 1));
    test.server.errors = VecDeque::from([STALE_NONCE; 20]);
    test.send(2);
    assert_eq!(test.settle(), None);
    assert_eq!(test.server.errors.len(), 20 - 1 - MAX_RENEWALS as usize);
    assert_eq!(test.session.dropped, 1);
}

#[test]
fn an_idle_allocation_is_kept_and_its_relay_looked_after() {
    let mut test = Test::allocated();
    assert_eq!(test.pass(Duration::from_secs(3600)), None);
    let refreshes = test.server.seen.iter().filter(|seen| **seen == (4, 0)).count();
    assert_eq!(refreshes, 240, "every 15 s");
    test.dead = true;
    assert_eq!(failed(test.pass(SILENT_AFTER + PATIENCE)).reason, Reason::RelayLost);
}

#[test]
fn a_relay_that_dies_under_traffic_is_noticed_within_five_seconds() {
    let mut test = Test::allocated();
    test.send(1);
    test.settle();
    test.dead = true;
    let died = test.now;
    let error = loop {
        test.send(1);
        if let Some(event) = test.pass(Duration::from_millis(10)) {
            break failed(Some(event));
        }
    };
    assert_eq!(error.reason, Reason::RelayLost);
    assert!(test.now.since(died) < Duration::from_secs(5), "{:?}", test.now.since(died));
}

#[test]
fn a_peer_that_does_not_answer_is_not_a_relay_that_died() {
    let mut test = Test::allocated();
    for _ in 0..600 {
        test.send(1);
        assert_eq!(test.pass(Duration::from_millis(100)), None);
    }
    let refreshes = test.server.seen.iter().filter(|seen| **seen == (4, 0)).count();
    assert!((50..=60).contains(&refreshes), "{refreshes} in a minute");
}

#[test]
fn permissions_of_peers_in_use_are_renewed_and_others_are_not() {
    let mut test = Test::allocated();
    test.send(2);
    for _ in 0..1200 {
        test.send(1);
        assert_eq!(test.pass(Duration::from_secs(1)), None);
    }
    let binds = test.server.seen.iter().filter(|seen| **seen == (9, 0)).count();
    // the first of each; then every 240 to 255 s the one in use, and once more the other
    assert!((7..=8).contains(&binds), "{binds}");
    assert_eq!(test.carried, 1201);
}

#[test]
fn a_relay_that_forgot_the_allocation_is_lost() {
    for send in [true, false] {
        let mut test = Test::allocated();
        test.server.errors = VecDeque::from([ALLOCATION_MISMATCH]);
        if send {
            test.send(1);
        }
        assert_eq!(failed(test.pass(SILENT_AFTER)).reason, Reason::RelayLost);
    }
}

#[test]
fn a_forbidden_peer_is_asked_for_rarely() {
    let mut test = Test::allocated();
    test.server.errors = VecDeque::from([403]);
    for _ in 0..100 {
        test.send(1);
        assert_eq!(test.settle(), None);
    }
    assert_eq!((test.server.seen.len(), test.carried, test.session.dropped), (1, 0, 100));
    test.now += REFUSED_FOR;
    test.send(1);
    test.settle();
    assert_eq!(test.carried, 1);
}

#[test]
fn what_is_not_wanted_any_more_is_deleted() {
    let mut test = Test::allocated();
    test.session.delete(test.now);
    assert_eq!(test.settle(), Some(Event::Deleted));
    assert_eq!(test.server.seen, vec![(4, 0)]);
    // while the server is making it
    let mut test = Test::new();
    let first = test.session.poll_transmit().unwrap();
    let challenge = test.server.answer(&first.contents);
    test.session.handle_packet(test.now, &challenge);
    test.session.delete(test.now);
    assert_eq!(test.settle(), Some(Event::Deleted));
    assert_eq!(test.server.seen, vec![(3, 401), (3, 0), (4, 0)]);
    // before there can be one
    let mut test = Test::new();
    test.session.delete(test.now);
    assert_eq!(test.session.poll_event(), Some(Event::Deleted));
    assert!(test.session.is_over());
}

#[test]
fn a_server_may_name_another_in_its_place() {
    let mut test = Test::new();
    test.server.errors.push_back(300);
    let alternate = Alternate { server: ([192, 0, 2, 7], 3478).into(), domain: Some("b.example".to_owned()) };
    assert_eq!(test.settle(), Some(Event::Redirected(alternate)));
    assert!(test.session.is_over(), "there is nothing to give back");
    assert_eq!([&b"b.example\r\n"[..], b"", &[b'a'; 254]].map(host_name), [None, None, None]);
    // of an allocation that stands this says nothing
    let mut test = Test::allocated();
    test.server.errors.push_back(300);
    let error = failed(test.pass(Duration::from_secs(400)));
    assert!(error.to_string().contains("300"), "{error}");
}

#[test]
fn an_error_without_a_code_ends_what_was_asked() {
    let mut test = Test::allocated();
    test.server.errors = VecDeque::from([NO_CODE]);
    test.send(1);
    assert_eq!(test.settle(), None);
    assert_eq!((test.session.dropped, test.session.held().waiting), (1, 0));
    test.pass(REFUSED_FOR);
    test.send(1);
    test.settle();
    assert_eq!(test.carried, 1, "and it is asked for again");
    let mut test = Test::new();
    test.server.errors = VecDeque::from([NO_CODE]);
    let error = failed(test.settle());
    assert!(error.reason == Reason::RelayRefused && error.detail.contains("without a code"), "{error}");
    let mut test = Test::allocated();
    test.server.errors = VecDeque::from([NO_CODE]);
    test.session.delete(test.now);
    assert_eq!(test.settle(), Some(Event::Deleted));
}

#[test]
fn a_realm_that_is_no_text_does_not_take_the_credentials_away() {
    let mut test = Test::allocated();
    test.send(1);
    test.server.realm = &[0xff];
    test.server.errors = VecDeque::from([UNAUTHORIZED]);
    assert_eq!(test.settle(), None);
    assert_eq!(test.server.seen, vec![(9, 401)], "nothing to ask with");
    test.send(2);
    test.server.signs = false;
    assert_eq!(test.settle(), None);
    assert_eq!((test.server.seen.last(), test.carried), (Some(&(9, 0)), 0), "a success without signature");
}

#[test]
fn a_realm_or_nonce_that_would_fill_every_request_is_not_taken() {
    let mut test = Test::new();
    test.server.realm = &[b'a'; 764];
    assert_eq!(failed(test.pass(PATIENCE)).reason, Reason::RelayUnreachable);
    let mut test = Test::new();
    test.server.realm = &[b'a'; 763];
    test.server.signs = false;
    assert_eq!(test.settle(), None);
    assert_eq!(test.server.seen, vec![(3, 401), (3, 0)]);
}

#[test]
fn a_timer_that_comes_late_leaves_the_last_try_its_time() {
    let mut test = Test::new();
    test.dead = true;
    for tries in 1..=TRIES {
        assert_eq!(test.settle(), None, "after {tries}");
        test.now += Duration::from_secs(60);
        test.session.handle_timeout(test.now);
        let next = test.session.poll_timeout();
        assert!(next.is_none_or(|next| next > test.now), "it would be called again at once");
    }
    assert_eq!(failed(test.settle()).reason, Reason::RelayUnreachable);
}

#[test]
fn data_indications_are_taken_from_addresses_that_were_asked_for_and_as_long_as_there_is_an_allocation() {
    let data = |ip: [u8; 4]| {
        let mut message = Writer::new(MessageClass::Indication, DATA, [1; 12]);
        message.put_address(XOR_PEER_ADDRESS, (ip, 9).into());
        message.put(DATA_ATTRIBUTE, b"hello");
        message.finish()
    };
    let (ours, other) = (data([198, 51, 100, 1]), data([198, 51, 100, 2]));
    let mut test = Test::new();
    assert_eq!(test.session.handle_packet(test.now, &ours), None, "there is no allocation");
    let mut test = Test::allocated();
    assert_eq!(test.session.handle_packet(test.now, &ours), None, "nobody asked for it");
    test.send(1);
    test.settle();
    let peer = ([198, 51, 100, 1], 9).into();
    assert_eq!(test.session.handle_packet(test.now, &ours), Some((peer, &b"hello"[..])), "from any port");
    assert_eq!(test.session.handle_packet(test.now, &other), None);
    test.session.delete(test.now);
    assert_eq!(test.session.handle_packet(test.now, &ours), None);
    assert_eq!(test.session.handle_packet(test.now, &[0x40, 0, 0, 1, 9]), None);
}

#[test]
fn data_of_strangers_is_not_taken_for_that_of_peers() {
    let mut test = Test::allocated();
    assert_eq!(test.session.handle_packet(test.now, &[0x40, 0, 0, 1, 9]), None, "no such channel");
    test.send(1);
    test.settle();
    let peer = ([198, 51, 100, 1], 1).into();
    assert_eq!(test.session.handle_packet(test.now, &[0x40, 0, 0, 1, 9]), Some((peer, &[9][..])));
}
