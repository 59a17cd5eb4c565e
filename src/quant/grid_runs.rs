//! Runs: neighbouring tries of a group that share a cell, sorted by the length of the cell's list of neighbours.

use super::codebook::Cell;
use super::lanes::LANES;
use std::ops::Range;

/// Groups of eight sub-blocks, at most.
pub(super) const GROUPS: usize = 64;
/// Tries of a search, at most.
pub(super) const TRIES: usize = 32;
/// Tries with room for as many from any of them on.
pub(super) const ROOM: usize = 2 * TRIES;
/// Room for the runs that all groups can have, and one that is never looked at.
pub(super) const RUNS: usize = 2 * TRIES * GROUPS;

/// What is chosen for a group: the point's number in the low half, its packed levels in the high one.
pub(super) type Word = i32;
/// Set where the rounded magnitudes were no point.
pub(super) const OFF_GRID: Word = 1 << 15;
/// Set where no candidate led by enough.
pub(super) const UNCLEAR: Word = 1 << 14;
/// Set in every other run of a group.
const ODD: Word = 1 << 13;
/// The point's number.
pub(super) const POINT: Word = ODD - 1;

/// Words by group of the sub-block, and sub-block.
pub(super) type Words = [[Word; LANES]; LANES];

/// Neighbouring tries of a group that share a cell.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) cell: Cell,
    group: u8,
    from: u8,
    to: u8,
    odd: bool,
}

impl Run {
    /// A run without tries, for room.
    pub(super) fn none(cell: Cell) -> Run {
        Run { cell, group: 0, from: 0, to: 0, odd: false }
    }

    /// `LANES` times the group within its sub-block, plus the sub-block.
    #[inline(always)]
    pub(super) fn group(self) -> usize {
        self.group as usize % GROUPS
    }

    /// The first try.
    #[inline(always)]
    pub(super) fn from(self) -> usize {
        self.from as usize % TRIES
    }

    /// The try after the last.
    #[inline(always)]
    pub(super) fn to(self) -> usize {
        self.to as usize
    }

    /// What its words have that those of the runs before and after it have not, or the other way round.
    #[inline(always)]
    pub(super) fn mark(self) -> Word {
        if self.odd { ODD } else { 0 }
    }
}

/// The runs at hand.
pub(super) struct Runs {
    runs: Box<[Run; RUNS]>,
    /// The number of the next one; 0 is none.
    count: usize,
    /// The last run of each length, and for every run the one before of that length.
    of_length: [u16; Runs::LENGTHS],
    before: Box<[u16; RUNS]>,
}

impl Runs {
    /// Lengths that are told apart: 0, 1 ... and one less than this or more.
    pub(super) const LENGTHS: usize = 64;

    /// No runs; the cell is any.
    pub(super) fn new(cell: Cell) -> Self {
        Runs { runs: boxed(Run::none(cell)), count: 1, of_length: [0; Runs::LENGTHS], before: boxed(0) }
    }

    /// Forgets all runs.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.count = 1;
        self.of_length = [0; Runs::LENGTHS];
    }

    /// Starts the run of a group over some tries. The runs of a group come one after another.
    #[inline(always)]
    pub(super) fn start(&mut self, cell: Cell, group: usize, tries: Range<usize>) -> Run {
        let odd = self.count % 2 == 1;
        let run = Run { cell, group: group as u8, from: tries.start as u8, to: tries.end as u8, odd };
        self.runs[self.count % RUNS] = run;
        let length = cell.leaders().div_ceil(2).min(Runs::LENGTHS - 1);
        self.before[self.count % RUNS] = self.of_length[length];
        self.of_length[length] = self.count as u16;
        self.count += 1;
        run
    }

    /// The number of the first run of a length in their order.
    #[inline(always)]
    pub(super) fn first(&self, length: usize) -> usize {
        self.of_length[length] as usize
    }

    /// The run of a number, and the number of the next one of its length.
    #[inline(always)]
    pub(super) fn at(&self, number: usize) -> Option<(Run, usize)> {
        let place = number % RUNS;
        (place != 0).then_some((self.runs[place], self.before[place] as usize))
    }
}

/// An array on the heap, where the compiler leaves it.
pub(super) fn boxed<T: Clone, const N: usize>(v: T) -> Box<[T; N]> {
    match vec![v; N].try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("a vector of {N} elements is an array of as many"),
    }
}
