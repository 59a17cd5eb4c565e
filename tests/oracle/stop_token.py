#!/usr/bin/env python3
"""Lets llama.cpp answer a question with a converted chat model, and checks that the answer ends by itself.

    stop_token.py FOLDER QUESTION [MOST]      FOLDER: a GGUF and its Modelfile, as to-gguf writes them

The prompt is the one of Llama 3's format, as the fixture's TEMPLATE makes it (`to-gguf template` shows it). A small
model repeats itself when it always takes the likeliest token, so it is sampled, with eight seeds: once with the
Modelfile's stop texts on top of the GGUF's end tokens, once with the GGUF's alone. Exit status 1 if an answer contains
a stop text, or if no answer ends before MOST (default 400) tokens. Needs xllamacpp.
"""
import json, pathlib, re, sys
import xllamacpp


def main():
    folder, question = pathlib.Path(sys.argv[1]), sys.argv[2]
    most = int(sys.argv[3]) if len(sys.argv) > 3 else 400
    stops = re.findall(r'^PARAMETER stop "(.*)"$', (folder / "Modelfile").read_text(), re.MULTILINE)
    print("stops:", stops)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(folder.glob("*.gguf")))
    parameters.n_ctx = 512
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    prompt = f"<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    for kind, stop in (("Modelfile's stops", stops), ("GGUF's end tokens", [])):
        ended, lengths = 0, []
        for seed in range(8):
            request = {"prompt": prompt, "max_tokens": most, "temperature": 0.8, "seed": seed, "cache_prompt": False, "stop": stop}
            answer = server.handle_completions(request)
            if "choices" not in answer:
                sys.exit("llama.cpp: " + json.dumps(answer)[:300])
            choice = answer["choices"][0]
            if any(s in choice["text"] for s in stops):
                sys.exit(f"a stop stands in the answer: {choice['text']!r}")
            ended += choice["finish_reason"] == "stop"
            lengths.append(answer["usage"]["completion_tokens"])
        print(f"{kind}: {ended} of 8 answers end by themselves; tokens: {lengths}")
        if not ended:
            sys.exit("no answer ends")


if __name__ == "__main__":
    main()
