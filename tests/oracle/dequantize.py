#!/usr/bin/env python3
"""What random bytes decode to, by PyPI gguf and by llama.cpp's C: a hash for each type.

  NODE_LLAMA=bins python tests/oracle/dequantize.py [write]

4096 blocks of every type, all bit patterns alike: scales that are infinite or no numbers among them. Both decoders must
agree in every bit but those of a NaN (how many differ is printed); `write` writes fixtures/dequantize_hashes.txt,
which tests/quant_golden.rs compares with ours. Needs numpy and gguf.
"""
import ctypes as C, hashlib, os, sys, warnings
import numpy as np, gguf
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
NAMES = ("F16 BF16 Q1_0 Q2_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 MXFP4 NVFP4 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 "
         "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS").split()
IDS = dict(F16=1, BF16=30, Q1_0=41, Q2_0=42, MXFP4=39, NVFP4=40)
BLOCKS = 4096
warnings.simplefilter("ignore")


def random_bytes(seed, n):
    """SplitMix64, little-endian."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n // 8 + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))).astype("<u8").view(np.uint8)[:n].copy()


def one_nan(values):
    """The bits of f32, every NaN as the same."""
    bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32).copy()
    bits[np.isnan(bits.view(np.float32))] = 0x7FC00000
    return bits


def by_c(lib, name, data, n):
    out = np.zeros(n, np.float32)
    symbol = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}.get(name) or "dequantize_row_" + name.lower().replace("_k", "_K")
    f = getattr(lib, symbol); f.argtypes = [C.c_void_p, C.c_void_p, C.c_int64]; f.restype = None
    f(data.ctypes.data, out.ctypes.data, n)
    return out


def by_gguf(kind, data):
    if kind == T.F16: return data.view(np.float16).astype(np.float32)
    return gguf.quants.dequantize(data.reshape(1, -1), kind).reshape(-1)


def main():
    lib, lines, bad = C.CDLL(os.path.join(os.environ["NODE_LLAMA"], "libggml-base.so")), [], 0
    sizes = {"Q1_0": (128, 18), "Q2_0": (64, 18)}
    for name in NAMES:
        kind = getattr(T, name, None)
        elements, size = GGML_QUANT_SIZES[kind] if kind is not None else sizes[name]
        blocks = BLOCKS if elements > 1 else 1 << 17
        number = IDS.get(name, kind.value if kind is not None else None)
        data = random_bytes(number, blocks * size)
        c = by_c(lib, name, data, blocks * elements)
        try: py, words = by_gguf(kind, data) if kind is not None else None, "no decoder in gguf"
        except NotImplementedError: py = None
        if py is not None:
            different = int((one_nan(c) != one_nan(py)).sum())
            payload = int((c.view(np.uint32) != np.ascontiguousarray(py).view(np.uint32)).sum()) - different
            words, bad = f"gguf: {different} values differ, and {payload} NaNs in their payload", bad + different
        print(f"{name:8} {blocks * elements:8} values, {int(np.isnan(c).sum()):7} NaN, {int(np.isinf(c).sum()):6} infinite; {words}")
        lines.append(f"{name} {hashlib.sha256(one_nan(c).astype('<u4').tobytes()).hexdigest()}\n")
    if sys.argv[1:] == ["write"]:
        with open(os.path.join(ROOT, "fixtures", "dequantize_hashes.txt"), "w") as f:
            f.write("# type, SHA-256 of the f32 that random bytes of it decode to, every NaN as 0x7fc00000; made by tests/oracle/dequantize.py\n"
                    "# of libggml-base.so (@node-llama-cpp/linux-x64 3.22.1, llama.cpp 0.5.0); PyPI gguf decodes the same (it has none for Q2_0)\n")
            f.writelines(lines)
    sys.exit(bad > 0)


main()
