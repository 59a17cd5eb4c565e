//! Any bytes as a PyTorch file, of either form: refused with an error, or its tensors can be read. A pickle by itself
//! is put into the smallest of archives, so that it need not be found inside one.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod common;

fuzz_target!(|data: &[u8]| {
    let archive;
    let bytes = if data.starts_with(b"\x80\x02") && !data.starts_with(b"\x80\x02\x8a\x0a") {
        archive = zip(data);
        &archive
    } else {
        data
    };
    let file = common::File::with(bytes, ".bin");
    if let Ok(tensors) = to_gguf::source::open_weight_file(file.path()) {
        common::read_all(&tensors);
    }
});

/// An archive with the pickle and one storage of 64 bytes under the key `0`.
fn zip(pickle: &[u8]) -> Vec<u8> {
    let (mut out, mut central) = (Vec::new(), Vec::new());
    let entries: [(&str, &[u8]); 2] = [("m/data.pkl", pickle), ("m/data/0", &[0x3c; 64])];
    for (name, data) in entries {
        let at = out.len() as u32;
        let mut fields = vec![20, 0];
        fields.extend([0; 12]); // flags, method, time, date, sum
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0; 2]);
        out.extend(b"PK\x03\x04");
        out.extend(&fields);
        out.extend(name.as_bytes());
        out.extend(data);
        central.extend(b"PK\x01\x02\x14\x00");
        central.extend(&fields);
        central.extend([0; 10]); // comment, disk, attributes
        central.extend(at.to_le_bytes());
        central.extend(name.as_bytes());
    }
    let (start, size) = (out.len() as u32, central.len() as u32);
    out.extend(central);
    out.extend(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
    out.extend(size.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}
