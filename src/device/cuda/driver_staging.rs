//! One stream of work on a GPU with the buffers that it moves rows through.
//!
//! What is queued runs later: a host buffer that is read or written before the stream is done holds the wrong
//! bytes. So a [`Staging`] owns its stream and all of its buffers, hands the host ones out only while nothing is
//! queued ([`Staging::wait`]), and waits before it lets go of them. That makes it safe to use; `unsafe` ends here.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::Range;

use cust::error::CudaResult;
use cust::memory::{AsyncCopyDestination, DeviceBuffer, DeviceSlice, LockedBuffer};
use cust::stream::{Stream, StreamFlags};

use super::failure::Failure;
use super::gpu::Gpu;
use super::kernels::Kernel;

/// A part of device memory starts at a multiple of this, as whole allocations do.
pub(super) const ALIGNMENT: usize = 256;

/// The buffers of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// What the host sends.
    Input,
    /// Rows as f32.
    Values,
    /// What the host gets.
    Output,
}

/// Bytes that each room must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) input: usize,
    pub(super) values: usize,
    pub(super) output: usize,
    /// Bytes that the host gets in all: of the output room, and of the values where they are wanted.
    pub(super) returned: usize,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    /// Device memory: so many bytes of a room from an offset. The kernel stays within them.
    Memory(Room, usize, usize),
    /// No device memory.
    Null,
    U64(u64),
    U32(u32),
    F32(f32),
}

/// Memory of both sides; an empty buffer holds nothing.
struct Buffers {
    input: LockedBuffer<u8>,
    returned: LockedBuffer<u8>,
    device: [DeviceBuffer<u8>; 3],
}

/// A stream and its buffers.
pub(super) struct Staging<'g> {
    gpu: &'g Gpu,
    // Declared before the stream, so that it goes first; `drop` has waited by then.
    buffers: Option<Buffers>,
    stream: Stream,
    queued: bool,
}

impl<'g> Staging<'g> {
    /// A stream without buffers.
    pub(super) fn new(gpu: &'g Gpu) -> Result<Self, Failure> {
        gpu.enter()?;
        let stream = gpu.check("creating a stream", Stream::new(StreamFlags::DEFAULT, None))?;
        Ok(Staging { gpu, buffers: None, stream, queued: false })
    }

    /// The GPU.
    pub(super) fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// Makes room for `sizes`; what the buffers held is lost where they have to grow.
    pub(super) fn reserve(&mut self, sizes: &Sizes) -> Result<(), Failure> {
        self.wait()?;
        self.gpu.enter()?;
        let wanted = [sizes.input, sizes.values, sizes.output];
        if let Some(b) = &self.buffers
            && b.device.iter().zip(wanted).all(|(held, wanted)| held.len() >= wanted)
            && b.input.len() >= sizes.input
            && b.returned.len() >= sizes.returned
        {
            return Ok(());
        }
        // What is there goes first: both would not fit where memory is short.
        self.release();
        let gpu = self.gpu;
        // SAFETY: device memory is only written by copies and kernels before it is read by them; the host never
        // reads it in place.
        let device =
            |bytes: usize| gpu.check("allocating device memory", unsafe { DeviceBuffer::uninitialized(bytes.max(1)) });
        let host = |bytes: usize| gpu.check("allocating pinned memory", LockedBuffer::new(&0u8, bytes.max(1)));
        self.buffers = Some(Buffers {
            device: [device(sizes.input)?, device(sizes.values)?, device(sizes.output)?],
            input: host(sizes.input)?,
            returned: host(sizes.returned)?,
        });
        Ok(())
    }

    /// Gives all buffers back.
    pub(super) fn release(&mut self) {
        // A stream that failed is done with its buffers, too.
        let _ = self.wait();
        self.buffers = None;
    }

    /// The host's input, while nothing is queued.
    pub(super) fn input(&mut self) -> &mut [u8] {
        assert!(!self.queued, "the input is being read");
        self.buffers.as_mut().map_or(&mut [], |b| b.input.as_mut_slice())
    }

    /// What came back, once it is there.
    pub(super) fn returned(&self) -> &[u8] {
        assert!(!self.queued, "the output is being written");
        self.buffers.as_ref().map_or(&[], |b| b.returned.as_slice())
    }

    /// Queues a copy of the first `bytes` of the input to the device.
    pub(super) fn upload(&mut self, bytes: usize) -> Result<(), Failure> {
        self.queue("uploading rows", |buffers, stream| {
            let mut target = part(&buffers.device[Room::Input as usize], 0..bytes);
            // SAFETY: the pinned buffer stays as it is until `wait`, since `input` refuses before, and both buffers
            // live until then.
            unsafe { target.async_copy_from(&buffers.input[..bytes], stream) }
        })
    }

    /// Queues the same byte over `bytes` of a room.
    pub(super) fn fill(&mut self, room: Room, bytes: Range<usize>, byte: u8) -> Result<(), Failure> {
        self.queue("filling device memory", |buffers, stream| {
            // SAFETY: the buffer lives until `wait`; work on it is in the order of the stream.
            unsafe { part(&buffers.device[room as usize], bytes).set_8_async(byte, stream) }
        })
    }

    /// Queues a copy of `bytes` of a room to the place `at` of what comes back.
    pub(super) fn download(&mut self, room: Room, bytes: Range<usize>, at: usize) -> Result<(), Failure> {
        self.queue("downloading rows", |buffers, stream| {
            let source = part(&buffers.device[room as usize], bytes.clone());
            // SAFETY: as for `upload`; `returned` refuses until `wait`.
            unsafe { source.async_copy_to(&mut buffers.returned[at..at + bytes.len()], stream) }
        })
    }

    /// Queues a kernel over so many items.
    pub(super) fn launch(&mut self, kernel: &Kernel, items: u64, args: &[Arg]) -> Result<(), Failure> {
        let function = self.gpu.kernel(kernel)?;
        self.queue(kernel.name, |buffers, stream| {
            // Each argument in eight bytes of its own: a kernel reads as many as its parameter has.
            let mut words: Vec<u64> = args
                .iter()
                .map(|arg| match *arg {
                    Arg::Memory(room, offset, bytes) => {
                        part(&buffers.device[room as usize], offset..offset + bytes).as_device_ptr().as_raw()
                    }
                    Arg::Null => 0,
                    Arg::U64(x) => x,
                    Arg::U32(x) => x.into(),
                    Arg::F32(x) => x.to_bits().into(),
                })
                .collect();
            let pointers: Vec<*mut c_void> = words.iter_mut().map(|w| std::ptr::from_mut(w).cast()).collect();
            // SAFETY: the driver copies the arguments before it returns. Their number and types are those of the
            // kernel (`kernels.rs`; the tests' driver compares them with the compiled kernel), each part of memory
            // was checked above to lie in its buffer, and buffers live until `wait`.
            unsafe { stream.launch(&function, kernel.grid(items), kernel.threads, 0, &pointers) }
        })
    }

    fn queue(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&mut Buffers, &Stream) -> CudaResult<()>,
    ) -> Result<(), Failure> {
        self.gpu.enter()?;
        let Some(buffers) = &mut self.buffers else { unreachable!("work is queued after `reserve`") };
        // Raised even if queueing fails: a part of it may have begun.
        self.queued = true;
        let result = work(buffers, &self.stream);
        self.gpu.check(doing, result)
    }

    /// Waits until all that was queued is done.
    pub(super) fn wait(&mut self) -> Result<(), Failure> {
        if !self.queued {
            return Ok(());
        }
        // Waits even if the context cannot be chosen: the buffers must not go while work on them is queued.
        let entered = self.gpu.enter();
        let result = self.stream.synchronize();
        // A stream that fails does no more work.
        self.queued = false;
        entered.and(self.gpu.check("computing rows", result))
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // Buffers and the stream belong to the context, which must be the thread's own to give them back.
        let _ = self.gpu.enter();
        self.release();
    }
}

/// A part of a buffer; panics where it does not lie in it, like a slice.
fn part(buffer: &DeviceBuffer<u8>, bytes: Range<usize>) -> DeviceSlice<u8> {
    assert!(bytes.start <= bytes.end && bytes.end <= buffer.len(), "{bytes:?} of {} bytes", buffer.len());
    buffer.index(bytes)
}
