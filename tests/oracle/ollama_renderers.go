// How near Ollama's built-in renderers come to models' own chat templates.
//
//	CHAT_TEMPLATES=… CHAT_PROMPTS_DUMP=prompts.jsonl cargo test --release --test ollama_corpus prompts
//	in a checkout of Ollama, with the Go of its go.mod: mkdir cmd/renderers, put this file there, then
//	go run ./cmd/renderers < prompts.jsonl
//
// Prints, for every template, the renderer with the most equal prompts, and how many are equal with and without tools.
// The last line counts the templates of which one renderer makes every prompt.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/model/renderers"
)

var names = []string{
	"qwen3-coder", "qwen3-vl-instruct", "qwen3-vl-thinking", "cogito", "olmo3", "olmo3-think", "nemotron-3-nano", "olmo3-32b-think",
	"olmo3.1", "deepseek3.1", "functiongemma", "glm-4.7", "lfm2", "lfm2-thinking", "glm-ocr", "qwen3.5", "gemma4", "gemma4-large",
	"gemma4-small", "laguna", "cohere", "ornith", "poolside-v1", "glimmer", "nemotron-3.5-nano", "qwen3.8",
}

type conversation struct {
	Messages []api.Message   `json:"messages"`
	Tools    []api.Tool      `json:"tools"`
	Think    *api.ThinkValue `json:"think"`
}

type line struct {
	Conversation json.RawMessage `json:"conversation"`
	Template     string          `json:"template"`
	Texts        []*string       `json:"texts"`
}

func render(name string, data []byte) (text string) {
	defer func() {
		if recover() != nil {
			text = "\x00"
		}
	}()
	var c conversation
	if err := json.Unmarshal(data, &c); err != nil {
		panic(err)
	}
	text, err := renderers.RenderWithRenderer(name, c.Messages, c.Tools, c.Think)
	if err != nil {
		return "\x00"
	}
	return strings.TrimPrefix(text, renderers.LeadingBOSForRenderer(name))
}

func main() {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	in := bufio.NewReader(os.Stdin)
	prompts := map[string][]string{}
	var tools []bool
	templates, whole := 0, 0
	for {
		text, err := in.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			panic(err)
		}
		if l.Conversation != nil {
			var c conversation
			json.Unmarshal(l.Conversation, &c)
			tools = append(tools, len(c.Tools) > 0)
			for _, name := range names {
				prompts[name] = append(prompts[name], render(name, l.Conversation))
			}
			continue
		}
		best, bestName := [4]int{}, "none"
		for _, name := range names {
			var n [4]int
			for i, want := range l.Texts {
				if want == nil {
					continue
				}
				at := 0
				if tools[i] {
					at = 2
				}
				n[at+1]++
				if prompts[name][i] == *want {
					n[at]++
				}
			}
			if bestName == "none" || n[0]+n[2] > best[0]+best[2] {
				best, bestName = n, name
			}
		}
		templates++
		if best[0] == best[1] && best[2] == best[3] {
			whole++
		}
		fmt.Printf("%-60s %-20s %3d of %3d without tools, %3d of %3d with\n", l.Template, bestName, best[0], best[1], best[2], best[3])
	}
	fmt.Printf("%d templates; for %d of them one renderer makes every prompt\n", templates, whole)
}
