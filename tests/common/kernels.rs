//! The CUDA kernels as host C++: compiled when a test asks for them, run CUDA block by CUDA block. With
//! `TO_GGUF_TEST_GPU` set, the same tests run on the first GPU instead.
#![allow(unsafe_code, dead_code, unreachable_pub)]

#[path = "gpu.rs"]
mod gpu;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::sync::OnceLock;

use super::host_gpu;
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use gpu::Gpu;
use libloading::{Library, Symbol};
use to_gguf::device::cuda::kernels::Kernel;

/// What `cuda/host/host_kernels.h` calls a HostKernel.
#[repr(C)]
struct Entry {
    name: *const c_char,
    parameters: *const c_char,
    run: unsafe extern "C" fn(u32, u32, c_int, *mut *mut c_void),
}

/// The compiled kernels.
pub struct HostKernels {
    entries: &'static [Entry],
}

// SAFETY: the entries are constants of a library that is never unloaded; what kernels change is thread-local.
unsafe impl Send for HostKernels {}
// SAFETY: as above.
unsafe impl Sync for HostKernels {}

/// What runs the kernels.
pub enum Machine {
    Host(HostKernels),
    Gpu(Box<Gpu>),
}

/// An argument of a launch.
pub enum Arg<'a> {
    In(&'a Buffer),
    Out(&'a mut Buffer),
    Null,
    U32(u32),
    U64(u64),
    F32(f32),
}

/// How a launch is cut into CUDA blocks, and in which order their threads run.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// CUDA blocks, or one for each tile.
    pub grid: Option<u32>,
    pub backwards: bool,
}

impl Geometry {
    /// Ones that differ in everything, to go through in turn.
    pub const ALL: [Geometry; 4] = [
        Geometry { grid: None, backwards: false },
        Geometry { grid: Some(1), backwards: true },
        Geometry { grid: None, backwards: true },
        Geometry { grid: Some(3), backwards: false },
    ];
}

/// Device memory: aligned as a driver aligns it, with a guard behind its end.
pub struct Buffer {
    words: Vec<u128>,
    bytes: usize,
}

const GUARD: u8 = 0xa5;

impl Buffer {
    /// Bytes that no kernel has written yet.
    pub fn new(bytes: usize) -> Self {
        Buffer { words: vec![u128::from_ne_bytes([GUARD; 16]); bytes.div_ceil(16) + 4], bytes }
    }

    pub fn of<T: Pod>(values: &[T]) -> Self {
        let bytes: &[u8] = cast_slice(values);
        let mut buffer = Buffer::new(bytes.len());
        cast_slice_mut::<u128, u8>(&mut buffer.words)[..bytes.len()].copy_from_slice(bytes);
        buffer
    }

    /// The contents, after a look at the guard.
    pub fn get<T: Pod>(&self) -> &[T] {
        let all: &[u8] = cast_slice(&self.words);
        assert!(all[self.bytes..].iter().all(|&b| b == GUARD), "a kernel wrote behind the end of a buffer");
        cast_slice(&all[..self.bytes])
    }
}

impl Machine {
    /// The host's kernels, if there is a C++ compiler (`CXX`, else `c++`; says so on stderr if not), or a GPU.
    pub fn open() -> Option<&'static Machine> {
        static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
        let machine = MACHINE.get_or_init(|| {
            if std::env::var_os("TO_GGUF_TEST_GPU").is_some() {
                return Some(Machine::Gpu(Box::new(Gpu::open())));
            }
            host_gpu::library().map(|path| Machine::Host(load(path)))
        });
        if machine.is_none() {
            eprintln!("SKIPPED: no C++ compiler (c++, or set CXX): the CUDA kernels are not compared with the CPU");
        }
        machine.as_ref()
    }

    /// Runs a kernel over so many items.
    pub fn launch(&self, kernel: Kernel, items: u64, geometry: Geometry, arguments: &mut [Arg<'_>]) {
        let grid = geometry.grid.unwrap_or_else(|| kernel.grid(items));
        match self {
            Machine::Host(host) => host.launch(kernel, grid, geometry.backwards, arguments),
            Machine::Gpu(gpu) => gpu.alone(|| on_gpu(gpu, kernel, grid, arguments)),
        }
    }
}

/// Sends what the arguments hold, runs the kernel, and brings back what it may have written.
fn on_gpu(gpu: &Gpu, kernel: Kernel, grid: u32, arguments: &mut [Arg<'_>]) {
    let mut memory = Vec::new();
    let mut words: Vec<[u8; 8]> = arguments
        .iter()
        .map(|a| {
            a.number().unwrap_or_else(|| {
                let (Arg::In(Buffer { words, .. }) | Arg::Out(Buffer { words, .. })) = a else {
                    unreachable!("a buffer")
                };
                memory.push(gpu.upload(cast_slice(words)));
                memory[memory.len() - 1].as_device_ptr().as_raw().to_ne_bytes()
            })
        })
        .collect();
    gpu.run(kernel, grid, &mut words, 1);
    let buffers = arguments.iter_mut().filter(|a| matches!(a, Arg::In(_) | Arg::Out(_)));
    for (argument, memory) in buffers.zip(&memory) {
        if let Arg::Out(buffer) = argument {
            gpu.download(memory, cast_slice_mut(&mut buffer.words));
        }
    }
}

impl Arg<'_> {
    /// The eight bytes of an argument that is no buffer.
    fn number(&self) -> Option<[u8; 8]> {
        match self {
            Arg::In(_) | Arg::Out(_) => None,
            Arg::Null => Some([0; 8]),
            Arg::U32(n) => Some(u64::from(*n).to_ne_bytes()),
            Arg::U64(n) => Some(n.to_ne_bytes()),
            Arg::F32(v) => Some(u64::from(v.to_bits()).to_ne_bytes()),
        }
    }
}

impl HostKernels {
    /// The names of all kernels, and their parameters as letters.
    pub fn signatures(&self) -> impl Iterator<Item = (&str, &str)> {
        // SAFETY: both are constant strings of the library.
        let text = |s: *const c_char| unsafe { CStr::from_ptr(s) }.to_str().expect("ASCII");
        self.entries.iter().map(move |e| (text(e.name), text(e.parameters)))
    }

    fn launch(&self, kernel: Kernel, grid: u32, backwards: bool, arguments: &mut [Arg<'_>]) {
        let at = self.signatures().position(|(name, _)| name == kernel.name);
        let at = at.unwrap_or_else(|| panic!("{} is not in the library", kernel.name));
        let letters: String = arguments
            .iter()
            .map(|a| match a {
                Arg::In(_) | Arg::Out(_) | Arg::Null => 'p',
                Arg::U32(_) => 'u',
                Arg::U64(_) => 'U',
                Arg::F32(_) => 'f',
            })
            .collect();
        assert_eq!(self.signatures().nth(at), Some((kernel.name, &letters[..])));
        let mut words: Vec<[u8; 8]> = arguments
            .iter_mut()
            .map(|a| match a {
                Arg::In(buffer) => (buffer.words.as_ptr() as u64).to_ne_bytes(),
                Arg::Out(buffer) => (buffer.words.as_mut_ptr() as u64).to_ne_bytes(),
                other => other.number().expect("no buffer"),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|w| w.as_mut_ptr().cast()).collect();
        // SAFETY: the arguments have the types that the letters name; buffers outlive the call.
        unsafe {
            (self.entries[at].run)(grid, kernel.threads, backwards.into(), pointers.as_mut_ptr());
        }
    }
}

fn load(path: &Path) -> HostKernels {
    // SAFETY: the library has no initialisers; the symbols have the types of host_kernels.h. It is never unloaded.
    unsafe {
        let library = Box::leak(Box::new(Library::new(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))));
        let count: Symbol<'_, *const u32> = library.get(b"to_gguf_kernel_count").expect("the symbol");
        let table: Symbol<'_, *const Entry> = library.get(b"to_gguf_kernels").expect("the symbol");
        HostKernels { entries: std::slice::from_raw_parts(*table, **count as usize) }
    }
}
