//! Our TURN client and our TURN server, with a network between them that does what the input says.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use keynet::addr::Datagrams;
use keynet::config::RelayServerConfig;
use keynet::time::Time;
use keynet::turn::channel;
use keynet::turn::client::{take_frames, Event, Session};
use keynet::turn::server::{
    data_indication, AllocationId, Client, Framing, Link, Moment, Outcome, Server, Setup, Users,
};

use super::input::Input;
use super::turn::Numbers;

/// What comes out is what went in, from whom it was and to whom it was sent; where nothing is lost it is all of it, in order, and
/// the session never fails; a session that has lived through losses carries again; and what is given back is gone.
pub fn operations(data: &[u8]) {
    let mut input = Input::new(data);
    let mut run = Run::new(input.u8() & 1 == 1);
    while !input.is_empty() {
        run.step(&mut input);
    }
    run.finish();
}

struct Run {
    session: Session,
    server: Server,
    sockets: Numbers,
    now: Time,
    stream: bool,
    up: Way,
    down: Way,
    /// Each datagram has a number of its own: to or from whom it is.
    to_peers: Log,
    to_client: Log,
    /// Nothing has been lost, doubled or late.
    smooth: bool,
    allocated: bool,
    over: bool,
}

#[derive(Default)]
struct Way {
    flying: VecDeque<Vec<u8>>,
    /// Of a stream: what is no whole frame yet.
    partial: Vec<u8>,
}

#[derive(Default)]
struct Log {
    peers: Vec<SocketAddr>,
    /// How often each has arrived.
    arrived: HashMap<usize, usize>,
    /// The last of each peer.
    last: HashMap<SocketAddr, usize>,
}

impl Log {
    fn datagram(&mut self, peer: SocketAddr) -> Vec<u8> {
        let number = self.peers.len();
        self.peers.push(peer);
        contents(number)
    }

    fn arrive(&mut self, peer: SocketAddr, datagram: &[u8], smooth: bool) {
        let number = datagram.first_chunk().map_or(usize::MAX, |number| u32::from_be_bytes(*number) as usize);
        assert!(number < self.peers.len(), "nobody sent {datagram:?}");
        assert_eq!(datagram, contents(number), "it was changed");
        assert_eq!(peer, self.peers[number], "it was somebody else's");
        *self.arrived.entry(number).or_default() += 1;
        let before = self.last.insert(peer, number);
        assert!(!smooth || before.is_none_or(|before| before < number), "{number} came after {before:?}");
    }
}

fn contents(number: usize) -> Vec<u8> {
    let mut contents = (number as u32).to_be_bytes().to_vec();
    contents.resize(4 + number % 9, number as u8);
    contents
}

impl Run {
    fn new(stream: bool) -> Self {
        let now = Time::from_millis(1 << 30);
        let config =
            RelayServerConfig { bytes_per_second: 0, bytes_per_second_per_allocation: 0, ..Default::default() };
        let users = Users { listed: [("alice".to_owned(), "secret".to_owned())].into(), ..Users::default() };
        let setup = Setup { users, allowed_peers: vec![], own: vec![] };
        Self {
            session: Session::new(now, "alice", "secret", stream, [7; 32]),
            server: Server::new(config, setup, &[5; 32], now),
            sockets: Numbers::default(),
            now,
            stream,
            up: Way::default(),
            down: Way::default(),
            to_peers: Log::default(),
            to_client: Log::default(),
            smooth: true,
            allocated: false,
            over: false,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 10 {
            0..=2 => {
                let peer = peer(input.u8());
                self.send(peer, 1 + usize::from(input.u8() & 3));
            }
            3 | 4 => self.send_back(peer(input.u8())),
            5 | 6 => {
                let (up, choice) = (input.u8() & 1 == 0, input.u8());
                self.mishap(up, choice);
            }
            7 => self.settle(),
            8 => self.pass(Duration::from_secs(u64::from(input.u8()) * 16)),
            _ => self.hang(Duration::from_millis(u64::from(input.u8()) * 64)),
        }
        self.collect();
    }

    /// Datagrams of the client.
    fn send(&mut self, peer: SocketAddr, count: usize) {
        for _ in 0..count {
            let contents = self.to_peers.datagram(peer);
            let stride = contents.len();
            self.session.handle_outgoing(self.now, Datagrams { peer, contents, stride });
            self.collect();
        }
    }

    /// A datagram of a peer, to the relayed address of its family.
    fn send_back(&mut self, peer: SocketAddr) {
        let family = u8::from(peer.is_ipv6());
        let Some((id, _)) = self.sockets.0.keys().find(|(_, open)| *open == family).copied() else { return };
        let size = 4 + self.to_client.peers.len() % 9;
        let Some((_, framing)) = self.server.forward_to_client(self.now, AllocationId(id), peer, size, 1) else {
            return;
        };
        let datagram = self.to_client.datagram(peer);
        let frame = match framing {
            Framing::Indication => data_indication(peer, &datagram, [9; 12]).expect("it fits"),
            Framing::Channel(number) => {
                let mut frame = channel::header(number, datagram.len() as u16).to_vec();
                frame.extend_from_slice(&datagram);
                frame.resize(if self.stream { frame.len().next_multiple_of(4) } else { frame.len() }, 0);
                frame
            }
        };
        self.down.flying.push_back(frame);
    }

    /// One of those that fly arrives: torn (a stream), or out of turn, twice, or not at all.
    fn mishap(&mut self, up: bool, choice: u8) {
        let (stream, at) = (self.stream, usize::from(choice >> 2));
        let way = if up { &mut self.up } else { &mut self.down };
        let at = if stream { 0 } else { at % way.flying.len().max(1) };
        let Some(mut packet) = way.flying.remove(at) else { return };
        if stream {
            let rest = packet.split_off(usize::from(choice) % packet.len());
            way.flying.push_front(rest);
            return self.arrive(up, packet);
        }
        self.smooth &= at == 0 && choice & 3 > 1;
        match choice & 3 {
            0 => {}
            1 => {
                self.arrive(up, packet.clone());
                self.arrive(up, packet);
            }
            _ => self.arrive(up, packet),
        }
    }

    fn arrive(&mut self, up: bool, packet: Vec<u8>) {
        if !self.stream {
            return if up { self.serve(&packet) } else { self.receive(&packet) };
        }
        let mut frames = vec![];
        if up {
            self.up.partial.extend_from_slice(&packet);
            while let Some(size) = channel::frame_length(&self.up.partial).expect("it speaks TURN") {
                if size > self.up.partial.len() {
                    break;
                }
                frames.push(self.up.partial.drain(..size).collect::<Vec<u8>>());
            }
            frames.iter().for_each(|frame| self.serve(frame));
        } else {
            self.down.partial.extend_from_slice(&packet);
            take_frames(&mut self.down.partial, |frame| frames.push(frame.to_vec())).expect("it speaks TURN");
            frames.iter().for_each(|frame| self.receive(frame));
        }
    }

    fn serve(&mut self, packet: &[u8]) {
        let client = self.client();
        if let Some((number, length)) = channel::read_datagram(packet) {
            let found = self.server.forward_to_peer(self.now, &client, number, length, 1);
            match found {
                Some((_, peer)) => self.to_peers.arrive(peer, &packet[4..4 + length], self.smooth),
                None => assert!(!self.smooth || self.over, "a channel that was confirmed leads nowhere"),
            }
            return;
        }
        let moment = Moment { now: self.now, unix: 1_700_000_000 };
        match self.server.handle(moment, &client, packet, &mut self.sockets) {
            Outcome::Answer(answer) => self.down.flying.push_back(answer),
            other => assert!(!self.smooth, "{other:?} to a question"),
        }
    }

    fn receive(&mut self, packet: &[u8]) {
        let got = self.session.handle_packet(self.now, packet).map(|(peer, datagram)| (peer, datagram.to_vec()));
        if let Some((peer, datagram)) = got {
            self.to_client.arrive(peer, &datagram, self.smooth);
        }
        self.collect();
    }

    /// What the session sends goes on its way.
    fn collect(&mut self) {
        while let Some(transmit) = self.session.poll_transmit() {
            let size = if self.stream { transmit.contents.len() } else { transmit.segment };
            self.up.flying.extend(transmit.contents.chunks(size).map(<[u8]>::to_vec));
        }
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Allocated(granted) => {
                    assert!(!self.allocated && !self.over);
                    assert_eq!(granted.relayed.len(), 2);
                    assert_eq!(granted.mapped, Some(self.client().address));
                    self.allocated = true;
                }
                Event::Redirected(alternate) => panic!("our server sends nobody away: {alternate:?}"),
                Event::Deleted => self.over = true,
                Event::Failed(error) => {
                    assert!(!self.smooth, "{error}");
                    self.over = true;
                }
            }
        }
    }

    /// All that flies arrives in turn, and what follows from it.
    fn settle(&mut self) {
        loop {
            self.collect();
            let up = !self.up.flying.is_empty();
            let way = if up { &mut self.up } else { &mut self.down };
            let Some(packet) = way.flying.pop_front() else { break };
            self.arrive(up, packet);
        }
        if self.smooth && self.allocated && self.session.dropped == 0 {
            assert_eq!(self.to_peers.arrived.len(), self.to_peers.peers.len(), "not all arrived at the peers");
        }
        if self.smooth && !self.over {
            assert_eq!(self.to_client.arrived.len(), self.to_client.peers.len(), "not all arrived at the client");
        }
    }

    /// Time goes by, and the network is as it should be.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            match self.session.poll_timeout().filter(|next| *next <= end) {
                Some(next) => self.now = next.max(self.now),
                None => break self.now = end,
            }
            self.handle_timeout();
        }
    }

    /// Time goes by, and nothing moves.
    fn hang(&mut self, time: Duration) {
        self.smooth = false;
        self.now += time;
        if time > LONGEST_FLIGHT && !self.stream {
            self.up.flying.clear();
            self.down.flying.clear();
        }
        self.handle_timeout();
    }

    fn handle_timeout(&mut self) {
        self.session.handle_timeout(self.now);
        self.server.handle_timeout(self.now, &mut self.sockets);
        self.collect();
    }

    fn finish(&mut self) {
        // refreshes, and a while after which refused peers are asked for again
        self.pass(Duration::from_secs(60));
        if self.allocated && !self.over {
            self.check_it_carries();
        }
        let deletes = self.allocated && !self.over;
        self.session.delete(self.now);
        self.pass(Duration::from_secs(10));
        assert!(self.session.is_over() && self.over, "it does not end");
        assert!(!deletes || self.sockets.0.is_empty(), "it was not given back");
        self.now += Duration::from_secs(4_000);
        self.handle_timeout();
        assert!(self.sockets.0.is_empty() && self.server.stats().allocations == 0);
    }

    fn check_it_carries(&mut self) {
        for peer in [peer(0), peer(7)] {
            let (out, back) = (self.to_peers.peers.len(), self.to_client.peers.len());
            for _ in 0..20 {
                self.send(peer, 1);
                self.pass(Duration::from_secs(1));
                self.send_back(peer);
                self.settle();
            }
            assert!(self.over || self.to_peers.arrived.keys().any(|number| *number >= out), "nothing goes to {peer}");
            assert!(self.over || self.to_client.arrived.keys().any(|number| *number >= back), "nothing from {peer}");
        }
    }

    fn client(&self) -> Client {
        let link = if self.stream { Link::Stream(1) } else { Link::Datagrams(0) };
        Client { address: ([203, 0, 114, 1], 5_000).into(), local: None, link }
    }
}

/// Two ports of an address, several addresses, both families.
fn peer(n: u8) -> SocketAddr {
    match n & 7 {
        7 => "[2600::9]:9".parse().expect("an address"),
        n => SocketAddr::from(([8, 8, 8, n / 2], 7_000 + u16::from(n))),
    }
}

/// What is older than this comes from another time: a question under way is forgotten by then.
const LONGEST_FLIGHT: Duration = Duration::from_secs(4);
