//! Load for a TURN server, and memory for it to hold: what `benches/relay_compare.py` measures servers with.
//!
//!     turn_load RELAY USER PASSWORD up|down SECONDS SIZE BATCH   one client, one peer, ChannelData in one direction
//!     turn_load RELAY USER PASSWORD hold COUNT                   so many allocations, until standard input ends
//!
//! Prints one line of JSON. Everything is on the address of the relay: a loopback.

#![allow(clippy::print_stdout)]

use std::io::{self, IoSliceMut, Read};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keynet::turn::channel::{header, HEADER};
use keynet::turn::credentials::long_term_key;
use keynet::turn::message::{self as stun, Integrity, Message, MessageClass, Writer};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [relay, user, password, "hold", count] => hold(relay.parse()?, user, password, count.parse()?),
        [relay, user, password, direction @ ("up" | "down"), seconds, size, batch] => {
            let load = Load { up: direction == "up", size: size.parse()?, batch: batch.parse()? };
            load.run(relay.parse()?, user, password, Duration::from_secs_f64(seconds.parse()?))
        }
        _ => Err("turn_load RELAY USER PASSWORD up|down SECONDS SIZE BATCH, or hold COUNT".into()),
    }
}

/// Datagrams of `size` bytes, `batch` of them in one system call.
struct Load {
    up: bool,
    size: usize,
    batch: usize,
}

impl Load {
    fn run(&self, relay: SocketAddr, user: &str, password: &str, time: Duration) -> Result<()> {
        let mut client = Client::new(relay, user, password)?;
        let relayed = client.allocate()?;
        let peer = UdpSocket::bind((relay.ip(), 0))?;
        client.bind(CHANNEL, peer.local_addr()?)?;
        let mut message = if self.up { header(CHANNEL, self.size as u16).to_vec() } else { vec![] };
        message.resize(message.len() + self.size, 7);
        let wire = message.len();
        let (sender, receiver, to) =
            if self.up { (client.socket, peer, relay) } else { (peer, client.socket, relayed) };
        let (done, counted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let counting = {
            let (done, counted, overhead) = (done.clone(), counted.clone(), if self.up { 0 } else { HEADER });
            std::thread::spawn(move || count(&receiver, overhead, &done, &counted).map_err(|error| error.to_string()))
        };
        let (started, mut sent) = (Instant::now(), 0u64);
        let (state, contents) = (UdpSocketState::new(UdpSockRef::from(&sender))?, message.repeat(self.batch));
        sender.set_nonblocking(false)?;
        let segment_size = (self.batch > 1).then_some(wire);
        while started.elapsed() < time {
            let transmit = Transmit { destination: to, ecn: None, contents: &contents, segment_size, src_ip: None };
            if state.try_send(UdpSockRef::from(&sender), &transmit).is_ok() {
                sent += (self.size * self.batch) as u64;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        // what is still under way
        std::thread::sleep(Duration::from_millis(200));
        done.store(true, Ordering::Relaxed);
        counting.join().map_err(|_| "the receiver panicked")??;
        println!("{{\"sent\": {sent}, \"received\": {}, \"seconds\": {seconds}}}", counted.load(Ordering::Relaxed));
        Ok(())
    }
}

/// Bytes of payload that arrive, `overhead` less for each datagram.
fn count(socket: &UdpSocket, overhead: usize, done: &AtomicBool, counted: &AtomicU64) -> io::Result<()> {
    let state = UdpSocketState::new(UdpSockRef::from(socket))?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut buffers = vec![vec![0; 1 << 16]; AT_ONCE];
    while !done.load(Ordering::Relaxed) {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut metas = [RecvMeta::default(); AT_ONCE];
        let Ok(filled) = state.recv(UdpSockRef::from(socket), &mut slices, &mut metas) else { continue };
        for meta in &metas[..filled] {
            let datagrams = meta.len.div_ceil(meta.stride.max(1));
            counted.fetch_add((meta.len - datagrams * overhead) as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn hold(relay: SocketAddr, user: &str, password: &str, count: usize) -> Result<()> {
    let mut clients = vec![];
    for _ in 0..count {
        let mut client = Client::new(relay, user, password)?;
        client.allocate()?;
        clients.push(client);
    }
    println!("{{\"held\": {}}}", clients.len());
    io::stdin().read_to_end(&mut vec![])?;
    Ok(())
}

/// As much of a TURN client as that takes.
struct Client {
    socket: UdpSocket,
    user: String,
    password: String,
    realm: String,
    nonce: Vec<u8>,
    transactions: u64,
}

impl Client {
    fn new(relay: SocketAddr, user: &str, password: &str) -> Result<Self> {
        let socket = UdpSocket::bind((relay.ip(), 0))?;
        socket.connect(relay)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let (user, password) = (user.to_owned(), password.to_owned());
        Ok(Self { socket, user, password, realm: String::new(), nonce: vec![], transactions: 0 })
    }

    /// The relayed address.
    fn allocate(&mut self) -> Result<SocketAddr> {
        let transport = (stun::REQUESTED_TRANSPORT, vec![17, 0, 0, 0]);
        // as large as the answer, so that a server which minds that answers at once
        let first = self.ask(stun::ALLOCATE, &[transport.clone(), (0x8026, vec![0; 24])], false)?;
        let challenge = Message::read(&first).map_err(|_| "a broken answer")?;
        self.realm = String::from_utf8(challenge.realm.ok_or("no REALM")?.to_vec())?;
        self.nonce = challenge.nonce.ok_or("no NONCE")?.to_vec();
        let family = (stun::REQUESTED_ADDRESS_FAMILY, vec![1 + u8::from(self.socket.local_addr()?.is_ipv6()), 0, 0, 0]);
        let answer = self.ask(stun::ALLOCATE, &[transport, family], true)?;
        let answer = Message::read(&answer).map_err(|_| "a broken answer")?;
        if answer.class != MessageClass::Success {
            return Err("the allocation was refused".into());
        }
        answer.relayed.ok_or_else(|| "no relayed address".into())
    }

    fn bind(&mut self, channel: u16, peer: SocketAddr) -> Result<()> {
        let mut address = Writer::new(MessageClass::Request, stun::CHANNEL_BIND, self.next());
        address.put_address(stun::XOR_PEER_ADDRESS, peer);
        let number = channel.to_be_bytes();
        let attributes = [
            (stun::CHANNEL_NUMBER, vec![number[0], number[1], 0, 0]),
            (stun::XOR_PEER_ADDRESS, address.finish()[24..].to_vec()),
        ];
        let answer = self.ask(stun::CHANNEL_BIND, &attributes, true)?;
        match Message::read(&answer).map_err(|_| "a broken answer")?.class {
            MessageClass::Success => Ok(()),
            _ => Err("the channel was refused".into()),
        }
    }

    fn next(&self) -> [u8; 12] {
        let mut transaction = [0; 12];
        transaction[4..].copy_from_slice(&(self.transactions + 1).to_be_bytes());
        transaction
    }

    fn ask(&mut self, method: u16, attributes: &[(u16, Vec<u8>)], signed: bool) -> Result<Vec<u8>> {
        let transaction = self.next();
        self.transactions += 1;
        let mut request = Writer::new(MessageClass::Request, method, transaction);
        for (kind, value) in attributes {
            request.put(*kind, value);
        }
        if signed {
            request.put(stun::USERNAME, self.user.as_bytes());
            request.put(stun::REALM, self.realm.as_bytes());
            request.put(stun::NONCE, &self.nonce);
            request.sign(&long_term_key(self.user.as_bytes(), &self.realm, &self.password), Integrity::Sha1);
        }
        let (request, mut answer) = (request.finish(), vec![0; 2_048]);
        for _ in 0..ATTEMPTS {
            self.socket.send(&request)?;
            let Ok(length) = self.socket.recv(&mut answer) else { continue };
            answer.truncate(length);
            return Ok(answer);
        }
        Err("the relay does not answer".into())
    }
}

const CHANNEL: u16 = 0x4000;
const AT_ONCE: usize = 16;
/// Half a second each.
const ATTEMPTS: u32 = 10;
