#!/usr/bin/env python3
"""Adapters through the whole program: the Q8_0 file runs in llama.cpp and predicts what transformers with PEFT predicts.

  python tests/oracle/adapter_logits.py OUT BIN [NAME ...]

For every form that can be merged: an adapter of random values over fixtures/shakespeare-llama, made by PEFT; the file
that `BIN ADAPTER --quant q8_0` writes; and the next token's distribution at eight places of fixtures/heldout.txt, by
llama.cpp (PyPI xllamacpp) and by the unmerged PEFT model in f32. Prints KL(PEFT || llama.cpp), which stays below 1e-3.
"""
import math, os, pathlib, shutil, subprocess, sys, warnings

sys.path.pop(0)
warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import peft, torch, transformers, xllamacpp
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
OUT, BIN, WANTED = pathlib.Path(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]
FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "fixtures" if len(pathlib.Path(__file__).resolve().parents) > 2 else None
FIXTURES = pathlib.Path(os.environ.get("FIXTURES", FIXTURES))
BASE = FIXTURES / "shakespeare-llama"
LIMIT, POINTS = 1e-3, 8
ATTN, ALL = ["q_proj", "k_proj", "v_proj", "o_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
C = dict(task_type="CAUSAL_LM")
L = lambda **kw: peft.LoraConfig(**{**dict(r=8, lora_alpha=16, target_modules=ALL, **C), **kw})
P = peft
FORMS = {
    "LoRA": L(), "rsLoRA": L(use_rslora=True), "patterns": L(rank_pattern={"q_proj": 3}, alpha_pattern={"down_proj": 4}), "DoRA": L(use_dora=True),
    "LoRA on embedding and head": L(target_modules=["q_proj", "embed_tokens", "lm_head"]), "DoRA on the embedding": L(target_modules=["q_proj", "embed_tokens"], use_dora=True),
    "modules_to_save": L(modules_to_save=["embed_tokens", "lm_head"]), "norms saved": L(modules_to_save=["norm"]), "trained tokens": L(trainable_token_indices=[5, 17, 300]),
    "layer replication": L(layer_replication=[[0, 3], [1, 4]]), "PiSSA": L(init_lora_weights="pissa"), "OLoRA": L(init_lora_weights="olora"),
    "parameters": L(target_modules=["q_proj"], target_parameters=["down_proj.weight"]),
    "LoHa": P.LoHaConfig(r=4, alpha=8, target_modules=ALL, **C), "LoKr": P.LoKrConfig(r=8, alpha=8, target_modules=ALL, **C),
    "IA3": P.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **C),
    "OFT": P.OFTConfig(oft_block_size=16, r=0, target_modules=ALL, use_cayley_neumann=False, **C), "BOFT": P.BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=2, target_modules=ATTN, **C),
    "AdaLoRA": P.AdaLoraConfig(init_r=6, target_r=4, lora_alpha=8, target_modules=ALL, total_step=10, **C), "VeRA": P.VeraConfig(r=16, target_modules=ATTN, save_projection=True, **C),
    "RandLoRA": P.RandLoraConfig(r=8, randlora_alpha=8, target_modules=ATTN, save_projection=True, **C), "HRA": P.HRAConfig(r=4, target_modules=ALL, **C),
    "MiSS": P.MissConfig(r=16, target_modules=ALL, **C), "C3A": P.C3AConfig(block_size=64, target_modules=ATTN, **C),
    "FourierFT": P.FourierFTConfig(n_frequency=300, scaling=40.0, target_modules=ALL, **C), "SHiRA": P.ShiraConfig(r=4, target_modules=ALL, **C),
    "PVeRA": P.PveraConfig(r=16, target_modules=ATTN, save_projection=True, **C), "HiRA": P.HiraConfig(r=16, target_modules=ALL, **C),
    "DeLoRA": P.DeloraConfig(r=8, target_modules=ALL, **C), "RoAd": P.RoadConfig(variant="road_2", group_size=32, target_modules=ALL, **C),
    "GraLoRA": P.GraloraConfig(r=16, hybrid_r=4, gralora_k=2, target_modules=ALL, **C), "LN tuning": P.LNTuningConfig(target_modules=["input_layernorm", "norm"], **C),
    "VB-LoRA": P.VBLoRAConfig(r=4, num_vectors=64, vector_length=64, topk=2, target_modules=ALL, **C),
}
# Parameters whose product with others would otherwise change next to nothing.
STRONGER = {"fourier": 20, "vblora_logits": 20, "vblora_vector_bank": 4, "hada_": 10, "lokr_": 5, "road_theta": 5, "lora_E": 150, "vera_lambda_b": 20, "c3a_kernel": 50, "gralora_B": 4, "hira_": 10}


def randomize(model, keep):
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if not p.requires_grad:
                continue
            noise = torch.randn(p.shape, generator=g)
            if any(w in n for w in ("magnitude", "ia3_l", "boft_s", "vera_lambda_d", "modules_to_save", "trainable_tokens_delta", "road_alpha", "delora_lambda", "ln_tuning_layers")):
                p.mul_(1 + 0.05 * noise)
            elif keep:
                p.add_(0.005 * noise)
            else:
                p.copy_(0.02 * noise * next((f for word, f in STRONGER.items() if word in n), 1))


def predictions(gguf, prompts):
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.warmup = str(gguf), 512, False
    server = xllamacpp.Server(settings)
    for ids in prompts:
        r = server.handle_completions({"prompt": ids, "max_tokens": 1, "temperature": 0, "n_probs": 2048, "logprobs": 2048, "cache_prompt": False})
        yield {t["id"]: t["logprob"] for t in r["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}


def check(name, config, prompts):
    folder = OUT / name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    load = lambda: AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    keep = getattr(config, "init_lora_weights", True) in ("pissa", "olora")
    model = get_peft_model(load(), config)
    randomize(model, keep)
    model.save_pretrained(folder / "adapter")
    gguf = folder / "model.gguf"
    r = subprocess.run([BIN, str(folder / "adapter"), "--base", str(BASE), "--quant", "q8_0", "-o", str(gguf), "-q"], capture_output=True, text=True)
    if r.returncode:
        return f"FAILED {r.stderr.strip()}"
    plain, model = load().eval(), PeftModel.from_pretrained(load(), folder / "adapter").eval()
    worst, moved, agree = 0.0, 0.0, 0
    for ids, got in zip(prompts, predictions(gguf, prompts)):
        with torch.no_grad():
            want, before = (torch.log_softmax(m(torch.tensor([ids])).logits[0, -1].double(), -1) for m in (model, plain))
        kl = lambda p, q: sum(math.exp(p[i]) * (float(p[i]) - q(i)) for i in range(len(p)) if i in got)
        worst, moved = max(worst, kl(want, lambda i: got[i])), max(moved, kl(want, lambda i: float(before[i])))
        agree += max(got, key=got.get) == int(want.argmax())
    shutil.rmtree(folder)
    verdict = "ok" if worst <= LIMIT else "FAILED"
    return f"{verdict:7} KL {worst:.1e} (the adapter moved it by {moved:.1e}), first choice agrees {agree} of {len(prompts)}"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    ids = AutoTokenizer.from_pretrained(BASE)((FIXTURES / "heldout.txt").read_text()[:4000])["input_ids"]
    prompts = [ids[: 400 * (i + 1) // POINTS] for i in range(POINTS)]
    failed = 0
    for name, config in FORMS.items():
        if WANTED and name not in WANTED:
            continue
        try:
            line = check(name, config, prompts)
        except Exception as e:
            line = f"FAILED {type(e).__name__}: {str(e)[:200]}"
        failed += line.startswith("FAILED")
        print(f"{name:28} {line}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
