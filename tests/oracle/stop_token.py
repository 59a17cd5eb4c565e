#!/usr/bin/env python3
"""Lets llama.cpp answer a question with a converted chat model, and checks that the answer ends by itself.

    stop_token.py FOLDER QUESTION [MOST]      FOLDER: a GGUF and its Modelfile, as to-gguf writes them

The prompt is the one of Llama 3's format, as the fixture's TEMPLATE makes it (`to-gguf template` shows it). Twice:
with the Modelfile's stop texts on top of the GGUF's end tokens, and with the GGUF's alone; both must end before MOST
(default 256) tokens. Needs xllamacpp.
"""
import json, pathlib, re, sys
import xllamacpp


def main():
    folder, question = pathlib.Path(sys.argv[1]), sys.argv[2]
    most = int(sys.argv[3]) if len(sys.argv) > 3 else 256
    stops = re.findall(r'^PARAMETER stop "(.*)"$', (folder / "Modelfile").read_text(), re.MULTILINE)
    print("stops:", stops)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(folder.glob("*.gguf")))
    parameters.n_ctx = 512
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    prompt = f"<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ended = True
    for stop in (stops, []):
        request = {"prompt": prompt, "max_tokens": most, "temperature": 0, "cache_prompt": False, "stop": stop}
        answer = server.handle_completions(request)
        if "choices" not in answer:
            sys.exit("llama.cpp: " + json.dumps(answer)[:300])
        choice = answer["choices"][0]
        print(choice["finish_reason"], "after", answer["usage"]["completion_tokens"], "tokens:", repr(choice["text"]))
        ended &= choice["finish_reason"] == "stop"
    sys.exit(not ended)


if __name__ == "__main__":
    main()
