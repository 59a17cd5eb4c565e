#!/usr/bin/env python3
"""Peak memory and time of merging each form into a random Llama of 1.1 billion parameters (TinyLlama's shape), to Q8_0.

  python tests/oracle/adapter_memory.py OUT BIN [NAME ...]

Weights and factors are random bytes of small numbers: nothing is read into memory by what they mean. OUT takes 5 GB.
Prints resident memory at its peak (VmHWM) and seconds; each form stays below 400 MB.
"""
import json, os, pathlib, shutil, subprocess, sys, time

import numpy as np

OUT, BIN, WANTED = pathlib.Path(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]
FIXTURES = pathlib.Path(os.environ.get("FIXTURES") or pathlib.Path(__file__).resolve().parents[2] / "fixtures")
H, F, KV, V, LAYERS = 2048, 5632, 256, 32000, 22
PROJ = {"self_attn.q_proj": (H, H), "self_attn.k_proj": (KV, H), "self_attn.v_proj": (KV, H), "self_attn.o_proj": (H, H),
        "mlp.gate_proj": (F, H), "mlp.up_proj": (F, H), "mlp.down_proj": (H, F)}
WIDTH = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "U8": 1, "I8": 1}


def write(path, tensors):
    """Tensors as (name, dtype, shape[, bytes]); values are near 0.01 in every float type."""
    header, offset = {}, 0
    for name, dtype, shape, *data in tensors:
        size = len(data[0]) if data else WIDTH[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    rng = np.random.default_rng(1)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, dtype, shape, *data in tensors:
            if data:
                f.write(data[0])
                continue
            left = int(np.prod(shape))
            while left:
                n = min(left, 1 << 22)
                noise = rng.standard_normal(n, dtype=np.float32) * 0.02 + (1.0 if "norm" in name else 0.0)
                out = {"F32": noise, "F16": noise.astype(np.float16), "BF16": (noise.view(np.uint32) >> 16).astype(np.uint16)}.get(dtype)
                if out is None:
                    out = rng.integers(0, 256, n * WIDTH[dtype], dtype=np.uint8)
                f.write(out.tobytes())
                left -= n


def base(folder, pack=None):
    folder.mkdir(parents=True, exist_ok=True)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / "shakespeare-llama" / f, folder)
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", dtype="bfloat16", hidden_size=H, intermediate_size=F, num_hidden_layers=LAYERS,
                  num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, vocab_size=V,
                  tie_word_embeddings=False, bos_token_id=0, eos_token_id=4, hidden_act="silu")
    tensors = [("lm_head.weight", "BF16", (V, H)), ("model.embed_tokens.weight", "BF16", (V, H)), ("model.norm.weight", "BF16", (H,))]
    for l in range(LAYERS):
        for n, shape in PROJ.items():
            name = f"model.layers.{l}.{n}"
            tensors += pack(name, shape)[0] if pack else [(name + ".weight", "BF16", shape)]
        tensors += [(f"model.layers.{l}.{n}.weight", "BF16", (H,)) for n in ("input_layernorm", "post_attention_layernorm")]
    if pack:
        config["quantization_config"] = pack("x", (H, H))[1]
    (folder / "config.json").write_text(json.dumps(config))
    write(folder / "model.safetensors", tensors)
    return folder


def nf4(name, shape):
    n = shape[0] * shape[1]
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}).encode()
    w = name + ".weight"
    return [(w, "U8", (n // 2, 1)), (w + ".absmax", "F32", (n // 64,)), (w + ".quant_map", "F32", (16,)),
            (w + ".quant_state.bitsandbytes__nf4", "U8", (len(state),), state)], {"quant_method": "bitsandbytes", "load_in_4bit": True}


def gptq(name, shape):
    out, inp = shape
    return [(name + ".qweight", "I32", (inp // 8, out)), (name + ".qzeros", "I32", (inp // 128, out // 8)), (name + ".scales", "F16", (inp // 128, out))], \
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq_v2"}


def adapter(folder, config, parts, extra=()):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = [(f"base_model.model.model.layers.{l}.{n}.{p}", "F32", s) for l in range(LAYERS) for n, shape in PROJ.items() for p, s in parts(*shape)]
    write(folder / "adapter_model.safetensors", tensors + [(f"base_model.{n}", "F32", s) for n, s in extra])
    return folder


def lora(r):
    return lambda o, i: [("lora_A.weight", (r, i)), ("lora_B.weight", (o, r))]


L = lambda r, **kw: {"peft_type": "LORA", "r": r, "lora_alpha": 16, **kw}
FORMS = {
    "LoRA 16": (L(16), lora(16)), "LoRA 64": (L(64), lora(64)), "LoRA 256": (L(256), lora(256)),
    "DoRA 16": (L(16, use_dora=True), lambda o, i: lora(16)(o, i) + [("lora_magnitude_vector", (o,))]),
    "embedding and head": (L(16), lora(16), [("model.model.embed_tokens.lora_embedding_A", (16, V)), ("model.model.embed_tokens.lora_embedding_B", (H, 16)),
                                             ("model.lm_head.lora_A.weight", (16, H)), ("model.lm_head.lora_B.weight", (V, 16))]),
    "DoRA embedding": (L(16, use_dora=True), lambda o, i: lora(16)(o, i) + [("lora_magnitude_vector", (o,))],
                       [("model.model.embed_tokens.lora_embedding_A", (16, V)), ("model.model.embed_tokens.lora_embedding_B", (H, 16)), ("model.model.embed_tokens.lora_magnitude_vector", (H,))]),
    "modules_to_save": (L(16), lora(16), [("model.lm_head.weight", (V, H)), ("model.model.embed_tokens.weight", (V, H))]),
    "LoHa 16": ({"peft_type": "LOHA", "r": 16, "alpha": 16}, lambda o, i: [(f"hada_w{k}_a", (o, 16)) for k in (1, 2)] + [(f"hada_w{k}_b", (16, i)) for k in (1, 2)]),
    "LoKr 16": ({"peft_type": "LOKR", "r": 16, "alpha": 16}, lambda o, i: [("lokr_w1", (16, 16)), ("lokr_w2", (o // 16, i // 16))]),
    "OFT 32": ({"peft_type": "OFT", "r": 0, "oft_block_size": 32, "use_cayley_neumann": False}, lambda o, i: [("oft_R.weight", (i // 32, 496))]),
    "BOFT 8 x 2": ({"peft_type": "BOFT"}, lambda o, i: [("boft_R", (2, i // 8, 8, 8)), ("boft_s", (o, 1))]),
    "VeRA 256": ({"peft_type": "VERA", "r": 256}, lambda o, i: [("vera_lambda_b", (o,)), ("vera_lambda_d", (256,))], [("vera_A", (256, F)), ("vera_B", (F, 256))]),
    "HRA 8": ({"peft_type": "HRA", "r": 8}, lambda o, i: [("hra_u", (i, 8))]),
    "MiSS 16": ({"peft_type": "MISS", "r": 16}, lambda o, i: [("miss_block", (16, o))]),
    "IA3": ({"peft_type": "IA3", "feedforward_modules": []}, lambda o, i: [("ia3_l", (o, 1))]),
    "AdaLoRA 16": ({"peft_type": "ADALORA", "lora_alpha": 16}, lambda o, i: lora(16)(o, i) + [("lora_E", (16, 1))]),
    "C3A 256": ({"peft_type": "C3A", "block_size": 256}, lambda o, i: [("c3a_kernel", (o // 256, i // 256, 256))]),
    "FourierFT 1000": ({"peft_type": "FOURIERFT", "n_frequency": 1000, "scaling": 150.0, "random_loc_seed": 777}, lambda o, i: [("fourierft_spectrum", (1000,))]),
    "RandLora 32": ({"peft_type": "RANDLORA", "r": 32, "randlora_alpha": 64}, lambda o, i: [("randlora_lambda", (32, -(-min(o, i) // 32))), ("randlora_gamma", (-(-min(o, i) // 32), min(o, i)))],
                    [("randlora_A", (32, 1, H)), ("randlora_B", (F, -(-H // 32), 32))]),
    "PVeRA 256": ({"peft_type": "PVERA", "r": 256}, lambda o, i: [("pvera_lambda_b", (o,)), ("pvera_lambda_d", (512,))], [("pvera_A", (512, F)), ("pvera_B", (F, 256))]),
    "HiRA 32": ({"peft_type": "HIRA", "r": 32}, lambda o, i: [("hira_A", (32, i)), ("hira_B", (o, 32))]),
    "DeLoRA 16": ({"peft_type": "DELORA", "r": 16}, lambda o, i: [("delora_A", (16, i)), ("delora_B", (o, 16)), ("delora_lambda", (1,)), ("delora_w_norm", (i,))]),
    "RoAd 1": ({"peft_type": "ROAD", "variant": "road_1", "group_size": 64}, lambda o, i: [("road_theta", (o // 2,)), ("road_alpha", (o // 2,))]),
    "GraLoRA 32": ({"peft_type": "GRALORA", "r": 32, "gralora_k": 2, "alpha": 64}, lambda o, i: [("gralora_A", (2, i // 2, 32)), ("gralora_B", (2, 32, o // 2))]),
    "VB-LoRA 4": ({"peft_type": "VBLORA", "r": 4, "topk": 2}, lambda o, i: [("vblora_logits_A", (4, i // 256, 256)), ("vblora_logits_B", (o // 256, 4, 256))], [("vblora_vector_bank", (256, 256))]),
}


def measure(model, base_folder):
    out = OUT / "out.gguf"
    started = time.time()
    child = subprocess.Popen([BIN, str(model), "--base", str(base_folder), "--quant", "q8_0", "-q", "--force", "-o", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while child.poll() is None:
        try:
            peak = max(peak, int(next(l for l in open(f"/proc/{child.pid}/status") if l.startswith("VmHWM")).split()[1]))
        except (StopIteration, FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.02)
    out.unlink(missing_ok=True)
    if child.returncode:
        return f"FAILED {child.stderr.read().decode().strip()[-300:]}"
    return f"{peak / 1024:5.0f} MB  {time.time() - started:5.1f} s{'' if peak < 400 << 10 else '  TOO MUCH'}"


def main():
    forms = {name: form for name, form in FORMS.items() if not WANTED or name in WANTED}
    plain = base(OUT / "base") if forms else None
    for name, (config, parts, *extra) in forms.items():
        print(f"{name:20} {measure(adapter(OUT / 'adapter', config, parts, *extra), plain)}", flush=True)
    if plain:
        shutil.rmtree(plain)
    for name, pack in (("LoRA 16 over nf4", nf4), ("LoRA 16 over GPTQ", gptq)):
        if not WANTED or name in WANTED:
            packed = base(OUT / "base", pack)
            print(f"{name:20} {measure(adapter(OUT / 'adapter', L(16), lora(16)), packed)}", flush=True)
            shutil.rmtree(packed)
    shutil.rmtree(OUT)


if __name__ == "__main__":
    main()
