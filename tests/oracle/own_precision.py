#!/usr/bin/env python3
"""Folders whose tensors are of several float types: our files against convert_hf_to_gguf.py and llama.cpp's quantizer.

  LLAMA_CPP=llama.cpp NODE_LLAMA=bins python tests/oracle/own_precision.py TO_GGUF WORK ROUNDS MODEL ...

Each round stores a random part of a model's tensors as F32 (with bits that 16 do not hold), as F16 or as BF16, whatever
the others are. Compared whole: `--quant auto` with `convert_hf_to_gguf --outtype auto`, and a few types with what
llama.cpp makes of that file. Needs PyPI torch, safetensors, numpy and gguf.
"""
import filecmp, glob, json, os, random, shutil, subprocess, sys

here = sys.path.pop(0)  # its scripts have names that packages have too
import torch
from safetensors.torch import load_file, save_file

sys.path.append(here)
import mixture as M, quantize_options as Q

TO_GGUF, WORK, ROUNDS, MODELS = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
QUANTS = ["Q4_K_M", "Q8_0", "Q4_0", "Q6_K", "IQ4_XS", "MXFP4_MOE", "TQ2_0"]


def mixed(r, model, folder):
    """A copy of the folder with other types; says how many tensors changed."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.gguf"))
    share, changed = r.choice([0.1, 0.3, 0.9]), 0
    for file in glob.glob(os.path.join(folder, "*.safetensors")):
        tensors = load_file(file)
        for name, x in tensors.items():
            if x.is_floating_point() and r.random() < share:
                to = r.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
                x = x.float() * (1 + 1e-4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(changed))) if to == torch.float32 else x
                tensors[name] = x.to(to); changed += 1
        save_file(tensors, file, metadata={"format": "pt"})
    return changed


def main():
    shutil.rmtree(WORK, ignore_errors=True); os.makedirs(WORK)
    lib, bad = M.library(), 0
    for model in MODELS:
        for seed in range(ROUNDS):
            r = random.Random(f"{os.path.basename(model)} {seed}")
            folder = os.path.join(WORK, os.path.basename(model.rstrip("/"))); at = lambda n: os.path.join(WORK, n)
            shutil.rmtree(folder, ignore_errors=True)
            changed = mixed(r, model, folder)
            script = [sys.executable, os.environ["LLAMA_CPP"] + "/convert_hf_to_gguf.py", folder, "--outtype", "auto", "--outfile", at("theirs.gguf")]
            p = subprocess.run(script, capture_output=True, text=True)
            if p.returncode: sys.exit(f"{folder}: convert_hf_to_gguf: {p.stderr[-600:]}")
            wrong = []
            for quant in ["auto", *r.sample(QUANTS, 3)]:
                subprocess.run([TO_GGUF, folder, "--quant", quant, "-o", at("ours.gguf"), "-q", "--force"], check=True, capture_output=True)
                reference = at("theirs.gguf")
                if quant != "auto":
                    reference = at("quantized.gguf"); Q.quantize(lib, at("theirs.gguf"), reference, None, quant, {})
                if not filecmp.cmp(reference, at("ours.gguf"), False): wrong.append(quant)
            bad += len(wrong)
            print(f"{os.path.basename(folder)} {seed}: {changed} tensors of another type; {'DIFFERENT: ' + ', '.join(wrong) if wrong else 'four files, all the same'}", flush=True)
    sys.exit(bad > 0)


main()
