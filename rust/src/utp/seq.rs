//! Sequence numbers: 16 bits on the wire, 64 inside. Wrapping numbers have no order, so they are unwrapped on arrival
//! against a number known to be near, and everything inside compares plain integers.

/// A sequence number that does not wrap.
pub type Seq = u64;

/// The unwrapped form of a first sequence number: far enough from zero that "a little before the first" stays positive.
pub const fn first(wire: u16) -> Seq {
    (1 << 32) + wire as Seq
}

/// The sequence number nearest to `near` whose lower 16 bits are `wire`: right when they are less than 32,768 apart.
pub const fn unwrap(wire: u16, near: Seq) -> Seq {
    let ahead = wire.wrapping_sub(near as u16) as i16;
    near.wrapping_add_signed(ahead as i64)
}

/// The wire form.
pub const fn wire(seq: Seq) -> u16 {
    seq as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unwrapping_undoes_wrapping(near in first(0)..first(0) + 1_000_000, offset in -32_767i64..=32_767) {
            let seq = near.wrapping_add_signed(offset);
            prop_assert_eq!(unwrap(wire(seq), near), seq);
        }
    }

    #[test]
    fn crosses_the_wrap_both_ways() {
        let near = first(65_535);
        assert_eq!(unwrap(0, near), near + 1);
        assert_eq!(unwrap(65_534, near), near - 1);
        assert_eq!(unwrap(65_535, first(2)), first(2) - 3);
    }
}
