// Renders prompts as Ollama does: its rules for messages (docs/template.md, template.go), and Go's own text/template.
// Reads [{"template", "messages": [{"role", "content"}]}] on standard input, writes [{"text", "error"}].
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type Job struct {
	Template string    `json:"template"`
	Messages []Message `json:"messages"`
}

type Outcome struct {
	Text  string `json:"text"`
	Error string `json:"error"`
}

// collate joins neighbours of one role; every system message is told apart too.
func collate(messages []Message) (string, []*Message) {
	var system []string
	var joined []*Message
	for _, message := range messages {
		if message.Role == "system" {
			system = append(system, message.Content)
		}
		if last := len(joined) - 1; last >= 0 && joined[last].Role == message.Role && message.Role != "tool" {
			joined[last].Content += "\n\n" + message.Content
			continue
		}
		own := message
		joined = append(joined, &own)
	}
	return strings.Join(system, "\n\n"), joined
}

func render(job Job) Outcome {
	parsed, err := template.New("").Option("missingkey=zero").Parse(job.Template)
	if err != nil {
		return Outcome{Error: err.Error()}
	}
	system, messages := collate(job.Messages)
	var text bytes.Buffer
	err = parsed.Execute(&text, map[string]any{"System": system, "Messages": messages, "Response": ""})
	if err != nil {
		return Outcome{Error: err.Error()}
	}
	return Outcome{Text: text.String()}
}

func main() {
	var jobs []Job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	outcomes := make([]Outcome, len(jobs))
	for number, job := range jobs {
		outcomes[number] = render(job)
	}
	if err := json.NewEncoder(os.Stdout).Encode(outcomes); err != nil {
		panic(err)
	}
}
