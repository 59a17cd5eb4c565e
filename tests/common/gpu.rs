//! The CUDA kernels on a real GPU, the first one: what `cuda/check.sh` compares and measures.
#![allow(unsafe_code, dead_code, unreachable_pub)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cust::CudaFlags;
use cust::context::{Context, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::event::{Event, EventFlags};
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::module::Module as Compiled;
use cust::stream::{Stream, StreamFlags};
use to_gguf::device::cuda::kernels::{Kernel, Module};

/// A GPU with all kernels.
pub struct Gpu {
    pub name: String,
    /// Peak bytes per second of its memory, by its clocks.
    pub memory_bandwidth: f64,
    /// Peak f32 instructions per second, by its clocks.
    pub instructions: f64,
    modules: HashMap<Module, Compiled>,
    stream: Stream,
    context: Context,
    /// One launch at a time.
    turn: Mutex<()>,
}

impl Gpu {
    /// The first GPU; panics with the driver's words where there is none.
    pub fn open() -> Gpu {
        let seen = to_gguf::device::cuda::list().unwrap_or_else(|e| panic!("{e}"));
        assert!(!seen.gpus.is_empty(), "the driver sees no GPU");
        cust::init(CudaFlags::empty()).expect("a driver");
        let device = Device::get_device(0).expect("a GPU");
        let context = Context::new(device).expect("a context");
        let compile = |m: Module| (m, Compiled::from_ptx(m.ptx(), &[]).unwrap_or_else(|e| panic!("{m:?}: {e}")));
        let ask = |a| device.get_attribute(a).map_or(0.0, f64::from);
        // Both clocks are in kHz; memory moves data twice in a cycle, over a bus counted in bits.
        let memory_bandwidth =
            ask(DeviceAttribute::MemoryClockRate) * 1e3 * 2.0 * ask(DeviceAttribute::GlobalMemoryBusWidth) / 8.0;
        let major = ask(DeviceAttribute::ComputeCapabilityMajor);
        let wide = major >= 9.0 || major == 8.0 && ask(DeviceAttribute::ComputeCapabilityMinor) > 0.0;
        let lanes = if wide { 128.0 } else { 64.0 };
        let instructions = ask(DeviceAttribute::MultiprocessorCount) * lanes * ask(DeviceAttribute::ClockRate) * 1e3;
        Gpu {
            name: device.name().expect("a name"),
            memory_bandwidth,
            instructions,
            modules: Module::ALL.into_iter().map(compile).collect(),
            stream: Stream::new(StreamFlags::DEFAULT, None).expect("a stream"),
            context,
            turn: Mutex::new(()),
        }
    }

    /// Runs `work` with the GPU to itself.
    pub fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        CurrentContext::set_current(&self.context).expect("the context");
        work()
    }

    /// Copies bytes to the GPU. Within [`Gpu::alone`].
    pub fn upload(&self, bytes: &[u8]) -> DeviceBuffer<u8> {
        DeviceBuffer::from_slice(bytes).expect("device memory")
    }

    /// Copies bytes back.
    pub fn download(&self, from: &DeviceBuffer<u8>, to: &mut [u8]) {
        from.copy_to(to).expect("a copy");
    }

    /// Runs a kernel `times` times and waits; answers the seconds of one run. Within [`Gpu::alone`].
    pub fn run(&self, kernel: Kernel, grid: u32, words: &mut [[u8; 8]], times: u32) -> f64 {
        let function = self.modules[&kernel.module].get_function(kernel.name).expect("the kernel");
        let pointers: Vec<*mut c_void> = words.iter_mut().map(|w| w.as_mut_ptr().cast()).collect();
        let event = || Event::new(EventFlags::DEFAULT).expect("an event");
        let (start, end) = (event(), event());
        start.record(&self.stream).expect("a record");
        for _ in 0..times {
            // SAFETY: the arguments have the kernel's types, which the callers' tests compare with its PTX, and the
            // memory they point to lives until the stream is done, below.
            let launched = unsafe { self.stream.launch(&function, grid, kernel.threads, 0, &pointers) };
            launched.unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        }
        end.record(&self.stream).expect("a record");
        self.stream.synchronize().unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        f64::from(end.elapsed_time_f32(&start).expect("a time")) / 1e3 / f64::from(times)
    }
}
