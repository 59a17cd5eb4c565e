#!/usr/bin/env python3
"""Adapters saved by `--save-method lora`, loaded by PEFT again: the same logits as the adapters they were made from.

  python tests/oracle/peft_folder.py TO_GGUF WORK [NAME ...]

Each case is a tiny random model with adapters (tests/oracle/adapters.py). The largest difference of the logits against
PEFT's merge of the originals is printed, and what the adapters move them by; missing or unexpected keys fail.
"""
import os, shutil, subprocess, sys, warnings

HERE = os.path.dirname(os.path.abspath(__file__))
TO_GGUF, WORK, ONLY = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]
sys.argv = sys.argv[:1]
sys.path.pop(0)  # this folder: its scripts have names that packages have too
import importlib.util
spec = importlib.util.spec_from_file_location("adapter_cases", os.path.join(HERE, "adapters.py"))
sys.path.insert(0, HERE)  # which adapters.py takes off again
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
import peft, torch
from peft import PeftModel

L, ALL = cases.L, cases.ALL
PATTERNS = dict(rank_pattern={"q_proj": 8, "layers.1.mlp.down_proj": 2}, alpha_pattern={"v_proj": 11, "o_proj": 1})
EMB = ["q_proj", "lm_head", "embed_tokens"]
CASES = [  # name, model, adapters, weights, options of ours, options of make
    ("plain", "llama", [L()], [], [], {}),
    ("bin out", "llama", [L()], [], ["--no-safe-serialization"], {}),
    ("bin in, bin out", "llama", [L()], [], ["--no-safe-serialization"], dict(after=cases.to_bin)),
    ("wrapped names", "llama", [L()], [], [], dict(after=cases.wrap_names)),
    ("16 bit", "llama", [L()], [], [], dict(after=cases.to_16_bit)),
    ("16 bit, bin out", "llama", [L()], [], ["--no-safe-serialization"], dict(after=cases.to_16_bit)),
    ("patterns", "llama", [L(use_rslora=True, **PATTERNS)], [], [], {}),
    ("dora", "llama", [L(use_dora=True)], [], [], {}),
    ("lora_bias", "llama-bias", [L(lora_bias=True)], [], [], {}),
    ("bias all", "llama-bias", [L(bias="all")], [], [], {}),
    ("modules_to_save", "llama", [L(modules_to_save=["lm_head", "embed_tokens"])], [], [], {}),
    ("modules_to_save, no", "llama", [L(modules_to_save=["lm_head", "embed_tokens"])], [], ["--save-embedding-layers", "no"], {}),
    ("embeddings yes", "llama", [L()], [], ["--save-embedding-layers", "yes"], {}),
    ("head and embedding", "llama", [L(target_modules=EMB)], [], [], {}),
    ("head and embedding, no", "llama", [L(target_modules=EMB)], [], ["--save-embedding-layers", "no"], {}),
    ("head, was not saved", "llama", [L(target_modules=["q_proj", "lm_head"])], [], [], dict(save=dict(save_embedding_layers=False))),
    ("tokens", "llama", [L(trainable_token_indices=[3, 9])], [], [], {}),
    ("experts", "mixtral", [L(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])], [], [], {}),
    ("oft", "llama", [peft.OFTConfig(r=4, oft_block_size=0, target_modules=ALL, task_type="CAUSAL_LM")], [], [], {}),
    ("lokr", "llama", [peft.LoKrConfig(r=4, alpha=6, target_modules=ALL, task_type="CAUSAL_LM")], [], [], {}),
    ("vera", "llama", [peft.VeraConfig(r=8, target_modules=ALL[:4], task_type="CAUSAL_LM")], [], [], {}),
    ("weighted", "llama", [L()], [0.3], [], {}),
    ("two", "llama", [L(), L(r=6, lora_alpha=9, target_modules=["q_proj", "up_proj"])], [0.7, -0.4], [], {}),
    ("two, head", "llama", [L(), L(r=6, lora_alpha=9, target_modules=["q_proj", "lm_head"])], [0.7, 1.0], [], {}),
    ("three", "llama", [L(), L(r=2, use_rslora=True), L(layers_to_transform=[1], **PATTERNS)], [1, 0.5, 0.25], [], {}),
    ("two, gpt2", "gpt2", [L(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True), L(target_modules=["c_attn"], fan_in_fan_out=True)], [1, 2], [], {}),
    ("pissa", "llama", [L(init_lora_weights="pissa")], [], [], {}),
    ("pissa, gpt2", "gpt2", [L(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, init_lora_weights="pissa")], [], [], {}),
    ("olora", "llama", [L(init_lora_weights="olora")], [], [], {}),
    ("pissa and plain", "llama", [L(init_lora_weights="pissa"), L()], [1, 0.5], [], dict(keep_init=False, dtype="f32")),
]


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0].double()


def main():
    os.makedirs(WORK, exist_ok=True)
    worst = 0.0
    for seed, (name, model, configs, weights, options, making) in enumerate(CASES):
        if ONLY and not any(o in name for o in ONLY): continue
        folder = os.path.join(WORK, name.replace(" ", "-").replace(",", ""))
        f = os.path.join
        init = getattr(configs[0], "init_lora_weights", True)
        making = {**dict(keep_init=init in ("pissa", "olora") and len(configs) == 1), **making}
        if init == "pissa" and len(configs) == 1: making["reference"] = "pissa"
        if init == "olora": making["dtype"] = "f32"
        if init == "pissa" and len(configs) == 2: configs = configs[::-1]; weights = weights[::-1]
        cases.make(WORK, os.path.basename(folder), model, configs, weights=weights or (1.0,), seed=seed, scale=0.05, **making)
        base = f(folder, "model")
        loras = [x for i, w in enumerate(weights or [1] * len(configs)) for x in ("--lora", f"{f(folder, f'adapter{i}')}={w}")]
        run = subprocess.run([TO_GGUF, base, *loras, "--save-method", "lora", "-o", f(folder, "out"), "-q", *options], capture_output=True, text=True)
        if run.returncode:
            print(f"{name:24} {run.stderr.strip()[-150:]}"); worst = float("inf"); continue
        plain = cases.load(base, torch.float32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = PeftModel.from_pretrained(plain, f(folder, "out"))
        bad = [str(w.message)[:120] for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message).lower()]
        merged = cases.load(f(folder, "reference"), torch.float32)
        ids = [int(i) for i in torch.randint(4, merged.config.vocab_size, (16,), generator=torch.Generator().manual_seed(1))]
        want, got, before = logits(merged, ids), logits(loaded, ids), logits(cases.load(base, torch.float32), ids)
        error, moved = float((want - got).abs().max()), float((want - before).abs().max())
        worst = max(worst, error / max(moved, 1e-9), float("inf") if bad else 0)
        files = " ".join(sorted(x for x in os.listdir(f(folder, "out")) if x.startswith("adapter_model")))
        print(f"{name:24} moved {moved:.1e}  error {error:.1e}  {files} {' '.join(bad)} {run.stderr.strip()[-90:]}", flush=True)
        shutil.rmtree(folder)
    print(f"worst error, as a part of what the adapter moves: {worst:.1e}")
    sys.exit(worst > 1e-3)


main()
