package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/doctor"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/spf13/cobra"
)

// maxListed is how many files of the state folder a report names.
const maxListed = 10_000

func newBugreportCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "bugreport FILE",
		Short: "Gather what helps to find a fault, without secrets and without people",
		Long: `Writes one file (tar.gz, JSON inside) for whoever is to find a fault: version,
what doctor sees, the configuration, state of meters, chargers, ledger, peers and
guard, and names and sizes of the files in the state folder.

It holds no keys, passwords or tokens, no accounts, sessions or drivers, no names
that the household has asked for, and the contents of no file of the state folder.
Look into it before you send it: tar -xOzf FILE.`,
		Example: "  joulegate bugreport /tmp/north.tar.gz",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			parts := gatherReport(cmd)
			var size int64
			if err := writeNew(args[0], 0o600, func(w io.Writer) error { return packReport(w, parts, time.Now()) }); err != nil {
				return err
			}
			if i, err := os.Stat(args[0]); err == nil {
				size = i.Size()
			}
			names := make([]string, len(parts))
			for i, p := range parts {
				names[i] = p.name
			}
			return emit(cmd, map[string]any{"file": args[0], "bytes": size, "parts": names}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s, %.1f kB: %s\n", args[0], float64(size)/1000, strings.Join(names, ", "))
				return err
			})
		},
	}
}

// writeNew writes a file that is not there yet.
func writeNew(path string, mode fs.FileMode, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// reportPart is one file of a report.
type reportPart struct {
	name  string
	value any
}

// gatherReport collects what can be had. What cannot is told in its place.
func gatherReport(cmd *cobra.Command) (parts []reportPart) {
	add := func(name string, v any, err error) {
		if err != nil {
			v = map[string]string{"error": err.Error()}
		}
		parts = append(parts, reportPart{name, v})
	}
	st := stateOf(cmd)
	path, _ := cmd.Flags().GetString("config")
	s := subjectOf(cmd)
	cfg, err := loadConfig(path)
	build, _ := debug.ReadBuildInfo()
	about := map[string]any{"version": version, "kernel": s.Host.Kernel, "time": time.Now().UTC(), "board": s.Detected}
	if build != nil {
		about["go"] = build.GoVersion
	}
	add("about.json", about, nil)
	add("doctor.json", doctor.Examine(s), nil)
	if err == nil {
		cfg.Contact = "" // whose number it is, is nobody's business here
		add("config.json", config.Document(cfg), nil)
	} else {
		add("config.json", nil, err)
	}
	add("files.json", listFiles(string(st)), nil)

	g, err := dial(cmd)
	if err != nil {
		add("gateway.json", nil, err)
		return parts
	}
	defer g.Close()
	ctx, stop := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer stop()
	ask := func(name string, f func(ctx context.Context, g *panel.Client) (any, error)) {
		v, err := f(ctx, g)
		add(name, v, err)
	}
	ask("gateway.json", func(ctx context.Context, g *panel.Client) (any, error) { return g.Status(ctx) })
	ask("ledger.json", func(ctx context.Context, g *panel.Client) (any, error) { return g.LedgerStatus(ctx) })
	ask("peers.json", func(ctx context.Context, g *panel.Client) (any, error) { return g.Peers(ctx) })
	ask("meters.json", func(ctx context.Context, g *panel.Client) (any, error) { return g.Meters(ctx) })
	ask("chargers.json", func(ctx context.Context, g *panel.Client) (any, error) {
		all, err := g.Chargers(ctx)
		for i := range all {
			all[i].Session, all[i].Plan, all[i].Sale = "", nil, nil
		}
		return all, err
	})
	ask("guard.json", func(ctx context.Context, g *panel.Client) (any, error) {
		s, err := g.Guard(ctx)
		return panel.DiscreetStatus(s), err
	})
	return parts
}

// listFiles names the files below dir with their sizes. Names of receipts are
// ids of sessions: those folders are counted instead.
func listFiles(dir string) any {
	type file struct {
		Name  string `json:"name"`
		Bytes int64  `json:"bytes"`
		Mode  string `json:"mode"`
		Files int    `json:"files,omitempty"`
	}
	var out []file
	people := map[string]*file{}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || len(out) >= maxListed {
			return nil //nolint:nilerr // what cannot be read is not listed
		}
		i, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		name, _ := filepath.Rel(dir, p)
		top, _, deep := strings.Cut(filepath.ToSlash(name), "/")
		if deep && (top == "receipts" || top == "wallets") {
			if people[top] == nil {
				people[top] = &file{Name: top + "/"}
			}
			people[top].Files++
			people[top].Bytes += i.Size()
			return nil
		}
		out = append(out, file{Name: filepath.ToSlash(name), Bytes: i.Size(), Mode: i.Mode().String()})
		return nil
	})
	for _, f := range people {
		out = append(out, *f)
	}
	return out
}

func packReport(w io.Writer, parts []reportPart, at time.Time) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, p := range parts {
		b, err := json.MarshalIndent(p.value, "", " ")
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		b = append(b, '\n')
		if err := t.WriteHeader(&tar.Header{Name: "joulegate/" + p.name, Mode: 0o644, Size: int64(len(b)), ModTime: at, Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := t.Write(b); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}
