//! What Ollama will find in a model's answers: the texts in front of calls and around thinking, and built-in parsers.

use to_gguf::ollama::go::Template;
use to_gguf::ollama::infer::Abilities;
use to_gguf::ollama::jinja::ChatTemplate;
use to_gguf::ollama::proof::translate;
use to_gguf::ollama::recognise::{Signposts, call_tag_of, thinking_tags_of};
use to_gguf::ollama::{ChatInput, Modelfile, ModelfileInput};

/// ChatML with the calls and the thinking that `calls` and `thinking` print.
fn chatml(calls: &str, thinking: &str) -> String {
    format!(
        "{{%- if tools %}}<|im_start|>system\n{{%- for tool in tools %}}\n{{{{ tool | tojson }}}}{{%- endfor %}}<|im_end|>\n{{% endif %}}\
         {{%- for m in messages %}}\
         {{%- if m.role == 'tool' %}}<|im_start|>tool\n{{{{ m.content }}}}<|im_end|>\n\
         {{%- elif m.role == 'assistant' %}}<|im_start|>assistant\n{thinking}{{{{ m.content }}}}\
         {{%- for call in m.tool_calls %}}{calls}{{%- endfor %}}<|im_end|>\n\
         {{%- else %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n{{%- endif %}}{{%- endfor %}}\
         {{%- if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
    )
}

const JSON: &str = r#"{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}"#;
const THINKING: &str = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}";
const XML: &str = "{% if not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n<function={{ call.function.name }}>{% for k, v in call.function.arguments.items() %}{{ '\n' }}<parameter={{ k }}>\n{{ v }}\n</parameter>{% endfor %}{{ '\n' }}</function>\n</tool_call>";

fn signposts(source: &str) -> Signposts {
    let template = ChatTemplate::new(source, None, Some("<|im_end|>")).unwrap();
    let abilities = Abilities::discover(&template, true).unwrap();
    assert!(abilities.scope.tools, "{source}");
    Signposts::find(&template, &abilities, true)
}

/// The TEMPLATE, which must be proven for everything that the Jinja can.
fn proven(source: &str) -> String {
    let template = ChatTemplate::new(source, None, Some("<|im_end|>")).unwrap();
    let translation = translate(&template, true).unwrap();
    let proven = translation.proven.expect("a TEMPLATE");
    assert_eq!(proven.scope, translation.abilities.scope, "{:?}", translation.obstacles);
    proven.template
}

#[test]
fn a_text_in_front_of_json_is_told_to_ollama() {
    for (calls, tag) in [
        (format!("<tool_call>\n{JSON}\n</tool_call>"), "<tool_call>"),
        (format!("[CALL]{JSON}[/CALL]"), "[CALL]"),
        (JSON.to_owned(), "{"),
        (r#"<|f|>{{ call.function.name }}<|a|>{{ call.function.arguments | tojson }}"#.to_owned(), "<|f|>"),
    ] {
        let source = chatml(&calls, "");
        assert_eq!(signposts(&source).call.as_deref(), Some(tag), "{calls}");
        let template = Template::parse(&proven(&source)).unwrap();
        assert_eq!(call_tag_of(&template), tag, "{calls}");
    }
}

#[test]
fn the_texts_around_thinking_are_told_to_ollama() {
    let source = chatml(&format!("<tool_call>\n{JSON}\n</tool_call>"), THINKING);
    let found = signposts(&source);
    assert_eq!(found.thinking, Some(("<think>".into(), "</think>".into())));
    assert_eq!(found.call.as_deref(), Some("<tool_call>"));
    let template = Template::parse(&proven(&source)).unwrap();
    assert_eq!(thinking_tags_of(&template), found.thinking);
    assert_eq!(call_tag_of(&template), "<tool_call>");
}

#[test]
fn calls_that_are_no_json_need_a_parser_that_was_seen_to_read_them() {
    let found = signposts(&chatml(XML, ""));
    assert_eq!((found.call, found.parser, found.unread), (None, Some("qwen3-coder"), false));
    // One letter changes the format: no parser is known to read it.
    let found = signposts(&chatml(&XML.replace("parameter=", "argument="), ""));
    assert_eq!((found.call, found.parser, found.unread), (None, None, true));
}

#[test]
fn the_modelfile_names_the_parser_and_its_release() {
    let modelfile = |source: String| {
        let chat = ChatInput { template: Some(source), eos_token: Some("<|im_end|>".into()), ..ChatInput::default() };
        Modelfile::build(&ModelfileInput { from: vec!["m.gguf".into()], chat, ..ModelfileInput::default() }).render()
    };
    let text = modelfile(chatml(XML, ""));
    assert!(text.contains("\nPARSER qwen3-coder\nREQUIRES 0.12.0\n"), "{text}");
    let text = modelfile(chatml(&XML.replace("parameter=", "argument="), ""));
    assert!(!text.contains("\nPARSER") && text.contains("Ollama does not read this model's calls"), "{text}");
    let text = modelfile(chatml(&format!("<tool_call>\n{JSON}\n</tool_call>"), ""));
    assert!(!text.contains("\nPARSER") && !text.contains("REQUIRES"), "{text}");
}

#[test]
fn gpt_oss_is_read_by_ollamas_own_rule() {
    let source = chatml(&XML.replace("parameter=", "argument="), "")
        .replace("<|im_start|>", "<|start|>")
        .replace("<|im_end|>", "<|end|>");
    let build = |architecture: &str| {
        let chat = ChatInput { template: Some(source.clone()), ..ChatInput::default() };
        Modelfile::build(&ModelfileInput { architecture: Some(architecture.into()), chat, ..ModelfileInput::default() })
            .render()
    };
    assert!(build("llama").contains("does not read this model's calls"));
    assert!(!build("gpt-oss").contains("does not read this model's calls"));
}

#[test]
fn texts_are_read_off_a_template_as_ollama_does() {
    let tag = |source: &str| call_tag_of(&Template::parse(source).unwrap());
    assert_eq!(tag("{{ .Prompt }}"), "{");
    assert_eq!(tag("{{ if .ToolCalls }} [T] {\"name\"{{ end }}"), "[T]");
    // An action before any text; a condition that only mentions the calls inside of another; the first counts.
    assert_eq!(tag("{{ if .ToolCalls }}{{ .Content }}[T]{{ end }}"), "{");
    assert_eq!(tag("{{ if not .ToolCalls }}no{{ else if (or .ToolCalls .X) }}[A]{{ end }}"), "no");
    assert_eq!(
        tag("{{ if (or .ToolCalls .X) }}[A]{{ end }}{{ range .X }}{{ if .ToolCalls }}[B]{{ end }}{{ end }}"),
        "[B]"
    );
    let tags = |source: &str| thinking_tags_of(&Template::parse(source).unwrap());
    let ends = Some(("<t>".to_owned(), "</t>".to_owned()));
    assert_eq!(tags("{{ range .Messages }}{{ if .Thinking }}<t>{{ .Thinking }}</t>{{ end }}{{ end }}"), ends);
    assert_eq!(tags("{{ range .Other }}{{ if .Thinking }}<t>{{ .Thinking }}</t>{{ end }}{{ end }}"), None);
    assert_eq!(tags("{{ range .Messages }}{{ if .Thinking }}{{ .Thinking }}</t>{{ end }}{{ end }}"), None);
}
