//! Which device computes: what the user names, or a GPU where there is one and the work is worth it.

use super::cuda::{Cuda, Failure};
use super::{Cpu, Device};

/// Bytes of source from which the GPU is worth its start: opening a context and compiling the kernels takes about
/// as long as the CPU takes for so much.
const WORTH: u64 = 512 << 20;

/// Another number of bytes than [`WORTH`].
const WORTH_VARIABLE: &str = "TO_GGUF_GPU_FROM_BYTES";

/// The user's choice.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Choice {
    /// A GPU where there is one and the work is worth it.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// These GPUs.
    Cuda(Vec<u32>),
}

/// A device that is ready, and what to tell about it.
pub struct Chosen {
    /// The device.
    pub device: Box<dyn Device>,
    /// Why a GPU that is there is not used.
    pub warning: Option<String>,
}

impl From<Box<dyn Device>> for Chosen {
    fn from(device: Box<dyn Device>) -> Self {
        Chosen { device, warning: None }
    }
}

/// Opens what `choice` names, for `threads` workers and `bytes` of source. `gpu_memory` bounds the device memory
/// that is used of each GPU.
pub fn open(choice: &Choice, bytes: u64, threads: usize, gpu_memory: Option<u64>) -> Result<Chosen, Failure> {
    let cpu = || -> Box<dyn Device> { Box::new(Cpu) };
    match choice {
        Choice::Cpu => Ok(cpu().into()),
        Choice::Cuda(ordinals) => {
            let device: Box<dyn Device> = Box::new(Cuda::open(ordinals, gpu_memory, threads, false)?);
            Ok(device.into())
        }
        Choice::Auto if bytes < worth() => Ok(cpu().into()),
        Choice::Auto => match Cuda::open(&[0], gpu_memory, threads, true) {
            Ok(cuda) => {
                let device: Box<dyn Device> = Box::new(cuda);
                Ok(device.into())
            }
            // Most machines have none; nobody needs to hear of it.
            Err(e @ (Failure::NoDriver { .. } | Failure::NoDevice { .. })) => {
                tracing::debug!("{e}");
                Ok(cpu().into())
            }
            Err(e) => Ok(Chosen { device: cpu(), warning: Some(format!("computing on the CPU: {e}")) }),
        },
    }
}

fn worth() -> u64 {
    std::env::var(WORTH_VARIABLE).ok().and_then(|v| v.parse().ok()).unwrap_or(WORTH)
}
