//! The codebooks of the grid types (IQ1, IQ2, IQ3), the values of the 4-bit ones, and MXFP4's exponents.
//!
//! The numbers are data: `quant-tables/*.txt`, each with its origin, decoded once. What ggml computes at start
//! (`iq2xs_init_impl`, `iq3xs_init_impl` in `ggml-quants.c`) is computed here too: a grid point, or its list of
//! neighbours, for every cell, a cell being the nearest odd integer of each coordinate.

use std::sync::OnceLock;

/// What is chosen for a group: the point's number in the low half, its packed levels in the high one.
pub(super) type Word = i32;
/// Set where the rounded magnitudes were no point.
pub(super) const OFF_GRID: Word = 1 << 15;
/// Set where no candidate led by enough.
pub(super) const UNCLEAR: Word = 1 << 14;
/// The point's number.
pub(super) const POINT: Word = UNCLEAR - 1;

/// A grid of points with `D` coordinates, each a level `l` that stands for `2l + 1` while searching.
pub(super) struct Codebook<const D: usize> {
    /// Levels that a rounded coordinate can take: 3 where it has two bits, 8 where it has three.
    pub(super) radix: usize,
    /// What a level stands for in a decoded value.
    pub(super) decode: Vec<i8>,
    /// The levels of every point.
    pub(super) points: Vec<[u8; D]>,
    cells: Vec<Cell>,
    /// Neighbours of all cells, each cell's in ggml's order: by distance, then by number; after them those that are
    /// leaders. Every list is filled up to a multiple of eight with its first entry.
    neighbours: Vec<Word>,
    /// What is chosen with each point: its number, and above that its levels, the first coordinate's in the lowest bits.
    pub(super) words: Vec<Word>,
    /// What the runs of a grid of four dimensions need, by cell.
    pub(super) heads: Vec<Head>,
    /// Whether leaders are told from other candidates. Where they are hardly fewer, all are leaders.
    pub(super) has_leaders: bool,
}

/// What a rounded vector falls on: a point where `len` is 0, otherwise candidates `neighbours[start..start + len]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    start: u32,
    /// How many candidates there are.
    pub(super) len: u16,
    /// The point's number where there are none; otherwise how many leaders.
    pub(super) point: u16,
}

impl Cell {
    /// How many leaders there are.
    #[inline(always)]
    pub(super) fn leaders(self) -> usize {
        // Without a branch, which nobody could foresee.
        self.point as usize * usize::from(self.len != 0)
    }
}

/// What a run needs to know of its cell, within a line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Head {
    /// The first eight leaders, or the point alone, and the first one again up to eight.
    pub(super) words: [Word; 8],
    /// How many leaders there are; 1 for a point.
    pub(super) leaders: u8,
    /// Whether the cell has no point.
    pub(super) off_grid: bool,
}

/// What a codebook offers for a rounded vector.
#[derive(Clone, Copy)]
pub(super) enum Offer<'a> {
    /// The vector is the point of this number.
    Point(u16),
    /// The nearest points, to be compared.
    Near(Near<'a>),
}

/// Candidates for a vector that is no grid point.
#[derive(Clone, Copy)]
pub(super) struct Near<'a> {
    /// How many there are; never none.
    pub(super) len: usize,
    /// What is chosen with each, and the first one again up to a multiple of eight.
    pub(super) words: &'a [[Word; 8]],
}

impl<'a> Near<'a> {
    /// The number of a candidate.
    #[inline(always)]
    pub(super) fn point(&self, place: usize) -> u16 {
        (self.words.as_flattened()[place] & POINT) as u16
    }

    /// The candidates' numbers.
    #[inline(always)]
    pub(super) fn points(&self) -> impl Iterator<Item = u16> + use<'a> {
        let near = *self;
        (0..near.len).map(move |place| near.point(place))
    }
}

impl<const D: usize> Codebook<D> {
    /// Bits of a packed level.
    pub(super) const BITS: u32 = 16 / D as u32;

    /// Decodes a table and finds the neighbours of every cell, and the leaders among them if they are of use.
    fn parse(text: &str, has_leaders: bool) -> Self {
        let mut bits: u32 = 0;
        let mut distances = 0;
        let mut decode = Vec::new();
        let mut points = Vec::new();
        let mut lines = text.lines().filter(|l| !l.starts_with('#'));
        for line in lines.by_ref() {
            let (key, values) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "dims" => assert_eq!(values, D.to_string(), "a table of this crate"),
                "bits" => bits = number(values),
                "neighbour_distances" => distances = number(values),
                "decode" => decode = values.split(' ').map(number).collect(),
                "points" => break,
                _ => unreachable!("unknown key {key} in a table of this crate"),
            }
        }
        for point in lines.flat_map(str::split_whitespace) {
            let point: u16 = number(point);
            points.push(std::array::from_fn(|i| (point >> (bits * i as u32) & ((1 << bits) - 1)) as u8));
        }
        let pack = |levels: &[u8; D]| levels.iter().rev().fold(0, |all, &l| all << Self::BITS | Word::from(l));
        let mut grid = Codebook {
            radix: decode.len(),
            decode,
            words: points.iter().enumerate().map(|(n, levels)| n as Word | pack(levels) << 16).collect(),
            points,
            cells: Vec::new(),
            neighbours: Vec::new(),
            heads: Vec::new(),
            has_leaders,
        };
        grid.find_neighbours(distances);
        if D == 4 {
            grid.heads = (0..grid.cells.len()).map(|cell| grid.head(cell)).collect();
        }
        grid
    }

    /// Fills `cells` and `neighbours`: a cell without a point takes all points at the `distances` smallest
    /// distances that occur.
    fn find_neighbours(&mut self, distances: usize) {
        let mut on_grid = vec![None; self.radix.pow(D as u32)];
        for (n, levels) in self.points.iter().enumerate() {
            on_grid[self.cell(levels)] = Some(n as u16);
        }
        // Squared distances from the cell, first half of the coordinates and second half, to every point.
        let half = D / 2;
        let halves = self.radix.pow(half as u32);
        let table = |from: usize| -> Vec<Vec<u16>> {
            (0..halves)
                .map(|cell| {
                    let at = |i: usize| (cell / self.radix.pow(i as u32) % self.radix) as i32;
                    let distance = |p: &[u8; D]| (0..half).map(|i| (at(i) - p[from + i] as i32).pow(2) as u16).sum();
                    self.points.iter().map(distance).collect()
                })
                .collect()
        };
        let (low, high) = (table(0), table(half));
        let mut distance = vec![0u16; self.points.len()];
        for (cell, point) in on_grid.iter().enumerate() {
            if let Some(n) = point {
                self.cells.push(Cell { start: 0, len: 0, point: *n });
                continue;
            }
            for ((d, a), b) in distance.iter_mut().zip(&low[cell % halves]).zip(&high[cell / halves]) {
                *d = a + b;
            }
            let start = self.neighbours.len();
            let mut wanted = distance.iter().min().copied();
            for _ in 0..distances {
                let Some(d) = wanted else { break };
                let nearest = (0..distance.len()).filter(|&n| distance[n] == d);
                self.neighbours.extend(nearest.map(|n| self.words[n] | OFF_GRID));
                wanted = distance.iter().copied().filter(|&other| other > d).min();
            }
            let end = self.neighbours.len();
            self.neighbours.resize(end.next_multiple_of(8), self.neighbours[start]);
            let mut leaders = end - start;
            if self.has_leaders {
                let first = self.neighbours.len();
                let levels = std::array::from_fn(|i| (cell / self.radix.pow(i as u32) % self.radix) as u8);
                for at in start..end {
                    let n = self.neighbours[at];
                    if !self.neighbours[first..].iter().any(|&k| self.is_nearer(&levels, k & POINT, n & POINT)) {
                        self.neighbours.push(n);
                    }
                }
                leaders = self.neighbours.len() - first;
                self.neighbours.resize(self.neighbours.len().next_multiple_of(8), self.neighbours[start]);
            }
            self.cells.push(Cell { start: start as u32, len: (end - start) as u16, point: leaders as u16 });
        }
    }

    fn head(&self, cell: usize) -> Head {
        match self.offer(cell) {
            Offer::Point(n) => Head { words: [self.words[n as usize]; 8], leaders: 1, off_grid: false },
            Offer::Near(_) => {
                let leaders = self.leaders(self.at(cell));
                Head { words: leaders.words[0], leaders: leaders.len.min(255) as u8, off_grid: true }
            }
        }
    }

    /// Whether each coordinate of point `k` is that of point `n`, or lies between it and the cell's.
    fn is_nearer(&self, cell: &[u8; D], k: Word, n: Word) -> bool {
        let (k, n) = (self.points[k as usize], self.points[n as usize]);
        (0..D).all(|i| k[i] == n[i] || (cell[i] <= k[i] && k[i] < n[i]) || (n[i] < k[i] && k[i] <= cell[i]))
    }

    /// The number of the cell with these levels.
    pub(super) fn cell(&self, levels: &[u8; D]) -> usize {
        levels.iter().rev().fold(0, |cell, &l| cell * self.radix + l as usize)
    }

    /// What the codebook offers for a cell.
    #[inline]
    pub(super) fn offer(&self, cell: usize) -> Offer<'_> {
        let cell = self.cells[cell];
        if cell.len == 0 { Offer::Point(cell.point) } else { Offer::Near(self.near(cell)) }
    }

    /// What the cell of this number holds.
    #[inline(always)]
    pub(super) fn at(&self, cell: usize) -> Cell {
        self.cells[cell]
    }

    /// The candidates of a cell without a point.
    #[inline(always)]
    pub(super) fn near(&self, cell: Cell) -> Near<'_> {
        self.list(cell.start as usize, cell.len as usize)
    }

    /// The leaders of a cell without a point: the candidates but for those of which another one is nearer to the cell
    /// in every coordinate in which they differ, in the same order.
    #[inline(always)]
    pub(super) fn leaders(&self, cell: Cell) -> Near<'_> {
        let all = if self.has_leaders { (cell.len as usize).next_multiple_of(8) } else { 0 };
        self.list(cell.start as usize + all, cell.point as usize)
    }

    #[inline(always)]
    fn list(&self, start: usize, len: usize) -> Near<'_> {
        let vectors = len.div_ceil(8);
        Near { len, words: &self.neighbours[start..].as_chunks().0[..vectors] }
    }

    /// The decoded values of a point.
    pub(super) fn values(&self, point: usize) -> [f32; D] {
        self.points[point].map(|l| self.decode[l as usize] as f32)
    }
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| unreachable!("{text} is no number in a table of this crate"))
}

macro_rules! codebooks {
    ($($name:ident: $dims:literal, $file:literal, $leaders:literal;)*) => {$(
        #[doc = concat!("The codebook in `quant-tables/", $file, "`.")]
        pub(super) fn $name() -> &'static Codebook<$dims> {
            static GRID: OnceLock<Codebook<$dims>> = OnceLock::new();
            GRID.get_or_init(|| Codebook::parse(include_str!(concat!("../../quant-tables/", $file)), $leaders))
        }
    )*};
}

codebooks! {
    iq1: 8, "iq1.txt", false;
    iq2_xxs: 8, "iq2_xxs.txt", true;
    iq2_xs: 8, "iq2_xs.txt", true;
    iq2_s: 8, "iq2_s.txt", false;
    iq3_xxs: 4, "iq3_xxs.txt", true;
    iq3_s: 4, "iq3_s.txt", true;
}

fn kvalues(name: &str) -> [i8; 16] {
    let lines = include_str!("../../quant-tables/kvalues.txt").lines();
    let (_, values) =
        lines.filter_map(|l| l.split_once(' ')).find(|l| l.0 == name).expect("a row of this crate's table");
    let mut numbers = values.split(' ').map(number);
    std::array::from_fn(|_| numbers.next().expect("sixteen values in this crate's table"))
}

/// `kvalues_iq4nl`: what the codes of IQ4_NL and IQ4_XS stand for.
pub(super) fn iq4_values() -> &'static [i8; 16] {
    static VALUES: OnceLock<[i8; 16]> = OnceLock::new();
    VALUES.get_or_init(|| kvalues("iq4_nl"))
}

/// `kvalues_fp4`: twice the values of E2M1, MXFP4's and NVFP4's code.
pub(super) fn fp4_values() -> &'static [i8; 16] {
    static VALUES: OnceLock<[i8; 16]> = OnceLock::new();
    VALUES.get_or_init(|| kvalues("fp4"))
}

/// The E8M0 byte that ggml gives a block of MXFP4 whose largest magnitude is `amax` (not NaN).
pub(super) fn mxfp4_exponent(amax: f32) -> u8 {
    static RUNS: OnceLock<(Vec<u32>, Vec<u8>)> = OnceLock::new();
    let (first, byte) = RUNS.get_or_init(|| {
        let lines = include_str!("../../quant-tables/mxfp4_exponents.txt").lines().filter(|l| !l.starts_with('#'));
        let run = |l: &str| {
            let (bits, byte) = l.split_once(' ').expect("two columns in this crate's table");
            (u32::from_str_radix(bits, 16).expect("hexadecimal bits in this crate's table"), number::<u8>(byte))
        };
        lines.map(run).unzip()
    });
    let bits = amax.to_bits();
    if bits == 0 || bits >= f32::INFINITY.to_bits() {
        return 0; // an infinite logarithm casts to 0
    }
    // A run is an octave, so its number is at most one above the exponent's: look from there.
    let octave = if bits < 0x0080_0000 { 0 } else { 21 + (bits >> 23) as usize };
    byte[octave + first[octave..].iter().take_while(|&&b| b <= bits).count().max(1) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// Codebooks and neighbour lists as ggml's `iq2xs_init_impl` and `iq3xs_init_impl` make them; the quantizers'
    /// golden hashes depend on every one of them, this says which table is to blame.
    #[test]
    fn neighbour_lists_are_those_of_ggml() {
        fn digest<const D: usize>(grid: &Codebook<D>) -> String {
            let (mut hash, mut lists) = (Sha256::new(), Vec::new());
            for cell in 0..grid.cells.len() {
                match grid.offer(cell) {
                    Offer::Point(n) => hash.update((-1i32 - i32::from(n)).to_le_bytes()),
                    Offer::Near(near) => {
                        hash.update((near.len as i32).to_le_bytes());
                        lists.extend(near.points().flat_map(u16::to_le_bytes));
                    }
                }
            }
            hash.update(lists);
            hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
        }
        assert_eq!(digest(iq1()), "3de42d40f861ec5c");
        assert_eq!(digest(iq2_xxs()), "2e8ce3bb1abe1968");
        assert_eq!(digest(iq2_xs()), "13dde7ac9fb025aa");
        assert_eq!(digest(iq2_s()), "5756b15ffddbe5b2");
        assert_eq!(digest(iq3_xxs()), "dde50be373673220");
        assert_eq!(digest(iq3_s()), "cc6a81c5dea267cb");
    }

    /// Wherever in a cell the magnitudes are, and whatever their importance, the first candidate with the least error
    /// is a leader.
    #[test]
    fn only_leaders_win() {
        fn check<const D: usize>(grid: &Codebook<D>) {
            let mut bits = 1u64;
            let mut random = || {
                bits ^= bits << 13;
                bits ^= bits >> 7;
                bits ^= bits << 17;
                (bits >> 40) as f32 / 16_777_216.0
            };
            let mut left_out = 0;
            for _ in 0..3000 {
                let levels: [u8; D] = std::array::from_fn(|_| (random() * grid.radix as f32) as u8);
                let Offer::Near(near) = grid.offer(grid.cell(&levels)) else { continue };
                let leaders = grid.leaders(grid.at(grid.cell(&levels)));
                left_out += near.len - leaders.len;
                // Below the lowest level and above the highest one a cell has no end.
                let x: [f32; D] = std::array::from_fn(|i| match levels[i] as usize {
                    0 => 1.99 - 9.0 * random(),
                    l if l == grid.radix - 1 => 2.01 * l as f32 + 9.0 * random(),
                    l => (2 * l) as f32 + 0.01 + 1.98 * random(),
                });
                let w: [f32; D] = std::array::from_fn(|_| if random() < 0.2 { 0.0 } else { random() });
                let error = |n: u16| {
                    let level = grid.points[n as usize];
                    (0..D).fold(0.0, |sum, i| {
                        let diff = f32::from(2 * level[i] + 1) - x[i];
                        sum + w[i] * diff * diff
                    })
                };
                let best = near.points().reduce(|a, b| if error(b) < error(a) { b } else { a });
                assert!(leaders.points().any(|n| Some(n) == best), "{levels:?} {x:?} {w:?}");
            }
            assert_eq!(left_out > 0, grid.has_leaders);
        }
        check(iq2_xxs());
        check(iq2_xs());
        check(iq2_s());
        check(iq3_xxs());
        check(iq3_s());
    }

    #[test]
    fn mxfp4_exponents_follow_the_table_at_every_boundary() {
        for line in include_str!("../../quant-tables/mxfp4_exponents.txt").lines().filter(|l| !l.starts_with('#')) {
            let (bits, byte) = line.split_once(' ').unwrap();
            let (bits, byte) = (u32::from_str_radix(bits, 16).unwrap(), byte.parse::<u8>().unwrap());
            assert_eq!(mxfp4_exponent(f32::from_bits(bits)), byte, "{line}");
            if bits > 1 {
                assert_eq!(mxfp4_exponent(f32::from_bits(bits - 1)), byte.wrapping_sub(1), "before {line}");
            }
        }
        assert_eq!(mxfp4_exponent(0.0), 0);
        assert_eq!(mxfp4_exponent(f32::INFINITY), 0);
    }
}
