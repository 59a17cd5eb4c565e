//! A GPU: what it is, its context, and the kernels loaded into it.

use cust::context::{Context, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::error::{CudaError, CudaResult};
use cust::function::Function;
use cust::{CudaApiVersion, CudaFlags};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::driver::{self, ErrorText};
use super::failure::{DriverAnswer, Failure};
use super::kernels::{Kernel, Module};

/// The version of CUDA whose drivers know the PTX of the kernels.
const NEEDS_CUDA: (i32, i32) = (12, 0);

/// The compute capability that the PTX is for.
const NEEDS_CAPABILITY: (i32, i32) = (7, 5);

/// The part of free device memory that is used unless `--gpu-memory` says otherwise: half, since other programs
/// may start meanwhile, and more makes nothing faster.
const SHARE: u64 = 2;

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GpuInfo {
    /// Its number, as in `--device cuda:N`.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Bytes of device memory.
    pub memory: u64,
    /// Compute capability, such as `9.0`.
    pub compute_capability: String,
    /// Whether the kernels run on it.
    pub supported: bool,
}

impl GpuInfo {
    /// Number and name, for messages.
    fn label(&self) -> String {
        format!("cuda:{} ({})", self.ordinal, self.name)
    }
}

/// What the driver is and sees.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Gpus {
    /// The version of CUDA that the driver supports, such as `12.4`.
    pub driver: String,
    /// The version that the kernels need.
    pub needs: String,
    /// The GPUs, in the driver's order.
    pub gpus: Vec<GpuInfo>,
}

/// Starts the driver and lists what it sees.
pub fn list() -> Result<Gpus, Failure> {
    if let Some(cause) = driver::missing() {
        return Err(Failure::NoDriver { cause: cause.to_owned() });
    }
    let told = |e| Failure::NoDevice { answer: answer(e) };
    cust::init(CudaFlags::empty()).map_err(told)?;
    let version = CudaApiVersion::get().map_err(told)?;
    let count = Device::num_devices().map_err(told)?;
    let gpus = (0..count).map(|n| info(n).map_err(told)).collect::<Result<Vec<_>, _>>()?;
    let (major, minor) = NEEDS_CUDA;
    Ok(Gpus { driver: format!("{}.{}", version.major(), version.minor()), needs: format!("{major}.{minor}"), gpus })
}

fn info(ordinal: u32) -> CudaResult<GpuInfo> {
    let device = Device::get_device(ordinal)?;
    let major = device.get_attribute(DeviceAttribute::ComputeCapabilityMajor)?;
    let minor = device.get_attribute(DeviceAttribute::ComputeCapabilityMinor)?;
    Ok(GpuInfo {
        ordinal,
        name: device.name()?,
        memory: device.total_memory()? as u64,
        compute_capability: format!("{major}.{minor}"),
        supported: (major, minor) >= NEEDS_CAPABILITY,
    })
}

/// The driver's own words for a failure that `cust` reports.
fn answer(error: CudaError) -> DriverAnswer {
    // Errors of `cust` itself have numbers that no driver gives.
    let code = if error as u32 >= 100_000 { error as u32 } else { driver::last_code() };
    let text = |kind| driver::error_text(kind, code).map(|t| t.to_string_lossy().into_owned());
    DriverAnswer { code, name: text(ErrorText::Name), text: text(ErrorText::Sentence) }
}

/// A GPU that is ready to compute.
pub(super) struct Gpu {
    label: String,
    // Before the context: fields go in this order.
    modules: [OnceLock<cust::module::Module>; Module::ALL.len()],
    /// Held while a module is compiled, so that it is compiled once.
    compiling: Mutex<()>,
    context: Context,
    /// Bytes of device memory to be used in all.
    memory: u64,
}

impl Gpu {
    /// Makes a context on GPU number `ordinal` and loads the kernels; `memory` bounds what is used of its memory.
    pub(super) fn open(ordinal: u32, memory: Option<u64>) -> Result<Gpu, Failure> {
        let seen = list()?;
        let count = seen.gpus.len() as u32;
        if count == 0 {
            let code = cust::sys::CUresult::CUDA_ERROR_NO_DEVICE as u32;
            return Err(Failure::NoDevice { answer: DriverAnswer { code, name: None, text: None } });
        }
        let Some(info) = seen.gpus.get(ordinal as usize) else { return Err(Failure::NoSuchGpu { ordinal, count }) };
        let label = info.label();
        let version = CudaApiVersion::get().map_err(|e| Failure::NoDevice { answer: answer(e) })?;
        if (version.major(), version.minor()) < NEEDS_CUDA {
            return Err(Failure::DriverTooOld { driver: seen.driver, needs: seen.needs });
        }
        if !info.supported {
            let (major, minor) = NEEDS_CAPABILITY;
            let needs = format!("{major}.{minor}");
            return Err(Failure::GpuTooOld { gpu: label, has: info.compute_capability.clone(), needs });
        }
        let made = Device::get_device(ordinal).and_then(Context::new);
        let context = check(&label, "creating a context", made)?;
        // `Context::new` does so too, but does not look whether it worked.
        check(&label, "choosing the context", CurrentContext::set_current(&context))?;
        let (free, _) = check(&label, "asking for free memory", cust::memory::mem_get_info())?;
        let memory = memory.unwrap_or(free as u64 / SHARE);
        let modules = std::array::from_fn(|_| OnceLock::new());
        let gpu = Gpu { label, modules, compiling: Mutex::new(()), context, memory };
        // All work begins with it, so a driver that cannot compile the kernels is found before any work.
        gpu.module(Module::Decode)?;
        Ok(gpu)
    }

    /// Number and name.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Bytes of device memory to be used in all.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// Makes this GPU the one that the calling thread talks to.
    pub(super) fn enter(&self) -> Result<(), Failure> {
        self.check("choosing the context", CurrentContext::set_current(&self.context))
    }

    /// A kernel; its module is compiled for this GPU when the first of its kernels is wanted.
    pub(super) fn kernel(&self, kernel: &Kernel) -> Result<Function<'_>, Failure> {
        self.enter()?;
        self.check(kernel.name, self.module(kernel.module)?.get_function(kernel.name))
    }

    fn module(&self, module: Module) -> Result<&cust::module::Module, Failure> {
        let place = &self.modules[module as usize];
        if let Some(compiled) = place.get() {
            return Ok(compiled);
        }
        let _compiling = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = place.get() {
            return Ok(compiled);
        }
        let compiled = cust::module::Module::from_ptx(module.ptx(), &[]);
        if compiled.is_err() && driver::last_code() == cust::sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION as u32 {
            let Gpus { driver, needs, .. } = list()?;
            return Err(Failure::DriverTooOld { driver, needs });
        }
        let compiled = self.check("compiling the kernels", compiled)?;
        Ok(place.get_or_init(|| compiled))
    }

    /// The result of a call on this GPU, with a failure put into words.
    pub(super) fn check<T>(&self, doing: &'static str, result: CudaResult<T>) -> Result<T, Failure> {
        check(&self.label, doing, result)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // The module is unloaded next, which needs its context; a GPU that failed has nothing left to unload.
        let _ = self.enter();
    }
}

fn check<T>(gpu: &str, doing: &'static str, result: CudaResult<T>) -> Result<T, Failure> {
    result.map_err(|e| {
        let (gpu, answer) = (gpu.to_owned(), answer(e));
        match answer.code == cust::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32 {
            true => Failure::OutOfMemory { gpu, doing, answer },
            false => Failure::Call { gpu, doing, answer },
        }
    })
}
