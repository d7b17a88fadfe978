package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/spf13/cobra"
)

// verifierName is the file of the page that checks bundles.
const verifierName = "joulegate-verify.html"

// verifierPage finds the page beside the program, or where packages put it;
// empty: it is not installed.
func verifierPage() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	dir := filepath.Dir(exe)
	for _, path := range []string{filepath.Join(dir, verifierName), filepath.Join(dir, "..", "share", "joulegate", verifierName)} {
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

func newAuditPageCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "page --out FILE.html",
		Short: "Write the page on which anybody checks a bundle in a browser",
		Long: `Writes one HTML file that holds the verifier. Whoever opens it in a browser, from
disk and without a network, drops a bundle and a genesis file on it and sees every
check. It sends nothing and loads nothing. The panel serves the same page at
/verify.`,
		Example: "  joulegate audit page --out verify.html",
		Args:    cobra.NoArgs,
	}
	out := c.Flags().String("out", "", "`FILE` to write")
	_ = c.MarkFlagRequired("out")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		path := verifierPage()
		if path == "" {
			return errors.New(verifierName + " is not beside this program: it comes with packages, and 'make' makes it")
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if _, err := panel.VerifierPolicy(b); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := writeFile(*out, b, 0o644); err != nil {
			return err
		}
		return emit(cmd, map[string]any{"file": *out, "bytes": len(b)}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s, %.1f MB; open it in a browser\n", *out, float64(len(b))/1e6)
			return err
		})
	}
	return c
}
