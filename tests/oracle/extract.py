#!/usr/bin/env python3
"""`to-gguf extract` against torch.linalg.svd: the error of every module over the least that its rank allows.

  python tests/oracle/extract.py TO_GGUF WORK

Differences with flat, slowly and quickly falling spectra, and of low rank under noise. More than 1 % over is a failure.
"""
import json, os, shutil, subprocess, sys

sys.path.pop(0)  # this folder: its scripts have names that packages have too
import torch
from safetensors.torch import load_file, save_file

TO_GGUF, WORK = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
SPECTRA = {
    "flat": None,
    "power": lambda k: 1 / (1 + k),
    "exponential": lambda k: torch.exp(-k / 10),
    "rank 12 and noise": lambda k: torch.where(k < 12, 1.0, 0.01),
}


def difference(m, n, spectrum):
    if spectrum is None:
        return torch.randn(m, n) * 1e-3
    u, s, v = torch.linalg.svd(torch.randn(m, n), full_matrices=False)
    return u * spectrum(torch.arange(len(s)).float()) @ v * 0.05


def main():
    torch.manual_seed(0)
    base, tuned, worst = {}, {}, 0.0
    for i, spectrum in enumerate(SPECTRA.values()):
        for name, (m, n) in dict(q_proj=(512, 512), up_proj=(1376, 512), down_proj=(512, 1376)).items():
            key = f"model.layers.{i}.x.{name}.weight"
            base[key] = (torch.randn(m, n) * 0.02).bfloat16()
            tuned[key] = base[key].float() + difference(m, n, spectrum)
    for name, tensors in dict(base=base, tuned=tuned).items():
        os.makedirs(os.path.join(WORK, name), exist_ok=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(WORK, name, "model.safetensors"))
        json.dump(dict(architectures=["LlamaForCausalLM"], model_type="llama", tie_word_embeddings=False), open(os.path.join(WORK, name, "config.json"), "w"))
    for rank in (4, 16, 64):
        out = os.path.join(WORK, f"rank{rank}")
        command = [TO_GGUF, "extract", "--base", os.path.join(WORK, "base"), "--tuned", os.path.join(WORK, "tuned"), "--rank", str(rank), "-o", out, "--force", "--json"]
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        factors, most = load_file(os.path.join(out, "adapter_model.safetensors")), 0.0
        for key in base:
            d, p = (tuned[key] - base[key].float()).double(), "base_model.model." + key.removesuffix(".weight")
            error = torch.linalg.norm(d - factors[p + ".lora_B.weight"].double() @ factors[p + ".lora_A.weight"].double())
            least = torch.linalg.svdvals(d)[rank:].square().sum().sqrt()
            most = max(most, float(error / least) - 1)
        print(f"rank {rank}: at most {100 * most:.4f} % over the least error, {report['seconds']:.2f} s", flush=True)
        worst = max(worst, most)
    shutil.rmtree(WORK)
    sys.exit(worst > 0.01)


main()
