#!/usr/bin/env python3
"""Merged models next to PEFT's merge_and_unload().save_pretrained, and packed ones next to bitsandbytes.

  python tests/oracle/merged.py BINARY FOLDER [NAME ...]   all cases, or those whose name contains NAME
  python tests/oracle/merged.py --golden fixtures/nf4      what cargo test compares with: weights, and bitsandbytes' tensors

BINARY is target/release/to-gguf, FOLDER is for scratch files. Needs torch, transformers (5.23), peft, bitsandbytes and
accelerate. Each case is a tiny random model with a random adapter. Asked of merged_16bit: the same files, names, dtypes,
shapes, order and index as save_pretrained; equal bytes but for 0.1 % of elements that another order of sums rounds the
other way (PEFT merges in the model's type, and rounds some additions twice: --merge-dtype does the same; without it, the
reference is PEFT's merge in float32, as it is for stacked experts); the same logits from from_pretrained. Asked of merged_4bit: every tensor equals what bitsandbytes makes of the
16-bit result, the same config, the same logits. PyTorch sums the maxima of blocks in an order that depends on the number
of threads, so one thread is the reference.
"""
import importlib.util, json, os, shutil, subprocess, sys, warnings

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TORCHDYNAMO_DISABLE="1")
warnings.filterwarnings("ignore")
here = os.path.dirname(os.path.abspath(__file__))
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != here]  # its scripts have names that packages have too
import torch, transformers, peft
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

spec = importlib.util.spec_from_file_location("adapters_oracle", os.path.join(here, "adapters.py"))
argv, sys.argv, path = sys.argv, sys.argv[:1], list(sys.path)
adapters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(adapters)
sys.argv, sys.path = argv, path
torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()

GOLDEN = sys.argv[1] == "--golden"
BINARY, ROOT, WANTED = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3:]
B = adapters.B
CLASSES = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM, "bert-base": AutoModel}
MODELS = {
    **{k: adapters.MODELS[k] for k in ("llama", "llama-tied", "llama-bias", "qwen2", "qwen3", "gemma", "gemma3", "phi3", "gpt2", "gptneox", "mixtral", "qwen3moe", "qwen2moe", "gptoss", "granitemoe")},
    "mistral": ("mistral", dict(B, sliding_window=32)),
    "odd": ("llama", dict(B, hidden_size=44, intermediate_size=75, num_attention_heads=2, num_key_value_heads=1)),
    "falcon": ("falcon", dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=160)),
    "bloom": ("bloom", dict(hidden_size=64, n_layer=2, n_head=4, vocab_size=160)),
    "opt": ("opt", dict(hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=160, max_position_embeddings=64, word_embed_proj_dim=64)),
    "starcoder2": ("starcoder2", dict(B)),
    "phi": ("phi", dict(B)),
    "cohere": ("cohere", dict(B)),
    "olmo2": ("olmo2", dict(B)),
    "glm4": ("glm4", dict(B, head_dim=16, pad_token_id=0)),
    "granite": ("granite", dict(B)),
    "deepseek": ("deepseek_v3", dict(B, num_key_value_heads=4, moe_intermediate_size=48, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=32, qk_rope_head_dim=8, v_head_dim=16, qk_nope_head_dim=16)),
    "bert": ("bert", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=160)),
    "bert-base": ("bert", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=160)),
    "t5": ("t5", dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, vocab_size=160)),
}
LINEAR = dict(r=4, lora_alpha=6, target_modules="all-linear")


def cases():
    for arch in MODELS:
        yield arch, arch, {}, {}
    yield "llama-f16", "llama", {}, dict(dtype="f16")
    yield "gptoss-f16", "gptoss", {}, dict(dtype="f16")
    yield "t5-f16", "t5", {}, dict(dtype="f16")
    yield "llama-f32", "llama", {}, dict(dtype="f32")
    for arch in ("llama", "qwen2", "mixtral", "qwen3moe", "gpt2", "deepseek", "bert", "gptneox"):
        yield f"{arch}-sharded", arch, {}, dict(shard="40KB")
    yield "llama-shards-of-one", "llama", {}, dict(shard="1KB")
    yield "llama-head", "llama", dict(target_modules=adapters.ALL + ["lm_head", "embed_tokens"]), {}
    yield "llama-resized", "llama", dict(target_modules=adapters.ALL, modules_to_save=["embed_tokens", "lm_head"]), dict(resize=168)
    yield "qwen2-head", "qwen2", dict(target_modules=["q_proj", "lm_head"]), dict(untie=True)
    yield "qwen2-saved-head", "qwen2", dict(target_modules=["q_proj"], modules_to_save=["lm_head"]), dict(untie=True)
    yield "gemma-saved", "gemma", dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True), {}
    yield "qwen2-resized", "qwen2", dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True), dict(resize=170)
    yield "llama-rslora-dora", "llama", dict(use_rslora=True, use_dora=True, target_modules=adapters.ALL), {}
    yield "qwen2-stored-head", "qwen2", {}, dict(store_head=True)
    yield "qwen2-bin", "qwen2", {}, dict(to_bin=True)
    yield "llama-merge-bf16", "llama", {}, dict(options=["--merge-dtype", "bf16"])
    yield "llama-nf4-base", "llama", {}, dict(pack="nf4")
    yield "llama-fp8-base", "llama", {}, dict(pack="fp8")


DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def load(arch, folder, **kw):
    return CLASSES.get(arch, AutoModelForCausalLM).from_pretrained(folder, **kw).eval()


def make_base(arch, folder, seed):
    kind, kw = MODELS[arch]
    config = AutoConfig.for_model(kind, **dict(dict(bos_token_id=1, eos_token_id=2), **kw))
    torch.manual_seed(seed)
    model = CLASSES.get(arch, AutoModelForCausalLM).from_config(config)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_((1.0 if p.dim() == 1 and "norm" in n.lower() else 0.0) + 0.05 * torch.randn(p.shape, generator=g))
    model.to(torch.bfloat16).save_pretrained(folder)


def run(*args):
    done = subprocess.run([BINARY, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def files(folder):
    return sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))


def read(folder):
    return {k: v for f in files(folder) for k, v in load_file(os.path.join(folder, f)).items()}


def logits(arch, folder, **kw):
    model = load(arch, folder, **kw)
    ids = torch.arange(12).reshape(2, 6) * 7 % 150
    extra = dict(decoder_input_ids=ids) if arch == "t5" else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra)[0].float()


def same_files(ours, ref, tolerance, compare_header=True):
    assert files(ours) == files(ref), (files(ours), files(ref))
    worst = 0
    for f in files(ref):
        a, b = load_file(os.path.join(ours, f)), load_file(os.path.join(ref, f))
        assert set(a) == set(b), (f, sorted(set(a) ^ set(b))[:6])
        if compare_header:
            with open(os.path.join(ours, f), "rb") as x, open(os.path.join(ref, f), "rb") as y:
                x, y = (h.read(int.from_bytes(h.read(8), "little")) for h in (x, y))
                assert x == y, "headers differ"
        with safe_open(os.path.join(ours, f), "pt") as h:
            assert h.metadata() == {"format": "pt"}
        for k in b:
            assert (a[k].dtype, a[k].shape) == (b[k].dtype, b[k].shape), (k, a[k].dtype, b[k].dtype, a[k].shape, b[k].shape)
            if ".experts." in k and tolerance:  # PEFT rounds the factors of stacked experts to 16 bits first: compared in float32
                continue
            if a[k].dtype == torch.float32 and tolerance:
                assert torch.allclose(a[k], b[k], atol=1e-6 * b[k].abs().max().item(), rtol=1e-6), k
                continue
            bits = torch.int16 if a[k].element_size() == 2 else torch.int32 if a[k].element_size() == 4 else torch.uint8
            differ = (a[k].reshape(-1).view(bits) != b[k].reshape(-1).view(bits)).float().mean().item() if a[k].numel() else 0
            worst = max(worst, differ)
            assert differ <= max(tolerance, 1.5 / max(a[k].numel(), 1) if tolerance else 0), (k, differ)
    index = "model.safetensors.index.json"
    assert os.path.exists(os.path.join(ours, index)) == os.path.exists(os.path.join(ref, index))
    return worst, json_of(ours, index), json_of(ref, index)


def json_of(folder, name):
    path = os.path.join(folder, name)
    return json.load(open(path)) if os.path.exists(path) else None


def configs_differ(ours, ref):
    a, b = json_of(ours, "config.json"), json_of(ref, "config.json")
    for c in (a, b):
        for key in ("_name_or_path", "transformers_version"):
            c.pop(key, None)
    return sorted(k for k in set(a) | set(b) if a.get(k) != b.get(k))


def dequantized(kind, arch, base, packed):
    """A packed copy of a model, and the model that it stands for."""
    if kind == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
        model = load(arch, base, dtype=torch.bfloat16, quantization_config=config, device_map="cpu")
        model.save_pretrained(packed)
        # bitsandbytes' AVX-512 kernel is wrong for rows that are no multiple of a block; this is its plain one.
        from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
        import bitsandbytes.functional as F
        plain = load(arch, base, dtype=torch.bfloat16)
        for name, module in model.named_modules():
            if hasattr(getattr(module, "weight", None), "quant_state") and module.weight.quant_state is not None:
                q, s = module.weight.data, module.weight.quant_state
                absmax = F.dequantize_blockwise(s.absmax, s.state2) + s.offset
                plain.get_submodule(name).weight.data = _dequantize_4bit_compute(q.reshape(-1), absmax, s.code, 64, s.shape, torch.bfloat16)
        return plain
    tensors, plain = read(base), load(arch, base, dtype=torch.bfloat16)
    out = {}
    for k, v in tensors.items():
        if v.dim() == 2 and "proj" in k:
            scale = v.float().abs().max() / 448
            q = (v.float() / scale).to(torch.float8_e4m3fn)
            out[k], out[k + "_scale_inv"] = q, scale.reshape(1, 1)
            plain.get_parameter(k).data = (q.float() * scale).to(torch.bfloat16)
        else:
            out[k] = v
    os.makedirs(packed)
    save_file(out, os.path.join(packed, "model.safetensors"), metadata={"format": "pt"})
    config = json_of(base, "config.json")
    config["quantization_config"] = dict(quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128], modules_to_not_convert=["lm_head"])
    json.dump(config, open(os.path.join(packed, "config.json"), "w"))
    return plain


def check(name, arch, config, options, seed):
    root = os.path.join(ROOT, name)
    shutil.rmtree(root, ignore_errors=True)
    base, adapter, ref, out, ref4, out4 = (os.path.join(root, n) for n in ("base", "adapter", "ref", "out", "ref4", "out4"))
    make_base(arch, base, seed)
    dtype = DTYPES[options.get("dtype", "bf16")]
    source = base
    if options.get("pack"):
        source = os.path.join(root, "packed")
        dequantized(options["pack"], arch, base, source).save_pretrained(base)
    if options.get("store_head") or options.get("to_bin"):
        t = read(base)
        t["lm_head.weight"] = t["model.embed_tokens.weight"] if options.get("to_bin") else t["model.embed_tokens.weight"].clone()
        if options.get("to_bin"):
            torch.save(t, os.path.join(base, "pytorch_model.bin"))
            os.remove(os.path.join(base, "model.safetensors"))
        else:
            save_file(t, os.path.join(base, "model.safetensors"), metadata={"format": "pt"})

    def start(dtype):
        model = load(arch, base, dtype=dtype)
        if options.get("untie"):
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
        if options.get("resize"):
            torch.manual_seed(seed)
            model.resize_token_embeddings(options["resize"], mean_resizing=False)
        return model

    model = get_peft_model(start(torch.float32), peft.LoraConfig(**{**LINEAR, **config}))
    adapters.randomize(model, seed + 1)
    model.save_pretrained(adapter)
    shard = options.get("shard")
    merged = PeftModel.from_pretrained(start(dtype), adapter).merge_and_unload()
    merged.save_pretrained(ref, **(dict(max_shard_size=shard) if shard else {}))
    args = [source, "--lora", adapter, "--save-method", "merged_16bit", "-o", out] + options.get("options", [])
    args += ["--dtype", options["dtype"]] if options.get("dtype") else []
    args += ["--max-shard-size", shard] if shard else []
    exact = os.path.join(root, "exact")
    run(*args)
    shutil.move(out, exact)
    same_dtype = options.get("dtype", "bf16")
    args += ["--merge-dtype", same_dtype] if "--merge-dtype" not in args else []
    run(*args)
    worst, index, ref_index = same_files(out, ref, 1e-3)
    # Without --merge-dtype: nothing but the result is rounded.
    in_f32 = PeftModel.from_pretrained(start(torch.float32), adapter).merge_and_unload()
    in_f32.save_pretrained(os.path.join(root, "f32"))
    for k, v in read(os.path.join(root, "f32")).items():
        ours = read(exact)[k]
        differ = (ours != v.to(ours.dtype)).float().mean().item()
        close = torch.allclose(ours.float(), v.float(), atol=1e-6 * v.abs().max().item(), rtol=1e-6)
        assert close if ours.dtype == torch.float32 else differ <= max(1e-3, 1.5 / max(v.numel(), 1)), (k, differ, "in f32")
    assert index == ref_index, (index["metadata"], ref_index["metadata"], {k for k in ref_index["weight_map"] if index["weight_map"].get(k) != ref_index["weight_map"][k]})
    config_diff = configs_differ(out, ref)
    a, b = logits(arch, out), logits(arch, ref)
    assert torch.allclose(a, b, atol=0.03 * b.abs().max().item()), (a - b).abs().max()
    text = f"{len(read(ref))} tensors in {len(files(ref))} files, at most {worst:.2%} of a tensor differs, logits by {(a - b).abs().max():.1e}"
    if config_diff:
        text += f", config differs in {config_diff}"

    if dtype == torch.float32 and options.get("dtype") != "f32":
        return text
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    packed = load(arch, out, dtype=dtype, quantization_config=quantization, device_map="cpu")
    packed.save_pretrained(ref4, **(dict(max_shard_size=shard) if shard else {}))
    four = [a if a != "merged_16bit" else "merged_4bit" for a in args]
    four[four.index("-o") + 1] = out4
    done = subprocess.run([BINARY, *four], capture_output=True, text=True)
    if "no linear layer" in done.stderr:
        assert not any("quant_state" in k for k in read(ref4)), "bitsandbytes packs layers of this model"
        return text + "; nothing to pack"
    assert done.returncode == 0 and "less exact" in done.stderr, done.stderr
    if shard:
        ours, theirs = read(out4), read(ref4)
        assert set(ours) == set(theirs)
        assert all(ours[k].dtype == theirs[k].dtype and torch.equal(ours[k], theirs[k]) for k in theirs)
    else:
        same_files(out4, ref4, 0, compare_header=False)
    a, b = json_of(out4, "config.json")["quantization_config"], json_of(ref4, "config.json")["quantization_config"]
    assert options.get("pack") or a == b, (a, b)
    assert torch.equal(logits(arch, out4, device_map="cpu"), logits(arch, ref4, device_map="cpu")), "logits in 4 bits"
    return text + f"; {sum('quant_state' in k for k in read(ref4))} layers in 4 bits equal"


def golden():
    """Matrices of odd and even sizes, with zeros, outliers and tiny values, in one file, and what they become in another."""
    import bitsandbytes.functional as F
    g = torch.Generator().manual_seed(7)
    weights, packed = {}, {}
    for i, shape in enumerate([(3, 64), (5, 77), (1, 1), (7, 9), (33, 130), (128, 257), (20, 64)]):
        w = torch.randn(shape, generator=g) * 0.05
        if i == 4:
            w[3] = 0
            w[7] *= 1000
            w[9] *= 1e-30
        if i == 6:
            w = torch.full(shape, 0.25)
        name = f"model.layers.{i}.mlp.up_proj.weight"
        weights[name] = w.to(torch.bfloat16)
        codes, state = F.quantize_4bit(weights[name], compress_statistics=True, quant_type="nf4")
        packed[name] = codes
        packed.update({f"{name}.{k}": v for k, v in state.as_dict(packed=True).items()})
    os.makedirs(ROOT, exist_ok=True)
    save_file(weights, os.path.join(ROOT, "model.safetensors"), metadata={"format": "pt"})
    save_file(packed, os.path.join(ROOT, "packed.safetensors"), metadata={"format": "pt"})
    json.dump({"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "model_type": "llama"}, open(os.path.join(ROOT, "config.json"), "w"))


def main():
    if GOLDEN:
        return golden()
    failed = 0
    for i, (name, arch, config, options) in enumerate(cases()):
        if WANTED and not any(w in name for w in WANTED):
            continue
        try:
            print(f"{name:22} {check(name, arch, config, options, i)}", flush=True)
            shutil.rmtree(os.path.join(ROOT, name), ignore_errors=True)
        except Exception as e:
            failed += 1
            print(f"{name:22} FAILED {type(e).__name__}: {str(e)[:600]}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
