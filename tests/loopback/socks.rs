//! Clients that speak SOCKS5.

use keynet::proxy::Proxy;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::*;

/// Greeting, user and password, and a request for a name.
fn hello(command: u8, host: &str, port: u16) -> Vec<u8> {
    let mut bytes = b"\x05\x02\x00\x02\x01\x04user\x06secret\x05".to_vec();
    bytes.extend([command, 0, 3, u8::try_from(host.len()).unwrap()]);
    bytes.extend(host.as_bytes());
    bytes.extend(port.to_be_bytes());
    bytes
}

async fn answered(near: &Proxy, sent: &[u8], length: usize) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(near.forward_address()).await.unwrap();
    for piece in sent.chunks(7) {
        stream.write_all(piece).await.unwrap();
    }
    let said = read_exactly(&mut stream, length).await;
    (stream, said)
}

#[test]
fn a_name_is_a_tunnel() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let sent = hello(1, &format!("{}.keynet", far.node_id()), SERVICE);
        let (mut stream, said) = answered(&near, &[&sent[..], b"early"].concat(), 14).await;
        assert_eq!(said[..8], [5, 2, 1, 0, 5, 0, 0, 1]);
        assert_eq!(read_exactly(&mut stream, 5).await, b"early");
        stream.write_all(b"late").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut stream).await.unwrap(), b"late");
        until("nothing is left", || near.stats().tasks == 0).await;
    });
}

#[test]
fn refusals_have_their_codes_and_reasons() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut events = near.subscribe();
        let host = format!("{}.keynet", far.node_id());
        let unknown = format!("{}.keynet", identity().node_id());
        let address = b"\x05\x01\x02\x01\x04user\x06secret\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50".to_vec();
        let cases = [
            (hello(1, &host, 1), vec![5, 2, 1, 0, 5, 5], "service_not_found"),
            (hello(1, &unknown, 1), vec![5, 2, 1, 0, 5, 4], "unknown_node"),
            (hello(1, "example.com", 80), vec![5, 2, 1, 0, 5, 4], "bad_target"),
            (hello(2, &host, 1), vec![5, 2, 1, 0, 5, 7], "method_not_allowed"),
            (hello(3, &host, 1), vec![5, 2, 1, 0, 5, 7], "method_not_allowed"),
            (address, vec![5, 2, 1, 0, 5, 8], "bad_target"),
            (b"\x05\x01\x02\x01\x04user\x05wrong".to_vec(), vec![5, 2, 1, 1], "credentials_required"),
            (b"\x05\x01\x00".to_vec(), vec![5, 0xff], "credentials_required"),
            (b"\x04\x01\x00\x50\x00\x00\x00\x01a\x00".to_vec(), vec![0, 0x5b], "bad_request"),
        ];
        for (sent, expected, reason) in cases {
            let (mut stream, said) = answered(&near, &sent, expected.len()).await;
            assert_eq!(said, expected, "{reason}");
            read_to_end(&mut stream).await.expect("an orderly end behind the answer");
            assert_eq!(refusal(&mut events).await.name(), reason);
        }
        until("nothing is left", || near.stats().tasks == 0).await;
    });
}
