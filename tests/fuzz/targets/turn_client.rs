//! The client of a TURN server that answers whatever the input says, whenever it says.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use keynet::addr::Datagrams;
use keynet::time::Time;
use keynet::turn::client::{take_frames, Batches, Event, Held, Session, Transmit};
use keynet::turn::credentials::long_term_key;
use keynet::turn::message::{self as stun, Integrity, Message, MessageClass, Writer};

use super::input::Input;

/// Nothing outgrows its bounds; only an answer to a question under way changes something, a success only with the right signature
/// once there are credentials; datagrams come only from those that were sent some, and leave only by channels that the server has
/// confirmed; whoever is called in time is not called again at once; and what is told to end does.
pub fn operations(data: &[u8]) {
    let mut input = Input::new(data);
    let mut run = Run::new(input.u8() & 1 == 1);
    run.drain();
    while !input.is_empty() {
        run.step(&mut input);
        run.drain();
    }
    run.finish();
}

struct Run {
    session: Session,
    now: Time,
    /// Bytes that are no whole frame yet.
    stream: Option<Vec<u8>>,
    asked: Vec<Asked>,
    /// Of the last question that was signed.
    realm: Option<String>,
    relayed: Vec<SocketAddr>,
    /// Who was sent something.
    peers: HashSet<IpAddr>,
    /// Channels that the server has confirmed.
    bound: HashSet<u16>,
    ended: bool,
}

#[derive(Clone)]
struct Asked {
    transaction: [u8; 12],
    method: u16,
    channel: Option<u16>,
    signed: bool,
    answered: bool,
}

impl Run {
    fn new(stream: bool) -> Self {
        let now = Time::from_millis(1 << 30);
        Self {
            session: Session::new(now, NAME, PASSWORD, stream, [7; 32]),
            now,
            stream: stream.then(Vec::new),
            asked: vec![],
            realm: None,
            relayed: vec![],
            peers: HashSet::new(),
            bound: HashSet::new(),
            ended: false,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 12 {
            0 => self.receive(input.short(), false),
            1 | 2 => self.answer(input),
            3 => self.answer_well(),
            4 => {
                let mut frame = vec![0x40, input.u8() & 7, 0, input.u8()];
                frame.extend_from_slice(input.short());
                self.receive(&frame, false);
            }
            5 => {
                let mut message = Writer::new(MessageClass::Indication, stun::DATA, input.array());
                message.put_address(stun::XOR_PEER_ADDRESS, peer(input));
                message.put(stun::DATA_ATTRIBUTE, input.short());
                self.receive(&message.finish(), false);
            }
            6 | 7 => {
                let (peer, length, stride) = (peer(input), input.near(), input.near());
                self.send(peer, length.into(), stride.into());
            }
            8 => {
                for port in 0..u16::from(input.u8()) * 8 {
                    self.send(([8, 8, 8, 8], port).into(), 4, 4);
                }
            }
            9 => self.now = self.session.poll_timeout().unwrap_or(self.now).max(self.now),
            10 => self.now += Duration::from_millis(u64::from(input.u16()) * 16),
            _ if input.u8() & 7 == 7 => self.session.delete(self.now),
            _ => {}
        }
        self.session.handle_timeout(self.now);
        assert!(self.session.poll_timeout().is_none_or(|next| next > self.now), "to be called again at once");
    }

    fn send(&mut self, peer: SocketAddr, length: usize, stride: usize) {
        if !self.ended && self.relayed.iter().any(|relayed| relayed.is_ipv4() == peer.is_ipv4()) {
            self.peers.insert(peer.ip());
        }
        self.session.handle_outgoing(self.now, Datagrams { peer, contents: vec![7; length], stride });
        self.drain();
    }

    /// Bytes from the server; `signed`: they are one message with the right signature.
    fn receive(&mut self, bytes: &[u8], signed: bool) {
        let Some(stream) = &mut self.stream else { return self.handle(bytes, signed) };
        stream.extend_from_slice(bytes);
        let mut frames = vec![];
        let broken = take_frames(stream, |frame| frames.push(frame.to_vec())).is_err();
        assert!(broken || stream.len() < 65_560, "more than one frame is kept");
        if broken {
            stream.clear();
        }
        for frame in frames {
            self.handle(&frame, signed && frame == bytes);
        }
    }

    fn handle(&mut self, packet: &[u8], signed: bool) {
        let believable = self.find(packet).is_some_and(|(_, success)| !success || signed || self.realm.is_none());
        self.session.peers_changed = false;
        let before = (self.session.held(), self.session.is_over(), self.session.poll_timeout());
        let got = self.session.handle_packet(self.now, packet);
        if let Some((peer, datagram)) = got {
            assert!(!self.ended && self.peers.contains(&peer.ip()), "{peer} was not spoken to");
            let mut batches = Batches::default();
            batches.push(peer, datagram);
            assert_eq!(batches.drain().map(|batch| batch.contents).collect::<Vec<_>>().concat(), datagram);
            return;
        }
        if !self.session.peers_changed {
            assert_eq!((self.session.held(), self.session.is_over(), self.session.poll_timeout()), before);
            assert_eq!(self.session.poll_event(), None, "something happened for no reason");
            assert_eq!(self.session.poll_transmit(), None, "something is asked for no reason");
            return;
        }
        assert!(believable, "a message is believed that is no answer, or not signed");
        if let Some((at, success)) = self.find(packet) {
            self.asked[at].answered = true;
            self.bound.extend(self.asked[at].channel.filter(|_| success));
        }
        self.drain();
    }

    /// Which question it answers, and whether with a success.
    fn find(&self, packet: &[u8]) -> Option<(usize, bool)> {
        let (kind, transaction) = (packet.first_chunk::<2>()?, packet.get(8..20)?);
        let response = kind[0] & 1 == 1;
        let at = self.asked.iter().rposition(|asked| asked.transaction == transaction && !asked.answered)?;
        response.then_some((at, kind[1] & 0x10 == 0))
    }

    /// As a server that means well.
    fn answer_well(&mut self) {
        let questions: Vec<_> = self.asked.iter().filter(|asked| !asked.answered).cloned().collect();
        for asked in questions.into_iter().rev().take(Held::MOST.requests) {
            let class = if asked.signed { MessageClass::Success } else { MessageClass::Error };
            let mut message = Writer::new(class, asked.method, asked.transaction);
            if asked.signed {
                message.put_address(stun::XOR_RELAYED_ADDRESS, ([192, 0, 2, 1], 5_000).into());
                let signed = self.sign(&mut message, true);
                self.receive(&message.finish(), signed);
            } else {
                message.put_error(401);
                message.put(stun::REALM, b"realm");
                message.put(stun::NONCE, b"nonce");
                self.receive(&message.finish(), false);
            }
            self.drain();
        }
    }

    /// With anything.
    fn answer(&mut self, input: &mut Input<'_>) {
        let back = usize::from(input.u8() & 15).min(self.asked.len() - 1);
        let asked = self.asked[self.asked.len() - 1 - back].clone();
        let class = if input.u8() & 1 == 0 { MessageClass::Success } else { MessageClass::Error };
        let mut message = Writer::new(class, asked.method, asked.transaction);
        for _ in 0..input.u8() % 6 {
            let long = vec![b'x'; input.pick(&[0, 1, 763, 764, 9_000])];
            match input.u8() % 10 {
                0 => message.put_error(input.pick(CODES)),
                1 => message.put(stun::ERROR_CODE, input.short()),
                2 => message.put(stun::REALM, input.short()),
                3 => message.put(stun::REALM, &long),
                4 => message.put(stun::NONCE, input.short()),
                5 => message.put(stun::NONCE, &long),
                6 => message.put_address(stun::XOR_RELAYED_ADDRESS, peer(input)),
                7 => message.put_address(stun::XOR_MAPPED_ADDRESS, peer(input)),
                8 => message.put(stun::LIFETIME, &input.u32().to_be_bytes()),
                _ => message.put(input.u16(), input.short()),
            }
        }
        let signed = match input.u8() % 4 {
            0 => false,
            1 => self.sign(&mut message, false),
            _ => self.sign(&mut message, true),
        };
        let mut bytes = message.finish();
        let touched = usize::from(input.u8());
        let byte = bytes.get_mut(HEADER + touched).filter(|_| touched > 0);
        let whole = byte.map(|byte| *byte ^= 1).is_none();
        self.receive(&bytes, signed && whole);
    }

    /// Whether the signature is one to be believed.
    fn sign(&self, message: &mut Writer, well: bool) -> bool {
        let realm = self.realm.as_deref().unwrap_or_default();
        message.sign(&long_term_key(NAME.as_bytes(), realm, if well { PASSWORD } else { "p" }), Integrity::Sha1);
        well && self.realm.is_some()
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.session.poll_transmit() {
            assert!(!transmit.contents.is_empty() && transmit.segment > 0);
            match transmit.datagrams {
                0 => self.take_question(&transmit),
                _ => {
                    let channel = u16::from_be_bytes([transmit.contents[0], transmit.contents[1]]);
                    assert!(self.bound.contains(&channel), "channel {channel:x} was never confirmed");
                }
            }
        }
        while let Some(event) = self.session.poll_event() {
            assert!(!self.ended, "{event:?} after the end");
            match event {
                Event::Allocated(granted) => {
                    assert!(self.relayed.is_empty() && (1..=2).contains(&granted.relayed.len()));
                    self.relayed = granted.relayed;
                }
                Event::Redirected(alternate) => {
                    assert!(self.relayed.is_empty(), "an allocation that stands is not moved");
                    let name = alternate.domain.as_deref().unwrap_or("none");
                    assert!(name.len() < 256 && !name.contains(char::is_control), "{name:?}");
                    self.ended = true;
                }
                Event::Deleted => self.ended = true,
                Event::Failed(error) => {
                    assert!(error.detail.len() < 1_024 && !error.detail.contains(char::is_control), "{error}");
                    self.ended = true;
                }
            }
        }
        let (held, most) = (self.session.held(), Held::MOST);
        assert!(held.requests <= most.requests && held.peers <= most.peers && held.waiting <= most.waiting, "{held:?}");
        assert_eq!(self.session.is_over(), self.ended);
        assert!(!self.ended || (held.requests == 0 && self.session.poll_timeout().is_none()));
    }

    fn take_question(&mut self, transmit: &Transmit) {
        let message = Message::read(&transmit.contents).expect("a broken question");
        assert!(transmit.contents.len() < 2_048, "a question of {} bytes", transmit.contents.len());
        let signed = message.integrity().is_some();
        assert!(signed || self.realm.is_none(), "credentials were forgotten");
        if signed {
            let realm = std::str::from_utf8(message.realm.expect("a realm")).expect("text");
            assert!(message.is_signed_with(&long_term_key(NAME.as_bytes(), realm, PASSWORD)));
            self.realm = Some(realm.to_owned());
        }
        let (transaction, method, channel) = (message.transaction, message.method, message.channel);
        assert!([stun::ALLOCATE, stun::REFRESH, stun::CHANNEL_BIND].contains(&method));
        if !self.asked.iter().rev().take(Held::MOST.requests).any(|asked| asked.transaction == transaction) {
            self.asked.push(Asked { transaction, method, channel, signed, answered: false });
        }
    }

    /// Nobody answers any more.
    fn finish(&mut self) {
        self.session.delete(self.now);
        self.drain();
        for _ in 0..TRIES {
            if let Some(next) = self.session.poll_timeout() {
                self.now = next.max(self.now);
                self.session.handle_timeout(self.now);
                self.drain();
            }
        }
        assert!(self.ended, "it does not end");
        self.send(([8, 8, 8, 8], 8).into(), 4, 4);
        self.handle(&[0x40, 0, 0, 1, 9], false);
    }
}

fn peer(input: &mut Input<'_>) -> SocketAddr {
    let port = u16::from(input.u8() & 7);
    match input.u8() % 4 {
        0 => SocketAddr::from((input.array::<4>(), port)),
        1 => SocketAddr::from(([0x2600, 0, 0, 0, 0, 0, 0, port], port)),
        _ => SocketAddr::from(([8, 8, 8, input.u8() & 3], port)),
    }
}

const NAME: &str = "alice";
const PASSWORD: &str = "secret";
const CODES: &[u16] = &[401, 438, 437, 420, 440, 403, 486, 508, 300, 0, 699];
/// RFC 8489 section 5.
const HEADER: usize = 20;
/// Of the question that ends it, and of one that is under way before it can be asked.
const TRIES: usize = 16;
