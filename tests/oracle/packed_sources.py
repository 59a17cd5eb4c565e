#!/usr/bin/env python3
"""Tiny packed models written by the libraries themselves, and what those libraries decode from them.

    python tests/oracle/packed_sources.py OUT [--full] [--seed N]

Each case becomes a folder OUT/<case> with config.json, model.safetensors and expected.json: per tensor its shape and
the SHA-256 of its values as little-endian f32. --full adds expected.safetensors with the values themselves.
`cargo test --release --test source_packed` reads the cases committed in fixtures/packed, and those of the folder
that TO_GGUF_PACKED_CASES names.

Needs torch, transformers, bitsandbytes; and hqq, compressed-tensors, torchao, optimum-quanto, aqlm, autoawq, gptqmodel
where installed: a family whose library is missing is skipped and named. "layout" in a case's name means that the file
is made from the published layout with torch alone.
"""
import sys

sys.path.pop(0)  # this folder: its scripts have names that packages have too
import argparse
import hashlib
import json
import os
import pathlib
import random
import traceback
import types

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
import torch
from safetensors.torch import save_file

OUT, FULL = pathlib.Path("."), False
M = "model.layers.0.self_attn.q_proj"
W = M + ".weight"


def save(folder, tensors, metadata, shards):
    """Writes the weights; in several files, each tensor goes to any of them, whatever it belongs to."""
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    if shards == 1:
        return save_file(tensors, folder / "model.safetensors", metadata=metadata)
    home = {k: i if i < shards else random.randrange(shards) for i, k in enumerate(random.sample(sorted(tensors), len(tensors)))}
    names = {k: f"model-{i + 1:05}-of-{shards:05}.safetensors" for k, i in home.items()}
    for file in set(names.values()):
        save_file({k: v for k, v in tensors.items() if names[k] == file}, folder / file, metadata=metadata)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def case(name, tensors, quantization, expected, metadata=None, config=None, beside=None, shards=1):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(config or {"torch_dtype": "bfloat16"})
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    for file, content in (beside or {}).items():
        (folder / file).write_text(json.dumps(content))
    save(folder, tensors, metadata, min(shards, len(tensors)))
    told = {}
    for key, value in expected.items():
        value = value.detach().float().contiguous()
        digest = hashlib.sha256(value.numpy().astype("<f4").tobytes()).hexdigest()
        told[key] = {"shape": list(value.shape), "sha256": digest}
    (folder / "expected.json").write_text(json.dumps(told, indent=1) + "\n")
    if FULL:
        save_file({k: v.detach().float().contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    print("ok  ", name)


def weight(out, inp, dtype=torch.float32):
    return (torch.randn(out, inp) * 0.05).to(dtype)


def bitsandbytes():
    import bitsandbytes.functional as F

    for kind, nested, dtype, storage, block, shape in [
        ("nf4", True, torch.bfloat16, torch.uint8, 64, (24, 96)),
        ("nf4", False, torch.float16, torch.uint8, 64, (8, 64)),
        ("nf4", True, torch.float32, torch.bfloat16, 128, (9, 72)),
        ("fp4", True, torch.bfloat16, torch.uint8, 64, (7, 33)),
        ("fp4", False, torch.float32, torch.float32, 32, (5, 40)),
        ("nf4", True, torch.bfloat16, torch.uint8, 64, (260, 72)),
    ]:
        w = weight(*shape, dtype=dtype)
        q, state = F.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind, quant_storage=storage)
        tensors = {W: q, "model.norm.weight": torch.ones(4, dtype=torch.bfloat16)}
        tensors |= {f"{W}.{k}": v for k, v in state.as_dict(packed=True).items()}
        name = f"bnb_{kind}{'_nested' if nested else ''}_{str(dtype)[6:]}_b{block}_{shape[0]}x{shape[1]}"
        quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
        expected = {W: F.dequantize_4bit(q, state), "model.norm.weight": torch.ones(4)}
        case(name, tensors, quantization, expected)
    w = weight(12, 50, torch.float16)
    q, scale, _ = F.int8_vectorwise_quant(w)
    tensors = {W: q, M + ".SCB": scale, M + ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    case("bnb_int8", tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True}, {W: F.int8_vectorwise_dequant(q, scale)})


def stream_pack(codes, bits):
    """Codes [n, columns] to i32 words [ceil(n * bits / 32), columns], least significant bits first."""
    n, columns = codes.shape
    words = torch.zeros((n * bits + 31) // 32, columns, dtype=torch.int64)
    for i in range(n):
        for b in range(bits):
            at = i * bits + b
            words[at // 32] |= ((codes[i].long() >> b) & 1) << (at % 32)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def gptq():
    for bits in (2, 3, 4, 8):
        for group, order, sym, v2 in [(32, False, True, False), (32, True, False, True), (-1, False, False, False)]:
            out, inp = 32, 96
            size = inp if group == -1 else group
            groups = inp // size
            codes = torch.randint(0, 2**bits, (out, inp))
            # A zero point of 0 is left out of v1, where it borrows from its neighbour.
            low = 0 if v2 else 1
            zeros = torch.full((groups, out), 2 ** (bits - 1)) if sym else torch.randint(low, 2**bits, (groups, out))
            scales = (torch.rand(groups, out) * 0.01 + 0.001).half()
            index = torch.arange(inp) // size
            if order:
                index = index[torch.randperm(inp)]
            stored = zeros if v2 else zeros - 1
            tensors = {
                M + ".qweight": stream_pack(codes.t(), bits),
                M + ".qzeros": stream_pack(stored.t(), bits).t(),
                M + ".scales": scales,
                M + ".g_idx": index.to(torch.int32),
            }
            product = scales[index].float() * (codes.t() - zeros[index]).float()
            quantization = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": sym}
            quantization["checkpoint_format"] = "gptq_v2" if v2 else "gptq"
            case(f"gptq_layout_{bits}bit_g{group}{'_order' if order else ''}{'_v2' if v2 else ''}", tensors, quantization, {W: product.half().t()})


def gptqmodel():
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    for bits in (2, 3, 4, 8):
        for group in (32, 64):
            out, inp = 32, 128
            linear = torch.nn.Linear(inp, out, bias=False, dtype=torch.float16)
            maximum = 2**bits - 1
            grouped = linear.weight.data.float().reshape(out, inp // group, group)
            low, high = grouped.amin(2), grouped.amax(2)
            scales = ((high - low) / maximum).half()
            zeros = torch.round(-low / scales.float()).clamp(0, maximum)
            q = TorchLinear(bits=bits, group_size=group, sym=False, desc_act=False, in_features=inp, out_features=out, bias=False, register_buffers=True)
            q.pack_original(linear, scales, zeros, torch.arange(inp) // group)
            q.post_init()
            expected = q.dequantize_weight().t()
            tensors = {f"{M}.{k}": getattr(q, k).data for k in ("qweight", "qzeros", "scales", "g_idx")}
            case(f"gptq_model_{bits}bit_g{group}_v2", tensors, {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": "gptq_v2"}, {W: expected})


def awq_modules():
    """AutoAWQ's packers, which its package no longer imports: gemm, the packing functions, and what finds the others."""
    import importlib
    import importlib.util

    root = pathlib.Path(importlib.util.find_spec("awq").origin).parent
    for package in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        module = types.ModuleType(package)
        module.__path__ = [str(root / pathlib.Path(*package.split(".")[1:]))]
        sys.modules[package] = module
    stub = types.ModuleType("awq.utils.module")
    stub.try_import = lambda name: (None, "")
    sys.modules["awq.utils.module"] = stub
    gemm = importlib.import_module("awq.modules.linear.gemm")
    packing = importlib.import_module("awq.utils.packing_utils")

    def module(version):
        return getattr(importlib.import_module(f"awq.modules.linear.{version}"), "WQLinear_GEMV" if version == "gemv" else "WQLinear_GEMVFast")

    return gemm, packing, module


def awq():
    gemm, packing, module = awq_modules()
    out, inp, group = 64, 128, 32
    linear = torch.nn.Linear(inp, out, bias=False, dtype=torch.float16)
    # The packers do not clamp: |w| / scale + zero must stay within 0..15.
    scales = (torch.rand(inp // group, out) * 0.02 + 0.02).half()
    zeros = torch.randint(5, 11, (inp // group, out)).half()
    for version, maker in (("gemm", gemm.WQLinear_GEMM), ("gemv", None), ("gemv_fast", None)):
        if maker is None:
            maker = module(version)
            s, z = scales.t().contiguous(), zeros.t().contiguous()
        else:
            s, z = scales, zeros
        q = maker.from_linear(linear, 4, group, scales=s, zeros=z)
        if version == "gemm":
            expected = packing.dequantize_gemm(q.qweight, q.qzeros, q.scales, 4, group).t().clone()
        if version == "gemv_fast":
            # The library has no decoder on a CPU: the codes are those of gemm, the formula is its kernel's.
            index = torch.arange(inp) // group
            reference = packing.unpack_awq(g.qweight, g.qzeros, 4)
            w, zz = packing.reverse_awq_order(reference[0], reference[1], 4)
            w = torch.bitwise_and(w, 15).float()
            expected = (w * q.scales[index].float() + q.qzeros[index].float()).half().t()
        else:
            g = q if version == "gemm" else g
        tensors = {f"{M}.{k}": getattr(q, k).data for k in ("qweight", "qzeros", "scales")}
        case(f"awq_{version}", tensors, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": version}, {W: expected})


def hqq():
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for bits, axis, group, dtype in [
        (4, 1, 64, torch.bfloat16), (4, 0, 64, torch.float16), (8, 1, 64, torch.float16), (3, 1, 64, torch.bfloat16),
        (2, 0, 32, torch.float32), (1, 1, 32, torch.float16), (4, 1, 32, torch.float32),
    ]:
        linear = torch.nn.Linear(64, 24, bias=False)
        linear.weight.data = weight(24, 64)
        config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
        q = HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
        state = {f"{M}.{k}": v if isinstance(v, torch.Tensor) else torch.tensor(v) for k, v in q.state_dict().items()}
        case(f"hqq_{bits}bit_axis{axis}_g{group}_{str(dtype)[6:]}", state, {"quant_method": "hqq"}, {W: q.dequantize()})


def fp8():
    for name, shape, block in [("block", (40, 48), (16, 16)), ("ragged", (35, 40), (16, 16)), ("scalar", (8, 16), None), ("row", (8, 16), "row")]:
        q = torch.randn(shape).to(torch.float8_e4m3fn)
        quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None}
        if isinstance(block, tuple):
            scale = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1])) * 0.01
            full = scale.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]
            quantization["weight_block_size"] = list(block)
        else:
            scale = torch.rand(shape[0], 1) if block == "row" else torch.rand(())
            full = scale
        tensors = {W: q, W + "_scale_inv": scale, M + ".activation_scale": torch.ones(1)}
        case(f"fp8_layout_{name}", tensors, quantization, {W: (q.float() * full).bfloat16()})
    q = torch.randn(8, 64).to(torch.float8_e4m3fn)
    scale = torch.randint(118, 130, (8, 2), dtype=torch.uint8)
    full = torch.exp2(scale.float() - 127).repeat_interleave(32, 1)
    case("fp8_layout_mxfp8", {W: q, W + "_scale_inv": scale}, {"quant_method": "mxfp8"}, {W: (q.float() * full).bfloat16()})
    scale = torch.rand(3, 2, 3)
    q = torch.randn(3, 32, 48).to(torch.float8_e4m3fn)
    P = "model.layers.0.mlp.experts.gate_up_proj"
    full = scale.repeat_interleave(16, 1).repeat_interleave(16, 2)
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    case("fp8_layout_experts", {P: q, P + "_scale_inv": scale}, quantization, {P: (q.float() * full).bfloat16()})


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def nibbles(packed):
    return E2M1[torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()]


def compressed():
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def run(name, fmt, given, weights, dtype=torch.bfloat16, shape=(16, 64)):
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights), format=fmt)
        compressor = BaseCompressor.get_value_from_registry(fmt)
        packed = compressor.compress({k: v.clone() for k, v in given.items()}, scheme)
        plain = compressor.decompress({k: v.clone() for k, v in packed.items()}, scheme)["weight"]
        tensors = {f"{M}.{k}": v for k, v in packed.items() if v is not None}
        told = json.loads(scheme.model_dump_json())
        quantization = {"quant_method": "compressed-tensors", "format": fmt, "config_groups": {"group_0": told}}
        case(f"ct_{name}", tensors, quantization, {W: plain})

    w = weight(16, 64, torch.bfloat16)
    for bits in (4, 8):
        for symmetric in (True, False):
            for strategy, groups in (("group", 2), ("channel", 1)):
                scale = (torch.rand(16, groups) * 0.02 + 0.005).bfloat16()
                given = {"weight": w, "weight_scale": scale}
                if not symmetric:
                    given["weight_zero_point"] = torch.randint(-3, 4, scale.shape, dtype=torch.int8)
                weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
                if strategy == "group":
                    weights["group_size"] = 32
                run(f"pack_int{bits}_{strategy}{'' if symmetric else '_asym'}", "pack-quantized", given, weights)
    scale = (torch.rand(16, 1) * 0.002 + 0.0005).bfloat16()
    run("int8_channel", "int-quantized", {"weight": w, "weight_scale": scale}, {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"})
    run("fp8_channel", "float-quantized", {"weight": w, "weight_scale": scale}, {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"})
    run("fp8_tensor", "float-quantized", {"weight": w, "weight_scale": scale[:1, 0]}, {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"})
    scale = (torch.rand(16, 4) * 20 + 1).to(torch.float8_e4m3fn).bfloat16()
    given = {"weight": w, "weight_scale": scale, "weight_global_scale": torch.tensor([900.0])}
    run("nvfp4", "nvfp4-pack-quantized", given, {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16})


def modelopt():
    out, inp = 16, 64
    q = torch.randn(out, inp).to(torch.float8_e4m3fn)
    scale = torch.rand(()) * 0.02
    tensors = {W: q, W + "_scale": scale, M + ".input_scale": torch.rand(())}
    case("modelopt_layout_fp8", tensors, {"quant_method": "modelopt", "quant_algo": "FP8"}, {W: q.bfloat16() * scale.bfloat16()})
    packed = torch.randint(0, 256, (out, inp // 2), dtype=torch.uint8)
    scale = (torch.rand(out, inp // 16) * 20).to(torch.float8_e4m3fn)
    factor = torch.rand(()) * 0.001
    full = (scale.float() * factor).repeat_interleave(16, 1)
    tensors = {W: packed, W + "_scale": scale, W + "_scale_2": factor, M + ".input_scale": torch.rand(())}
    case("modelopt_layout_nvfp4", tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, {W: (nibbles(packed) * full).bfloat16()})


def mxfp4():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    P = "model.layers.0.mlp.experts.gate_up_proj"
    blocks = torch.randint(0, 256, (2, 12, 2, 16), dtype=torch.uint8)
    scales = torch.randint(115, 130, (2, 12, 2), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.bfloat16)
    case("mxfp4_experts", {P + "_blocks": blocks, P + "_scales": scales}, {"quant_method": "mxfp4"}, {P: expected})


def torchao():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup, PerAxis
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    for name, config in [
        ("int8", Int8WeightOnlyConfig()),
        ("intx4", IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))),
        ("intx8", IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))),
    ]:
        model = torch.nn.Sequential(torch.nn.Linear(64, 24, bias=False, dtype=torch.bfloat16))
        quantize_(model, config)
        state = {W: model[0].weight.data}
        tensors, metadata = flatten_tensor_state_dict(state)
        case(f"torchao_{name}", tensors, {"quant_method": "torchao"}, {W: model[0].weight.dequantize()}, metadata=metadata)


def quanto():
    import optimum.quanto.library.extensions.cpp as cpp
    from optimum.quanto import qint2, qint4, qint8, qfloat8, quantize, freeze

    # In the place of the C++ that the library compiles at first use: fields of all bytes, lowest bits first.
    def unpack(packed, bits):
        return torch.cat([(packed >> (bits * i)) & (2**bits - 1) for i in range(8 // bits)])

    cpp.ext = types.SimpleNamespace(lib=types.SimpleNamespace(unpack=unpack))

    for kind in (qint8, qfloat8, qint4, qint2):
        model = torch.nn.Sequential(torch.nn.Linear(256, 32, dtype=torch.bfloat16))
        quantize(model, weights=kind)
        freeze(model)
        tensors = {M + k[1:]: v for k, v in model.state_dict().items()}
        expected = {W: model[0].weight.dequantize(), M + ".bias": tensors[M + ".bias"]}
        beside = {"quanto_qmap.json": {M: {"weights": kind.name, "activations": "none"}}}
        case(f"quanto_{kind.name}", tensors, None, expected, beside=beside)


def bitnet():
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    t = torch.randint(-1, 2, (16, 24))
    packed = pack_weights(t.float())
    scale = torch.tensor([3.25], dtype=torch.bfloat16)
    base = {"quant_method": "bitnet"}
    values = unpack_weights(packed, torch.float32)
    case("bitnet", {W: packed, W + "_scale": scale}, base, {W: values / scale.float()})
    auto = base | {"linear_class": "autobitlinear", "quantization_mode": "offline"}
    case("bitnet_auto", {W: packed, W + "_scale": scale}, auto, {W: values.bfloat16() * scale})


def aqlm():
    from aqlm.utils import _dequantize_weight, unpack_int_data

    for books, bits in ((1, 16), (2, 8)):
        codes = torch.randint(0, 2**bits, (24, 8, books))
        stored = torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes).to(torch.int16 if bits == 16 else torch.int8)
        size = 2**bits
        codebooks = (torch.randn(books, size, 1, 8) * 0.1).half()
        if bits == 16:
            # A committed case stays small: codes use the first 64 vectors of a file that has no more.
            size = 64
            codes = codes % size
            stored, codebooks = codes.to(torch.int16), codebooks[:, :size]
        scales = torch.rand(24, 1, 1, 1).half()
        expected = _dequantize_weight(unpack_int_data(stored, bits), codebooks, scales)
        case(f"aqlm_{books}x{bits}", {M + ".codes": stored, M + ".codebooks": codebooks, M + ".scales": scales}, {"quant_method": "aqlm"}, {W: expected})


FAMILIES = (bitsandbytes, gptq, gptqmodel, awq, hqq, fp8, compressed, modelopt, mxfp4, torchao, quanto, bitnet, aqlm)


def run(families):
    """Runs the families that the command line asks for, into its folder."""
    global OUT, FULL
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    OUT, FULL = args.out, args.full
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    for family in families:
        if args.only and args.only != family.__name__:
            continue
        try:
            family()
        except Exception as error:
            print(f"SKIP {family.__name__}: {type(error).__name__}: {error}")
            if args.only:
                traceback.print_exc()


if __name__ == "__main__":
    run(FAMILIES)
