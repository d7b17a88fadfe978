package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/spf13/cobra"
)

func newConfigSchemaCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetEscapeHTML(false)
			if asJSON, _ := cmd.Flags().GetBool("json"); !asJSON {
				enc.SetIndent("", "  ")
			}
			return enc.Encode(config.Schema())
		},
	}
}

// inForce returns the configuration of the running gateway, or of the file.
func inForce(cmd *cobra.Command) (config.Config, error) {
	g, err := dial(cmd)
	if errors.Is(err, errNotRunning) {
		path, _ := cmd.Flags().GetString("config")
		return loadConfig(path)
	} else if err != nil {
		return config.Config{}, err
	}
	defer g.Close()
	v, err := g.ConfigView(cmd.Context())
	if err != nil {
		return config.Config{}, err
	}
	return config.Parse([]byte(v.Text))
}

func printChanges(w io.Writer, changes []config.Change) error {
	rows := [][]string{{"SETTING", "NOW", "THEN"}}
	for _, c := range changes {
		rows = append(rows, []string{c.Path, c.Old, c.New})
	}
	if len(changes) == 0 {
		_, err := fmt.Fprintln(w, "no difference")
		return err
	}
	return table(w, rows)
}

func newConfigDiffCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "diff FILE",
		Short:   "Show what a file would change in the configuration in force",
		Example: "  joulegate config diff ./new.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cur, err := inForce(cmd)
			if err != nil {
				return err
			}
			next, err := loadConfig(args[0])
			if err != nil {
				return err
			}
			changes := append([]config.Change{}, config.Diff(cur, next)...)
			return emit(cmd, changes, func(w io.Writer) error { return printChanges(w, changes) })
		},
	}
}

func newConfigApplyCmd() *cobra.Command {
	c := query(&cobra.Command{
		Use:   "apply FILE",
		Short: "Apply a configuration that is rolled back unless it is confirmed",
		Long: `Gives the running gateway another configuration. The gateway stores it, starts
anew with it (relays open, sessions are taken up again as after any restart) and
checks itself: the control loop runs, the broker is connected, the meters that
answered before answer again. Then it waits for 'joulegate config confirm'.

Without it, after a crash, or after a reboot, the former configuration is in
force again.`,
		Example: "  joulegate config show > new.yaml\n  joulegate config apply new.yaml --confirm 5m\n  joulegate config confirm",
		Args:    cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, g *panel.Client, args []string) (panel.ConfigResult, error) {
		b, err := os.ReadFile(args[0])
		if err != nil {
			return panel.ConfigResult{}, err
		}
		next, err := config.Parse(b)
		if err != nil {
			return panel.ConfigResult{}, fmt.Errorf("%s: %w", args[0], err)
		}
		v, err := g.ConfigView(cmd.Context())
		if err != nil {
			return panel.ConfigResult{}, err
		}
		within, _ := cmd.Flags().GetDuration("confirm")
		dry, _ := cmd.Flags().GetBool("dry-run")
		doc, err := json.Marshal(config.Document(next))
		if err != nil {
			return panel.ConfigResult{}, err
		}
		d := config.Desired{
			Txn: fmt.Sprintf("cli-%d", time.Now().UnixNano()), Base: v.Rev, Mode: config.Replace,
			ConfirmS: int64(within / time.Second), Config: doc,
		}
		if dry {
			cur, err := config.Parse([]byte(v.Text))
			return panel.ConfigResult{State: "valid", Changes: config.Diff(cur, next)}, err
		}
		return g.ConfigChange(cmd.Context(), d, "")
	}, func(w io.Writer, r panel.ConfigResult) error {
		if err := printChanges(w, r.Changes); err != nil || r.State != string(config.Stored) {
			return err
		}
		_, err := fmt.Fprintf(w, "revision %d is stored; the gateway starts anew with it\nconfirm it: joulegate config confirm\n", r.Rev)
		return err
	})
	c.Flags().Duration("confirm", config.DefaultConfirm, "it is rolled back unless confirmed within this `DURATION`, 10s..1h")
	c.Flags().Bool("dry-run", false, "only say what would change")
	return c
}

func printResult(w io.Writer, r panel.ConfigResult) error {
	s := fmt.Sprintf("revision %d: %s", r.Rev, r.State)
	if r.Error != "" {
		s += ": " + r.Error
	}
	_, err := fmt.Fprintln(w, s)
	return err
}

func newConfigConfirmCmd() *cobra.Command {
	return query(&cobra.Command{
		Use:   "confirm",
		Short: "Keep the configuration that was applied",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.ConfigResult, error) {
		return g.ConfigConfirm(cmd.Context(), "")
	}, printResult)
}

func newConfigRollbackCmd() *cobra.Command {
	return query(&cobra.Command{
		Use:   "rollback",
		Short: "End the change under way, or apply the revision before",
		Long: `Ends a change that was not confirmed. If none is under way, the revision before
the one in force is applied, and has to be confirmed like any other.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.ConfigResult, error) {
		return g.ConfigRollback(cmd.Context(), "")
	}, printResult)
}

// configStatus is how the configuration stands.
func newConfigStatusCmd() *cobra.Command {
	return query(&cobra.Command{
		Use:   "status",
		Short: "Show which revision is in force and whether a change waits",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.ConfigView, error) {
		return g.ConfigView(cmd.Context())
	}, func(w io.Writer, v panel.ConfigView) error {
		rows := [][]string{{"revision", fmt.Sprint(v.Rev)}, {"by", v.By}}
		if p := v.Pending; p != nil {
			rows = append(rows, []string{"change", fmt.Sprintf("revision %d, %s", p.Rev, p.Phase)})
			if !p.Deadline.IsZero() {
				rows = append(rows, []string{"confirm by", p.Deadline.Local().Format(time.DateTime)})
			}
		}
		if o := v.Outcome; o != nil {
			rows = append(rows, []string{"last change", fmt.Sprintf("revision %d %s %s", o.Rev, o.State, o.Why)})
		}
		return table(w, rows)
	})
}

func newConfigCodeCmd() *cobra.Command {
	return query(&cobra.Command{
		Use:   "code",
		Short: "Make a code that lets a browser see and change settings",
		Long: `The page has settings too, for whoever signs in there with a code from here. It is
valid for ten minutes, once, and for three tries; the browser stays signed in for half
an hour. With keys under "installers" the page shows settings and changes none.`,
		Example: "  joulegate config code",
		Args:    cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Code, error) {
		return g.SignInCode(cmd.Context())
	}, writeCode)
}
