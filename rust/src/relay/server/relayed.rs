//! From peers to clients: one task for each relayed address.

use std::net::SocketAddr;
use std::sync::Arc;

use super::frames;
use super::port::{Buffers, Port};
use super::{Shared, BATCHES};
use crate::addr::unmapped;
use crate::turn::server::{data_indication, AllocationId, Client, Framing};

/// Ends by being aborted.
pub async fn serve(shared: Arc<Shared>, allocation: AllocationId, port: Arc<Port>) {
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
    for n in 0..count {
        let Some((meta, contents)) = buffers.get(n) else { break };
        let (peer, stride) = (shared.addresses.outward(unmapped(meta.addr)), meta.stride.max(1));
        let datagrams = contents.len().div_ceil(stride).max(1);
        let now = shared.now();
        let found = shared.core().server.forward_to_client(now, allocation, peer, contents.len(), datagrams);
        if let Some((client, framing)) = found {
            match framing {
                Framing::Channel(channel) => channel_data(shared, &client, channel, contents, stride, wire),
                Framing::Indication => indications(shared, &client, peer, contents, stride),
            }
        }
    }
    true
}

fn channel_data(shared: &Shared, client: &Client, channel: u16, contents: &[u8], stride: usize, wire: &mut Vec<u8>) {
    wire.clear();
    frames::wrap(wire, channel, contents, stride, client.link.is_stream());
    shared.deliver(client, wire, stride + crate::turn::channel::HEADER);
}

fn indications(shared: &Shared, client: &Client, peer: SocketAddr, contents: &[u8], stride: usize) {
    let one = |data: &[u8]| {
        let mut transaction = [0; 12];
        // an indication's number means nothing (RFC 8489 section 6.2.2)
        let _ = getrandom::fill(&mut transaction);
        let message = data_indication(peer, data, transaction);
        shared.deliver(client, &message, message.len());
    };
    match contents.is_empty() {
        true => one(&[]),
        false => contents.chunks(stride).for_each(one),
    }
}
