//! Seeded rows of the kinds that break quantizers. Only IEEE operations that every platform rounds alike.
#![allow(dead_code, unreachable_pub, missing_docs)]

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 16_777_216.0
    }

    /// Nearly normal: the sum of twelve uniforms.
    pub fn normal(&mut self) -> f32 {
        let mut sum = 0;
        for _ in 0..3 {
            let bits = self.bits();
            sum += (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        }
        sum as f32 / 65536.0 - 6.0
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
}

/// What the rows are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    HeavyTailed,
    SparseZeros,
    Outliers,
    Bf16Rounded,
    Denormal,
    TinyRange,
    Positive,
    Constant,
    NearInfinity,
    Alternating,
    Halves,
    EveryScale,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 13] = [
        Kind::Normal,
        Kind::HeavyTailed,
        Kind::SparseZeros,
        Kind::Outliers,
        Kind::Bf16Rounded,
        Kind::Denormal,
        Kind::TinyRange,
        Kind::Positive,
        Kind::Constant,
        Kind::NearInfinity,
        Kind::Alternating,
        Kind::Halves,
        Kind::EveryScale,
    ];
}

/// `n` elements of a kind.
pub fn rows(kind: Kind, seed: u64, n: usize) -> Vec<f32> {
    let mut r = Random(seed ^ (kind as u64) << 56);
    let level = r.normal();
    let mut out = Vec::with_capacity(n);
    let mut scale = 1.0f32;
    for i in 0..n {
        if i % 32 == 0 {
            // 2^-140 .. 2^100, now and then the same for long.
            let exponent = r.below(240) as i64 - 140;
            if r.below(3) > 0 {
                scale = f64::from_bits(((1023 + exponent) as u64) << 52) as f32;
            }
        }
        let v = match kind {
            Kind::Normal => r.normal() * 0.02,
            Kind::HeavyTailed => r.normal() * 0.01 / (r.uniform() + 0.001),
            Kind::SparseZeros if r.below(10) < 7 || i / 64 % 3 == 0 => [0.0, -0.0][r.below(2)],
            Kind::SparseZeros => r.normal(),
            Kind::Outliers if r.below(200) == 0 => r.normal() * 50.0,
            Kind::Outliers => r.normal() * 0.02,
            Kind::Bf16Rounded => f32::from_bits((r.normal() * 0.03).to_bits() & 0xffff_0000),
            Kind::Denormal => f32::from_bits(r.bits() as u32 & 0x807f_ffff >> r.below(24)),
            Kind::TinyRange => level + r.below(4) as f32 * f32::EPSILON * level,
            Kind::Positive => r.normal().abs() + 0.5 * r.below(2) as f32,
            Kind::Constant => level * (i / 96 % 4) as f32,
            Kind::NearInfinity => r.normal() * (1u64 << r.below(60)) as f32 * 1.0e19,
            Kind::Alternating => [1.0, -1.0][i % 2] * (0.5 + (i % 7) as f32 * 0.125),
            Kind::Halves => (r.below(257) as f32 - 128.0) * 0.5,
            Kind::EveryScale => r.normal() * scale,
        };
        out.push(if v.is_finite() { v } else { f32::MAX });
    }
    out
}

/// A weight per column: positive, with zeros, over several orders of magnitude.
pub fn imatrix(seed: u64, columns: usize) -> Vec<f32> {
    let mut r = Random(seed.wrapping_mul(0x1234_5678_9abc_def1));
    let zeros = r.below(4);
    (0..columns)
        .map(|i| match (zeros, r.below(8)) {
            (0, 0..4) => 0.0,
            (1, _) if i / 32 % 3 == 1 => 0.0,
            (2, 0) => r.uniform() * 1.0e4,
            _ => r.uniform() * r.uniform() * r.uniform(),
        })
        .collect()
}
