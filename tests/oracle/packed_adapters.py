#!/usr/bin/env python3
"""LoRA over bitsandbytes bases: what we merge, against PEFT's sum of the library's weights and its own delta.

    LLAMA_CPP=... python tests/oracle/packed_adapters.py OUT TOKENIZERS BIN

A tiny random Llama is packed and saved by transformers with bitsandbytes (nf4 and fp4, nested or not, int8), PEFT puts a
random adapter on the packed model, and BIN converts it to f32 over the packed base and, with --base, over the 16-bit
one. The reference is what PEFT's merge computes before it packs the sum again: the dequantized weight plus the layer's
delta, in f32. Prints the largest relative error of each case, and what the report says of the base.
"""
import sys

sys.path.pop(0)  # this folder: its scripts have names that packages have too
import json
import os
import pathlib
import shutil
import subprocess

os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1")
import numpy
import torch
import transformers
from bitsandbytes import functional as F
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

transformers.utils.logging.set_verbosity_error()
OUT, TOKENIZERS, BIN = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), os.path.abspath(sys.argv[3])
sys.path.insert(0, os.environ["LLAMA_CPP"] + "/gguf-py")
import gguf

NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def dequantized(weight):
    """The values that the library computes with. Its AVX-512 kernel is wrong where rows are no multiple of a block."""
    if weight.dtype == torch.int8:
        return F.int8_vectorwise_dequant(weight.data, weight.SCB)
    s = weight.quant_state
    absmax = F.dequantize_blockwise(s.absmax, s.state2) + s.offset if s.nested else s.absmax
    return _dequantize_4bit_compute(weight.data.reshape(-1), absmax.float(), s.code, s.blocksize, s.shape, s.dtype).float()


def permuted(w, heads):
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).transpose(1, 2).reshape(w.shape)


def worst(path, wanted):
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    errors = [numpy.linalg.norm(tensors[n] - w.numpy()) / numpy.linalg.norm(w.numpy()) for n, w in wanted.items()]
    return max(errors), sum(tensors[n].tobytes() == w.numpy().tobytes() for n, w in wanted.items())


def main():
    bad = 0
    shutil.rmtree(OUT, ignore_errors=True)
    plain = OUT / "plain"
    config = LlamaConfig(vocab_size=32000, hidden_size=128, intermediate_size=200, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(21)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(plain)
    for f in (TOKENIZERS / "llama-spm").iterdir():
        shutil.copy(f, plain)
    nf4 = dict(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    for case, settings, lora in [
        ("nf4", nf4 | dict(bnb_4bit_quant_type="nf4"), {}), ("nf4-nested", nf4 | dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), {}),
        ("fp4-nested", nf4 | dict(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True), {}), ("int8", dict(load_in_8bit=True), {}),
        ("nf4-rslora", nf4 | dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), dict(use_rslora=True)),
        ("nf4-dora", nf4 | dict(bnb_4bit_quant_type="nf4"), dict(use_dora=True)), ("int8-dora", dict(load_in_8bit=True), dict(use_dora=True)),
    ]:
        packed, adapter = OUT / case / "base", OUT / case / "adapter"
        m = AutoModelForCausalLM.from_pretrained(plain, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu", dtype=torch.bfloat16)
        m.save_pretrained(packed)
        for f in (TOKENIZERS / "llama-spm").iterdir():
            shutil.copy(f, packed)
        p = get_peft_model(m, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **lora))
        original = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).state_dict()
        over_packed, over_plain = {}, {}
        with torch.no_grad():
            for name, layer in p.named_modules():
                if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
                    continue
                for part in (layer.lora_A, layer.lora_B):
                    part["default"].weight.data = 0.05 * torch.randn(part["default"].weight.shape)
                a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
                delta = layer.scaling["default"] * (b @ a)
                words = name.split(".")
                target = f"blk.{words[-3]}.{NAMES[words[-1]]}.weight"
                w = dequantized(layer.get_base_layer().weight)
                key = name.removeprefix("base_model.model.") + ".weight"
                if not lora.get("use_dora"):
                    given = layer.get_delta_weight("default").double()
                    assert torch.allclose(given, delta, rtol=1e-4, atol=1e-6), "PEFT's own delta"
                norm = 1
                if lora.get("use_dora"):
                    m_ = layer.lora_magnitude_vector["default"].weight
                    m_.data = m_.data.float() * (1 + 0.1 * torch.randn(m_.shape))
                for table, start in ((over_packed, w), (over_plain, original[key])):
                    total = start.double() + delta
                    if lora.get("use_dora"):
                        norm = (m_.double() / torch.linalg.norm(total, dim=1)).unsqueeze(1)
                    total = (total * norm).float()
                    heads = {"q_proj": 4, "k_proj": 2}.get(words[-1])
                    table[target] = permuted(total, heads) if heads else total
        p.save_pretrained(adapter)
        for label, folder, wanted in (("packed", packed, over_packed), ("16-bit", plain, over_plain)):
            out = OUT / f"{case}.gguf"
            r = subprocess.run([BIN, str(adapter), "--base", str(folder), "--quant", "f32", "-o", str(out), "--force", "--json"], capture_output=True, text=True)
            if r.returncode:
                bad += 1
                print(f"{case:12} {label:7} FAILED {r.stderr.strip().splitlines()[-1:]}", flush=True)
                continue
            report = json.loads(r.stdout)
            told = [w for w in report["warnings"] if "quantized by" in w]
            error, equal = worst(out, wanted)
            right = error <= 1e-6 and bool(told) == (label == "packed")
            bad += not right
            print(f"{case:12} {label:7} worst relative error {error:.1e}, {equal} of {len(wanted)} tensors equal to the bit; {told[0][:60] if told else 'no word of packing'}", flush=True)
    print("all right" if not bad else f"{bad} are wrong")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
