//! From peers to clients: one task for each relayed address.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use super::frames;
use super::port::{Buffers, Port};
use super::ports::Lent;
use super::{Shared, BATCHES};
use crate::addr::unmapped;
use crate::turn::channel::HEADER;
use crate::turn::server::{data_indication, AllocationId, Client, Framing};

/// Ends by being aborted.
pub async fn serve(shared: Arc<Shared>, allocation: AllocationId, port: Arc<Lent>) {
    loop {
        if port.readable().await.is_err() {
            return;
        }
        let mut buffers = shared.pool.take();
        let mut wire = shared.take_wire();
        for _ in 0..BATCHES {
            if !receive(&shared, allocation, &port, &mut buffers, &mut wire) {
                break;
            }
        }
        shared.put_wire(wire);
        shared.pool.put(buffers);
        // others have their turn
        tokio::task::yield_now().await;
    }
}

/// Whether there may be more.
fn receive(shared: &Shared, allocation: AllocationId, port: &Port, buffers: &mut Buffers, wire: &mut Vec<u8>) -> bool {
    // an error is not of this datagram but of an earlier one (ICMP), or of the system: then the next wait tells
    let Ok(count) = port.receive(buffers) else { return false };
    let mut n = 0;
    while n < count {
        let alike = buffers.alike(n, count);
        forward(shared, allocation, buffers, n..n + alike, wire);
        n += alike;
    }
    true
}

/// Datagrams of one peer and one size.
fn forward(shared: &Shared, allocation: AllocationId, buffers: &mut Buffers, run: Range<usize>, wire: &mut Vec<u8>) {
    let Some((first, _)) = buffers.get(run.start) else { return };
    let (peer, stride) = (shared.addresses.outward(unmapped(first.addr)), first.stride.max(1));
    let bytes: usize = run.clone().filter_map(|n| buffers.get(n)).map(|(_, range)| range.len()).sum();
    let (datagrams, now) = (bytes.div_ceil(stride).max(1), shared.now());
    let found = shared.core().server.forward_to_client(now, allocation, peer, bytes, datagrams);
    let Some((client, framing)) = found else { return };
    wire.clear();
    for n in run {
        let Some((_, range)) = buffers.get(n) else { break };
        let Some(contents) = buffers.bytes().get(range) else { break };
        match framing {
            Framing::Channel(channel) => frames::wrap(wire, channel, contents, stride, client.link.is_stream()),
            Framing::Indication => indications(shared, &client, peer, contents, stride),
        }
    }
    if !wire.is_empty() {
        shared.deliver(&client, wire, stride + HEADER);
    }
}

fn indications(shared: &Shared, client: &Client, peer: SocketAddr, contents: &[u8], stride: usize) {
    let one = |data: &[u8]| {
        let mut transaction = [0; 12];
        // an indication's number means nothing (RFC 8489 section 6.2.2)
        let _ = getrandom::fill(&mut transaction);
        match data_indication(peer, data, transaction) {
            Some(message) => shared.deliver(client, &message, message.len()),
            None => shared.count_lost(1),
        }
    };
    match contents.is_empty() {
        true => one(&[]),
        false => contents.chunks(stride).for_each(one),
    }
}
