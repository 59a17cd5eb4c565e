#!/usr/bin/env python3
"""Vocabularies that do not fit their embeddings, or that a fine-tune changed: our GGUF against the converter's.

    LLAMA_CPP=... python tests/oracle/vocabulary.py OUT TOKENIZERS BIN [CASE ...]

TOKENIZERS holds the tokenizer files of llama.cpp's own vocabularies in folders of their names, BIN is the program. Each
case is a tiny random model of an architecture with one of these tokenizers, and what was done to its vocabulary; the
reference is the equivalent merged model (merged by PEFT in float32, saved with the tokenizer of the adapter), converted
to f32. Every key must be equal, and every tensor to 1e-6 where something was merged, to the byte elsewhere.
"""
import sys

sys.path.pop(0)  # this folder: its scripts have names that packages have too
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess

os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1")
import numpy
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
OUT, TOKENIZERS, BIN = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), os.path.abspath(sys.argv[3])
WANTED = sys.argv[4:]
LLAMA = os.environ["LLAMA_CPP"]

B = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
MODELS = {
    "llama": ("llama", B, "llama-bpe", 128256), "llama2": ("llama", B, "llama-spm", 32000),
    "llama-tied": ("llama", dict(B, tie_word_embeddings=True), "llama-spm", 32000), "qwen2": ("qwen2", dict(B, tie_word_embeddings=True), "qwen2", 151936),
    "qwen3": ("qwen3", dict(B, head_dim=16, tie_word_embeddings=False), "qwen2", 151936), "gemma2": ("gemma2", dict(B, head_dim=16), "llama-spm", 32000),
    "gemma3": ("gemma3_text", dict(B, head_dim=16), "llama-spm", 32000), "phi3": ("phi3", dict(B, pad_token_id=32000, original_max_position_embeddings=128), "phi-3", 32064),
    "gpt2": ("gpt2", dict(n_embd=64, n_layer=1, n_head=4, n_positions=128), "gpt-2", 50257), "starcoder2": ("starcoder2", dict(B, sliding_window=None), "starcoder", 49152),
    "olmo2": ("olmo2", dict(B, pad_token_id=1), "gpt-2", 50304), "cohere": ("cohere", dict(B, logit_scale=0.0625), "gpt-2", 50304),
    "gptneox": ("gpt_neox", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=128), "gpt-2", 50304),
}
ENDS = {"llama-bpe": (128000, 128001), "llama-spm": (1, 2), "phi-3": (1, 32000), "qwen2": (151643, 151645), "gpt-2": (50256, 50256), "starcoder": (0, 0)}
# Keys that the converter needs and that transformers 5 saves no more, and the converter reading config.json itself:
# transformers 5 takes such keys out of what it hands over.
OLDER = {"gpt2": {"n_ctx": 128}, "gptneox": {"rotary_pct": 0.25}}
CONVERT = """
import runpy, sys, transformers
def refuse(*_, **__):
    raise OSError("read config.json as it is")
transformers.AutoConfig.from_pretrained = refuse
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# llama.cpp takes no head of its own for these: their embeddings are trained tied.
HEADLESS = ("gemma2", "cohere")
NEW = ["<tool>", "</tool>", "<think>"], ["plain_word", " spaced"]


def base(name, folder, extra=0):
    kind, settings, tokenizer, vocab = MODELS[name]
    bos, eos = ENDS[tokenizer]
    torch.manual_seed(len(name) + extra)
    m = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=vocab + extra, bos_token_id=bos, eos_token_id=eos, **settings))
    for n, p in m.named_parameters():
        p.data = (1.0 if "norm" in n or "ln_" in n else 0.0) + 0.05 * torch.randn(p.shape)
    m.tie_weights()
    m.to(torch.bfloat16).save_pretrained(folder)
    for f in (TOKENIZERS / tokenizer).iterdir():
        shutil.copy(f, folder)


def tokenizer_with(folder, source, special, plain):
    t = AutoTokenizer.from_pretrained(source)
    t.add_special_tokens({"additional_special_tokens": special})
    t.add_tokens(plain)
    t.save_pretrained(folder)
    return t


def with_pieces(folder, model):
    """Puts a tokenizer.model beside a tokenizer that transformers 5 saved without it, and lists the tokens that it lacks
    where version 4 listed them."""
    shutil.copy(model, folder)
    path = folder / "tokenizer_config.json"
    whole = json.loads((folder / "tokenizer.json").read_text())
    added = [t for t in whole["added_tokens"] if t["content"] not in whole["model"]["vocab"]]
    told = {"added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added}}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def adapt(source, adapter, reference, tokens=None, rows=None, saved=None, tie=False, targets="all-linear"):
    """An adapter in one folder, the merged model in the other."""
    m = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if tokens:
        t = tokenizer_with(adapter, source, *tokens)
        if rows:
            m.resize_token_embeddings(len(t), pad_to_multiple_of=rows if rows > 1 else None)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=saved, ensure_weight_tying=tie, task_type="CAUSAL_LM")
    p = get_peft_model(m, config)
    torch.manual_seed(9)
    for n, w in p.named_parameters():
        if "lora_" in n or "modules_to_save" in n:
            w.data = 0.05 * torch.randn(w.shape)
    p.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)
    told = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(told | {"base_model_name_or_path": str(source)}))
    merged = p.merge_and_unload()
    state = {k: v.contiguous().clone() for k, v in merged.state_dict().items() if not k.endswith((".attn.bias", ".masked_bias"))}
    embedding, head = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    tied = torch.equal(embedding, head)
    merged.config.tie_word_embeddings = tied
    merged.config.dtype = torch.float32
    merged.config.save_pretrained(reference)
    if tied:
        state = {k: v for k, v in state.items() if k not in ("lm_head.weight", "embed_out.weight")}
    save_file(state, reference / "model.safetensors", metadata={"format": "pt"})
    for f in (adapter if tokens else source).iterdir():
        if "token" in f.name or f.name in ("vocab.json", "merges.txt", "chat_template.jinja"):
            shutil.copy(f, reference)
    pieces = source / "tokenizer.model"
    if pieces.exists() and not (reference / "tokenizer.model").exists():
        with_pieces(reference, pieces)


CASES = {
    "plain": dict(extra=0), "padded": dict(extra=70), "padded-lora": dict(extra=70, adapt={}), "own-tokens": dict(extra=70, adapt=dict(tokens=NEW)),
    "grown": dict(extra=0, adapt=dict(tokens=NEW, rows=1, saved=True)), "grown-padded": dict(extra=0, adapt=dict(tokens=NEW, rows=64, saved=True)),
    "grown-in-padding": dict(extra=200, adapt=dict(tokens=NEW, rows=1, saved=True)), "head": dict(extra=0, adapt=dict(saved="head")),
}


def run(*command):
    r = subprocess.run(command, capture_output=True, text=True)
    return r.returncode, (r.stdout + r.stderr).strip().splitlines()[-1:]


def parse(path):
    """Keys to (type, value) and tensors to values, as a GGUF holds them: gguf-py needs a minute for a large vocabulary."""
    data, at = memoryview(path.read_bytes()), 0

    def take(form):
        nonlocal at
        found = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return found

    def text():
        nonlocal at
        n = take("Q")[0]
        at += n
        return bytes(data[at - n : at])

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            item, n = take("IQ")
            return item, [text() for _ in range(n)] if item == 8 else list(take(f"{n}{SCALARS[item]}"))
        return take(SCALARS[kind])[0]

    magic, version, tensors, keys = take("4sIQQ")
    assert (magic, version) == (b"GGUF", 3), path
    fields = {}
    for _ in range(keys):
        name, kind = text().decode(), take("I")[0]
        fields[name] = kind, value(kind)
    placed = {}
    for _ in range(tensors):
        name, dims = text().decode(), take("I")[0]
        shape, (kind, offset) = take(f"{dims}Q"), take("IQ")
        assert kind == 0, f"{name} of {path} is not f32"
        placed[name] = shape, offset
    at = -(-at // 32) * 32
    return fields, {n: numpy.frombuffer(data, "<f4", math.prod(s), at + o).reshape(s[::-1]) for n, (s, o) in placed.items()}


SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def compare(ours, theirs):
    (a, mine), (b, their) = parse(ours), parse(theirs)
    wrong = []
    for k in dict.fromkeys((*b, *a)):
        x, y = a.get(k), b.get(k)
        if x == y:
            continue
        if x and y and x[0] == y[0] == 9:
            (_, x), (_, y) = x[1], y[1]
            i = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
            wrong.append(f"{k} at {i} of {len(x)} and {len(y)}: {str(x[i : i + 1])[:60]} against {str(y[i : i + 1])[:60]}")
        else:
            wrong.append(f"{k}: {str(x)[:60]} against {str(y)[:60]}")
    if list(a) != list(b) and not wrong:
        wrong.append("keys in another order")
    if list(mine) != list(their):
        wrong.append(f"tensors {sorted(set(mine) ^ set(their)) or 'in another order'}")
    worst = 0.0
    for name in mine.keys() & their.keys():
        x, y = mine[name], their[name]
        if x.shape != y.shape:
            wrong.append(f"{name} is {x.shape} against {y.shape}")
        elif x.tobytes() != y.tobytes():
            worst = max(worst, float(numpy.linalg.norm(x - y) / numpy.linalg.norm(y)))
    if not worst <= 1e-6:
        wrong.append(f"a tensor differs by {worst:.1e}")
    return "; ".join(wrong) or f"equal, tensors to {worst:.1e}"


def main():
    bad, alone, equal = 0, 0, 0
    for model in MODELS:
        for case, how in CASES.items():
            name = f"{model}-{case}"
            if WANTED and not any(w in name for w in WANTED):
                continue
            shutil.rmtree(OUT, ignore_errors=True)
            source, adapter, reference = OUT / "base" / "Tiny-Base-1B", OUT / "a" / "Tiny-Tuned-1B", OUT / "b" / "Tiny-Tuned-1B"
            for folder in (source, adapter, reference):
                folder.mkdir(parents=True)
            base(model, source, how["extra"])
            given, converted = [str(source)], source
            if "adapt" in how:
                options = dict(how["adapt"])
                m = AutoModelForCausalLM.from_pretrained(source)
                head = next(n for n, p in m.named_modules() if p is m.get_output_embeddings())
                embedding = next(n for n, p in m.named_modules() if p is m.get_input_embeddings()).split(".")[-1]
                if "saved" in options:
                    options["saved"] = [head] if options["saved"] == "head" else [embedding, head]
                    if model in HEADLESS and len(options["saved"]) == 2:
                        options |= {"saved": [embedding], "tie": True}
                adapt(source, adapter, reference, **options)
                given, converted = [str(adapter), "--base", str(source)], reference
            for path in (source / "config.json", reference / "config.json"):
                if path.exists():
                    path.write_text(json.dumps(json.loads(path.read_text()) | OLDER.get(model, {})))
            ours, theirs = OUT / "ours.gguf", OUT / "theirs.gguf"
            code, last = run(BIN, *given, "--quant", "f32", "-o", str(ours), "--force", "-q")
            refused, why = run(sys.executable, *(["-c", CONVERT] if model in OLDER else []), LLAMA + "/convert_hf_to_gguf.py", str(converted), "--outfile", str(theirs), "--outtype", "f32")
            if code or refused:
                line = f"ours: {last if code else 'converts'}; the converter: {why if refused else 'converts'}"
                lost = model in HEADLESS and case == "head" and "the change would be lost" in str(last)
                if lost and not refused and "output.weight" not in parse(theirs)[1]:
                    line = f"refused, the converter leaves the trained head out: {last[0]}"
                else:
                    bad += code != 0 and refused == 0
                    alone += refused != 0
            else:
                line = compare(ours, theirs)
                bad += not line.startswith("equal")
                equal += line.startswith("equal")
            print(f"{name:28} {line}", flush=True)
    print(f"{equal} equal, {bad} differ, {alone} without a file of the converter")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
