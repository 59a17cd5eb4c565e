//! Whether an adapter holds every module that its config targets: PEFT's rule (`check_target_module_exists`), asked of
//! the model's own names. An interrupted save, or a file that was filtered, shows here.

use std::collections::HashSet;

use fancy_regex::Regex;
use serde_json::Value;

use super::config::{AdapterConfig, python_pattern};
use super::{Adapter, names};
use crate::source::TensorSet;

/// Names of modules, as a config writes them.
enum Modules {
    /// An expression for the whole name.
    Expression(Regex),
    /// Names, or their last words.
    List(Vec<String>),
}

impl Modules {
    /// Those of a setting; `None` where it is absent or no such thing.
    fn read(config: &AdapterConfig, key: &str) -> Option<Self> {
        match config.get(key)? {
            Value::String(s) => expression(&format!("^(?:{})$", python_pattern(s))).map(Modules::Expression),
            Value::Array(_) => Some(Modules::List(config.texts(key).into_iter().map(String::from).collect())),
            _ => None,
        }
    }

    /// Whether a name is one of them: exactly, or by its last words.
    fn hold(&self, module: &str) -> Option<Fit> {
        match self {
            Modules::Expression(regex) => regex.is_match(module).unwrap_or(false).then_some(Fit::Whole),
            Modules::List(list) if list.iter().any(|m| m == module) => Some(Fit::Whole),
            Modules::List(list) => list.iter().any(|m| module.ends_with(&format!(".{m}"))).then_some(Fit::Ending),
        }
    }
}

/// How a name fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Whole,
    Ending,
}

fn expression(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

/// Which modules a config targets.
struct Rule {
    targets: Modules,
    excluded: Option<Modules>,
    /// Modules that are trained whole, and what lies in them.
    saved: Vec<Regex>,
    /// The layers that are trained, with the expressions that find a layer's number in a name.
    layers: Option<(Vec<u64>, Vec<Regex>)>,
}

impl Rule {
    /// That of a config; `None` where it names no modules in a way that can be followed.
    fn read(config: &AdapterConfig) -> Option<Rule> {
        let within = |m: &str| expression(&format!("^(?:.*\\.)?{}(?:$|\\.)", python_pattern(m)));
        let layers = match config.get("layers_to_transform") {
            None => None,
            Some(Value::Array(all)) if all.is_empty() => None,
            Some(Value::Array(all)) => Some(all.iter().filter_map(Value::as_u64).collect()),
            Some(one) => Some(vec![one.as_u64()?]),
        };
        let patterns = match config.texts("layers_pattern").as_slice() {
            [] | [""] => vec![expression("^.*?\\.[^.]*\\.(\\d+)\\.")?],
            all => all
                .iter()
                .filter_map(|p| expression(&format!("^(?:.*?\\.)?{}\\.(\\d+)\\.", python_pattern(p))))
                .collect(),
        };
        Some(Rule {
            targets: Modules::read(config, "target_modules")?,
            excluded: Modules::read(config, "exclude_modules"),
            saved: config.texts("modules_to_save").into_iter().filter_map(within).collect(),
            layers: layers.map(|layers| (layers, patterns)),
        })
    }

    fn targets(&self, module: &str) -> bool {
        let excluded = self.excluded.as_ref().is_some_and(|e| e.hold(module).is_some());
        if excluded || self.saved.iter().any(|s| s.is_match(module).unwrap_or(false)) {
            return false;
        }
        match (self.targets.hold(module), &self.layers) {
            (Some(Fit::Ending), Some((layers, patterns))) => {
                let found = patterns.iter().find_map(|p| p.captures(module).ok().flatten());
                let number = found.and_then(|c| c.get(1)?.as_str().parse().ok());
                number.is_some_and(|n| layers.contains(&n))
            }
            (fit, _) => fit.is_some(),
        }
    }
}

/// Tells when an adapter holds fewer modules than its config targets.
pub(super) fn warn(adapter: &Adapter, tensors: &TensorSet, warnings: &mut Vec<String>) {
    let Some(rule) = Rule::read(&adapter.config) else { return };
    let held: HashSet<String> = adapter.contents.modules.iter().map(|m| names::canonical(&m.name)).collect();
    // Experts that are stored one by one may have been one module when the adapter was trained.
    let of_one_expert =
        |m: &str| m.split_once(".experts.").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    let experts = held.iter().any(|m| of_one_expert(m));
    let (mut targeted, mut missing, mut first) = (0, 0, None);
    for (name, recipe) in tensors.iter() {
        let Some(module) = name.strip_suffix(".weight").filter(|_| recipe.shape().ndim() > 1) else { continue };
        if !rule.targets(module) || of_one_expert(module) && !experts {
            continue;
        }
        targeted += 1;
        if !held.contains(&names::canonical(module)) {
            missing += 1;
            first = first.or(Some(module));
        }
    }
    if let Some(first) = first {
        warnings.push(format!(
            "{} holds {} of the {targeted} modules that its config targets; the first without is {first}",
            adapter.label,
            targeted - missing
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Those of `modules` that a config targets.
    fn targeted<'m>(text: &str, modules: &[&'m str]) -> Vec<&'m str> {
        let config = AdapterConfig::parse(Path::new("adapter_config.json"), text).unwrap();
        let rule = Rule::read(&config).unwrap();
        modules.iter().copied().filter(|m| rule.targets(m)).collect()
    }

    #[test]
    fn modules_are_targeted_as_peft_does() {
        let (q0, q1, up0) =
            ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj");
        let all = [q0, q1, up0, "lm_head"];
        assert_eq!(targeted(r#"{"target_modules": ["q_proj", "lm_head"]}"#, &all), [q0, q1, "lm_head"]);
        assert_eq!(targeted(r#"{"target_modules": ["proj"]}"#, &all), [""; 0], "words are whole");
        assert_eq!(targeted(r#"{"target_modules": ".*layers\\.0\\..*_proj"}"#, &all), [q0, up0]);
        assert_eq!(targeted(r#"{"target_modules": "q_proj"}"#, &all), [""; 0], "an expression is for the whole name");
        let text = r#"{"target_modules": ["q_proj"], "layers_to_transform": [1]}"#;
        assert_eq!(targeted(text, &all), [q1]);
        let text = r#"{"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}"#;
        assert_eq!(targeted(text, &all), [q0]);
        let text = r#"{"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": ["blocks"]}"#;
        assert_eq!(targeted(text, &all), [""; 0]);
        let text = r#"{"target_modules": ["q_proj", "up_proj", "lm_head"], "exclude_modules": ["mlp.up_proj"], "modules_to_save": ["lm_head"]}"#;
        assert_eq!(targeted(text, &all), [q0, q1]);
        let text = r#"{"target_modules": ["q_proj", "up_proj"], "exclude_modules": ".*\\.0\\..*"}"#;
        assert_eq!(targeted(text, &all), [q1]);
    }
}
