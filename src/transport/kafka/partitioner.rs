//! Which partition a message goes to, computed here rather than in librdkafka, so that it is known before the
//! message is handed over.
//!
//! The results are librdkafka's own, bit for bit (`rd_kafka_msg_partitioner_*` in `rdkafka_msg.c`): an
//! application that changes over from a bare librdkafka client keeps its keys where they are. Assumes the number
//! of partitions is at least one.

use std::time::{Duration, Instant};

use crate::message::MessageId;

/// How keys map to partitions: librdkafka's `partitioner` option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Partitioner {
    /// Any partition, whatever the key.
    Random,
    /// CRC-32 of the key.
    Consistent,
    /// The same; an empty key counts as none. librdkafka's default.
    #[default]
    ConsistentRandom,
    /// The hash of the Java client.
    Murmur2,
    /// The same; a message without a key is drawn.
    Murmur2Random,
    /// The hash of Sarama, the Go client.
    Fnv1a,
    /// The same; a message without a key is drawn.
    Fnv1aRandom,
}

impl Partitioner {
    /// Reads the option's value.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "random" => Self::Random,
            "consistent" => Self::Consistent,
            "consistent_random" => Self::ConsistentRandom,
            "murmur2" => Self::Murmur2,
            "murmur2_random" => Self::Murmur2Random,
            "fnv1a" => Self::Fnv1a,
            "fnv1a_random" => Self::Fnv1aRandom,
            _ => return None,
        })
    }

    /// The partition the key alone decides, or `None` where it is drawn.
    pub(super) fn keyed(self, key: Option<&[u8]>, count: i32) -> Option<i32> {
        let bytes = key.unwrap_or_default();
        let hash = match self {
            Self::Random => return None,
            Self::ConsistentRandom if bytes.is_empty() => return None,
            Self::Murmur2Random | Self::Fnv1aRandom if key.is_none() => return None,
            Self::Consistent | Self::ConsistentRandom => crc32fast::hash(bytes),
            Self::Murmur2 | Self::Murmur2Random => murmur2(bytes) & 0x7fff_ffff,
            Self::Fnv1a | Self::Fnv1aRandom => fnv1a(bytes),
        };
        Some((hash % count.unsigned_abs().max(1)) as i32)
    }
}

/// The partition that messages without a key go to at the moment.
#[derive(Debug, Default)]
pub(super) struct Sticky(Option<(i32, Instant)>);

impl Sticky {
    /// The current partition of `count`, drawn anew when its time has passed or it is not `usable` any more.
    pub(super) fn choose(&mut self, now: Instant, linger: Duration, count: i32, usable: impl Fn(i32) -> bool) -> i32 {
        if let Some((partition, until)) = self.0
            && now < until
            && (0..count).contains(&partition)
            && usable(partition)
        {
            return partition;
        }
        let partition = next_usable(fastrand::i32(0..count.max(1)), count, usable);
        self.0 = Some((partition, now + linger));
        partition
    }
}

/// The partition of a message that is to go anywhere: the same at each attempt, as long as it is usable.
pub(super) fn scattered(id: MessageId, count: i32, usable: impl Fn(i32) -> bool) -> i32 {
    let first = (crc32fast::hash(&id.to_bytes()) % count.unsigned_abs().max(1)) as i32;
    next_usable(first, count, usable)
}

/// `first`, or the next one that is usable; if none is, `first` stands and the message waits there.
fn next_usable(first: i32, count: i32, usable: impl Fn(i32) -> bool) -> i32 {
    (0..count).map(|step| (first + step) % count).find(|&partition| usable(partition)).unwrap_or(first)
}

/// MurmurHash2 as the Java client seeds it.
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// FNV-1a with Sarama's absolute value.
fn fnv1a(key: &[u8]) -> u32 {
    let hash = key.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash as i32).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of librdkafka's own unit tests (`rdmurmur2.c`, `rdfnv1a.c`).
    #[test]
    fn hashes_are_librdkafkas() {
        let murmur: [(&[u8], u32); 4] =
            [(b"kafka", 0xd067cf64), (b"giberish123456789", 0x8f552b0c), (b"1234", 0x9fc97b14), (b"", 0x106e08d9)];
        for (key, hash) in murmur {
            assert_eq!(murmur2(key), hash, "murmur2 of {key:?}");
        }
        let fnv: [(&[u8], u32); 4] =
            [(b"kafka", 0xd33c4e1), (b"giberish123456789", 0x77a58295), (b"1234", 0x23bdd03), (b"", 0x7ee3623b)];
        for (key, hash) in fnv {
            assert_eq!(fnv1a(key), hash, "fnv1a of {key:?}");
        }
    }

    #[test]
    fn a_missing_or_empty_key_is_drawn_only_where_librdkafka_draws() {
        for name in ["consistent", "consistent_random", "murmur2", "murmur2_random", "fnv1a", "fnv1a_random"] {
            let partitioner = Partitioner::parse(name).expect(name);
            assert_eq!(partitioner.keyed(None, 7).is_none(), name.ends_with("_random"), "{name}");
            assert_eq!(partitioner.keyed(Some(b""), 7).is_none(), name == "consistent_random", "{name}");
            assert!(partitioner.keyed(Some(b"k"), 7).is_some_and(|p| (0..7).contains(&p)), "{name}");
        }
        assert_eq!(Partitioner::Random.keyed(Some(b"k"), 7), None);
        assert_eq!(Partitioner::Consistent.keyed(None, 7), Some(0), "CRC-32 of nothing is 0");
        assert_eq!(Partitioner::parse("round_robin"), None);
    }

    #[test]
    fn keyless_messages_stay_together_and_avoid_what_is_not_usable() {
        let mut sticky = Sticky::default();
        let now = Instant::now();
        for _ in 0..100 {
            assert_eq!(sticky.choose(now, Duration::ZERO, 3, |partition| partition == 1), 1);
        }
        let first = sticky.choose(now, Duration::from_secs(1), 8, |_| true);
        assert!((0..100).all(|_| sticky.choose(now, Duration::from_secs(1), 8, |_| true) == first), "sticky");
        assert_ne!(sticky.choose(now, Duration::from_secs(1), 8, |partition| partition != first), first);
    }

    #[test]
    fn scattered_messages_reach_every_partition_and_always_the_same() {
        let places: Vec<_> = (0..1_000).map(|number| scattered(MessageId::new(7, number), 5, |_| true)).collect();
        for partition in 0..5 {
            let count = places.iter().filter(|&&place| place == partition).count();
            assert!((100..=300).contains(&count), "{count} of 1,000 on partition {partition} of 5");
        }
        assert!((0..1_000).all(|number| scattered(MessageId::new(7, number), 5, |_| true) == places[number as usize]));
        assert_eq!(scattered(MessageId::new(7, 1), 5, |partition| partition == 4), 4);
    }
}
