//! Every knob, its default and the reason for it. Defaults live here and nowhere else.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Which congestion controller a uTP connection uses.
///
/// The default is chosen by measurement (benches/README.md, "Long paths"): at 100 Mbit/s and 50 ms, 1 % of random loss leaves
/// CUBIC 3 Mbit/s and BBR 90, as it does in the kernel's TCP, and without loss they are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ControllerKind {
    /// RFC 9438, with HyStart++ (RFC 9406): halves its rate at each loss, shares with TCP as TCP does.
    Cubic,
    /// RFC 6817: yields to everything else; for background transfers.
    Ledbat,
    /// Model of the path (bandwidth and minimum RTT) instead of loss: keeps its rate on lossy paths.
    #[default]
    Bbr,
}

/// When punching pings go out, and SYNs to whoever answers pings, after the start of an attempt: quick doubling, so that a lost first packet costs
/// 33 ms and not a second (design, decision 8); then one a second.
pub const PUNCH_SCHEDULE: [Duration; 8] = [
    Duration::from_millis(0),
    Duration::from_millis(33),
    Duration::from_millis(67),
    Duration::from_millis(133),
    Duration::from_millis(267),
    Duration::from_millis(533),
    Duration::from_millis(1067),
    Duration::from_millis(2133),
];

/// The moment of the `n`-th packet of a punching attempt, counted from its start.
pub fn punch_moment(n: usize) -> Duration {
    let last = PUNCH_SCHEDULE.len() - 1;
    match PUNCH_SCHEDULE.get(n) {
        Some(moment) => *moment,
        None => PUNCH_SCHEDULE[last] + Duration::from_secs((n - last) as u64),
    }
}

/// The moment of the `n`-th SYN to somebody who has not answered a ping: one a second, as RFC 6298 section 2.1 would have it. Some
/// programs make a connection of every copy, and end those that they find to be too many (transmission 3.00): on a path of more than
/// 33 ms, quick copies would end the connection that they help to make.
pub fn patient_moment(n: usize) -> Duration {
    Duration::from_secs(n as u64)
}

/// Knobs of one uTP connection.
#[derive(Clone, Debug)]
pub struct UtpConfig {
    pub controller: ControllerKind,
    /// UDP payload that every path is assumed to carry: 1280 (IPv6 minimum MTU, RFC 8200 section 5) - 48 of headers.
    pub min_datagram: u16,
    /// Where the path MTU search ends: 1500 (Ethernet) - 28 of IPv4 and UDP headers. Over IPv6 the search itself stops at 1452.
    pub max_datagram: u16,
    /// Bytes the sender holds, unsent and unacknowledged; writers wait beyond it. Twice what flies, because a hole
    /// holds a whole round trip more until it is filled: 32 MiB fill 1 Gbit/s at 134 ms through a loss.
    pub send_buffer: usize,
    /// The largest receive window; it starts at `initial_window` and grows with what the reader takes.
    pub receive_buffer: usize,
    pub initial_window: usize,
    /// The window of a stream that a peer opened until the application says who that is: what a handshake needs, and so little
    /// that thousands of strangers can have it. What came early may double it; so this is half of 64 KiB, less the one
    /// datagram that is taken beyond a window.
    pub untrusted_window: usize,
    /// Packets in flight towards peers without the capability extension: others drop what is further ahead
    /// (libtorrent at 953, libutp at 1024; UTP.md 2.4).
    pub plain_in_flight: u16,
    /// A SYN without an answer for this long is given up.
    pub connect_timeout: Duration,
    /// Data or FIN outstanding and nothing acknowledged for this long: the peer is gone.
    pub unanswered_timeout: Duration,
    /// A peer that has proven itself and does not answer any more is waited for so long, counted from the first question without
    /// an answer; `PathConfig::lost_after` says when it is reported. A minute, as users of WireGuard and QUIC are used to, and a
    /// quarter of one for the two to find each other again. What is written meanwhile waits in `send_buffer`.
    pub patience: Duration,
    /// Nothing received at all for this long, nor on the other connections to the same peer, nor an answer to a ping: the
    /// connection is dropped.
    pub idle_timeout: Duration,
    /// An idle connection repeats its ack this often, so that a connection the peer has forgotten is noticed. libutp: 29 s. Less
    /// often when more than 250 lead to one peer: they share ten a second.
    pub keep_alive: Duration,
    /// RFC 6298 section 2.4 asks for 1 s; measured stacks live well with 200 ms (librqbit-utp, Linux), and a tail-loss probe comes earlier.
    pub min_rto: Duration,
    /// RFC 6298 section 2.1.
    pub initial_rto: Duration,
    /// RFC 6298 section 2.5: at least 60 s.
    pub max_rto: Duration,
    /// The longest that an ack waits for data to ride on.
    pub max_ack_delay: Duration,
    /// LEDBAT's target queueing delay: RFC 6817 allows at most 100 ms; LEDBAT++ uses 60 ms, and so took up to 18 % of a link of 20 Mbit/s
    /// and 80 ms beside the kernel's CUBIC, whose queue there is shorter than that after each loss. With 25 ms it is 2 %.
    pub ledbat_target: Duration,
    /// Packets between keynet nodes carry tags, once both have the keys of their TLS session: ten bytes of 1,472, and nobody who
    /// does not see the packets can forge one.
    pub tags: bool,
}

impl Default for UtpConfig {
    fn default() -> Self {
        Self {
            controller: ControllerKind::default(),
            min_datagram: 1232,
            max_datagram: 1472,
            send_buffer: 32 << 20,
            receive_buffer: 32 << 20,
            initial_window: 1 << 20,
            untrusted_window: (32 << 10) - 1_500,
            plain_in_flight: 950,
            connect_timeout: Duration::from_secs(15),
            unanswered_timeout: Duration::from_secs(30),
            patience: Duration::from_secs(75),
            idle_timeout: Duration::from_secs(75),
            keep_alive: Duration::from_secs(25),
            min_rto: Duration::from_millis(200),
            initial_rto: Duration::from_secs(1),
            max_rto: Duration::from_secs(60),
            max_ack_delay: Duration::from_millis(10),
            ledbat_target: Duration::from_millis(25),
            tags: true,
        }
    }
}

/// Knobs of the uTP endpoint: what strangers may cost.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Connections at once, both directions.
    pub max_connections: usize,
    /// SYNs remembered until they are confirmed, over all addresses; those beyond it are answered with cookies.
    pub max_half_open: usize,
    /// The same for one address.
    pub max_half_open_per_remote: usize,
    /// How long an unconfirmed SYN is remembered: as long as the dialler, which is connected once it has our SYN-ACK, goes on
    /// trying to get its first packet through (`unanswered_timeout`). The table is bounded anyway.
    pub half_open_timeout: Duration,
    /// Connections made by cookie, a second. A guess is right once in 2^14: a million forged packets a second would make 61.
    pub cookies_per_second: u32,
    /// RESETs sent to unknown connections, a second.
    pub resets_per_second: u32,
    /// Bytes of payload that arrive safely while nobody reads the socket: peers keep no more than that in flight on short paths.
    /// `None` = unknown; whoever owns the socket sets it.
    pub receive_burst: Option<usize>,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            max_half_open: 1_024,
            max_half_open_per_remote: 256,
            half_open_timeout: Duration::from_secs(30),
            cookies_per_second: 200,
            resets_per_second: 100,
            receive_burst: None,
        }
    }
}

/// Knobs of the UDP socket.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Equal datagrams leave in one system call where the kernel can split them (GSO). Off: one call a datagram; for
    /// measuring, and for a network card whose driver gets it wrong.
    pub batching: bool,
    /// Bytes of buffer asked of the kernel, each way; `None` leaves what the system gives. What a bulk transfer needs to live
    /// through a few milliseconds without the CPU: 4 MiB are 13 ms at 2.5 Gbit/s without GRO. Linux' default of 208 KiB holds
    /// 90 packets (UTP.md 4.2).
    pub buffer: Option<usize>,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self { batching: true, buffer: Some(4 << 20) }
    }
}

/// Knobs of paths: keep-alive, dead-peer detection, table sizes.
#[derive(Clone, Debug)]
pub struct PathConfig {
    /// A path with traffic in the last `active_for` is pinged this often when it falls silent, by one side for both.
    /// With `lost_after` this notices a dead peer within 10 s (design, decision 9).
    pub ping_active: Duration,
    pub active_for: Duration,
    /// An idle path with connections on it: below the 30 s that the strictest common NATs keep a UDP mapping
    /// (RFC 4787 section 4.3 asks for 2 min, measured NATs give 30 s).
    pub ping_idle: Duration,
    /// Unanswered pings are repeated this often at most, and data that nothing comes back to is asked about after it: four
    /// round trips of the path, but not less than `ping_retry_least` and not more than `ping_retry`.
    pub ping_retry: Duration,
    /// What an acknowledgement may be late by on a path of any length: a delayed ack (10 ms) and a busy machine. Two of them
    /// are the time in which a NAT that forgot its mappings is noticed.
    pub ping_retry_least: Duration,
    /// Nothing heard for this long while pings went out: the peer is reported as lost, new dials look for it anew, and its
    /// connections wait for as long as `UtpConfig::patience` says. Active: within 10 s of the last sign of life.
    pub lost_after: Duration,
    /// A punching attempt ends after this.
    pub punch_timeout: Duration,
    /// Addresses that are not (yet) of an authenticated peer or of one we dial; the longest unheard makes room.
    pub max_strangers: usize,
    /// Remotes in all.
    pub max_remotes: usize,
    /// Pings a second to one address that has not answered, outside a punching attempt; four times as many to all of a remote.
    pub max_unproven_pings_per_second: u32,
    /// Pings answered a second, over all unauthenticated sources.
    pub max_stranger_pongs_per_second: u32,
}

impl Default for PathConfig {
    fn default() -> Self {
        Self {
            ping_active: Duration::from_millis(2_500),
            active_for: Duration::from_secs(45),
            ping_idle: Duration::from_secs(15),
            ping_retry: Duration::from_secs(1),
            ping_retry_least: Duration::from_millis(250),
            lost_after: Duration::from_millis(7_500),
            punch_timeout: Duration::from_secs(10),
            max_strangers: 4_096,
            max_remotes: 65_536,
            max_unproven_pings_per_second: 5,
            max_stranger_pongs_per_second: 200,
        }
    }
}

/// Knobs of TLS and of certificate chains.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Certificates in a chain: the leaf and what rotations left behind.
    pub max_chain: usize,
    /// The handshake must be over by then.
    pub handshake_timeout: Duration,
    /// An accepted connection must have brought the whole ClientHello by then. Its first packet makes the connection, the second
    /// follows at once; a lost one is repeated within 1.5 s even over a geostationary satellite.
    pub hello_timeout: Duration,
    /// Session tickets kept for dialling again, over all nodes (rustls keeps 8 a node; the oldest node makes room). A ticket
    /// holds the peer's chain: about 1 KiB, 33 KiB at the very most, so 2048 (256 nodes) are about 2 MiB.
    pub max_tickets: usize,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            max_chain: 16,
            handshake_timeout: Duration::from_secs(10),
            hello_timeout: Duration::from_secs(2),
            max_tickets: 2_048,
        }
    }
}

/// Knobs of the forward and the reverse proxy.
#[derive(Clone, Debug)]
pub struct ProxyLimits {
    /// Connections of local clients at once; a permit is taken before accept.
    pub max_clients: usize,
    /// Streams from peers at once, and from one peer.
    pub max_streams: usize,
    pub max_streams_per_node: usize,
    /// Bytes of a CONNECT head.
    pub max_head: usize,
    /// The head must be complete by then.
    pub head_timeout: Duration,
    /// From the CONNECT to its answer. Below the 20 s after which gRPC drops a CONNECT (FACTS.md).
    pub dial_timeout: Duration,
    /// When a path to the node is proven, other addresses wait this long: RFC 8305 section 5 asks for 250 ms.
    pub other_addresses_after: Duration,
    /// Dials to one node at once, once a path to it is proven; others wait their turn. Below what the endpoint at the other
    /// end keeps half open for one remote (`EndpointConfig::max_half_open_per_remote`).
    pub max_dials_per_node: usize,
    /// Peers that have connected but not yet been let in by the access list, in all (a quarter is kept for nodes that are
    /// known), of strangers from one IP address (one /64), and of those from one network (IPv4 /24, IPv6 /48). An honest one
    /// is let in within two round trips, so one address gets 160 strangers a second in at 100 ms.
    pub max_handshakes: usize,
    pub max_handshakes_per_source: usize,
    pub max_handshakes_per_network: usize,
    /// The service behind the reverse proxy must accept by then.
    pub service_timeout: Duration,
    /// An accepted uTP connection must have finished TLS and sent `Open` by then.
    pub open_timeout: Duration,
    /// The buffer of each direction of a splice.
    pub splice_buffer: usize,
    /// Bytes of the head of an answer that is passed on: four times what servers usually send at most (cookies, content policies).
    pub max_answer_head: usize,
    /// Interim answers (1xx) to one request: a server sends one or two.
    pub max_interim_answers: usize,
    /// How long a client that has its answer may keep its connection without another request: most keep it for 5 to 90 s.
    pub idle_client_timeout: Duration,
    /// How long a stream to an HTTP service is kept for the next request. Servers wait for 5 s (uvicorn, Node) or longer: this node is
    /// to end it before them, so that no request meets an end that is under way.
    pub idle_stream_timeout: Duration,
    /// A request that may not be sent twice takes no stream that was idle for longer: some servers wait for 2 s (gunicorn).
    pub sure_stream_time: Duration,
    /// Streams that are kept so, in all and to one service: what a page of a browser opens is 6, and each may hold its windows.
    pub max_idle_streams: usize,
    pub max_idle_streams_per_service: usize,
    /// How long an ended connection may take to say goodbye: until the other side has all that was sent to it.
    pub linger: Duration,
    /// How long a drain waits for streams to end before it aborts them.
    pub drain_timeout: Duration,
    /// Nodes whose addresses or last errors are remembered, and addresses for each.
    pub max_peers: usize,
    pub max_addresses: usize,
    /// How long a closed connection can still be looked up by its addresses: gRPC asks for its peer late (FACTS.md: >= 60 s).
    pub tombstone: Duration,
    /// Closed connections remembered at most.
    pub max_tombstones: usize,
    /// Events a subscriber may lag behind; beyond it the oldest are dropped and counted.
    pub event_queue: usize,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            max_clients: 4_096,
            max_streams: 8_192,
            max_streams_per_node: 4_096,
            max_head: 16 << 10,
            head_timeout: Duration::from_secs(10),
            dial_timeout: Duration::from_secs(15),
            other_addresses_after: Duration::from_millis(250),
            max_dials_per_node: 128,
            max_handshakes: 1_024,
            max_handshakes_per_source: 32,
            max_handshakes_per_network: 128,
            service_timeout: Duration::from_secs(5),
            open_timeout: Duration::from_secs(10),
            splice_buffer: 128 << 10,
            max_answer_head: 64 << 10,
            max_interim_answers: 16,
            idle_client_timeout: Duration::from_secs(60),
            idle_stream_timeout: Duration::from_secs(4),
            sure_stream_time: Duration::from_secs(1),
            max_idle_streams: 128,
            max_idle_streams_per_service: 16,
            linger: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(10),
            max_peers: 65_536,
            max_addresses: 16,
            tombstone: Duration::from_secs(60),
            max_tombstones: 16_384,
            event_queue: 1_024,
        }
    }
}

/// Knobs of the STUN server.
#[derive(Clone, Debug)]
pub struct StunConfig {
    /// Answers a second, over all sources: at 92 bytes at most 4 Mbit/s. 20 questions each five minutes, from 75,000 nodes.
    pub answers_per_second: u32,
    /// The same for one source network (IPv4 /24, IPv6 /56). Half a second's may come at once: two nodes that find out all
    /// about their NAT at the same time.
    pub answers_per_second_per_network: u32,
    /// Networks told apart; beyond it some share their limit. 24 bytes each.
    pub networks: usize,
}

impl Default for StunConfig {
    fn default() -> Self {
        Self { answers_per_second: 5_000, answers_per_second_per_network: 100, networks: 4_096 }
    }
}

/// Knobs of NAT behaviour discovery.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// A question is repeated after this, as Tailscale does: losses are rare, and RFC 8489's 500 ms would be felt by a dialler.
    pub retransmit: Duration,
    /// How often it is asked.
    pub attempts: u32,
    /// When all servers count as silent: several round trips over a geostationary satellite. Where one has answered, what
    /// others say is waited for as long as two of its round trips and the repetitions take.
    pub query_timeout: Duration,
    /// Sockets opened to see how the NAT hands out ports. Eight tell a block of 1024 from all ports with certainty (`path/profile.rs`).
    pub port_samples: usize,
    /// Between two of them: more than a network reorders by.
    pub sample_spacing: Duration,
    /// The interface that questions leave by; `None`: as the system's routes say.
    pub interface: Option<u32>,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            retransmit: Duration::from_millis(100),
            attempts: 3,
            query_timeout: Duration::from_secs(3),
            port_samples: 8,
            sample_spacing: Duration::from_millis(10),
            interface: None,
        }
    }
}

/// Knobs of the rendezvous: how nodes find each other.
#[derive(Clone, Debug)]
pub struct RendezvousConfig {
    /// A rendezvous node must be reached and have answered by then: as long as a dial may take.
    pub connect_timeout: Duration,
    /// After a session that ended: again after this, and twice as long each time, up to the second. An attempt that nobody answers is a
    /// packet a second, and whoever comes back after minutes is to be found, and to find others, within 2 s.
    pub reconnect_after: Duration,
    pub reconnect_most: Duration,
    /// The same for one that answers and has no room. A rendezvous takes five registrations at once and one in five seconds after that.
    pub reconnect_most_busy: Duration,
    /// Whoever has answered an invitation waits so long for the dialler to go on: two round trips around the world by way of a third
    /// node, and what the peer needs to ask its servers. The dialler waits until the end of its dial: the other may have many to answer.
    pub answer_timeout: Duration,
    /// The same while places for answers are free: a dial takes 15 s, and the meeting the last of them.
    pub answer_most: Duration,
    /// Each step of an exchange is said again when nothing has come of it for so long: RFC 6298's first retransmission time-out, which
    /// two round trips by way of a third node seldom take. Pairs have one or two signals a second (docs/protocol.md section 7).
    pub repeat_after: Duration,
    /// A dial that comes before any rendezvous node is connected waits so long for one.
    pub patience: Duration,
    /// What a first dial waits for what is not known yet of the own NAT.
    pub discovery_patience: Duration,
    /// The NAT is asked again this often, and when the network changes (PUNCH.md, phase 0).
    pub discover_every: Duration,
    /// Servers are asked where they see this node this often, and when the network changes: NATs have other addresses after a night.
    pub ask_every: Duration,
    /// How long plain addresses are tried, predictions (each round with fresh ports), and a search.
    pub direct_timeout: Duration,
    pub prediction_timeout: Duration,
    pub search_timeout: Duration,
    pub prediction_rounds: u32,
    /// Where both NATs are symmetric plain addresses rarely help: three round trips of a long path.
    pub hopeless_timeout: Duration,
    /// Invitations that are looked at in a second: each costs two signatures and two key agreements, about 0.3 ms, so this is an eighth
    /// of one core.
    pub invitations_per_second: u32,
    /// Invitations that are being answered at once, those of friends and those of others each: with the own dials they are no more than
    /// there may be meetings.
    pub invitations_at_once: usize,
    /// A peer whose path fell silent is met again this often at most, as long as it is silent.
    pub again_after: Duration,
    /// Meetings that can still be explained.
    pub max_reports: usize,
}

impl Default for RendezvousConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            reconnect_after: Duration::from_millis(500),
            reconnect_most: Duration::from_millis(1_500),
            reconnect_most_busy: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(5),
            answer_most: Duration::from_secs(14),
            repeat_after: Duration::from_secs(1),
            patience: Duration::from_secs(5),
            discovery_patience: Duration::from_secs(3),
            discover_every: Duration::from_secs(300),
            ask_every: Duration::from_secs(60),
            direct_timeout: Duration::from_secs(10),
            prediction_timeout: Duration::from_secs(4),
            search_timeout: Duration::from_secs(14),
            prediction_rounds: 3,
            hopeless_timeout: Duration::from_secs(3),
            invitations_per_second: 400,
            invitations_at_once: 384,
            again_after: Duration::from_secs(2),
            max_reports: 1_024,
        }
    }
}

/// What this node may send over relays.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// Bytes of datagrams a second to all peers together, and to one. No limit unless it is asked for: relays have their own.
    pub bytes_per_second: u64,
    pub bytes_per_second_per_peer: u64,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self { bytes_per_second: u64::MAX, bytes_per_second_per_peer: u64::MAX }
    }
}

/// Knobs of relays.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// So many are in use at the same time, where as many are known: when one dies, paths through the other are warm.
    pub at_once: usize,
    /// A relay must be reached by then, by any of its ways: see `relay::client::Options`.
    pub deadline: Duration,
    /// A relay that failed is tried again after this, and then after twice as long each time.
    pub retry_after: Duration,
    pub retry_most: Duration,
    /// The same for one that is not reached: an outage ends at any moment, and it may be the only way out.
    pub retry_most_unreached: Duration,
    /// A dial that comes before any relay is in use waits so long for one.
    pub patience: Duration,
    /// A rendezvous node from which nothing has come is looked for through relays as well after this (RFC 8305 section 5).
    pub head_start: Duration,
    /// The same when something has come by UDP: round trips of a long path.
    pub head_start_heard: Duration,
    /// A connection that goes over a relay is offered a direct path again after this, and then after twice as long each time: NATs
    /// are restarted, and people go home.
    pub upgrade_after: Duration,
    pub upgrade_most: Duration,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            at_once: 2,
            deadline: Duration::from_secs(10),
            retry_after: Duration::from_secs(1),
            retry_most: Duration::from_secs(60),
            retry_most_unreached: Duration::from_secs(3),
            patience: Duration::from_secs(2),
            head_start: Duration::from_millis(250),
            head_start_heard: Duration::from_secs(2),
            upgrade_after: Duration::from_secs(10),
            upgrade_most: Duration::from_secs(600),
        }
    }
}

/// Knobs of the relay (TURN server) that a node can run.
#[derive(Clone, Debug)]
pub struct RelayServerConfig {
    /// Named in the answer to a stranger, which is to be short: at most 8 characters keep that at 52 bytes.
    pub realm: String,
    /// Ports of relayed addresses: the dynamic ones (RFC 6335), as RFC 8656 section 7.2 recommends.
    pub ports: RangeInclusive<u16>,
    /// Allocations at once: about 4 KiB and a socket each.
    pub max_allocations: usize,
    /// The same for one user. A node has one for each relay it uses; one that crashes leaves it behind for `default_lifetime`, and a
    /// family's nodes may share a name.
    pub max_allocations_per_user: usize,
    /// The same for one source network (IPv4 /24, IPv6 /56): an office full of nodes.
    pub max_allocations_per_network: usize,
    /// Allocations by introduction credentials, which anybody may know; one source network has half of them at most.
    pub max_introductions: usize,
    /// Peers (IP addresses, and channels) of one allocation.
    pub max_permissions: usize,
    pub max_channels: usize,
    /// RFC 8656 section 3.2 gives 10 minutes and proposes to grant no more than an hour.
    pub default_lifetime: Duration,
    pub max_lifetime: Duration,
    /// Clients get a new nonce this often, which costs them a round trip. RFC 8656 section 5 asks for an hour at most.
    pub nonce_lifetime: Duration,
    /// Bytes relayed a second, both directions together: what a server's usual Gbit/s carries, in and out again.
    pub bytes_per_second: u64,
    /// The same for one allocation: half of it, so that one cannot shut out all others.
    pub bytes_per_second_per_allocation: u64,
    /// The same for one of introduction: a session with a rendezvous node is a few KiB.
    pub bytes_per_second_per_introduction: u64,
    /// Answers a second to those that have not authenticated, over all sources and for one network; half a second's may come
    /// at once. Two for each allocation that is made.
    pub answers_per_second: u32,
    pub answers_per_second_per_network: u32,
    /// Networks told apart; beyond it some share their limit. 40 bytes each.
    pub networks: usize,
    /// TCP and TLS connections, and those of one source network.
    pub max_connections: usize,
    pub max_connections_per_network: usize,
    /// TLS handshakes of one source network a second, five seconds' at once: some 0.3 ms of a core each. With the default an office
    /// whose nodes all come again is served within 10 s, and one network costs 2 % of a core.
    pub handshakes_per_second_per_network: u32,
    /// A connection has an allocation by then, or is closed: a handshake, two round trips, and patience.
    pub connection_timeout: Duration,
    /// Batches (of up to 64 KiB) that wait for a client on TCP: what comes then is lost, as with a full socket. More would only
    /// make what is in the queue late.
    pub write_queue: usize,
}

impl Default for RelayServerConfig {
    fn default() -> Self {
        Self {
            realm: "keynet".to_owned(),
            ports: 49_152..=65_535,
            max_allocations: 4_096,
            max_allocations_per_user: 128,
            max_allocations_per_network: 512,
            max_introductions: 512,
            max_permissions: 128,
            max_channels: 128,
            default_lifetime: Duration::from_secs(600),
            max_lifetime: Duration::from_secs(3_600),
            nonce_lifetime: Duration::from_secs(3_600),
            bytes_per_second: 125_000_000,
            bytes_per_second_per_allocation: 62_500_000,
            bytes_per_second_per_introduction: 65_536,
            answers_per_second: 5_000,
            answers_per_second_per_network: 100,
            networks: 4_096,
            max_connections: 4_096,
            max_connections_per_network: 512,
            handshakes_per_second_per_network: 50,
            connection_timeout: Duration::from_secs(10),
            write_queue: 16,
        }
    }
}

/// Knobs of what a node learns from its own machine and from its LAN.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The interfaces are read when the system says that something changed, and this often besides.
    pub watch_every: Duration,
    /// The same where the system says nothing: a reading takes a fraction of a millisecond.
    pub watch_every_blindly: Duration,
    /// A change is told when nothing more has changed for this long: an interface gets its addresses and routes one after the other,
    /// within milliseconds, and what comes later is another change.
    pub settle: Duration,
    /// Lifetime asked for a mapped port: RFC 6886 section 3.3 and RFC 6887 section 15 recommend two hours. It is renewed after half.
    pub mapping_lifetime: Duration,
    /// The gateway is asked this long at most, by PCP and by NAT-PMP. 250, 500, 1000 ms (RFC 6886 section 3.1).
    pub gateway_retransmit: Duration,
    pub gateway_attempts: u32,
    /// How long a search for a UPnP gateway may take, and then what is asked of it: the search lets it wait for 3 s (MX), and
    /// small routers take their time over HTTP.
    pub upnp_patience: Duration,
    /// After a failure, or without a gateway: again after this.
    pub mapping_retry: Duration,
    /// Neighbours remembered, and addresses of each: a LAN has a few dozen; the rest is somebody's flood.
    pub max_neighbours: usize,
    pub max_neighbour_addresses: usize,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            watch_every: Duration::from_secs(5),
            watch_every_blindly: Duration::from_secs(1),
            settle: Duration::from_millis(50),
            mapping_lifetime: Duration::from_secs(7_200),
            gateway_retransmit: Duration::from_millis(250),
            gateway_attempts: 3,
            upnp_patience: Duration::from_secs(5),
            mapping_retry: Duration::from_secs(300),
            max_neighbours: 256,
            max_neighbour_addresses: 8,
        }
    }
}

#[cfg(test)]
mod tests;
