#!/usr/bin/env python3
"""Rebuilds src/arch/config_defaults.json: what transformers adds to a config.json that leaves keys out.

  LLAMA_CPP=... python tests/oracle/config_defaults.py > src/arch/config_defaults.json

Per model_type: the field defaults of its config class (only keys that the converter in LLAMA_CPP reads), other names of
fields, the model_type of a nested text config, whether RoPE fields are standardised and with which base, and which of
head_dim and num_key_value_heads are computed where they are absent (found by asking the class)."""
import dataclasses, glob, json, os, re, sys, warnings
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers
from transformers import CONFIG_MAPPING
transformers.logging.set_verbosity_error(); warnings.simplefilter("ignore")

TYPES = """llama mistral mixtral ministral ministral3 mistral3 qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe
qwen3_5_moe_text qwen2_vl qwen2_5_vl qwen2_vl_text qwen2_5_vl_text qwen3_vl qwen3_vl_text qwen3_vl_moe qwen3_vl_moe_text gemma gemma2 gemma3 gemma3_text
gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text gpt2 gpt_neox gpt_oss phi phi3 phimoe starcoder2 falcon stablelm olmo olmo2 olmo3 olmoe granite granitemoe
granitemoeshared granitemoehybrid cohere cohere2 deepseek_v2 deepseek_v3 glm glm4 glm4_moe smollm3 mamba mamba2 bert roberta xlm-roberta
modernbert t5 mt5 umt5 bloom llama4 llama4_text nemotron nemotron_h lfm2 lfm2_moe arcee apertus exaone4 ernie4_5 ernie4_5_moe hunyuan_v1_dense
hunyuan_v1_moe seed_oss mpt codegen gptj falcon_mamba falcon_h1 jamba minimax dbrx jetmoe bitnet helium dots1 internlm2 internlm3 minicpm3 smolvlm llava
olmo_hybrid flex_olmo bamba zamba2 rwkv jais xverse plamo chatglm gpt_bigcode starcoder opt distilbert nomic_bert electra""".split()

source = "".join(open(f).read() for f in glob.glob(os.environ["LLAMA_CPP"] + "/conversion/*.py"))
wanted = set(re.findall(r"""["']([A-Za-z_][A-Za-z0-9_]*)["']""", source)) | {"use_sliding_window", "sliding_window", "max_window_layers"}
wanted -= {"architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version", "text_config", "vision_config", "audio_config", "model_type", "bias", "score"}

def defaults(cls):
    out = {}
    for f in dataclasses.fields(cls):
        if f.default is not dataclasses.MISSING: v = f.default
        elif f.default_factory is not dataclasses.MISSING: v = f.default_factory()
        else: continue
        if f.name not in wanted: continue
        if isinstance(v, tuple): v = list(v)
        try: json.dumps(v)
        except TypeError: continue
        out[f.name] = v
    return out

def computes(cls, field, **given):
    if field not in {f.name for f in dataclasses.fields(cls)}: return False
    try: return getattr(cls(**given, **{field: None}), field, None) == {"head_dim": 32, "num_key_value_heads": 6}[field]
    except Exception: return False

table = {}
for t in sorted(set(TYPES)):
    try: cls = CONFIG_MAPPING[t]
    except KeyError: continue
    fields = {f.name for f in dataclasses.fields(cls)}
    entry = {"defaults": defaults(cls)}
    heads = {"hidden_size": 192, "num_attention_heads": 6}
    made = [k for k in ("head_dim", "num_key_value_heads") if computes(cls, k, **heads)]
    if made: entry["computed"] = made
    if cls.attribute_map:
        entry["aliases"] = {k: v for k, v in sorted(cls.attribute_map.items()) if k in wanted or v in wanted}
    if "rope_parameters" in fields:
        entry["rope_theta"] = getattr(cls, "default_theta", 10000.0)
        entry["rope_original"] = "original_max_position_embeddings" in fields
    sub = {}
    for key, spec in (cls.sub_configs_defaults or {}).items():
        if key in ("text_config",):
            c = getattr(spec, "config_class", spec); sub = getattr(spec, "model_type", None) or c.model_type
    if sub: entry["text"] = sub
    table[t] = entry
    print(t, *made, file=sys.stderr)
lines = [f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in table.items()]
print('{"": "transformers ' + transformers.__version__ + ', made by tests/oracle/config_defaults.py",\n' + ",\n".join(lines) + "}")
