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
    let (mut buffers, mut frames) = (shared.pool.take(), vec![]);
    loop {
        if port.readable().await.is_err() {
            return;
        }
        for _ in 0..BATCHES {
            let Ok(count) = port.receive(&mut buffers) else { break };
            for n in 0..count {
                take(&shared, place, &mut buffers, n, &mut frames);
            }
        }
        tokio::task::yield_now().await;
    }
}

fn take(shared: &Shared, place: u8, buffers: &mut Buffers, n: usize, frames: &mut Vec<Frame>) {
    let Some((meta, contents)) = buffers.get(n) else { return };
    let client = Client { address: unmapped(meta.addr), local: meta.dst_ip, link: Link::Datagrams(place) };
    let (stride, total) = (meta.stride.max(1), contents.len());
    for start in (0..total).step_by(stride) {
        let end = (start + stride).min(total);
        let Some(datagram) = contents.get(start..end) else { break };
        if let Some((channel, length)) = read_datagram(datagram) {
            frames.push(Frame { channel, start: start + channel::HEADER, length });
            continue;
        }
        shared.forward(&client, contents, frames);
        frames.clear();
        let Some(datagram) = contents.get(start..end) else { break };
        if let Some(answer) = shared.handle(&client, datagram) {
            shared.deliver(&client, &answer, answer.len());
        }
    }
    shared.forward(&client, contents, frames);
    frames.clear();
}
