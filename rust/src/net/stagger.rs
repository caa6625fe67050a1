//! One after the other, without waiting long for each: how the addresses of a name are tried, and the ways to a relay (RFC 8305, happy
//! eyeballs). What is dead costs a quarter of a second and not a time-out.

use std::future::{poll_fn, Future};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{sleep_until, Instant};

/// Begins each attempt a little after the one before, or as soon as one has failed; the first that succeeds ends the others.
///
/// Errors: those of all attempts, in the order in which they failed.
pub async fn first_to_succeed<T, E, F>(attempts: impl IntoIterator<Item = F>) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = attempts.into_iter().peekable();
    let (mut running, mut errors) = (Vec::<Pin<Box<F>>>::new(), Vec::new());
    loop {
        running.extend(waiting.next().map(Box::pin));
        if running.is_empty() {
            return Err(errors);
        }
        let next = Instant::now() + STEP;
        tokio::select! {
            done = first_done(&mut running) => match done {
                Ok(value) => return Ok(value),
                Err(error) => errors.push(error),
            },
            () = sleep_until(next), if waiting.peek().is_some() => {}
        }
    }
}

/// The result of the first that has one; it is taken out.
async fn first_done<F: Future>(running: &mut Vec<Pin<Box<F>>>) -> F::Output {
    poll_fn(|cx| {
        for n in 0..running.len() {
            let Some(one) = running.get_mut(n) else { break };
            if let Poll::Ready(output) = one.as_mut().poll(cx) {
                drop(running.remove(n));
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}

/// The families take turns, the one that the resolver prefers first (RFC 8305 section 4); `most` at most.
pub fn families_in_turn(addresses: impl IntoIterator<Item = SocketAddr>, most: usize) -> Vec<SocketAddr> {
    let addresses: Vec<SocketAddr> = addresses.into_iter().collect();
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|one| one.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::new();
    loop {
        let pair: Vec<_> = first.next().into_iter().chain(second.next()).collect();
        if pair.is_empty() || ordered.len() >= most {
            ordered.truncate(most);
            return ordered;
        }
        ordered.extend(pair);
    }
}

/// RFC 8305 section 5: the recommended delay between connection attempts.
const STEP: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers after so long with its number, or fails.
    async fn attempt(
        n: usize,
        after: Duration,
        good: bool,
        begun: &std::sync::Mutex<Vec<usize>>,
    ) -> Result<usize, usize> {
        begun.lock().unwrap().push(n);
        tokio::time::sleep(after).await;
        if good {
            Ok(n)
        } else {
            Err(n)
        }
    }

    const NEVER: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn one_that_never_answers_costs_a_step_and_one_that_fails_nothing() {
        let begun = std::sync::Mutex::default();
        let (dead, refused) = (attempt(0, NEVER, true, &begun), attempt(1, Duration::ZERO, false, &begun));
        let good = attempt(2, Duration::from_millis(10), true, &begun);
        let late = attempt(3, Duration::ZERO, true, &begun);
        // of one type, as the attempts at the addresses of a name are
        type Attempt<'a> = Pin<Box<dyn Future<Output = Result<usize, usize>> + 'a>>;
        let attempts: Vec<Attempt> = vec![Box::pin(dead), Box::pin(refused), Box::pin(good), Box::pin(late)];
        assert_eq!(first_to_succeed(attempts).await, Ok(2));
        assert_eq!(*begun.lock().unwrap(), [0, 1, 2], "what is not needed is not begun");
    }

    #[tokio::test]
    async fn one_that_is_slow_may_still_win() {
        let begun = std::sync::Mutex::default();
        let attempts = [attempt(0, STEP * 3, true, &begun), attempt(1, NEVER, true, &begun)];
        assert_eq!(first_to_succeed(attempts).await, Ok(0));
        assert_eq!(*begun.lock().unwrap(), [0, 1]);
    }

    #[tokio::test]
    async fn when_all_fail_every_error_is_told() {
        let begun = std::sync::Mutex::default();
        let attempts = [attempt(0, STEP * 2, false, &begun), attempt(1, Duration::ZERO, false, &begun)];
        assert_eq!(first_to_succeed(attempts).await, Err(vec![1, 0]));
        assert_eq!(first_to_succeed(Vec::<std::future::Ready<Result<(), ()>>>::new()).await, Err(vec![]));
    }

    #[test]
    fn families_take_turns() {
        let at = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = at(&["[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "192.0.2.1:1", "192.0.2.2:1"]);
        let all = families_in_turn(found.clone(), 9);
        let expected = at(&["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "192.0.2.2:1", "[2001:db8::3]:1"]);
        assert_eq!(all, expected);
        assert_eq!(families_in_turn(found, 3), expected[..3]);
        assert_eq!(families_in_turn([], 3), []);
    }
}
