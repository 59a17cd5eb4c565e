//! The tokenizer's files as they stand beside a saved model.
//!
//! They are those of one folder, the fine-tune's own where it has a vocabulary; configuration and templates that it
//! lacks come from the next. A SentencePiece `tokenizer.model` knows nothing of tokens that were added to a
//! `tokenizer.json` later, so that tools which read it see a smaller vocabulary: it gets them as pieces of its own,
//! with the score of -1000 that Unsloth gives them (`fix_sentencepiece_gguf`). Every other byte of it stays.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message;
use serde_json::Value;

use super::error::{Result, TokenizerError};
use super::files::{self, TokenizerFiles};
use super::json::{ID_LIMIT, TokenizerJson};
use super::proto::{ModelProto, Piece};

/// The score of an added piece: no text is cut into it by merging.
const ADDED_SCORE: f32 = -1000.0;

/// The score and the name of ids that nothing uses, as llama.cpp's converter gives them.
const UNUSED_SCORE: f32 = -10000.0;

/// Types of pieces.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

const MODEL: &str = "tokenizer.model";

/// Files that go with any vocabulary.
const BESIDE: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
];

/// A file to put beside a model: its path in the folder, and its contents.
pub type SavedFile = (PathBuf, Vec<u8>);

/// The files of a tokenizer, ready to be written, and what the user should know of them. `names` are those that
/// belong to a tokenizer, files or folders of them.
///
/// # Errors
/// A file cannot be read, or the vocabulary is damaged.
pub fn saved_files(files: &TokenizerFiles, names: &[&str]) -> Result<(Vec<SavedFile>, Vec<String>)> {
    let Some(home) = files.home() else { return Ok((Vec::new(), Vec::new())) };
    let (mut saved, mut notes) = (Vec::new(), Vec::new());
    for name in names {
        let own = Some(home.join(name)).filter(|p| p.exists());
        let Some(path) = own.or_else(|| inherited(files, name)) else { continue };
        if *name == MODEL && path.is_file() {
            let (bytes, note) = extended(&path, home, path.starts_with(home))?;
            saved.extend(bytes.map(|b| (PathBuf::from(name), b)));
            notes.extend(note);
        } else {
            copy(&path, Path::new(name), &mut saved)?;
        }
    }
    Ok((saved, notes))
}

/// The file `name` of another folder than the vocabulary's, where it goes with that vocabulary.
fn inherited(files: &TokenizerFiles, name: &str) -> Option<PathBuf> {
    let home = files.home()?;
    let found = || files.folders().iter().map(|d| d.join(name)).find(|p| p.exists());
    match name {
        // A vocabulary that was saved as tokenizer.json only; whether they agree is looked at later.
        MODEL if home.join("tokenizer.json").is_file() => files.inherited(name),
        _ if name.contains("chat_template") && has_template(files) => None,
        _ if BESIDE.contains(&name) => found(),
        _ => None,
    }
}

/// Whether the vocabulary's own folder has a chat template.
fn has_template(files: &TokenizerFiles) -> bool {
    let named = ["chat_template.jinja", "chat_template.json", "additional_chat_templates"];
    let within = files.own("tokenizer_config.json").and_then(|p| files::read_object(&p).ok());
    files.home().is_some_and(|home| named.iter().any(|n| home.join(n).exists()))
        || within.is_some_and(|c| !c["chat_template"].is_null())
}

/// Reads a file, or all files of a folder.
fn copy(path: &Path, name: &Path, saved: &mut Vec<SavedFile>) -> Result<()> {
    if !path.is_dir() {
        saved.push((name.to_owned(), files::read(path)?));
        return Ok(());
    }
    let fail = |source| TokenizerError::Read { path: path.to_owned(), source };
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .map_err(fail)?
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<_>>()
        .map_err(fail)?;
    entries.sort();
    for entry in entries.iter().filter(|e| e.is_file()) {
        saved.push((name.join(entry.file_name().unwrap_or_default()), files::read(entry)?));
    }
    Ok(())
}

/// A `tokenizer.model` with the tokens that were added to the vocabulary in `home`. None where the file is another
/// vocabulary's and not the folder's own.
fn extended(path: &Path, home: &Path, own: bool) -> Result<(Option<Vec<u8>>, Option<String>)> {
    let bytes = files::read(path)?;
    let proto = ModelProto::read(path)?;
    let (added, vocabulary) = added_tokens(home)?;
    let text = |id: u32| proto.pieces.get(id as usize).map(|p| p.text.as_slice());
    let strange = vocabulary
        .iter()
        .find(|(piece, id)| !added.contains_key(id) && text(*id).is_some_and(|t| t != piece.as_bytes()));
    let beyond = vocabulary.iter().find(|(_, id)| !added.contains_key(id) && text(*id).is_none());
    if let Some((piece, id)) = strange.or(beyond) {
        if !own {
            return Ok((None, None));
        }
        let note = format!(
            "{}: its pieces are not those of tokenizer.json (token {id}, {piece:?}); it is copied as it is",
            path.display()
        );
        return Ok((Some(bytes), Some(note)));
    }
    Ok((Some(with_pieces(&bytes, &proto, &added)), None))
}

/// A token that was added to a vocabulary: its text, and whether it is special.
type Added = (String, bool);

/// Pieces with their ids.
type Pieces = Vec<(String, u32)>;

/// The tokens that were added to the vocabulary in a folder, by id, and the vocabulary itself where it is known.
fn added_tokens(home: &Path) -> Result<(BTreeMap<u32, Added>, Pieces)> {
    let mut added = BTreeMap::new();
    let path = home.join("tokenizer.json");
    if path.is_file() {
        let json = TokenizerJson::from_slice(&path, &files::read(&path)?)?;
        added.extend(json.added_tokens.into_iter().map(|t| (t.id, (t.content, t.special))));
        return Ok((added, json.model.vocab.pieces));
    }
    let object = |name: &str| {
        let path = home.join(name);
        if path.is_file() { files::read_object(&path) } else { Ok(Value::Null) }
    };
    let (list, config, map) =
        (object("added_tokens.json")?, object("tokenizer_config.json")?, object("special_tokens_map.json")?);
    let special = |text: &str| {
        let is = |v: &Value| v.as_str().or_else(|| v["content"].as_str()) == Some(text);
        let named = map.as_object().into_iter().flatten();
        named.into_iter().any(|(_, v)| is(v) || v.as_array().is_some_and(|a| a.iter().any(is)))
    };
    for (text, id) in list.as_object().into_iter().flatten() {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < ID_LIMIT);
        added.extend(id.map(|id| (id, (text.clone(), special(text)))));
    }
    for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let id = id.parse().ok().filter(|id| *id < ID_LIMIT);
        if let (Some(id), Some(text)) = (id, token["content"].as_str()) {
            added.insert(id, (text.to_owned(), token["special"] == Value::Bool(true)));
        }
    }
    Ok((added, Vec::new()))
}

/// A model file with tokens in the places of their ids: pieces that are renamed, and pieces after the last.
fn with_pieces(bytes: &[u8], proto: &ModelProto, added: &BTreeMap<u32, Added>) -> Vec<u8> {
    let count = proto.pieces.len() as u32;
    let kind = |special: bool| Some(if special { CONTROL } else { USER_DEFINED });
    let renamed: BTreeMap<u32, Piece> = added
        .range(..count)
        .filter(|(id, (text, _))| proto.pieces[**id as usize].text != text.as_bytes())
        .map(|(id, (text, special))| {
            let score = proto.pieces[*id as usize].score;
            (*id, Piece { text: text.clone().into_bytes(), score, kind: kind(*special) })
        })
        .collect();
    let mut out = Vec::with_capacity(bytes.len());
    if renamed.is_empty() {
        out.extend_from_slice(bytes);
    } else {
        let mut number = 0;
        for field in Fields(bytes) {
            match field.tag == PIECE {
                true => {
                    match renamed.get(&number) {
                        Some(piece) => push_piece(&mut out, piece),
                        None => out.extend_from_slice(field.bytes),
                    }
                    number += 1;
                }
                false => out.extend_from_slice(field.bytes),
            }
        }
    }
    // A repeated field may go on anywhere: the pieces after the last stand at the end of the file.
    let end = added.keys().next_back().map_or(count, |last| last + 1);
    for id in count..end {
        let piece = match added.get(&id) {
            Some((text, special)) => {
                Piece { text: text.clone().into_bytes(), score: ADDED_SCORE, kind: kind(*special) }
            }
            None => Piece { text: format!("[PAD{id}]").into_bytes(), score: UNUSED_SCORE, kind: Some(UNUSED) },
        };
        push_piece(&mut out, &piece);
    }
    out
}

/// Tag and wire type of `ModelProto.pieces`: field 1, length-delimited.
const PIECE: u64 = 1 << 3 | 2;

fn push_piece(out: &mut Vec<u8>, piece: &Piece) {
    prost::encoding::encode_varint(PIECE, out);
    out.extend(piece.encode_length_delimited_to_vec());
}

/// A field of a message: its tag and all its bytes, the tag's included.
struct Field<'a> {
    tag: u64,
    bytes: &'a [u8],
}

/// The fields of a message that has been decoded before, one after another.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let mut rest = self.0;
        let tag = prost::encoding::decode_varint(&mut rest).ok()?;
        let skip = match tag & 7 {
            0 => {
                prost::encoding::decode_varint(&mut rest).ok()?;
                0
            }
            1 => 8,
            2 => prost::encoding::decode_varint(&mut rest).ok()? as usize,
            5 => 4,
            _ => return None,
        };
        let end = self.0.len() - rest.len() + skip;
        let bytes = self.0.get(..end)?;
        self.0 = &self.0[end..];
        Some(Field { tag, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, kind: i32) -> Piece {
        Piece { text: text.into(), score: -1.5, kind: Some(kind) }
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
        dir
    }

    fn model() -> Vec<u8> {
        let mut bytes = ModelProto {
            pieces: vec![piece("<unk>", 2), piece("<s>", 3), piece("a", 1), piece("<unused0>", 4)],
            ..ModelProto::default()
        }
        .encode_to_vec();
        // A field that the reader does not know must survive.
        prost::encoding::encode_varint(9 << 3 | 2, &mut bytes);
        bytes.extend([2, 7, 7]);
        bytes
    }

    fn json(added: &str, vocabulary: &str) -> Vec<u8> {
        format!(r#"{{"added_tokens":[{added}],"model":{{"type":"BPE","vocab":{{{vocabulary}}},"merges":[]}}}}"#)
            .into_bytes()
    }

    fn saved(home: &Path, base: Option<&Path>) -> (BTreeMap<PathBuf, Vec<u8>>, Vec<String>) {
        let folders: Vec<&Path> = [home].into_iter().chain(base).collect();
        let names =
            ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "added_tokens.json"];
        let (files, notes) = saved_files(&TokenizerFiles::new(folders), &names).unwrap();
        (files.into_iter().collect(), notes)
    }

    const VOCABULARY: &str = r#""<unk>":0,"<s>":1,"a":2,"<unused0>":3"#;

    #[test]
    fn added_tokens_become_pieces_and_every_other_byte_stays() {
        let added = r#"{"id":1,"content":"<s>","special":true},{"id":4,"content":"<think>","special":false},
                       {"id":6,"content":"<|im_end|>","special":true}"#;
        let dir = folder(&[("tokenizer.model", &model()), ("tokenizer.json", &json(added, VOCABULARY))]);
        let (files, notes) = saved(dir.path(), None);
        assert!(notes.is_empty());
        let bytes = &files[Path::new("tokenizer.model")];
        assert!(bytes.starts_with(&model()));
        let pieces = ModelProto::decode(bytes.as_slice()).unwrap().pieces;
        let seen: Vec<_> =
            pieces[4..].iter().map(|p| (String::from_utf8_lossy(&p.text).into_owned(), p.score, p.kind)).collect();
        let expected = [("<think>", -1000.0, 4), ("[PAD5]", -10000.0, 5), ("<|im_end|>", -1000.0, 3)];
        assert_eq!(seen, expected.map(|(t, s, k)| (t.to_owned(), s, Some(k))));
    }

    #[test]
    fn a_renamed_token_is_renamed_in_its_place() {
        let added = r#"{"id":3,"content":"<tool>","special":false}"#;
        let dir = folder(&[("tokenizer.model", &model()), ("tokenizer.json", &json(added, VOCABULARY))]);
        let (files, _) = saved(dir.path(), None);
        let bytes = &files[Path::new("tokenizer.model")];
        let pieces = ModelProto::decode(bytes.as_slice()).unwrap().pieces;
        assert_eq!(pieces[3], piece("<tool>", 4));
        assert_eq!(pieces.len(), 4);
        assert!(bytes.ends_with(&[9 << 3 | 2, 2, 7, 7]));
    }

    #[test]
    fn the_base_s_pieces_serve_a_fine_tune_only_if_they_are_the_same() {
        let base = folder(&[
            ("tokenizer.model", &model()),
            ("chat_template.jinja", b"base"),
            ("tokenizer_config.json", b"{}"),
        ]);
        let added = r#"{"id":4,"content":"<x>","special":false}"#;
        let same = folder(&[("tokenizer.json", &json(added, VOCABULARY))]);
        let (files, _) = saved(same.path(), Some(base.path()));
        assert_eq!(ModelProto::decode(files[Path::new("tokenizer.model")].as_slice()).unwrap().pieces.len(), 5);
        assert_eq!(files[Path::new("chat_template.jinja")], b"base");
        let other = folder(&[("tokenizer.json", &json("", r#""b":0,"c":1"#)), ("chat_template.jinja", b"own")]);
        let (files, notes) = saved(other.path(), Some(base.path()));
        assert!(!files.contains_key(Path::new("tokenizer.model")) && notes.is_empty());
        assert_eq!(files[Path::new("chat_template.jinja")], b"own");
    }

    #[test]
    fn a_slow_tokenizer_s_additions_are_read_from_its_own_files() {
        let dir = folder(&[
            ("tokenizer.model", &model()),
            ("added_tokens.json", br#"{"<x>": 4, "<y>": 5}"#),
            ("special_tokens_map.json", br#"{"additional_special_tokens": ["<y>"]}"#),
        ]);
        let (files, _) = saved(dir.path(), None);
        let pieces = ModelProto::decode(files[Path::new("tokenizer.model")].as_slice()).unwrap().pieces;
        assert_eq!(pieces[4..].iter().map(|p| p.kind).collect::<Vec<_>>(), [Some(4), Some(3)]);
    }
}
