// The judge of src/ollama/go: executes templates with Go's own text/template and Ollama's data types and functions.
//
// Reads a JSON list of cases on stdin, each {"template", "data"} for any JSON data or {"template", "chat"} for a
// conversation as Ollama hands it over (already collated), and prints the list of {"output"} or {"error"}.
// Run by tests/ollama_go.rs.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

type arguments map[string]any

func (a arguments) String() string { return asJSON(a) }

type callFunction struct {
	Index     int
	Name      string
	Arguments arguments
}

type call struct {
	ID       string
	Function callFunction
}

type message struct {
	Role, Content, Thinking string
	Images                  [][]byte
	ToolCalls               []call
	ToolName, ToolCallID    string
}

type propertyType []string

func (p *propertyType) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*p = []string{one}
		return nil
	}
	var many []string
	err := json.Unmarshal(data, &many)
	*p = many
	return err
}

func (p propertyType) MarshalJSON() ([]byte, error) {
	if len(p) == 1 {
		return json.Marshal(p[0])
	}
	return json.Marshal([]string(p))
}

func (p propertyType) String() string {
	if len(p) == 0 {
		return ""
	}
	if len(p) == 1 {
		return p[0]
	}
	return fmt.Sprintf("%v", []string(p))
}

type property struct {
	AnyOf       []property   `json:"anyOf,omitempty"`
	Type        propertyType `json:"type,omitempty"`
	Items       any          `json:"items,omitempty"`
	Description string       `json:"description,omitempty"`
	Enum        []any        `json:"enum,omitempty"`
	Required    []string     `json:"required,omitempty"`
}

type properties map[string]property

func (p properties) String() string { return asJSON(p) }

type parameters struct {
	Type       string     `json:"type"`
	Defs       any        `json:"$defs,omitempty"`
	Items      any        `json:"items,omitempty"`
	Required   []string   `json:"required,omitempty"`
	Properties properties `json:"properties"`
}

type function struct {
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Parameters  parameters `json:"parameters"`
}

type tool struct {
	Type     string   `json:"type"`
	Items    any      `json:"items,omitempty"`
	Function function `json:"function"`
}

func (t tool) String() string { return asJSON(t) }

type tools []tool

func (t tools) String() string { return asJSON(t) }

func asJSON(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}

type chat struct {
	System     string
	Messages   []*message
	Tools      tools
	Think      bool
	IsThinkSet bool
}

type request struct {
	Template string `json:"template"`
	Data     any    `json:"data"`
	Chat     *chat  `json:"chat"`
}

// %T must print the names of the types that Ollama's package has.
func typeNames(s string) string {
	return strings.NewReplacer("main.arguments", "template.templateArgs", "main.tools", "template.templateTools",
		"main.tool", "template.templateTool", "main.propertyType", "api.PropertyType",
		"main.properties", "template.templateProperties", "main.property", "api.ToolProperty").Replace(s)
}

func main() {
	const today = "2026-03-07"
	functions := template.FuncMap{
		"json":             asJSON,
		"currentDate":      func(...string) string { return today },
		"yesterdayDate":    func(...string) string { return "2026-03-06" },
		"toTypeScriptType": func(any) string { return "any" },
		"printf": func(format string, args ...any) string {
			if format == "%T" && len(args) == 1 {
				return typeNames(fmt.Sprintf(format, args...))
			}
			return fmt.Sprintf(format, args...)
		},
	}
	var cases []request
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	answers := make([]map[string]string, len(cases))
	for i, c := range cases {
		var out strings.Builder
		t, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(c.Template)
		if err == nil {
			data := c.Data
			if c.Chat != nil {
				data = map[string]any{"System": c.Chat.System, "Messages": c.Chat.Messages, "Tools": c.Chat.Tools,
					"Response": "", "Think": c.Chat.Think, "ThinkLevel": "", "IsThinkSet": c.Chat.IsThinkSet}
			}
			err = t.Execute(&out, data)
		}
		if err != nil {
			answers[i] = map[string]string{"error": err.Error()}
		} else {
			answers[i] = map[string]string{"output": out.String()}
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(answers); err != nil {
		panic(err)
	}
}
