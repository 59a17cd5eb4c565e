#!/usr/bin/env python3
"""Collects published chat templates as .jinja files, one folder per source, for tests/ollama_corpus.rs.

    chat_templates.py OUT [--llama-cpp DIR] [--ollama DIR-OR-REPO] [--unsloth DIR-OR-REPO]

* llama.cpp: `models/templates/*.jinja` of an unpacked source tree.
* Ollama: the Jinja texts of `template/index.json`.
* Unsloth: every entry of CHAT_TEMPLATES in `unsloth/chat_templates.py` whose Jinja is not there already.

Each source is a folder, or a git repository without a work tree (its HEAD is read). The texts stay outside of
the project: only what was measured on them is kept.
"""
import argparse, ast, json, pathlib, re, subprocess


def read(source, path):
    folder = pathlib.Path(source)
    if (folder / path).exists():
        return (folder / path).read_text(encoding="utf-8")
    return subprocess.run(["git", "-C", source, "show", f"HEAD:{path}"], check=True, capture_output=True).stdout.decode()


def llama_cpp(source):
    for file in sorted((pathlib.Path(source) / "models/templates").glob("*.jinja")):
        yield file.stem, file.read_text(encoding="utf-8")


def ollama(source):
    for number, entry in enumerate(json.loads(read(source, "template/index.json"))):
        yield f"{number:02}-{entry['name']}", entry["template"]


def unsloth(source):
    """Evaluates the module's assignments that are made of texts; the rest of the module is not run."""
    known, templates = {}, {}
    tree = ast.parse(read(source, "unsloth/chat_templates.py"))

    def value(node):
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.Name(id=name):
                return known.get(name)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                left, right = value(left), value(right)
                return None if left is None or right is None else left + right
            case ast.Call(func=ast.Attribute(value=inner, attr="replace"), args=arguments):
                inner, arguments = value(inner), [value(a) for a in arguments]
                return None if inner is None or None in arguments else inner.replace(*arguments)
        return None

    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=right):
                known[name] = value(right)
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(id="CHAT_TEMPLATES"), slice=ast.Constant(value=name))],
                value=ast.Tuple(elts=[first, *_]),
            ):
                if (text := value(first)) is not None and text not in templates.values():
                    templates[name] = text
    yield from templates.items()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=pathlib.Path)
    sources = {"llama.cpp": llama_cpp, "ollama": ollama, "unsloth": unsloth}
    for name in sources:
        arguments.add_argument("--" + name.replace(".", "-"), dest=name)
    arguments = vars(arguments.parse_args())
    for name, collect in sources.items():
        if arguments[name] is None:
            continue
        folder = arguments["out"] / name
        folder.mkdir(parents=True, exist_ok=True)
        count = 0
        for file, text in collect(arguments[name]):
            (folder / (re.sub(r"[^\w.-]", "_", file) + ".jinja")).write_text(text, encoding="utf-8", newline="")
            count += 1
        print(f"{name}: {count} templates in {folder}")


if __name__ == "__main__":
    main()
