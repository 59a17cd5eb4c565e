#!/usr/bin/env python3
"""Writes a golden of tests/arch_golden.rs from a model folder and the GGUF file that convert_hf_to_gguf made of it.

  LLAMA_CPP=... python convert_hf_to_gguf.py MODEL --outfile REF.gguf --outtype bf16
  python tests/oracle/arch_golden.py MODEL REF.gguf > fixtures/arch/NAME.json

The golden holds headers only: config.json, the small files that general.* keys come from, the name, type and shape of each
source tensor, and of the GGUF file all keys but the tokenizer's and all tensors' names, types and shapes."""
import glob, json, os, sys
sys.path.insert(0, os.environ["LLAMA_CPP"] + "/gguf-py")
import gguf
model, ref = sys.argv[1:3]
source = []
for shard in sorted(glob.glob(model + "/model*.safetensors")):
    with open(shard, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    source += [f"{n} {t['dtype']} {t['shape']}".replace(", ", ",") for n, t in sorted(header.items()) if n != "__metadata__"]
reader = gguf.GGUFReader(ref)
keys = []
for field in reader.fields.values():
    if field.name.startswith(("GGUF.", "tokenizer.")): continue
    value = field.contents()
    kind = "[" + field.types[1].name.lower() + "]" if field.types[0] == gguf.GGUFValueType.ARRAY else field.types[0].name.lower()
    keys.append([field.name, kind, value])
tensors = [f"{t.name} {t.tensor_type.name} {[int(n) for n in t.shape]}".replace(", ", ",") for t in reader.tensors]
files = {n: open(f"{model}/{n}").read() for n in ("README.md", "generation_config.json") if os.path.exists(f"{model}/{n}")}
out = {"made_by": "tests/oracle/arch_golden.py, convert_hf_to_gguf --outtype bf16", "folder": os.path.basename(os.path.normpath(model)),
       "config": json.load(open(model + "/config.json")), "files": files}
if os.environ.get("TOKENIZER_ROWS"): out["tokenizer_tokens"] = int(os.environ["TOKENIZER_ROWS"])
text = json.dumps(out, indent=1)[:-2]
line = lambda items: ",\n  ".join(json.dumps(i) for i in items)
print(f'{text},\n "source": [\n  {line(source)}\n ],\n "keys": [\n  {line(keys)}\n ],\n "tensors": [\n  {line(tensors)}\n ]\n}}')
