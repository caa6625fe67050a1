//! A peer that does what the test says: packets written by hand against a real endpoint.

use std::collections::VecDeque;
use std::time::Duration;

use keynet::addr::{Origin, RemoteId};
use keynet::config::{EndpointConfig, UtpConfig};
use keynet::time::Time;
use keynet::utp::packet::{Capability, Header, Kind, Packet};
use keynet::utp::{Connection, Dropped, Endpoint, Handle, ReadOutcome, Routed};

/// One packet of the endpoint under test, as it left.
#[derive(Clone, Debug)]
pub struct Sent {
    pub at: Time,
    pub header: Header,
    pub payload: Vec<u8>,
    /// Ranges of its selective ack.
    pub sacked: Vec<(u16, u16)>,
    pub capable: bool,
}

/// The endpoint under test, with one connection, and the hand-written peer's idea of that connection.
pub struct Scripted {
    pub now: Time,
    pub endpoint: Endpoint,
    pub connection: Option<(Handle, Box<Connection>)>,
    /// What the endpoint sent and the test has not looked at.
    pub sent: VecDeque<Sent>,
    /// Ids and numbers of the peer's own packets.
    pub id: u16,
    pub seq: u16,
    pub ack: u16,
    pub window: u32,
    pub dropped: Vec<Dropped>,
}

pub const REMOTE: RemoteId = RemoteId(9);

impl Scripted {
    pub fn new(utp: &UtpConfig) -> Self {
        Self {
            now: Time::from_millis(1_000),
            endpoint: Endpoint::new(EndpointConfig::default(), utp.clone(), [7; 32]),
            connection: None,
            sent: VecDeque::new(),
            id: 0,
            seq: 0,
            ack: 0,
            window: 1 << 20,
            dropped: Vec::new(),
        }
    }

    /// The peer dials with this sequence number and the connection stands: the SYN-ACK was seen, and acknowledged by a STATE.
    pub fn accepted(utp: &UtpConfig, seq: u16) -> Self {
        let mut it = Self::new(utp);
        it.dial(seq);
        it.send(Kind::State, &[]);
        assert!(it.connection.is_some(), "STATE confirms the SYN-ACK");
        it
    }

    /// The same by a peer that shows the capability, as keynet's own do.
    pub fn capable(utp: &UtpConfig, seq: u16) -> Self {
        let mut it = Self::new(utp);
        (it.id, it.seq) = (500, seq);
        let mut syn = Vec::new();
        it.header(Kind::Syn).write_with_capability(Capability::new(None), &mut syn);
        it.send_raw(&syn);
        let answer = it.expect(Kind::State);
        assert!(answer.capable);
        it.id = 501;
        it.seq = seq.wrapping_add(1);
        it.ack = answer.header.seq.wrapping_sub(1);
        it.send(Kind::State, &[]);
        it
    }

    /// Sends SYN and reads the SYN-ACK.
    pub fn dial(&mut self, seq: u16) -> Sent {
        self.id = 500;
        self.seq = seq;
        self.ack = 0;
        self.send(Kind::Syn, &[]);
        let answer = self.expect(Kind::State);
        assert_eq!((answer.header.connection_id, answer.header.ack), (500, seq));
        self.id = 501;
        self.seq = seq.wrapping_add(1);
        self.ack = answer.header.seq.wrapping_sub(1);
        answer
    }

    /// A late copy of the SYN.
    pub fn dial_again(&mut self, seq: u16) {
        let syn = Header { connection_id: 500, seq, ack: 0, ..self.header(Kind::Syn) };
        self.send_header(&syn, &[]);
    }

    /// The endpoint dials, the peer answers with a SYN-ACK of this number.
    pub fn dialled(utp: &UtpConfig, seq: u16) -> Self {
        let mut it = Self::new(utp);
        it.start(utp);
        let syn = it.expect(Kind::Syn);
        it.answer(&syn, seq);
        it.expect(Kind::State);
        it
    }

    pub fn start(&mut self, utp: &UtpConfig) {
        let (handle, connection) = self.endpoint.connect(self.now, REMOTE, utp, u16::MAX, None).expect("room");
        self.connection = Some((handle, Box::new(connection)));
        self.pump();
    }

    pub fn answer(&mut self, syn: &Sent, seq: u16) {
        self.id = syn.header.connection_id;
        self.seq = seq;
        self.ack = syn.header.seq;
        self.send(Kind::State, &[]);
    }

    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection.as_mut().expect("a connection").1
    }

    pub fn header(&self, kind: Kind) -> Header {
        Header {
            kind,
            connection_id: self.id,
            timestamp: (self.now.as_micros() as u32).max(1),
            timestamp_difference: 1_000,
            window: self.window,
            seq: self.seq,
            ack: self.ack,
        }
    }

    /// Sends a packet with the peer's numbers as they stand (DATA and FIN do not advance them).
    pub fn send(&mut self, kind: Kind, payload: &[u8]) {
        let header = self.header(kind);
        self.send_header(&header, payload);
    }

    pub fn send_header(&mut self, header: &Header, payload: &[u8]) {
        let mut datagram = Vec::new();
        header.write(&mut datagram);
        datagram.extend_from_slice(payload);
        self.send_raw(&datagram);
    }

    /// DATA with the next number.
    pub fn data(&mut self, payload: &[u8]) {
        self.send(Kind::Data, payload);
        self.seq = self.seq.wrapping_add(1);
    }

    /// DATA with the number `ahead` of the next.
    pub fn data_ahead(&mut self, ahead: u16, payload: &[u8]) {
        let header = Header { seq: self.seq.wrapping_add(ahead), ..self.header(Kind::Data) };
        self.send_header(&header, payload);
    }

    /// STATE with a selective ack of these bytes.
    pub fn sack(&mut self, bits: &[u8]) {
        let mut datagram = self.header(Kind::State).encode(1).to_vec();
        datagram.extend_from_slice(&[0, bits.len() as u8]);
        datagram.extend_from_slice(bits);
        self.send_raw(&datagram);
    }

    /// STATE with these ranges of packets received early.
    pub fn ranges(&mut self, ranges: &[(u16, u16)]) {
        let mut datagram = Vec::new();
        self.header(Kind::State).write_with_ranges(ranges, &mut datagram);
        self.send_raw(&datagram);
    }

    pub fn send_raw(&mut self, datagram: &[u8]) {
        match self.endpoint.handle(self.now, REMOTE, datagram, Origin::default(), None) {
            Routed::Known(handle, packet) => {
                if let Some((own, connection)) = self.connection.as_mut() {
                    assert_eq!(*own, handle);
                    connection.handle_packet(self.now, &packet);
                }
            }
            Routed::New(handle, mut connection, packet) => {
                connection.handle_packet(self.now, &packet);
                self.connection = Some((handle, connection));
            }
            Routed::Answered => {}
            Routed::Dropped(why) => self.dropped.push(why),
        }
        let mut reply = Vec::new();
        while self.endpoint.poll_reply(&mut reply).is_some() {
            self.note(&reply);
            reply.clear();
        }
        self.pump();
    }

    pub fn pump(&mut self) {
        let mut out = Vec::new();
        loop {
            out.clear();
            let Some((_, connection)) = self.connection.as_mut() else { return };
            let Some(transmit) = connection.poll_transmit(self.now, 44, &mut out) else { return };
            let size = transmit.segment_size.unwrap_or(out.len());
            let datagrams: Vec<Vec<u8>> = out.chunks(size).map(<[u8]>::to_vec).collect();
            datagrams.iter().for_each(|datagram| self.note(datagram));
        }
    }

    fn note(&mut self, datagram: &[u8]) {
        let packet = Packet::parse(datagram).expect("what leaves is well formed");
        self.sent.push_back(Sent {
            at: self.now,
            header: packet.header,
            payload: packet.payload.to_vec(),
            sacked: packet.sacked().collect(),
            capable: packet.capability.is_some(),
        });
    }

    /// Lets time pass and timers go off.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        while let Some((_, connection)) = self.connection.as_mut() {
            let Some(at) = connection.poll_timeout().filter(|at| *at <= end) else { break };
            steps += 1;
            assert!(steps < 10_000, "busy loop");
            self.now = at.max(self.now);
            connection.handle_timeout(self.now);
            self.pump();
        }
        self.now = end;
        self.endpoint.handle_timeout(end);
    }

    /// Looks through what was sent for the next packet of this kind; those before it are forgotten.
    pub fn next(&mut self, kind: Kind) -> Option<Sent> {
        while let Some(sent) = self.sent.pop_front() {
            if sent.header.kind == kind {
                return Some(sent);
            }
        }
        None
    }

    pub fn expect(&mut self, kind: Kind) -> Sent {
        self.next(kind).unwrap_or_else(|| panic!("no {kind:?} was sent"))
    }

    /// The last packet sent; everything is forgotten.
    pub fn last(&mut self) -> Sent {
        let last = self.sent.pop_back().expect("something was sent");
        self.sent.clear();
        last
    }

    pub fn write(&mut self, data: &[u8]) {
        let count = self.connection().write(data).expect("writing is possible");
        assert_eq!(count, data.len(), "room for the data of a test");
        self.pump();
    }

    /// Reads what is there.
    pub fn read(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(ReadOutcome::Bytes(count)) = self.connection().read(&mut buffer) {
            all.extend_from_slice(&buffer[..count]);
        }
        self.pump();
        all
    }

    pub fn is_at_eof(&mut self) -> bool {
        matches!(self.connection().read(&mut [0; 16]), Ok(ReadOutcome::Eof))
    }
}
