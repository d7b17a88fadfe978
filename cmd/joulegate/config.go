package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/joulegate/joulegate/board/config"
	"github.com/spf13/cobra"
)

func newInitCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "init",
		Short: "Write a commented configuration to start from",
		Example: `  joulegate init --name north
  joulegate init --name north --config ./joulegate.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, _ := cmd.Flags().GetString("config")
			name, _ := cmd.Flags().GetString("name")
			c := config.Sample(name)
			if id, ok := detectedBoard(); ok {
				c.Board = id
			}
			b := config.Render(c)
			if _, err := config.Parse(b); err != nil {
				return usageError{err} // the name is the only input
			}
			if _, err := os.Stat(path); err == nil {
				return fmt.Errorf("%s exists; it is not overwritten", path)
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := writeFile(path, b, 0o644); err != nil {
				return err
			}
			return emit(cmd, map[string]string{"config": path}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "wrote %s\nedit it, then: joulegate config check --config %s\n", path, path)
				return err
			})
		},
	}
	c.Flags().String("name", "gateway", "this gateway's `NAME`: a-z, 0-9 and -, no person's name")
	return c
}

func newConfigCmd() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check, show and change the configuration"}
	c.AddCommand(
		newConfigSchemaCmd(), newConfigDiffCmd(), newConfigApplyCmd(), newConfigConfirmCmd(), newConfigRollbackCmd(), newConfigStatusCmd(), newConfigCodeCmd(),
		&cobra.Command{
			Use:     "check",
			Short:   "Say what is wrong with the configuration, with line and path",
			Example: "  joulegate config check --config ./joulegate.yaml",
			Args:    cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				path, _ := cmd.Flags().GetString("config")
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				_, err = config.Parse(b)
				var all config.Errors
				if err != nil && !errors.As(err, &all) {
					return fmt.Errorf("%s: %w", path, err)
				}
				if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
					if all == nil {
						all = config.Errors{}
					}
					if err := emit(cmd, map[string]any{"file": path, "ok": len(all) == 0, "errors": all}, nil); err != nil {
						return err
					}
				} else {
					for _, e := range all {
						fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", path, e)
					}
					if len(all) == 0 {
						fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", path)
					}
				}
				if len(all) > 0 {
					return errSilent
				}
				return nil
			},
		},
		&cobra.Command{
			Use:   "show",
			Short: "Print the configuration in force, defaults filled in",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := inForce(cmd)
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(config.Render(c))
				return err
			},
		},
	)
	return c
}
