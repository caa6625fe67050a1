//! Who gets a place for a handshake, and who gives way.

use super::*;

fn places() -> Arc<Places> {
    Places::new(&ProxyLimits::default())
}

fn at(n: u32) -> SocketAddr {
    SocketAddr::from((std::net::Ipv4Addr::from_bits(n), 4433))
}

/// In a moment that does not pass: how fast this machine is does not matter.
fn enter(places: &Arc<Places>, source: SocketAddr, known: bool) -> Option<Place> {
    static NOW: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    places.enter_at(source, known, *NOW.get_or_init(Instant::now))
}

/// As many as get a place from one source, with nobody silent for long.
fn fill(places: &Arc<Places>, source: SocketAddr, known: bool) -> Vec<Place> {
    std::iter::from_fn(|| enter(places, source, known)).take(1_100).collect()
}

fn has_to_go(place: &mut Place) -> bool {
    place.give_way.as_mut().is_some_and(|told| told.try_recv().is_ok())
}

/// Lets time pass.
fn age(places: &Places, by: Duration) {
    for held in places.lock().held.values_mut() {
        held.since -= by;
    }
}

/// The formula of docs/protocol.md section 10.
#[test]
fn one_source_and_one_network_have_so_many_places_and_no_more() {
    let (places, limits) = (places(), ProxyLimits::default());
    let held = || places.lock().held.len();
    let from_one = fill(&places, at(0x0a00_0001), false);
    assert_eq!((from_one.len(), limits.max_handshakes_per_source), (32, 32));
    // those that come later get places of those who have more
    let network: Vec<_> = (2..=255).flat_map(|n| fill(&places, at(0x0a00_0000 + n), false)).collect();
    assert_eq!((held(), limits.max_handshakes_per_network), (128, 128));
    let v6 = |text: &str| SocketAddr::new(text.parse().unwrap(), 1);
    let one: Vec<_> = (1..=64).filter_map(|n| enter(&places, v6(&format!("2001:db8::{n:x}")), false)).collect();
    assert_eq!((one.len(), held()), (32, 160), "a /64 is one source");
    let more: Vec<_> = (1..=255).filter_map(|n| enter(&places, v6(&format!("2001:db8:0:{n:x}::1")), false)).collect();
    assert_eq!(held(), 256, "a /48 is one network");
    drop((from_one, network, one, more));
    assert_eq!(held(), 0);
}

#[test]
fn strangers_of_the_whole_world_leave_places_to_nodes_that_are_known() {
    let (places, limits) = (places(), ProxyLimits::default());
    let mut strangers: Vec<_> = (0..900).filter_map(|n| enter(&places, at(n << 8), false)).collect();
    assert_eq!(strangers.len(), limits.max_handshakes - limits.max_handshakes / RESERVED);
    let known = fill(&places, at(0x0a00_0001), true);
    assert_eq!(known.len(), limits.max_handshakes / KNOWN_SHARE, "the last of them in places of strangers");
    let gone = strangers.iter_mut().map(has_to_go).filter(|gone| *gone).count();
    assert_eq!(gone, known.len() - limits.max_handshakes / RESERVED);
}

#[test]
fn a_newcomer_takes_the_place_of_the_least_advanced_of_the_most_crowded_source() {
    let places = places();
    let mut all: Vec<_> = (0..24).flat_map(|n| fill(&places, at(n << 8), false)).collect();
    assert_eq!(all.len(), 768);
    // one source less than the others, and in the rest only one that is not half done
    drop(all.drain(..3));
    let singles: Vec<_> = (100..103).map(|n| enter(&places, at(n << 8), false).unwrap()).collect();
    let (slow, done) = (40, all.len());
    (0..done).filter(|n| *n != slow).for_each(|n| all[n].advance(Progress::Open));
    let friend = enter(&places, at(0x0a00_0001), false);
    assert!(friend.is_some());
    assert!(has_to_go(&mut all[slow]), "the least advanced, of a source with 32");
    let gone = all.iter_mut().map(has_to_go).filter(|gone| *gone).count();
    assert_eq!((gone, singles.len()), (0, 3), "and nobody else");
}

#[test]
fn among_equals_only_who_is_silent_gives_way() {
    let places = places();
    let mut all: Vec<_> = (0..768).map(|n| enter(&places, at(n << 8), false).unwrap()).collect();
    assert!(enter(&places, at(0x0a00_0001), false).is_none());
    all[1..].iter().for_each(|place| place.advance(Progress::Tls));
    age(&places, SILENT);
    let newcomer = enter(&places, at(0x0a00_0001), false);
    assert!(newcomer.is_some() && has_to_go(&mut all[0]));
    assert!(enter(&places, at(0x0a00_0002), false).is_none(), "the others have said something");
}

#[test]
fn a_source_at_its_cap_renews_its_silent_ones_and_its_known_nodes_are_apart() {
    let places = places();
    let mut silent = fill(&places, at(1), false);
    assert!(enter(&places, at(1), false).is_none());
    assert!(enter(&places, at(1), true).is_some(), "a known node behind the same address");
    age(&places, SILENT);
    assert!(enter(&places, at(1), false).is_some());
    assert!(has_to_go(&mut silent[0]));
}

#[tokio::test]
async fn who_waits_gets_the_place_that_comes_free() {
    let places = places();
    let mut held = fill(&places, at(1), false);
    let ticket = places.queue(at(1), false).unwrap();
    let waiting = tokio::spawn(ticket.place(Duration::from_secs(60)));
    held.pop();
    assert!(waiting.await.unwrap().is_some());
    let queued: Vec<_> = std::iter::from_fn(|| places.queue(at(1), false)).take(5_000).collect();
    assert_eq!(queued.len(), WAITING_PER_PLACE * 32);
    assert!(places.queue(at(1 << 8), false).is_some(), "another source");
    drop((held, queued));
    assert!(places.lock().held.is_empty() && places.lock().waiting.is_empty());
}
