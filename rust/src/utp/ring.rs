//! A byte ring addressed by stream offsets, one contiguous power of two in memory, grown on demand and given back when idle.

use std::fmt;

/// Bytes `head..tail` of a stream. Offsets never wrap (2^64 bytes).
#[derive(Default)]
pub struct Ring {
    memory: Box<[u8]>,
    head: u64,
    tail: u64,
}

/// Without the bytes: they are the user's, and there are millions.
impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({}..{}, memory {})", self.head, self.tail, self.memory.len())
    }
}

impl Ring {
    /// Offset of the first byte held.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Offset after the last byte held.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    pub fn len(&self) -> usize {
        (self.tail - self.head) as usize
    }

    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Bytes of memory held, used or not.
    pub fn memory(&self) -> usize {
        self.memory.len()
    }

    /// Appends as much of `data` as fits under `limit` bytes held, and says how much that was.
    pub fn write(&mut self, data: &[u8], limit: usize) -> usize {
        let count = data.len().min(limit.saturating_sub(self.len()));
        self.reserve(count);
        let (first, second) = self.spans(self.tail, count);
        let (front, back) = data[..count].split_at(first.len());
        self.memory[first].copy_from_slice(front);
        self.memory[second].copy_from_slice(back);
        self.tail += count as u64;
        count
    }

    /// Takes bytes from the front into `out`, as many as there are.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len());
        let (first, second) = self.spans(self.head, count);
        let (front, back) = out[..count].split_at_mut(first.len());
        front.copy_from_slice(&self.memory[first]);
        back.copy_from_slice(&self.memory[second]);
        self.head += count as u64;
        count
    }

    /// Appends `count` bytes from `offset` to `out` and keeps them. The range must be held.
    pub fn copy_to(&self, offset: u64, count: usize, out: &mut Vec<u8>) {
        debug_assert!(offset >= self.head && offset + count as u64 <= self.tail);
        let (first, second) = self.spans(offset, count);
        out.extend_from_slice(&self.memory[first]);
        out.extend_from_slice(&self.memory[second]);
    }

    /// Forgets everything before `offset`, which lies within what is held.
    pub fn release_to(&mut self, offset: u64) {
        debug_assert!(offset >= self.head && offset <= self.tail);
        self.head = offset;
    }

    /// Gives the memory back when nothing is held: for connections that went idle.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            self.memory = Box::default();
        }
    }

    fn reserve(&mut self, more: usize) {
        let wanted = self.len() + more;
        if wanted <= self.memory.len() {
            return;
        }
        let size = wanted.next_power_of_two().max(MIN_SIZE);
        let mut grown = vec![0u8; size].into_boxed_slice();
        let (first, second) = self.spans(self.head, self.len());
        // the bytes keep their offsets, so they land where the new mask puts them
        for (offset, span) in [(self.head, first.clone()), (self.head + first.len() as u64, second)] {
            let bytes = &self.memory[span];
            let start = offset as usize & (size - 1);
            let until_end = bytes.len().min(size - start);
            grown[start..start + until_end].copy_from_slice(&bytes[..until_end]);
            grown[..bytes.len() - until_end].copy_from_slice(&bytes[until_end..]);
        }
        self.memory = grown;
    }

    /// Where `count` bytes from `offset` lie in memory: up to the end of it, and from its start.
    fn spans(&self, offset: u64, count: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        if count == 0 {
            return (0..0, 0..0);
        }
        let start = offset as usize & (self.memory.len() - 1);
        let until_end = count.min(self.memory.len() - start);
        (start..start + until_end, 0..count - until_end)
    }
}

/// The smallest memory worth having: one GSO batch needs 64 KiB, an idle gRPC channel far less.
const MIN_SIZE: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_like_a_queue(steps in prop::collection::vec((0u8..4, 0usize..9_000), 1..60)) {
            let mut ring = Ring::default();
            let mut model = VecDeque::<u8>::new();
            let mut next = 0u8;
            for (kind, count) in steps {
                match kind {
                    0 | 1 => {
                        let data: Vec<u8> = (0..count).map(|_| { next = next.wrapping_add(1); next }).collect();
                        let written = ring.write(&data, 20_000);
                        prop_assert_eq!(written, count.min(20_000 - model.len()));
                        model.extend(&data[..written]);
                    }
                    2 => {
                        let mut out = vec![0; count];
                        let read = ring.read(&mut out);
                        prop_assert_eq!(&out[..read], model.drain(..count.min(model.len())).collect::<Vec<_>>());
                    }
                    _ => ring.shrink(),
                }
                prop_assert_eq!(ring.len(), model.len());
                let half = ring.len() / 2;
                let mut copy = Vec::new();
                ring.copy_to(ring.head() + half as u64, ring.len() - half, &mut copy);
                prop_assert_eq!(copy, model.iter().skip(half).copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn an_idle_ring_holds_no_memory() {
        let mut ring = Ring::default();
        ring.write(&[1; 100], 1000);
        ring.read(&mut [0; 100]);
        ring.shrink();
        assert_eq!((ring.memory(), ring.head(), ring.tail()), (0, 100, 100));
    }
}
