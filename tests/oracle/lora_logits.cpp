// Logits of every position of a prompt under a GGUF model with GGUF adapters, by llama.cpp itself:
//
//   lora_logits MODEL.gguf "3 17 5 ..." OUT.f32 [ADAPTER.gguf ...]
//
// Built by tests/oracle/gguf_lora.py against llama.cpp's headers and the libllama of node-llama-cpp.
#include "llama.h"
#include "ggml-backend.h"
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

int main(int argc, char ** argv) {
    if (argc < 4) return 2;
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    }, nullptr);
    ggml_backend_load_all_from_path(getenv("NODE_LLAMA"));
    llama_model_params mp = llama_model_default_params();
    llama_model * model = llama_model_load_from_file(argv[1], mp);
    if (!model) return 3;
    std::vector<llama_token> ids;
    std::istringstream words(argv[2]);
    for (int id; words >> id;) ids.push_back(id);
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = cp.n_batch = cp.n_ubatch = 128;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    cp.type_k = cp.type_v = GGML_TYPE_F32;
    llama_context * ctx = llama_init_from_model(model, cp);
    if (!ctx) return 4;
    std::vector<llama_adapter_lora *> adapters;
    for (int i = 4; i < argc; i++) {
        adapters.push_back(llama_adapter_lora_init(model, argv[i]));
        if (!adapters.back()) return 5;
    }
    std::vector<float> scales(adapters.size(), 1.0f);
    if (!adapters.empty() && llama_set_adapters_lora(ctx, adapters.data(), adapters.size(), scales.data())) return 6;
    llama_batch batch = llama_batch_init((int) ids.size(), 0, 1);
    for (size_t i = 0; i < ids.size(); i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = (int) i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    batch.n_tokens = (int) ids.size();
    if (llama_decode(ctx, batch)) return 7;
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    FILE * out = fopen(argv[3], "wb");
    for (size_t i = 0; i < ids.size(); i++) fwrite(llama_get_logits_ith(ctx, (int) i), 4, vocab, out);
    fclose(out);
    return 0;
}
