//! The documentation says what the program does.

mod common;

use common::{fixture, to_gguf};

fn page(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_supported_class_is_listed_and_no_other() {
    let listed: Vec<String> = page("docs/models.md")
        .lines()
        .filter_map(|l| l.strip_prefix("* `")?.strip_suffix('`').map(str::to_owned))
        .collect();
    let mut supported: Vec<&str> = to_gguf::arch::supported_classes().collect();
    supported.sort_unstable();
    supported.dedup();
    assert_eq!(listed, supported);
}

#[test]
fn every_option_is_documented() {
    let help = to_gguf(&fixture("."), ["--help"]).stdout;
    let pages = page("docs/options.md");
    let options = help.split_whitespace().filter(|w| w.starts_with("--")).map(|w| w.trim_end_matches([',', ';']));
    for option in options.filter(|o| !matches!(*o, "--help" | "--version")) {
        let name = option.split(['=', '<', '[', '.']).next().unwrap();
        assert!(pages.contains(name), "{name} is not in docs/options.md");
    }
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    pages.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path()));
    for path in pages {
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|t| t.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                assert!(path.parent().unwrap().join(target).exists(), "{}: {link}", path.display());
            }
        }
    }
}
