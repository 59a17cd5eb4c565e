//! The NVIDIA driver, opened when it is first needed: the program is built and starts without one.
//!
//! `driver_api.rs` defines the entry points that `cust` calls; each looks its namesake up here. A missing driver
//! answers 100 (no device), a missing function 500 (not found). `cust` reads results into an enum, so that codes
//! newer than it become `CUDA_ERROR_UNKNOWN`; the code that the driver gave is kept for the message.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CStr, OsString, c_char, c_void};
use std::sync::OnceLock;

use cust::sys::CUresult;
use libloading::Library;

use super::driver_api::{KNOWN, NAMES};

/// Names another driver than the system's: the software driver of the tests.
pub(super) const DRIVER_VARIABLE: &str = "TO_GGUF_CUDA_DRIVER";

const NO_DEVICE: u32 = CUresult::CUDA_ERROR_NO_DEVICE as u32;
const NOT_FOUND: u32 = CUresult::CUDA_ERROR_NOT_FOUND as u32;

/// An open driver and its functions.
struct Driver {
    library: Library,
    /// Addresses in the order of [`NAMES`]; 0 where the driver lacks one.
    symbols: Vec<usize>,
}

static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();

thread_local! {
    /// The last result on this thread that was no success, as the driver gave it.
    static LAST: Cell<u32> = const { Cell::new(0) };
}

/// The names under which the system's driver is installed.
fn names() -> Vec<OsString> {
    if let Some(path) = std::env::var_os(DRIVER_VARIABLE) {
        return vec![path];
    }
    let names: &[&str] = match std::env::consts::OS {
        "linux" => &["libcuda.so.1", "libcuda.so"],
        "windows" => &["nvcuda.dll"],
        _ => &[],
    };
    names.iter().map(OsString::from).collect()
}

fn open() -> Result<Driver, String> {
    let mut cause = "NVIDIA makes none for this system".to_owned();
    for (i, name) in names().iter().enumerate() {
        // SAFETY: the initialisers of a driver library run, as in every program that uses the GPU; the name is
        // the system's own, or the user's choice.
        match unsafe { Library::new(name) } {
            Ok(library) => {
                let symbols = NAMES.iter().map(|name| address(&library, name)).collect();
                return Ok(Driver { library, symbols });
            }
            // The first name is the usual one, so its message tells most.
            Err(e) if i == 0 => cause = e.to_string(),
            Err(_) => {}
        }
    }
    Err(cause)
}

fn address(library: &Library, name: &str) -> usize {
    // SAFETY: only the address is taken; `driver_api.rs` calls it by the type declared for this name.
    unsafe { library.get::<*const c_void>(name.as_bytes()) }.map_or(0, |symbol| *symbol as usize)
}

fn driver() -> Result<&'static Driver, &'static str> {
    DRIVER.get_or_init(open).as_ref().map_err(String::as_str)
}

/// Why there is no driver, where there is none.
pub(super) fn missing() -> Option<&'static str> {
    driver().err()
}

/// The address of entry point number `entry`, or the result that stands for its absence.
pub(super) fn symbol(entry: usize) -> Result<*const c_void, u32> {
    match driver().map_err(|_| NO_DEVICE)?.symbols[entry] {
        0 => Err(NOT_FOUND),
        address => Ok(address as *const c_void),
    }
}

/// A driver's result for `cust`: one that it knows. The number itself is kept where it is no success.
pub(super) fn result(code: u32) -> CUresult {
    if code != 0 {
        LAST.set(code);
    }
    KNOWN.iter().copied().find(|k| *k as u32 == code).unwrap_or(CUresult::CUDA_ERROR_UNKNOWN)
}

/// The last failure on this thread, as the driver numbers it.
pub(super) fn last_code() -> u32 {
    LAST.get()
}

/// What can be asked about an error.
#[derive(Clone, Copy)]
pub(super) enum ErrorText {
    /// Its name, such as `CUDA_ERROR_OUT_OF_MEMORY`.
    Name,
    /// What it means, in a few words.
    Sentence,
}

/// What the driver says about one of its errors.
pub(super) fn error_text(kind: ErrorText, code: u32) -> Option<&'static CStr> {
    type Ask = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;
    let name = match kind {
        ErrorText::Name => c"cuGetErrorName",
        ErrorText::Sentence => c"cuGetErrorString",
    };
    let library = &driver().ok()?.library;
    let mut text = std::ptr::null();
    // SAFETY: both functions have this type in every driver, and write a pointer to a string that lives as long
    // as the driver, which is never closed.
    unsafe {
        let ask = library.get::<Ask>(name.to_bytes_with_nul()).ok()?;
        if ask(code, &mut text) != 0 || text.is_null() {
            return None;
        }
        Some(CStr::from_ptr(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_cust_does_not_know_are_kept_aside() {
        assert!(matches!(result(0), CUresult::CUDA_SUCCESS));
        assert!(matches!(result(2), CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert!(matches!(result(12_345), CUresult::CUDA_ERROR_UNKNOWN));
        assert_eq!(last_code(), 12_345);
        assert!(matches!(result(0), CUresult::CUDA_SUCCESS));
        assert_eq!(last_code(), 12_345, "a success is no failure");
    }

    #[test]
    fn every_entry_point_of_cust_is_there_once() {
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len() + 1, 104, "and cuGetErrorString");
    }
}
