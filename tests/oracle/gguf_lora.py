#!/usr/bin/env python3
"""GGUF adapters in llama.cpp: base GGUF + adapter against transformers + PEFT, and against convert_lora_to_gguf.

  LLAMA_CPP=llama.cpp NODE_LLAMA=bins python tests/oracle/gguf_lora.py TO_GGUF WORK [NAME ...]

For each case a tiny random model and its adapters are made (tests/oracle/adapters.py), the base is converted to an f32
GGUF, the adapters to one GGUF adapter by `--save-method lora --format gguf`. Columns: the largest KL divergence over
the positions of a prompt, PEFT's logits || llama.cpp's; how far the adapters move the logits (KL of the base, so that
a zero does not pass for agreement), and the KL without adapters, which is the base's own; the same KL for the file of convert_lora_to_gguf.py, and whether it is the same
file as ours. Needs g++, torch, transformers, peft, sentencepiece.
"""
import json, os, shutil, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
TO_GGUF, WORK, ONLY = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]
LLAMA, NODE = os.environ["LLAMA_CPP"], os.environ["NODE_LLAMA"]
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.argv = sys.argv[:1]
sys.path.pop(0)  # this folder: its scripts have names that packages have too
import importlib.util
spec = importlib.util.spec_from_file_location("adapter_cases", os.path.join(HERE, "adapters.py"))
sys.path.insert(0, HERE)  # which adapters.py takes off again
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
import numpy as np, peft, torch

VOCAB = {"gemma3": 512, "gemma": 512, "phi3": 512}
for name, (kind, kw) in cases.MODELS.items():
    kw["vocab_size"] = VOCAB.get(name, 2048)
    if "max_position_embeddings" in kw: kw["max_position_embeddings"] = 128
    if "n_positions" in kw: kw["n_positions"] = 128
# llama.cpp takes these as given for the family.
for gemma in ("gemma", "gemma3"): cases.MODELS[gemma][1]["query_pre_attn_scalar"] = 16
cases.MODELS["qwen3moe"][1]["norm_topk_prob"] = True
cases.MODELS["mistral"] = ("mistral", dict(cases.B, vocab_size=2048))
cases.MODELS["llama3-rope"] = ("llama", dict(cases.B, vocab_size=2048, head_dim=32))
cases.MODELS["starcoder2"] = ("starcoder2", dict(cases.B, vocab_size=2048, use_bias=True))
L, ALL, ATTN = cases.L, cases.ALL, cases.ATTN
PATTERNS = dict(rank_pattern={"q_proj": 8, "layers.1.mlp.down_proj": 2}, alpha_pattern={"v_proj": 11, "o_proj": 1})
CASES = [  # name, model, adapters, weights
    ("plain", "llama", [L()], []),
    ("plain, weighted", "llama", [L()], [0.3]),
    ("rslora", "llama", [L(use_rslora=True)], []),
    ("patterns", "llama", [L(**PATTERNS)], []),
    ("patterns, rslora", "llama", [L(use_rslora=True, **PATTERNS)], []),
    ("two adapters", "llama", [L(), L(r=6, lora_alpha=9, target_modules=["q_proj", "up_proj", "lm_head"])], [0.7, -0.4]),
    ("three adapters", "llama", [L(), L(r=2, use_rslora=True), L(**PATTERNS)], [1, 0.5, 0.25]),
    ("head and embedding", "llama", [L(target_modules=["q_proj", "lm_head", "embed_tokens"])], []),
    ("pissa", "llama", [L(init_lora_weights="pissa")], []),
    ("olora", "llama", [L(init_lora_weights="olora")], []),
    ("adalora", "llama", [peft.AdaLoraConfig(init_r=4, target_r=4, lora_alpha=6, target_modules=ALL, task_type="CAUSAL_LM", total_step=10)], []),
    ("vera", "llama", [peft.VeraConfig(r=8, target_modules=ALL[:4], task_type="CAUSAL_LM")], []),
    ("head of 32", "llama3-rope", [L()], []),
    ("mistral", "mistral", [L()], []),
    ("qwen2", "qwen2", [L()], []),
    ("qwen3", "qwen3", [L()], []),
    ("gemma2", "gemma", [L()], []),
    ("gemma3", "gemma3", [L()], []),
    ("phi3, fused", "phi3", [L(target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])], []),
    ("gpt2, Conv1D", "gpt2", [L(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)], []),
    ("gptneox, regrouped", "gptneox", [L(target_modules=["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"])], []),
    ("starcoder2", "starcoder2", [L(target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"])], []),
    ("mixtral attention", "mixtral", [L(target_modules=ATTN)], []),
    ("mixtral experts", "mixtral", [L(target_modules=ATTN, target_parameters=["experts.gate_up_proj", "experts.down_proj"])], []),
    ("qwen3moe experts", "qwen3moe", [L(target_modules=ATTN, target_parameters=["experts.gate_up_proj", "experts.down_proj"])], []),
    ("qwen2moe shared", "qwen2moe", [L(target_modules=ALL)], []),
    ("gpt-oss experts", "gptoss", [L(target_modules=ATTN, target_parameters=["experts.gate_up_proj", "experts.down_proj"])], []),
    ("granitemoe", "granitemoe", [L(target_modules=ATTN)], []),
    ("mamba", "mamba", [L(target_modules=["in_proj", "x_proj", "dt_proj"])], []),
]


def build():
    exe = os.path.join(WORK, "lora_logits")
    lib = lambda start: next(f for f in sorted(os.listdir(NODE)) if f.startswith(start) and f.endswith(".so"))
    libs = [os.path.join(NODE, lib(s)) for s in ("libllama.v", "libggml.v", "libggml-base")]
    subprocess.run(["g++", "-O1", "-std=c++17", f"-I{LLAMA}/include", f"-I{LLAMA}/ggml/include", os.path.join(HERE, "lora_logits.cpp"), "-o", exe, *libs, f"-Wl,-rpath,{NODE}"], check=True)
    return exe


def tokenizer(folder, model):
    """A small tokenizer of the kind that the converter expects."""
    if VOCAB.get(model):
        import sentencepiece
        prefix = os.path.join(WORK, "spm")
        if not os.path.exists(prefix + ".model"):
            sentencepiece.SentencePieceTrainer.train(input=os.path.join(ROOT, "fixtures", "heldout.txt"), model_prefix=prefix, vocab_size=512, model_type="bpe", byte_fallback=True,
                                                     pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2)
        shutil.copy(prefix + ".model", os.path.join(folder, "tokenizer.model"))
        return
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(ROOT, "fixtures", "shakespeare-llama", f), folder)


def run(*command):
    r = subprocess.run(command, capture_output=True, text=True)
    return None if r.returncode == 0 else (r.stderr.strip() or f"exit {r.returncode}").splitlines()[-1]


def logits(exe, model, ids, adapters, vocab):
    out = os.path.join(WORK, "logits.f32")
    error = run(exe, model, " ".join(map(str, ids)), out, *adapters)
    if error: return error
    return torch.log_softmax(torch.from_numpy(np.fromfile(out, np.float32).reshape(len(ids), -1)).double()[:, :vocab], -1)


def kl(want, got):
    return got if isinstance(got, str) else float((want.exp() * (want - got)).sum(-1).max())


def show(x):
    return x[:48] if isinstance(x, str) else f"{x:.1e}"


def main():
    os.makedirs(WORK, exist_ok=True)
    exe, worst = build(), 0.0
    print(f"{'case':22} {'moved':>8} {'KL base':>8} {'KL ours':>8}  KL convert_lora_to_gguf")
    for seed, (name, model, configs, weights) in enumerate(CASES):
        if ONLY and not any(o in name for o in ONLY): continue
        folder = os.path.join(WORK, name.replace(" ", "-").replace(",", ""))
        shutil.rmtree(folder, ignore_errors=True)
        keep = getattr(configs[0], "init_lora_weights", True) in ("pissa", "olora")
        cases.make(WORK, os.path.basename(folder), model, configs, weights=weights or (1.0,), seed=seed, scale=0.4 if model == "gpt2" else 0.08, keep_init=keep, dtype="f32" if "olora" == name else None, reference="pissa" if keep and configs[0].init_lora_weights == "pissa" else None)
        base = os.path.join(folder, "model")
        tokenizer(base, model)
        f = os.path.join
        adapters = [f(folder, f"adapter{i}") for i in range(len(configs))]
        loras = [x for a, w in zip(adapters, weights or [1] * len(adapters)) for x in ("--lora", f"{a}={w}")]
        error = run(TO_GGUF, base, "--quant", "f32", "--pre-tokenizer", "llama-bpe", "-o", f(folder, "base.gguf"), "-q") or \
            run(TO_GGUF, base, *loras, "--save-method", "lora", "--format", "gguf", "-o", f(folder, "ours.gguf"), "-q")
        if error:
            print(f"{name:22} {error}"); worst = float("inf"); continue
        tool = run(sys.executable, f(LLAMA, "convert_lora_to_gguf.py"), "--base", base, "--outfile", f(folder, "tool.gguf"), adapters[0]) if len(adapters) == 1 else "one adapter only"
        merged = cases.load(f(folder, "reference"), torch.float32).eval()
        plain = cases.load(base, torch.float32).eval()
        vocab = merged.config.vocab_size
        ids = [int(i) for i in torch.randint(4, vocab, (40,), generator=torch.Generator().manual_seed(1))]
        with torch.no_grad():
            want, before = (torch.log_softmax(m(torch.tensor([ids])).logits[0].double(), -1)[:, :vocab] for m in (merged, plain))
        ours = kl(want, logits(exe, f(folder, "base.gguf"), ids, [f(folder, "ours.gguf")], vocab))
        moved, bare = kl(want, before), kl(before, logits(exe, f(folder, "base.gguf"), ids, [], vocab))
        if not tool:
            tool = show(kl(want, logits(exe, f(folder, "base.gguf"), ids, [f(folder, "tool.gguf")], vocab)))
            if open(f(folder, "ours.gguf"), "rb").read() == open(f(folder, "tool.gguf"), "rb").read(): tool += ", the same file"
        worst = max(worst, float("inf") if isinstance(ours, str) else ours)
        print(f"{name:22} {show(moved):>8} {show(bare):>8} {show(ours):>8}  {tool[:110]}", flush=True)
        shutil.rmtree(folder)
    print(f"worst KL {worst:.2e}")
    sys.exit(worst > 1e-3)


main()
