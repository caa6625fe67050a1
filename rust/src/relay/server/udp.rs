//! Clients over UDP: one task for each listening socket.

use std::sync::Arc;

use super::frames::Frame;
use super::port::Buffers;
use super::{Shared, BATCHES};
use crate::addr::unmapped;
use crate::turn::channel::{self, read_datagram};
use crate::turn::server::{Client, Link};

/// Ends with the socket, or by being dropped.
pub async fn serve(shared: Arc<Shared>, place: u8) {
    let Some(port) = shared.udp.get(usize::from(place)) else { return };
    let (mut buffers, mut pending) = (shared.pool.take(), Pending::default());
    loop {
        if port.readable().await.is_err() {
            return;
        }
        for _ in 0..BATCHES {
            let Ok(count) = port.receive(&mut buffers) else { break };
            for n in 0..count {
                pending.take(&shared, place, &mut buffers, n);
            }
            pending.flush(&shared, buffers.bytes());
        }
        tokio::task::yield_now().await;
    }
}

/// ChannelData of one client that has not left yet. What several receive buffers hold of it leaves together.
#[derive(Default)]
struct Pending {
    client: Option<Client>,
    frames: Vec<Frame>,
}

impl Pending {
    fn take(&mut self, shared: &Shared, place: u8, buffers: &mut Buffers, n: usize) {
        let Some((meta, range)) = buffers.get(n) else { return };
        let client = Client { address: unmapped(meta.addr), local: meta.dst_ip, link: Link::Datagrams(place) };
        let bytes = buffers.bytes();
        if self.client != Some(client) {
            self.flush(shared, bytes);
            self.client = Some(client);
        }
        for start in range.clone().step_by(meta.stride.max(1)) {
            let end = (start + meta.stride).min(range.end);
            let Some(datagram) = bytes.get(start..end) else { break };
            if let Some((channel, length)) = read_datagram(datagram) {
                self.frames.push(Frame { channel, start: start + channel::HEADER, length });
                continue;
            }
            // in order; what was moved together lies before this
            self.flush(shared, bytes);
            self.client = Some(client);
            let Some(datagram) = bytes.get(start..end) else { break };
            if let Some(answer) = shared.handle(&client, datagram) {
                shared.deliver(&client, &answer, answer.len());
            }
        }
    }

    fn flush(&mut self, shared: &Shared, bytes: &mut [u8]) {
        if let Some(client) = self.client.take() {
            shared.forward(&client, bytes, &self.frames);
        }
        self.frames.clear();
    }
}
