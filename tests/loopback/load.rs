//! Many tunnels and many bytes; and nothing is left afterwards.

use std::time::Duration;

use keynet::proxy::Close;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::leaks;
use crate::support::*;

#[test]
fn a_gigabyte_arrives_intact() {
    both(|family| transfer(family, 1 << 30));
}

/// Sends `length` bytes to a service that echoes them; both ways are hashed on the go.
async fn transfer(family: Family, length: usize) {
    let service = echo(family).await;
    let (near, far) = pair(family, service.address).await;
    let mut client = tunnel(&near, &far).await;
    let block = noise(7, 1 << 20);
    let (mut from, mut to) = client.split();
    let writing = async {
        let mut hash = Hash::new();
        let mut left = length;
        while left > 0 {
            let mut piece = block.clone();
            piece.truncate(left);
            piece[..8].copy_from_slice(&(left as u64).to_le_bytes());
            hash.add(&piece);
            to.write_all(&piece).await.unwrap();
            left -= piece.len();
        }
        to.shutdown().await.unwrap();
        hash.finish()
    };
    let reading = async {
        let mut hash = Hash::new();
        let mut buffer = vec![0; 256 << 10];
        let mut total = 0;
        loop {
            match from.read(&mut buffer).await.unwrap() {
                0 => break,
                n => {
                    hash.add(&buffer[..n]);
                    total += n;
                }
            }
        }
        assert_eq!(total, length);
        hash.finish()
    };
    let start = std::time::Instant::now();
    let (sent, got) = tokio::join!(writing, reading);
    println!("{family:?}: {length} bytes there and back in {:?}", start.elapsed());
    assert_eq!(sent, got);
}

struct Hash(aws_lc_rs::digest::Context);

impl Hash {
    fn new() -> Self {
        Self(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256))
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}

#[test]
fn five_hundred_tunnels_at_once() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut clients = JoinSet::new();
        for n in 0..500 {
            let (near, far) = (near.clone(), far.clone());
            clients.spawn(async move {
                let mut stream = tunnel(&near, &far).await;
                let data = noise(n, 20_000);
                stream.write_all(&data).await.unwrap();
                assert!(read_exactly(&mut stream, data.len()).await == data);
                stream
            });
        }
        let mut open = Vec::new();
        while let Some(client) = clients.join_next().await {
            open.push(client.unwrap());
        }
        assert_eq!((near.connections().len(), far.connections().len()), (500, 500));
        drop(open);
        until("all have ended", || near.stats().tasks == 0 && far.stats().tasks == 0).await;
    });
}

#[test]
fn ten_thousand_short_tunnels_leave_nothing_behind() {
    both(|family| in_a_row(family, 10_000));
}

async fn in_a_row(family: Family, count: usize) {
    let service = echo(family).await;
    let far = node(family).service(SERVICE, service.address);
    let far = far.limits(|limits| limits.tombstone = Duration::from_millis(200)).start().await;
    let near = node(family).limits(|limits| limits.tombstone = Duration::from_millis(200)).start().await;
    know(&near, &far);
    // The first one leaves what stays: a path, session tickets.
    for _ in 0..4 {
        once(&near, &far, 0).await;
    }
    until("the first have ended", || near.stats().tasks == 0 && far.stats().tasks == 0).await;
    let (sockets_before, tasks_before) = (leaks::sockets(), leaks::tasks());
    for n in 0..count {
        once(&near, &far, n).await;
    }
    until("all have ended", || near.stats().tasks == 0 && far.stats().tasks == 0).await;
    until("uTP has forgotten them", || near.stats().net.connections == 0 && far.stats().net.connections == 0).await;
    until("no task is left", || leaks::tasks() <= tasks_before).await;
    until("no socket is left", || leaks::sockets() <= sockets_before).await;
    until("the registry is empty", || {
        far.connection_by_reverse("x");
        near.connection_by_client("x");
        near.stats().tombstones + far.stats().tombstones == 0
    })
    .await;
    assert_eq!(near.stats().opened, count as u64 + 4);
    near.close(Close::Drain).await;
    far.close(Close::Drain).await;
    drop((near, far));
}

/// A tunnel that ends in one of the ways in which tunnels end.
async fn once(near: &keynet::proxy::Proxy, far: &keynet::proxy::Proxy, n: usize) {
    let mut client = tunnel(near, far).await;
    client.write_all(b"ping").await.unwrap();
    assert_eq!(read_exactly(&mut client, 4).await, b"ping");
    match n % 4 {
        0 => {
            client.shutdown().await.unwrap();
            assert!(read_to_end(&mut client).await.unwrap().is_empty());
        }
        1 => client.set_zero_linger().unwrap(),
        2 => client.write_all(b"unread").await.unwrap(),
        _ => {}
    }
}
