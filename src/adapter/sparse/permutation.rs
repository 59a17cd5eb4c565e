//! The first places of PyTorch's `randperm` on a CPU: a Fisher–Yates shuffle driven by MT19937 (Matsumoto and
//! Nishimura, 1998), simulated with only the places that were touched.

use std::collections::HashMap;

const STATE: usize = 624;
const SHIFT: usize = 397;

/// From this length on PyTorch shuffles with 64-bit numbers and in another order.
const LONG: u64 = u32::MAX as u64 / 20;

/// The Mersenne Twister, as PyTorch seeds it.
struct Mt19937 {
    state: [u32; STATE],
    at: usize,
}

impl Mt19937 {
    fn new(seed: u64) -> Self {
        let mut state = [seed as u32; STATE];
        for i in 1..STATE {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Mt19937 { state, at: STATE }
    }

    fn next(&mut self) -> u32 {
        if self.at == STATE {
            for i in 0..STATE {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
                let mixed = self.state[(i + SHIFT) % STATE] ^ (y >> 1);
                self.state[i] = if y & 1 == 1 { mixed ^ 0x9908_b0df } else { mixed };
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }
}

/// The first `count` elements of `torch.randperm(n, generator=torch.Generator().manual_seed(seed))`; `None` for a
/// length that PyTorch shuffles in another way.
pub(super) fn first(n: u64, count: usize, seed: u64) -> Option<Vec<u64>> {
    if n >= LONG {
        return None;
    }
    let mut random = Mt19937::new(seed);
    let mut moved: HashMap<u64, u64> = HashMap::new();
    let mut out = Vec::with_capacity(count);
    for i in 0..n.min(count as u64) {
        let here = moved.get(&i).copied().unwrap_or(i);
        if i + 1 == n {
            out.push(here);
            break;
        }
        let other = i + u64::from(random.next()) % (n - i);
        out.push(moved.get(&other).copied().unwrap_or(other));
        moved.insert(other, here);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_torch_2_15() {
        assert_eq!(first(20, 10, 777).unwrap(), [15, 0, 9, 11, 3, 7, 5, 1, 19, 13]);
        assert_eq!(first(1000, 10, 777).unwrap(), [735, 819, 201, 799, 435, 497, 175, 590, 519, 684]);
        assert_eq!(first(6144, 10, 5).unwrap(), [2915, 6018, 1241, 1104, 1870, 3772, 1744, 3946, 1912, 3478]);
        let mut all = first(50, 50, 1).unwrap();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
