//! Speeds of the CUDA kernels on the first GPU, next to what its memory and its arithmetic allow and to the CPU over
//! the same rows, on all threads. Every result is compared with the CPU's: a speed of wrong bytes is no speed.
//!
//!     cargo bench --bench cuda [-- --rows 14336] [--cols 4096]

#[path = "../tests/common/rows.rs"]
mod data;
#[path = "../tests/common/gpu.rs"]
mod gpu;

use std::time::Instant;

use cust::memory::DeviceBuffer;
use data::Random;
use gpu::Gpu;
use rayon::prelude::*;
use to_gguf::device::cuda::kernels::{self, Kernel};
use to_gguf::quant::{GgmlType, ImatrixRule, quantize_rows};

/// Launches that one time is the mean of.
const TIMES: u32 = 10;

fn main() {
    let (mut rows, mut cols) = (14336, 4096);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{arg} needs a number"));
        match arg.as_str() {
            "--rows" => rows = number(),
            "--cols" => cols = number(),
            _ => {}
        }
    }
    assert!(rows > 0 && cols > 0 && cols % 256 == 0, "--cols is a multiple of 256, --rows is not 0");
    if let Err(e) = to_gguf::device::cuda::list() {
        println!("no GPU to measure: {e}");
        return;
    }
    let gpu = Gpu::open();
    println!(
        "{}: {:.0} GB/s of memory, {:.1} T f32 instructions/s by its clocks; {rows} x {cols}, {} CPU threads",
        gpu.name,
        gpu.memory_bandwidth / 1e9,
        gpu.instructions / 1e12,
        rayon::current_num_threads()
    );
    let bench = Bench { gpu: &gpu, rows, cols, values: values(rows * cols) };
    gpu.alone(|| {
        bench.around();
        bench.quantizers();
    });
}

/// Weight-like values, as a bf16 model has them.
fn values(count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    values.par_chunks_mut(1 << 16).enumerate().for_each(|(i, part)| {
        let mut r = Random(i as u64);
        part.iter_mut().for_each(|v| *v = f32::from_bits((r.normal() * 0.02).to_bits() & 0xffff_0000));
    });
    values
}

struct Bench<'a> {
    gpu: &'a Gpu,
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

fn address(buffer: &DeviceBuffer<u8>) -> [u8; 8] {
    buffer.as_device_ptr().as_raw().to_ne_bytes()
}

fn number(n: usize) -> [u8; 8] {
    (n as u64).to_ne_bytes()
}

impl Bench<'_> {
    fn upload<T: bytemuck::Pod>(&self, values: &[T]) -> DeviceBuffer<u8> {
        self.gpu.upload(bytemuck::cast_slice(values))
    }

    fn download<T: bytemuck::Pod>(&self, buffer: &DeviceBuffer<u8>) -> Vec<T> {
        let mut out = vec![T::zeroed(); buffer.len() / size_of::<T>()];
        self.gpu.download(buffer, bytemuck::cast_slice_mut(&mut out));
        out
    }

    fn room(&self, bytes: usize) -> DeviceBuffer<u8> {
        self.upload(&vec![0u8; bytes])
    }

    /// Prints one kernel's speed: seconds of a run over all elements, bytes and instructions of an element.
    fn line(&self, name: &str, seconds: f64, bytes: f64, instructions: f64) {
        let per_second = (self.rows * self.cols) as f64 / seconds;
        println!(
            "{name:26} {:8.2} Gw/s {:6.0} GB/s ({:3.0} % of memory) {:3.0} % of instructions",
            per_second / 1e9,
            per_second * bytes / 1e9,
            per_second * bytes / self.gpu.memory_bandwidth * 100.0,
            per_second * instructions / self.gpu.instructions * 100.0
        );
    }

    fn run(&self, kernel: Kernel, items: usize, words: &mut [[u8; 8]], times: u32) -> f64 {
        self.gpu.run(kernel, kernel.grid(items as u64), words, times)
    }

    /// Everything that is no quantizer.
    fn around(&self) {
        let (rows, cols, count) = (self.rows, self.cols, self.values.len());
        let source: Vec<u16> = self.values.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
        let (source, out) = (self.upload(&source), self.room(4 * count));
        let words = &mut [address(&source), address(&out), number(count)];
        let seconds = self.run(kernels::DECODE_BF16, count, words, TIMES);
        assert!(self.download::<f32>(&out) == self.values, "decode_bf16");
        self.line("decode_bf16", seconds, 6.0, 1.0);

        let encoded = self.room(2 * count);
        let words = &mut [address(&out), address(&encoded), number(count)];
        let seconds = self.run(kernels::ENCODE_F16, count, words, TIMES);
        let mut want = vec![0; 2 * count];
        to_gguf::quant::encode_f16(&self.values, &mut want);
        assert!(self.download::<u8>(&encoded) == want, "encode_f16");
        self.line("encode_f16", seconds, 6.0, 12.0);

        let first = self.upload(&[u64::MAX]);
        let words = &mut [address(&out), address(&first), number(count)];
        let seconds = self.run(kernels::FIND_NOT_FINITE, count, words, TIMES);
        assert_eq!(self.download::<u64>(&first), [u64::MAX]);
        self.line("find_not_finite", seconds, 4.0, 3.0);

        let sigma2 = self.room(4 * rows);
        let words = &mut [address(&out), address(&sigma2), number(rows), number(cols)];
        let seconds = self.run(kernels::ROW_SIGMA2, rows, words, TIMES);
        let mean = |row: &[f32]| row.iter().fold(0f32, |sum, v| sum + v * v) / cols as f32;
        let want: Vec<f32> = self.values.par_chunks(cols).map(mean).collect();
        assert!(self.download::<f32>(&sigma2) == want, "row_sigma2");
        self.line("row_sigma2", seconds, 4.0, 2.0);

        for rank in [16, 64] {
            let (b, a) = (values(rows * rank), values(rank * cols));
            let mut want = self.values.clone();
            want.par_chunks_mut(cols).zip(b.par_chunks(rank)).for_each(|(row, b)| {
                for (j, v) in row.iter_mut().enumerate() {
                    *v += 2.0 * (0..rank).fold(0f32, |sum, k| sum + b[k] * a[k * cols + j]);
                }
            });
            let (b, a, merged) = (self.upload(&b), self.upload(&a), self.upload(&self.values));
            let mut words = [
                address(&merged),
                address(&b),
                address(&a),
                [0; 8],
                number(rows),
                number(cols),
                number(rank),
                u64::from(2f32.to_bits()).to_ne_bytes(),
            ];
            let tiles = kernels::merge_tiles(rows as u64, cols as u64) as usize;
            self.run(kernels::MERGE, tiles, &mut words, 1);
            assert!(self.download::<f32>(&merged) == want, "merge of rank {rank}");
            let seconds = self.run(kernels::MERGE, tiles, &mut words, TIMES);
            self.line(&format!("merge of rank {rank}"), seconds, 8.0, 2.0 * rank as f64);
        }
    }

    fn quantizers(&self) {
        let values = self.upload(&self.values);
        for ty in GgmlType::all() {
            let with: &[bool] = match ty.imatrix_rule() {
                Some(ImatrixRule::Optional) => &[false, true],
                _ => &[false],
            };
            for with in with {
                self.quantizer(ty, *with, &values);
            }
        }
    }

    fn quantizer(&self, ty: GgmlType, with: bool, values: &DeviceBuffer<u8>) {
        let Some(quantizer) = kernels::quantizer(ty, with) else { return };
        let (rows, cols) = (self.rows, self.cols);
        let imatrix = with.then(|| data::imatrix(1, cols));
        let row_bytes = ty.row_bytes(cols as u64).expect("whole blocks") as usize;
        let mut want = vec![0; rows * row_bytes];
        let started = Instant::now();
        want.par_chunks_mut(row_bytes).zip(self.values.par_chunks(cols)).with_min_len(16).for_each(|(out, row)| {
            quantize_rows(ty, row, cols, imatrix.as_deref(), out).expect("rows that can be encoded");
        });
        let cpu = started.elapsed().as_secs_f64();
        let importance = self.upload(&imatrix.unwrap_or_else(|| vec![0.0; 4]));
        let (sigma2, out) = (self.room(4 * rows), self.room(want.len()));
        let mut statistics = [address(values), address(&sigma2), number(rows), number(cols)];
        let mut words =
            [address(values), address(&importance), address(&sigma2), address(&out), number(rows), number(cols)];
        let blocks = rows * cols / ty.geometry().elements as usize;
        let mut seconds = 0.0;
        // The first launch compiles nothing, but warms caches and clocks.
        for times in [1, TIMES] {
            seconds = 0.0;
            if quantizer.row_sigma2 {
                seconds += self.run(kernels::ROW_SIGMA2, rows, &mut statistics, times);
            }
            seconds += self.run(quantizer.kernel, blocks, &mut words, times);
        }
        assert!(self.download::<u8>(&out) == want, "{ty}, imatrix {with}: other bytes than on the CPU");
        let name = format!("{ty}{}", if with { ", imatrix" } else { "" });
        self.line(&name, seconds, 4.0 + ty.bits_per_weight() / 8.0, instructions(ty, with));
        println!("{:26} {:8.2} Gw/s on the CPU: {:.0} times", "", (rows * cols) as f64 / cpu / 1e9, cpu / seconds);
    }
}

/// f32 and integer instructions that the inner loops of a kernel spend on a weight: candidates times what one costs.
fn instructions(ty: GgmlType, with: bool) -> f64 {
    // A candidate of an affine search: 6 for the code, 6 for three sums, 6 for the error; of a symmetric one: 5 and 6.
    let (affine, symmetric) = (18.0, 11.0);
    match (ty, with) {
        (GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q2_K | GgmlType::Q4_K | GgmlType::Q5_K, true) => 37.0 * affine,
        (GgmlType::Q4_K, false) => 21.0 * (affine + 2.0),
        (GgmlType::Q5_K | GgmlType::Q2_K, false) => 16.0 * (affine + 2.0),
        (GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q3_K | GgmlType::Q6_K, true) => 19.0 * symmetric,
        (GgmlType::Q6_K, false) => 19.0 * (symmetric + 1.0),
        (GgmlType::IQ4_NL | GgmlType::IQ4_XS, _) => 16.0 * 12.0,
        (GgmlType::Q3_K, false) => 5.0 * 30.0,
        _ => 16.0,
    }
}
