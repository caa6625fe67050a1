//! The ports of relayed addresses: which are free is known, so that a range that is nearly full costs no search.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::port::Port;

/// Free ports of one address. What it lends comes back by itself.
#[derive(Clone)]
pub struct Ports(Arc<Mutex<Free>>);

struct Free {
    /// Even and odd ones.
    ports: [Vec<u16>; 2],
    /// Another program has them, or had: they are tried again then.
    aside: VecDeque<(Instant, u16)>,
}

/// A socket on a port of the range.
pub struct Lent {
    port: Port,
    // after the socket, which is closed by then: whoever gets the port next can bind it
    _back: Back,
}

struct Back {
    ports: Ports,
    number: u16,
}

impl Ports {
    pub fn new(range: &RangeInclusive<u16>) -> Self {
        let (even, odd) = range.clone().partition(|port| port.is_multiple_of(2));
        Self(Arc::new(Mutex::new(Free { ports: [even, odd], aside: VecDeque::new() })))
    }

    /// A free port at random (RFC 6056 section 3.3.1). `None`: there is none, or the system gives none.
    pub fn bind(&self, ip: IpAddr, even: bool) -> Option<Lent> {
        self.bind_with(even, Instant::now(), |number| Port::bind(SocketAddr::new(ip, number), true))
    }

    fn bind_with(&self, even: bool, now: Instant, bind: impl Fn(u16) -> io::Result<Port>) -> Option<Lent> {
        for _ in 0..ATTEMPTS {
            let number = self.free().take(even, now)?;
            match bind(number) {
                Ok(port) => return Some(Lent { port, _back: Back { ports: self.clone(), number } }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    self.free().aside.push_back((now + ASIDE, number));
                }
                // no descriptor is left, or the address has gone: other ports are no better
                Err(_) => {
                    self.free().put(number);
                    return None;
                }
            }
        }
        None
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    fn take(&mut self, even: bool, now: Instant) -> Option<u16> {
        while let Some((_, number)) = self.aside.front().copied().filter(|(until, _)| *until <= now) {
            self.aside.pop_front();
            self.put(number);
        }
        let [evens, odds] = &mut self.ports;
        let count = evens.len() + if even { 0 } else { odds.len() };
        let mut random = [0; 4];
        getrandom::fill(&mut random).ok()?;
        let at = u32::from_ne_bytes(random) as usize % count.max(1);
        match at.checked_sub(evens.len()) {
            _ if count == 0 => None,
            None => Some(evens.swap_remove(at)),
            Some(at) => Some(odds.swap_remove(at)),
        }
    }

    fn put(&mut self, number: u16) {
        self.ports[usize::from(number % 2)].push(number);
    }
}

impl Deref for Lent {
    type Target = Port;

    fn deref(&self) -> &Port {
        &self.port
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.ports.free().put(self.number);
    }
}

/// Ports tried for one allocation. Each that another program has is put aside, so a request finds those that the one before it did
/// not try; a quarter of the range would have to be taken by others for one in 65,000 requests to fail.
const ATTEMPTS: usize = 8;
/// Other programs keep their ports for a while.
const ASIDE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Each is bound where the system has room; the numbers are what counts.
    fn anywhere(_: u16) -> io::Result<Port> {
        Port::bind(SocketAddr::new(HERE, 0), true)
    }

    fn number(lent: &Lent) -> u16 {
        lent._back.number
    }

    #[tokio::test]
    async fn a_range_is_lent_to_its_last_port_with_one_attempt_each() {
        let ports = Ports::new(&(50_000..=50_099));
        let attempts = Cell::new(0);
        let count = |port| {
            attempts.set(attempts.get() + 1);
            anywhere(port)
        };
        let lent: Vec<_> = std::iter::from_fn(|| ports.bind_with(false, Instant::now(), count)).collect();
        let numbers: HashSet<_> = lent.iter().map(number).collect();
        assert_eq!((lent.len(), numbers.len(), attempts.get()), (100, 100, 100));
        assert!(ports.bind_with(false, Instant::now(), count).is_none());
        assert_eq!(attempts.get(), 100, "a full range costs no attempt");
    }

    #[tokio::test]
    async fn what_is_given_back_is_lent_again_and_can_be_bound() {
        let number_of = {
            let free = Port::bind(SocketAddr::new(HERE, 0), true).unwrap();
            free.local().port()
        };
        let ports = Ports::new(&(number_of..=number_of));
        for _ in 0..3 {
            let lent = ports.bind(HERE, false).expect("it was closed before it was given back");
            assert!(ports.bind(HERE, false).is_none());
            drop(lent);
        }
    }

    #[tokio::test]
    async fn ports_of_other_programs_are_not_tried_by_every_request() {
        let (ports, start) = (Ports::new(&(50_000..=50_009)), Instant::now());
        let attempts = Cell::new(0);
        let mostly_taken = |port: u16| {
            attempts.set(attempts.get() + 1);
            if port == 50_004 {
                anywhere(port)
            } else {
                Err(io::ErrorKind::AddrInUse.into())
            }
        };
        let found: Vec<_> = (0..4).filter_map(|_| ports.bind_with(false, start, mostly_taken)).collect();
        assert_eq!(found.iter().map(number).collect::<Vec<_>>(), [50_004]);
        assert_eq!(attempts.get(), 10, "each once");
        let later = ports.bind_with(false, start + ASIDE, anywhere);
        assert!(later.is_some(), "the other program may have ended");
    }

    #[tokio::test]
    async fn even_ports_are_even() {
        let ports = Ports::new(&(50_000..=50_009));
        let lent: Vec<_> = std::iter::from_fn(|| ports.bind_with(true, Instant::now(), anywhere)).collect();
        assert_eq!(
            lent.iter().map(number).collect::<HashSet<_>>(),
            HashSet::from([50_000, 50_002, 50_004, 50_006, 50_008])
        );
        assert!(ports.bind_with(false, Instant::now(), anywhere).is_some(), "the others are there");
    }

    #[tokio::test]
    async fn without_a_descriptor_nothing_is_put_aside() {
        let ports = Ports::new(&(50_000..=50_000));
        let none = |_| Err(io::ErrorKind::Other.into());
        assert!(ports.bind_with(false, Instant::now(), none).is_none());
        assert!(ports.bind_with(false, Instant::now(), anywhere).is_some());
    }
}
