#!/usr/bin/env python3
"""Has jinja2, as transformers sets it up, render what our minijinja rendered, and compares.

    CHAT_TEMPLATES=FOLDER CHAT_TEMPLATES_DUMP=FILE cargo test --release --test ollama_corpus renderings
    jinja2_equal.py FILE

Needs transformers. Prints, per template that differs, how many texts differ, and the first; then the sums. Where
jinja2 raises, transformers cannot render the conversation, and there is nothing to be equal to.
"""
import collections, datetime, json, sys

sys.path.pop(0)  # the scripts beside this one have names of Python's own modules
from transformers.utils.chat_template_utils import _compile_jinja_template

DAY = datetime.datetime(2026, 3, 7)


def main():
    counts = collections.Counter()
    template = name = None
    first = {}
    differing = collections.Counter()
    for line in open(sys.argv[1], encoding="utf-8"):
        case = json.loads(line)
        if "template" in case:
            name = case["name"]
            try:
                template = _compile_jinja_template(case["template"])
                template.globals["strftime_now"] = DAY.strftime
            except Exception as error:
                template = None
                print(f"{name}: jinja2 does not compile it: {error}")
            continue
        if template is None:
            continue
        try:
            expected = template.render(**case["context"])
        except Exception as error:
            counts["raised by both" if case["text"] is None else "raised by jinja2 only"] += 1
            continue
        if expected == case["text"]:
            counts["equal"] += 1
        else:
            counts["different"] += 1
            differing[name] += 1
            if name not in first:
                got = case["text"]
                at = 0 if got is None else next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), min(len(got), len(expected)))
                first[name] = f"{expected[at:at + 60]!r} by jinja2, {None if got is None else got[at:at + 60]!r} by ours"
    for name, count in differing.items():
        print(f"{name}: {count} different; {first[name]}")
    print(", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
