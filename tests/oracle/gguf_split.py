#!/usr/bin/env python3
"""Split GGUFs against llama-gguf-split itself: the same names and bytes; and llama.cpp loads them.

  LLAMA_CPP=llama.cpp NODE_LLAMA=bins python tests/oracle/gguf_split.py TO_GGUF WORK

Compiles llama.cpp's tools/gguf-split against the libraries of node-llama-cpp (g++). xllamacpp, where installed, loads
a split model and must answer as it does for the whole one. (Where the first tensor alone is larger than the limit,
llama-gguf-split refuses; ours gives every such tensor a part of its own, as that does for all but the first.)
"""
import filecmp, os, shutil, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
TO_GGUF, WORK = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
LLAMA, NODE = os.environ["LLAMA_CPP"], os.environ["NODE_LLAMA"]
BASE = os.path.join(os.path.dirname(os.path.dirname(HERE)), "fixtures", "shakespeare-llama")
sys.path.pop(0)  # this folder: its scripts have names that packages have too
CASES = [["--split-max-tensors", "7"], ["--split-max-tensors", "39"], ["--split-max-size", "2M"], ["--split-max-size", "3M", "--no-tensor-first-split"],
         ["--split-max-size", "1G"], ["--split-max-tensors", "10", "--no-tensor-first-split"]]


def build():
    exe, stubs = os.path.join(WORK, "gguf-split"), os.path.join(WORK, "stubs.cpp")
    with open(stubs, "w") as f:  # what the build writes into build-info.cpp
        f.write('#include "build-info.h"\nint llama_build_number(void) { return 0; }\n' + "".join(f'const char * {n}(void) {{ return ""; }}\n' for n in ("llama_commit", "llama_compiler", "llama_build_target", "llama_build_info")))
    lib = lambda start: next(os.path.join(NODE, f) for f in sorted(os.listdir(NODE)) if f.startswith(start) and f.endswith(".so"))
    flags = [f"-I{LLAMA}/{d}" for d in ("include", "ggml/include", "common", "vendor")]
    libs = [lib(s) for s in ("libllama.v", "libllama-common", "libggml.v", "libggml-base")]
    subprocess.run(["g++", "-O1", "-std=c++17", *flags, f"{LLAMA}/tools/gguf-split/gguf-split.cpp", stubs, "-o", exe, *libs, f"-Wl,-rpath,{NODE}", "-Wl,--allow-shlib-undefined"], check=True)
    return exe


def answer(path):
    import xllamacpp
    p = xllamacpp.CommonParams(); p.model.path = path; p.n_ctx = 256; p.warmup = False
    server = xllamacpp.Server(p)
    return server.handle_completions({"prompt": "The king", "max_tokens": 12, "temperature": 0})["choices"][0]["text"]


def main():
    shutil.rmtree(WORK, ignore_errors=True); os.makedirs(WORK)
    exe, bad, f = build(), 0, os.path.join
    run = lambda *c: subprocess.run(c, check=True, capture_output=True)
    run(TO_GGUF, BASE, "--quant", "bf16", "-o", f(WORK, "whole.gguf"), "-q")
    for case in CASES:
        for d in ("ours", "theirs"): shutil.rmtree(f(WORK, d), ignore_errors=True); os.makedirs(f(WORK, d))
        run(TO_GGUF, BASE, "--quant", "bf16", "-o", f(WORK, "ours", "m.gguf"), "-q", *case)
        run(exe, "--split", *case, f(WORK, "whole.gguf"), f(WORK, "theirs", "m"))
        ours, theirs = (sorted(os.listdir(f(WORK, d))) for d in ("ours", "theirs"))
        same = ours == theirs and all(filecmp.cmp(f(WORK, "ours", n), f(WORK, "theirs", n), False) for n in ours)
        bad += not same
        print(f"{' '.join(case):48} {len(ours)} parts, {'the same' if same else 'DIFFERENT'}", flush=True)
    try:
        import xllamacpp
    except ImportError:
        print("xllamacpp is not installed: loading was not tried")
    else:
        whole, split = answer(f(WORK, "whole.gguf")), answer(f(WORK, "ours", ours[0]))
        bad += whole != split
        print(f"llama.cpp from {len(ours)} parts: {split!r}, from the whole: {whole!r}")
    sys.exit(bad > 0)


main()
