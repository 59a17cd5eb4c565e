#!/usr/bin/env python3
"""Random models under random options: llama-quantize's file and to-gguf's are compared whole, byte for byte.

  LLAMA_CPP=llama.cpp NODE_LLAMA=bins python tests/oracle/quantize_random.py TO_GGUF WORK [CASES [FIRST_SEED]]
  LLAMA_CPP=llama.cpp NODE_LLAMA=bins python tests/oracle/quantize_random.py TO_GGUF WORK malformed

llama.cpp's tools/quantize is compiled against the libraries of node-llama-cpp (g++), so its own parsing of options and
matrices is part of the comparison. A case is one seed: a model of mixture.py, its layers and dimensions made small at
random (rows that are not whole blocks among them), weights in f32, f16 and bf16 (or quantized before, with
--allow-requantize), in one file or split; a file type; and options. Where llama-quantize fails, to-gguf must fail with
one line; where it alone fails, the line is shown and counts as a difference unless it is one of those in STRICTER.
`malformed` does that for option values which say nothing. Needs PyPI numpy and gguf.
"""
import filecmp, glob, json, os, random, shutil, struct, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import mixture as M
import numpy as np, gguf

TO_GGUF, WORK = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
LLAMA, NODE = os.environ["LLAMA_CPP"], os.environ["NODE_LLAMA"]
TYPES = [t.name for t in gguf.GGMLQuantizationType if t.name in (
    "F32 F16 BF16 Q1_0 Q2_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 MXFP4 NVFP4 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 "
    "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS").split()] + ["Q1_0", "Q2_0"]
PATTERNS = ["attn_v", "ffn_(up|down)", r"blk\.[0-2]\.", r"\.1\.", "exps", "attn", "ffn_down(?!_exps)", "OUTPUT", "^token", "weight$", "nothing_like_it", r"blk\.\d+\.ffn", "norm"]
# What to-gguf refuses and llama-quantize lets pass: (words of the message, why)
STRICTER = [
    ("matches none of the", "a filter that matches nothing is a slip; llama-quantize goes on without any matrix"),
    ("is not a list of layer numbers", "std::stoi reads the digits that a word begins with"),
    ("invalid value", "std::stoi reads the digits that a word begins with"),
    ("follow the end of the data", "bytes after a .dat file's end are ignored there"),
    ("is not a value of type", "atol and atof read what a word begins with; std::stol wraps"),
    ("out of range", "a scale that leaves f16"),
    ("no layer", "a layer that is not there is silently not pruned"),
    ("--override-kv '=", "an empty key ends the list there, and all that follows is dropped"),
    ("Is a directory", "a folder is read as an empty list of rules there"),
]
# And what to-gguf alone takes: a rule's last '=' is meant, so that its expression may hold one.
LOOSER = ["a=b=q8_0"]


def build():
    exe, stubs = os.path.join(WORK, "llama-quantize"), os.path.join(WORK, "stubs.cpp")
    if os.path.exists(exe): return exe
    with open(stubs, "w") as f:  # what the build writes into build-info.cpp
        f.write('#include "build-info.h"\nint llama_build_number(void) { return 0; }\n' + "".join(f'const char * {n}(void) {{ return ""; }}\n' for n in ("llama_commit", "llama_compiler", "llama_build_target", "llama_build_info")))
    lib = lambda start: next(os.path.join(NODE, f) for f in sorted(os.listdir(NODE)) if f.startswith(start) and f.endswith(".so"))
    flags = [f"-I{LLAMA}/{d}" for d in ("include", "ggml/include", "common", "vendor")]
    libs = [lib(s) for s in ("libllama.v", "libllama-common", "libggml.v", "libggml-base")]
    tool = [f"{LLAMA}/tools/quantize/{f}.cpp" for f in ("quantize", "main")]
    subprocess.run(["g++", "-O1", "-std=c++17", *flags, *tool, stubs, "-o", exe, *libs, f"-Wl,-rpath,{NODE}", "-Wl,--allow-shlib-undefined"], check=True)
    return exe


# ---- models
def shrunk(r, model):
    """A model of mixture.py with few layers and small dimensions; equal dimensions stay equal."""
    arch, keys, tensors = model
    full = keys[f"{arch}.block_count"]
    layers = min(full, r.randint(1, 10))
    sizes = [32, 64, 96, 128, 160, 256, 288, 512, 768] + [40, 100] * (r.random() < 0.3)
    dims, experts = {}, keys.get(f"{arch}.expert_count", 0)
    few = min(experts, r.choice([2, 4, 8]))
    def dim(n, fastest):
        if n == experts and not fastest: return few
        if n <= 16: return n
        if n not in dims: dims[n] = r.choice(sizes) if fastest or n < 20000 else r.randint(60, 200)
        return dims[n]
    keys = dict(keys)
    if arch != "deepseek2": keys[f"{arch}.block_count"] = layers  # which tells its Lite models by 27 layers
    for k, v in keys.items():
        if isinstance(v, list) and len(v) == full: keys[k] = v[:layers]
    if experts and r.random() < 0.8: keys[f"{arch}.expert_count"] = few; keys[f"{arch}.expert_used_count"] = 1
    out = []
    for name, ne, kind, span in tensors:
        ne = [dim(n, i == 0) for i, n in enumerate(ne)]
        while np.prod(ne) > 60000:  # the longest dimension beyond the row, or where there is none, the row
            i = max(range(1, len(ne)), key=lambda i: ne[i]) if max(ne[1:], default=1) > 1 else 0
            ne[i] //= 2
        names = [name] if span is None else [name.format(i) for i in range(span[0], min(span[1], layers))]
        out += [(n, ne, kind) for n in names]
    extra = {"tokenizer.ggml.tokens": ["a", "b\u00e9", ""], "some.floats": [0.5, -1.0], "general.name": "random"}
    if r.random() < 0.15: extra["general.file_type"] = 1
    # No general.alignment but 32: llama-quantize keeps the key and aligns to 32, which nothing can read.
    return arch, keys | extra, out, layers


def weights(g, ne, kind, r):
    shape = list(reversed(ne))
    x = (g.standard_normal(shape) * 10 ** r.uniform(-3, 0.5)).astype(np.float32)
    if r.random() < 0.1: x[..., : ne[0] // 2] = 0
    if r.random() < 0.1: x *= (g.random(shape) < 0.05) * 30 + 1
    if kind == "F16": return x.astype(np.float16)
    if kind == "BF16": return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x


def write_model(r, model, path, parts):
    arch, keys, tensors, _ = model
    g = np.random.default_rng(r.getrandbits(32))
    w = gguf.GGUFWriter(path, arch, split_max_tensors=parts)
    V = gguf.GGUFValueType
    for k, v in keys.items():
        kind = V.STRING if isinstance(v, str) else V.BOOL if isinstance(v, bool) else V.FLOAT32 if isinstance(v, float) else V.ARRAY if isinstance(v, list) else V.UINT32
        w.add_key_value(k, v, kind)
    own, mixed = r.choice(["F32", "F16", "BF16"]), r.random() < 0.4
    for name, ne, kind in tensors:
        plain = "F32" if kind == "F32" and r.random() < 0.9 else r.choice(["F32", "F16", "BF16"]) if mixed else own
        w.add_tensor(name, weights(g, ne, plain, r), raw_dtype=gguf.GGMLQuantizationType[plain], raw_shape=list(reversed(ne)))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


def write_imatrix(r, model, path):
    """Sums of squares for all or most matrices, in one of the two forms; answers their names."""
    g = np.random.default_rng(r.getrandbits(32))
    share, entries = r.choice([1.0, 1.0, 0.7]), []
    for name, ne, _ in model[2]:
        if len(ne) > 1 and r.random() < share:
            experts = ne[2] if len(ne) > 2 else 1
            sums = (g.random((experts, ne[0])) ** 4 * 100).astype(np.float32)
            sums[:, g.random(ne[0]) < 0.1] = 0
            entries.append((name, sums, np.array([r.choice([0, 1, 3, 512]) if experts > 1 else r.choice([1, 7, 512]) for _ in range(experts)], np.float32)))
    if path.endswith(".dat"):
        with open(path, "wb") as f:
            f.write(struct.pack("<i", len(entries)))
            for name, sums, _ in entries:
                n = name.encode()
                f.write(struct.pack("<i", len(n)) + n + struct.pack("<ii", r.choice([0, 1, 37]), sums.size) + sums.tobytes())
            if r.random() < 0.7: f.write(struct.pack("<ii", 37, 4) + b"wiki")
        return [e[0] for e in entries]
    w = gguf.GGUFWriter(path, "")
    w.add_key_value("general.type", "imatrix", gguf.GGUFValueType.STRING)
    w.add_array("imatrix.datasets", ["calibration.txt"]); w.add_uint32("imatrix.chunk_count", r.choice([0, 12])); w.add_uint32("imatrix.chunk_size", 512)
    for name, sums, counts in entries:
        w.add_tensor(name + ".in_sum2", sums); w.add_tensor(name + ".counts", counts.reshape(-1, 1))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return [e[0] for e in entries]


# ---- options
def options(r, model, folder, split):
    arch, keys, tensors, layers = model
    o, any_type = [], lambda: r.choice(TYPES) if r.random() < 0.5 else r.choice(TYPES).lower()
    if r.random() < 0.15: o += ["--pure"]
    if r.random() < 0.15: o += ["--leave-output-tensor"]
    if r.random() < 0.2: o += ["--output-tensor-type", any_type()]
    if r.random() < 0.2: o += ["--token-embedding-type", any_type()]
    if r.random() < 0.35:
        for _ in range(r.randint(1, 3)): o += ["--tensor-type", f"{r.choice(PATTERNS)}={any_type()}"]
    if r.random() < 0.15:
        path = os.path.join(folder, "types.txt")
        with open(path, "w") as f: f.write(r.choice(["\n", "  ", "\n\n\t"]).join(f"{r.choice(PATTERNS)}={any_type()}" for _ in range(r.randint(1, 4))))
        o += ["--tensor-type-file", path]
    if layers > 1 and r.random() < 0.2: o += ["--prune-layers", ",".join(map(str, r.sample(range(layers), r.randint(1, max(1, layers // 2)))))]
    if r.random() < 0.25:
        pool = ["general.name=str:Another name", "x.y=bool:true", "n=int:-3", "general.name=str:", f"{arch}.rope.freq_base=float:12345.5", f"{arch}.context_length=int:77",
                f"{arch}.expert_count=int:8", f"{arch}.attention.head_count_kv=int:{r.choice([1, 2, 8])}", "z=float:1e-3", "general.file_type=int:3", "a.b=str:x=y:z"]
        for rule in r.sample(pool, r.randint(1, 3)): o += ["--override-kv", rule]
    if r.random() < 0.55:
        path = os.path.join(folder, r.choice(["matrix.gguf", "matrix.dat"]))
        names = write_imatrix(r, model, path)
        o += ["--imatrix", path]
        if r.random() < 0.3:
            which = r.choice(["--include-weights", "--exclude-weights"])
            texts = [t for t in ("attn", "ffn_down", "blk.0", "weight", "exps", "_v") if any(t in n for n in names)]
            for text in r.sample(texts, min(len(texts), r.randint(1, 2))): o += [which, text]
    if split and r.random() < 0.7: o += ["--keep-split"]
    return o


def run(command):
    p = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return p.returncode, p.stdout + p.stderr, p.stderr


def compare(theirs, ours):
    """Runs both and says how they compare: (verdict, words)."""
    code, said, _ = run(theirs)
    mine, _, line = run(ours)
    if code == 0 and mine == 0: return "both", ""
    one_line = line.count("\n") == 1 and line.startswith("error: ")
    if mine != 0 and (mine not in (1, 2) or not one_line): return "BAD MESSAGE", f"exit {mine}: {line[-300:]}"
    if code and mine: return "refused", line.strip()
    if mine == 0: return ("looser" if any(w in LOOSER for w in ours) else "ONLY OURS"), said.strip()[-300:]
    why = next((why for words, why in STRICTER if words in line), None)
    return ("stricter" if why else "ONLY THEIRS"), line.strip()


def case(seed, exe, all_models):
    r = random.Random(seed)
    folder = os.path.join(WORK, f"case{seed}")
    shutil.rmtree(folder, ignore_errors=True); os.makedirs(os.path.join(folder, "ours")); os.makedirs(os.path.join(folder, "theirs"))
    at = lambda *p: os.path.join(folder, *p)
    name = r.choice(sorted(all_models))
    model = shrunk(r, all_models[name])
    parts = max(1, len(model[2]) // r.randint(2, 4)) if r.random() < 0.25 else 0
    write_model(r, model, at("in.gguf"), parts)
    source = (sorted(glob.glob(at("in-*.gguf"))) or [at("in.gguf")])[0]
    split = source != at("in.gguf")
    ftype = r.choice([*M.FTYPES, *M.FTYPES, "COPY"])
    o = options(r, model, folder, split)
    if not split and r.random() < 0.2:
        first = r.choice(["Q8_0", "Q4_K_M", "Q4_0", "Q6_K", "IQ4_XS", "MXFP4_MOE", "TQ1_0", "Q3_K_S"])
        code, said, _ = run([exe, source, at("first.gguf"), first, "1"])
        if code == 0: source = at("first.gguf")
        if r.random() < 0.8: o += ["--allow-requantize"]
    # llama-quantize reads the options of its own names only; all of to-gguf's are the same.
    verdict, words = compare([exe, *o, source, at("theirs", "out.gguf"), ftype, "1"], [TO_GGUF, source, "--quant", ftype, "-o", at("ours", "out.gguf"), "-q", "--threads", "1", *o])
    if verdict == "both":
        a, b = (sorted(os.listdir(at(d))) for d in ("ours", "theirs"))
        same = a == b and all(filecmp.cmp(at("ours", n), at("theirs", n), False) for n in a)
        verdict = "the same" if same else "DIFFERENT"
        words = "" if same else f"{a} {b} " + run([TO_GGUF, "diff", at("theirs", b[0]), at("ours", a[0])])[1][:600] if a and b else str((a, b))
    good = verdict in ("the same", "refused", "stricter")
    if not good or words: print(f"{seed} {name} {ftype} {' '.join(o)}\n    {verdict}: {words}", flush=True)
    if good: shutil.rmtree(folder)
    return verdict, o


def malformed(exe):
    """Option values that say nothing, each with a model that is otherwise fine."""
    r = random.Random(7)
    folder = os.path.join(WORK, "malformed"); shutil.rmtree(folder, ignore_errors=True); os.makedirs(folder)
    at = lambda *p: os.path.join(folder, *p)
    model = shrunk(r, M.models()["llama-3.2-1b"])
    write_model(r, model, at("in.gguf"), 0); write_imatrix(r, model, at("m.gguf")); write_imatrix(r, model, at("m.dat"))
    data = open(at("m.dat"), "rb").read()
    for name, text in (("empty.txt", ""), ("bad.txt", "attn_v=q8_0 ffn_up"), ("type.txt", "attn_v=q9_9"), ("m.txt", "no matrix")): open(at(name), "w").write(text)
    for name, cut in (("cut.dat", data[: len(data) // 2]), ("cut2.dat", data[:3]), ("zero.dat", b"\0\0\0\0"), ("more.dat", data + b"\0" * 50), ("cut.gguf", open(at("m.gguf"), "rb").read()[:900])): open(at(name), "wb").write(cut)
    long = "x" * 130
    values = {
        "--tensor-type": ["attn_v", "=q8_0", "attn_v=", "attn_v=q9_k", "attn_v=", "attn_(v=q8_0", "[=q8_0", "a=b=q8_0", "attn_v=i32x", "*=q4_0", "attn_v=q4_k_m", "attn_v=q8_1", "attn_v=q8_k", "attn_v=i8", "attn_v=f64"],
        "--tensor-type-file": [at("bad.txt"), at("type.txt"), at("missing.txt"), at("empty.txt"), folder],
        "--output-tensor-type": ["q9", "", "q4_k_m", "f8", "q8_1", "i8"],
        "--token-embedding-type": ["q9", "", "q4_k_m", "i32", "f64"],
        "--prune-layers": ["", "a", "-1", "1,", ",1", "1,,2", "1-3", "99", "0x1", "1.5", "99999999999", " 0", "0 ", "0,0"],
        "--override-kv": ["", "k", "k=7", "k=uint:7", "=int:7", "k=int:x", "k=int:", "k=int:4294967296", "k=int:99999999999999999999", "k=bool:yes", "k=bool:", "k=float:", "k=float:x", "k=float:nan", "k=str", f"k=str:{long}", f"{long}=int:1", "k=str:", "k=int:1x", "k=float:1e400", "general.architecture=str:gpt2", "general.architecture=int:3"],
        "--imatrix": [at("missing"), folder, at("m.txt"), at("cut.dat"), at("cut2.dat"), at("zero.dat"), at("more.dat"), at("cut.gguf"), at("in.gguf")],
    }
    runs = [[option, v] for option, all_values in values.items() for v in all_values]
    runs += [["--imatrix", at("m.gguf"), "--include-weights", "nothing"], ["--imatrix", at("m.gguf"), "--exclude-weights", "nothing"], ["--imatrix", at("m.gguf"), "--include-weights", "attn", "--exclude-weights", "ffn"],
             ["--include-weights", "attn"], ["--imatrix"], ["--nonsense"], ["--prune-layers", ",".join(map(str, range(model[3])))]]
    bad = 0
    for o in runs:
        theirs, ours = at("theirs.gguf"), at("ours.gguf")
        for f in (theirs, ours):
            if os.path.exists(f): os.remove(f)
        positional = ["--quant", "Q4_K_M", "-o", ours, "-q"]
        verdict, words = compare([exe, *o, at("in.gguf"), theirs, "Q4_K_M", "1"], [TO_GGUF, at("in.gguf"), *positional, *o])
        if verdict == "both": verdict = "the same" if filecmp.cmp(theirs, ours, False) else "DIFFERENT"
        if verdict not in ("the same",) and os.path.exists(ours) and verdict not in ("DIFFERENT", "ONLY OURS", "looser"): verdict = "LEFT A FILE"
        bad += verdict not in ("the same", "refused", "stricter", "looser")
        print(f"{verdict:12} {' '.join(o).replace(folder, '')[:90]!r:60} {words.replace(folder, '')[:230]}", flush=True)
    for ftype in ("", "Q4", "q4_k_x", "99", "-1", "Q4_K_M,Q4_9"):
        verdict, words = compare([exe, at("in.gguf"), at("theirs.gguf"), ftype, "1"], [TO_GGUF, at("in.gguf"), "--quant", ftype, "-o", at("ours.gguf"), "-q", "--force"])
        bad += verdict not in ("refused", "stricter")
        print(f"{verdict:12} --quant {ftype!r:50} {words.replace(folder, '')[:200]}")
    return bad


def main():
    os.makedirs(WORK, exist_ok=True)
    exe = build()
    if sys.argv[3:4] == ["malformed"]: sys.exit(malformed(exe) > 0)
    count, first = int((sys.argv[3:] or ["200"])[0]), int((sys.argv[4:] or ["0"])[0])
    all_models, tally, used = M.models(), {}, {}
    for seed in range(first, first + count):
        verdict, o = case(seed, exe, all_models)
        tally[verdict] = tally.get(verdict, 0) + 1
        if verdict == "the same":
            for x in o:
                if x.startswith("--"): used[x] = used.get(x, 0) + 1
    print(f"{count} cases: " + ", ".join(f"{n} {v}" for v, n in sorted(tally.items())))
    print("options in equal files: " + ", ".join(f"{k} {n}" for k, n in sorted(used.items())))
    sys.exit(any(v not in ("the same", "refused", "stricter") for v in tally))


main()
