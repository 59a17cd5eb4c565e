//! A piece of work: rows that pass through one staging at once, and where everything lies in its memory.
//!
//! ```text
//! input    codes | scales | table | for each change: B, A, norms | importance of each encoding   host -> device
//! values   rows as f32 | for each change with norms: rows before it, ratios | mean squares of rows
//! output   first bad index | sums of squares | each encoding's rows                         device -> host
//! ```
//!
//! Kernels run in one stream: decode, merge each change in order, look for infinities, encode.

use std::ops::Range;

use super::driver_staging::{ALIGNMENT, Arg, Room, Sizes, Staging};
use super::failure::Failure;
use super::kernels::{self, Kernel, Quantizer, quantizer};
use crate::device::{DeviceError, Encoding};
use crate::quant::GgmlType;
use crate::recipe::{Delta, RawCodes, RawFormat, RawPart, RawRows, RawScales, Scratch};

/// How an encoding is made.
#[derive(Clone, Copy)]
enum Way {
    /// By a kernel over blocks.
    Blocks(Quantizer),
    /// By a kernel over elements.
    Elements(Kernel),
    /// From the values, on the host.
    Host,
}

/// Whether a kernel makes the blocks of an encoding.
pub(super) fn is_quantized_there(encoding: &Encoding<'_>) -> bool {
    matches!(way(encoding), Way::Blocks(_))
}

fn way(encoding: &Encoding<'_>) -> Way {
    match encoding.ty {
        GgmlType::F16 => Way::Elements(kernels::ENCODE_F16),
        GgmlType::BF16 => Way::Elements(kernels::ENCODE_BF16),
        ty => quantizer(ty, encoding.importance.is_some()).map_or(Way::Host, Way::Blocks),
    }
}

/// Values that a device cannot decode are evaluated on the host.
const EVALUATED: RawFormat = RawFormat::plain(RawCodes::F32);

/// A place in a room.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    at: usize,
    bytes: usize,
}

impl Place {
    fn range(self) -> Range<usize> {
        self.at..self.at + self.bytes
    }

    fn arg(self, room: Room) -> Arg {
        Arg::Memory(room, self.at, self.bytes)
    }
}

/// Places one after another.
#[derive(Default)]
struct Places(usize);

impl Places {
    fn take(&mut self, count: u64, width: usize) -> Place {
        let place = Place { at: self.0, bytes: count as usize * width };
        self.0 = (place.at + place.bytes).next_multiple_of(ALIGNMENT);
        place
    }
}

/// A change to be merged, and where its factors and sums lie.
struct Change<'a> {
    delta: &'a dyn Delta,
    rank: u64,
    scale: f32,
    b: Place,
    a: Place,
    /// Norms that rows get.
    norms: Option<Norms>,
    /// Sums of squares before it and of it, in parts.
    before: Place,
    added: Place,
}

/// What a change that gives norms to rows needs.
struct Norms {
    magnitudes: Place,
    ratios: Place,
    /// The rows before the change, to measure it.
    saved: Place,
}

/// An encoding, and where its rows and its importance lie.
struct Target {
    ty: GgmlType,
    way: Way,
    importance: Option<Place>,
    rows: Place,
}

/// A piece and its layout.
pub(super) struct Piece<'a> {
    /// Rows of the whole recipe.
    pub(super) rows: Range<u64>,
    /// Rows of the part of it.
    part_rows: Range<u64>,
    row_len: u64,
    format: RawFormat,
    codes: Place,
    scales: Place,
    table: Place,
    changes: Vec<Change<'a>>,
    targets: Vec<Target>,
    values: Place,
    mean_squares: Place,
    first_bad: Place,
    /// Where values are put in what comes back, if they are wanted.
    values_returned: Option<Place>,
    input: usize,
    output: usize,
}

/// Bytes of device memory that a row takes, and those that a piece takes whatever its rows.
pub(super) fn footprint(part: &RawPart<'_>, encodings: &[Encoding<'_>]) -> (u64, u64) {
    let one = |rows: Range<u64>| {
        let sizes = Piece::new(part, rows, encodings, &[], false).sizes();
        (sizes.input + sizes.values + sizes.output) as u64
    };
    // Many rows, so that the padding between places does not count.
    let many = 1 << 20;
    let (none, all) = (one(0..0), one(0..many));
    ((all - none).div_ceil(many).max(1), none)
}

impl<'a> Piece<'a> {
    /// Lays out rows `part_rows` of a part. `importance` has the weights of each encoding for these rows.
    pub(super) fn new(
        part: &RawPart<'a>,
        part_rows: Range<u64>,
        encodings: &[Encoding<'_>],
        importance: &[Option<&[f32]>],
        values_wanted: bool,
    ) -> Self {
        let row_len = part.recipe.shape().row_len();
        let count = part_rows.end - part_rows.start;
        let elements = count * row_len;
        let format = part.form.as_ref().map_or(EVALUATED, RawRows::format);
        let (mut input, mut inner, mut output) = (Places::default(), Places::default(), Places::default());
        let codes = input.take(count * format.row_bytes(row_len), 1);
        let scales = input.take(count * format.scales_per_row(row_len), 4);
        let table = input.take(if matches!(format.codes, RawCodes::FourBit(_)) { 16 } else { 0 }, 4);
        let values = inner.take(elements, 4);
        let first_bad = output.take(1, 8);
        let deltas = part.form.as_ref().map_or(&[][..], RawRows::deltas);
        let changes = deltas
            .iter()
            .map(|&(delta, factors)| {
                let rank = factors.rank() as u64;
                let runs = elements.div_ceil(kernels::RUN);
                let norms = factors.magnitudes().map(|_| Norms {
                    magnitudes: input.take(count, 4),
                    ratios: inner.take(count, 4),
                    saved: inner.take(elements, 4),
                });
                let parts = if norms.is_some() { runs } else { kernels::merge_tiles(count, row_len) };
                Change {
                    delta,
                    rank,
                    scale: factors.scale(),
                    b: input.take(count * rank, 4),
                    a: input.take(rank * row_len, 4),
                    norms,
                    before: output.take(runs, 8),
                    added: output.take(parts, 8),
                }
            })
            .collect();
        let targets: Vec<_> = encodings
            .iter()
            .enumerate()
            .map(|(i, encoding)| {
                let way = way(encoding);
                let weighs = matches!(way, Way::Blocks(_)) && encoding.importance.is_some();
                let row_bytes = match way {
                    Way::Host => 0,
                    _ => encoding.ty.row_bytes(row_len).unwrap_or(0),
                };
                let importance =
                    (weighs && importance.get(i).is_none_or(Option::is_some)).then(|| input.take(row_len, 4));
                Target { ty: encoding.ty, way, importance, rows: output.take(count * row_bytes, 1) }
            })
            .collect();
        let averages = targets.iter().any(|t| matches!(t.way, Way::Blocks(q) if q.row_sigma2));
        let mean_squares = inner.take(if averages { count } else { 0 }, 4);
        let wanted = values_wanted || targets.iter().any(|t| matches!(t.way, Way::Host));
        let values_returned = wanted.then_some(Place { at: output.0, bytes: values.bytes });
        Piece {
            rows: part.shift + part_rows.start..part.shift + part_rows.end,
            part_rows,
            row_len,
            format,
            codes,
            scales,
            table,
            changes,
            targets,
            values,
            mean_squares,
            first_bad,
            values_returned,
            input: input.0,
            output: output.0,
        }
    }

    /// Bytes of each room.
    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            input: self.input,
            values: self.mean_squares.at + self.mean_squares.bytes.next_multiple_of(ALIGNMENT),
            output: self.output,
            returned: self.output + self.values_returned.map_or(0, |p| p.bytes),
        }
    }

    fn elements(&self) -> u64 {
        (self.rows.end - self.rows.start) * self.row_len
    }

    /// Reads what the piece needs and queues all of its work.
    pub(super) fn start(
        &self,
        part: &RawPart<'_>,
        importance: &[Option<&[f32]>],
        staging: &mut Staging<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), DeviceError> {
        staging.reserve(&self.sizes())?;
        self.fill(part, importance, staging.input(), scratch)?;
        staging.upload(self.input)?;
        self.decode(staging)?;
        for change in &self.changes {
            self.merge(change, staging)?;
        }
        let count = Arg::U64(self.elements());
        let values = self.values.arg(Room::Values);
        staging.fill(Room::Output, self.first_bad.range(), 0xff)?;
        staging.launch(
            &kernels::FIND_NOT_FINITE,
            self.elements(),
            &[values, self.first_bad.arg(Room::Output), count],
        )?;
        if self.mean_squares.bytes > 0 {
            let rows = self.rows.end - self.rows.start;
            let args = [values, self.mean_squares.arg(Room::Values), Arg::U64(rows), Arg::U64(self.row_len)];
            staging.launch(&kernels::ROW_SIGMA2, rows, &args)?;
        }
        for target in &self.targets {
            self.encode(target, staging)?;
        }
        staging.download(Room::Output, 0..self.output, 0)?;
        if let Some(place) = self.values_returned {
            staging.download(Room::Values, self.values.range(), place.at)?;
        }
        Ok(())
    }

    /// Writes the input.
    fn fill(
        &self,
        part: &RawPart<'_>,
        importance: &[Option<&[f32]>],
        input: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), DeviceError> {
        // A tensor without rows in the file has no places to write to.
        let floats = |input: &mut [u8], place: Place, values: &[f32]| {
            input[place.range()].copy_from_slice(bytemuck::cast_slice(values));
        };
        let rows = self.part_rows.clone();
        match &part.form {
            None => part.recipe.rows(rows, bytemuck::cast_slice_mut(&mut input[self.codes.range()]), scratch)?,
            Some(form) => {
                let (head, tail) = input.split_at_mut(self.scales.at);
                let scales = bytemuck::cast_slice_mut(&mut tail[..self.scales.bytes]);
                form.read(rows.clone(), &mut head[self.codes.range()], scales, scratch)?;
                for (change, &(_, factors)) in self.changes.iter().zip(form.deltas()) {
                    let b = bytemuck::cast_slice_mut(&mut input[change.b.range()]);
                    form.read_b(factors, rows.clone(), b, scratch)?;
                    factors.read_a(bytemuck::cast_slice_mut(&mut input[change.a.range()]), scratch)?;
                    if let (Some(norms), Some(magnitudes)) = (&change.norms, factors.magnitudes()) {
                        let out = bytemuck::cast_slice_mut(&mut input[norms.magnitudes.range()]);
                        form.read_magnitudes(magnitudes, rows.clone(), out, scratch)?;
                    }
                }
            }
        }
        if let RawCodes::FourBit(table) = self.format.codes {
            floats(input, self.table, table);
        }
        for (target, weights) in self.targets.iter().zip(importance) {
            if let (Some(place), Some(weights)) = (target.importance, weights) {
                floats(input, place, weights);
            }
        }
        Ok(())
    }

    /// Codes become values.
    fn decode(&self, staging: &mut Staging<'_>) -> Result<(), Failure> {
        let (elements, count) = (self.elements(), Arg::U64(self.elements()));
        let (codes, values) = (self.codes.arg(Room::Input), self.values.arg(Room::Values));
        let scales = self.scales.arg(Room::Input);
        let kernel = match self.format.codes {
            RawCodes::F32 => kernels::DECODE_F32,
            RawCodes::F16 => kernels::DECODE_F16,
            RawCodes::BF16 => kernels::DECODE_BF16,
            RawCodes::I8 => kernels::DECODE_I8,
            RawCodes::E4M3 => kernels::DECODE_E4M3,
            RawCodes::E5M2 => kernels::DECODE_E5M2,
            RawCodes::FourBit(_) => {
                // Its scales belong to the same kernel.
                let (group, round) = self.format.scales.map_or((self.row_len, GgmlType::F32), |s| (s.group, s.round));
                let args = [
                    codes,
                    self.table.arg(Room::Input),
                    scales,
                    values,
                    Arg::U64(0),
                    count,
                    Arg::U64(group),
                    Arg::U32(round as u32),
                ];
                return staging.launch(&kernels::DECODE_FOUR_BIT, elements, &args);
            }
        };
        staging.launch(&kernel, elements, &[codes, values, count])?;
        let Some(RawScales { group, factor, round }) = self.format.scales else { return Ok(()) };
        let args = [
            values,
            scales,
            Arg::U64(0),
            Arg::U64(self.rows.end - self.rows.start),
            Arg::U64(self.row_len),
            Arg::U64(1),
            Arg::U64(group),
            Arg::U64(self.format.scales_per_row(self.row_len)),
            Arg::F32(factor),
            Arg::U32(round as u32),
        ];
        staging.launch(&kernels::SCALE_BLOCKS, elements, &args)
    }

    /// Values get a change, and sums of squares of both.
    fn merge(&self, change: &Change<'_>, staging: &mut Staging<'_>) -> Result<(), Failure> {
        let rows = self.rows.end - self.rows.start;
        let values = self.values.arg(Room::Values);
        let runs = self.elements().div_ceil(kernels::RUN);
        let (elements, count) = (self.elements(), Arg::U64(self.elements()));
        let added = change.added.arg(Room::Output);
        staging.launch(&kernels::RUN_SQUARES, runs, &[values, change.before.arg(Room::Output), count])?;
        if let Some(Norms { saved, .. }) = &change.norms {
            staging.launch(&kernels::DECODE_F32, elements, &[values, saved.arg(Room::Values), count])?;
        }
        let args = [
            values,
            change.b.arg(Room::Input),
            change.a.arg(Room::Input),
            if change.norms.is_some() { Arg::Null } else { added },
            Arg::U64(rows),
            Arg::U64(self.row_len),
            Arg::U64(change.rank),
            Arg::F32(change.scale),
        ];
        staging.launch(&kernels::MERGE, kernels::merge_tiles(rows, self.row_len), &args)?;
        let Some(Norms { magnitudes, ratios, saved }) = &change.norms else { return Ok(()) };
        let (magnitudes, ratios) = (magnitudes.arg(Room::Input), ratios.arg(Room::Values));
        let shape = [Arg::U64(rows), Arg::U64(self.row_len)];
        staging.launch(&kernels::ROW_RATIOS, rows, &[values, magnitudes, ratios, shape[0], shape[1]])?;
        staging.launch(&kernels::SCALE_ROWS, elements, &[values, ratios, shape[0], shape[1]])?;
        staging.launch(&kernels::RUN_DISTANCE, runs, &[values, saved.arg(Room::Values), added, count])
    }

    /// Values become rows of a type.
    fn encode(&self, target: &Target, staging: &mut Staging<'_>) -> Result<(), Failure> {
        let (values, out) = (self.values.arg(Room::Values), target.rows.arg(Room::Output));
        match target.way {
            Way::Host => Ok(()),
            Way::Elements(kernel) => {
                staging.launch(&kernel, self.elements(), &[values, out, Arg::U64(self.elements())])
            }
            Way::Blocks(quantizer) => {
                let rows = self.rows.end - self.rows.start;
                let importance = target.importance.map_or(Arg::Null, |p| p.arg(Room::Input));
                let averages = if quantizer.row_sigma2 { self.mean_squares.arg(Room::Values) } else { Arg::Null };
                let args = [values, importance, averages, out, Arg::U64(rows), Arg::U64(self.row_len)];
                staging.launch(&quantizer.kernel, self.elements() / target.ty.geometry().elements, &args)
            }
        }
    }

    /// Whether all values that came back are numbers.
    pub(super) fn is_finite(&self, returned: &[u8]) -> bool {
        returned[self.first_bad.range()].iter().all(|b| *b == 0xff)
    }

    /// The rows of encoding number `i`, if the device made them.
    pub(super) fn encoded<'b>(&self, i: usize, returned: &'b [u8]) -> Option<&'b [u8]> {
        let target = &self.targets[i];
        (!matches!(target.way, Way::Host)).then(|| &returned[target.rows.range()])
    }

    /// The values, if they were wanted.
    pub(super) fn values<'b>(&self, returned: &'b [u8]) -> Option<&'b [f32]> {
        self.values_returned.map(|place| bytemuck::cast_slice(&returned[place.range()]))
    }

    /// Tells each change how large it was.
    pub(super) fn record(&self, returned: &[u8]) {
        let sum = |place: Place| -> f64 {
            let (parts, _) = returned[place.range()].as_chunks();
            parts.iter().map(|b| f64::from_le_bytes(*b)).sum()
        };
        for change in &self.changes {
            change.delta.record(sum(change.before), sum(change.added), self.elements());
        }
    }
}
