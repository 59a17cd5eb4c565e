//! The GPU through the whole program, on the software driver (`cuda/host/driver.cpp`): the same files as the CPU, and
//! failures that end as they should. What is misused or leaked makes the program end with status 86.

mod common;
#[path = "common/host_gpu.rs"]
mod host_gpu;
#[path = "common/software_gpu.rs"]
mod software_gpu;

use std::collections::BTreeMap;

use common::{fixture, names};
use software_gpu::Bench;

/// Types whose rows kernels make, as files that are made of them.
const TYPES: &str = "q8_0,q4_0,q4_1,q5_0,q5_1,q2_k,q3_k_m,q4_k_m,q5_k_m,q6_k,iq4_nl,iq4_xs,f16,bf16,f32";

/// One layer is enough.
const LAYERS: [&str; 2] = ["--prune-layers", "1,2,3"];

/// A type that is quickly made: for tests that convert many times.
const SMALL: [&str; 4] = ["--quant", "q8_0", LAYERS[0], LAYERS[1]];

#[test]
fn every_type_is_the_same_file_as_on_the_cpu() {
    let Some(bench) = Bench::new() else { return };
    let log = bench.log();
    let imatrix = fixture("shakespeare.imatrix.gguf");
    let imatrix = ["--imatrix", imatrix.to_str().unwrap()];
    let mut launched = BTreeMap::new();
    for model in ["shakespeare-llama", "shakespeare-lora"] {
        for weights in [&[][..], &imatrix] {
            let args = [&["--quant", TYPES], &LAYERS[..], weights].concat();
            bench.convert(model, "cpu", &[&args[..], &["--device", "cpu"]].concat(), &[]);
            let settings = [("SOFT_CUDA_LOG", log.to_str().unwrap())];
            bench.convert(model, "gpu", &[&args[..], &["--device", "cuda"]].concat(), &settings);
            bench.assert_same("cpu", "gpu");
            launched.extend(bench.calls());
        }
    }
    for ty in ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"] {
        assert!(launched.contains_key(&format!("kernel quantize_{ty}")), "{ty}: {launched:?}");
        let weighted = format!("kernel quantize_{ty}_imatrix");
        assert!(ty == "q8_0" || launched.contains_key(&weighted), "{ty} with importance: {launched:?}");
    }
    for kernel in ["merge", "run_squares", "find_not_finite", "decode_bf16", "encode_f16", "row_sigma2"] {
        assert!(launched.contains_key(&format!("kernel {kernel}")), "{kernel}: {launched:?}");
    }
}

#[test]
fn types_without_a_kernel_are_merged_there_and_encoded_here() {
    let Some(bench) = Bench::new() else { return };
    let log = bench.log();
    let imatrix = fixture("shakespeare.imatrix.gguf");
    for rule in [".*=mxfp4", "ffn_.*=iq3_s", ".*=tq2_0"] {
        let args = [&["--imatrix", imatrix.to_str().unwrap(), "--tensor-type", rule], &LAYERS[..]].concat();
        bench.convert("shakespeare-lora", "cpu", &[&args[..], &["--device", "cpu"]].concat(), &[]);
        let settings = [("SOFT_CUDA_LOG", log.to_str().unwrap())];
        bench.convert("shakespeare-lora", "gpu", &[&args[..], &["--device", "cuda"]].concat(), &settings);
        bench.assert_same("cpu", "gpu");
        assert!(bench.calls().contains_key("kernel merge"), "{rule}");
        assert_eq!(bench.calls().contains_key("kernel quantize_mxfp4"), rule.ends_with("mxfp4"));
    }
}

#[test]
fn pieces_threads_and_several_gpus_do_not_change_a_byte() {
    let Some(bench) = Bench::new() else { return };
    let log = bench.log();
    let quant = ["--quant", "q4_k_m,q5_0,iq3_s"];
    let imatrix = fixture("shakespeare.imatrix.gguf");
    let quant = [&quant[..], &["--imatrix", imatrix.to_str().unwrap()], &LAYERS].concat();
    bench.convert("shakespeare-lora", "cpu", &[&quant[..], &["--device", "cpu"]].concat(), &[]);
    let gpu = |args: &[&str], settings: &[(&str, &str)]| {
        let settings = [settings, &[("SOFT_CUDA_LOG", log.to_str().unwrap())]].concat();
        bench.convert("shakespeare-lora", "gpu", &[&quant[..], args].concat(), &settings);
        bench.assert_same("cpu", "gpu");
        bench.calls()
    };
    let whole = gpu(&["--device", "cuda", "--threads", "1"], &[]);
    let pieces = gpu(&["--device", "cuda", "--threads", "1", "--gpu-memory", "600KB"], &[]);
    assert!(pieces["kernel merge"] > 2 * whole["kernel merge"], "a smaller budget makes smaller pieces");
    gpu(&["--device", "cuda", "--threads", "5", "--gpu-memory", "1MB"], &[]);
    let both = gpu(&["--device", "cuda:0,1", "--threads", "1"], &[("SOFT_CUDA_DEVICES", "2")]);
    assert_eq!(both["cuDevicePrimaryCtxRetain"], 2);
    assert_eq!(both["kernel merge"], whole["kernel merge"]);
    gpu(&["--device", "cuda:2,0,1", "--threads", "2", "--gpu-memory", "900KB"], &[("SOFT_CUDA_DEVICES", "3")]);
}

#[test]
fn the_report_tells_how_much_merging_changed() {
    let Some(bench) = Bench::new() else { return };
    let report = |device: &str| -> serde_json::Value {
        let model = fixture("shakespeare-lora");
        let args = [model.to_str().unwrap(), "--device", device, "--force", "--json", "-o", "x.gguf"];
        let run = bench.run(&args, &[]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        serde_json::from_str(&run.stdout).unwrap()
    };
    let (cpu, gpu) = (report("cpu"), report("cuda"));
    assert_eq!(gpu["device"], "cuda:0 (Software GPU 0)");
    assert_eq!(cpu["warnings"], gpu["warnings"]);
    let changes = |r: &serde_json::Value| r["changes"].as_array().unwrap().clone();
    assert_eq!(changes(&cpu).len(), changes(&gpu).len());
    for (a, b) in changes(&cpu).iter().zip(&changes(&gpu)) {
        assert_eq!(a["tensor"], b["tensor"]);
        let (x, y) = (a["relative_change"].as_f64().unwrap(), b["relative_change"].as_f64().unwrap());
        assert!(x > 0.0 && (x - y).abs() < 1e-5 * x, "{a} {b}");
    }
}

#[test]
fn out_of_memory_halves_the_pieces_and_goes_on() {
    let Some(bench) = Bench::new() else { return };
    let log = bench.log();
    bench.convert("shakespeare-lora", "cpu", &["--device", "cpu"], &[]);
    let settings = |limit: &'static str| [("SOFT_CUDA_MEMORY", limit), ("SOFT_CUDA_LOG", log.to_str().unwrap())];
    // More is asked for than there is.
    let args = ["--device", "cuda", "--threads", "2", "--gpu-memory", "1GB"];
    bench.convert("shakespeare-lora", "gpu", &args, &settings("700000"));
    bench.assert_same("cpu", "gpu");
    let calls = bench.calls();
    assert!(calls["cuMemAlloc_v2"] > 20, "buffers were given back and made again: {calls:?}");
    // Not even one row.
    let run = bench.try_to_convert("shakespeare-lora", "none", &args, &settings("3000"));
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.error_line().contains("CUDA_ERROR_OUT_OF_MEMORY (2)"), "{}", run.stderr);
    assert!(names(&bench.path().join("none")).is_empty());
}

#[test]
fn out_of_memory_at_any_allocation_changes_nothing() {
    let Some(bench) = Bench::new() else { return };
    let log = bench.log();
    bench.convert("shakespeare-lora", "cpu", &[&SMALL[..], &["--device", "cpu"]].concat(), &[]);
    let args = [&SMALL[..], &["--device", "cuda", "--threads", "1", "--gpu-memory", "1MB"]].concat();
    bench.convert("shakespeare-lora", "gpu", &args, &[("SOFT_CUDA_LOG", log.to_str().unwrap())]);
    let calls = bench.calls();
    let mut tried = 0;
    for call in ["cuMemAlloc_v2", "cuMemAllocHost_v2"] {
        for n in 1..=calls[call] {
            bench.convert("shakespeare-lora", "gpu", &args, &[("SOFT_CUDA_FAIL", &format!("{call}:{n}=2"))]);
            bench.assert_same("cpu", "gpu");
            tried += 1;
        }
    }
    assert!(tried >= 10, "{calls:?}");
}

#[test]
fn any_call_that_fails_ends_an_explicit_run_and_leaves_an_automatic_one_to_the_cpu() {
    let Some(bench) = Bench::new() else { return };
    let log = bench.log();
    bench.convert("shakespeare-lora", "cpu", &[&SMALL[..], &["--device", "cpu"]].concat(), &[]);
    let auto = [&SMALL[..], &["--threads", "2"]].concat();
    let cuda = [&auto[..], &["--device", "cuda"]].concat();
    bench.convert("shakespeare-lora", "gpu", &cuda, &[("SOFT_CUDA_LOG", log.to_str().unwrap())]);
    let calls = bench.calls();
    // What gives things back cannot fail a run; it is a leak of the driver's making.
    let gives_back = ["Free", "Destroy", "Unload", "Release"];
    let fatal = |call: &str| !call.contains(' ') && !gives_back.iter().any(|g| call.contains(g));
    for (call, count) in calls.iter().filter(|(call, _)| fatal(call)) {
        // 12345 is a code of a later driver, which cust does not know.
        for (n, code) in [(1, 719), (count / 2, 12345)] {
            if n == 0 {
                continue;
            }
            let fail = format!("{call}:{n}+={code}");
            let run = bench.try_to_convert("shakespeare-lora", "none", &cuda, &[("SOFT_CUDA_FAIL", &fail)]);
            assert_eq!(run.code, 1, "{fail}: {}", run.stderr);
            assert!(run.error_line().contains(&format!("({code})")), "{fail}: {}", run.stderr);
            assert!(names(&bench.path().join("none")).iter().all(|n| n.starts_with('.')), "{fail}");
            let settings = [("SOFT_CUDA_FAIL", &fail[..]), ("TO_GGUF_GPU_FROM_BYTES", "1")];
            let run = bench.try_to_convert("shakespeare-lora", "gpu", &auto, &settings);
            assert_eq!(run.code, 0, "{fail}: {}", run.stderr);
            bench.assert_same("cpu", "gpu");
        }
    }
    assert!(calls.keys().filter(|c| fatal(c)).count() > 15, "{calls:?}");
}

#[test]
fn a_kernel_that_fails_is_told_with_the_drivers_own_code() {
    let Some(bench) = Bench::new() else { return };
    bench.convert("shakespeare-lora", "cpu", &[&SMALL[..], &["--device", "cpu"]].concat(), &[]);
    let cuda = [&SMALL[..], &["--device", "cuda"]].concat();
    for n in [1, 10, 30] {
        let fail = format!("kernel:{n}=719");
        let run = bench.try_to_convert("shakespeare-lora", "none", &cuda, &[("SOFT_CUDA_FAIL", &fail)]);
        assert_eq!(run.code, 1, "{}", run.stderr);
        let line = run.error_line();
        let words = ["Software GPU 0", "CUDA_ERROR_LAUNCH_FAILED (719)", "unspecified launch failure", "--device cpu"];
        words.iter().for_each(|w| assert!(line.contains(w), "{line}"));
        assert!(names(&bench.path().join("none")).is_empty());
        let settings = [("SOFT_CUDA_FAIL", &fail[..]), ("TO_GGUF_GPU_FROM_BYTES", "1")];
        let run = bench.convert("shakespeare-lora", "gpu", &SMALL, &settings);
        assert!(run.stderr.contains("warning: the CPU did the rest") && run.stderr.contains("719"), "{}", run.stderr);
        bench.assert_same("cpu", "gpu");
    }
}

#[test]
fn a_wait_that_is_forgotten_is_found() {
    let Some(bench) = Bench::new() else { return };
    bench.convert("shakespeare-lora", "cpu", &["--device", "cpu"], &[]);
    let forgotten = [("SOFT_CUDA_FAIL", "cuStreamSynchronize:1+=-1")];
    let run = bench.try_to_convert("shakespeare-lora", "gpu", &["--device", "cuda"], &forgotten);
    assert!(run.code != 0, "{}", run.stderr);
}

#[test]
fn without_a_usable_gpu_an_explicit_choice_says_why() {
    let Some(bench) = Bench::new() else { return };
    bench.convert("shakespeare-llama", "cpu", &["--device", "cpu"], &[]);
    /// Settings of the driver, the device asked for, words of the error.
    type Case = (&'static [(&'static str, &'static str)], &'static str, &'static [&'static str]);
    let cases: [Case; 6] = [
        (&[("TO_GGUF_CUDA_DRIVER", "/nowhere/libcuda.so")], "cuda", &["no NVIDIA driver", "/nowhere/libcuda.so"]),
        (&[("SOFT_CUDA_DEVICES", "0")], "cuda", &["no GPU", "CUDA_ERROR_NO_DEVICE (100)"]),
        (&[("SOFT_CUDA_VERSION", "11040")], "cuda", &["CUDA 11.4", "CUDA 12.0", "driver"]),
        // A driver that claims a version, but refuses the PTX.
        (&[("SOFT_CUDA_FAIL", "cuModuleLoadDataEx:1+=222")], "cuda", &["CUDA 12.0", "driver"]),
        (&[("SOFT_CUDA_CAPABILITY", "70")], "cuda", &["7.0", "7.5", "Software GPU 0"]),
        (&[], "cuda:3", &["cuda:3", "sees 1"]),
    ];
    for (settings, device, words) in cases {
        let run = bench.try_to_convert("shakespeare-llama", "none", &["--device", device], settings);
        assert_eq!(run.code, 1, "{settings:?}: {}", run.stderr);
        let line = run.error_line();
        words.iter().for_each(|w| assert!(line.contains(w), "{settings:?}: {line}"));
        assert!(names(&bench.path().join("none")).is_empty());
        if device == "cuda" {
            let auto = [settings, &[("TO_GGUF_GPU_FROM_BYTES", "1")]].concat();
            let run = bench.try_to_convert("shakespeare-llama", "auto", &[], &auto);
            assert_eq!(run.code, 0, "{settings:?}: {}", run.stderr);
            bench.assert_same("cpu", "auto");
        }
    }
}

#[test]
fn auto_takes_a_gpu_only_for_work_that_is_worth_it() {
    let Some(bench) = Bench::new() else { return };
    let device = |settings: &[(&str, &str)]| {
        let model = fixture("shakespeare-llama");
        let run = bench.run(&[model.to_str().unwrap(), "--json", "--force", "-o", "x.gguf"], settings);
        assert_eq!(run.code, 0, "{}", run.stderr);
        serde_json::from_str::<serde_json::Value>(&run.stdout).unwrap()["device"].as_str().unwrap().to_owned()
    };
    assert_eq!(device(&[]), "cpu");
    assert_eq!(device(&[("TO_GGUF_GPU_FROM_BYTES", "1000")]), "cuda:0 (Software GPU 0)");
}

#[test]
fn damaged_weights_are_told_as_on_the_cpu() {
    let Some(bench) = Bench::new() else { return };
    let model = bench.path().join("damaged");
    std::fs::create_dir(&model).unwrap();
    for file in names(&fixture("shakespeare-llama")) {
        std::fs::copy(fixture("shakespeare-llama").join(&file), model.join(&file)).unwrap();
    }
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let at = bytes.len() / 6 * 4;
    bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let line = |device: &str| {
        let run = bench.run(&["damaged", "--device", device, "-o", "x.gguf"], &[]);
        assert_eq!(run.code, 1, "{}", run.stderr);
        run.error_line().to_owned()
    };
    let cpu = line("cpu");
    assert!(cpu.contains("NaN"), "{cpu}");
    assert_eq!(line("cuda"), cpu);
    assert!(!bench.path().join("x.gguf").exists());
}

#[test]
fn devices_lists_what_the_driver_sees() {
    let Some(bench) = Bench::new() else { return };
    let settings = [("SOFT_CUDA_DEVICES", "2"), ("SOFT_CUDA_VERSION", "12040"), ("SOFT_CUDA_CAPABILITY", "86")];
    let run = bench.run(&["devices"], &settings);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let words = ["cuda:0  Software GPU 0, 1.00 GiB, compute capability 8.6", "cuda:1  Software GPU 1", "CUDA 12.4"];
    words.iter().for_each(|w| assert!(run.stdout.contains(w), "{}", run.stdout));
    let run = bench.run(&["devices", "--json"], &settings);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json["cuda"]["gpus"][1]["compute_capability"], "8.6");
    assert_eq!(json["cuda"]["driver"], "12.4");
    let run = bench.run(&["devices"], &[("TO_GGUF_CUDA_DRIVER", "/nowhere")]);
    assert_eq!(run.code, 0, "no GPU is an answer, not a failure: {}", run.stderr);
    assert!(run.stdout.contains("there is no NVIDIA driver"), "{}", run.stdout);
}

#[test]
fn nothing_of_cuda_is_linked() {
    let Ok(output) = std::process::Command::new("ldd").arg(env!("CARGO_BIN_EXE_to-gguf")).output() else {
        eprintln!("SKIPPED: no ldd here: what the program is linked with is not looked at");
        return;
    };
    let linked = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(linked.contains("libc."), "{linked}");
    assert!(!linked.contains("cuda"), "{linked}");
    assert!(!linked.contains("stdc++"), "{linked}");
}
