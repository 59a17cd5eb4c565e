#!/usr/bin/env python3
"""Adapters merged into a GGUF, against the same adapters merged into the model folder, and against llama.cpp.

  LLAMA_CPP=llama.cpp python tests/oracle/gguf_merge.py TO_GGUF WORK MODEL ...

Each MODEL is a folder with a small model and its tokenizer. For each, PEFT makes a LoRA adapter of all linear layers,
and then
  peft     merged into the model's f32 GGUF, by tensor: the bytes of merging into the folder
  lora     the GGUF adapter that convert_lora_to_gguf.py makes, merged into the f32 GGUF and into the folder: the same
           bytes (llama.cpp refuses some adapters of experts and fused layers: those lines say so)
  run      with NODE_LLAMA: llama.cpp runs the base with that adapter (its --lora) and our merged file; the largest KL
           divergence over a prompt, and how far the adapter moves the answers at all
Needs torch, transformers, peft and gguf; g++ for `run`.
"""
import os, shutil, subprocess, sys, warnings

sys.path.pop(0)
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
warnings.filterwarnings("ignore")
import numpy as np
import torch
import transformers
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
TO_GGUF, WORK = sys.argv[1:3]


def make_adapter(model, out):
    config = transformers.AutoConfig.from_pretrained(model)
    kind = {"bert": transformers.AutoModel, "t5": transformers.AutoModelForSeq2SeqLM}.get(config.model_type, transformers.AutoModelForCausalLM)
    m = kind.from_pretrained(model, dtype=torch.bfloat16)
    fused = [n for n, p in m.named_parameters() if p.dim() == 3 and "expert" in n and "bias" not in n]
    targets = "all-linear" if config.model_type != "bert" else ["query", "key", "value", "dense"]
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=targets, target_parameters=sorted({".".join(n.split(".")[-2:]) for n in fused}) or None)
    m = get_peft_model(m, lora)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for n, p in m.named_parameters():
            if "lora_" in n:
                p.copy_(0.05 * torch.randn(p.shape, generator=g))
    m.save_pretrained(out)
    return len(fused) > 0


def to_gguf(*args):
    r = subprocess.run([TO_GGUF, *args, "--quant", "f32", "--force", "-q"], capture_output=True, text=True)
    return None if r.returncode == 0 else (r.stderr.strip().splitlines() or ["no message"])[-1][:300]


def tensors(path):
    return {t.name: np.array(t.data) for t in GGUFReader(path).tensors}


def compare(a, b, base):
    a, b, base = tensors(a), tensors(b), tensors(base)
    changed = sum(n not in base or not np.array_equal(a[n], base[n]) for n in a)
    if a.keys() != b.keys():
        return f"DIFFERENT TENSORS {sorted(a.keys() ^ b.keys())[:4]}"
    bad = [n for n in a if not np.array_equal(a[n], b[n])]
    if bad:
        worst = max(float(np.abs(a[n].astype(np.float64) - b[n]).max()) for n in bad)
        return f"{len(bad)} of {len(a)} tensors differ (worst {worst:.2g}), first {bad[0]}"
    return f"{len(a)} tensors equal, {changed} of them merged"


def build():
    """lora_logits.cpp against the libraries in NODE_LLAMA."""
    node, llama, exe = os.environ["NODE_LLAMA"], os.environ["LLAMA_CPP"], f"{WORK}/lora_logits"
    libs = [next(os.path.join(node, f) for f in sorted(os.listdir(node)) if f.startswith(s) and f.endswith(".so")) for s in ("libllama.v", "libggml.v", "libggml-base")]
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lora_logits.cpp")
    subprocess.run(["g++", "-O1", "-std=c++17", f"-I{llama}/include", f"-I{llama}/ggml/include", source, "-o", exe, *libs, f"-Wl,-rpath,{node}"], check=True)
    return exe


def logits(exe, model, *adapters):
    out = f"{WORK}/logits.f32"
    ids = [int(i) for i in torch.randint(4, 200, (40,), generator=torch.Generator().manual_seed(1))]
    r = subprocess.run([exe, model, " ".join(map(str, ids)), out, *adapters], capture_output=True, text=True)
    if r.returncode:
        return (r.stderr.strip().splitlines() or [f"exit {r.returncode}"])[-1][:140]
    return torch.log_softmax(torch.from_numpy(np.fromfile(out, np.float32).reshape(len(ids), -1)).double(), -1)


def run(exe, base, lora, merged):
    applied, file, bare = logits(exe, base, lora), logits(exe, merged), logits(exe, base)
    for x in (applied, file, bare):
        if isinstance(x, str):
            return f"llama.cpp: {x}"
    kl = lambda p, q: float((p.exp() * (p - q)).sum(-1).max())
    return f"KL {kl(applied, file):.1e}; the adapter moves the answers by {kl(applied, bare):.1e}"


os.makedirs(WORK, exist_ok=True)
EXE = build() if os.environ.get("NODE_LLAMA") else None
for model in sys.argv[3:]:
    name = os.path.basename(model.rstrip("/"))
    at = lambda s: f"{WORK}/{name}{s}"
    if not os.path.exists(at("-lora/adapter_config.json")):
        make_adapter(model, at("-lora"))
    error = to_gguf(model, "-o", at(".base.gguf")) or to_gguf(model, "--lora", at("-lora"), "-o", at(".folder.gguf"))
    error = error or to_gguf(at(".base.gguf"), "--lora", at("-lora"), "-o", at(".gguf.gguf"))
    print(f"{name:12} peft  {error or compare(at('.folder.gguf'), at('.gguf.gguf'), at('.base.gguf'))}", flush=True)
    script = os.environ["LLAMA_CPP"] + "/convert_lora_to_gguf.py"
    r = subprocess.run([sys.executable, script, "--base", model, at("-lora"), "--outfile", at(".lora.gguf")], capture_output=True, text=True)
    if r.returncode:
        print(f"{name:12} lora  llama.cpp: {(r.stderr.strip().splitlines() or ['no message'])[-1][:160]}", flush=True)
    else:
        error = to_gguf(at(".base.gguf"), "--lora", at(".lora.gguf"), "-o", at(".a.gguf"))
        error = error or to_gguf(model, "--lora", at(".lora.gguf"), "-o", at(".b.gguf"))
        print(f"{name:12} lora  {error or compare(at('.a.gguf'), at('.b.gguf'), at('.base.gguf'))}", flush=True)
        if not error:
            print(f"{name:12} both  {compare(at('.folder.gguf'), at('.a.gguf'), at('.base.gguf'))}", flush=True)
            if EXE:
                print(f"{name:12} run   {run(EXE, at('.base.gguf'), at('.lora.gguf'), at('.a.gguf'))}", flush=True)
    for s in [".base.gguf", ".folder.gguf", ".gguf.gguf", ".a.gguf", ".b.gguf"]:
        if os.path.exists(at(s)) and not os.environ.get("KEEP"):
            os.remove(at(s))
