#!/usr/bin/env python3
"""The pipeline in use today, timed: PEFT merge -> convert_hf_to_gguf -> llama-quantize.

    peer_pipeline.py FOLDER [TYPE]      FOLDER as `cargo bench --bench main_job -- --only-make --dir FOLDER` makes it

Needs LLAMA_CPP (an unpacked llama.cpp with convert_hf_to_gguf.py), NODE_LLAMA (the folder of its shared libraries)
and a Python with torch, transformers, peft and gguf. Prints seconds, peak memory and bytes written for each step.
"""
import os, resource, subprocess, sys, time

MERGE = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
QUANTIZE = """
import os, sys
sys.path.insert(0, os.environ["ORACLE_DIR"])
import ggml
ggml.quantize_file(sys.argv[1], sys.argv[2], sys.argv[3])
"""


def step(name, args, out):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.time()
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.time() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(out) for f in fs) if os.path.isdir(out) else os.path.getsize(out)
    print(f"{name:10} {seconds:6.1f} s, written {size / 1e9:.2f} GB, peak memory {max(before, peak) / 1024:.0f} MB so far", flush=True)
    return seconds


def main():
    folder = sys.argv[1]
    kind = (sys.argv[2] if len(sys.argv) > 2 else "Q4_K_M").upper()
    base, adapter, merged = (os.path.join(folder, n) for n in ("tiny-1b", "tiny-1b-lora", "peer-merged"))
    bf16, out = os.path.join(folder, "peer-bf16.gguf"), os.path.join(folder, f"peer-{kind}.gguf")
    python = sys.executable
    total = step("merge", [python, "-c", MERGE, base, adapter, merged], merged)
    for name in os.listdir(base):
        if "token" in name or name.endswith(".jinja"):
            subprocess.run(["cp", os.path.join(base, name), merged], check=True)
    # The fixture's vocabulary is one that the converter's hash list does not know, so it is told the name.
    convert = ("import sys, runpy; sys.path.insert(0, sys.argv[1]); import conversion.base as b;"
               "b.TextModel.get_vocab_base_pre = lambda *a, **k: 'llama-bpe';"
               "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    llama = os.environ["LLAMA_CPP"]
    script = os.path.join(llama, "convert_hf_to_gguf.py")
    total += step("convert", [python, "-c", convert, llama, script, merged, "--outfile", bf16, "--outtype", "bf16"], bf16)
    total += step("quantize", [python, "-c", QUANTIZE, kind, bf16, out], out)
    print(f"{'total':10} {total:6.1f} s")


main()
