//! NVIDIA GPUs, through `cust`: the same rows, the same bytes.
//!
//! [`kernels`] says what runs there; the kernels themselves are in `cuda/`. A thread's worker ([`worker`]) cuts its
//! rows into pieces ([`piece`]) and sends them through stagings ([`driver_staging`]): a stream with pinned host
//! buffers and device buffers. The driver is opened at run time ([`driver`]); nothing is linked.
//!
//! A stored tensor's bytes go up as they are, with the factors of its low-rank changes; what comes back is encoded
//! rows. What has no kernel is evaluated, or encoded, on the CPU in the same pass.

mod driver;
mod driver_api;
mod driver_staging;
mod failure;
mod gpu;
pub mod kernels;
mod piece;
mod worker;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use failure::{DriverAnswer, Failure};
use gpu::Gpu;
pub use gpu::{GpuInfo, Gpus, list};
use worker::{CudaWorker, PIECE_ELEMENTS};

use super::{Device, DeviceError, Worker};

/// One GPU or several, whose workers take pieces of rows in turn.
pub struct Cuda {
    gpus: Vec<Gpu>,
    /// Workers there will be.
    threads: usize,
    /// Whether the CPU takes over where a GPU fails.
    cpu_goes_on: bool,
    workers: AtomicUsize,
    /// Why the GPUs are no longer used.
    lost: OnceLock<String>,
}

impl Cuda {
    /// Opens GPUs by number for so many workers, each GPU with a bound of the device memory to be used.
    /// `cpu_goes_on`: where a GPU fails in the middle of the work, the CPU does the rest.
    pub fn open(ordinals: &[u32], memory: Option<u64>, threads: usize, cpu_goes_on: bool) -> Result<Cuda, Failure> {
        let mut gpus = Vec::new();
        for (i, &ordinal) in ordinals.iter().enumerate() {
            if !ordinals[..i].contains(&ordinal) {
                gpus.push(Gpu::open(ordinal, memory)?);
            }
        }
        Ok(Cuda { gpus, threads, cpu_goes_on, workers: AtomicUsize::new(0), lost: OnceLock::new() })
    }

    /// Stagings of a worker: two at least, so that one is filled while the other is computed, and one for each GPU.
    fn stagings(&self) -> usize {
        self.gpus.len().max(2)
    }

    /// Bytes of a GPU's memory for one staging.
    fn budget(&self, gpu: &Gpu) -> u64 {
        let stagings = (self.threads * self.stagings()).div_ceil(self.gpus.len()).max(1);
        gpu.memory() / stagings as u64
    }

    fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    fn lose(&self, failure: &Failure) {
        self.lost.get_or_init(|| failure.to_string());
    }
}

impl Device for Cuda {
    fn name(&self) -> String {
        let gpus = self.gpus.iter().map(Gpu::label).collect::<Vec<_>>().join(" and ");
        if self.is_lost() { format!("{gpus}, then the cpu") } else { gpus }
    }

    fn worker(&self) -> Result<Box<dyn Worker + '_>, DeviceError> {
        Ok(Box::new(CudaWorker::new(self, self.workers.fetch_add(1, Ordering::Relaxed))))
    }

    fn chunk_elements(&self) -> u64 {
        // A piece for each staging.
        PIECE_ELEMENTS * self.stagings() as u64
    }

    fn warnings(&self) -> Vec<String> {
        self.lost.get().map(|why| format!("the CPU did the rest: {why}")).into_iter().collect()
    }
}
