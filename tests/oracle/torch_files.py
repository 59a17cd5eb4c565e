#!/usr/bin/env python3
"""PyTorch files as torch.save writes them, in both forms, and their values: python tests/oracle/torch_files.py OUT

OUT/zip.bin and OUT/legacy.bin hold views, transposes, every element type, parameters, empty tensors and scalars;
OUT/expected.safetensors holds the same values as f32. OUT/code.bin holds a pickle with a function in it.
"""
import collections
import pathlib
import sys

import torch
from safetensors.torch import save_file

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
base = torch.randn(6, 8)
state = collections.OrderedDict()
state["zz.f32"] = base
state["view"] = base[1:4, 2:7]
state["transposed"] = base.t()
state["step"] = base[::2, ::3]
state["expanded"] = torch.tensor([1.0, 2.0, 3.0]).unsqueeze(1).expand(3, 4)
state["permuted"] = torch.randn(4, 3, 5).permute(2, 0, 1)
state["far"] = torch.randn(3, 40)[:, ::20]
state["bf16"] = torch.randn(3, 5).bfloat16()
state["f16"] = torch.randn(5).half()
state["f64"] = torch.randn(2, 2).double()
state["i64"] = torch.arange(5)
state["u8"] = torch.arange(7, dtype=torch.uint8)
state["bool"] = torch.tensor([True, False, True])
state["f8"] = torch.randn(4).to(torch.float8_e4m3fn)
state["u16"] = torch.arange(4).to(torch.uint16)
state["parameter"] = torch.nn.Parameter(torch.randn(2, 3))
state["empty"] = torch.zeros(0, 4)
state["scalar"] = torch.tensor(3.5)
torch.save(state, out / "zip.bin")
torch.save(state, out / "legacy.bin", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "state_dict": state}, out / "checkpoint.pth")
torch.save({"w": torch.ones(2), "f": print}, out / "code.bin")
save_file({k: v.detach().float().contiguous() for k, v in state.items()}, out / "expected.safetensors")
