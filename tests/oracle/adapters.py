#!/usr/bin/env python3
"""Adapters of every form, made and merged by PEFT: the reference for tests/adapter_oracle.rs.

  python tests/oracle/adapters.py OUT [NAME ...]        make the cases (all, or those whose name contains NAME)
  python tests/oracle/adapters.py --pack FOLDER [NAME ...]   make smaller cases, each one file: fixtures/adapters/
  TO_GGUF_ADAPTER_CASES=OUT cargo test --release --test adapter_oracle -- --nocapture

Needs torch, transformers and peft (0.19 or later). Each case is a folder: `model/` (a tiny random model in bf16, as
transformers saves it), `adapter*/` (as PEFT saves them, every trained tensor non-zero), `reference/` (PEFT's merge,
computed in float64, or in bf16 for the cases that say so) and `case.json`.
"""
import json, os, shutil, sys, warnings

sys.path.pop(0)  # this folder: its scripts have names that packages have too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")
import torch
import peft
from peft import PeftModel, get_peft_model
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

B = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
         vocab_size=160, max_position_embeddings=64)
PACK = sys.argv[1] == "--pack" if len(sys.argv) > 1 else False
if PACK:
    B.update(hidden_size=16, intermediate_size=24, num_hidden_layers=1, vocab_size=40)
MODELS = {
    "llama": ("llama", dict(B)),
    "llama-tied": ("llama", dict(B, tie_word_embeddings=True)),
    "llama-bias": ("llama", dict(B, attention_bias=True, mlp_bias=True)),
    "llama-square": ("llama", dict(B, intermediate_size=64, num_key_value_heads=4)),
    "qwen2": ("qwen2", dict(B, tie_word_embeddings=True)),
    "qwen3": ("qwen3", dict(B, head_dim=16)),
    "gemma": ("gemma2", dict(B, head_dim=16, tie_word_embeddings=True)),
    "gemma3": ("gemma3_text", dict(B, head_dim=16)),
    "phi3": ("phi3", dict(B, pad_token_id=0)),
    "gpt2": ("gpt2", dict(n_embd=B["hidden_size"], n_layer=B["num_hidden_layers"], n_head=4, vocab_size=B["vocab_size"], n_positions=16)),
    "gptneox": ("gpt_neox", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=160)),
    "mixtral": ("mixtral", dict(B, num_local_experts=4, num_experts_per_tok=2)),
    "mixtral-square": ("mixtral", dict(B, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3moe": ("qwen3_moe", dict(B, head_dim=16, moe_intermediate_size=48, num_experts=4, num_experts_per_tok=2)),
    "qwen2moe": ("qwen2_moe", dict(B, moe_intermediate_size=48, shared_expert_intermediate_size=32, num_experts=4, num_experts_per_tok=2)),
    "gptoss": ("gpt_oss", dict(B, num_local_experts=4, num_experts_per_tok=2, head_dim=16, sliding_window=16, intermediate_size=48)),
    "gptoss-square": ("gpt_oss", dict(B, num_local_experts=4, num_experts_per_tok=2, head_dim=16, sliding_window=16, intermediate_size=64)),
    "granitemoe": ("granitemoe", dict(B, num_local_experts=4, num_experts_per_tok=2)),
    "mamba": ("mamba", dict(hidden_size=64, num_hidden_layers=2, state_size=8, vocab_size=160)),
}
ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ALL = ATTN + MLP
L = lambda **kw: peft.LoraConfig(**{**dict(r=4, lora_alpha=6, target_modules=ALL, task_type="CAUSAL_LM"), **kw})


def model_of(arch, folder, seed):
    kind, kw = MODELS[arch]
    config = AutoConfig.for_model(kind, **dict(dict(bos_token_id=1, eos_token_id=2), **kw))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_((1.0 if p.dim() == 1 and "norm" in n else 0.0) + 0.05 * torch.randn(p.shape, generator=g))
    model.to(torch.bfloat16).save_pretrained(folder)


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def randomize(model, seed, scale=0.05):
    """Every trained tensor non-zero: around its initial value where that is 1 or a norm, around 0 otherwise."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if not p.requires_grad:
                continue
            noise = torch.randn(p.shape, generator=g)
            multiplies = any(w in n for w in ("magnitude", "ia3_l", "boft_s", "vera_lambda_d", "road_alpha", "delora_lambda"))
            if multiplies:
                p.mul_(1 + 0.1 * noise)
                p.add_(0.01 * noise)
            elif any(w in n for w in ("modules_to_save", "trainable_tokens_delta", "original_module", "base_layer", "ln_tuning_layers")) or (n.endswith(".bias") and "lora" not in n):
                p.add_(scale * noise)
            else:
                p.copy_((scale * noise).to(p.dtype))


def make(out, name, arch, config, weights=(1.0,), dtype=None, resize=None, keep_init=False, save=None, after=None, late=None, seed=0, scale=0.05, names=None, reference=None):
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    base = os.path.join(folder, "model")
    model_of(arch, base, seed)
    adapters = []
    configs = config if isinstance(config, list) else [config]
    for i, c in enumerate(configs):
        model = load(base, torch.float32)
        if resize:
            torch.manual_seed(seed + 7)
            model.resize_token_embeddings(resize, mean_resizing=False)
        c = c() if callable(c) else c
        pm = get_peft_model(model, c)
        if keep_init:  # the initial values belong to the residual base: move away from them a little
            g = torch.Generator().manual_seed(seed + 1)
            with torch.no_grad():
                for n, p in pm.named_parameters():
                    if p.requires_grad:
                        p.add_(0.02 * torch.randn(p.shape, generator=g))
        else:
            randomize(pm, seed + 1 + i, scale)
        path = os.path.join(folder, f"adapter{i}")
        pm.save_pretrained(path, **(save or {}))
        if after:
            after(path)
        adapters.append([os.path.basename(path), weights[i] if i < len(weights) else 1.0])
    compute = {None: torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    save_merged(merged_of(base, folder, adapters, compute, resize, seed, reference), os.path.join(folder, "reference"), base)
    if late:
        late(path)
    json.dump({"adapters": adapters, "dtype": dtype or "f32", "peft": peft.__version__}, open(os.path.join(folder, "case.json"), "w"))


def save_merged(model, folder, base):
    """Replicated layers share tensors and no longer fit the config, which transformers refuses to save."""
    try:
        model.save_pretrained(folder)
    except Exception:
        from safetensors.torch import save_file
        os.makedirs(folder, exist_ok=True)
        save_file({k: v.clone() for k, v in model.state_dict().items()}, os.path.join(folder, "model.safetensors"))
        shutil.copy(os.path.join(base, "config.json"), folder)


def merged_of(base, folder, adapters, compute, resize, seed, reference):
    """PEFT merges into a tied weight in place, so that a change of one module reaches the other, or comes twice. For
    "function" the two are parted first: the merge then computes what the unmerged adapter computes. For "tied" the
    head is then the merged embedding, since both have the same adapter."""
    untie = reference in ("function", "tied")

    def merged(path):
        model = load(base, compute)
        if untie:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
        if resize:
            torch.manual_seed(seed + 7)
            model.resize_token_embeddings(resize, mean_resizing=False)
        if reference == "pissa":
            return pissa_merged(model, path)
        model = PeftModel.from_pretrained(model, path)
        if reference == "unshared":  # PEFT would merge the adapters of all copies of a layer into the one tensor they share
            for m in model.modules():
                if hasattr(m, "base_layer"):
                    m.base_layer.weight = torch.nn.Parameter(m.base_layer.weight.detach().clone())
        model = model.merge_and_unload()
        if reference == "tied":
            model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
        return model

    paths = [os.path.join(folder, p) for p, _ in adapters]
    if len(paths) == 1 and adapters[0][1] == 1.0:
        return merged(paths[0])
    plain = load(base, compute)
    start = {k: v.clone() for k, v in plain.state_dict().items()}
    total = {k: v.clone() for k, v in start.items()}
    for path, (_, weight) in zip(paths, adapters):
        for k, v in merged(path).state_dict().items():
            total[k] += weight * (v - start[k])
    plain.load_state_dict(total)
    return plain


def pissa_merged(model, path):
    """PEFT decomposes in float32 whatever the model's type, and its singular vectors are only as good as that (some
    5e-6 of the largest weight). The same rule in float64."""
    from safetensors.torch import load_file
    c = json.load(open(os.path.join(path, "adapter_config.json")))
    t = load_file(os.path.join(path, "adapter_model.safetensors"))
    with torch.no_grad():
        for n, m in model.named_modules():
            if f"base_model.model.{n}.lora_A.weight" in t:
                a, b = (t[f"base_model.model.{n}.lora_{x}.weight"].double() for x in "AB")
                u, s, v = torch.linalg.svd(m.weight.double(), full_matrices=False)
                r = c["r"]
                delta = c["lora_alpha"] / r * b @ a
                m.weight.add_((delta.T if delta.shape != m.weight.shape or c["fan_in_fan_out"] else delta) - u[:, :r] @ torch.diag(s[:r]) @ v[:r])
    return model


def to_bin(path):
    from safetensors.torch import load_file
    f = os.path.join(path, "adapter_model.safetensors")
    torch.save(load_file(f), os.path.join(path, "adapter_model.bin"))
    os.remove(f)


def wrap_names(path):
    from safetensors.torch import load_file, save_file
    f = os.path.join(path, "adapter_model.safetensors")
    t = load_file(f)
    save_file({"_orig_mod." + k.replace("layers.", "layers._fsdp_wrapped_module.").replace("lora_A.weight", "lora_A.default.weight"): v for k, v in t.items()}, f)


def to_16_bit(path):
    from safetensors.torch import load_file, save_file
    f = os.path.join(path, "adapter_model.safetensors")
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(f).items()}, f)


def cases():
    P = peft
    C = dict(task_type="CAUSAL_LM")
    yield "lora-llama", "llama", L(), {}
    yield "lora-r16-qwen3", "qwen3", L(r=16, lora_alpha=8), {}
    yield "rslora-llama", "llama", L(use_rslora=True, r=8), {}
    yield "patterns-llama", "llama", L(rank_pattern={"layers.1.self_attn.q_proj": 2, "down_proj": 8}, alpha_pattern={"^model.layers.0.mlp.up_proj": 16, "k_proj|v_proj": 3}), {}
    yield "rslora-patterns-qwen2", "qwen2", L(use_rslora=True, rank_pattern={"q_proj": 9}, alpha_pattern={"q_proj": 2}), {}
    yield "all-linear-phi3", "phi3", L(target_modules="all-linear"), {}
    yield "all-linear-gptneox", "gptneox", L(target_modules="all-linear"), {}
    yield "head-llama", "llama", L(target_modules=ALL + ["lm_head"]), {}
    yield "head-tied-llama", "llama-tied", L(target_modules=["q_proj", "lm_head"]), dict(reference="function")
    yield "lora-bias-llama", "llama-bias", L(lora_bias=True), {}
    yield "bias-all-llama", "llama-bias", L(bias="all"), {}
    yield "bias-lora-only-qwen2", "qwen2", L(bias="lora_only", target_modules=ATTN), {}
    yield "embedding-llama", "llama", L(target_modules=ALL + ["embed_tokens"]), {}
    yield "embedding-rslora-gemma3", "gemma3", L(target_modules=["q_proj", "embed_tokens"], use_rslora=True), dict(reference="function")
    yield "conv1d-gpt2", "gpt2", L(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True), {}
    yield "conv1d-embedding-gpt2", "gpt2", L(target_modules=["c_attn", "wpe"], fan_in_fan_out=True), {}
    yield "conv-mamba", "mamba", L(target_modules=["in_proj", "x_proj"]), {}
    yield "dora-llama", "llama", L(use_dora=True), {}
    yield "dora-rslora-qwen3", "qwen3", L(use_dora=True, use_rslora=True, r=8), {}
    yield "dora-embedding-llama", "llama", L(use_dora=True, target_modules=["q_proj", "embed_tokens"]), {}
    yield "dora-conv1d-gpt2", "gpt2", L(use_dora=True, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), {}
    yield "saved-llama", "llama", L(modules_to_save=["embed_tokens", "lm_head"]), {}
    yield "saved-norm-qwen3", "qwen3", L(modules_to_save=["norm"]), {}
    yield "saved-embedding-tied-qwen2", "qwen2", L(modules_to_save=["embed_tokens"]), dict(reference="function")
    yield "saved-both-tied-llama", "llama-tied", L(modules_to_save=["embed_tokens", "lm_head"]), dict(reference="function")
    yield "resized-llama", "llama", L(modules_to_save=["embed_tokens", "lm_head"]), dict(resize=168)
    yield "resized-frozen-llama", "llama", L(), dict(resize=172, save=dict(save_embedding_layers=True))
    yield "resized-lora-embedding-llama", "llama", L(target_modules=["q_proj", "embed_tokens", "lm_head"]), dict(resize=168, save=dict(save_embedding_layers=True))
    yield "tokens-llama", "llama", L(trainable_token_indices=[3, 150, 7]), {}
    yield "tokens-dict-llama", "llama", L(trainable_token_indices={"embed_tokens": [9, 2], "lm_head": [5]}), {}
    yield "tokens-tied-gemma", "gemma", L(trainable_token_indices=[3, 4]), {}
    yield "tokens-only-llama", "llama", P.TrainableTokensConfig(token_indices=[1, 100], target_modules=["embed_tokens"], **C), {}
    yield "tie-lora-llama", "llama-tied", L(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True), dict(reference="tied")
    yield "tie-saved-llama", "llama-tied", L(modules_to_save=["embed_tokens"], ensure_weight_tying=True), {}
    yield "replicated-llama", "llama", L(layer_replication=[[0, 2], [1, 2]]), dict(reference="unshared")
    yield "replicated-rank-qwen3", "qwen3", L(layer_replication=[[0, 1], [0, 2], [0, 2]], rank_pattern={"layers.3.self_attn.q_proj": 2}), dict(reference="unshared")
    yield "pissa-llama", "llama", L(init_lora_weights="pissa"), dict(keep_init=True, reference="pissa")
    yield "olora-qwen3", "qwen3", L(init_lora_weights="olora"), dict(keep_init=True, dtype="f32")
    yield "pissa-conv1d-gpt2", "gpt2", L(init_lora_weights="pissa", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), dict(keep_init=True, reference="pissa")
    yield "bin-llama", "llama", L(), dict(after=to_bin)
    yield "wrapped-names-llama", "llama", L(), dict(late=wrap_names)
    yield "adapter-in-bf16-llama", "llama", L(), dict(after=to_16_bit)
    yield "two-weighted-llama", "llama", [L(r=8), L(r=4, lora_alpha=1, target_modules=ATTN)], dict(weights=(0.7, -0.3))
    yield "two-kinds-llama", "llama", [L(), P.LoKrConfig(r=4, alpha=4, target_modules=ATTN, **C)], dict(weights=(0.5, 0.5))
    yield "two-dora-llama", "llama", [L(use_dora=True), L(use_dora=True, r=2)], dict(weights=(0.6, 0.6))
    yield "experts-qwen3moe", "qwen3moe", L(target_modules=ATTN, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]), {}
    yield "experts-mixtral", "mixtral", L(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]), {}
    yield "experts-square-mixtral", "mixtral-square", L(target_modules=["q_proj"], target_parameters=["experts.down_proj"]), {}
    yield "experts-gptoss", "gptoss", L(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]), {}
    yield "experts-square-gptoss", "gptoss-square", L(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"]), {}
    yield "router-qwen3moe", "qwen3moe", L(target_modules=["q_proj"], target_parameters=["mlp.gate.weight"]), {}
    yield "parameter-2d-llama", "llama", L(target_modules=["q_proj"], target_parameters=["down_proj.weight"]), {}
    yield "experts-granitemoe", "granitemoe", L(target_modules=["q_proj", "input_linear"], target_parameters=["input_linear.weight"]), {}
    yield "loha-llama", "llama", P.LoHaConfig(r=4, alpha=6, target_modules=ALL, **C), {}
    yield "lokr-llama", "llama", P.LoKrConfig(r=4, alpha=6, target_modules=ALL, **C), {}
    yield "lokr-both-llama", "llama", P.LoKrConfig(r=2, alpha=6, target_modules=ALL, decompose_both=True, decompose_factor=8, **C), {}
    yield "lokr-patterns-qwen3", "qwen3", P.LoKrConfig(r=2, alpha=6, target_modules=ATTN, decompose_factor=4, rank_pattern={"q_proj": 3}, alpha_pattern={"q_proj": 1}, **C), {}
    yield "ia3-llama", "llama-bias", P.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **C), {}
    yield "ia3-gpt2", "gpt2", P.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True, **C), {}
    yield "oft-llama", "llama", P.OFTConfig(oft_block_size=8, r=0, target_modules=ALL, use_cayley_neumann=False, **C), {}
    yield "oft-neumann-qwen3", "qwen3", P.OFTConfig(oft_block_size=16, r=0, target_modules=ATTN, use_cayley_neumann=True, num_cayley_neumann_terms=5, **C), {}
    yield "oft-share-llama", "llama", P.OFTConfig(r=4, oft_block_size=0, target_modules=ATTN, block_share=True, use_cayley_neumann=False, **C), {}
    yield "oft-coft-llama", "llama", P.OFTConfig(r=4, oft_block_size=0, target_modules=ATTN, coft=True, eps=1e-2, use_cayley_neumann=False, **C), {}
    yield "boft-llama", "llama", P.BOFTConfig(boft_block_size=8, target_modules=ATTN, **C), {}
    yield "boft-blocks-qwen3", "qwen3", P.BOFTConfig(boft_block_size=0, boft_block_num=4, target_modules=["down_proj", "q_proj"], **C), {}
    yield "adalora-llama", "llama", P.AdaLoraConfig(init_r=6, target_r=4, lora_alpha=5, target_modules=ALL, total_step=10, **C), {}
    yield "adalora-gpt2", "gpt2", P.AdaLoraConfig(init_r=6, target_r=4, lora_alpha=5, target_modules=["c_attn"], fan_in_fan_out=True, total_step=10, **C), {}
    yield "vera-llama", "llama", P.VeraConfig(r=8, target_modules=ALL, save_projection=True, **C), {}
    yield "hra-llama", "llama", P.HRAConfig(r=4, target_modules=ALL, **C), {}
    yield "hra-gs-qwen3", "qwen3", P.HRAConfig(r=4, target_modules=ATTN, apply_GS=True, **C), {}
    yield "miss-llama", "llama", P.MissConfig(r=8, target_modules=ALL, **C), {}
    yield "miss-remainder-llama", "llama", P.MissConfig(r=10, target_modules=ATTN, **C), {}
    yield "miss-bat-llama", "llama", P.MissConfig(r=8, target_modules=ATTN, init_weights="bat", **C), {}
    yield "miss-mini-llama", "llama", P.MissConfig(r=8, mini_r=4, target_modules=ATTN, init_weights="mini", **C), {}
    yield "c3a-llama", "llama", P.C3AConfig(block_size=16, target_modules=ALL, **C), {}
    yield "fourierft-llama", "llama", P.FourierFTConfig(n_frequency=50, scaling=20.0, target_modules=ALL, **C), dict(scale=1.0)
    yield "fourierft-gpt2", "gpt2", P.FourierFTConfig(n_frequency=60, scaling=20.0, target_modules=["c_attn"], fan_in_fan_out=True, **C), dict(scale=1.0)
    yield "shira-llama", "llama", P.ShiraConfig(r=3, target_modules=ALL, **C), {}
    yield "randlora-llama", "llama", P.RandLoraConfig(r=6, randlora_alpha=20, target_modules=ALL, save_projection=True, **C), {}
    yield "randlora-sparse-llama", "llama", P.RandLoraConfig(r=6, randlora_alpha=20, target_modules=ATTN, save_projection=True, sparse=True, **C), {}
    yield "pvera-llama", "llama", P.PveraConfig(r=8, target_modules=ALL, save_projection=True, **C), {}
    yield "hira-llama", "llama", P.HiraConfig(r=4, target_modules=ALL, **C), {}
    yield "delora-llama", "llama", P.DeloraConfig(r=4, target_modules=ALL, delora_lambda=3, **C), {}
    yield "road-llama", "llama-bias", P.RoadConfig(variant="road_2", group_size=8, target_modules=ALL, **C), {}
    yield "gralora-llama", "llama", P.GraloraConfig(r=4, hybrid_r=2, gralora_k=2, alpha=6, target_modules=ALL, **C), {}
    yield "vblora-llama", "llama", P.VBLoRAConfig(r=3, num_vectors=12, vector_length=8, topk=2, target_modules=ALL, **C), {}
    yield "beft-llama", "llama-bias", P.BeftConfig(target_modules=["v_proj", "down_proj"], **C), {}
    yield "lntuning-llama", "llama", P.LNTuningConfig(target_modules=["input_layernorm", "norm"], **C), {}
    yield "tokens-packed-llama", "llama", L(trainable_token_indices=[3, 30, 7]), {}
    yield "c3a-packed-llama", "llama", P.C3AConfig(block_size=8, target_modules=ALL, **C), {}
    yield "replicated-packed-llama", "llama", L(layer_replication=[[0, 1], [0, 1]]), dict(reference="unshared")
    yield "bf16-lora-llama", "llama", L(target_modules=ALL + ["lm_head"]), dict(dtype="bf16")
    yield "bf16-embedding-llama", "llama", L(target_modules=["q_proj", "embed_tokens"]), dict(dtype="bf16")
    yield "bf16-dora-qwen3", "qwen3", L(use_dora=True), dict(dtype="bf16")
    yield "f16-lora-qwen3", "qwen3", L(), dict(dtype="f16")
    yield "bf16-saved-llama", "llama", L(modules_to_save=["embed_tokens"]), dict(dtype="bf16")


# What cargo test runs: one case of every form, small enough to lie in the repository.
PACKED = ["lora-llama", "rslora-patterns-qwen2", "lora-bias-llama", "bias-all-llama", "embedding-llama", "conv1d-gpt2", "dora-llama",
          "dora-embedding-llama", "dora-conv1d-gpt2", "saved-embedding-tied-qwen2", "tie-lora-llama", "resized-lora-embedding-llama",
          "replicated-packed-llama", "pissa-llama", "olora-qwen3", "bin-llama", "two-kinds-llama", "experts-mixtral", "experts-square-gptoss",
          "loha-llama", "lokr-both-llama", "ia3-llama", "oft-llama", "oft-neumann-qwen3", "boft-llama", "adalora-llama", "vera-llama",
          "hra-gs-qwen3", "miss-llama", "miss-bat-llama", "fourierft-gpt2", "shira-llama", "randlora-sparse-llama", "bf16-embedding-llama",
          "tokens-packed-llama", "c3a-packed-llama", "pvera-llama", "hira-llama", "delora-llama", "road-llama", "gralora-llama",
          "vblora-llama", "beft-llama", "lntuning-llama"]


def pack(folder, name, target):
    """One file: `<folder>/<tensor>` for the model, the adapters and what changed in the reference; the configs in its
    header."""
    from safetensors.torch import load_file, save_file
    root = os.path.join(folder, name)
    texts, tensors = {"case.json": open(os.path.join(root, "case.json")).read()}, {}
    for part in sorted(os.listdir(root)):
        path = os.path.join(root, part)
        if not os.path.isdir(path):
            continue
        for f in ("config.json", "adapter_config.json"):
            if os.path.exists(os.path.join(path, f)) and part != "reference":
                c = json.load(open(os.path.join(path, f)))
                c.pop("_name_or_path", None)
                if "base_model_name_or_path" in c:
                    c["base_model_name_or_path"] = "model"
                texts[f"{part}/{f}"] = json.dumps(c)
        for f in os.listdir(path):
            if f.endswith(".safetensors"):
                tensors.update({f"{part}/{k}": v for k, v in load_file(os.path.join(path, f)).items()})
            elif f.endswith(".bin"):
                raw = torch.frombuffer(bytearray(open(os.path.join(path, f), "rb").read()), dtype=torch.uint8)
                tensors[f"{part}/{f}"] = raw
    for k in [k for k in tensors if k.startswith("reference/")]:
        same = tensors.get("model/" + k.removeprefix("reference/"))
        if same is not None and same.shape == tensors[k].shape and torch.equal(same.to(tensors[k].dtype), tensors[k]):
            del tensors[k]
        else:
            tensors[k] = tensors[k].float()
    os.makedirs(target, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(target, name + ".safetensors"), metadata=texts)


def main():
    if PACK:
        import tempfile
        target, wanted, out = sys.argv[2], sys.argv[3:], tempfile.mkdtemp()
    else:
        out, wanted = sys.argv[1], sys.argv[2:]
    failed = 0
    for i, (name, arch, config, options) in enumerate(cases()):
        if wanted and not any(w in name for w in wanted) or PACK and name not in PACKED:
            continue
        try:
            make(out, name, arch, config, seed=i, **options)
            if PACK:
                pack(out, name, target)
            print(f"{name:30} made", flush=True)
        except Exception as e:
            failed += 1
            shutil.rmtree(os.path.join(out, name), ignore_errors=True)
            print(f"{name:30} FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
