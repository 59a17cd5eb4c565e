#!/usr/bin/env python3
"""More adapters made and merged by PEFT: every architecture with LoRA on all linear layers and on its experts, corner
cases of names and settings, random mixtures of LoRA's settings (--random), of every other type's (--kinds), and several
adapters of drawn types and weights together (--several), or every case of adapters.py merged in bf16 and f16 (--rounded).
Cases and checks are those of adapters.py.

  python tests/oracle/adapters_wide.py OUT [--seed N] [--random N] [--kinds N] [--several N] [--rounded] [NAME ...]
  TO_GGUF_ADAPTER_CASES=OUT cargo test --release --test adapter_oracle -- --nocapture
"""
import argparse, json, os, random, shutil, sys

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--random", type=int, default=30)
parser.add_argument("--kinds", type=int, default=0)
parser.add_argument("--several", type=int, default=0)
parser.add_argument("--rounded", action="store_true")
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
    "llama-pad": ("llama", dict(B, pad_token_id=0)),
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
    yield "dora-patterns-bias-llama", "llama-bias", L(use_dora=True, rank_pattern={"q_proj": 7, "layers.1.*down_proj": 2}, alpha_pattern={"up_proj": 1}, bias="all"), {}
    yield "dora-rslora-bias-only-qwen2", "qwen2", L(use_dora=True, use_rslora=True, bias="lora_only", target_modules=A.ATTN), {}
    yield "saved-and-tokens-llama", "llama", L(modules_to_save=["lm_head"], trainable_token_indices={"embed_tokens": [4, 99]}), {}
    yield "saved-norms-tokens-dora-llama", "llama", L(use_dora=True, modules_to_save=["norm"], trainable_token_indices=[8]), {}
    yield "exclude-regex-llama", "llama", L(target_modules="all-linear", exclude_modules=r".*layers\.0\.mlp.*"), {}
    yield "layers-pattern-llama", "llama", L(layers_to_transform=[0], layers_pattern="layers"), {}
    yield "padding-embedding-llama", "llama-pad", L(target_modules=["q_proj", "embed_tokens"]), {}
    yield "padding-dora-embedding-llama", "llama-pad", L(target_modules=["embed_tokens", "v_proj"], use_dora=True), {}
    yield "padding-tokens-llama", "llama-pad", L(trainable_token_indices=[0, 3]), {}
    yield "tie-tokens-llama", "llama-tied", L(trainable_token_indices=[6, 60], ensure_weight_tying=True), {}
    yield "wrong-fan-llama", "llama", L(fan_in_fan_out=True), {}
    yield "wrong-fan-gpt2", "gpt2", L(target_modules=["c_attn", "c_fc"], fan_in_fan_out=False), {}
    yield "replicated-dora-bias-llama", "llama", L(layer_replication=[[1, 2], [0, 2]], use_dora=True, use_rslora=True, alpha_pattern={"layers.2.self_attn.v_proj": 2}), dict(reference="unshared")
    yield "experts-and-attention-mixtral", "mixtral", L(target_modules=A.ATTN, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], use_rslora=True, alpha_pattern={"q_proj": 2}), {}
    C = dict(task_type="CAUSAL_LM")
    for variant in ("road_1", "road_2", "road_4"):
        yield f"{variant.replace('_', '')}-llama", "llama-bias", P.RoadConfig(variant=variant, group_size=16, target_modules=A.ALL, **C), {}
    yield "road-whole-qwen2", "qwen2", P.RoadConfig(variant="road_4", group_size=32, target_modules=["k_proj", "v_proj"], **C), {}
    yield "hira-gpt2", "gpt2", P.HiraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, **C), {}
    yield "hira-embedding-llama", "llama", P.HiraConfig(r=3, target_modules=["embed_tokens", "q_proj"], rank_pattern={"q_proj": 5}, **C), {}
    yield "hira-conv-mamba", "mamba", P.HiraConfig(r=3, target_modules=["in_proj", "x_proj"], **C), {}
    yield "delora-patterns-qwen3", "qwen3", P.DeloraConfig(r=4, target_modules=A.ALL, rank_pattern={"q_proj": 2}, lambda_pattern={"v_proj": 9}, **C), {}
    yield "gralora-four-llama", "llama", P.GraloraConfig(r=8, gralora_k=4, alpha=5, target_modules=A.ALL, **C), {}
    yield "gralora-gpt2", "gpt2", P.GraloraConfig(r=4, hybrid_r=3, gralora_k=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, **C), {}
    yield "vblora-chosen-llama", "llama", P.VBLoRAConfig(r=4, num_vectors=300, vector_length=16, topk=3, save_only_topk_weights=True, target_modules=A.ALL, **C), {}
    yield "vblora-gpt2", "gpt2", P.VBLoRAConfig(r=2, num_vectors=20, vector_length=32, topk=2, target_modules=["c_attn"], fan_in_fan_out=True, **C), {}
    yield "pvera-gpt2", "gpt2", P.PveraConfig(r=6, target_modules=["c_attn"], save_projection=True, fan_in_fan_out=True, **C), {}
    yield "beft-gpt2", "gptneox", P.BeftConfig(target_modules=["query_key_value"], **C), {}
    yield "lntuning-gpt2", "gpt2", P.LNTuningConfig(target_modules=["ln_1", "ln_f"], **C), {}
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


def kind(rng):
    """A type other than LoRA with settings drawn at random, for a model of llama's modules with sides of 64, 32 and 96."""
    C = dict(task_type="CAUSAL_LM", target_modules=rng.sample(A.ALL, rng.randint(1, 7)))
    some = lambda: rng.choice([1, 2, 3, 5, 8])
    patterns = lambda: {} if rng.random() < 0.6 else dict(rank_pattern={rng.choice(A.ALL): some()}, alpha_pattern={rng.choice(A.ALL): rng.choice([1, 7])})
    block = lambda: rng.choice([2, 4, 8, 16, 32])
    return rng.choice([
        lambda: P.LoHaConfig(r=some(), alpha=rng.choice([1, 6, 16]), **patterns(), **C),
        lambda: P.LoKrConfig(r=some(), alpha=rng.choice([1, 6, 16]), decompose_both=rng.random() < 0.5, decompose_factor=rng.choice([-1, 2, 4, 8, 16]), **patterns(), **C),
        lambda: P.IA3Config(feedforward_modules=[m for m in C["target_modules"] if rng.random() < 0.5], **C),
        lambda: P.OFTConfig(r=0, oft_block_size=block(), block_share=rng.random() < 0.3, coft=rng.random() < 0.3, eps=rng.choice([1e-3, 1e-1]), use_cayley_neumann=rng.random() < 0.5, num_cayley_neumann_terms=rng.choice([2, 5, 9]), **C),
        lambda: P.OFTConfig(r=rng.choice([2, 4, 8]), oft_block_size=0, use_cayley_neumann=False, **C),
        lambda: P.BOFTConfig(boft_block_size=rng.choice([2, 4, 8]), boft_n_butterfly_factor=rng.choice([1, 2]), **C),
        lambda: P.BOFTConfig(boft_block_size=0, boft_block_num=rng.choice([2, 4, 8]), boft_n_butterfly_factor=rng.choice([1, 2]), **C),
        lambda: P.AdaLoraConfig(init_r=some() + 1, target_r=1, lora_alpha=rng.choice([1, 5, 32]), total_step=10, **C),
        lambda: P.VeraConfig(r=rng.choice([1, 5, 16]), save_projection=True, **C),
        lambda: P.PveraConfig(r=rng.choice([2, 5, 16]), save_projection=True, **C),
        lambda: P.HRAConfig(r=rng.choice([2, 4, 6]), apply_GS=rng.random() < 0.5, **C),
        lambda: P.MissConfig(r=rng.choice([2, 4, 8, 16, 10, 7]), **C),
        lambda: P.MissConfig(r=rng.choice([2, 4, 8, 16]), init_weights="bat", **C),
        lambda: P.MissConfig(r=rng.choice([2, 4, 8]), mini_r=rng.choice([2, 4, 8]), init_weights="mini", **C),
        lambda: P.C3AConfig(block_size=rng.choice([4, 8, 16, 32]), **C),
        lambda: P.FourierFTConfig(n_frequency=rng.choice([1, 17, 200]), scaling=rng.choice([3.0, 50.0]), random_loc_seed=rng.randint(1, 999), **C),
        lambda: P.ShiraConfig(r=some(), random_seed=rng.randint(1, 999), **C),
        lambda: P.RandLoraConfig(r=rng.choice([2, 5, 9, 30]), randlora_alpha=rng.choice([3, 40]), save_projection=True, sparse=rng.random() < 0.3, very_sparse=rng.random() < 0.3, **C),
        lambda: P.HiraConfig(r=some(), **C),
        lambda: P.DeloraConfig(r=some(), delora_lambda=rng.choice([1, 15]), **C),
        lambda: P.RoadConfig(variant=rng.choice(["road_1", "road_2", "road_4"]), group_size=block(), **C),
        lambda: P.GraloraConfig(**dict(zip(("gralora_k", "r"), rng.choice([(2, 4), (4, 8), (2, 6), (8, 8), (1, 3)]))), hybrid_r=rng.choice([0, 2]), alpha=rng.choice([3, 64]), **C),
        lambda: P.VBLoRAConfig(r=some(), num_vectors=rng.choice([9, 40]), vector_length=rng.choice([8, 16, 32]), topk=rng.choice([1, 2, 3]), save_only_topk_weights=rng.random() < 0.5, **C),
    ])


ALIKE = ["llama", "llama-bias", "qwen2", "qwen3", "gemma3", "granite", "olmo2", "smollm3", "seed", "cohere2"]


def rounded():
    """The cases of adapters.py, merged by PEFT in a model of 16 bits."""
    for name, arch, config, options in A.cases():
        if not {"dtype", "reference"} & set(options) and not isinstance(config, list):
            for dtype in ("bf16", "f16"):
                yield f"{dtype}-{name}", arch, config, dict(options, dtype=dtype)


def drawn_kind(rng, i):
    """One adapter of a drawn type over a random model."""
    arch, config = rng.choice(ALIKE), kind(rng)()
    return f"kind-{args.seed}-{i}-{config.peft_type.value.lower()}-{arch}", arch, config, {}


def drawn_several(rng, i):
    """Two to four adapters of any types, with weights of both signs."""
    arch = rng.choice(ALIKE)
    lora = lambda: L(r=rng.choice([1, 4, 9]), use_rslora=rng.random() < 0.5, use_dora=rng.random() < 0.3, target_modules=rng.sample(A.ALL, rng.randint(1, 7)))
    configs = [lora() if rng.random() < 0.5 else kind(rng)() for _ in range(rng.randint(2, 4))]
    weights = [rng.choice([1.0, 0.5, -0.25, 1.5, -1.0]) for _ in configs]
    return f"several-{args.seed}-{i}-{arch}", arch, configs, dict(weights=weights)


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
    cases = list(rounded()) if args.rounded else list(fixed()) + [drawn(rng, i) for i in range(args.random)]
    cases += [] if args.rounded else [drawn_kind(rng, i) for i in range(args.kinds)] + [drawn_several(rng, i) for i in range(args.several)]
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
