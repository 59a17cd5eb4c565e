#!/usr/bin/env python3
"""More adapters made and merged by PEFT: every architecture with LoRA on all linear layers and on its experts, corner
cases of names and settings, and random mixtures of settings. Cases and checks are those of adapters.py.

  python tests/oracle/adapters_wide.py OUT [--seed N] [--random N] [NAME ...]
  TO_GGUF_ADAPTER_CASES=OUT cargo test --release --test adapter_oracle -- --nocapture
"""
import argparse, json, os, random, shutil, sys

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--random", type=int, default=30)
parser.add_argument("names", nargs="*")
args = parser.parse_args()
here = os.path.dirname(os.path.abspath(__file__))
sys.path[0] = here
sys.argv = ["adapters.py", args.out]
import adapters as A

sys.path.pop(0)
import peft, torch, transformers
from safetensors.torch import load_file, save_file

B, L, P = A.B, A.L, peft
MOE = dict(num_experts_per_tok=2)
A.MODELS.update({
    "gemma1": ("gemma", dict(B, head_dim=16)),
    "phi2": ("phi", dict(B, num_key_value_heads=4, partial_rotary_factor=0.5)),
    "phimoe": ("phimoe", dict(B, num_local_experts=4, **MOE)),
    "starcoder": ("gpt_bigcode", dict(n_embd=64, n_layer=2, n_head=4, vocab_size=160, n_positions=64, multi_query=True)),
    "starcoder2": ("starcoder2", dict(B)),
    "llama4": ("llama4_text", dict(B, intermediate_size_mlp=96, num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=2, head_dim=16, no_rope_layers=[1, 1])),
    "deepseek2": ("deepseek_v2", dict(B, num_key_value_heads=4, moe_intermediate_size=48, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, kv_lora_rank=16,
                  q_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, **MOE)),
    "deepseek3": ("deepseek_v3", dict(B, num_key_value_heads=4, moe_intermediate_size=48, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, kv_lora_rank=16,
                  q_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, n_group=1, topk_group=1, **MOE)),
    "granite": ("granite", dict(B)),
    "cohere": ("cohere", dict(B)),
    "cohere2": ("cohere2", dict(B, head_dim=16)),
    "olmo": ("olmo", dict(B, pad_token_id=0)),
    "olmo2": ("olmo2", dict(B, pad_token_id=0)),
    "olmoe": ("olmoe", dict(B, num_experts=4, pad_token_id=0, **MOE)),
    "seed": ("seed_oss", dict(B, head_dim=16)),
    "smollm3": ("smollm3", dict(B, pad_token_id=0)),
    "arcee": ("arcee", dict(B)),
    "stablelm": ("stablelm", dict(B, use_qkv_bias=True)),
    "nemotron": ("nemotron", dict(B)),
    "bloom": ("bloom", dict(hidden_size=64, n_layer=2, n_head=4, vocab_size=160)),
    "falcon": ("falcon", dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, multi_query=True, new_decoder_architecture=False, bias=False, vocab_size=160)),
    "falcon40": ("falcon", dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True, bias=True, vocab_size=160)),
    "bert": ("bert", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=160)),
    "t5": ("t5", dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, vocab_size=160, decoder_start_token_id=0, pad_token_id=0)),
})
CLASSES = {"bert": transformers.AutoModel, "t5": transformers.AutoModelForSeq2SeqLM}
real = transformers.AutoModelForCausalLM


class Auto:
    """The class that a case's architecture is loaded by."""
    kind = real
    from_config = staticmethod(lambda c: Auto.kind.from_config(c))
    from_pretrained = staticmethod(lambda *a, **k: Auto.kind.from_pretrained(*a, **k))


A.AutoModelForCausalLM = Auto
TASK = {"bert": "FEATURE_EXTRACTION", "t5": "SEQ_2_SEQ_LM"}


def rename(change):
    def after(path):
        f = os.path.join(path, "adapter_model.safetensors")
        save_file({change(k): v for k, v in load_file(f).items()}, f)
    return after


def fixed():
    for arch in A.MODELS:
        task = TASK.get(arch, "CAUSAL_LM")
        yield f"linear-{arch}", arch, L(target_modules="all-linear", task_type=task), {}
        if arch not in ("mamba",):
            yield f"dora-{arch}", arch, L(target_modules="all-linear", use_dora=True, task_type=task), {}
    for arch, names in {"qwen2moe": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "olmoe": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
                        "deepseek2": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "deepseek3": ["mlp.experts.down_proj"],
                        "phimoe": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "llama4": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"],
                        "mixtral": ["experts.gate_up_proj"], "gptoss": ["experts.gate_up_proj"]}.items():
        yield f"parameters-{arch}", arch, L(target_modules=["q_proj"] if arch not in ("deepseek2", "deepseek3") else ["o_proj"], target_parameters=names), {}
        yield f"parameters-rslora-{arch}", arch, L(target_modules=["o_proj"], target_parameters=names[:1], use_rslora=True, rank_pattern={names[0].split(".")[-1]: 2}), {}
    yield "regex-dots-llama", "llama", L(rank_pattern={r"model\.layers\.(0|1)\.self_attn\.(q|k)_proj": 3, "v.proj": 5}, alpha_pattern={r".*\.1\..*up_proj": 9, r"layers\.0": 4, "o_proj$": 7}), {}
    yield "regex-anchors-llama", "llama", L(rank_pattern={r"^model.layers.0.mlp.*": 2, r"q_proj": 6}, alpha_pattern={r"^q_proj": 100}), {}
    yield "target-regex-llama", "llama", L(target_modules=r".*layers\.(1)\.(self_attn|mlp)\.(q|down)_proj"), {}
    yield "layers-to-transform-llama", "llama", L(layers_to_transform=[1], exclude_modules=["k_proj"]), {}
    yield "bias-all-qwen2", "qwen2", L(bias="all"), {}
    yield "bias-all-falcon40", "falcon40", L(target_modules=["query_key_value"], bias="all"), {}
    yield "lora-bias-gpt2", "gpt2", L(target_modules=["c_attn"], fan_in_fan_out=True, lora_bias=True), {}
    yield "lora-bias-rslora-llama", "llama-bias", L(lora_bias=True, use_rslora=True, alpha_pattern={"q_proj": 3}), {}
    yield "negative-alpha-llama", "llama", L(lora_alpha=-3), {}
    yield "rank-one-llama", "llama", L(r=1), {}
    yield "rank-96-llama", "llama", L(r=96), {}
    yield "two-head-tied-llama", "llama-tied", L(target_modules=["embed_tokens", "lm_head"]), dict(reference="function")
    yield "embedding-only-tied-qwen2", "qwen2", L(target_modules=["embed_tokens"]), dict(reference="function")
    yield "saved-head-tied-qwen2", "qwen2", L(modules_to_save=["lm_head"]), dict(reference="function")
    yield "tokens-tied-qwen2", "qwen2", L(trainable_token_indices={"embed_tokens": [7, 3, 159]}), {}
    yield "tokens-lora-head-llama", "llama", L(target_modules=["q_proj", "lm_head"], trainable_token_indices=[0, 1]), {}
    yield "resized-smaller-llama", "llama", L(modules_to_save=["embed_tokens", "lm_head"]), dict(resize=150)
    yield "resized-tied-llama", "llama-tied", L(modules_to_save=["embed_tokens"]), dict(resize=165)
    yield "resized-tokens-llama", "llama", L(trainable_token_indices=[160, 161, 3]), dict(resize=164, save=dict(save_embedding_layers=True))
    yield "resized-gptneox", "gptneox", L(target_modules=["query_key_value"], modules_to_save=["embed_in", "embed_out"]), dict(resize=171)
    yield "replicated-long-llama", "llama", L(layer_replication=[[0, 2], [0, 2], [1, 2]], use_rslora=True), dict(reference="unshared")
    yield "replicated-dora-llama", "llama", L(layer_replication=[[0, 2], [0, 1]], use_dora=True), dict(reference="unshared")
    yield "three-negative-qwen3", "qwen3", [L(r=8), P.LoHaConfig(r=3, alpha=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"), L(use_dora=True, target_modules=["q_proj"])], dict(weights=(1.0, -0.5, 0.25))
    yield "two-oft-lora-llama", "llama", [P.OFTConfig(oft_block_size=8, r=0, target_modules=["q_proj"], use_cayley_neumann=False, task_type="CAUSAL_LM"), L()], dict(weights=(0.5, 2.0))
    yield "two-ia3-saved-llama", "llama", [P.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"), L(modules_to_save=["lm_head"])], dict(weights=(0.5, 0.5))
    yield "compiled-names-llama", "llama", L(), dict(late=rename(lambda k: k.replace("base_model.model.", "base_model.model._orig_mod.")))
    yield "fsdp-names-llama", "llama", L(modules_to_save=["lm_head"]), dict(late=rename(lambda k: k.replace("self_attn.", "self_attn._fsdp_wrapped_module.").replace("lm_head", "_fsdp_wrapped_module.lm_head")))
    yield "ddp-names-llama", "llama", L(), dict(late=rename(lambda k: "module." + k))
    yield "checkpoint-names-llama", "llama", L(), dict(late=rename(lambda k: k.replace("mlp.", "mlp._checkpoint_wrapped_module.")))
    yield "no-prefix-llama", "llama", L(), dict(late=rename(lambda k: k.removeprefix("base_model.model.")))
    yield "multimodal-new-llama", "llama", L(), dict(late=rename(lambda k: k.replace("base_model.model.model.", "base_model.model.model.language_model.")))
    yield "multimodal-old-llama", "llama", L(target_modules=A.ALL + ["lm_head"]), dict(late=rename(lambda k: k.replace("base_model.model.", "base_model.model.language_model.")))
    for dtype in ("bf16", "f16"):
        for name, arch, config in [("lora-gpt2", "gpt2", lambda: L(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)), ("rslora-qwen2", "qwen2", lambda: L(use_rslora=True, r=8)),
                                   ("experts-qwen3moe", "qwen3moe", lambda: L(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])),
                                   ("bias-llama-bias", "llama-bias", lambda: L(lora_bias=True, bias="none")), ("ball-llama-bias", "llama-bias", lambda: L(bias="all")),
                                   ("loha-llama", "llama", lambda: P.LoHaConfig(r=4, alpha=6, target_modules=A.ALL, task_type="CAUSAL_LM")),
                                   ("lokr-llama", "llama", lambda: P.LoKrConfig(r=4, alpha=6, target_modules=A.ALL, task_type="CAUSAL_LM")),
                                   ("ia3-llama", "llama", lambda: P.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")),
                                   ("dora-llama", "llama", lambda: L(use_dora=True)),
                                   ("tokens-llama", "llama", lambda: L(trainable_token_indices=[3, 5]))]:
            yield f"{dtype}-wide-{name}", arch, config(), dict(dtype=dtype)


def drawn(rng, i):
    """One adapter of random settings over a random model."""
    arch = rng.choice([a for a in A.MODELS if a not in ("bert", "t5", "mamba", "llama4")])
    kw = dict(r=rng.choice([1, 2, 3, 5, 8, 17]), lora_alpha=rng.choice([1, 4, 7.5, 16, 33]), target_modules="all-linear", use_rslora=rng.random() < 0.4, use_dora=rng.random() < 0.3)
    if arch in ("gpt2",):
        kw.update(target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    if rng.random() < 0.4:
        kw["rank_pattern"] = {rng.choice(["q_proj", "layers.0", "1.*proj", r"h\.0\..*", "down_proj|up_proj"]): rng.randint(1, 9)}
    if rng.random() < 0.4:
        kw["alpha_pattern"] = {rng.choice(["q_proj", "o_proj", "0.*", r".*\.1\..*"]): rng.choice([2, 9, 0.5])}
    if rng.random() < 0.2 and not kw["use_dora"]:
        kw["bias"] = "all"
    return f"drawn-{args.seed}-{i}-{arch}", arch, (lambda: L(**kw)), {}


def main():
    rng = random.Random(args.seed)
    failed = 0
    cases = list(fixed()) + [drawn(rng, i) for i in range(args.random)]
    for i, (name, arch, config, options) in enumerate(cases):
        if args.names and not any(w in name for w in args.names):
            continue
        Auto.kind = CLASSES.get(arch, real)
        try:
            A.make(args.out, name, arch, config, seed=args.seed * 1000 + i, **options)
            print(f"{name:34} made", flush=True)
        except Exception as e:
            failed += 1
            shutil.rmtree(os.path.join(args.out, name), ignore_errors=True)
            print(f"{name:34} FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
