//! Who may no longer loses what stands, at once, and is told so; who still may notices nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use keynet::addr::NodeId;
use keynet::error::Reason;
use keynet::proxy::{Allow, Backend, Event, Proxy};
use keynet::tls::Identity;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::*;

fn only(nodes: &[NodeId]) -> Allow {
    Allow::Nodes(nodes.iter().copied().collect::<HashSet<_>>())
}

async fn client(family: Family, far: &Proxy, identity: Identity) -> (Proxy, TcpStream) {
    let near = node(family).identity(identity).start().await;
    know(&near, far);
    let mut stream = tunnel(&near, far).await;
    goes_on(&mut stream).await;
    (near, stream)
}

async fn goes_on(stream: &mut TcpStream) {
    stream.write_all(b"x").await.unwrap();
    assert_eq!(read_exactly(stream, 1).await, b"x");
}

/// The client's stream breaks, and both nodes know why.
async fn is_cut(far_events: &mut keynet::proxy::Events, near: &Proxy, far: &NodeId, mut stream: TcpStream) {
    expect_reset(&mut stream).await;
    assert_eq!(end(far_events).await, Reason::AccessRevoked);
    until("the node has heard why", || near.last_error(far).is_some()).await;
    assert_eq!(near.last_error(far).map(|error| error.reason), Some(Reason::AccessRevoked));
    refused(near, far, Reason::AccessDenied).await;
}

#[test]
fn leaving_the_access_list_ends_what_stands() {
    both(|family| async move {
        let service = echo(family).await;
        let (friend, enemy, old) = (identity(), identity(), identity());
        let all = [friend.node_id(), enemy.node_id(), old.node_id()];
        let far = node(family).service(SERVICE, service.address).allow(only(&all)).start().await;
        let mut events = far.subscribe();
        let (_friend, mut stays) = client(family, &far, friend.clone()).await;
        let (enemy, goes) = client(family, &far, enemy).await;
        // by the name that it has rotated away from
        let (rotated, goes_too) = client(family, &far, old.rotate(SystemTime::now()).unwrap()).await;
        far.set_allow(only(&[friend.node_id(), old.node_id()]));
        is_cut(&mut events, &enemy, &far.node_id(), goes).await;
        far.set_allow(only(&[friend.node_id()]));
        is_cut(&mut events, &rotated, &far.node_id(), goes_too).await;
        far.set_allow(Allow::Anyone);
        goes_on(&mut stays).await;
        let names = far.connections().into_iter().map(|info| info.node).collect::<Vec<_>>();
        assert_eq!(names, [friend.node_id()]);
    });
}

#[test]
fn what_stands_can_be_spared_and_ended_by_name() {
    both(|family| async move {
        let service = echo(family).await;
        let guest = identity();
        let far = node(family).service(SERVICE, service.address).allow(only(&[guest.node_id()])).start().await;
        let mut events = far.subscribe();
        let (near, mut stream) = client(family, &far, guest.clone()).await;
        far.set_allow_for_new(only(&[]));
        goes_on(&mut stream).await;
        assert_eq!(far.disconnect(&identity().node_id()), 0);
        assert_eq!(far.disconnect(&guest.node_id()), 1);
        is_cut(&mut events, &near, &far.node_id(), stream).await;
    });
}

#[test]
fn a_dialler_can_end_its_own_streams() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let (near, mut stream) = client(family, &far, identity()).await;
        let mut held = near.connect(far.node_id(), SERVICE).await.unwrap();
        let mut events = near.subscribe();
        assert_eq!(near.disconnect(&far.node_id()), 2);
        expect_reset(&mut stream).await;
        assert!(tokio::io::AsyncReadExt::read_u8(&mut held).await.is_err(), "also one in the hands of a program");
        drop(held);
        assert_eq!((end(&mut events).await, end(&mut events).await), (Reason::Cancelled, Reason::Cancelled));
        assert!(near.last_error(&far.node_id()).is_none(), "nobody else did it");
        drop(tunnel(&near, &far).await);
    });
}

#[test]
fn a_new_function_is_asked_about_what_stands() {
    both(|family| async move {
        let service = echo(family).await;
        let (friend, enemy) = (identity(), identity());
        let far = node(family).service(SERVICE, service.address).start().await;
        let mut events = far.subscribe();
        let (_friend, mut stays) = client(family, &far, friend.clone()).await;
        let (enemy, goes) = client(family, &far, enemy).await;
        let allowed = friend.node_id();
        far.set_allow(Allow::Ask(Arc::new(move |request| {
            assert_eq!(request.service_port, SERVICE);
            Box::pin(async move { request.node == allowed })
        })));
        is_cut(&mut events, &enemy, &far.node_id(), goes).await;
        goes_on(&mut stays).await;
    });
}

/// The function is asked about what stands whatever else the same node asks for, and a list that spares what stands does not
/// call off what an earlier list was to end.
#[test]
fn what_an_earlier_list_ends_is_ended_though_its_node_is_crowded_and_a_later_list_spares() {
    both(|family| async move {
        let service = echo(family).await;
        let guest = identity();
        let far = node(family).service(SERVICE, service.address).start().await;
        let mut events = far.subscribe();
        let (near, stream) = client(family, &far, guest.clone()).await;
        // no question of a newcomer is ever answered; one about what stands is answered when the test says so
        let (answer, answers) = tokio::sync::watch::channel(false);
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counts, standing) = (asked.clone(), 1);
        far.set_allow(Allow::Ask(Arc::new(move |_| {
            let first = counts.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < standing;
            let mut answers = answers.clone();
            Box::pin(async move {
                match first {
                    true => drop(answers.wait_for(|may| *may).await),
                    false => std::future::pending().await,
                }
                false
            })
        })));
        until("the function is asked", || asked.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
        let request = connect_request(&near, &target(&far.node_id(), SERVICE));
        let mut crowd = Vec::new();
        for _ in 0..8 {
            let mut one = TcpStream::connect(near.forward_address()).await.unwrap();
            one.write_all(request.as_bytes()).await.unwrap();
            crowd.push(one);
        }
        until("the node has all the turns that it may have", || asked.load(std::sync::atomic::Ordering::SeqCst) == 4)
            .await;
        far.set_allow_for_new(only(&[]));
        answer.send(true).unwrap();
        drop(crowd);
        let mut stream = stream;
        expect_reset(&mut stream).await;
        assert_eq!(end(&mut events).await, Reason::AccessRevoked);
    });
}

/// A node is let in, and its service takes its time; meanwhile it leaves the list.
#[test]
fn who_leaves_the_list_while_a_service_is_dialled_is_not_let_in() {
    both(|family| async move {
        let slow =
            socket2::Socket::new(socket2::Domain::for_address(family.any()), socket2::Type::STREAM, None).unwrap();
        slow.bind(&family.any().into()).unwrap();
        slow.listen(0).unwrap();
        let address = slow.local_addr().unwrap().as_socket().unwrap();
        let full = std::net::TcpStream::connect(address).unwrap();
        let guest = identity();
        let far = node(family).backend(SERVICE, Backend::Tcp(address.to_string())).allow(only(&[guest.node_id()]));
        let far = far.limits(|limits| limits.service_timeout = LIMIT).start().await;
        let near = node(family).identity(guest).limits(|limits| limits.dial_timeout = LIMIT).start().await;
        know(&near, &far);
        let mut events = far.subscribe();
        let dial = async { ask(&near, connect_request(&near, &target(&far.node_id(), SERVICE)).as_bytes()).await };
        let change = async {
            until("the service is dialled", || !far.connections().is_empty()).await;
            far.set_allow(only(&[]));
            drop(full);
            let _ = tokio::task::spawn_blocking(move || (slow.accept(), slow.accept(), slow)).await;
        };
        let (answer, ()) = tokio::join!(dial, change);
        check_refusal(&answer, Reason::AccessDenied);
        let opened = event(&mut events, |event| match event {
            Event::ConnectionOpened(_) => Some(true),
            Event::ConnectionRefused { .. } => Some(false),
            _ => None,
        });
        assert!(!opened.await);
        until("nothing is left", || far.stats().tasks == 0 && far.connections().is_empty()).await;
    });
}
