#!/usr/bin/env python3
"""Random PyTorch files with their values, and files that no reader may trust: python tests/oracle/torch_wide.py OUT [SEED]

OUT/N.bin is what torch.save makes of a random state dict (both forms, wrapped or not, views of shared storages, every
element type), OUT/N.safetensors the same values as f32. OUT/refused/ holds pickles with code, opcodes that no state dict
needs, numbers out of range, nesting and lengths without end. `cargo test --release --test source_torch` reads the
folder that TO_GGUF_TORCH_CASES names.
"""
import sys

sys.path.pop(0)  # this folder: its scripts have names that packages have too
import collections
import pathlib
import random
import struct
import zipfile

import torch
from safetensors.torch import save_file

OUT = pathlib.Path(sys.argv[1])
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
random.seed(SEED)
torch.manual_seed(SEED)
pick = random.choice

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
OTHERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32]


def values(shape, dtype):
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    if dtype.is_floating_point:
        return (torch.randn(shape) * 10 ** random.uniform(-3, 3)).clamp(-400, 400).to(dtype)
    return torch.randint(0 if dtype in (torch.uint8, torch.uint16, torch.uint32, torch.bool) else -100, 100, shape).to(dtype)


def view(t):
    """Some view of the tensor."""
    for _ in range(random.randrange(3)):
        d = random.randrange(t.dim()) if t.dim() else 0
        kind = pick(("slice", "step", "transpose", "expand", "permute", "flat", "unsqueeze", "diagonal"))
        if kind == "slice" and t.dim() and t.shape[d]:
            a = random.randrange(t.shape[d])
            t = t.narrow(d, a, random.randrange(1, t.shape[d] - a + 1))
        elif kind == "step" and t.dim():
            t = t[(slice(None),) * d + (slice(random.randrange(3), None, random.randrange(1, 5)),)]
        elif kind == "transpose" and t.dim() > 1:
            t = t.transpose(d, random.randrange(t.dim()))
        elif kind == "expand":
            t = t.unsqueeze(d).expand(*t.shape[:d], 3, *t.shape[d:])
        elif kind == "permute":
            t = t.permute(random.sample(range(t.dim()), t.dim()))
        elif kind == "flat" and t.is_contiguous():
            t = t.view(-1)
        elif kind == "unsqueeze":
            t = t.unsqueeze(random.randrange(t.dim() + 1))
        elif kind == "diagonal" and t.dim() == 2:
            t = t.diagonal()
    return t


def state_dict():
    state = collections.OrderedDict() if random.random() < 0.7 else {}
    bases = [values([random.randrange(1, 9) for _ in range(random.randrange(1, 4))], pick(FLOATS + OTHERS)) for _ in range(6)]
    for i in range(random.randrange(1, 24)):
        t = view(pick(bases)) if random.random() < 0.8 else values(pick(([], [0], [0, 3], [1], [2, 1, 3])), pick(FLOATS))
        if t.dtype in FLOATS and random.random() < 0.2:
            t = torch.nn.Parameter(t)
        state[f"layer.{i}.{pick(('weight', 'bias', 'größe'))}"] = t
    return state


def wrapped(state):
    kind = pick(("plain", "plain", "plain", "state_dict", "model_state_dict", "model", "module"))
    if kind == "plain":
        return state
    beside = {"epoch": 3, "lr": 0.5, "name": "run", "best": None, "ok": True, "steps": [1, 2, (3, 4)], "big": 2**70}
    return dict(random.sample(sorted(beside.items()), 4)) | {kind: state}


def u(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def number(n):
    return b"J" + struct.pack("<i", n) if -(2**31) <= n < 2**31 else b"\x8a\x09" + n.to_bytes(9, "little", signed=True)


def tensor(size=(2,), stride=(1,), offset=0, key="0", kind=b"ctorch\nFloatStorage\n", count=4):
    many = lambda ns: b"(" + b"".join(map(number, ns)) + b"t"
    storage = b"(" + u("storage") + kind + u(key) + u("cpu") + number(count) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + many(size) + many(stride) + b"\x89ccollections\nOrderedDict\n)RtR"


def state(item):
    return b"\x80\x02}(" + u("w") + item + b"u."


def hostile():
    call = lambda name: b"c" + name + b"\n(" + u("true") + b"tR"
    for name in (b"os\nsystem", b"posix\nsystem", b"builtins\neval", b"builtins\n__import__", b"subprocess\nPopen", b"torch\nload", b"torch._utils\n_import_dotted_name",
                 b"torch\nhub.load", b"collections\nnamedtuple", b"torch.storage\n_load_from_bytes", b"torch._utils\n_rebuild_wrapper_subclass", b"numpy.core.multiarray\n_reconstruct"):
        yield "global-" + name.decode().replace("\n", "."), state(call(name))
    codes = {"stack_global": u("os") + u("system") + b"\x93" + b"(" + u("true") + b"tR", "inst": b"(" + u("true") + b"ios\nsystem\n", "obj": b"(cos\nsystem\n" + u("true") + b"o",
             "newobj": b"cos\nsystem\n(" + u("true") + b"t\x81", "newobj_ex": b"cos\nsystem\n(" + u("true") + b"t}\x92", "ext1": b"\x82\x01", "ext2": b"\x83\x01\x00",
             "ext4": b"\x84\x01\x00\x00\x00", "persid": b"Pkey\n", "string": b"S'a'\n", "unicode": b"Va\n", "int": b"I1\n", "long": b"L1L\n", "float": b"F1.5\n",
             "buffer": b"\x97", "readonly": b"N\x98", "dup": b"N2", "pop": b"NN0", "pop_mark": b"(NN1", "put": b"Np0\n", "get": b"g0\n", "unknown": b"\xff"}
    for name, code in codes.items():
        yield "opcode-" + name, state(code) if name not in ("dup", "pop_mark") else b"\x80\x02" + code + b"."
    yield "get-nothing", state(b"h\x07")
    yield "reduce-nothing", b"\x80\x02R."
    yield "reduce-a-list", state(b"](" + u("x") + b"tR")
    yield "append-to-none", state(b"NNa")
    yield "items-of-a-tuple", state(b")(NNu")
    yield "no-stop", state(tensor())[:-1]
    yield "empty", b""
    yield "stop", b"."
    yield "only-proto", b"\x80\x02"
    yield "protocol-9", b"\x80\x09" + state(tensor())[2:]
    yield "not-a-dict", b"\x80\x02]."
    yield "long-text", state(b"X\xff\xff\xff\xff")
    yield "long-long", state(b"\x8b\xff\xff\xff\x7f")
    yield "text-no-utf8", state(b"X\x02\x00\x00\x00\xff\xfe")
    yield "deep-tuples", state(b"N" + b"\x85" * 3_000_000)
    yield "deep-lists", state(b"]" * 1_000_000 + b"a" * 999_999)
    yield "list-in-itself", state(b"]q\x00h\x00a")
    yield "dict-in-itself", b"\x80\x02}q\x00(" + u("state_dict") + b"h\x00u."
    yield "marks", b"\x80\x02" + b"(" * 1_000_000 + b"."
    for name, item in {
        "size-negative": tensor(size=(-2,)), "stride-negative": tensor(stride=(-1,)), "offset-negative": tensor(offset=-1), "beyond": tensor(size=(5,)), "offset-beyond": tensor(offset=3),
        "stride-beyond": tensor(stride=(9,)), "count-beyond": tensor(count=400), "size-huge": tensor(size=(2**62, 8)), "size-wraps": tensor(size=(2**32, 2**32), stride=(0, 0)),
        "stride-huge": tensor(stride=(2**62,)), "ranks-differ": tensor(size=(2, 2)), "no-storage": tensor(key="7"), "key-up": tensor(key="../../etc/passwd"),
        "complex": tensor(kind=b"ctorch\nComplexFloatStorage\n", count=2), "quantized": tensor(kind=b"ctorch\nQInt8Storage\n"), "unknown-storage": tensor(kind=b"cevil\nFloatStorage\n"),
        "none": b"N", "text": u("x"), "storage-alone": b"(" + u("storage") + b"ctorch\nFloatStorage\n" + u("0") + u("cpu") + number(4) + b"tQ",
    }.items():
        yield "tensor-" + name, state(item)


def main():
    (OUT / "refused").mkdir(parents=True, exist_ok=True)
    for i in range(60):
        s = state_dict()
        torch.save(wrapped(s), OUT / f"{i}.bin", _use_new_zipfile_serialization=random.random() < 0.6)
        save_file({k: v.detach().float().contiguous().clone() for k, v in s.items()}, OUT / f"{i}.safetensors")
    for name, pickle in hostile():
        with zipfile.ZipFile(OUT / "refused" / f"{name}.bin", "w") as z:
            z.writestr("archive/data.pkl", pickle)
            z.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
            z.writestr("archive/version", "3\n")
    with zipfile.ZipFile(OUT / "refused" / "deflated.bin", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", state(tensor()))
        z.writestr("archive/data/0", bytes(16))
    torch.save({"w": torch.randn(3).to(torch.complex64)}, OUT / "refused" / "complex-legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"w": torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2))}, OUT / "refused" / "sparse.bin")
    torch.save({"w": torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)}, OUT / "refused" / "quantized.bin")
    torch.save({"w": print}, OUT / "refused" / "function-legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), OUT / "refused" / "module.bin")


main()
