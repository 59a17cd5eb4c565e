//! Chat templates changed at random: other markers, line breaks, trims, role names, BOS inside or not.
#![allow(unreachable_pub)] // each test file is a crate of its own

/// SplitMix64: a written-down seed gives the same changes everywhere.
pub struct Dice(pub u64);

impl Dice {
    /// A number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    fn pick<'t>(&mut self, list: &[&'t str]) -> &'t str {
        list[self.roll(list.len())]
    }
}

/// Markers that templates use, and others: none may be a part of another.
const OPENINGS: [&str; 8] = ["<|", "<<", "[", "<", "«", "<｜", "##", "]~"];
const CLOSINGS: [&str; 8] = ["|>", ">>", "]", ">", "»", "｜>", ":", "["];
const WORDS: [&str; 10] = ["im_start", "im_end", "turn", "Ask", "END", "sys", "x1", "ein wort", "回合", "e_o_t"];
const ROLES: [&str; 6] = ["model", "bot", "Assistant", "gpt", "answer", "助手"];

/// One template made of another.
pub fn mutate(source: &str, dice: &mut Dice) -> String {
    let mut out = source.to_owned();
    // Every marker that the template writes becomes another, the same one everywhere.
    let marker = regex::Regex::new(r"<\|[a-z_]+\|>|<<[A-Z]+>>|<</[A-Z]+>>|\[/?[A-Z]{3,}\]|<(?:turn|end)>|###").unwrap();
    let mut found: Vec<String> = marker.find_iter(source).map(|m| m.as_str().to_owned()).collect();
    found.sort();
    found.dedup();
    if dice.roll(4) > 0 {
        for (n, old) in found.iter().enumerate() {
            let at = dice.roll(OPENINGS.len());
            let new = format!("{}{}{n}{}", OPENINGS[at], dice.pick(&WORDS), CLOSINGS[at]);
            out = out.replace(old.as_str(), &new);
        }
    }
    // Line breaks inside of Jinja's strings, but not those that tell what is stripped: blanks of one kind alone are
    // more than Go could tell apart.
    out = out.replace("strip('\\n')", "strip(BREAK)");
    if dice.roll(2) == 0 {
        out = out.replace("\\n'", dice.pick(&["\\n\\n'", " '", "\\t\\n'", "'"]));
    }
    if dice.roll(2) == 0 {
        out = out.replace("'\\n", dice.pick(&["'\\n\\n", "' ", "'"]));
    }
    out = out.replace("strip(BREAK)", "strip('\\n')");
    // Trims of contents.
    match dice.roll(4) {
        0 => out = out.replace(".content | trim", ".content"),
        1 => out = out.replace("m.content ", "m.content | trim "),
        2 => out = out.replace(".content | trim", ".content.strip()"),
        _ => {}
    }
    // Who the roles are called.
    if dice.roll(2) == 0 {
        let name = dice.pick(&ROLES);
        out = out.replace("+ m.role", &format!("+ ('{name}' if m.role == 'assistant' else m.role)"));
        out = out.replace("<|assistant|>", &format!("<|{name}|>"));
    }
    // The token at the beginning, inside or not.
    match dice.roll(3) {
        0 if !out.contains("bos_token") => out.insert_str(0, "{{- bos_token -}}"),
        1 => out = out.replace("{{ bos_token }}", ""),
        _ => {}
    }
    if dice.roll(3) == 0 {
        out = out.replace("+ eos_token", "+ '<|done|>'").replace("{{ eos_token }}", "<|done|>");
    }
    out
}
