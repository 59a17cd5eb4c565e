#!/usr/bin/env python3
"""Packed models that llama.cpp's converter reads: the whole file, ours against the converter's.

    LLAMA_CPP=... NODE_LLAMA=... python tests/oracle/packed_files.py OUT TOKENIZERS BIN [CASE ...]

TOKENIZERS is a folder with the tokenizer files of `llama-spm`, `qwen2`, `phi-3` and `gpt-2` in folders of these names
(the converter knows tokenizers by fingerprint, so that an invented one will not do), BIN the program. Makes a tiny random
model, packs its linear layers in each format, converts it to f32, f16, bf16 and auto with both programs, and to Q4_K and
Q8_0 with llama-quantize from the converter's auto file; prints one line per file. NVFP4 comes in more models: experts,
fused rows, tied and packed heads, shards, several algorithms.
"""
import json, os, pathlib, shutil, subprocess, sys

sys.path.pop(0)  # this folder: its scripts have names that packages have too
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

OUT, TOKENIZERS, BIN = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), os.path.abspath(sys.argv[3])
WANTED = sys.argv[4:]
LLAMA = os.environ["LLAMA_CPP"]
BASE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")


def model(kind, tokenizer, vocab, folder, **more):
    config = AutoConfig.for_model(kind, vocab_size=vocab, **BASE | more)
    torch.manual_seed(3)
    m = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for n, p in m.named_parameters():
            p.copy_((1.0 if "norm" in n else 0.0) + 0.05 * torch.randn(p.shape))
    m.to(torch.bfloat16).save_pretrained(folder)
    for f in (TOKENIZERS / tokenizer).iterdir():
        shutil.copy(f, folder)


def words(codes, bits):
    """Codes [n, columns] to i32 words [n * bits / 32, columns], least significant bits first."""
    per = 32 // bits
    c = codes.long().reshape(-1, per, codes.shape[1])
    w = sum(c[:, i] << (bits * i) for i in range(per))
    return torch.where(w >= 2**31, w - 2**32, w).to(torch.int32)


def gptq(bits, group, v2, order):
    def pack(name, w):
        out, inp = w.shape
        m = name.removesuffix(".weight")
        codes = torch.randint(0, 2**bits, (inp, out))
        zeros = torch.randint(1, 2**bits, (inp // group, out))
        index = torch.arange(inp) // group
        if order:
            index = index[torch.randperm(inp)]
        stored = zeros if v2 else zeros - 1
        return {m + ".qweight": words(codes, bits), m + ".qzeros": words(stored.t(), bits).t(), m + ".g_idx": index.to(torch.int32),
                m + ".scales": (torch.rand(inp // group, out) * 0.01 + 0.001).half()}
    return pack, {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": False,
                  "checkpoint_format": "gptq_v2" if v2 else "gptq"}


def fp8(block):
    def pack(name, w):
        q = (w.float() * 20).to(torch.float8_e4m3fn)
        shape = [-(-d // b) for d, b in zip(w.shape, block)] if block else ()
        return {name: q, name + "_scale_inv": torch.rand(shape) * 0.1, name.replace("weight", "activation_scale"): torch.ones(1)}
    return pack, {"quant_method": "fp8", "weight_block_size": block, "activation_scheme": "dynamic"}


def group_config(fmt, **weights):
    return {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False, **weights}}}}


def ct_plain(kind, block=None):
    def pack(name, w):
        q = torch.randint(-127, 128, w.shape).to(torch.int8) if kind == "int" else (w.float() * 20).to(torch.float8_e4m3fn)
        shape = [-(-d // b) for d, b in zip(w.shape, block)] if block else (w.shape[0], 1)
        return {name: q, name + "_scale": (torch.rand(shape) * 0.01).bfloat16()}
    more = {"strategy": "block", "block_structure": block} if block else {"strategy": "channel"}
    fmt = "int-quantized" if kind == "int" else "float-quantized"
    return pack, group_config(fmt, num_bits=8, type=kind, **more)


def ct_pack(bits, symmetric):
    def pack(name, w):
        out, inp = w.shape
        codes = torch.randint(0, 2**bits, (inp, out))
        parts = {name + "_packed": words(codes, bits).t(), name + "_shape": torch.tensor(w.shape),
                 name + "_scale": (torch.rand(out, inp // 32) * 0.01).bfloat16()}
        if not symmetric:
            parts[name + "_zero_point"] = words(torch.randint(0, 2**bits, (out, inp // 32)), bits)
        return parts
    config = group_config("pack-quantized", num_bits=bits, type="int", strategy="group", group_size=32)
    config["config_groups"]["group_0"]["weights"]["symmetric"] = symmetric
    return pack, config


def modelopt_fp8():
    def pack(name, w):
        return {name: (w.float() * 20).to(torch.float8_e4m3fn), name + "_scale": torch.rand(()) * 0.1, name.replace("weight", "input_scale"): torch.rand(())}
    return pack, {"quant_method": "modelopt", "quant_algo": "FP8"}


def nvfp4(method, inputs=True):
    def pack(name, w):
        out, inp = w.shape
        packed = torch.randint(0, 256, (out, inp // 2), dtype=torch.uint8)
        scale = (torch.rand(out, inp // 16) * 20 + 0.1).to(torch.float8_e4m3fn)
        if method == "modelopt":
            parts = {name: packed, name + "_scale": scale, name + "_scale_2": torch.rand(()) * 0.001}
            key = name.replace("weight", "input_scale")
        else:
            parts = {name + "_packed": packed, name + "_scale": scale, name + "_global_scale": torch.rand(1) * 1000 + 1}
            key = name.replace("weight", "input_global_scale")
        return parts | ({key: torch.rand(()) if method == "modelopt" else torch.rand(1) * 100 + 1} if inputs else {})
    if method == "modelopt":
        return pack, {"quant_method": "modelopt", "quant_algo": "NVFP4" if inputs else "W4A16_NVFP4"}
    return pack, group_config("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16)


def bitnet():
    def pack(name, w):
        t = torch.randint(0, 3, w.shape, dtype=torch.uint8)
        quarter = w.shape[0] // 4
        packed = sum(t[i * quarter:(i + 1) * quarter] << (2 * i) for i in range(4))
        return {name: packed.to(torch.uint8), name + "_scale": (torch.rand(1) * 20 + 1).bfloat16()}
    return pack, {"quant_method": "bitnet"}


CASES = {
    "gptq-2": gptq(2, 64, False, False), "gptq-4": gptq(4, 128, False, False), "gptq-4-order-v2": gptq(4, 32, True, True),
    "gptq-8": gptq(8, 64, False, True), "fp8-block": fp8([128, 128]), "fp8-ragged": fp8([96, 112]), "fp8-tensor": fp8(None),
    "ct-int8": ct_plain("int"), "ct-fp8": ct_plain("float"), "ct-fp8-block": ct_plain("float", [128, 128]), "ct-pack-4": ct_pack(4, True),
    "ct-pack-4-asym": ct_pack(4, False), "ct-pack-8": ct_pack(8, True), "modelopt-fp8": modelopt_fp8(), "bitnet": bitnet(),
    "nvfp4-modelopt": nvfp4("modelopt"), "nvfp4-modelopt-w4a16": nvfp4("modelopt", False), "nvfp4-ct": nvfp4("ct"),
}


def pack_model(source, folder, pack, quantization, linear=LINEAR, shards=1):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    torch.manual_seed(5)
    tensors = {}
    for name, w in load_file(source / "model.safetensors").items():
        packed = name.endswith(".weight") and name.split(".")[-2] in linear
        tensors |= pack(name, w) if packed else {name: w}
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        (folder / "model.safetensors").unlink()
        names = {k: f"model-{i * 7 % 11 % shards + 1:05}-of-{shards:05}.safetensors" for i, k in enumerate(tensors)}
        for file in set(names.values()):
            save_file({k: v for k, v in tensors.items() if names[k] == file}, folder / file, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def mxfp4(source, folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    torch.manual_seed(5)
    tensors = {}
    for name, w in load_file(source / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, cols, rows = w.shape
            tensors[name + "_blocks"] = torch.randint(0, 256, (experts, rows, cols // 32, 16), dtype=torch.uint8)
            tensors[name + "_scales"] = torch.randint(115, 130, (experts, rows, cols // 32), dtype=torch.uint8)
        else:
            tensors[name] = w
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))


def trivial(pack):
    """The same with factors of 1, which the converter leaves out."""
    def packed(name, w):
        return {k: torch.ones_like(v) if v.numel() == 1 else v for k, v in pack(name, w).items()}
    return packed


def mixed(pack):
    """NVFP4 for most layers, FP8 for the output projections, bf16 for the values."""
    other, _ = modelopt_fp8()

    def packed(name, w):
        if "v_proj" in name:
            return {name: w}
        return other(name, w) if "o_proj" in name else pack(name, w)
    layers = [f"model.layers.{i}.{m}" for i in (0, 1) for m in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate_proj")]
    table = {m: {"quant_algo": "W4A16_NVFP4" if "1.mlp" in m or "q_proj" in m else "NVFP4"} for m in layers}
    table |= {f"model.layers.{i}.self_attn.o_proj": {"quant_algo": "FP8"} for i in (0, 1)}
    return packed, {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": table}


def nvfp4_models():
    """More models for NVFP4: what is packed how, of which model."""
    one, told = nvfp4("modelopt")
    compressed, groups = nvfp4("ct")
    wide, wide_told = nvfp4("modelopt", False)
    llama = ("llama", "llama-spm", 32000, {})
    tied = ("llama", "llama-spm", 32000, {"tie_word_embeddings": True})
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "head_dim": 64, "decoder_sparse_step": 1}
    experts = ("qwen3_moe", "qwen2", 151936, moe)
    few = ("qwen2_moe", "qwen2", 151936, moe | {"num_experts": 12, "shared_expert_intermediate_size": 128})
    phi = ("phi3", "phi-3", 32064, {"pad_token_id": 0})
    mixture, listed = mixed(one)
    file = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    return {
        "nvfp4-tied": (tied, one, told, {}), "nvfp4-head": (llama, one, told, {"linear": LINEAR + ("lm_head",)}),
        "nvfp4-shards": (llama, one, told, {"shards": 3}), "nvfp4-ct-shards": (llama, compressed, groups, {"shards": 2}),
        "nvfp4-ones": (llama, trivial(one), told, {}), "nvfp4-mixed": (llama, mixture, listed, {}),
        "nvfp4-file": (llama, one, file, {}), "nvfp4-phi3": (phi, one, told, {}), "nvfp4-phi3-w4a16": (phi, wide, wide_told, {}),
        "nvfp4-experts": (experts, one, told, {}), "nvfp4-experts-w4a16": (experts, wide, wide_told, {}),
        "nvfp4-experts-shards": (experts, one, told, {"shards": 4}), "nvfp4-experts-ones": (experts, trivial(one), told, {}),
        "nvfp4-experts-ct": (few, compressed, groups, {"shards": 2}),
    }


def run(*command):
    r = subprocess.run(command, capture_output=True, text=True)
    return r.returncode, (r.stdout + r.stderr).strip().splitlines()[-1:]


def compare(case, what, told, ours, theirs):
    if told[0]:
        return f"FAILED {told[1]}"
    a, b = ours.read_bytes(), theirs.read_bytes()
    if a == b:
        return "IDENTICAL FILE"
    first = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return f"DIFFERS at byte {first} ({len(a)} and {len(b)} bytes)"


# llama-quantize with --allow-requantize, for files that hold blocks already: FTYPE, in, out.
REQUANTIZE = """
import ctypes as C, os, sys
sys.path.insert(0, os.path.dirname(os.environ["GGML_PY"]))
import ggml
ggml.base()
folder = os.environ["NODE_LLAMA"]
L = C.CDLL(os.path.join(folder, next(f for f in sorted(os.listdir(folder)) if f.startswith("libllama.") and f.endswith(".so"))))
L.llama_model_quantize_default_params.restype = ggml.Params
L.llama_model_quantize.argtypes = [C.c_char_p, C.c_char_p, C.POINTER(ggml.Params)]
p = L.llama_model_quantize_default_params()
p.nthread, p.ftype, p.allow_requantize = 1, ggml.FTYPES[sys.argv[1]], True
sys.exit(L.llama_model_quantize(sys.argv[2].encode(), sys.argv[3].encode(), C.byref(p)))
"""


def check(case, folder):
    ours, theirs = OUT / "ours.gguf", OUT / "theirs.gguf"
    bad = 0
    for outtype in ("f32", "f16", "bf16", "auto"):
        convert = [sys.executable, LLAMA + "/convert_hf_to_gguf.py", str(folder), "--outfile", str(theirs), "--outtype", outtype]
        code, last = run(*convert)
        if code:  # its lazy tensors do not know every operation
            code, last = run(*convert, "--no-lazy")
        if code:
            print(f"{case:22} {outtype:5} the converter refuses: {last}", flush=True)
            continue
        told = run(BIN, str(folder), "--quant", outtype, "-o", str(ours), "--force", "-q")
        line = compare(case, outtype, told, ours, theirs)
        bad += line != "IDENTICAL FILE"
        print(f"{case:22} {outtype:5} {line}", flush=True)
    if "NODE_LLAMA" in os.environ and theirs.exists():
        for file_type in ("Q8_0", "Q4_K_M", "MXFP4_MOE"):
            quantized = OUT / "quantized.gguf"
            ggml = os.environ.get("GGML_PY")
            if not ggml:
                break
            code, last = run(sys.executable, ggml, "file", file_type, str(theirs), str(quantized))
            told = run(BIN, str(folder), "--quant", file_type.lower(), "-o", str(ours), "--force", "-q")
            if code and "allow-requantize" in str(told[1]):
                code, last = run(sys.executable, "-c", REQUANTIZE, file_type, str(theirs), str(quantized))
                told = run(BIN, str(folder), "--quant", file_type.lower(), "--allow-requantize", "-o", str(ours), "--force", "-q")
            line = f"llama-quantize refuses {last}; ours: {told}" if code else compare(case, file_type, told, ours, quantized)
            bad += bool(code) != bool(told[0]) or (not code and line != "IDENTICAL FILE")
            print(f"{case:22} {file_type:5} {line}", flush=True)
    for f in (ours, theirs):
        f.unlink(missing_ok=True)
    return bad


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    bad = 0
    llama = OUT / "llama"
    if not llama.exists():
        model("llama", "llama-spm", 32000, llama)
    for case, (pack, quantization) in CASES.items():
        if WANTED and not any(w in case for w in WANTED):
            continue
        folder = OUT / "Tiny-Model-1B"
        pack_model(llama, folder, pack, quantization)
        bad += check(case, folder)
    for case, ((kind, tokenizer, vocab, more), pack, quantization, how) in nvfp4_models().items():
        if WANTED and not any(w in case for w in WANTED):
            continue
        source = OUT / "-".join([kind, str(vocab), *map(str, more.values())])
        if not source.exists():
            model(kind, tokenizer, vocab, source, **more)
        folder = OUT / "Tiny-Model-1B"
        pack_model(source, folder, pack, quantization, **how)
        if "producer" in quantization:
            config = json.loads((folder / "config.json").read_text())
            (folder / "hf_quant_config.json").write_text(json.dumps(config.pop("quantization_config")))
            (folder / "config.json").write_text(json.dumps(config))
        bad += check(case, folder)
    if not WANTED or any(w in "mxfp4-gptoss" for w in WANTED):
        gptoss = OUT / "gptoss"
        if not gptoss.exists():
            model("gpt_oss", "gpt-2", 50304, gptoss, num_local_experts=4, num_experts_per_tok=2, head_dim=64, sliding_window=128,
                  intermediate_size=256)
        mxfp4(gptoss, OUT / "Tiny-Experts-1B")
        bad += check("mxfp4-gptoss", OUT / "Tiny-Experts-1B")
    print("all identical" if not bad else f"{bad} files differ")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
