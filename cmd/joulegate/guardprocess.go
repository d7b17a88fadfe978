package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/process"
	"github.com/joulegate/joulegate/guard/sigma"
)

// rulesEvery is how often the folder of rules is looked at.
const rulesEvery = 10 * time.Second

// programWatch is the process sensor with its rules, which are read again when
// their files change.
type programWatch struct {
	*process.Sensor
	folder string
	stamp  string // of the folder when it was read last
	set    atomic.Pointer[sigma.Set]
	log    *slog.Logger
}

// newProgramWatch starts with the rules that come with this program when those
// of the folder are broken, and says so.
func newProgramWatch(folder, list string, report func(guard.Finding), log *slog.Logger) (*programWatch, error) {
	w := &programWatch{folder: folder, log: log}
	set, err := sigma.Load(sigma.Gateway())
	if err != nil {
		return nil, err
	}
	var notes []string
	if folder != "" {
		w.stamp = stampOf(folder)
		more, err := loadRules(folder)
		if err != nil {
			log.Warn("rules are refused", "err", err)
			notes = append(notes, refusal(err))
		} else {
			set = more
		}
	}
	var programs *process.Programs
	if list != "" {
		if programs, err = readPrograms(list); err != nil {
			log.Warn("the list of programs is refused", "err", err)
			notes = append(notes, "guard.programs: "+err.Error())
		}
	}
	if w.Sensor, err = process.New(process.Config{Set: set, Programs: programs, Report: report, Log: log}); err != nil {
		return nil, err
	}
	w.use(set, strings.Join(notes, "; "))
	debug.FreeOSMemory() // reading rules and the kernel's types leaves some 8 MB of rubbish
	return w, nil
}

// use puts rules in force.
func (w *programWatch) use(set *sigma.Set, note string) {
	w.set.Store(set)
	w.SetRules(set, note)
}

func (w *programWatch) hash() chain.Hash { return w.set.Load().Hash }

// Run looks, and reads rules again when their folder has changed. What is
// broken changes nothing.
func (w *programWatch) Run(ctx context.Context) error {
	if w.folder == "" {
		return w.Sensor.Run(ctx)
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(rulesEvery)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				w.reload()
			}
		}
	}()
	err := w.Sensor.Run(ctx)
	stop()
	<-done
	return err
}

func (w *programWatch) reload() {
	now := stampOf(w.folder)
	if now == w.stamp {
		return
	}
	w.stamp = now
	set, err := loadRules(w.folder)
	if err != nil {
		w.log.Warn("rules are refused, the former ones stay in force", "err", err)
		w.SetRules(w.set.Load(), refusal(err)+"; the former rules stay in force")
		return
	}
	w.log.Info("rules were read again", "rules", len(set.Rules), "hash", set.Hash)
	w.use(set, "")
}

// loadRules reads the rules of a folder and those that come with this program.
func loadRules(folder string) (*sigma.Set, error) {
	return sigma.Load(sigma.Gateway(), os.DirFS(folder))
}

// refusal shortens what is wrong with rules to what a status line can show.
func refusal(err error) string {
	first, more, _ := strings.Cut(err.Error(), "\n")
	if more != "" {
		first += fmt.Sprintf(" and %d more", 1+strings.Count(more, "\n"))
	}
	return "guard.sigma: " + first
}

// stampOf tells whether the files of a folder have changed.
func stampOf(folder string) string {
	var b strings.Builder
	files := 0
	err := fs.WalkDir(os.DirFS(folder), ".", func(file string, d fs.DirEntry, err error) error {
		if ext := path.Ext(file); err != nil || d.IsDir() || ext != ".yml" && ext != ".yaml" {
			return err
		}
		if files++; files > sigma.MaxFiles {
			return fs.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %d %d\n", file, info.Size(), info.ModTime().UnixNano())
		return nil
	})
	if err != nil && !errors.Is(err, fs.SkipAll) {
		return err.Error()
	}
	return chain.Sum([]byte(b.String())).String()
}

func readPrograms(file string) (*process.Programs, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return process.ReadPrograms(file, f)
}
