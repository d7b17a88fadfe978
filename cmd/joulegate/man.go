package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/joulegate/joulegate/board/config"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newManCmd writes the manual. Packages call it when they are built.
func newManCmd() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "man [--out FOLDER | --config-reference]",
		Short: "Write the manual pages",
		Long: `Writes a manual page for every command and joulegate.yaml(5), which explains every
setting. Without --out it writes to the present folder. With --config-reference
it prints that explanation as Markdown instead.`,
		Example: "  joulegate man --out /usr/local/share/man\n  joulegate man --config-reference > CONFIG.md",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if md, _ := cmd.Flags().GetBool("config-reference"); md {
				_, err := fmt.Fprint(cmd.OutOrStdout(), configReference())
				return err
			}
			// The date of a page is no fact about the program, and it would
			// make two builds of one version differ.
			none := time.Unix(0, 0).UTC()
			head := &doc.GenManHeader{Section: "1", Source: "joulegate " + version, Manual: "joulegate", Date: &none}
			one, five := filepath.Join(out, "man1"), filepath.Join(out, "man5")
			for _, dir := range []string{one, five} {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			if err := doc.GenManTree(root, head, one); err != nil {
				return err
			}
			page := "% \"JOULEGATE.YAML\" \"5\" \"\" \"joulegate " + version + "\" \"joulegate\"\n\n# NAME\njoulegate.yaml - configuration of a joulegate gateway\n\n" + configReference()
			return os.WriteFile(filepath.Join(five, "joulegate.yaml.5"), md2man.Render([]byte(page)), 0o644)
		},
	}
	c.Flags().StringVar(&out, "out", ".", "the `FOLDER`; pages go to man1 and man5 in it")
	c.Flags().Bool("config-reference", false, "print the settings as Markdown")
	c.MarkFlagsMutuallyExclusive("out", "config-reference")
	return c
}

// configReference explains every setting, as Markdown.
func configReference() string {
	var b strings.Builder
	b.WriteString(`# joulegate.yaml: every setting

A gateway reads /etc/joulegate/joulegate.yaml, or the file that --config names. ` + "`joulegate init`" + ` writes one with
comments, ` + "`joulegate config check`" + ` says what is wrong with one, by line and path. Keys that are not listed here are
errors. A list of sections is written as ` + "`name[]`" + `. Durations are written as 500ms, 10s, 15m or 2h.

`)
	for _, s := range config.Reference() {
		text := escapeMarkdown(s.Doc)
		if s.Type == "section" || strings.HasSuffix(s.Path, "[]") {
			fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n", s.Path, text)
			continue
		}
		if s.Range != "" && !strings.Contains(s.Doc, "..") {
			text += fmt.Sprintf(". Range: %s", s.Range)
		}
		if s.Default != "" {
			text += fmt.Sprintf(". Default: `%s`", s.Default)
		}
		fmt.Fprintf(&b, "- `%s` (%s): %s.\n", s.Path, s.Type, text)
	}
	return b.String()
}

// escapeMarkdown keeps characters that Markdown would take for its own.
func escapeMarkdown(s string) string {
	return strings.NewReplacer("*", `\*`, "_", `\_`, "<", `\<`).Replace(s)
}
