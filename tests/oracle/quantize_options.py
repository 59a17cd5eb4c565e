#!/usr/bin/env python3
"""The headers that llama.cpp's quantizer writes under its options: key order, tensor order, names, types, offsets.

  quantize_options.py write [CASE]     writes fixtures/mixtures/options.json: case -> options, and a hash of each header
  quantize_options.py header CASE OUT  writes the header that llama.cpp makes of a case into OUT

The models are those of mixture.py (their weights are zeros). Needs what mixture.py needs.
"""
import concurrent.futures, ctypes as C, hashlib, json, os, re, struct, sys, tempfile

import mixture as M

INT, FLOAT, BOOL, STR = 0, 1, 2, 3
# case: model, file type, and llama-quantize's options
CASES = {
    "plain": ("odd-rows", "Q4_K_M", {}),
    "pure": ("odd-rows", "Q5_K_M", {"pure": True}),
    "leave-output": ("odd-rows", "Q4_0", {"leave_output_tensor": True}),
    "output-type": ("odd-rows", "Q4_0", {"output_tensor_type": "Q5_1"}),
    "embedding-type": ("odd-rows", "Q4_0", {"token_embedding_type": "F16"}),
    "tied-output-type": ("tiny-tied", "Q4_K_M", {"output_tensor_type": "Q5_K"}),
    "tied-embedding-type": ("tiny-tied", "Q4_K_M", {"token_embedding_type": "Q8_0"}),
    "per-layer-embedding": ("tiny-per-layer", "Q4_K_M", {"token_embedding_type": "Q8_0", "tensor_type": ["per_layer_token=q5_k"]}),
    "both-types": ("odd-rows", "F16", {"output_tensor_type": "Q8_0", "token_embedding_type": "BF16"}),
    "rules": ("tiny-tied", "Q4_K_M", {"tensor_type": ["blk\\.(0|2)\\.ffn_(?!up)=q6_k", "ATTN_V=f16", "attn=q5_0"]}),
    "rules-pure": ("tiny-tied", "Q3_K_M", {"tensor_type": ["ffn_down=iq4_nl"], "pure": True}),
    "rules-unquantized": ("tiny-tied", "BF16", {"tensor_type": ["ffn_down=q8_0"]}),
    "prune-one": ("odd-rows", "Q4_K_M", {"prune_layers": [3]}),
    "prune-first": ("odd-rows", "Q4_K_S", {"prune_layers": [0, 1]}),
    "prune-many": ("odd-rows", "Q3_K_M", {"prune_layers": [2, 5, 8]}),
    "prune-t5": ("t5-small", "Q4_0", {"prune_layers": [1]}),
    "overrides": ("odd-rows", "Q4_K_M", {"override_kv": ["llama.rope.freq_base=float:12345.5", "general.name=str:A name",
                                                      "llama.block_count=int:5", "x.y=bool:true", "n=int:-3", "general.name=str:Another"]}),
    "override-experts": ("tiny-moe", "Q2_K", {"override_kv": ["llama.attention.head_count_kv=int:8", "llama.expert_count=int:4"]}),
    "imatrix": ("odd-rows", "Q4_0", {"imatrix": {"file": "some/dir/" + "x" * 130 + ".dat", "dataset": "wiki", "chunks": 12}}),
    "imatrix-no-chunks": ("odd-rows", "IQ4_XS", {"imatrix": {"file": "m.gguf"}}),
    "imatrix-pruned": ("odd-rows", "IQ3_XXS", {"imatrix": {"file": "m.gguf"}, "prune_layers": [1, 4]}),
    "copy": ("odd-rows", "COPY", {}),
    "copy-pruned": ("odd-rows", "COPY", {"prune_layers": [7]}),
    "file-type-key": ("with-file-type", "COPY", {}),
    "moved-keys": ("with-file-type", "Q8_0", {}),
    "f32": ("tiny-tied", "F32", {}),
    "ones": ("slow-ones", "Q8_0", {}),
    "experts": ("tiny-moe", "IQ3_M", {}),
    "conv": ("rwkv-tiny", "Q4_K_M", {}),
}


def models():
    m = {n: v for n, v in M.models().items() if n in ("odd-rows", "t5-small")}
    m["tiny-tied"] = M.dense("llama", 4, 512, 8, 2, 1024, 300, tied=True)
    m["tiny-moe"] = M.moe("llama", 9, 256, 8, 2, 256, 300, 8, 2)
    L = [0, 2]
    m["tiny-per-layer"] = M.dense("llama", 2, 512, 8, 2, 1024, 300)
    m["tiny-per-layer"][2].append(("per_layer_token_embd.weight", [512, 300], "BF16", None))
    a, k, t = M.dense("llama", 2, 256, 8, 2, 512, 300)
    m["with-file-type"] = (a, {"general.file_type": 32, "general.quantization_version": 1} | k | {"some.array": [3, 1, 2]}, t)
    m["slow-ones"] = M.dense("llama", 1, 256, 8, 2, 512, 300)
    m["slow-ones"][2].extend([("a.weight", [256, 1], "BF16", None), ("b.weight", [256, 2, 1], "BF16", None), ("c.weight", [32, 1, 2], "BF16", None),
                              ("five5", [256, 2], "BF16", None), ("seven77", [256, 2], "BF16", None)])
    m["rwkv-tiny"] = ("rwkv6", M.base("rwkv6", 2, 256, 0, None, 512, "layer_norm_epsilon", **{"rescale_every_n_layers": 6, "wkv.head_size": 64,
        "time_mix_extra_dim": 32, "time_decay_extra_dim": 64}), M.ends(256, 300, False) + [
        (f"blk.{{}}.time_mix_{n}.weight", ne, "BF16", L) for n, ne in (("w1", [256, 160]), ("lerp_fused", [256, 1, 1, 5]), ("key", [256, 256]))])
    return m


class Override(C.Structure):
    class Val(C.Union):
        _fields_ = [("i", C.c_int64), ("f", C.c_double), ("b", C.c_bool), ("s", C.c_char * 128)]
    _fields_ = [("tag", C.c_int), ("key", C.c_char * 128), ("val", Val)]


class Rule(C.Structure):
    _fields_ = [("pattern", C.c_char_p), ("type", C.c_int)]


def override(rule):
    key, typed = rule.split("=", 1); kind, value = typed.split(":", 1); o = Override(key=key.encode())
    if kind == "int": o.tag, o.val.i = INT, int(value)
    elif kind == "float": o.tag, o.val.f = FLOAT, float(value)
    elif kind == "bool": o.tag, o.val.b = BOOL, value == "true"
    else: o.tag, o.val.s = STR, value.encode()[:127]
    return o


def ggml_types():
    from gguf import GGMLQuantizationType as T
    return {t.name: t.value for t in T}


def quantize(lib, src, dst, model, ftype, o):
    types, p, keep = ggml_types(), lib.llama_model_quantize_default_params(), []
    p.nthread, p.only_copy, p.ftype = 1, ftype == "COPY", M.FTYPES.get(ftype, 0)
    p.pure, p.quantize_output = o.get("pure", False), not o.get("leave_output_tensor", False)
    if "output_tensor_type" in o: p.output_type = types[o["output_tensor_type"]]
    if "token_embedding_type" in o: p.embedding_type = types[o["token_embedding_type"]]
    kv = [override(r) for r in o.get("override_kv", [])]
    if "imatrix" in o:  # what tools/quantize/quantize.cpp adds
        i = o["imatrix"]; entries = []
        for name, ne, kind in M.expand(model):
            n = ne[0] * (ne[2] if len(ne) > 2 else 1); data = (C.c_float * n)(*([1.0] * n)); keep.append(data)
            entries.append(M.Entry(name.encode(), data, n))
        kv += [override("quantize.imatrix.file=str:" + i["file"])]
        if "dataset" in i: kv += [override("quantize.imatrix.dataset=str:" + i["dataset"])]
        kv += [override(f"quantize.imatrix.entries_count=int:{len(entries)}")]
        if "chunks" in i: kv += [override(f"quantize.imatrix.chunks_count=int:{i['chunks']}")]
        a = (M.Entry * (len(entries) + 1))(*entries); keep.append(a); p.imatrix = C.cast(a, C.c_void_p)
    if kv:
        a = (Override * (len(kv) + 1))(*kv); keep.append(a); p.kv = C.cast(a, C.c_void_p)
    if "tensor_type" in o:
        rules = [r.rsplit("=", 1) for r in o["tensor_type"]]
        a = (Rule * (len(rules) + 1))(*[Rule(n.lower().encode(), types[t.upper()]) for n, t in rules], Rule(None, 0)); keep.append(a); p.tt = C.cast(a, C.c_void_p)
    if "prune_layers" in o:
        a = (C.c_int32 * (len(o["prune_layers"]) + 1))(*o["prune_layers"], -1); keep.append(a); p.prune = C.cast(a, C.c_void_p)
    M.LOG.clear()
    if lib.llama_model_quantize(src.encode(), dst.encode(), C.byref(p)):
        sys.exit(b"".join(M.LOG).decode()[-800:])


def header(path):
    import gguf
    r = gguf.GGUFReader(path); start = r.data_offset
    with open(path, "rb") as f: return f.read(start)


def answer(case):
    name, ftype, options = CASES[case]
    model = models()[name]
    with tempfile.TemporaryDirectory() as d:
        src, dst = os.path.join(d, "in.gguf"), os.path.join(d, "out.gguf")
        M.write_gguf(model, src)
        quantize(M.library(), src, dst, model, ftype, options)
        return case, header(dst), os.path.getsize(dst)


def main():
    if sys.argv[1:2] == ["header"]:
        with open(sys.argv[3], "wb") as f: f.write(answer(sys.argv[2])[1])
        return
    if sys.argv[1:2] != ["write"]: sys.exit(__doc__)
    only = sys.argv[2:]
    out = {"models": {n: dict(architecture=a, keys=k, tensors=t) for n, (a, k, t) in models().items()}, "cases": {}}
    with concurrent.futures.ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
        for case, head, size in pool.map(answer, only or CASES):
            model, ftype, options = CASES[case]
            out["cases"][case] = dict(model=model, file_type=ftype, options=options, header=hashlib.sha256(head).hexdigest()[:16], size=size)
            print(case, len(head), size, file=sys.stderr)
    if not only:
        with open(os.path.join(M.OUT, "options.json"), "w") as f:
            def table(t): return "{\n" + ",\n".join(json.dumps(k) + ": " + json.dumps(v, separators=(",", ":")) for k, v in t.items()) + "\n}"
            f.write('{"models": ' + table(out["models"]) + ',\n"cases": ' + table(out["cases"]) + "}\n")


if __name__ == "__main__":
    main()
