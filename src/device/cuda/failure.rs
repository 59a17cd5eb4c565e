//! What can go wrong with a GPU, each with its cause and what to do.

/// Computing on a GPU failed, or cannot begin.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The driver could not be opened.
    #[error("--device cuda: there is no NVIDIA driver here ({cause}); install it, or use --device cpu")]
    NoDriver {
        /// What the system said.
        cause: String,
    },
    /// The driver is there, but does not work or sees nothing.
    #[error("--device cuda: the NVIDIA driver sees no GPU ({answer}); see `nvidia-smi`, or use --device cpu")]
    NoDevice {
        /// The driver's answer.
        answer: DriverAnswer,
    },
    /// A GPU that is not there was asked for.
    #[error(
        "--device cuda:{ordinal}: there is no such GPU, the driver sees {count}, numbered from 0; see `to-gguf devices`"
    )]
    NoSuchGpu {
        /// The number that was given.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The driver cannot load the kernels.
    #[error(
        "--device cuda: the NVIDIA driver supports CUDA {driver}, but the kernels need CUDA {needs}; update the driver to 525 or later, or use --device cpu"
    )]
    DriverTooOld {
        /// What the driver supports.
        driver: String,
        /// What the kernels are compiled for.
        needs: String,
    },
    /// The GPU cannot run the kernels.
    #[error("{gpu}: has compute capability {has}, but the kernels need {needs}; use --device cpu")]
    GpuTooOld {
        /// Number and name of the GPU.
        gpu: String,
        /// What it has.
        has: String,
        /// What the kernels are compiled for.
        needs: String,
    },
    /// Device memory is too short even for the smallest piece of work.
    #[error("{gpu}: out of memory, {doing}: {answer}; free some of it, give fewer --threads, or use --device cpu")]
    OutOfMemory {
        /// Number and name of the GPU.
        gpu: String,
        /// What was done.
        doing: &'static str,
        /// The driver's answer.
        answer: DriverAnswer,
    },
    /// A call of the driver failed.
    #[error("{gpu}: the GPU failed, {doing}: {answer}; see the driver's log (dmesg), or use --device cpu")]
    Call {
        /// Number and name of the GPU.
        gpu: String,
        /// What was done.
        doing: &'static str,
        /// The driver's answer.
        answer: DriverAnswer,
    },
}

impl Failure {
    /// Why there is no GPU, without the option that asked for one and without advice.
    pub fn cause(&self) -> String {
        match self {
            Failure::NoDriver { cause } => format!("there is no NVIDIA driver ({cause})"),
            Failure::NoDevice { answer } => format!("the NVIDIA driver sees no GPU ({answer})"),
            other => other.to_string(),
        }
    }

    /// Whether less memory may help.
    pub(super) fn is_out_of_memory(&self) -> bool {
        matches!(self, Failure::OutOfMemory { .. })
    }
}

/// An error as the driver gives it: number, name and meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverAnswer {
    /// The number.
    pub code: u32,
    /// The driver's name of it, such as `CUDA_ERROR_LAUNCH_FAILED`.
    pub name: Option<String>,
    /// What it means.
    pub text: Option<String>,
}

impl std::fmt::Display for DriverAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name.as_deref().unwrap_or("error"), self.code)?;
        self.text.as_deref().map_or(Ok(()), |text| write!(f, ", {text}"))
    }
}
