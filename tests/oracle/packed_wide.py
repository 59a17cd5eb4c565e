#!/usr/bin/env python3
"""Packed models of random shapes, types and shards, and what their libraries decode from them.

    python tests/oracle/packed_wide.py OUT [--full] [--seed N] [--only FAMILY]

As packed_sources.py, whose cases are chosen; here everything is drawn: odd rows, single rows, rows that end within a
group, groups that do not divide, scales in all types, the tensors of one weight in several files, tensors that a file
has beside what is needed. `cargo test --release --test source_packed` reads OUT through TO_GGUF_PACKED_CASES.
"""
import sys

HERE = sys.path.pop(0)  # this folder: its scripts have names that packages have too
import importlib.util
import json
import random
import types

spec = importlib.util.spec_from_file_location("packed_sources", HERE + "/packed_sources.py")
P = importlib.util.module_from_spec(spec)
sys.argv[0], sys.path[:0] = HERE + "/packed_sources.py", [HERE]  # it removes the folder again
spec.loader.exec_module(P)
import torch

M, W, weight = P.M, P.W, P.weight
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
pick = random.choice


def case(*args, **more):
    P.case(*args, **{"shards": pick((1, 1, 2, 3))} | more)


def plainly(q, state):
    """bitsandbytes' own generic path: its AVX-512 kernel takes wrong factors where a row ends within a block."""
    import bitsandbytes.functional as F
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.backends.utils import _get_4bit_code

    absmax = state.absmax
    if state.nested:
        absmax = F.dequantize_blockwise(absmax, state.state2) + state.offset
    code = _get_4bit_code(state.quant_type, q.device).clone()
    if state.quant_type == "fp4":
        code[8] = -0.0  # as all kernels have it; the table has no sign there
    return _dequantize_4bit_compute(q.reshape(-1).view(torch.uint8), absmax.float(), code, state.blocksize, state.shape, state.dtype)


def bitsandbytes():
    import bitsandbytes.functional as F

    wrong, ragged = 0, 0
    for i in range(24):
        kind, nested, block = pick(("nf4", "fp4")), pick((True, False)), pick((32, 64, 128, 256, 512, 4096))
        storage = pick((torch.uint8, torch.uint8, torch.bfloat16, torch.float32))
        unit = 2 * storage.itemsize if storage != torch.uint8 else 1
        rows, cols = (1, pick((3, 64, 4097))) if i % 6 == 0 else (random.randrange(1, 90), random.randrange(1, 200))
        cols = -(-cols // unit) * unit
        w = weight(rows, cols, pick(FLOATS))
        if i % 5 == 0:
            w[rows // 2] = 0
        q, state = F.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind, quant_storage=storage)
        tensors = {W: q, M + ".bias": torch.randn(rows)} | {f"{W}.{k}": v for k, v in state.as_dict(packed=True).items()}
        quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": kind} | ({"quant_method": "bitsandbytes"} if i % 3 else {})
        expected = plainly(q, state)
        ragged += cols % block != 0
        wrong += not torch.equal(expected, F.dequantize_4bit(q, state))
        case(f"bnb_{i}_{kind}", tensors, quantization, {W: expected, M + ".bias": tensors[M + ".bias"]})
    print(f"of {ragged} cases whose rows end within a block, the library's kernel for this machine decodes {wrong} otherwise than its plain path")
    for i in range(8):
        w = weight(random.randrange(1, 40), random.randrange(1, 130), torch.float16)
        if i % 2 == 0:
            w[0] = 0
        q, scale, _ = F.int8_vectorwise_quant(w)
        tensors = {W: q, M + ".SCB": scale} | ({M + ".weight_format": torch.tensor(0, dtype=torch.uint8)} if i % 2 else {})
        case(f"bnb_int8_{i}", tensors, {"quant_method": "bitsandbytes", "_load_in_8bit": True, "load_in_8bit": True}, {W: F.int8_vectorwise_dequant(q, scale)})


def gptq():
    for i in range(32):
        bits, v2, order = (2, 3, 4, 8)[i % 4], pick((True, False)), pick((True, False))
        out, inp = 32 * random.randrange(1, 5), 32 * random.randrange(1, 9)
        group = pick((-1, 16, 32, 64, 128, 1024))
        size = inp if group == -1 else group
        groups = -(-inp // size)
        dtype = pick((torch.float16, torch.bfloat16))
        codes = torch.randint(0, 2**bits, (out, inp))
        zeros = torch.randint(0 if v2 else 1, 2**bits, (groups, out))
        scales = (torch.rand(groups, out) * 0.01 + 0.001).to(dtype)
        index = torch.arange(inp) // size
        if order:
            index = index[torch.randperm(inp)]
        tensors = {M + ".qweight": P.stream_pack(codes.t(), bits), M + ".scales": scales,
                   M + ".qzeros": P.stream_pack((zeros if v2 else zeros - 1).t(), bits).t()}
        if order or i % 3:
            tensors[M + ".g_idx"] = index.to(pick((torch.int32, torch.int64)))
        expected = {W: (scales[index].float() * (codes.t() - zeros[index]).float()).to(dtype).t()}
        if i % 4 == 0:
            tensors[M + ".bias"] = torch.zeros(out, dtype=dtype)
            expected[M + ".bias"] = tensors[M + ".bias"]
        quantization = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": False}
        case(f"gptq_{i}_{bits}bit", tensors, quantization | {"checkpoint_format": "gptq_v2" if v2 else "gptq"}, expected)


def gptqmodel():
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    for i in range(16):
        bits, group, v1, order = (2, 3, 4, 8)[i % 4], pick((32, 64, 128)), pick((True, False)), pick((True, False))
        out, inp = 32 * random.randrange(1, 4), 128 * random.randrange(1, 3)
        linear = torch.nn.Linear(inp, out, bias=False, dtype=torch.float16)
        maximum = 2**bits - 1
        grouped = linear.weight.data.float().reshape(out, inp // group, group)
        low, high = grouped.amin(2), grouped.amax(2)
        scales = ((high - low) / maximum).half()
        zeros = torch.round(-low / scales.float()).clamp(1, maximum)
        index = torch.arange(inp) // group
        if order:
            index = index[torch.randperm(inp)]
        q = TorchLinear(bits=bits, group_size=group, sym=False, desc_act=order, in_features=inp, out_features=out, bias=False, register_buffers=True)
        q.pack_original(linear, scales, zeros, index)
        q.post_init()
        expected = q.dequantize_weight().t().clone()
        if v1:
            convert_gptq_v2_to_v1_format_module(q, types.SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        tensors = {f"{M}.{k}": getattr(q, k).data for k in ("qweight", "qzeros", "scales", "g_idx")}
        quantization = {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": "gptq" if v1 else "gptq_v2"}
        case(f"gptq_model_{i}_{bits}bit", tensors, quantization, {W: expected})


def awq():
    gemm, packing, module = P.awq_modules()
    for i in range(12):
        group = pick((32, 64, 128))
        out, inp = 64 * random.randrange(1, 4), 128 * random.randrange(1, 4)
        linear = torch.nn.Linear(inp, out, bias=False, dtype=torch.float16)
        scales = (torch.rand(inp // group, out) * 0.02 + 0.02).half()
        zeros = torch.randint(5, 11, (inp // group, out)).half()
        g = gemm.WQLinear_GEMM.from_linear(linear, 4, group, scales=scales, zeros=zeros)
        for version in ("gemm", "gemv", "gemv_fast"):
            q = g if version == "gemm" else module(version).from_linear(linear, 4, group, scales=scales.t().contiguous(), zeros=zeros.t().contiguous())
            expected = packing.dequantize_gemm(g.qweight, g.qzeros, g.scales, 4, group).t().clone()
            if version == "gemv_fast":
                index = torch.arange(inp) // group
                codes = packing.reverse_awq_order(*packing.unpack_awq(g.qweight, g.qzeros, 4), 4)[0]
                expected = ((codes & 15).float() * q.scales[index].float() + q.qzeros[index].float()).half().t()
            tensors = {f"{M}.{k}": getattr(q, k).data for k in ("qweight", "qzeros", "scales")}
            quantization = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": version}
            case(f"awq_{i}_{version}", tensors, quantization, {W: expected})


def hqq():
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for i in range(24):
        bits, axis, dtype = pick((8, 6, 5, 4, 3, 2, 1)), pick((0, 1)), pick(FLOATS)
        group = pick((8, 16, 32, 64))
        rows, cols = random.randrange(1, 5) * 8, group * random.randrange(1, 6)
        linear = torch.nn.Linear(cols, rows, bias=i % 3 == 0)
        linear.weight.data = weight(rows, cols)
        q = HQQLinear(linear, BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis), compute_dtype=dtype, device="cpu")
        state = {f"{M}.{k}": v if isinstance(v, torch.Tensor) else torch.tensor(v) for k, v in q.state_dict().items()}
        expected = {W: q.dequantize()} | ({M + ".bias": state[M + ".bias"]} if i % 3 == 0 else {})
        case(f"hqq_{i}_{bits}bit_axis{axis}", state, {"quant_method": "hqq"}, expected)


def fp8():
    for i in range(20):
        rows, cols = random.randrange(1, 70), random.randrange(1, 70)
        q = torch.randn(rows, cols).to(torch.float8_e4m3fn)
        model = pick((torch.bfloat16, torch.float16, torch.float32))
        kind = pick(("block", "block", "scalar", "row", "exponents"))
        quantization = {"quant_method": "fp8", "weight_block_size": None}
        dtype = pick((torch.float32, torch.float32, torch.bfloat16))
        if kind in ("block", "exponents"):
            block = [random.randrange(2, 40), random.randrange(2, 40)]
            quantization["weight_block_size"] = block
            shape = [-(-d // b) for d, b in zip((rows, cols), block)]
            scale = (torch.rand(shape) * 0.01).to(dtype)
            if kind == "exponents":
                scale = torch.randint(110, 130, shape, dtype=torch.uint8).view(torch.float8_e8m0fnu)
            full = scale.float().repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :cols]
        else:
            full = scale = torch.rand(rows, 1).to(dtype) if kind == "row" else torch.rand(()).to(dtype)
        name = pick(("_scale_inv", "_scale")) if kind != "exponents" else "_scale_inv"
        tensors = {W: q, W + name: scale, M + ".activation_scale": torch.ones(1)}
        config = {"torch_dtype": str(model)[6:]}
        case(f"fp8_{i}_{kind}", tensors, quantization, {W: (q.float() * full.float()).to(model)}, config=config)


def compressed():
    import compressed_tensors
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def run(name, fmt, given, weights):
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights), format=fmt)
        compressor = BaseCompressor.get_value_from_registry(fmt)
        packed = compressor.compress({k: v.clone() for k, v in given.items()}, scheme)
        plain = compressor.decompress({k: v.clone() for k, v in packed.items()}, scheme)["weight"]
        tensors = {f"{M}.{k}": v for k, v in packed.items() if v is not None}
        quantization = {"quant_method": "compressed-tensors", "format": fmt, "config_groups": {"group_0": json.loads(scheme.model_dump_json())}}
        quantization["version"] = compressed_tensors.__version__  # as its ModelCompressor does; it decides the layout
        case(f"ct_{name}", tensors, quantization, {W: plain})

    for i in range(24):
        bits, symmetric, dtype = pick((2, 3, 4, 5, 6, 7, 8)), pick((True, False)), pick(FLOATS)
        rows, group = random.randrange(1, 40), pick((8, 16, 32))
        cols = group * random.randrange(1, 8)
        strategy, width = pick((("group", cols // group), ("channel", 1)))
        w, scale = weight(rows, cols, dtype), (torch.rand(rows, width) * 0.02 + 0.005).to(dtype)
        given = {"weight": w, "weight_scale": scale}
        if not symmetric:
            given["weight_zero_point"] = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), scale.shape, dtype=torch.int8)
        weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
        run(f"{i}_pack_{bits}bit", "pack-quantized", given, weights | ({"group_size": group} if strategy == "group" else {}))
    for i in range(12):
        rows, cols, dtype = random.randrange(1, 40), random.randrange(1, 80), pick(FLOATS)
        strategy = pick(("tensor", "channel"))
        scale = (torch.rand((rows, 1) if strategy == "channel" else (1,)) * 0.002 + 0.0005).to(dtype)
        kind, fmt = pick((("int", "int-quantized"), ("float", "float-quantized"), ("int", "naive-quantized"), ("float", "naive-quantized")))
        run(f"{i}_{kind}8", fmt, {"weight": weight(rows, cols, dtype), "weight_scale": scale}, {"num_bits": 8, "type": kind, "symmetric": True, "strategy": strategy})
    for i in range(8):
        rows, cols = random.randrange(1, 20), 16 * random.randrange(1, 10)
        scale = (torch.rand(rows, cols // 16) * 20 + 1).to(torch.float8_e4m3fn).bfloat16()
        given = {"weight": weight(rows, cols, torch.bfloat16), "weight_scale": scale, "weight_global_scale": torch.rand(1) * 900 + 1}
        run(f"{i}_nvfp4", "nvfp4-pack-quantized", given, {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16})


def modelopt():
    for i in range(12):
        rows, cols = random.randrange(1, 40), 16 * random.randrange(1, 10)
        model = pick((torch.bfloat16, torch.float16))
        config = {"torch_dtype": str(model)[6:]}
        if i % 2:
            q, scale = torch.randn(rows, cols).to(torch.float8_e4m3fn), torch.rand(()) * 0.02
            tensors = {W: q, W + "_scale": scale} | ({M + ".input_scale": torch.rand(())} if i % 3 else {})
            case(f"modelopt_{i}_fp8", tensors, {"quant_method": "modelopt", "quant_algo": "FP8"}, {W: q.to(model) * scale.to(model)}, config=config)
            continue
        packed = torch.randint(0, 256, (rows, cols // 2), dtype=torch.uint8)
        scale, factor = (torch.rand(rows, cols // 16) * 20).to(torch.float8_e4m3fn), torch.rand(()) * 0.001
        full = (scale.float() * factor).repeat_interleave(16, 1)
        tensors = {W: packed, W + "_scale": scale, W + "_scale_2": factor, M + ".k_scale": torch.rand(()), M + ".input_scale": torch.rand(())}
        case(f"modelopt_{i}_nvfp4", tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, {W: (P.nibbles(packed) * full).to(model)}, config=config)


def mxfp4():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    name = "model.layers.0.mlp.experts.gate_up_proj"
    for i in range(6):
        experts, rows, groups = random.randrange(1, 5), random.randrange(1, 40), random.randrange(1, 6)
        blocks = torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.uint8)
        scales = torch.randint(90, 150, (experts, rows, groups), dtype=torch.uint8)
        expected = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.bfloat16)
        case(f"mxfp4_{i}", {name + "_blocks": blocks, name + "_scales": scales}, {"quant_method": "mxfp4"}, {name: expected})


def torchao():
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    for i in range(18):
        group = pick((8, 16, 32, 64))
        intx = getattr(torch, f"int{random.randrange(1, 9)}")
        name, config = pick((
            ("int8", Int8WeightOnlyConfig()), ("fp8", Float8WeightOnlyConfig()),
            ("grouped", IntxWeightOnlyConfig(weight_dtype=intx, granularity=PerGroup(group))),
            ("axis", IntxWeightOnlyConfig(weight_dtype=intx, granularity=PerAxis(0))),
        ))
        model = torch.nn.Sequential(torch.nn.Linear(group * random.randrange(1, 6), random.randrange(1, 50), bias=False, dtype=pick(FLOATS)))
        quantize_(model, config)
        tensors, metadata = flatten_tensor_state_dict({W: model[0].weight.data})
        case(f"torchao_{i}_{name}", tensors, {"quant_method": "torchao"}, {W: model[0].weight.dequantize()}, metadata=metadata, shards=1)


def quanto():
    import optimum.quanto.library.extensions.cpp as cpp
    from optimum.quanto import freeze, qfloat8_e4m3fn, qfloat8_e5m2, qint2, qint4, qint8, quantize

    # In the place of the C++ that the library compiles at first use: fields of all bytes, lowest bits first.
    cpp.ext = types.SimpleNamespace(lib=types.SimpleNamespace(
        unpack=lambda packed, bits: torch.cat([(packed >> (bits * i)) & (2**bits - 1) for i in range(8 // bits)])))
    for i in range(20):
        kind = pick((qint8, qfloat8_e4m3fn, qfloat8_e5m2, qint4, qint2))
        # Of more than 128 columns, those that no group of 32 or more divides cannot be packed.
        cols = pick((random.randrange(1, 129), 32 * random.randrange(5, 20)))
        model = torch.nn.Sequential(torch.nn.Linear(cols, 4 * random.randrange(1, 12), bias=i % 2 == 0, dtype=pick(FLOATS)))
        quantize(model, weights=kind)
        freeze(model)
        tensors = {M + k[1:]: v for k, v in model.state_dict().items()}
        expected = {W: model[0].weight.dequantize()} | ({M + ".bias": tensors[M + ".bias"]} if i % 2 == 0 else {})
        case(f"quanto_{i}_{kind.name}", tensors, None, expected, beside={"quanto_qmap.json": {M: {"weights": kind.name, "activations": "none"}}}, config={"torch_dtype": "bfloat16", "hidden_size": cols})
    from optimum.quanto import QuantizedModelForCausalLM, quantization_map
    from transformers import AutoConfig, AutoModelForCausalLM

    # Whole models, most of whose layers have no bias: the file does not say how long a row is.
    for i in range(12):
        heads, head, kv = pick((2, 4)), pick((32, 48, 64)), pick((1, 2))
        sizes = {"hidden_size": 32 * random.randrange(1, 9), "intermediate_size": 32 * random.randrange(2, 12), "num_attention_heads": heads, "head_dim": head,
                 "num_key_value_heads": kv, "num_hidden_layers": 1, "vocab_size": 256, "max_position_embeddings": 64, "pad_token_id": 0}
        arch = pick(("llama", "qwen2", "qwen3", "gemma2", "phi3", "olmo2"))
        sizes["hidden_size"] = sizes["hidden_size"] if arch in ("qwen3", "gemma2") else heads * head
        config = AutoConfig.for_model(arch, **sizes)
        model = AutoModelForCausalLM.from_config(config).to(pick((torch.float16, torch.bfloat16)))
        kind = pick((qint4, qint2))
        QuantizedModelForCausalLM.quantize(model, weights=kind, exclude=[] if i % 2 else "lm_head")
        tensors, expected = {}, {}
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        for key, value in model.state_dict().items():
            if key != "lm_head.weight" or not tied:
                tensors[key] = value
                if ".weight._" not in key and not key.endswith("_scale"):
                    expected[key] = value
        for name, module in model.named_modules():
            if hasattr(module, "qweight") and module.qweight is not None and hasattr(module.weight, "dequantize"):
                expected[name + ".weight"] = module.weight.dequantize()
        case(f"quanto_model_{i}_{arch}_{kind.name}", tensors, None, expected, beside={"quanto_qmap.json": quantization_map(model)}, config=json.loads(config.to_json_string()))


def bitnet():
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    for i in range(8):
        packed = pack_weights(torch.randint(-1, 2, (4 * random.randrange(1, 12), random.randrange(1, 60))).float())
        scale, values = (torch.rand(1) * 20 + 0.1).bfloat16(), unpack_weights(packed, torch.float32)
        offline = {"linear_class": "autobitlinear", "quantization_mode": "offline"} if i % 2 else {}
        expected = values.bfloat16() * scale if offline else values / scale.float()
        case(f"bitnet_{i}", {W: packed, W + "_scale": scale}, {"quant_method": "bitnet"} | offline, {W: expected})


def aqlm():
    from aqlm.utils import _dequantize_weight, unpack_int_data

    for i in range(8):
        books, bits, vector = pick((1, 2)), pick((8, 8, 12, 16)), pick((4, 8, 16))
        rows, size = random.randrange(1, 40), 2**bits
        codes = torch.randint(0, size, (rows, random.randrange(1, 9), books))
        kind = torch.int8 if bits <= 8 else torch.int16
        stored = torch.where(codes >= 2 ** (8 * kind.itemsize - 1), codes - 2 ** (8 * kind.itemsize), codes).to(kind)
        codebooks, scales = (torch.randn(books, size, 1, vector) * 0.1).half(), torch.rand(rows, 1, 1, 1).half()
        expected = _dequantize_weight(unpack_int_data(stored, bits), codebooks, scales)
        tensors = {M + ".codes": stored, M + ".codebooks": codebooks, M + ".scales": scales}
        case(f"aqlm_{i}_{books}x{bits}", tensors, {"quant_method": "aqlm"}, {W: expected})


if __name__ == "__main__":
    P.run((bitsandbytes, gptq, gptqmodel, awq, hqq, fp8, compressed, modelopt, mxfp4, torchao, quanto, bitnet, aqlm))
