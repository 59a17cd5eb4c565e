//! Runs: neighbouring tries of a group that share a cell.

use super::codebook::Word;
use super::lanes::LANES;
use std::ops::Range;

/// Groups of eight sub-blocks, at most.
pub(super) const GROUPS: usize = 64;
/// Tries of a search, at most.
pub(super) const TRIES: usize = 32;
/// Tries with room for as many from any of them on.
pub(super) const ROOM: usize = 2 * TRIES;
/// Room for the runs that all groups can have, and one that is never looked at.
pub(super) const RUNS: usize = TRIES * GROUPS;

/// Words by group of the sub-block, and sub-block.
pub(super) type Words = [[Word; LANES]; LANES];

/// Neighbouring tries of a group that share a cell.
#[derive(Clone, Copy)]
pub(super) struct Run {
    cell: u16,
    group: u8,
    from: u8,
    to: u8,
}

impl Run {
    /// A run without tries, for room.
    pub(super) const NONE: Run = Run { cell: 0, group: 0, from: 0, to: 0 };

    /// A group that falls on a cell in some tries.
    #[inline(always)]
    pub(super) fn new(cell: usize, group: usize, tries: Range<usize>) -> Run {
        Run { cell: cell as u16, group: group as u8, from: tries.start as u8, to: tries.end as u8 }
    }

    /// The number of the cell.
    #[inline(always)]
    pub(super) fn cell(self) -> usize {
        self.cell as usize
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

    /// The last try.
    #[inline(always)]
    pub(super) fn last(self) -> usize {
        (self.to as usize - 1) % TRIES
    }

    /// A bit for each try after the first.
    #[inline(always)]
    pub(super) fn tries(self) -> u32 {
        ((1u64 << (self.to - self.from)) - 1) as u32
    }
}

/// The runs at hand, in their order, and some of them by the length of a list.
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

    /// No runs.
    pub(super) fn new() -> Self {
        Runs { runs: boxed(Run::NONE), count: 1, of_length: [0; Runs::LENGTHS], before: boxed(0) }
    }

    /// Forgets all runs.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.count = 1;
        self.of_length = [0; Runs::LENGTHS];
    }

    /// Adds the run of a group over some tries.
    #[inline(always)]
    pub(super) fn push(&mut self, cell: usize, group: usize, tries: Range<usize>) {
        self.runs[self.count % RUNS] = Run::new(cell, group, tries);
        self.count += 1;
    }

    /// The numbers of all runs.
    #[inline(always)]
    pub(super) fn numbers(&self) -> Range<usize> {
        1..self.count
    }

    /// The run of a number.
    #[inline(always)]
    pub(super) fn get(&self, number: usize) -> Run {
        self.runs[number % RUNS]
    }

    /// Puts a run among those of a length.
    #[inline(always)]
    pub(super) fn sort_in(&mut self, number: usize, length: usize) {
        let last = &mut self.of_length[length.min(Runs::LENGTHS - 1)];
        self.before[number % RUNS] = *last;
        *last = number as u16;
    }

    /// The number of the last run that was put among those of a length; 0 is none.
    #[inline(always)]
    pub(super) fn last(&self, length: usize) -> usize {
        self.of_length[length] as usize
    }

    /// The number of the run before, of the same length; 0 is none.
    #[inline(always)]
    pub(super) fn before(&self, number: usize) -> usize {
        self.before[number % RUNS] as usize
    }
}

/// An array on the heap, where the compiler leaves it.
pub(super) fn boxed<T: Clone, const N: usize>(v: T) -> Box<[T; N]> {
    match vec![v; N].try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("a vector of {N} elements is an array of as many"),
    }
}
