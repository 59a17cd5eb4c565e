// What Ollama makes of models' answers: its tools and thinking packages with our TEMPLATE, and its built-in parsers.
//
//	CHAT_TEMPLATES=… CHAT_ANSWERS_DUMP=answers.jsonl cargo test --release --test ollama_corpus answers
//	in a checkout of Ollama, with the Go of its go.mod: mkdir cmd/answers, put this file there, then
//	go run ./cmd/answers < answers.jsonl > src/ollama/parsers.json
//
// Writes each answer's text with the built-in parsers that read it rightly, whole and piece by piece. To stderr: every
// answer of which Ollama's code reads other calls or thinking than the dump expects, and counts.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/model/parsers"
	"github.com/ollama/ollama/thinking"
	"github.com/ollama/ollama/tools"
)

var names = []string{
	"qwen3-coder", "qwen3-vl-instruct", "qwen3-vl-thinking", "cogito", "ministral", "olmo3", "olmo3-think", "nemotron-3-nano",
	"deepseek3", "functiongemma", "glm-4.7", "lfm2", "lfm2-thinking", "glm-ocr", "qwen3", "qwen3-thinking", "qwen3.5", "gemma4",
	"gemma4-no-thinking", "laguna", "cohere", "ornith", "poolside-v1", "glimmer", "nemotron-3.5-nano",
}

type call struct {
	Name      string         `json:"name"`
	Arguments map[string]any `json:"arguments"`
}

type answer struct {
	Template      string     `json:"template"`
	Sample        int        `json:"sample"`
	Go            *string    `json:"go"`
	Tools         []api.Tool `json:"tools"`
	Prompt        string     `json:"prompt"`
	Text          string     `json:"text"`
	Content       string     `json:"content"`
	Thinking      string     `json:"thinking"`
	Calls         []call     `json:"calls"`
	ReadsCalls    bool       `json:"reads_calls"`
	ReadsThinking bool       `json:"reads_thinking"`
}

type recorded struct {
	Sample  int      `json:"sample"`
	Text    string   `json:"text"`
	Parsers []string `json:"parsers"`
}

func plain(calls []api.ToolCall) []call {
	out := []call{}
	for _, c := range calls {
		var arguments map[string]any
		text, _ := json.Marshal(c.Function.Arguments)
		json.Unmarshal(text, &arguments)
		out = append(out, call{c.Function.Name, arguments})
	}
	return out
}

// A text as a runner sends it: what looks like a token of its own in one piece, all else letter by letter.
var piece = regexp.MustCompile(`(?s)<[^<>\s]+>|\[[A-Z_]+\]|.`)

// As Ollama's chat handler does it without a built-in parser.
func generic(a answer, pieces []string) (content, thought string, calls []call) {
	text := func(...any) string { return "" }
	funcs := template.FuncMap{"json": text, "currentDate": text, "yesterdayDate": text, "toTypeScriptType": text}
	t, err := template.New("").Option("missingkey=zero").Funcs(funcs).Parse(*a.Go)
	if err != nil {
		panic(err)
	}
	var think *thinking.Parser
	if open, close := thinking.InferTags(t); open != "" && close != "" {
		think = &thinking.Parser{OpeningTag: open, ClosingTag: close}
		if strings.HasSuffix(strings.TrimSpace(a.Prompt), open) {
			think.AddContent(open)
		}
	}
	tool := tools.NewParser(t, a.Tools)
	for _, piece := range pieces {
		if think != nil {
			var more string
			more, piece = think.AddContent(piece)
			thought += more
		}
		if piece == "" {
			continue
		}
		more, rest := tool.Add(piece)
		calls = append(calls, plain(more)...)
		content += rest
	}
	return content + tool.Content(), thought, calls
}

func builtin(name string, a answer, pieces []string) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	p := parsers.ParserForName(name)
	p.Init(a.Tools, &api.Message{Role: "user", Content: "?"}, &api.ThinkValue{Value: p.HasThinkingSupport()})
	var content, thought string
	calls := []call{}
	for n := range len(pieces) + 1 {
		text, done := "", n == len(pieces)
		if !done {
			text = pieces[n]
		}
		c, t, k, err := p.Add(text, done)
		if err != nil {
			return false
		}
		content, thought, calls = content+c, thought+t, append(calls, plain(k)...)
	}
	return strings.TrimSpace(content) == a.Content && strings.TrimSpace(thought) == a.Thinking && same(calls, a.Calls)
}

func same(a, b []call) bool {
	return len(a) == len(b) && (len(a) == 0 || reflect.DeepEqual(a, b))
}

func main() {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<26)
	out := []recorded{}
	calls, thoughts, wrong := 0, 0, 0
	for in.Scan() {
		var a answer
		if err := json.Unmarshal(in.Bytes(), &a); err != nil {
			panic(err)
		}
		small := piece.FindAllString(a.Text, -1)
		if a.Go != nil {
			for _, pieces := range [][]string{{a.Text}, small} {
				_, thought, found := generic(a, pieces)
				if a.ReadsCalls && !same(found, a.Calls) {
					wrong++
					fmt.Fprintf(os.Stderr, "%s, answer %d in %d pieces: %v, not the calls of %q\n", a.Template, a.Sample, len(pieces), found, a.Text)
				}
				if a.ReadsThinking && strings.TrimSpace(thought) != a.Thinking {
					wrong++
					fmt.Fprintf(os.Stderr, "%s, answer %d in %d pieces: %q, not the thinking of %q\n", a.Template, a.Sample, len(pieces), thought, a.Text)
				}
			}
			if a.ReadsCalls && len(a.Calls) > 0 {
				calls++
			}
			if a.ReadsThinking && a.Thinking != "" {
				thoughts++
			}
		}
		r := recorded{a.Sample, a.Text, []string{}}
		for _, name := range names {
			if builtin(name, a, []string{a.Text}) && builtin(name, a, small) {
				r.Parsers = append(r.Parsers, name)
			}
		}
		if len(r.Parsers) > 0 && !slices.ContainsFunc(out, func(o recorded) bool { return o.Sample == r.Sample && o.Text == r.Text }) {
			out = append(out, r)
		}
	}
	fmt.Fprintf(os.Stderr, "%d answers with calls and %d with thinking read through the TEMPLATE, %d wrong; %d texts recorded\n", calls, thoughts, wrong, len(out))
	fmt.Println("[")
	for n, r := range out {
		text, _ := json.Marshal(r)
		comma := ","
		if n == len(out)-1 {
			comma = ""
		}
		fmt.Printf("%s%s\n", text, comma)
	}
	fmt.Println("]")
}
