//! Which relay, and how: the ways to one relay are tried one after the other without waiting long for each (as RFC 8305 does with
//! addresses), and of several relays that have answered the nearest is chosen.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{sleep, timeout_at, Instant};

use super::super::Transport;
use super::{connect, redirect, Allocation, Options, RelaySpec};
use crate::error::{Error, Reason, Result, Stage};
use crate::net::stagger::first_to_succeed;

/// Allocates at one relay, by whichever of the ways leads to it, the preferred one first.
///
/// Errors: the most telling failure, with all of them in its text; `InvalidArgument`, for more ways than there may be.
pub async fn reach(ways: Vec<RelaySpec>, options: &Options) -> Result<Allocation> {
    if ways.len() > MAX_WAYS {
        return Err(Error::new(Reason::InvalidArgument, Stage::Setup, format!("more than {MAX_WAYS} ways to a relay")));
    }
    let deadline = Instant::now() + options.deadline;
    let first = tried(&ways, options, deadline);
    tokio::pin!(first);
    // A program that starts refuses at first, and is asked for UDP for as long as there is time: where no UDP passes, the others would
    // wait for that.
    let streams: Vec<_> = ways.iter().filter(|way| way.uri.transport != Transport::Udp).cloned().collect();
    let again = async {
        if streams.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            sleep(AGAIN).await;
            // a kernel whose packets get lost repeats them less and less often: a new connection begins at once
            let until = deadline.min(Instant::now() + AFRESH);
            match tried(&streams, options, until).await {
                Ok(allocation) => return allocation,
                Err(errors) if errors.iter().all(is_of_the_way) => {}
                // who refuses us would do so again
                Err(_) => std::future::pending::<()>().await,
            }
        }
    };
    tokio::select! {
        ended = &mut first => ended.map_err(most_telling),
        allocation = again => Ok(allocation),
    }
}

fn is_of_the_way(error: &Error) -> bool {
    matches!(error.reason, Reason::RelayUnreachable | Reason::RelayLost)
}

/// One way after the other, without waiting long for each.
async fn tried(ways: &[RelaySpec], options: &Options, deadline: Instant) -> Result<Allocation, Vec<Error>> {
    climb(ways.iter().map(|spec| one_way(spec.clone(), options.clone(), deadline)).collect()).await
}

/// Which to take of relays that have answered, by round trip and weight; `None`: there are none.
pub fn choose(answered: &[(Duration, u32)]) -> Option<usize> {
    draw(answered, random())
}

/// One way to a relay, at each of its addresses.
async fn one_way(spec: RelaySpec, options: Options, deadline: Instant) -> Result<Allocation, Vec<Error>> {
    let found = timeout_at(deadline, connect::addresses(&spec)).await;
    let addresses = found.unwrap_or_else(|_| Err(late("the name is not resolved"))).map_err(|error| vec![error])?;
    climb(addresses.into_iter().map(|address| attempt(spec.clone(), address, options.clone(), deadline)).collect())
        .await
}

async fn attempt(
    spec: RelaySpec,
    address: SocketAddr,
    options: Options,
    deadline: Instant,
) -> Result<Allocation, Vec<Error>> {
    let tried = timeout_at(deadline, redirect::obtain(&spec, address, &options));
    tried.await.unwrap_or_else(|_| Err(late("no answer"))).map_err(|mut error| {
        let way = if spec.proxy.is_some() { " through the HTTP proxy" } else { "" };
        error.detail = format!("{} by {}{way}: {}", spec.uri.authority(), spec.uri.transport, error.detail);
        vec![error.with_address(address)]
    })
}

/// Tries one after the other, without waiting long for each; the first that succeeds ends the others.
async fn climb<F>(attempts: Vec<F>) -> Result<Allocation, Vec<Error>>
where
    F: Future<Output = Result<Allocation, Vec<Error>>>,
{
    first_to_succeed(attempts).await.map_err(|errors| errors.into_iter().flatten().collect())
}

fn late(what: &str) -> Error {
    Error::new(Reason::RelayUnreachable, Stage::Relay, format!("{what} in time"))
}

/// The nearest, of relays by round trip and weight. Those that are about as near share their users by weight (RFC 2782), so that a
/// site may have machines of several sizes; one of weight 0 is taken where no other has answered.
fn draw(answered: &[(Duration, u32)], random: u64) -> Option<usize> {
    let weighted = answered.iter().any(|(_, weight)| *weight > 0);
    let share = |weight: u32| if weighted { u64::from(weight) } else { 1 };
    let least = answered.iter().filter(|(_, weight)| share(*weight) > 0).map(|(rtt, _)| *rtt).min()?;
    let near = answered.iter().enumerate().filter(|(_, (rtt, _))| !is_clearly_nearer(least, *rtt));
    let near: Vec<(usize, u64)> = near.map(|(at, (_, weight))| (at, share(*weight))).collect();
    let mut place = random % near.iter().map(|(_, share)| share).sum::<u64>().max(1);
    for (at, share) in near {
        if place < share {
            return Some(at);
        }
        place -= share;
    }
    None
}

/// Whether a round trip of `one` is worth leaving a relay for that has the `other`.
pub fn is_clearly_nearer(one: Duration, other: Duration) -> bool {
    one + (one / 10).max(ABOUT) < other
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // without randomness the first of them is as good
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A refusal says more than silence, and what is wrong with a certificate more than that.
fn most_telling(errors: Vec<Error>) -> Error {
    let rank = |error: &Error| match error.reason {
        Reason::RelayUnreachable => 0,
        Reason::RelayRefused => 1,
        _ => 2,
    };
    let mut details: Vec<&str> = Vec::new();
    for error in &errors {
        // the addresses of one name fail alike
        if details.len() < MAX_DETAILS && !details.contains(&error.detail.as_str()) {
            details.push(&error.detail);
        }
    }
    let details = details.join("; ");
    match errors.into_iter().max_by_key(rank) {
        Some(error) => Error { detail: details, ..error },
        None => Error::new(Reason::RelayUnreachable, Stage::Relay, "no relay was named"),
    }
}

/// A way over TCP that has failed is tried again after this, while one over UDP is waited for: a connection each time.
const AGAIN: Duration = Duration::from_secs(1);
/// What has come to nothing by then is begun afresh; TCP, TLS and an allocation take six round trips.
const AFRESH: Duration = Duration::from_secs(2);
/// Round trips that differ by less say nothing about distance.
const ABOUT: Duration = Duration::from_millis(2);
/// UDP, TCP, TLS, TLS through a proxy, and as many on other ports.
const MAX_WAYS: usize = 8;
/// So that an error can be read.
const MAX_DETAILS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn chosen<const N: usize>(answered: [(u32, u32); N], draws: u64) -> [u64; N] {
        let answered = answered.map(|(rtt, weight)| (rtt * MS, weight));
        let mut seen = [0; N];
        (0..draws).for_each(|random| seen[draw(&answered, random).unwrap()] += 1);
        seen
    }

    #[test]
    fn the_nearest_is_chosen_and_equals_share() {
        assert_eq!(draw(&[], 0), None);
        assert_eq!(chosen([(50, 100), (20, 100), (23, 100)], 10), [0, 10, 0]);
        assert_eq!(chosen([(40, 100), (20, 100), (21, 100)], 400), [0, 200, 200]);
    }

    #[test]
    fn what_is_about_as_near_is_not_nearer() {
        assert!(!is_clearly_nearer(20 * MS, 22 * MS) && !is_clearly_nearer(MS / 2, 2 * MS));
        assert!(!is_clearly_nearer(100 * MS, 110 * MS) && !is_clearly_nearer(20 * MS, 20 * MS));
        assert!(is_clearly_nearer(20 * MS, 23 * MS) && is_clearly_nearer(100 * MS, 111 * MS));
        assert!(!is_clearly_nearer(23 * MS, 20 * MS));
    }

    #[test]
    fn of_those_about_as_near_twice_the_weight_is_taken_twice_as_often() {
        assert_eq!(chosen([(20, 100), (21, 50), (90, 65_535)], 450), [300, 150, 0]);
    }

    #[test]
    fn what_weighs_nothing_is_for_want_of_others() {
        assert_eq!(chosen([(20, 0), (90, 1)], 10), [0, 10]);
        assert_eq!(chosen([(20, 0), (21, 0), (90, 0)], 10), [5, 5, 0]);
        assert_eq!(chosen([(20, 0), (21, u32::MAX), (20, u32::MAX)], 10)[0], 0);
    }

    #[test]
    fn an_error_names_every_failure_and_the_most_telling_reason() {
        let error = |reason, what: &str| Error::new(reason, Stage::Relay, what);
        let errors = vec![
            error(Reason::RelayUnreachable, "udp: silence"),
            error(Reason::RelayRefused, "tcp: 401"),
            error(Reason::RelayUnreachable, "tls: silence"),
            error(Reason::RelayUnreachable, "tls: silence"),
        ];
        let told = most_telling(errors);
        assert_eq!((told.reason, told.detail.as_str()), (Reason::RelayRefused, "udp: silence; tcp: 401; tls: silence"));
        assert_eq!(most_telling(Vec::new()).reason, Reason::RelayUnreachable);
    }
}
