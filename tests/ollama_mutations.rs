//! Nothing is looked up by a name: templates changed at random are still translated exactly.

#[path = "common/mutations.rs"]
mod mutations;

use mutations::{Dice, mutate};
use to_gguf::ollama::jinja::ChatTemplate;
use to_gguf::ollama::proof::translate;

const STYLES: &str = include_str!("data/chat_templates.txt");
const SEED: u64 = 20_261_125;

#[test]
fn mutated_templates_are_proven_with_all_their_abilities() {
    let mut dice = Dice(SEED);
    let mut changed = 0;
    for source in STYLES.split("\n=====\n") {
        for round in 0..6 {
            let mutant = mutate(source, &mut dice);
            changed += usize::from(mutant != source);
            let jinja = ChatTemplate::new(&mutant, Some("<s>"), Some("</s>")).unwrap();
            let translation = translate(&jinja, round % 2 == 0).unwrap();
            let scope = translation.proven.as_ref().map(|p| p.scope);
            assert_eq!(scope, Some(translation.abilities.scope), "{:?}\n{mutant}", translation.obstacles);
        }
    }
    assert!(changed > 36, "only {changed} templates were changed");
}
