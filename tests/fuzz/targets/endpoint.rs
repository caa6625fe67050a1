//! One endpoint and a network that sends it what it likes, in virtual time: raw datagrams, and packets whose numbers fit what the
//! endpoint said, nearly fit, or lie.

use std::collections::BTreeMap;
use std::time::Duration;

use keynet::addr::{Origin, RemoteId};
use keynet::config::{ControllerKind, EndpointConfig, UtpConfig};
use keynet::time::Time;
use keynet::utp::packet::{Capability, Header, Kind, Packet};
use keynet::utp::{Connection, Endpoint, Handle, Routed};

use super::input::Input;

/// Whatever comes: no panic, bounded memory, well-formed packets, timers that do not spin; and when nothing comes any more,
/// everything ends by itself.
pub fn one_against_all(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        world.operate(&mut input);
        world.settle();
    }
    world.fall_silent();
}

struct World {
    now: Time,
    utp: UtpConfig,
    endpoint: Endpoint,
    connections: BTreeMap<Handle, (Box<Connection>, Said)>,
    /// The last answer to a SYN: who asked, the number of the SYN, and the packet.
    syn_ack: Option<(RemoteId, u16, Header)>,
}

/// What a connection last said, which is what its peer goes by.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    next_seq: u16,
    ack: u16,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let controller = input.pick(&[ControllerKind::Cubic, ControllerKind::Bbr, ControllerKind::Ledbat]);
        let receive_buffer = input.pick(&[4 << 10, 64 << 10, 300_000]);
        let utp = UtpConfig {
            controller,
            receive_buffer,
            initial_window: receive_buffer.min(16 << 10),
            send_buffer: input.pick(&[2 << 10, 64 << 10, 300_000]),
            ..UtpConfig::default()
        };
        let config = EndpointConfig {
            max_connections: 4,
            max_half_open: 6,
            max_half_open_per_remote: 4,
            resets_per_second: 5,
            ..EndpointConfig::default()
        };
        Self {
            now: Time::from_millis(1_000),
            endpoint: Endpoint::new(config, utp.clone(), [7; 32]),
            utp,
            connections: BTreeMap::new(),
            syn_ack: None,
        }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        match input.u8() % 12 {
            0 => self.arrive(RemoteId(1), input.short()),
            1..=4 => self.packet(input),
            5 => self.syn(input),
            6 => self.confirm(input),
            7 => {
                self.pass(Duration::from_millis(u64::from(input.pick(&[1u16, 5, 20, 100, 250, 1_000, 6_000, 30_000]))))
            }
            8 => self.pass(Duration::from_micros(u64::from(input.u16()))),
            9 => {
                let remote = RemoteId(u64::from(input.u8() % 3));
                if let Ok((handle, connection)) =
                    self.endpoint.connect(self.now, remote, &self.utp, u16::MAX, key_of(remote).as_ref())
                {
                    self.connections.insert(handle, (Box::new(connection), Said::default()));
                }
            }
            _ => self.program(input),
        }
    }

    /// What the program above a connection may do.
    fn program(&mut self, input: &mut Input<'_>) {
        let now = self.now;
        let Some((connection, _)) = self.pick(input) else { return };
        match input.u8() % 8 {
            0 | 1 => drop(connection.write(&[0x55; 300_000][..usize::from(input.u8()) * usize::from(input.u8()) * 4])),
            2 | 3 => drop(connection.read(&mut vec![0; usize::from(input.u8()) * usize::from(input.u8()) + 1])),
            4 => connection.finish(),
            5 => connection.set_controller(input.pick(&[
                ControllerKind::Cubic,
                ControllerKind::Bbr,
                ControllerKind::Ledbat,
            ])),
            6 => connection.detach(now),
            _ => connection.abort(),
        }
    }

    fn syn(&mut self, input: &mut Input<'_>) {
        let remote = RemoteId(u64::from(input.u8() % 3));
        let seq = input.u16();
        let how = input.u8();
        let header = Header {
            kind: Kind::Syn,
            connection_id: u16::from(how >> 4),
            timestamp: input.pick(&[0, 1, u32::MAX]),
            timestamp_difference: 0,
            window: 1 << 20,
            seq,
            ack: 0,
        };
        let mut datagram = Vec::new();
        if how & 1 == 0 {
            header.write(&mut datagram);
        } else {
            header.write_with_capability(Capability::new(None), &mut datagram);
        }
        self.syn_ack = None;
        self.arrive(remote, &datagram);
        if let Some((_, of, _)) = &mut self.syn_ack {
            *of = seq;
        }
    }

    /// The first packet behind a SYN that was answered.
    fn confirm(&mut self, input: &mut Input<'_>) {
        let Some((remote, seq, answer)) = self.syn_ack else { return };
        let header = Header {
            kind: input.pick(&[Kind::State, Kind::Data, Kind::Fin]),
            connection_id: answer.connection_id.wrapping_add(1),
            window: input.pick(&[1 << 20, 0, 1_000]),
            seq: seq.wrapping_add(1),
            ack: answer.seq.wrapping_sub(1),
            ..answer
        };
        let payload = if header.kind == Kind::Data { input.short() } else { &[] };
        self.arrive(remote, &[&header.encode(0)[..], payload].concat());
    }

    /// A packet for a connection, its numbers relative to what that said.
    fn packet(&mut self, input: &mut Input<'_>) {
        let now = self.now;
        let Some((connection, said)) = self.pick(input) else { return };
        let (id, said, remote) = (connection.receive_id(), *said, connection.remote());
        let micros = now.as_micros() as u32;
        let header = Header {
            kind: input.pick(&[Kind::Data, Kind::State, Kind::Data, Kind::State, Kind::Fin, Kind::Reset, Kind::Syn]),
            connection_id: id.wrapping_add(input.pick(&[0, 0, 0, 0, 0, 0, 1, u16::MAX])),
            timestamp: micros.wrapping_sub(input.pick(&[10_000, 0, 1, 500_000, u32::MAX])),
            timestamp_difference: input.pick(&[10_000, 0, 0x7fff_ffff, u32::MAX, 300_000]),
            window: input.pick(&[1 << 20, 0, 1, 1_400, 20_000, u32::MAX]),
            seq: said.ack.wrapping_add(1).wrapping_add(input.near()),
            ack: said.next_seq.wrapping_sub(1).wrapping_sub(input.near()),
        };
        let mut datagram = Vec::new();
        match input.u8() % 8 {
            0 => header.write_with_capability(Capability::new(None), &mut datagram),
            1 => header.write_with_bits(input.short().chunks(240).next().unwrap_or(&[1]), &mut datagram),
            2 => {
                let ranges = (0..input.u8() % 8).map(|_| {
                    let first = header.ack.wrapping_add(input.near());
                    (first, first.wrapping_add(input.near()))
                });
                let ranges: Vec<_> = ranges.collect();
                header.write_with_ranges(&ranges, &mut datagram);
            }
            3 => header.write_padded(usize::from(input.u8()), &mut datagram),
            _ => header.write(&mut datagram),
        }
        datagram.resize(datagram.len() + usize::from(input.pick(&[0u16, 1, 100, 1_212, 1_452, 8_000])), 0xaa);
        self.arrive(remote, &datagram);
    }

    fn pick(&mut self, input: &mut Input<'_>) -> Option<&mut (Box<Connection>, Said)> {
        let n = usize::from(input.u8()) % self.connections.len().max(1);
        self.connections.values_mut().nth(n)
    }

    fn arrive(&mut self, remote: RemoteId, datagram: &[u8]) {
        let origin = Origin::of(([192, 0, 2, remote.0 as u8], 4433).into());
        match self.endpoint.handle(self.now, remote, datagram, origin, key_of(remote).as_ref()) {
            Routed::Known(handle, packet) => {
                let (connection, _) = self.connections.get_mut(&handle).expect("the endpoint knows what stands");
                connection.handle_packet(self.now, &packet);
            }
            Routed::New(handle, mut connection, packet) => {
                connection.handle_packet(self.now, &packet);
                let said = Said { next_seq: packet.header.ack.wrapping_add(1), ack: packet.header.seq.wrapping_sub(1) };
                self.connections.insert(handle, (connection, said));
            }
            Routed::Answered | Routed::Dropped(_) => {}
        }
        let mut reply = Vec::new();
        while let Some(len) = self.endpoint.poll_reply(&mut reply) {
            assert_eq!(len, reply.len());
            assert!(reply.len() <= datagram.len(), "an answer is larger than the question");
            let packet = Packet::parse(&reply).expect("answers are well formed");
            match packet.header.kind {
                Kind::State => self.syn_ack = Some((remote, packet.header.ack, packet.header)),
                kind => assert_eq!(kind, Kind::Reset),
            }
            reply.clear();
        }
    }

    /// Sends everything there is to send, and checks what holds at every moment.
    fn settle(&mut self) {
        let Self { now, utp, endpoint, connections, .. } = self;
        // rings are powers of two, and each packet that waits has its row beside the bytes
        let most = 2 * (utp.send_buffer.next_power_of_two() + utp.receive_buffer.next_power_of_two()) + (512 << 10);
        for (connection, said) in connections.values_mut() {
            transmit(*now, connection, said);
            let stats = connection.stats();
            assert!(stats.memory <= most, "{stats:?}");
            assert!(stats.in_flight <= utp.send_buffer as u64 + 1, "{stats:?}");
        }
        connections.retain(|handle, (connection, _)| {
            let keep = !connection.is_drained();
            if !keep {
                assert!(connection.end().is_some() && connection.poll_timeout().is_none());
                endpoint.forget(*handle);
            }
            keep
        });
        assert_eq!(endpoint.connections(), connections.len());
        assert!(endpoint.connections() <= 4 && endpoint.half_open() <= 6);
    }

    fn next_timer(&self) -> Option<Time> {
        let timers = self.connections.values().filter_map(|(connection, _)| connection.poll_timeout());
        timers.chain(self.endpoint.poll_timeout()).min()
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut at_once = 0;
        while let Some(at) = self.next_timer().filter(|at| *at <= end) {
            at_once = if at > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 100, "a timer that is due again at once: {:?}", self.connections);
            self.now = at.max(self.now);
            self.endpoint.handle_timeout(self.now);
            for (connection, _) in self.connections.values_mut() {
                if connection.poll_timeout().is_some_and(|at| at <= self.now) {
                    connection.handle_timeout(self.now);
                }
            }
            self.settle();
        }
        self.now = end;
    }

    /// Nothing arrives any more: the idle timeout ends what nothing else ends, for plain peers after eight times as long.
    fn fall_silent(&mut self) {
        self.pass(self.utp.idle_timeout * 9);
        assert!(self.connections.is_empty(), "still there after the silence: {:?}", self.connections);
        assert_eq!(self.endpoint.half_open(), 0);
    }
}

fn transmit(now: Time, connection: &mut Connection, said: &mut Said) {
    let mut out = Vec::new();
    for _ in 0..10_000 {
        out.clear();
        let Some(transmit) = connection.poll_transmit(now, 44, &mut out) else { return };
        assert!(transmit.len == out.len() && !out.is_empty(), "{transmit:?} is not {} bytes", out.len());
        for datagram in out.chunks(transmit.segment_size.unwrap_or(out.len())) {
            assert!(datagram.len() <= 1_472, "larger than any path carries");
            let header = Packet::parse(datagram).expect("what leaves is well formed").header;
            said.ack = header.ack;
            let after = header.seq.wrapping_add(u16::from(header.kind != Kind::State));
            if after.wrapping_sub(said.next_seq) < 1 << 15 || header.kind == Kind::Syn {
                said.next_seq = after;
            }
        }
    }
    panic!("poll_transmit never ends: {connection:?}");
}

/// More would only make an input slow.
const MAX_OPERATIONS: usize = 300;

/// One remote in two shares a key with us.
fn key_of(remote: RemoteId) -> Option<[u8; 32]> {
    (remote.0 % 2 == 1).then_some([5; 32])
}
