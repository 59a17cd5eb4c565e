#!/usr/bin/env python3
"""Which type llama.cpp gives every tensor of many model shapes, under every file type, with and without an imatrix.

  mixture.py write          writes fixtures/mixtures/models.json and goldens.json
  mixture.py random DIR COUNT [SEED]      the same for random models, for `MIXTURES=DIR cargo test --test mixtures`
  mixture.py dump MODEL FTYPE [+imatrix]      one tensor per line, with its type

Headers of the shapes below are written by gguf-py into sparse files; llama_model_quantize runs on them with dry_run,
and its log says what it chose. Needs: PyPI numpy and gguf; NODE_LLAMA = the folder of npm @node-llama-cpp/linux-x64.
"""
import concurrent.futures, ctypes as C, hashlib, json, os, re, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "..", "fixtures", "mixtures")
FTYPES = dict(F32=0, F16=1, Q4_0=2, Q4_1=3, Q8_0=7, Q5_0=8, Q5_1=9, Q2_K=10, Q3_K_S=11, Q3_K_M=12, Q3_K_L=13, Q4_K_S=14,
              Q4_K_M=15, Q5_K_S=16, Q5_K_M=17, Q6_K=18, IQ2_XXS=19, IQ2_XS=20, Q2_K_S=21, IQ3_XS=22, IQ3_XXS=23, IQ1_S=24,
              IQ4_NL=25, IQ3_S=26, IQ3_M=27, IQ2_S=28, IQ2_M=29, IQ4_XS=30, IQ1_M=31, BF16=32, TQ1_0=36, TQ2_0=37,
              MXFP4_MOE=38, Q1_0=40, Q2_0=41)


# ---- the shapes: a model is (architecture, {key: value}, [(name, GGUF dimensions, type, layers or None)])
def base(arch, layers, embd, heads, kv, ff, eps="layer_norm_rms_epsilon", **extra):
    keys = {f"{arch}.context_length": 4096, f"{arch}.embedding_length": embd, f"{arch}.block_count": layers,
            f"{arch}.feed_forward_length": ff, f"{arch}.attention.head_count": heads}
    if kv is not None:
        keys[f"{arch}.attention.head_count_kv"] = kv
    if eps:
        keys[f"{arch}.attention.{eps}"] = 1e-5
    keys |= {f"{arch}.{k}": v for k, v in extra.items()}
    return keys


def ends(embd, vocab, tied, head=True):
    t = [("token_embd.weight", [embd, vocab], "BF16", None), ("output_norm.weight", [embd], "F32", None)]
    return t + ([] if tied or not head else [("output.weight", [embd, vocab], "BF16", None)])


def attention(L, embd, q, kv, bias=False, qk_norm=None):
    t = [("blk.{}.attn_norm.weight", [embd], "F32", L), ("blk.{}.attn_q.weight", [embd, q], "BF16", L),
         ("blk.{}.attn_k.weight", [embd, kv], "BF16", L), ("blk.{}.attn_v.weight", [embd, kv], "BF16", L),
         ("blk.{}.attn_output.weight", [q, embd], "BF16", L)]
    if bias:
        t += [(f"blk.{{}}.attn_{x}.bias", [n], "F32", L) for x, n in (("q", q), ("k", kv), ("v", kv))]
    if qk_norm:
        t += [(f"blk.{{}}.attn_{x}_norm.weight", [qk_norm], "F32", L) for x in "qk"]
    return t


def mlp(L, embd, ff, gate=True):
    t = [("blk.{}.ffn_norm.weight", [embd], "F32", L), ("blk.{}.ffn_up.weight", [embd, ff], "BF16", L),
         ("blk.{}.ffn_down.weight", [ff, embd], "BF16", L)]
    return t + ([("blk.{}.ffn_gate.weight", [embd, ff], "BF16", L)] if gate else [])


def experts(L, embd, ff, n, kind="BF16", shared=None):
    t = [("blk.{}.ffn_norm.weight", [embd], "F32", L), ("blk.{}.ffn_gate_inp.weight", [embd, n], "F32", L),
         ("blk.{}.ffn_gate_exps.weight", [embd, ff, n], kind, L), ("blk.{}.ffn_up_exps.weight", [embd, ff, n], kind, L),
         ("blk.{}.ffn_down_exps.weight", [ff, embd, n], kind, L)]
    if shared:
        t += [("blk.{}.ffn_gate_shexp.weight", [embd, shared], "BF16", L), ("blk.{}.ffn_up_shexp.weight", [embd, shared], "BF16", L),
              ("blk.{}.ffn_down_shexp.weight", [shared, embd], "BF16", L)]
    return t


def dense(arch, layers, embd, heads, kv, ff, vocab, tied=False, head_dim=None, bias=False, qk_norm=False, **extra):
    L, d = [0, layers], head_dim or embd // heads
    return (arch, base(arch, layers, embd, heads, kv, ff, **extra),
            ends(embd, vocab, tied) + attention(L, embd, heads * d, kv * d, bias, d if qk_norm else None) + mlp(L, embd, ff))


def moe(arch, layers, embd, heads, kv, ff, vocab, n, used, head_dim=None, qk_norm=False, kind="BF16", **extra):
    L, d = [0, layers], head_dim or embd // heads
    return (arch, base(arch, layers, embd, heads, kv, ff, expert_count=n, expert_used_count=used, **extra),
            ends(embd, vocab, False) + attention(L, embd, heads * d, kv * d, False, d if qk_norm else None)
            + experts(L, embd, ff, n, kind))


def models():
    m = {}
    m["llama-2-7b"] = dense("llama", 32, 4096, 32, 32, 11008, 32000)
    m["tinyllama-1.1b"] = dense("llama", 22, 2048, 32, 4, 5632, 32000)
    m["llama-3.1-8b"] = dense("llama", 32, 4096, 32, 8, 14336, 128256)
    m["llama-3.1-8b"][2].append(("rope_freqs.weight", [64], "F32", None))
    m["llama-3.2-1b"] = dense("llama", 16, 2048, 32, 8, 8192, 128256, tied=True)
    m["llama-3.3-70b"] = dense("llama", 80, 8192, 64, 8, 28672, 128256)
    m["llama-1-65b"] = dense("llama", 80, 8192, 64, 64, 22016, 32000)
    m["smollm-360m"] = dense("llama", 32, 960, 15, 5, 2560, 49152, tied=True)
    m["odd-rows"] = dense("llama", 9, 288, 6, 6, 900, 1000)
    m["mixtral-8x7b"] = moe("llama", 32, 4096, 32, 8, 14336, 32000, 8, 2)
    m["deci-51b"] = dense("deci", 80, 8192, 64, 8, 28672, 128256)
    kv = [0, 8, 8, 0] * 20
    m["deci-51b"][1]["deci.attention.head_count_kv"] = kv
    m["deci-51b"][1]["deci.attention.head_count"] = [64 if k else 0 for k in kv]
    m["deci-51b"][1]["deci.feed_forward_length"] = [28672] * 80
    m["qwen2-72b"] = dense("qwen2", 80, 8192, 64, 8, 29568, 152064, bias=True)
    m["qwen2.5-0.5b"] = dense("qwen2", 24, 896, 14, 2, 4864, 151936, tied=True, bias=True)
    m["qwen3-0.6b"] = dense("qwen3", 28, 1024, 16, 8, 3072, 151936, tied=True, head_dim=128, qk_norm=True)
    m["qwen3-30b-a3b"] = moe("qwen3moe", 48, 2048, 32, 4, 768, 151936, 128, 8, head_dim=128, qk_norm=True,
                             expert_feed_forward_length=768)
    m["olmo-80-layers"] = dense("olmo", 80, 4096, 32, 32, 11008, 50304, eps="layer_norm_epsilon")
    m["jais2-70b"] = dense("jais2", 68, 8192, 64, 8, 26624, 152064, eps="layer_norm_epsilon")
    m["gemma-2-2b"] = dense("gemma2", 26, 2304, 8, 4, 9216, 256000, tied=True, head_dim=256,
                            **{"attention.key_length": 256, "attention.value_length": 256, "attention.sliding_window": 4096})
    m["nanbeige-loops"] = dense("nanbeige", 12, 2048, 16, 4, 5632, 1024, num_loops=3)

    L = [0, 32]  # Falcon: one fused projection, rows that are not whole blocks
    m["falcon-7b"] = ("falcon", base("falcon", 32, 4544, 71, 1, 18176, "layer_norm_epsilon"), ends(4544, 65024, False) + [
        ("blk.{}.attn_norm.weight", [4544], "F32", L), ("blk.{}.attn_qkv.weight", [4544, 4672], "BF16", L),
        ("blk.{}.attn_output.weight", [4544, 4544], "BF16", L), ("blk.{}.ffn_up.weight", [4544, 18176], "BF16", L),
        ("blk.{}.ffn_down.weight", [18176, 4544], "BF16", L)])
    L = [0, 60]
    m["falcon-40b"] = ("falcon", base("falcon", 60, 8192, 128, 8, 32768, "layer_norm_epsilon"), ends(8192, 65024, False) + [
        ("blk.{}.attn_qkv.weight", [8192, 9216], "BF16", L), ("blk.{}.attn_output.weight", [8192, 8192], "BF16", L),
        ("blk.{}.ffn_up.weight", [8192, 32768], "BF16", L), ("blk.{}.ffn_down.weight", [32768, 8192], "BF16", L)])
    L = [0, 32]
    m["phi-3-mini"] = ("phi3", base("phi3", 32, 3072, 32, 32, 8192, **{"rope.dimension_count": 96, "rope.scaling.original_context_length": 4096,
                                                                 "attention.sliding_window": 2047}),
                       ends(3072, 32064, False) + [("blk.{}.attn_norm.weight", [3072], "F32", L),
                       ("blk.{}.attn_qkv.weight", [3072, 9216], "BF16", L), ("blk.{}.attn_output.weight", [3072, 3072], "BF16", L),
                       ("blk.{}.ffn_up.weight", [3072, 16384], "BF16", L), ("blk.{}.ffn_down.weight", [8192, 3072], "BF16", L)])

    L, D, M = [0, 27], [0, 1], [1, 27]  # DeepSeek-V2-Lite: latent attention, a dense first layer
    m["deepseek-v2-lite"] = ("deepseek2", base("deepseek2", 27, 2048, 16, 1, 10944, expert_count=64, expert_used_count=6,
        leading_dense_block_count=1, expert_feed_forward_length=1408, expert_shared_count=2, expert_weights_scale=1.0, vocab_size=102400, **{
        "attention.kv_lora_rank": 512, "attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192,
        "attention.value_length_mla": 128, "rope.dimension_count": 64}), ends(2048, 102400, False) + [
        ("blk.{}.attn_norm.weight", [2048], "F32", L), ("blk.{}.attn_q.weight", [2048, 3072], "BF16", L),
        ("blk.{}.attn_kv_a_mqa.weight", [2048, 576], "BF16", L), ("blk.{}.attn_kv_a_norm.weight", [512], "F32", L),
        ("blk.{}.attn_k_b.weight", [128, 512, 16], "BF16", L), ("blk.{}.attn_v_b.weight", [512, 128, 16], "BF16", L),
        ("blk.{}.attn_kv_b.weight", [512, 4096], "BF16", L),
        ("blk.{}.attn_output.weight", [2048, 2048], "BF16", L)] + mlp(D, 2048, 10944) + experts(M, 2048, 1408, 64, shared=2816))

    L = [0, 24]
    m["mamba-130m"] = ("mamba", base("mamba", 24, 768, 0, None, 0, **{"ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 16,
        "ssm.time_step_rank": 48}), ends(768, 50280, True) + [("blk.{}.attn_norm.weight", [768], "F32", L),
        ("blk.{}.ssm_in.weight", [768, 3072], "BF16", L), ("blk.{}.ssm_conv1d.weight", [4, 1536], "F32", L),
        ("blk.{}.ssm_x.weight", [1536, 80], "BF16", L), ("blk.{}.ssm_dt.weight", [48, 1536], "BF16", L),
        ("blk.{}.ssm_dt.bias", [1536], "F32", L), ("blk.{}.ssm_a", [16, 1536], "F32", L), ("blk.{}.ssm_d", [1536], "F32", L),
        ("blk.{}.ssm_out.weight", [1536, 768], "BF16", L)])
    kv = [8 if i % 8 == 4 else 0 for i in range(32)]
    m["jamba-52b"] = ("jamba", base("jamba", 32, 4096, 32, kv, 14336, expert_count=16, expert_used_count=2, **{"ssm.conv_kernel": 4,
        "ssm.inner_size": 8192, "ssm.state_size": 16, "ssm.time_step_rank": 256}), ends(4096, 65536, False)
        + attention([4, 5], 4096, 4096, 1024) + attention([12, 13], 4096, 4096, 1024) + [("blk.{}.ssm_in.weight", [4096, 16384], "BF16", [0, 4]),
        ("blk.{}.ssm_x.weight", [8192, 288], "BF16", [0, 4])] + mlp([0, 1], 4096, 14336) + mlp([2, 3], 4096, 14336)
        + experts([1, 2], 4096, 14336, 16) + experts([3, 4], 4096, 14336, 16))
    L = [0, 12]
    m["bge-base"] = ("bert", base("bert", 12, 768, 12, None, 3072, "layer_norm_epsilon", **{"attention.causal": False, "pooling_type": 2,
        "tokenizer.x": 0}), [
        ("token_embd.weight", [768, 30522], "BF16", None), ("position_embd.weight", [768, 512], "F32", None),
        ("token_types.weight", [768, 2], "F32", None), ("token_embd_norm.weight", [768], "F32", None)]
        + attention(L, 768, 768, 768, True) + mlp(L, 768, 3072, gate=False))
    L = [0, 6]
    m["t5-small"] = ("t5", base("t5", 6, 512, 8, None, 2048, "layer_norm_epsilon", **{"attention.layer_norm_rms_epsilon": 1e-6,
        "attention.relative_buckets_count": 32, "attention.key_length": 64, "attention.value_length": 64, "decoder_start_token_id": 0}),
        [("token_embd.weight", [512, 32128], "BF16", None), ("output.weight", [512, 32128], "BF16", None)] +
        [(f"{s}.blk.{{}}.{t}.weight", ne, "BF16", L) for s in ("enc", "dec") for t, ne in
         (("attn_q", [512, 512]), ("attn_k", [512, 512]), ("attn_v", [512, 512]), ("attn_o", [512, 512]), ("attn_rel_b", [8, 32]),
          ("ffn_up", [512, 2048]), ("ffn_down", [2048, 512]))] +
        [(f"dec.blk.{{}}.cross_attn_{x}.weight", [512, 512], "BF16", L) for x in "qkvo"])
    m["gpt-oss-20b"] = ("gpt-oss", base("gpt-oss", 24, 2880, 64, 8, 2880, expert_count=32, expert_used_count=4, expert_feed_forward_length=2880,
        **{"attention.key_length": 64, "attention.value_length": 64, "attention.sliding_window": 128}), ends(2880, 201088, False)
        + attention([0, 24], 2880, 4096, 512, True) + [("blk.{}.attn_sinks.weight", [64], "F32", [0, 24])] + experts([0, 24], 2880, 2880, 32, "MXFP4"))
    L = [0, 30]
    m["gemma-3n-e2b"] = ("gemma3n", base("gemma3n", 30, 2048, 8, 2, 8192, **{"attention.key_length": 256, "attention.value_length": 256,
        "attention.sliding_window": 512, "embedding_length_per_layer_input": 256, "altup.num_inputs": 4, "altup.active_idx": 0,
        "attention.shared_kv_layers": 10, "attention.sliding_window_pattern": [1, 1, 1, 1, 0] * 6}), ends(2048, 262144, True) + [
        ("per_layer_token_embd.weight", [7680, 262144], "BF16", None), ("per_layer_model_proj.weight", [2048, 7680], "BF16", None),
        ("altup_proj.weight", [2048, 2048, 3], "BF16", None), ("blk.{}.laurel_l.weight", [2048, 64], "BF16", L),
        ("blk.{}.inp_gate.weight", [2048, 256], "BF16", L), ("blk.{}.proj.weight", [256, 2048], "BF16", L)]
        + attention(L, 2048, 2048, 512, False, 256) + mlp(L, 2048, 8192))
    L = [0, 24]
    m["rwkv6-1.6b"] = ("rwkv6", base("rwkv6", 24, 2048, 0, None, 7168, "layer_norm_epsilon", **{"rescale_every_n_layers": 6, "wkv.head_size": 64,
        "time_mix_extra_dim": 32, "time_decay_extra_dim": 64}), ends(2048, 65536, False) + [
        (f"blk.{{}}.time_mix_{n}.weight", ne, "BF16", L) for n, ne in (("w1", [2048, 160]), ("w2", [32, 2048, 5]), ("lerp_fused", [2048, 1, 1, 5]),
        ("first", [64, 32]), ("decay_w1", [2048, 64]), ("decay_w2", [64, 2048]), ("key", [2048, 2048]), ("value", [2048, 2048]),
        ("receptance", [2048, 2048]), ("gate", [2048, 2048]), ("output", [2048, 2048]))] + [
        ("blk.{}.channel_mix_key.weight", [2048, 7168], "BF16", L), ("blk.{}.channel_mix_value.weight", [7168, 2048], "BF16", L)])
    L = [0, 12]
    m["gpt-2"] = ("gpt2", base("gpt2", 12, 768, 12, None, 3072, "layer_norm_epsilon"), ends(768, 50257, True) + [
        ("position_embd.weight", [768, 1024], "BF16", None), ("blk.{}.attn_qkv.weight", [768, 2304], "BF16", L),
        ("blk.{}.attn_output.weight", [768, 768], "BF16", L), ("blk.{}.attn_output.bias", [768], "F32", L)] + mlp(L, 768, 3072, gate=False))
    L, M = [0, 47], [1, 47]  # GLM-4.5-Air: a multi-token-prediction layer at the end
    m["glm-4.5-air"] = ("glm4moe", base("glm4moe", 47, 4096, 96, 8, 10944, expert_count=128, expert_used_count=8, expert_feed_forward_length=1408,
        leading_dense_block_count=1, nextn_predict_layers=1, expert_shared_count=1, expert_gating_func=2, **{
        "attention.key_length": 128, "attention.value_length": 128, "rope.dimension_count": 64}),
        ends(4096, 151552, False) + attention(L, 4096, 12288, 1024, True) + mlp([0, 1], 4096, 10944)
        + experts(M, 4096, 1408, 128, shared=1408) + [("blk.46.nextn.eh_proj.weight", [8192, 4096], "BF16", None)])
    m["llama-4-scout"] = moe("llama4", 48, 5120, 40, 8, 8192, 202048, 16, 1, head_dim=128, interleave_moe_layer_step=1,
                             expert_feed_forward_length=8192)
    L = [0, 6]  # BailingMoE3 has a rule of its own: three-dimensional tensors that are not experts
    m["bailingmoe3"] = ("bailingmoe3", base("bailingmoe3", 6, 1536, 16, 1, 4096, expert_count=128, expert_used_count=8, expert_feed_forward_length=512,
        expert_shared_count=1, **{"attention.kv_lora_rank": 512, "attention.q_lora_rank": 512, "attention.key_length_mla": 192,
        "attention.value_length_mla": 128, "attention.key_length": 576, "attention.value_length": 512, "rope.dimension_count": 64,
        "ssm.conv_kernel": 4, "kda.head_dim": 128, "leading_dense_block_count": 1, "expert_weights_scale": 1.0, "expert_gating_func": 2, "kda.gate_lower_bound": -5.0}),
        ends(1536, 1024, False) + [("blk.{}.attn_k_b.weight", [128, 512, 16], "BF16", L), ("blk.{}.attn_v_b.weight", [512, 128, 16], "BF16", L)]
        + experts(L, 1536, 512, 128))
    return m


def random_models(count, seed):
    """Shapes that no model has: layers, grouped heads, experts and odd dimensions at random, of a known architecture."""
    import random
    r, m, known = random.Random(seed), {}, models()
    for i in range(count):
        layers, d = r.choice([1, 2, 3, 7, 16, 24, 31, 40, 60, 68, 80, 96]), r.choice([32, 40, 64, 80, 128, 256])
        heads = r.choice([1, 2, 6, 8, 16, 32, 64]); kv = r.choice([k for k in (1, 2, 4, 8, 16, 32, 64) if heads % k == 0])
        embd, ff = r.choice([heads * d, 288, 1000, 1024, 2304, 4096, 4100]), r.choice([900, 1408, 2048, 2880, 11008, 14336])
        shape = (layers, embd, heads, kv, ff, r.choice([1000, 32000]))
        kind = r.random()
        if kind < 0.4:
            arch = r.choice(["llama", "qwen2", "qwen3", "olmo", "jais2", "gemma2", "phi3", "starcoder2"])
            eps = "layer_norm_rms_epsilon" if arch in ("llama", "qwen2", "qwen3", "gemma2", "phi3") else "layer_norm_epsilon"
            extra = {"attention.sliding_window": 4096} if arch == "gemma2" else {}
            model = dense(arch, *shape, tied=r.random() < 0.4, head_dim=d, bias=r.random() < 0.3, eps=eps, **extra)
        elif kind < 0.75:
            model = moe(r.choice(["llama", "qwen3moe"]), *shape, r.choice([2, 3, 4, 8, 8, 16, 128]), 1, head_dim=d, kind=r.choice(["BF16", "F16", "F32"]))
        else:  # a known model with other heads and experts: keys alone decide
            arch, keys, tensors = known[r.choice(["falcon-7b", "mixtral-8x7b", "jamba-52b", "gpt-2", "bge-base", "gpt-oss-20b", "phi-3-mini", "llama-4-scout", "glm-4.5-air", "rwkv6-1.6b", "t5-small"])]
            keys = dict(keys)
            for key, values in (("attention.head_count_kv", [1, 2, 4, 8]), ("expert_count", [2, 4, 8, 32])):
                if isinstance(keys.get(f"{arch}.{key}"), int) and keys[f"{arch}.{key}"]: keys[f"{arch}.{key}"] = r.choice(values)
            if keys.get(f"{arch}.expert_count"): keys[f"{arch}.expert_used_count"] = 1
            model = (arch, keys, tensors)
        m[f"random-{seed}-{i}"] = model
    return m


def expand(model):
    for name, ne, kind, layers in model[2]:
        for i in range(*layers) if layers else [None]:
            yield (name if i is None else name.format(i)), ne, kind


# ---- gguf-py writes the header; the data is a hole
def write_gguf(model, path):
    import gguf, numpy as np
    arch, keys, _ = model
    w = gguf.GGUFWriter(path, arch)
    V = gguf.GGUFValueType
    for k, v in keys.items():
        kind = V.BOOL if isinstance(v, bool) else V.FLOAT32 if isinstance(v, float) else V.ARRAY if isinstance(v, list) else V.UINT32
        w.add_key_value(k, v, kind)
    end = 0
    for name, ne, kind in expand(model):
        q = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[q]
        n = int(np.prod(ne, dtype=np.int64)) // block * size
        w.add_tensor_info(name, list(reversed(ne)), np.dtype(np.float32), n, raw_dtype=q)
        end += (n + 31) // 32 * 32
    w.write_header_to_file(path); w.write_kv_data_to_file(); w.write_ti_data_to_file()
    f = w.fout[0]; w.write_padding(f, f.tell()); start = f.tell(); w.close()
    os.truncate(path, start + end)
    with open(path, "rb") as f:
        return hashlib.sha256(f.read(start)).hexdigest()[:16]


# ---- llama.cpp decides
class Params(C.Structure):
    _fields_ = [("nthread", C.c_int32), ("ftype", C.c_int), ("output_type", C.c_int), ("embedding_type", C.c_int),
                ("allow_requantize", C.c_bool), ("quantize_output", C.c_bool), ("only_copy", C.c_bool), ("pure", C.c_bool),
                ("keep_split", C.c_bool), ("dry_run", C.c_bool), ("imatrix", C.c_void_p), ("kv", C.c_void_p), ("tt", C.c_void_p),
                ("prune", C.c_void_p), ("max_buffer", C.c_size_t)]


class Entry(C.Structure):
    _fields_ = [("name", C.c_char_p), ("data", C.POINTER(C.c_float)), ("size", C.c_size_t)]


LOG = []
CALLBACK = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)(lambda level, text, _: LOG.append(text))


def library():
    d = os.environ.get("NODE_LLAMA") or sys.exit("set NODE_LLAMA to the folder of @node-llama-cpp/linux-x64's libraries")
    C.CDLL(os.path.join(d, "libggml-base.so"), mode=C.RTLD_GLOBAL)
    lib = C.CDLL(os.path.join(d, next(f for f in sorted(os.listdir(d)) if f.startswith("libllama.") and f.endswith(".so"))), mode=C.RTLD_GLOBAL)
    lib.llama_model_quantize_default_params.restype = Params
    lib.llama_model_quantize.argtypes = [C.c_char_p, C.c_char_p, C.POINTER(Params)]
    lib.llama_log_set(CALLBACK, None)
    return lib


def decide(lib, path, ftype, imatrix):
    p = lib.llama_model_quantize_default_params()
    p.ftype, p.dry_run, p.nthread, p.allow_requantize = FTYPES[ftype], True, 1, True
    one = (C.c_float * 1)(1.0)
    entries = (Entry * 2)(Entry(b"none", one, 1))
    if imatrix:
        p.imatrix = C.cast(entries, C.c_void_p)
    LOG.clear()
    rc = lib.llama_model_quantize(path.encode(), b"/dev/null", C.byref(p))
    text = b"".join(LOG).decode()
    if rc:
        return None, text
    out = []
    for m in re.finditer(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\S+), (?:[^\[]*?)size = [^\n]*?(?:\((\w+)\))?\n", text):
        out.append((m[1], (m[3] or m[2]).upper()))
    return out, text


def answers(job):
    name, model, only = job
    lib, out = library(), {}
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, name + ".gguf")
        out["header"] = write_gguf(model, path)
        count = sum(1 for _ in expand(model))
        for ftype in FTYPES:
            for imatrix in (False, True):
                key = ftype + "+imatrix" * imatrix
                if only and only != key:
                    continue
                types, text = decide(lib, path, ftype, imatrix)
                if types is None:
                    why = re.search(r"failed to quantize: (.*)", text)
                    out[key] = "error" if why and "no tensor type fallback" in why[1] else sys.exit(f"{name} {key}: {text[-600:]}")
                    continue
                assert len(types) == count, f"{name} {key}: {len(types)} of {count} tensors in the log"
                text = "".join(f"{n} {t}\n" for n, t in types)
                out[key] = text if only else hashlib.sha256(text.encode()).hexdigest()[:16]
    return name, out


def main():
    all_models, out_dir = models(), OUT
    if sys.argv[1:2] == ["random"]:
        out_dir, all_models = sys.argv[2], random_models(int(sys.argv[3]), int((sys.argv[4:] or ["1"])[0]))
    if sys.argv[1:2] == ["dump"]:
        name, key = sys.argv[2], sys.argv[3].upper() + ("+imatrix" if sys.argv[4:] else "")
        print(answers((name, all_models[name], key))[1][key], end="")
        return
    if sys.argv[1:2] not in (["write"], ["random"]):
        sys.exit(__doc__)
    os.makedirs(out_dir, exist_ok=True)
    with open(os.path.join(out_dir, "models.json"), "w") as f:
        rows = [json.dumps(n) + ": " + json.dumps(dict(architecture=a, keys=k, tensors=t), separators=(",", ":")) for n, (a, k, t) in all_models.items()]
        f.write("{\n" + ",\n".join(rows) + "\n}\n")
    goldens = {}
    # A process per model: llama.cpp aborts where it meets a header that it does not like.
    with concurrent.futures.ProcessPoolExecutor(2, max_tasks_per_child=1) as pool:
        for name, out in pool.map(answers, [(n, m, None) for n, m in all_models.items()]):
            goldens[name] = out
            print(name, len(out), file=sys.stderr)
    with open(os.path.join(out_dir, "goldens.json"), "w") as f:
        f.write("{\n" + ",\n".join(json.dumps(n) + ": " + json.dumps(g, separators=(",", ":")) for n, g in goldens.items()) + "\n}\n")


if __name__ == "__main__":
    main()
