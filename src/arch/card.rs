//! A model card's front matter: the YAML between two lines `---` at the top of README.md.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::ArchError;

/// The table at the top of a model card; empty where there is no card or no table.
pub(super) fn read(path: &Path) -> Result<Map<String, Value>, ArchError> {
    let content = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => return Ok(Map::new()),
    };
    parse(&content).map_err(|cause| ArchError::File { file: path.into(), cause })
}

fn parse(content: &str) -> Result<Map<String, Value>, String> {
    let mut lines = content.lines();
    if lines.next() != Some("---") {
        return Ok(Map::new());
    }
    let mut yaml = String::new();
    for line in lines.take_while(|l| *l != "---") {
        yaml += &line.replace('\t', "  ");
        yaml.push('\n');
    }
    match serde_yaml_ng::from_str::<Value>(&yaml) {
        Ok(Value::Object(table)) => Ok(table),
        Ok(_) => Ok(Map::new()),
        Err(e) => Err(format!("the model card's front matter is no valid YAML: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_is_read_and_its_absence_is_no_error() {
        let card = parse("---\nlicense: mit\nlanguage:\n- no\n- en\n---\n# Title\n").unwrap();
        assert_eq!(card["license"], "mit");
        assert_eq!(card["language"], serde_json::json!(["no", "en"]));
        assert!(parse("# Title\n").unwrap().is_empty());
        assert!(parse("").unwrap().is_empty());
        assert!(parse("---\na: [1\n---\n").is_err());
    }
}
