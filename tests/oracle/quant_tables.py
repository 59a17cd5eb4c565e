#!/usr/bin/env python3
"""Writes or checks `quant-tables/`: the numbers that ggml's codebook types are made of.

  quant_tables.py check    every table equals ggml's source, gguf-py's grids and the oracle library's behaviour
  quant_tables.py write    writes the tables anew

LLAMA_CPP is a llama.cpp source tree, NODE_LLAMA the folder of the oracle library; the interpreter needs numpy and gguf.
"""
import ctypes as C, os, re, sys
from pathlib import Path
import numpy as np
import gguf.quants as gq

TABLES = Path(__file__).resolve().parents[2] / "quant-tables"
SOURCE = Path(os.environ.get("LLAMA_CPP") or sys.exit("set LLAMA_CPP to a llama.cpp source tree")) / "ggml"
QUANTS, COMMON = SOURCE / "src/ggml-quants.c", SOURCE / "src/ggml-common.h"
# file, array in ggml-quants.c, gguf-py class, coordinates, bits per coordinate, neighbour distances, what it serves
GRIDS = [
    ("iq1", "kgrid_1bit_2048", gq.IQ1_S, 8, 2, 3, "IQ1_S and IQ1_M"),
    ("iq2_xxs", "kgrid_2bit_256", gq.IQ2_XXS, 8, 2, 2, "IQ2_XXS"),
    ("iq2_xs", "kgrid_2bit_512", gq.IQ2_XS, 8, 2, 2, "IQ2_XS"),
    ("iq2_s", "kgrid_2bit_1024", gq.IQ2_S, 8, 2, 1, "IQ2_S"),
    ("iq3_xxs", "kgrid_256", gq.IQ3_XXS, 4, 3, 2, "IQ3_XXS"),
    ("iq3_s", "kgrid_512", gq.IQ3_S, 4, 3, 3, "IQ3_S"),
]

def version():
    text = (SOURCE / "CMakeLists.txt").read_text()
    return "ggml " + ".".join(re.search(rf"GGML_VERSION_{p} (\d+)", text)[1] for p in ("MAJOR", "MINOR", "PATCH"))

def array(path, name):
    body = re.search(rf"\b{name}(?:\[\w*\] = \{{|, \w+\))(.*?)(?:\}};|GGML_TABLE_END)", path.read_text(), re.S)[1]
    return [int(n, 0) for n in re.findall(r"-?\w+", body)]

def rows(numbers, per_line):
    return "".join(" ".join(map(str, numbers[i:i + per_line])) + "\n" for i in range(0, len(numbers), per_line))

def oracle():
    lib = C.CDLL(os.path.join(os.environ.get("NODE_LLAMA") or sys.exit("set NODE_LLAMA to the oracle's folder"), "libggml-base.so"))
    lib.ggml_quantize_chunk.restype = C.c_size_t
    lib.ggml_quantize_chunk.argtypes = [C.c_int, C.c_void_p, C.c_void_p, C.c_int64, C.c_int64, C.c_int64, C.c_void_p]
    return lib

def mxfp4_exponents():
    """First f32 bit pattern of every run of equal E8M0 bytes, by bisection through the oracle (bits 1..=0x7f7fffff)."""
    lib = oracle()
    def byte(bits):
        x = np.zeros(32, np.float32); x.view(np.uint32)[0] = bits; out = np.zeros(17, np.uint8)
        lib.ggml_quantize_chunk(39, x.ctypes.data, out.ctypes.data, 0, 1, 32, None)
        return int(out[0])
    runs, start = [(1, byte(1))], 1
    while True:
        here = runs[-1][1]; lo, hi = start, min(0x7f7fffff, start + (0xffffff if start >= 0x800000 else max(start, 1) * 2))
        while hi < 0x7f7fffff and byte(hi) == here: lo, hi = hi, min(0x7f7fffff, hi + 0x800000)
        if byte(hi) == here: return runs
        while hi - lo > 1:
            mid = (lo + hi) // 2
            if byte(mid) == here: lo = mid
            else: hi = mid
        runs.append((hi, byte(hi))); start = hi

def tables():
    tool = "tests/oracle/quant_tables.py"
    for name, source, cls, dims, bits, distances, serves in GRIDS:
        packed = array(QUANTS, source)
        cls.init_grid()
        levels = np.array([[(p >> (bits * i)) & (2**bits - 1) for i in range(dims)] for p in packed])
        theirs = cls.grid.reshape(-1, dims)
        low, step = theirs.min(), np.diff(np.unique(theirs)).min()
        mine = levels if name == "iq1" else 2 * levels + 1  # IQ1 decodes level - 1
        if name == "iq1": assert np.array_equal(mine - 1, theirs), name
        elif name.startswith("iq2"): assert np.array_equal(np.array([0x08, 0x19, 0x2b])[levels], theirs), name
        else: assert len(np.unique(theirs)) == 8 and np.array_equal(np.unique(theirs)[levels], theirs), (name, low, step)
        decode = np.unique(theirs).astype(int).tolist()
        yield f"{name}.txt", (
            f"# Codebook of {serves}: {len(packed)} points of {dims} coordinates, {bits} bits each, the first in the lowest bits.\n"
            f"# A level l stands for 2l+1 in the search and for decode[l] in the stored value.\n"
            f"# Source: {version()}, ggml-quants.c, {source}; ggml-common.h. Generator: {tool}\n"
            f"dims {dims}\nbits {bits}\nneighbour_distances {distances}\ndecode {' '.join(map(str, decode))}\npoints\n" + rows(packed, 16))
    yield "kvalues.txt", (
        f"# What the 16 codes of the 4-bit codebook types stand for.\n"
        f"# Source: {version()}, ggml-common.h, kvalues_iq4nl and kvalues_fp4. Generator: {tool}\n"
        f"iq4_nl {' '.join(map(str, array(COMMON, 'kvalues_iq4nl')))}\nfp4 {' '.join(map(str, array(COMMON, 'kvalues_fp4')))}\n")
    yield "mxfp4_exponents.txt", (
        "# The E8M0 byte of a block by its largest magnitude: each line is the bit pattern of the first f32 of a run, and the run's byte.\n"
        "# It is (uint8_t)(floorf(log2f(amax)) + 125) with glibc's log2f, which rounds up just below a power of two, and C's wrapping cast.\n"
        f"# Source: {version()}, quantize_row_mxfp4_ref, bisected through libggml-base.so. Generator: {tool}\n"
        + "".join(f"{bits:08x} {e}\n" for bits, e in mxfp4_exponents()))

def main():
    mode = sys.argv[1] if len(sys.argv) == 2 else ""
    if mode not in ("check", "write"): sys.exit(__doc__)
    wrong = 0
    for name, text in tables():
        path = TABLES / name
        if mode == "write": path.write_text(text)
        elif not path.exists() or path.read_text() != text: print(f"{name}: differs"); wrong += 1
        else: print(f"{name}: equal")
    sys.exit(wrong > 0)
main()
