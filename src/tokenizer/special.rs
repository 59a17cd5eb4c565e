//! Special ids and the add_bos/add_eos/add_sep flags, from four files in the converter's precedence.
//!
//! Rule (`SpecialVocab` in gguf-py): an id comes from tokenizer_config.json's `X_token`, looked up among the
//! added tokens of tokenizer.json, else from config.json's `X_token_id`. A flag comes from the post-processor
//! of tokenizer.json, else from tokenizer_config.json's `add_X_token`. The converter knows single ids only; a
//! model whose `eos_token_id` is a list and whose tokenizer names no eos would lose it there, and keeps it here.

use super::json::TokenizerJson;
use crate::gguf::{Metadata, Value as GgufValue};
use indexmap::IndexMap;
use serde_json::Value;

/// The roles that a token can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    /// Before a text.
    Bos,
    /// After a text.
    Eos,
    /// For text that no piece covers.
    Unk,
    /// Between two texts.
    Sep,
    /// Fills a batch.
    Pad,
    /// BERT's first token.
    Cls,
    /// What a masked model fills in.
    Mask,
    /// After a turn.
    Eot,
    /// After a message.
    Eom,
}

use Special::*;

/// The roles that are looked for unless a family says otherwise, in the order of the file.
pub(super) const USUAL: [Special; 7] = [Bos, Eos, Unk, Sep, Pad, Cls, Mask];

impl Special {
    /// The role's name in Hugging Face's files: `X` in `X_token`.
    pub fn name(self) -> &'static str {
        match self {
            Bos => "bos",
            Eos => "eos",
            Unk => "unk",
            Sep => "sep",
            Pad => "pad",
            Cls => "cls",
            Mask => "mask",
            Eot => "eot",
            Eom => "eom",
        }
    }

    /// The GGUF key of the role's id; none exists for `cls`.
    pub(super) fn key(self) -> Option<&'static str> {
        Some(match self {
            Bos => "tokenizer.ggml.bos_token_id",
            Eos => "tokenizer.ggml.eos_token_id",
            Unk => "tokenizer.ggml.unknown_token_id",
            Sep => "tokenizer.ggml.seperator_token_id",
            Pad => "tokenizer.ggml.padding_token_id",
            Mask => "tokenizer.ggml.mask_token_id",
            Eot => "tokenizer.ggml.eot_token_id",
            Eom => "tokenizer.ggml.eom_token_id",
            Cls => return None,
        })
    }

    /// The GGUF key of the flag that adds the token by itself.
    pub(super) fn add_key(self) -> Option<&'static str> {
        Some(match self {
            Bos => "tokenizer.ggml.add_bos_token",
            Eos => "tokenizer.ggml.add_eos_token",
            Sep => "tokenizer.ggml.add_sep_token",
            _ => return None,
        })
    }
}

/// Special ids and flags before the vocabulary's size is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Specials {
    /// Claims in order of precedence; the first that fits the vocabulary holds.
    claims: Vec<(Special, u32)>,
    /// Flags in file order.
    add: IndexMap<Special, bool>,
    /// Every id that generation_config.json and config.json end a text with.
    pub(super) ends: Vec<u32>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

/// The files that special tokens are read from.
pub(super) struct Sources<'a> {
    pub(super) json: Option<&'a TokenizerJson>,
    pub(super) tokenizer_config: &'a Value,
    pub(super) special_tokens_map: &'a Value,
    pub(super) config: &'a Value,
    pub(super) generation_config: &'a Value,
}

impl Specials {
    /// Reads all files, looking for the given roles.
    pub(super) fn read(sources: &Sources, roles: &[Special]) -> Self {
        let mut this = Self::default();
        let mut roles = roles.to_vec();
        // Absent tokens are nulls below, as Python's None is in the rule that this follows.
        let mut named = Named::new(sources.tokenizer_config);
        if let Some(json) = sources.json {
            named.lend();
            this.read_normalizer(&json.normalizer);
            this.read_post_processor(&json.post_processor, &mut named, &mut roles);
        }
        for &role in &roles {
            if let Some(flag) = sources.tokenizer_config[format!("add_{}_token", role.name())].as_bool() {
                this.add.entry(role).or_insert(flag);
            }
            let id = content(named.get(role)).and_then(|text| added_id(sources.json, text));
            this.claims.extend(id.map(|id| (role, id)));
        }
        for &role in &roles {
            let key = format!("{}_token_id", role.name());
            let id = [&sources.config[&key], &sources.config["text_config"][&key]];
            let id = id.iter().find(|v| !v.is_null()).and_then(|v| as_id(v));
            this.claims.extend(id.map(|id| (role, id)));
        }
        this.read_ends(sources);
        this
    }

    /// `eos_token_id` wherever it may be, single or list; where nothing above names an eos, the first of them does.
    fn read_ends(&mut self, sources: &Sources) {
        let places = [
            &sources.config["eos_token_id"],
            &sources.config["text_config"]["eos_token_id"],
            &sources.generation_config["eos_token_id"],
        ];
        for id in places.iter().flat_map(|v| match v {
            Value::Array(list) => list.iter().filter_map(as_id).collect(),
            single => Vec::from_iter(as_id(single)),
        }) {
            if !self.ends.contains(&id) {
                self.ends.push(id);
            }
        }
        for role in [Bos, Eos] {
            let entry = &sources.special_tokens_map[format!("{}_token", role.name())];
            let claimed = self.claims.iter().any(|(r, _)| *r == role);
            if !claimed && sources.tokenizer_config.get(format!("{}_token", role.name())).is_none() {
                let id = content(entry).and_then(|text| added_id(sources.json, text));
                self.claims.extend(id.map(|id| (role, id)));
            }
        }
        if !self.claims.iter().any(|(role, _)| *role == Eos) {
            let bos = self.claims.iter().find(|(role, _)| *role == Bos).map(|(_, id)| *id);
            // A list may repeat the bos (documents end where the next begins): another id ends an answer.
            let ends = self.ends.clone();
            let mut ordered =
                ends.iter().filter(|id| Some(**id) != bos).chain(ends.iter().filter(|id| Some(**id) == bos));
            for role in [Eos, Eot, Eom] {
                if self.claims.iter().any(|(r, _)| *r == role) {
                    continue;
                }
                self.claims.extend(ordered.next().map(|id| (role, *id)));
            }
        }
    }

    fn read_normalizer(&mut self, normalizer: &Value) {
        for stage in super::json::stages(normalizer, "normalizers") {
            match stage["type"].as_str() {
                Some("Lowercase") => self.lowercase = Some(true),
                Some("StripAccents") => self.strip_accents = Some(true),
                Some("BertNormalizer") => {
                    if let Some(flag) = stage.get("lowercase") {
                        self.lowercase = flag.as_bool();
                    }
                    if let Some(flag) = stage.get("strip_accents") {
                        self.strip_accents = flag.as_bool();
                    }
                }
                _ => {}
            }
        }
    }

    fn read_post_processor(&mut self, post: &Value, named: &mut Named, roles: &mut Vec<Special>) {
        if post.is_null() {
            return;
        }
        let single = std::slice::from_ref(post);
        let processors = post["processors"].as_array().map_or(single, Vec::as_slice);
        for processor in processors {
            match processor["type"].as_str() {
                Some("ByteLevel") => {
                    self.add.entry(Bos).or_insert(false);
                    self.add.entry(Eos).or_insert(false);
                }
                Some("RobertaProcessing") => {
                    for role in [Bos, Eos, Sep] {
                        self.add.insert(role, true);
                    }
                    if !truthy(&named.cls) {
                        named.cls = processor["cls"].get(0).unwrap_or(&named.bos).clone();
                    }
                    if !truthy(&named.sep) {
                        named.sep = processor["sep"].get(0).unwrap_or(&named.eos).clone();
                    }
                }
                Some("TemplateProcessing") => self.read_template(processor, named, roles),
                _ => {}
            }
        }
    }

    /// What a simple `TemplateProcessing` adds: `[BOS] A [EOS]`, and `[SEP]` between two texts.
    fn read_template(&mut self, processor: &Value, named: &mut Named, roles: &mut Vec<Special>) {
        let list = |name: &str| processor[name].as_array().map_or(&[][..], Vec::as_slice);
        let special = |piece: &Value| Some(piece["SpecialToken"]["id"].clone()).filter(truthy);
        let (single, pair) = (list("single"), list("pair"));
        let (mut first, mut last) = (None, None);
        if single.len() > 1 {
            first = special(&single[0]);
            last = special(&single[single.len() - 1]);
        }
        if let Some(first) = &first {
            if named.absent {
                named.bos = first.clone();
            } else if *first != named.bos && *first != named.cls {
                if !truthy(&named.bos) {
                    named.bos = first.clone();
                }
                if !truthy(&named.cls) {
                    named.cls = first.clone();
                }
            }
            self.add.insert(Bos, *first == named.bos || *first == named.cls);
        }
        if let Some(last) = &last {
            if !named.absent && *last != named.eos {
                // What the configuration calls eos ends a turn then.
                if let Some(role) = [Eot, Eom].into_iter().find(|r| !roles.contains(r)) {
                    roles.push(role);
                    if role == Eot {
                        named.eot = named.eos.clone();
                    } else {
                        named.eom = named.eos.clone();
                    }
                }
            }
            named.eos = last.clone();
            self.add.insert(Eos, true);
        }
        let start = usize::from(first.is_some() && pair.first().and_then(special) == first);
        let stop = pair.len() - usize::from(last.is_some() && pair.last().and_then(special) == last);
        let Some(inner @ [a, .., b]) = pair.get(start..stop) else { return };
        if a["Sequence"]["id"] != "A" || b["Sequence"]["id"] != "B" || inner.len() < 3 {
            return;
        }
        let between = &inner[1..inner.len() - 1];
        let separates = |piece: &Value| special(piece).is_some_and(|s| s == named.sep || s == named.eos);
        let mut add_sep = separates(&between[0]) && last.is_none();
        add_sep |= between.len() == 2 && separates(&between[1]);
        self.add.insert(Sep, add_sep);
        if add_sep && !truthy(&named.sep) && !named.absent {
            named.sep_token = Some(named.eos.clone());
        }
    }

    /// Claims an id for a role unless one is claimed.
    pub(super) fn claim(&mut self, role: Special, id: u32) {
        self.claims.push((role, id));
    }

    /// The id that holds for a role in a vocabulary of `limit` ids.
    pub(super) fn id(&self, role: Special, limit: u32) -> Option<u32> {
        self.claims.iter().find(|(r, id)| *r == role && *id < limit).map(|(_, id)| *id)
    }

    /// Whether the runtime adds a role's token by itself, as far as the files say.
    pub(super) fn adds(&self, role: Special) -> Option<bool> {
        self.add.get(&role).copied()
    }

    /// Ids and flags, in the converter's order. `limit`: the number of ids, where the converter checks it.
    pub(super) fn write_ids(&self, limit: u32, metadata: &mut Metadata) {
        let mut seen: Vec<Special> = Vec::new();
        for &(role, id) in &self.claims {
            if id < limit && !seen.contains(&role) {
                seen.push(role);
                if let Some(key) = role.key() {
                    metadata.set(key, GgufValue::U32(id));
                }
            }
        }
        for (role, flag) in &self.add {
            if let Some(key) = role.add_key() {
                metadata.set(key, GgufValue::Bool(*flag));
            }
        }
    }

    /// The normalizer's flags, which follow the chat template.
    pub(super) fn write_normalizer(&self, metadata: &mut Metadata) {
        if let Some(flag) = self.lowercase {
            metadata.set("tokenizer.ggml.normalizer.lowercase", GgufValue::Bool(flag));
        }
        if let Some(flag) = self.strip_accents {
            metadata.set("tokenizer.ggml.normalizer.strip_accents", GgufValue::Bool(flag));
        }
    }
}

/// tokenizer_config.json's tokens, as the post-processor amends them.
struct Named<'a> {
    /// There is no tokenizer_config.json, or nothing in it.
    absent: bool,
    bos: Value,
    eos: Value,
    sep: Value,
    cls: Value,
    eot: Value,
    eom: Value,
    /// The separator where only the template says that there is one.
    sep_token: Option<Value>,
    config: &'a Value,
}

impl<'a> Named<'a> {
    fn new(config: &'a Value) -> Self {
        let get = |name: &str| config[name].clone();
        Self {
            absent: config.as_object().is_none_or(|o| o.is_empty()),
            bos: get("bos_token"),
            eos: get("eos_token"),
            sep: get("sep_token"),
            cls: get("cls_token"),
            eot: get("eot_token"),
            eom: get("eom_token"),
            sep_token: None,
            config,
        }
    }

    /// BERT's first and last tokens serve as bos and eos where a file names none.
    fn lend(&mut self) {
        if !truthy(&self.bos) && truthy(&self.cls) {
            self.bos = self.cls.clone();
        }
        if !truthy(&self.eos) && truthy(&self.sep) {
            self.eos = self.sep.clone();
        }
    }

    fn get(&self, role: Special) -> &Value {
        // Without a configuration the converter looks no token up.
        if self.absent {
            return &Value::Null;
        }
        match role {
            Bos => &self.bos,
            Eos => &self.eos,
            Sep => self.sep_token.as_ref().unwrap_or(&self.sep),
            Cls => &self.cls,
            Eot => &self.eot,
            Eom => &self.eom,
            Unk => &self.config["unk_token"],
            Pad => &self.config["pad_token"],
            Mask => &self.config["mask_token"],
        }
    }
}

/// A token's text: a string, or an object that has it as `content`.
pub(super) fn content(entry: &Value) -> Option<&str> {
    entry.as_str().or_else(|| entry["content"].as_str())
}

fn added_id(json: Option<&TokenizerJson>, text: &str) -> Option<u32> {
    json?.added_tokens.iter().find(|t| t.content == text).map(|t| t.id)
}

/// An id; -1 is how some configurations write "none".
fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Python's truth of a JSON value.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}
