//! What the defaults have to hold.

use super::*;

#[test]
fn punching_doubles_and_then_goes_on_once_a_second() {
    assert_eq!(punch_moment(0), Duration::ZERO);
    assert_eq!(punch_moment(7), Duration::from_millis(2133));
    assert_eq!(punch_moment(9), Duration::from_millis(4133));
    for n in 0..20 {
        assert!(punch_moment(n) < punch_moment(n + 1));
    }
}

#[test]
fn a_minute_of_silence_is_waited_out() {
    assert!(UtpConfig::default().patience >= Duration::from_secs(65));
}

#[test]
fn a_dead_peer_is_noticed_within_ten_seconds() {
    let path = PathConfig::default();
    assert!(path.ping_active + path.lost_after <= Duration::from_secs(10));
}
