package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/guard/domain"
)

func newGuardDomainCmd() *cobra.Command {
	var o domain.Options
	cmd := &cobra.Command{
		Use:   "domain --list FILE [--allow FILE] NAME...",
		Short: "Say whether names would be blocked, and by which rule",
		Long: `domain reads lists and prints for every NAME whether it would be blocked, as one
JSON document per line with the rule and its list. "-" takes names from stdin,
one per line. --list and --allow may be given more than once.

Lists may be hosts files (the name itself), plain names (and all below), *.name
(all below), ||name^ of Adblock Plus (and all below) or response policy zones.
Allowing rules win. A list with a malformed name is refused, with its line.`,
		Example: `  joulegate guard domain --list hosts.txt ads.example.com
  joulegate guard domain --list a.txt --list b.rpz --allow mine.txt - < names.txt
  joulegate guard domain --only --allow friends.txt time.example.org`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			o.Progress = func(file string, rules int) {
				if rules%1_000_000 == 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d rules read\n", file, rules)
				}
			}
			f, err := domain.Load(cmd.Context(), o)
			if err != nil {
				return err
			}
			return guardDomain(f, names, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringArrayVar(&o.Block, "list", nil, "a `FILE` of names to block")
	cmd.Flags().StringArrayVar(&o.Allow, "allow", nil, "a `FILE` of names to allow, whatever the lists say")
	cmd.Flags().BoolVar(&o.Only, "only", false, "block every name that is not allowed")
	cmd.MarkFlagsOneRequired("list", "allow")
	cmd.AddCommand(newGuardDomainReloadCmd())
	return cmd
}

// domainVerdict is what is printed of a name.
type domainVerdict struct {
	Name    string `json:"name"`
	Verdict string `json:"verdict"` // allow or block
	Rule    string `json:"rule"`
	List    string `json:"list"`
}

func guardDomain(f *domain.Filter, names []string, in io.Reader, out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	judge := func(name string) error {
		v, err := f.Judge(name)
		if err != nil {
			return err
		}
		d := domainVerdict{Name: v.Name, Verdict: "allow"}
		if v.Block {
			d.Verdict = "block"
		}
		d.Rule, d.List = f.Why(v)
		return enc.Encode(d)
	}
	for _, name := range names {
		if name != "-" {
			if err := judge(name); err != nil {
				return err
			}
			continue
		}
		lines := bufio.NewScanner(in)
		for n := 1; lines.Scan(); n++ {
			if lines.Text() == "" {
				continue
			}
			if err := judge(lines.Text()); err != nil {
				return fmt.Errorf("stdin:%d: %w", n, err)
			}
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("read names: %w", err)
		}
	}
	return nil
}
