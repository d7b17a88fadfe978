package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/process"
	"github.com/joulegate/joulegate/guard/sigma"
)

func newGuardExecCmd() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec [FILE]",
		Short: "Judge started programs by Sigma rules",
		Long: `exec reads programs that were started, one JSON document per line, from FILE or
stdin, and prints for each which rules match:

  {"image":"..","command_line":"..","parent_image":"..","parent_command_line":"..","user":"..","cwd":".."}
  {"matches":[{"rule":"..","id":"..","title":"..","level":"high"}]}

A field that is left out is absent. Rules are those that come with this program,
or, with --rules, those of a folder: .yml and .yaml files of Sigma's category
process_creation. A broken rule is an error with its file and line.

--live watches this machine instead, for which it needs CAP_BPF, CAP_PERFMON and
CAP_SYS_PTRACE, or sees less and says so; it prints what matches, with --all
every program that starts. Its lines can be read again. Command lines are
redacted.`,
		Example: `  joulegate guard exec < events.jsonl
  joulegate guard exec --rules /usr/share/sigma/linux events.jsonl
  joulegate guard exec --live --all | tee recorded.jsonl`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := o.load()
			if err != nil {
				return err
			}
			if o.live {
				if len(args) > 0 {
					return errors.New("--live watches this machine and reads no file")
				}
				return o.watch(cmd, set)
			}
			in, name := cmd.InOrStdin(), "stdin"
			if len(args) == 1 && args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in, name = f, args[0]
			}
			return guardExec(set, name, in, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.rules, "rules", "", "take the rules of this `FOLDER`, not those that come with this program")
	cmd.Flags().BoolVar(&o.live, "live", false, "watch what starts on this machine")
	cmd.Flags().BoolVar(&o.all, "all", false, "with --live, print what matches nothing, too")
	cmd.Flags().StringVar(&o.by, "by", "", "with --live, watch by `LEVEL`: "+strings.Join(process.Rungs, ", ")+"; left out: the highest that works")
	return cmd
}

type execOptions struct {
	rules, by string
	live, all bool
}

func (o execOptions) load() (*sigma.Set, error) {
	if o.rules == "" {
		return sigma.Load(sigma.Gateway())
	}
	set, err := sigma.Load(os.DirFS(o.rules))
	if err != nil {
		return nil, fmt.Errorf("rules of %s: %w", o.rules, err)
	}
	return set, nil
}

// execMatch is a rule that holds.
type execMatch struct {
	Rule  string         `json:"rule"`
	ID    string         `json:"id"`
	Title string         `json:"title"`
	Level guard.Severity `json:"level"`
}

func matchesOf(rules []*sigma.Rule) []execMatch {
	out := []execMatch{}
	for _, r := range rules {
		out = append(out, execMatch{r.Name, r.ID, r.Title, r.Level})
	}
	return out
}

// execSeen is a line of --live. It begins with what 'guard exec' reads.
type execSeen struct {
	sigma.Event
	Called  string      `json:"called,omitempty"`
	Body    string      `json:"body,omitempty"` // memory or deleted
	Time    *time.Time  `json:"time,omitempty"`
	Process string      `json:"process,omitempty"` // number and start
	Parent  string      `json:"parent,omitempty"`
	Matches []execMatch `json:"matches,omitempty"`
}

// maxExecLine is how long a line may be.
const maxExecLine = 1 << 20

// guardExec judges recorded programs. A line that cannot be read ends it: a
// misspelt field would be taken for an absent one and match nothing.
func guardExec(set *sigma.Set, name string, in io.Reader, out io.Writer) error {
	m := set.Matcher()
	w := bufio.NewWriter(out)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxExecLine)
	for n := 1; lines.Scan(); n++ {
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			continue
		}
		var e execSeen
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		err := d.Decode(&e)
		if _, more := d.Token(); err == nil && !errors.Is(more, io.EOF) {
			err = errors.New("more than one document in a line")
		}
		if err != nil {
			w.Flush()
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
		rules := append([]*sigma.Rule{}, m.Match(&e.Event)...)
		if e.Called != "" { // as the sensor does
			rules = process.AlsoAs(m, e.Event, e.Called, rules)
		}
		if err := enc.Encode(map[string]any{"matches": matchesOf(rules)}); err != nil {
			return err
		}
		if err := w.Flush(); err != nil { // whoever feeds us may wait for the answer
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w; a line has at most %d bytes", name, err, maxExecLine)
	}
	return nil
}

// watch prints what starts on this machine.
func (o execOptions) watch(cmd *cobra.Command, set *sigma.Set) error {
	log, err := newLogger(cmd)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(cmd.Context())
	defer stop(nil)
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetEscapeHTML(false)
	var mu sync.Mutex
	s, err := process.New(process.Config{
		Set: set, Rung: o.by, Log: log, Report: func(guard.Finding) {},
		Watch: func(s process.Seen) {
			line := execSeen{Event: s.Event, Called: s.Called, Time: &s.Time, Process: s.ID.String(), Parent: s.Parent.String(), Matches: matchesOf(s.Matches)}
			line.CommandLine, line.ParentCommandLine = guard.Redact(line.CommandLine), guard.Redact(line.ParentCommandLine)
			switch s.Body {
			case process.Memory:
				line.Body = "memory"
			case process.Deleted:
				line.Body = "deleted"
			}
			if !o.all && len(s.Matches) == 0 && line.Body == "" {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if err := enc.Encode(line); err != nil {
				stop(err) // nobody reads any more
			}
		},
	})
	if err != nil {
		return err
	}
	c := s.Coverage()
	fmt.Fprintf(cmd.ErrOrStderr(), "watching by %s with %d rules%s\n", c.Level, len(set.Rules), strings.TrimSuffix("; "+c.Reason, "; "))
	err = s.Run(ctx)
	c = s.Coverage()
	fmt.Fprintf(cmd.ErrOrStderr(), "%d programs seen, %d lost\n", c.Seen, c.Lost)
	if cause := context.Cause(ctx); err == nil && cause != nil && cmd.Context().Err() == nil {
		err = cause
	}
	return err
}

func newGuardRulesCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "List what the guard knows how to find",
		Long: `rules lists the rules of all sensors and the Sigma rules about programs that come
with this program, or with --rules those of a folder as well, which checks them:
a broken rule is an error with its file and line.`,
		Example: "  joulegate guard rules\n  joulegate guard rules --rules /etc/joulegate/sigma --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			folder, _ := cmd.Flags().GetString("rules")
			set, err := sigma.Load(sigma.Gateway())
			if folder != "" {
				if set, err = loadRules(folder); err != nil {
					err = fmt.Errorf("rules of %s: %w", folder, err)
				}
			}
			if err != nil {
				return err
			}
			return printRules(cmd, set)
		},
	}
	cmd.Flags().String("rules", "", "add the rules of this `FOLDER`")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// ruleLine is a rule as it is printed.
type ruleLine struct {
	guard.Rule
	About string   `json:"description,omitempty"`
	Tags  []string `json:"tags,omitempty"`
}

func printRules(cmd *cobra.Command, set *sigma.Set) error {
	var all []ruleLine
	for _, r := range guard.Rules {
		all = append(all, ruleLine{Rule: r})
	}
	for _, r := range set.Rules {
		g, _ := guard.RuleOf(r.Name)
		g.Severity, g.Title = r.Level, r.Title
		all = append(all, ruleLine{g, r.Description, r.Tags})
	}
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"rules": all, "sigma": set.Hash})
	}
	rows := [][]string{{"RULE", "SENSOR", "SEVERITY", "AT MOST", ""}}
	for _, r := range all {
		rows = append(rows, []string{r.ID, r.Sensor.String(), r.Severity.String(), r.Action.String(), r.Title})
	}
	if err := table(cmd.OutOrStdout(), rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "\n%d rules about programs, of %d files, SHA-256 %s\n", len(set.Rules), set.Files, set.Hash)
	return err
}
