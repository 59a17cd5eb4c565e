#!/usr/bin/env python3
"""Compacts a survey of published pre-tokenizers into quant-tables/pretokenizers.json.

  pretokenizer_table.py SURVEY.json CONVERTER/conversion/base.py > quant-tables/pretokenizers.json

SURVEY.json: one entry per name that llama.cpp's runtime knows, with `hf` structures (the `pre_tokenizer`
of a published tokenizer.json and its `key`), `same_runtime_behaviour` and `defining_repos[].chkhsh`.
base.py is llama.cpp's converter: its check text and its fingerprint table are read from there.
"""
import json
import re
import sys

survey = json.load(open(sys.argv[1], encoding="utf-8"))
base = open(sys.argv[2], encoding="utf-8").read()
IGNORED = ["bert-bge", "bert-bge-large", "jina-v2-en", "chatglm-spm"]


def unify(text):
    """The regex text with one spelling for CR, LF, TAB and for \\uXXXX."""
    text = text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m.group(1), 16)), text)


def stages(pre):
    if pre["type"] == "Sequence":
        return [s for p in pre["pretokenizers"] for s in stages(p)]
    return [pre]


regexes, structures = {}, {}
for entry in survey:
    for hf in entry["hf"]:
        tokens = re.findall(r"S\(str: \)\S*|\S+", hf["key"])
        flat = stages(hf["pre_tokenizer"])
        assert len(tokens) == len(flat), (entry["name"], hf["key"])
        for token, stage in zip(tokens, flat):
            m = re.fullmatch(r"S\((\w+)\)(/\w+)?", token)
            if not m:
                continue
            assert stage["type"] == "Split", (entry["name"], token, stage)
            text = unify(stage["pattern"]["Regex"])
            assert regexes.setdefault(m.group(1), text) == text, (entry["name"], token, text, regexes[m.group(1)])
        names = structures.setdefault(hf["key"], [])
        if entry["name"] not in names:
            names.append(entry["name"])

groups, seen = [], set()
for entry in survey:
    name = entry["name"]
    if name in seen or name in IGNORED:
        continue
    group = [name] + entry["same_runtime_behaviour"]
    assert not seen & set(group), name
    seen |= set(group)
    groups.append(group)

hashes = {}
for digest, name in re.findall(r'chkhsh == "([0-9a-f]{64})":\n(?:\s*#[^\n]*\n)*\s*res = "([^"]+)"', base):
    hashes[digest] = name  # the converter's tests run in order, the last one wins
check = eval(re.search(r"chktxt = ('(?:[^'\\]|\\.)*')", base).group(1))

json.dump(
    {
        "about": "Pre-tokenizers of llama.cpp: regexes by short name, tokenizer.json structures by key, names of equal "
        "runtime behaviour, and the converter's fingerprints (sha256 of the ids of check_text), which only decide "
        "between names of one structure. Made by tests/oracle/pretokenizer_table.py from llama.cpp of autumn 2026.",
        "check_text": check,
        "regexes": dict(sorted(regexes.items())),
        "structures": dict(sorted(structures.items())),
        "groups": groups,
        "ignored": IGNORED,
        "fingerprints": dict(sorted(hashes.items(), key=lambda x: x[1])),
    },
    sys.stdout,
    ensure_ascii=False,
    indent=1,
)
print()
