#!/usr/bin/env python3
"""Tokenizes llama.cpp's test strings with its runtime and a vocabulary of ours.

  NODE_LLAMA=… tokenize.py X.gguf STRINGS.inp STRINGS.out

NODE_LLAMA: a folder with libllama. STRINGS: llama.cpp's models/ggml-vocab-*.gguf.inp and .out. Prints the strings
whose ids differ and the count of equal ones; exit status 1 if any differs.
"""
import ctypes as C
import glob
import os
import sys


class ModelParams(C.Structure):
    _fields_ = [("devices", C.c_void_p), ("overrides", C.c_void_p), ("n_gpu_layers", C.c_int32), ("split_mode", C.c_int),
                ("load_mode", C.c_int), ("lazy_mode", C.c_int), ("main_gpu", C.c_int32), ("tensor_split", C.c_void_p),
                ("callback", C.c_void_p), ("user_data", C.c_void_p), ("kv", C.c_void_p), ("vocab_only", C.c_bool),
                ("rest", C.c_bool * 7)]


def load(path):
    folder = os.environ["NODE_LLAMA"]
    C.CDLL(os.path.join(folder, "libggml-base.so"), mode=C.RTLD_GLOBAL)
    lib = C.CDLL(sorted(glob.glob(os.path.join(folder, "libllama.v*.so")))[0])
    quiet = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)(lambda *a: None)
    lib.keep = quiet
    if not os.environ.get("VERBOSE"):
        lib.llama_log_set(quiet, None)
    lib.llama_model_default_params.restype = ModelParams
    lib.llama_model_load_from_file.argtypes = [C.c_char_p, ModelParams]
    lib.llama_model_load_from_file.restype = C.c_void_p
    lib.llama_model_get_vocab.argtypes, lib.llama_model_get_vocab.restype = [C.c_void_p], C.c_void_p
    lib.llama_tokenize.argtypes = [C.c_void_p, C.c_char_p, C.c_int32, C.POINTER(C.c_int32), C.c_int32, C.c_bool, C.c_bool]
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(path.encode(), params)
    if not model:
        sys.exit(f"{path}: llama.cpp cannot load it")
    vocab = lib.llama_model_get_vocab(model)

    def tokenize(text, special=False):
        data = text.encode()
        out = (C.c_int32 * (len(data) + 16))()
        n = lib.llama_tokenize(vocab, data, len(data), out, len(out), special, special)
        return list(out[:n])

    return tokenize


if __name__ == "__main__":
    tokenize = load(sys.argv[1])
    texts = open(sys.argv[2], encoding="utf-8", newline="").read().split("\n__ggml_vocab_test__\n")
    wanted = [[int(i) for i in line.split()] for line in open(sys.argv[3], encoding="utf-8").read().split("\n")]
    wanted = wanted[: len(texts)]  # the last line may be empty or missing
    assert len(texts) == len(wanted), (len(texts), len(wanted))
    good = 0
    for text, ids in zip(texts, wanted):
        got = tokenize(text)
        good += got == ids
        if got != ids:
            print(f"{text!r}: {got} instead of {ids}")
    print(f"{good} of {len(texts)} strings")
    sys.exit(good != len(texts))
