//! BERT as an embedding model: an encoder without its pooling and prediction heads.

use super::keys::COMMON;
use super::spec::{Family, From, Key, Tensor, dropped, tensor};
use crate::tokenizer::VocabKind;

const HEADS: &[Tensor] = &[
    dropped("embeddings.position_ids", "position numbers, which llama.cpp computes"),
    dropped("pooler.dense.weight", "the pooling layer, which embeddings do not use"),
    dropped("pooler.dense.bias", "the pooling layer, which embeddings do not use"),
    dropped("cls.predictions.bias", "the masked-language head, which embeddings do not use"),
    dropped("cls.predictions.transform.dense.*", "the masked-language head, which embeddings do not use"),
    dropped("cls.predictions.transform.LayerNorm.*", "the masked-language head, which embeddings do not use"),
    dropped("cls.predictions.decoder.*", "the masked-language head, which embeddings do not use"),
    dropped("cls.seq_relationship.*", "the next-sentence head, which embeddings do not use"),
];

const TENSORS: &[Tensor] = &[
    tensor("token_embd.weight", "embeddings.word_embeddings.weight"),
    tensor("position_embd.weight", "embeddings.position_embeddings.weight"),
    tensor("token_types.weight", "embeddings.token_type_embeddings.weight"),
    tensor("token_embd_norm.*", "embeddings.LayerNorm.*"),
    tensor("blk.{L}.attn_q.*", "encoder.layer.{L}.attention.self.query.*"),
    tensor("blk.{L}.attn_k.*", "encoder.layer.{L}.attention.self.key.*"),
    tensor("blk.{L}.attn_v.*", "encoder.layer.{L}.attention.self.value.*"),
    tensor("blk.{L}.attn_output.*", "encoder.layer.{L}.attention.output.dense.*"),
    tensor("blk.{L}.attn_output_norm.*", "encoder.layer.{L}.attention.output.LayerNorm.*"),
    tensor("blk.{L}.ffn_up.*", "encoder.layer.{L}.intermediate.dense.*"),
    tensor("blk.{L}.ffn_down.*", "encoder.layer.{L}.output.dense.*"),
    tensor("blk.{L}.layer_output_norm.*", "encoder.layer.{L}.output.LayerNorm.*"),
];

/// BERT and BGE.
pub(super) const BERT: Family = Family {
    classes: &["BertModel", "BertForMaskedLM", "CamembertModel"],
    arch: "bert",
    example: "BAAI/bge-small-en-v1.5",
    vocab: VocabKind::WordPiece,
    strip: &["bert."],
    tensors: &[HEADS, TENSORS],
    keys: &[COMMON, Key::Bool("attention.causal", From::Flag(false)), Key::Pooling],
    ..Family::NEW
};
