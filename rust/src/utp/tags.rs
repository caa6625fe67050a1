//! Tags: what shows that a packet comes from who holds the keys of its connection (docs/protocol.md section 3). Whoever cannot
//! see a connection's packets has to guess 64 bits to be heard on it, where ids and numbers alone are 16 bits each.

use std::fmt;

use aws_lc_rs::hmac;

use super::packet::{Header, Kind, Packet, Tag};

/// The keys of one connection's tags, one for each direction.
#[derive(Clone)]
pub struct TagKeys {
    send: SipKey,
    receive: SipKey,
}

impl TagKeys {
    /// From 32 bytes that only the two ends know: the first half is for what the dialler sends.
    pub fn new(secret: &[u8; 32], dialler: bool) -> Self {
        let (of_dialler, of_acceptor) = secret.split_at(16);
        let (own, peers) = if dialler { (of_dialler, of_acceptor) } else { (of_acceptor, of_dialler) };
        Self { send: SipKey::new(own), receive: SipKey::new(peers) }
    }

    /// The tag of a packet of ours.
    pub(super) fn sign(&self, header: &Header) -> Tag {
        self.send.tag(header)
    }

    pub(super) fn verify(&self, header: &Header, tag: Tag) -> bool {
        same(self.receive.tag(header), tag)
    }

    /// The tag of the packet of ours that a RESET answers, of whichever kind that was: the RESET repeats what the tag covers.
    fn answered_by(&self, reset: &Header) -> [Tag; 4] {
        [Kind::Data, Kind::State, Kind::Fin, Kind::Syn].map(|kind| self.send.tag(&answered(reset, kind)))
    }
}

impl fmt::Debug for TagKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TagKeys")
    }
}

/// How far the two ends have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    None,
    /// With keys that follow from one of their pings'.
    Pings,
    /// With the keys of their TLS session.
    Tls,
}

/// What a connection knows about tags.
#[derive(Debug, Default)]
pub(super) struct Tags {
    pings: Option<TagKeys>,
    tls: Option<TagKeys>,
    /// What the peer takes: ours have such tags from now on.
    sending: Stage,
    /// What the peer's packets have: what has less is not the peer's.
    required: Stage,
}

/// What a packet's tag says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nothing: this connection has no tags, or not yet.
    Open,
    Genuine,
    /// It is not the peer's.
    Foreign,
}

impl Tags {
    /// Keys that follow from a key of the two nodes, which the peer may have. `knows`: it has shown that it has, and takes tags.
    pub(super) fn set_first(&mut self, keys: TagKeys, knows: bool) {
        self.pings = Some(keys);
        self.sending = if knows { Stage::Pings } else { Stage::None };
    }

    /// The keys of TLS, before the peer can have used them. Ours are used when the peer's were, or at [`Tags::start`].
    pub(super) fn set(&mut self, keys: TagKeys) {
        self.tls = Some(keys);
    }

    /// The peer has the keys of TLS.
    pub(super) fn start(&mut self) {
        if self.tls.is_some() {
            self.sending = Stage::Tls;
        }
    }

    pub(super) fn are_known(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn stage(&self) -> impl PartialEq {
        self.sending
    }

    pub(super) fn are_sent(&self) -> bool {
        self.sending > Stage::None
    }

    fn current(&self) -> Option<&TagKeys> {
        match self.sending {
            Stage::None => None,
            Stage::Pings => self.pings.as_ref(),
            Stage::Tls => self.tls.as_ref(),
        }
    }

    pub(super) fn sign(&self, header: &Header) -> Option<Tag> {
        self.current().map(|keys| keys.sign(header))
    }

    /// Those of packets whose sender does not know yet whether the peer takes them.
    fn hopeful(&self) -> Option<&TagKeys> {
        self.current().or(self.pings.as_ref())
    }

    /// The tag of our SYN, with which we say that we take tags, or of a RESET before there is an answer.
    pub(super) fn sign_first(&self, header: &Header) -> Option<Tag> {
        self.hopeful().map(|keys| keys.sign(header))
    }

    /// `early`: it shows what the packet showed that made the connection.
    pub(super) fn judge(&mut self, packet: &Packet<'_>, early: bool) -> Claim {
        let fits = |keys: &Option<TagKeys>| {
            keys.as_ref().is_some_and(|keys| packet.tag.is_some_and(|tag| keys.verify(&packet.header, tag)))
        };
        let shown = match () {
            () if fits(&self.tls) => Stage::Tls,
            // what followed from older keys may still be under way, until the peer has those of TLS
            () if self.required < Stage::Tls && fits(&self.pings) => Stage::Pings,
            () if self.required == Stage::None || (self.required == Stage::Pings && early) => return Claim::Open,
            () => return Claim::Foreign,
        };
        self.sending = self.sending.max(shown);
        self.required = self.required.max(shown);
        Claim::Genuine
    }

    /// A RESET that repeats the tag of a packet of ours: whoever sent it has received that.
    pub(super) fn is_answer(&self, reset: &Packet<'_>) -> bool {
        let (Some(keys), Some(tag)) = (self.hopeful(), reset.tag) else { return false };
        keys.answered_by(&reset.header).iter().any(|own| same(*own, tag))
    }

    /// The same, signed with a key that the two nodes share: by a peer that does not know the connection any more.
    pub(super) fn is_signed_answer(&self, reset: &Packet<'_>, shared: &[u8; 32]) -> bool {
        let (Some(keys), Some(tag)) = (self.hopeful(), reset.tag) else { return false };
        keys.answered_by(&reset.header).iter().any(|own| same(signed_reset(shared, &reset.header, *own), tag))
    }
}

/// The RESET that answers a packet for no connection: it repeats what the tag of that packet covers, so that its sender can
/// compute it.
pub(super) fn reset_for(packet: &Header) -> Header {
    Header {
        kind: Kind::Reset,
        connection_id: packet.connection_id,
        timestamp: 0,
        timestamp_difference: packet.timestamp,
        window: packet.window,
        seq: packet.ack,
        ack: packet.seq,
    }
}

fn answered(reset: &Header, kind: Kind) -> Header {
    Header {
        kind,
        connection_id: reset.connection_id,
        timestamp: reset.timestamp_difference,
        timestamp_difference: 0,
        window: reset.window,
        seq: reset.ack,
        ack: reset.seq,
    }
}

/// The tag of a RESET under a key that two nodes share; `answered`: the tag of the packet that it answers. No two packets have
/// that in common, so such a RESET is good for one connection only.
pub(super) fn signed_reset(shared: &[u8; 32], reset: &Header, answered: Tag) -> Tag {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, shared));
    context.update(b"keynet-reset-1");
    context.update(&reset.encode(0));
    context.update(&answered);
    let mut tag = [0; 8];
    tag.copy_from_slice(&context.sign().as_ref()[..8]);
    tag
}

/// One comparison of two registers: how long it takes tells nothing.
fn same(a: Tag, b: Tag) -> bool {
    u64::from_ne_bytes(a) == u64::from_ne_bytes(b)
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012): a MAC of 64 bits made for short inputs. HMAC-SHA256 takes ten times as long, and
/// every packet has one to make and one to check.
#[derive(Clone)]
struct SipKey(u64, u64);

impl SipKey {
    fn new(bytes: &[u8]) -> Self {
        let (low, high) = bytes.split_at(8);
        Self(word(low), word(high))
    }

    /// Of the 15 bytes that decide what a packet does: its kind, id, numbers, timestamp and window. Not of the delay that it reports,
    /// which steers LEDBAT alone; nor of the payload, which TLS protects.
    fn tag(&self, header: &Header) -> Tag {
        let Header { kind, connection_id, seq, ack, timestamp, window, .. } = *header;
        let first = u64::from(kind as u8) | u64::from(connection_id) << 8 | u64::from(seq) << 24 | u64::from(ack) << 40;
        // the last of the first eight bytes and the seven of the second word are timestamp and window; then the length
        let first = first | u64::from(timestamp) << 56;
        let second = u64::from(timestamp) >> 8 | u64::from(window) << 24 | LENGTH << 56;
        self.hash(first, second).to_le_bytes()
    }

    /// Of two words, the second with the length of the input in its highest byte.
    fn hash(&self, first: u64, second: u64) -> u64 {
        let mut state = [
            self.0 ^ 0x736f_6d65_7073_6575,
            self.1 ^ 0x646f_7261_6e64_6f6d,
            self.0 ^ 0x6c79_6765_6e65_7261,
            self.1 ^ 0x7465_6462_7974_6573,
        ];
        for word in [first, second] {
            state[3] ^= word;
            rounds::<2>(&mut state);
            state[0] ^= word;
        }
        state[2] ^= 0xff;
        rounds::<4>(&mut state);
        state[0] ^ state[1] ^ state[2] ^ state[3]
    }
}

#[inline]
fn rounds<const N: usize>([a, b, c, d]: &mut [u64; 4]) {
    for _ in 0..N {
        *a = a.wrapping_add(*b);
        *b = b.rotate_left(13) ^ *a;
        *a = a.rotate_left(32);
        *c = c.wrapping_add(*d);
        *d = d.rotate_left(16) ^ *c;
        *a = a.wrapping_add(*d);
        *d = d.rotate_left(21) ^ *a;
        *c = c.wrapping_add(*b);
        *b = b.rotate_left(17) ^ *c;
        *c = c.rotate_left(32);
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Bytes that a tag covers.
const LENGTH: u64 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Data,
            connection_id: 0x0201,
            timestamp: 0x0a09_0807,
            timestamp_difference: 7,
            window: 0x0e0d_0c0b,
            seq: 0x0403,
            ack: 0x0605,
        }
    }

    /// The vector in appendix A of the paper: key 00 to 0f, input 00 to 0e.
    #[test]
    fn the_hash_is_that_of_the_paper() {
        let key = SipKey::new(&(0..16).collect::<Vec<u8>>());
        assert_eq!(key.hash(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908), 0xa129_ca61_49be_45e5);
        // the header above is those bytes
        assert_eq!(u64::from_le_bytes(key.tag(&header())), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn a_tag_covers_all_that_decides_what_a_packet_does() {
        let secret: [u8; 32] = std::array::from_fn(|n| n as u8);
        let (dialler, acceptor) = (TagKeys::new(&secret, true), TagKeys::new(&secret, false));
        let signed = dialler.sign(&header());
        assert!(acceptor.verify(&header(), signed));
        assert!(!dialler.verify(&header(), signed), "a packet that comes back to its sender is not the peer's");
        let changed = [
            Header { kind: Kind::Fin, ..header() },
            Header { connection_id: 0x0202, ..header() },
            Header { seq: 0x0404, ..header() },
            Header { ack: 0x0606, ..header() },
            Header { timestamp: 0x0a09_0808, ..header() },
            Header { timestamp: 0x0b09_0807, ..header() },
            Header { window: 0x0e0d_0c0c, ..header() },
            Header { window: 0x0f0d_0c0b, ..header() },
        ];
        for changed in changed {
            assert!(!acceptor.verify(&changed, signed), "{changed:?}");
        }
        assert!(acceptor.verify(&Header { timestamp_difference: 8, ..header() }, signed));
    }

    #[test]
    fn a_reset_for_nobody_names_the_packet_that_it_answers() {
        let keys = TagKeys::new(&[3; 32], true);
        let mut tags = Tags::default();
        tags.set(keys.clone());
        tags.start();
        for kind in [Kind::Data, Kind::State, Kind::Fin] {
            let sent = Header { kind, ..header() };
            let reset = reset_for(&sent);
            let packet = |tag| Packet { header: reset, tag: Some(tag), ..Packet::bare(reset) };
            assert!(tags.is_answer(&packet(keys.sign(&sent))));
            assert!(!tags.is_answer(&packet([7; 8])));
            let signed = signed_reset(&[1; 32], &reset, keys.sign(&sent));
            assert!(tags.is_signed_answer(&packet(signed), &[1; 32]));
            assert!(!tags.is_signed_answer(&packet(signed), &[2; 32]));
            assert!(!tags.is_signed_answer(&packet(keys.sign(&sent)), &[1; 32]));
        }
    }
}
