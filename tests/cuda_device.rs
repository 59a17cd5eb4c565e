//! Every path through the GPU against the CPU, row by row, on random data: all types, odd shapes, all elements of the
//! 8-bit and 16-bit types. On the software driver by default; `cuda/check.sh` runs it on a real GPU.

mod common;
#[path = "common/rows.rs"]
mod data;
#[path = "common/host_gpu.rs"]
mod host_gpu;

use std::ops::Range;
use std::process::Command;
use std::sync::Arc;

use data::{Kind, Random, imatrix, rows};
use to_gguf::device::cuda::Cuda;
use to_gguf::device::{Cpu, Device, Encoding};
use to_gguf::quant::{GgmlType, ImatrixRule};
use to_gguf::recipe::{Delta, LowRank, RawCodes, RawFormat, RawScales, ReadError, Recipe, RowMap, RowSource, Scratch};
use to_gguf::shape::Shape;

/// A tensor in memory, with its raw form.
struct Stored {
    shape: Shape,
    format: RawFormat,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Stored {
    fn recipe(shape: Shape, format: RawFormat, codes: Vec<u8>, random: &mut Random) -> Recipe {
        let scales = shape.rows() * format.scales_per_row(shape.row_len());
        let scales = (0..scales).map(|_| 0.01 + random.uniform()).collect();
        assert_eq!(codes.len() as u64, shape.rows() * format.row_bytes(shape.row_len()));
        Recipe::source(Arc::new(Stored { shape, format, codes, scales }))
    }

    fn floats(shape: Shape, values: &[f32]) -> Recipe {
        let codes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Stored::recipe(shape, RawFormat::plain(RawCodes::F32), codes, &mut Random(0))
    }

    /// The value of an element, by the rule of [`RawFormat`].
    fn value(&self, i: usize) -> f32 {
        let code = |width: usize| &self.codes[i * width..(i + 1) * width];
        let half = |bits: u16| half::f16::from_bits(bits).to_f32();
        let value = match self.format.codes {
            RawCodes::F32 => f32::from_le_bytes(code(4).try_into().unwrap()),
            RawCodes::F16 => half(u16::from_le_bytes(code(2).try_into().unwrap())),
            RawCodes::BF16 => f32::from_bits(u32::from(u16::from_le_bytes(code(2).try_into().unwrap())) << 16),
            RawCodes::I8 => f32::from(self.codes[i] as i8),
            RawCodes::E4M3 => e4m3(self.codes[i]),
            RawCodes::E5M2 => half(u16::from(self.codes[i]) << 8),
            RawCodes::FourBit(table) => table[usize::from(self.codes[i / 2] >> (4 * (1 - i % 2)) & 15)],
        };
        let Some(RawScales { group, factor, round }) = self.format.scales else { return value };
        let cols = self.shape.row_len() as usize;
        let (row, col) = (i / cols, i % cols);
        let per_row = cols.div_ceil(group as usize);
        let scaled = value * self.scales[row * per_row + col / group as usize] * factor;
        match round {
            GgmlType::F16 => half::f16::from_f32(scaled).to_f32(),
            GgmlType::BF16 => half::bf16::from_f32(scaled).to_f32(),
            _ => scaled,
        }
    }
}

fn e4m3(b: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(b >> 3 & 15), f32::from(b & 7));
    let magnitude = match (exponent, b & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if b & 0x80 == 0 { magnitude } else { -magnitude }
}

impl RowSource for Stored {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn precision(&self) -> GgmlType {
        GgmlType::F32
    }

    fn read_rows(&self, rows: Range<u64>, out: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        let first = (rows.start * self.shape.row_len()) as usize;
        out.iter_mut().enumerate().for_each(|(i, x)| *x = self.value(first + i));
        Ok(())
    }

    fn raw(&self) -> Option<RawFormat> {
        Some(self.format)
    }

    fn read_raw_rows(
        &self,
        rows: Range<u64>,
        codes: &mut [u8],
        scales: &mut [f32],
        _: &mut Scratch,
    ) -> Result<(), ReadError> {
        let part = |per_row: u64| (rows.start * per_row) as usize..(rows.end * per_row) as usize;
        let len = self.shape.row_len();
        codes.copy_from_slice(&self.codes[part(self.format.row_bytes(len))]);
        scales.copy_from_slice(&self.scales[part(self.format.scales_per_row(len))]);
        Ok(())
    }

    fn describe(&self) -> String {
        "a tensor of the test".into()
    }
}

/// A low-rank change in memory, applied by the rule as it is written.
struct Change {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    scale: f32,
}

impl Change {
    fn delta(shape: &Shape, rank: usize, random: &mut Random) -> Arc<dyn Delta> {
        let mut noise = |n: u64| (0..n).map(|_| random.normal() * 0.05).collect();
        let (a, b) = (noise(rank as u64 * shape.row_len()), noise(shape.rows() * rank as u64));
        Arc::new(Change { a, b, rank, scale: 0.73 })
    }
}

impl Delta for Change {
    fn apply(&self, _: &Recipe, rows: Range<u64>, values: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        let cols = self.a.len() / self.rank;
        for (row, values) in rows.zip(values.chunks_exact_mut(cols)) {
            let b = &self.b[row as usize * self.rank..][..self.rank];
            for (j, v) in values.iter_mut().enumerate() {
                let sum = (0..self.rank).fold(0f32, |sum, k| sum + b[k] * self.a[k * cols + j]);
                *v += self.scale * sum;
            }
        }
        Ok(())
    }

    fn low_rank(&self) -> Option<&dyn LowRank> {
        Some(self)
    }

    fn describe(&self) -> String {
        "a change of the test".into()
    }
}

impl LowRank for Change {
    fn rank(&self) -> usize {
        self.rank
    }

    fn scale(&self) -> f32 {
        self.scale
    }

    fn read_a(&self, out: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        out.copy_from_slice(&self.a);
        Ok(())
    }

    fn read_b(&self, rows: Range<u64>, out: &mut [f32], _: &mut Scratch) -> Result<(), ReadError> {
        out.copy_from_slice(&self.b[rows.start as usize * self.rank..rows.end as usize * self.rank]);
        Ok(())
    }
}

/// Compares what two devices make of a recipe's rows.
fn compare(gpu: &Cuda, recipe: &Recipe, rows: Range<u64>, encodings: &[Encoding<'_>], what: &str) {
    let make = |device: &dyn Device| {
        let mut outputs = vec![Vec::new(); encodings.len()];
        let mut values = Vec::new();
        let mut worker = device.worker().unwrap();
        worker
            .rows(recipe, rows.clone(), encodings, &mut outputs, Some(&mut values))
            .map(|()| (outputs, values.iter().map(|v: &f32| v.to_bits()).collect::<Vec<_>>()))
            .map_err(|e| e.to_string())
    };
    let (cpu, gpu) = (make(&Cpu), make(gpu));
    match (&cpu, &gpu) {
        (Ok((a, x)), Ok((b, y))) => {
            for ((a, b), encoding) in a.iter().zip(b).zip(encodings) {
                let bad = a.iter().zip(b).position(|(a, b)| a != b);
                assert!(a.len() == b.len() && bad.is_none(), "{what}: {} differs at byte {bad:?}", encoding.ty);
            }
            assert!(x == y, "{what}: values differ");
        }
        _ => assert_eq!(cpu.map(|_| ()), gpu.map(|_| ()), "{what}"),
    }
}

/// All types that can be made of these rows; one at a time would do the same work over and over.
fn encodings<'a>(row_len: u64, importance: Option<&'a [f32]>) -> Vec<Encoding<'a>> {
    GgmlType::all()
        .filter(|ty| ty.row_bytes(row_len).is_some())
        .filter(|ty| match ty.imatrix_rule() {
            None => false,
            // The searches of the codebooks are slow on the CPU and have no kernels.
            _ if ty.name().starts_with("IQ1") || ty.name().starts_with("IQ2") || ty.name().starts_with("IQ3") => false,
            Some(rule) => rule != ImatrixRule::Required || importance.is_some(),
        })
        .map(|ty| Encoding { ty, importance })
        .collect()
}

/// The GPU that is to be checked.
fn gpu(memory: Option<u64>) -> Cuda {
    let number = std::env::var("TO_GGUF_CHECK_DEVICE").ok().and_then(|n| n.trim_start_matches(':').parse().ok());
    Cuda::open(&[number.unwrap_or(0)], memory, 1, false).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
#[ignore = "needs a driver: the test below brings one"]
fn every_kernel_equals_the_cpu() {
    let gpu = &gpu(None);
    let mut random = Random(11);
    let mut compared = 0;
    for kind in Kind::ALL {
        for (height, width) in [(1, 32), (3, 256), (33, 768)] {
            let shape = Shape::matrix(height, width);
            let values = rows(kind, height, (height * width) as usize);
            let weights = imatrix(width, width as usize);
            let recipe = Stored::floats(shape, &values);
            for importance in [None, Some(&weights[..])] {
                let what = format!("{kind:?} {height}x{width}, importance {}", importance.is_some());
                // A type that refuses such rows would hide what the others make of them.
                for encoding in encodings(width, importance) {
                    compare(gpu, &recipe, 0..height, &[encoding], &what);
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} encodings are the same");

    // All elements that are numbers.
    for (codes, count) in [
        (RawCodes::BF16, 1 << 16),
        (RawCodes::F16, 1 << 16),
        (RawCodes::I8, 256),
        (RawCodes::E4M3, 256),
        (RawCodes::E5M2, 256),
    ] {
        let mut bytes: Vec<u8> = Vec::new();
        for i in 0..count as u32 {
            let finite = match codes {
                RawCodes::BF16 => i & 0x7f80 != 0x7f80,
                RawCodes::F16 => i & 0x7c00 != 0x7c00,
                RawCodes::E4M3 => i & 0x7f != 0x7f,
                RawCodes::E5M2 => i & 0x7c != 0x7c,
                _ => true,
            };
            let kept = if finite { i } else { 0 };
            bytes.extend(&kept.to_le_bytes()[..if count > 256 { 2 } else { 1 }]);
        }
        let shape = Shape::matrix(count / 256, 256);
        let recipe = Stored::recipe(shape.clone(), RawFormat::plain(codes), bytes, &mut random);
        // F32 and F16 leave the device as values, which NaN would make different.
        compare(
            gpu,
            &recipe,
            0..shape.rows(),
            &[Encoding { ty: GgmlType::Q8_0, importance: None }],
            &format!("{codes:?}"),
        );
        println!("{codes:?}: {count} elements are the same");
    }

    static TABLE: [f32; 16] =
        [-1.0, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0];
    for (height, width, group) in [(5, 256, 64), (130, 512, 32), (7, 768, 100)] {
        for codes in [RawCodes::I8, RawCodes::E4M3, RawCodes::E5M2, RawCodes::FourBit(&TABLE)] {
            for (round, factor) in [(GgmlType::BF16, 1.0), (GgmlType::F16, 1.0), (GgmlType::F32, 0.007_874_016)] {
                let four_bit = matches!(codes, RawCodes::FourBit(_));
                if four_bit && (factor != 1.0 || width % group != 0) {
                    continue;
                }
                let format = RawFormat { codes, scales: Some(RawScales { group, factor, round }) };
                let shape = Shape::matrix(height, width);
                let bytes = (0..height * format.row_bytes(width)).map(|_| (random.bits() as u8) & 0xbb).collect();
                let packed = Stored::recipe(shape.clone(), format, bytes, &mut random);
                let merged = packed.clone().merged(vec![Change::delta(&shape, 9, &mut random)]);
                for recipe in [packed, merged] {
                    let q4_k = [Encoding { ty: GgmlType::Q4_K, importance: None }];
                    compare(gpu, &recipe, 0..height, &q4_k, &format!("{height}x{width} of {format:?}"));
                }
            }
        }
    }

    // Merges of any rank, in parts, in another order, in stacks.
    for (height, width, ranks) in
        [(64, 256, &[1][..]), (130, 512, &[16, 3]), (65, 1280, &[64]), (96, 256, &[257, 8, 1]), (4, 32, &[2])]
    {
        let shape = Shape::matrix(height, width);
        let values = rows(Kind::Normal, width, (height * width) as usize);
        let changes = ranks.iter().map(|r| Change::delta(&shape, *r, &mut random)).collect();
        let merged = Stored::floats(shape, &values).merged(changes);
        let types = encodings(width, None);
        let what = format!("{height}x{width} of ranks {ranks:?}");
        compare(gpu, &merged, 0..height, &types, &what);
        compare(gpu, &merged, 1..height - 1, &types, &what);
        if height % 32 == 0 {
            let turned = merged.clone().select(RowMap::Rope { head: 32 }, height).unwrap();
            compare(gpu, &turned, 5..height - 3, &types, &format!("{what}, rotated"));
        }
    }
    let stack: Vec<Recipe> = (0..5)
        .map(|i| {
            let shape = Shape::matrix(6, 256);
            let expert = Stored::floats(shape.clone(), &rows(Kind::Outliers, i, 6 * 256));
            if i % 2 == 0 { expert } else { expert.merged(vec![Change::delta(&shape, 4, &mut random)]) }
        })
        .collect();
    let stack = Recipe::stack(stack).unwrap();
    let weights = imatrix(3, 5 * 256);
    compare(gpu, &stack, 4..27, &encodings(256, Some(&weights)), "a stack of experts");

    // What is no number is refused in the same words.
    let mut values = rows(Kind::Normal, 1, 4 * 256);
    values[700] = f32::NAN;
    let damaged = Stored::floats(Shape::matrix(4, 256), &values);
    compare(gpu, &damaged, 0..4, &[Encoding { ty: GgmlType::Q4_K, importance: None }], "a NaN");
    let far = Stored::floats(Shape::matrix(1, 32), &[3e38; 32]);
    compare(gpu, &far, 0..1, &[Encoding { ty: GgmlType::Q8_0, importance: None }], "a scale out of range");
}

#[test]
#[ignore = "needs a driver: the test below brings one"]
fn small_pieces_equal_large_ones() {
    let mut random = Random(5);
    let shape = Shape::matrix(97, 512);
    let values = rows(Kind::HeavyTailed, 1, 97 * 512);
    let merged = Stored::floats(shape.clone(), &values).merged(vec![Change::delta(&shape, 8, &mut random)]);
    for memory in [1, 100_000, 1_000_000] {
        compare(&gpu(Some(memory)), &merged, 0..97, &encodings(512, None), &format!("{memory} bytes"));
    }
}

#[test]
fn the_gpu_equals_the_cpu_on_the_software_driver() {
    let Some(library) = host_gpu::library() else {
        eprintln!("SKIPPED: no C++ compiler (c++, or set CXX): the GPU's rows are not compared with the CPU's");
        return;
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--test-threads=1"])
        .env("TO_GGUF_CUDA_DRIVER", library)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !told.contains("software driver:"), "{told}");
    assert!(told.contains("2 passed"), "{told}");
}
