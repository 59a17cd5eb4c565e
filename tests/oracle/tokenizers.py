#!/usr/bin/env python3
"""Compares to-gguf's vocabularies with llama.cpp's converter, key by key, order included.

  LLAMA_CPP=… TOKENIZERS=… GGUF_FILE=gguf_file.py tokenizers.py WORK [CASE …]

LLAMA_CPP: a llama.cpp checkout whose convert_hf_to_gguf.py runs under this interpreter. TOKENIZERS: a folder of
tokenizer folders (llama-bpe, llama-spm, qwen2, …). GGUF_FILE: a comparer with parse(). WORK: a scratch folder,
where references are kept. Build first: cargo build --release --example tokenizer_gguf.
"""
import importlib.util
import json
import os
import shutil
import subprocess
import sys

LLAMA, TOKENIZERS = os.environ["LLAMA_CPP"], os.environ["TOKENIZERS"]
spec = importlib.util.spec_from_file_location("gguf_file", os.environ["GGUF_FILE"])
gguf_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gguf_file)
BIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "target/release/examples/tokenizer_gguf")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
BASE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=2048, rms_norm_eps=1e-6, head_dim=64)
GPT2 = dict(n_embd=256, n_layer=2, n_head=4, n_ctx=1024, n_positions=1024, layer_norm_epsilon=1e-5)
T5 = dict(d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4, decoder_start_token_id=0,
          relative_attention_num_buckets=32, layer_norm_epsilon=1e-6, n_positions=512)
BERT = dict(BASE, layer_norm_eps=1e-12, max_position_embeddings=512, type_vocab_size=2)
NEOX = dict(BASE, rotary_pct=0.25, layer_norm_eps=1e-5, use_parallel_residual=True)


def edit(name, change):
    """Changes a JSON file of the model folder."""
    def run(folder):
        path = f"{folder}/{name}"
        data = json.load(open(path, encoding="utf-8")) if os.path.exists(path) else {}
        change(data)
        json.dump(data, open(path, "w", encoding="utf-8"), ensure_ascii=False)
    return run


def write(name, text):
    def run(folder):
        os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
        open(f"{folder}/{name}", "w", encoding="utf-8").write(text)
    return run


def remove(*names):
    return lambda folder: [os.remove(f"{folder}/{n}") for n in names if os.path.exists(f"{folder}/{n}")]


def added(json_data, text, special, id=None, **flags):
    ids = [t["id"] for t in json_data["added_tokens"]] + list(json_data["model"]["vocab"].values())
    json_data["added_tokens"].append(dict(id=max(ids) + 1 if id is None else id, content=text, single_word=False,
                                          lstrip=False, rstrip=False, normalized=False, special=special, **flags))


def split_json(folder):
    """tokenizer.json as vocab.json and merges.txt."""
    model = json.load(open(f"{folder}/tokenizer.json", encoding="utf-8"))["model"]
    json.dump(model["vocab"], open(f"{folder}/vocab.json", "w", encoding="utf-8"), ensure_ascii=False)
    open(f"{folder}/merges.txt", "w", encoding="utf-8").write("#version: 0.2\n" + "\n".join(model["merges"]) + "\n")
    os.remove(f"{folder}/tokenizer.json")


def unigram(name, **options):
    """Trains a small unigram model, in place of the tokenizer's files."""
    def run(folder):
        import sentencepiece
        for f in os.listdir(folder):
            if f != "config.json":
                os.remove(f"{folder}/{f}")
        text = os.path.join(os.path.dirname(BIN), "../../../fixtures/heldout.txt")
        sentencepiece.SentencePieceTrainer.train(input=text, model_prefix=f"{folder}/m", vocab_size=500,
                                                 model_type="unigram", minloglevel=2, **options)
        os.rename(f"{folder}/m.model", f"{folder}/{name}")
        os.remove(f"{folder}/m.vocab")
    return run


# case: class, model_type, kind, tokenizer, config, edits
CASES = {
    "llama": ("LlamaForCausalLM", "llama", "Llama", "llama-bpe", dict(BASE, vocab_size=128256, bos_token_id=128000, eos_token_id=128001)),
    "llama2": ("LlamaForCausalLM", "llama", "Llama", "llama-spm", dict(BASE, vocab_size=32000, bos_token_id=1, eos_token_id=2)),
    "llama2-padded": ("LlamaForCausalLM", "llama", "Llama", "llama-spm", dict(BASE, vocab_size=32064, bos_token_id=1, eos_token_id=2)),
    "llama-granite": ("LlamaForCausalLM", "llama", "Llama", "starcoder", dict(BASE, vocab_size=49152, bos_token_id=0, eos_token_id=0)),
    "codellama": ("LlamaForCausalLM", "llama", "Llama", "llama-spm", dict(BASE, vocab_size=32016, bos_token_id=1, eos_token_id=2, pad_token_id=0)),
    "llama-phi3tok": ("LlamaForCausalLM", "llama", "Llama", "phi-3", dict(BASE, vocab_size=32064, bos_token_id=1, eos_token_id=32000)),
    "mistral": ("MistralForCausalLM", "mistral", "Llama", "llama-spm", dict(BASE, vocab_size=32000, bos_token_id=1, eos_token_id=2)),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", "SpmOrBpe", "qwen2", dict(BASE, vocab_size=151936, bos_token_id=151643, eos_token_id=151643)),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", "SpmOrBpe", "qwen2", dict(BASE, vocab_size=152064, bos_token_id=151643, eos_token_id=[151645, 151643])),
    "gemma": ("GemmaForCausalLM", "gemma", "Gemma", "llama-spm", dict(BASE, vocab_size=32000, bos_token_id=2, eos_token_id=1)),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", "Gemma2", "llama-spm", dict(BASE, vocab_size=32000, sliding_window=512, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)),
    "phi3": ("Phi3ForCausalLM", "phi3", "Phi3", "phi-3", dict(BASE, vocab_size=32064, bos_token_id=1, eos_token_id=32000, pad_token_id=32000, original_max_position_embeddings=2048)),
    "gpt2": ("GPT2LMHeadModel", "gpt2", "Bpe", "gpt-2", dict(GPT2, vocab_size=50257, bos_token_id=50256, eos_token_id=50256)),
    "starcoder2": ("Starcoder2ForCausalLM", "starcoder2", "Bpe", "starcoder", dict(BASE, vocab_size=49160, norm_epsilon=1e-5)),
    "bert": ("BertModel", "bert", "WordPiece", "bert-bge", dict(BERT, vocab_size=30522)),
    "bert-padded": ("BertModel", "bert", "WordPiece", "bert-bge", dict(BERT, vocab_size=30528)),
    "named-templates": ("GPT2LMHeadModel", "gpt2", "Bpe", "gpt-2", dict(GPT2, vocab_size=50304), [
        edit("tokenizer_config.json", lambda c: c.update(chat_template=[dict(name="default", template="A"), dict(name="tool use", template="B")]))]),
    "jinja": ("GPT2LMHeadModel", "gpt2", "Bpe", "gpt-2", dict(GPT2, vocab_size=50304), [
        write("chat_template.jinja", "{{ 'x' }}\n"), write("additional_chat_templates/rag.jinja", "{{ 'rag' }}")]),
    "template-json": ("GPT2LMHeadModel", "gpt2", "Bpe", "gpt-2", dict(GPT2, vocab_size=50304), [
        write("chat_template.json", json.dumps({"chat_template": "{{ 'json' }}"}))]),
    "new-tokens": ("GPT2LMHeadModel", "gpt2", "Bpe", "gpt-2", dict(GPT2, vocab_size=50304), [
        edit("tokenizer.json", lambda j: [added(j, "<tool>", False), added(j, "<|im_end|>", False), added(j, "\u2581\u2581", False), added(j, "café", False), added(j, "[STOP]", True)]),
        edit("tokenizer_config.json", lambda c: c.update(eos_token="<|im_end|>", pad_token="<pad>", mask_token={"content": "[STOP]", "__type": "AddedToken"}))]),
    "bos-eos-template": ("LlamaForCausalLM", "llama", "Llama", "llama-bpe", dict(BASE, vocab_size=128256), [
        edit("tokenizer.json", lambda j: j["post_processor"]["processors"][1].update(
            single=[{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|eot_id|>", "type_id": 0}}],
            special_tokens={t: {"id": t, "ids": [i], "tokens": [t]} for t, i in (("<|begin_of_text|>", 128000), ("<|eot_id|>", 128009))}))]),
    "no-bos": ("LlamaForCausalLM", "llama", "Llama", "llama-bpe", dict(BASE, vocab_size=128256), [
        edit("tokenizer.json", lambda j: j.update(post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}))]),
    "pair-merges": ("GPT2LMHeadModel", "gpt2", "Bpe", "gpt-2", dict(GPT2, vocab_size=50257), [
        edit("tokenizer.json", lambda j: j["model"].update(merges=[m.split(" ") for m in j["model"]["merges"]]))]),
    "add-prefix": ("LlamaForCausalLM", "llama", "Llama", "llama-spm", dict(BASE, vocab_size=32010), [
        edit("tokenizer_config.json", lambda c: c.update(add_prefix_space=False, add_eos_token=True)),
        write("added_tokens.json", json.dumps({"<|im_start|>": 32000, "<|im_end|>": 32001}))]),
    "t5": ("T5ForConditionalGeneration", "t5", "T5", "llama-spm", dict(T5, vocab_size=512, eos_token_id=1, pad_token_id=0), [
        unigram("spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1), write("added_tokens.json", json.dumps({"<extra_id_0>": 500})),
        write("tokenizer_config.json", json.dumps({"eos_token": "</s>"}))]),
    "t5-bpe": ("T5ForConditionalGeneration", "t5", "T5", "llama-spm", dict(T5, vocab_size=32000)),
    "vocab-json": ("GPT2LMHeadModel", "gpt2", "Bpe", "gpt-2", dict(GPT2, vocab_size=50257, bos_token_id=50256, eos_token_id=50256), [
        edit("tokenizer_config.json", lambda c: c.update(tokenizer_class="GPT2Tokenizer")), split_json]),
    "vocab-txt": ("BertModel", "bert", "WordPiece", "bert-bge", dict(BERT, vocab_size=30522), [
        edit("tokenizer_config.json", lambda c: c.update(tokenizer_class="BertTokenizer")), remove("tokenizer.json")]),
    "roberta": ("RobertaModel", "roberta", "Roberta", "gpt-2", dict(BERT, vocab_size=50265, pad_token_id=1), [
        edit("tokenizer.json", lambda j: (added(j, "<s>", True), added(j, "</s>", True), j.update(post_processor={
            "type": "RobertaProcessing", "sep": ["</s>", 50258], "cls": ["<s>", 50257], "trim_offsets": True, "add_prefix_space": False}))),
        edit("tokenizer_config.json", lambda c: (c.pop("bos_token"), c.pop("eos_token"), c.pop("unk_token")))]),
}


NAMED = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "any"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make(name, folder):
    cls, model_type, _, tok, config, *edits = CASES[name]
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    for f in os.listdir(f"{TOKENIZERS}/{tok}"):
        shutil.copyfile(f"{TOKENIZERS}/{tok}/{f}", f"{folder}/{f}")
    json.dump(dict(architectures=[cls], model_type=model_type, **config), open(f"{folder}/config.json", "w"))
    for change in edits[0] if edits else []:
        change(folder)


def compare(ref, cand):
    a, b = gguf_file.parse(ref).kv, gguf_file.parse(cand).kv
    a, b = ({k: v for k, v in kv.items() if k.startswith("tokenizer.")} for kv in (a, b))
    found = [f"missing {k} = {gguf_file.fmt(*a[k][:2])}" for k in a if k not in b]
    found += [f"extra {k} = {gguf_file.fmt(*b[k][:2])}" for k in b if k not in a]
    for k in a:
        if k == "tokenizer.ggml.pre" and a[k][1] == b"any":
            continue
        if k in b and a[k][2] != b[k][2]:
            where = ""
            if a[k][0] == b[k][0] == 9:
                x, y = a[k][1][1], b[k][1][1]
                at = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
                where = f" at {at}: {x[at:at + 1]} against {y[at:at + 1]}"
            found.append(f"{k} differs{where or ': ' + gguf_file.fmt(*a[k][:2]) + ' against ' + gguf_file.fmt(*b[k][:2])}")
    if not found and list(a) != list(b):
        found.append(f"order: {list(a)} against {list(b)}")
    return found


def main():
    work, bad = sys.argv[1], 0
    os.makedirs(work, exist_ok=True)
    names = sys.argv[2:] or list(CASES)
    for name in names:
        folder, ref, cand = (os.path.join(work, name + end) for end in ("", ".ref.gguf", ".gguf"))
        if not os.path.exists(ref):
            make(name, folder)
            args = [f"{LLAMA}/convert_hf_to_gguf.py", folder, "--outfile", ref, "--vocab-only"]
            r = subprocess.run([sys.executable, *args], capture_output=True, text=True)
            if "was not recognized" in r.stderr:  # a changed vocabulary: its other keys can still be compared
                r = subprocess.run([sys.executable, "-c", NAMED, *args], capture_output=True, text=True)
            if r.returncode:
                print(f"{name:18} REFERENCE FAILED {r.stderr.strip().splitlines()[-1][:200]}", flush=True)
                continue
        r = subprocess.run([BIN, folder, CASES[name][2], cand], capture_output=True, text=True)
        found = [r.stderr.strip()] if r.returncode else compare(ref, cand)
        bad += bool(found)
        print(f"{name:18} {'same' if not found else '; '.join(found)[:600]}", flush=True)
    print(f"{len(names) - bad} of {len(names)} agree")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
