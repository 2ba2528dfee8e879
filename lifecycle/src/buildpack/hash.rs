//! The names under which the platform lays buildpacks down: the 64-bit xxHash of the buildpack's key, formerly its MD5.

const PRIMES: [u64; 5] = [
    0x9E37_79B1_85EB_CA87,
    0xC2B2_AE3D_27D4_EB4F,
    0x1656_67B1_9E37_79F9,
    0x85EB_CA77_C2B2_AE63,
    0x27D4_EB2F_1656_67C5,
];

/// The directory name of a buildpack.
pub fn directory_name(key: &str) -> String {
    format!("{:016x}", xxh64(key.as_bytes()))
}

/// The directory name older platforms use.
pub fn legacy_directory_name(key: &str) -> String {
    format!("{:x}", md5::compute(key))
}

/// XXH64 with seed 0, as its specification gives it.
fn xxh64(input: &[u8]) -> u64 {
    let [p1, p2, _, p4, p5] = PRIMES;
    let mut stripes = input.chunks_exact(32);
    let mut hash = if input.len() < 32 {
        p5
    } else {
        let mut lanes = [p1.wrapping_add(p2), p2, 0, 0u64.wrapping_sub(p1)];
        for stripe in &mut stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
                *lane = round(*lane, little_endian(word));
            }
        }
        let turned = [1, 7, 12, 18];
        let sum = lanes.iter().zip(turned).map(|(lane, by)| lane.rotate_left(by));
        let folded = sum.fold(0, u64::wrapping_add);
        lanes.iter().fold(folded, |hash, lane| (hash ^ round(0, *lane)).wrapping_mul(p1).wrapping_add(p4))
    };
    hash = hash.wrapping_add(input.len() as u64);
    avalanche(tail(hash, stripes.remainder()))
}

/// The last 31 bytes at most: words of eight, one of four, single bytes.
fn tail(mut hash: u64, rest: &[u8]) -> u64 {
    let [p1, p2, p3, p4, p5] = PRIMES;
    let mut words = rest.chunks_exact(8);
    for word in &mut words {
        hash ^= round(0, little_endian(word));
        hash = hash.rotate_left(27).wrapping_mul(p1).wrapping_add(p4);
    }
    let mut halves = words.remainder().chunks_exact(4);
    for half in &mut halves {
        hash ^= little_endian(half).wrapping_mul(p1);
        hash = hash.rotate_left(23).wrapping_mul(p2).wrapping_add(p3);
    }
    for byte in halves.remainder() {
        hash ^= u64::from(*byte).wrapping_mul(p5);
        hash = hash.rotate_left(11).wrapping_mul(p1);
    }
    hash
}

fn avalanche(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(PRIMES[1]);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(PRIMES[2]);
    hash ^ (hash >> 32)
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0])
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_the_platform_uses() {
        // The reference values of the xxHash and MD5 specifications.
        assert_eq!(directory_name(""), "ef46db3751d8e999");
        assert_eq!(directory_name("a"), "d24ec4f1a98c6e5b");
        assert_eq!(directory_name("abc"), "44bc2cf5ad770999");
        assert_eq!(directory_name("Nobody inspects the spammish repetition"), "fbcea83c8a378bf1");
        assert_eq!(legacy_directory_name("abc"), "900150983cd24fb0d6963f7d28e17f72");
    }
}
