//! What the command line promises: exit status, streams, names, and no file under a final name after a failure.

mod common;

use common::{fixture, names, to_gguf};

#[test]
fn the_main_job_writes_one_folder_and_says_what_to_type_next() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = to_gguf(dir.path(), [fixture("shakespeare-lora").as_os_str(), "-o".as_ref(), out.as_os_str()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(
        names(&out),
        ["Modelfile", "chat_template.jinja", "shakespeare-lora-Q4_K_M.gguf", "tokenizer.json", "tokenizer_config.json"]
    );
    assert!(run.stdout.contains("ollama create shakespeare-lora -f"), "{}", run.stdout);
    assert!(run.stdout.contains("llama-cli -m"), "{}", run.stdout);
    let modelfile = std::fs::read_to_string(out.join("Modelfile")).unwrap();
    assert!(modelfile.contains("FROM ./shakespeare-lora-Q4_K_M.gguf"), "{modelfile}");
    assert!(modelfile.contains("PARAMETER stop \"<|eot_id|>\""), "{modelfile}");
}

#[test]
fn without_a_model_the_current_folder_is_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.gguf");
    let run = to_gguf(&fixture("shakespeare-llama"), ["--quant", "q8_0", "-o", out.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(names(dir.path()), ["x.gguf"], "a file and nothing else");
}

#[test]
fn several_types_come_from_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("shakespeare-llama");
    let run = to_gguf(dir.path(), [base.to_str().unwrap(), "--quant", "q8_0,Q4_K_S,bf16", "--no-modelfile", "-q"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let folder = dir.path().join("shakespeare-llama-gguf");
    let ggufs: Vec<_> = names(&folder).into_iter().filter(|n| n.ends_with(".gguf")).collect();
    assert_eq!(ggufs, ["shakespeare-llama-BF16.gguf", "shakespeare-llama-Q4_K_S.gguf", "shakespeare-llama-Q8_0.gguf"]);
    assert!(!folder.join("Modelfile").exists());
    for (name, ty) in [("Q8_0", "q8_0"), ("Q4_K_S", "q4_k_s"), ("BF16", "bf16")] {
        let alone = dir.path().join("alone.gguf");
        let run = to_gguf(dir.path(), [base.to_str().unwrap(), "--quant", ty, "--force", "-o", "alone.gguf"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let together = folder.join(format!("shakespeare-llama-{name}.gguf"));
        assert!(std::fs::read(&alone).unwrap() == std::fs::read(together).unwrap(), "{name}");
    }
}

#[test]
fn a_dry_run_is_exact_to_the_byte_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("shakespeare-lora");
    let plan = to_gguf(dir.path(), [base.to_str().unwrap(), "--dry-run", "--json", "-o", "out"]);
    assert_eq!(plan.code, 0, "{}", plan.stderr);
    assert!(names(dir.path()).is_empty());
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    assert_eq!(plan["dry_run"], true);
    let real = to_gguf(dir.path(), [base.to_str().unwrap(), "--json", "-o", "out"]);
    let real: serde_json::Value = serde_json::from_str(&real.stdout).unwrap();
    assert_eq!(plan["outputs"], real["outputs"]);
    assert_eq!(plan["files"], real["files"]);
    let path = dir.path().join(real["outputs"][0]["path"].as_str().unwrap());
    assert_eq!(std::fs::metadata(path).unwrap().len(), real["outputs"][0]["bytes"].as_u64().unwrap());
}

#[test]
fn threads_and_memory_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("shakespeare-lora");
    let run = |name: &str, extra: &[&str]| {
        let args = [&[base.to_str().unwrap(), "--quant", "q5_k_m", "-o", name], extra].concat();
        let run = to_gguf(dir.path(), args);
        assert_eq!(run.code, 0, "{}", run.stderr);
        std::fs::read(dir.path().join(name)).unwrap()
    };
    let reference = run("a.gguf", &["--threads", "1"]);
    assert!(run("b.gguf", &["--threads", "7"]) == reference);
    assert!(run("c.gguf", &["--threads", "3", "--max-memory", "300KB"]) == reference);
}

#[test]
fn existing_files_are_refused_without_force() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.gguf"), b"mine").unwrap();
    let base = fixture("shakespeare-llama");
    let args = [base.to_str().unwrap(), "--quant", "f16", "-o", "x.gguf"];
    let run = to_gguf(dir.path(), args);
    assert_eq!(run.code, 1);
    assert!(run.error_line().contains("x.gguf: already exists"), "{}", run.stderr);
    assert_eq!(std::fs::read(dir.path().join("x.gguf")).unwrap(), b"mine");
    assert_eq!(to_gguf(dir.path(), [&args[..], &["--force"]].concat()).code, 0);
}

#[test]
fn a_wrong_option_is_exit_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("shakespeare-llama");
    let base = base.to_str().unwrap();
    for (args, word) in [
        (vec![base, "--quant", "q9_z"], "q9_z"),
        (vec![base, "--nonsense"], "--nonsense"),
        (vec![base, "--threads", "0"], "0"),
        (vec![base, "--lora", "x=abc"], "abc"),
        (vec![base, "--tensor-type", "attn=what"], "what"),
    ] {
        let run = to_gguf(dir.path(), &args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(word), "{args:?}: {}", run.stderr);
    }
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_failure_is_one_line_that_names_its_subject() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let base = fixture("shakespeare-llama");
    let base = base.to_str().unwrap();
    for (args, words) in [
        (vec!["missing"], vec!["missing"]),
        (vec!["empty"], vec!["empty", "config.json"]),
        (vec![base, "--lora", "nowhere"], vec!["nowhere"]),
        (vec![base, "--quant", "iq1_s"], vec!["--imatrix"]),
        (vec![base, "--imatrix", "none.gguf"], vec!["none.gguf"]),
        (vec![base, "--quant", "q8_0,f16", "-o", "one.gguf"], vec!["one.gguf", "2 types"]),
    ] {
        let run = to_gguf(dir.path(), &args);
        assert_eq!(run.code, 1, "{args:?}: {}", run.stderr);
        let line = run.error_line();
        words.iter().for_each(|w| assert!(line.contains(w), "{args:?}: {line}"));
        assert_eq!(run.stdout, "");
    }
    assert_eq!(names(dir.path()), ["empty"]);
}

#[test]
fn a_killed_run_leaves_no_final_name_and_the_next_run_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture("shakespeare-llama");
    let out = dir.path().join("out");
    let args =
        |q: &str| [base.to_str().unwrap(), "--threads", "1", "--quant", q, "-o", "out"].map(str::to_owned).to_vec();
    let mut partial = 0;
    for i in 0..10 {
        let mut child = common::spawn(dir.path(), args("q4_k_m,q5_k_m,q6_k,q3_k_m,q2_k"));
        std::thread::sleep(std::time::Duration::from_millis(4 + 14 * i));
        let _ = child.kill();
        let finished = child.wait().unwrap().success();
        if finished {
            break;
        }
        if out.exists() {
            let left = names(&out);
            assert!(left.iter().all(|n| n.starts_with(".to-gguf-partial-")), "killed after step {i}: {left:?}");
            partial += left.len();
        }
    }
    assert!(partial > 0, "no run was killed in the middle");
    let run = to_gguf(dir.path(), args("q8_0").iter().chain([&"--force".to_owned()]));
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(names(&out).iter().all(|n| !n.starts_with('.')), "{:?}", names(&out));
}
