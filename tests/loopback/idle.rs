//! What connections cost that do nothing: bytes of heap, counted. `benches/README.md` has more (TLS, tunnels, CPU).

use keynet::config::UtpConfig;
use keynet::net::{Incoming, Net, NetConfig, UtpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::leaks;
use crate::support::*;

const CONNECTIONS: usize = 1_000;
/// Of one side of an idle connection: 2 KiB, measured.
const CORE_MEMORY: isize = 4 << 10;

#[test]
fn a_thousand_idle_connections_hold_little_memory() {
    both(|family| async move {
        let bind = || Net::bind(family.any(), NetConfig::default()).unwrap();
        let ((near, _no_one), (far, mut incoming)) = (bind(), bind());
        let mut held = vec![connect(&near, &far, &mut incoming).await];
        let before = leaks::memory();
        while held.len() < CONNECTIONS {
            held.push(connect(&near, &far, &mut incoming).await);
        }
        let each = || (leaks::memory() - before) / (2 * held.len() as isize);
        until("idle connections have given their buffers back", || each() <= CORE_MEMORY).await;
        drop(held);
        near.close().await;
        far.close().await;
    });
}

/// A connection over which some kilobytes went each way.
async fn connect(near: &Net, far: &Net, incoming: &mut Incoming) -> (UtpStream, UtpStream) {
    let dial = near.connect(far.local_address(), UtpConfig::default());
    let (dialled, accepted) = tokio::join!(dial, incoming.accept());
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    let mut bytes = noise(1, 10_000);
    dialled.write_all(&bytes).await.unwrap();
    accepted.read_exact(&mut bytes).await.unwrap();
    accepted.write_all(&bytes).await.unwrap();
    dialled.read_exact(&mut bytes).await.unwrap();
    (dialled, accepted)
}
