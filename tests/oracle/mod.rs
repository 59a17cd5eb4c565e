//! llama.cpp's own block functions, loaded at run time from a published build.
//!
//! `NODE_LLAMA` names the folder `bins/linux-x64` of the npm package `@node-llama-cpp/linux-x64`
//! (`npm pack @node-llama-cpp/linux-x64@3.22.1`, then unpack): no compiler is involved.
#![allow(unsafe_code, dead_code, unreachable_pub)]

use libloading::{Library, Symbol};
use std::ffi::c_void;
use to_gguf::quant::GgmlType;

/// `libggml-base.so`.
pub struct Ggml(Library);

impl Ggml {
    /// The library, if `NODE_LLAMA` is set; says so on stderr if not.
    pub fn open() -> Option<Ggml> {
        let Some(folder) = std::env::var_os("NODE_LLAMA") else {
            eprintln!("SKIPPED: set NODE_LLAMA to the folder of libggml-base.so to compare with llama.cpp");
            return None;
        };
        let path = std::path::Path::new(&folder).join("libggml-base.so");
        // SAFETY: the library's initialisers only fill tables.
        let library = unsafe { Library::new(&path) };
        Some(Ggml(library.unwrap_or_else(|e| panic!("{}: {e}", path.display()))))
    }

    /// `ggml_quantize_chunk` of whole rows.
    pub fn quantize(&self, ty: GgmlType, values: &[f32], row_len: usize, imatrix: Option<&[f32]>, out: &mut [u8]) {
        type Chunk = unsafe extern "C" fn(i32, *const f32, *mut c_void, i64, i64, i64, *const f32) -> usize;
        let rows = values.len() / row_len;
        assert_eq!(values.len(), rows * row_len);
        assert_eq!(out.len() as u64, ty.row_bytes(row_len as u64).expect("whole blocks") * rows as u64);
        assert!(imatrix.is_none_or(|im| im.len() == row_len));
        let weights = imatrix.map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: the signature is the header's; the sizes were checked above.
        let written = unsafe {
            let chunk: Symbol<'_, Chunk> = self.0.get(b"ggml_quantize_chunk").expect("the symbol");
            let out = out.as_mut_ptr().cast();
            chunk(ty as i32, values.as_ptr(), out, 0, rows as i64, row_len as i64, weights)
        };
        assert_eq!(written, out.len());
    }

    /// `dequantize_row_*` of whole blocks.
    pub fn dequantize(&self, ty: GgmlType, blocks: &[u8], out: &mut [f32]) {
        let name = match ty {
            GgmlType::F16 => "ggml_fp16_to_fp32_row".into(),
            GgmlType::BF16 => "ggml_bf16_to_fp32_row".into(),
            _ => format!("dequantize_row_{}", ty.name().to_lowercase().replace("_k", "_K")),
        };
        assert_eq!(ty.row_bytes(out.len() as u64), Some(blocks.len() as u64));
        // SAFETY: the signature is the header's; the sizes were checked above.
        unsafe {
            let row: Symbol<'_, unsafe extern "C" fn(*const c_void, *mut f32, i64)> =
                self.0.get(name.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
            row(blocks.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64);
        }
    }
}
