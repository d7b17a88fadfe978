package microgrid

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/board/update"
	"github.com/joulegate/joulegate/chain"
)

// releases is a stick with what two maintainers have signed.
type releases struct {
	t    *testing.T
	dir  string
	keys [2]ed25519.PrivateKey
}

func newReleases(t *testing.T) *releases {
	t.Helper()
	r := &releases{t: t, dir: t.TempDir()}
	for i := range r.keys {
		_, k, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		r.keys[i] = k
	}
	return r
}

func (r *releases) public() (keys []string) {
	for _, k := range r.keys {
		keys = append(keys, chain.Key(k.Public().(ed25519.PublicKey)).String())
	}
	return keys
}

// offer puts a program there, signed by so many.
func (r *releases) offer(version string, program []byte, signers int) {
	r.t.Helper()
	arch := runtime.GOARCH
	if arch == "arm" {
		arch = "armv6"
	}
	m := update.Manifest{
		Format: 1, Version: version, Channel: "stable", Security: true, RulesFrom: 1, Rules: 1, Share: 100,
		NotBefore: time.Now().Add(-time.Hour).Unix(), Expires: time.Now().Add(24 * time.Hour).Unix(),
		Artifacts: []update.Artifact{{Kind: update.KindProgram, Arch: arch, File: "joulegate-" + version, Size: int64(len(program)), SHA256: chain.Sum(program)}},
	}
	b, err := m.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, k := range r.keys[:signers] {
		if b, err = update.Sign(b, k); err != nil {
			r.t.Fatal(err)
		}
	}
	for name, content := range map[string][]byte{m.Artifacts[0].File: program, update.ManifestFile: b} {
		if err := os.WriteFile(filepath.Join(r.dir, name), content, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
}

// newer builds the program once more, as another version.
func newer(t *testing.T, version string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "joulegate")
	c := exec.Command("go", "build", "-ldflags", "-X main.version="+version, "-o", out, "github.com/joulegate/joulegate/cmd/joulegate")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// restarted does once what a service manager does with a service that has
// ended, or that does not answer within hung.
func (g *gateway) restarted(hung time.Duration) {
	g.t.Helper()
	select {
	case <-g.done:
	case <-time.After(hung):
		_ = g.cmd.Process.Signal(syscall.SIGABRT)
		<-g.done
	}
	f, err := os.OpenFile(g.log, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	c := g.command("run")
	c.Env = append(append(os.Environ(), g.env...), strings.TrimRight(g.mark(), "\x00"))
	c.Stdout, c.Stderr = f, f
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.cmd, g.done = c, make(chan struct{})
	go func(done chan struct{}) {
		g.err = c.Wait()
		close(done)
	}(g.done)
}

// tried restarts the gateway after each start of a program on trial, the first
// of which is given its time, until the trial has ended.
func (g *gateway) tried(first, hung time.Duration) {
	g.t.Helper()
	store, seen := update.Dir(filepath.Join(g.state, "update")), 0
	for until := time.Now().Add(6 * patience); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		r, err := update.Load(store)
		switch {
		case err != nil:
			g.t.Fatal(err)
		case r.Trial == nil && seen > 0:
			return
		case r.Trial != nil && r.Trial.Attempts > seen:
			if seen++; seen > 1 {
				first = hung
			}
			began := time.Now()
			g.restarted(first)
			if seen == 1 && time.Since(began) >= first {
				g.t.Errorf("nothing has ended the program within %s", first)
			}
		}
	}
	g.t.Fatal("the trial does not end")
}

// TestUpdates takes a gateway through a release that enough people have
// signed, one that too few have, one while a car charges, one that ends at once
// and one that hangs: it ends with the release that was well, its process still
// the one that the service manager has started.
func TestUpdates(t *testing.T) {
	t.Parallel()
	grid, g := newUpdatable(t)
	r := newReleases(t)
	g.trust(r)
	g.create()
	g.start()
	stands := func(what string, f func(v board.Update) bool) (v board.Update) {
		t.Helper()
		g.wait(2*patience, what, func(ctx context.Context) (bool, any) {
			var err error
			v, err = g.client.Update(ctx, panel.UpdateOrder{})
			return err == nil && f(v), fmt.Sprintf("%+v %+v %v", v, v.Outcome, err)
		})
		return v
	}
	if _, errOut, code := g.try("update", "check"); code != 1 || !strings.Contains(errOut, "look for a release") {
		t.Errorf("an empty stick: %d %q", code, errOut)
	}
	program := newer(t, "0.2.0")

	// Signed by one of two.
	r.offer("0.2.0", program, 1)
	if _, errOut, code := g.try("update", "apply"); code != 1 || !strings.Contains(errOut, "not signed by enough") {
		t.Errorf("one signature of two: %d %q", code, errOut)
	}

	// While a car charges it is fetched, and not started.
	r.offer("0.2.0", program, 2)
	anna := g.wallet("anna", "50")
	s := grid.charge(g, anna, 5000)
	pid := g.cmd.Process.Pid
	if v := ask[board.Update](g, "update", "apply"); v.Phase != board.UpdateWaiting || !strings.Contains(v.Wait, "charger 1") {
		t.Fatalf("while a car charges: %+v", v)
	}
	time.Sleep(6 * time.Second) // one more look at the charger
	if v := ask[board.Update](g, "update", "status"); v.Version == "0.2.0" || v.Phase != board.UpdateWaiting || !grid.street.State(g.index).Relay {
		t.Fatalf("it did not wait: %+v", v)
	}
	must(g, func(ctx context.Context) (panel.Session, error) {
		return g.client.StopSession(ctx, s.ID, panel.SignStop(s.ID, anna.Key))
	})
	if _, err := grid.street.Unplug(g.index); err != nil {
		t.Fatal(err)
	}
	v := stands("the new program", func(v board.Update) bool { return v.Version == "0.2.0" && v.Phase == board.UpdateIdle })
	if v.Runs != "a" || v.Outcome == nil || v.Outcome.State != board.UpdateConfirmed || v.Former == "" {
		t.Fatalf("%+v", v)
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || exe != filepath.Join(g.state, "update", "a", "joulegate") {
		t.Errorf("process %d runs %s, %v", pid, exe, err)
	}
	bill(t, g.settled(s.ID))

	// A restart, and a change of the configuration, stay with it.
	g.stop()
	g.start()
	if v := ask[board.Update](g, "update", "status"); v.Version != "0.2.0" {
		t.Fatalf("after a restart %+v", v)
	}

	// One that ends at once.
	r.offer("0.3.0", []byte("#!/bin/sh\nexit 3\n"), 2)
	g.behind("update", "apply")
	g.tried(2*patience, 2*patience)
	v = stands("the former program", func(v board.Update) bool { return v.Outcome != nil && v.Outcome.Version == "0.3.0" })
	if v.Version != "0.2.0" || v.Outcome.State != board.UpdateRolledBack {
		t.Fatalf("after one that ends at once: %+v %+v", v, v.Outcome)
	}

	// One that hangs: first the kernel's timer ends it, then the service
	// manager loses patience.
	r.offer("0.4.0", []byte("#!/bin/sh\nexec sleep 1000\n"), 2)
	g.behind("update", "apply")
	g.tried(2*patience, time.Second)
	if b, err := os.ReadFile(g.log); err != nil || !strings.Contains(string(b), "of=3") {
		t.Errorf("its starts are not told: %v", err)
	}
	v = stands("the former program", func(v board.Update) bool { return v.Outcome != nil && v.Outcome.Version == "0.4.0" })
	if v.Version != "0.2.0" || v.Outcome.State != board.UpdateRolledBack || v.Runs != "a" {
		t.Fatalf("after one that hangs: %+v %+v", v, v.Outcome)
	}

	// And back to what was packaged.
	g.run("update", "rollback")
	v = stands("the packaged program", func(v board.Update) bool { return v.Runs == update.Packaged && v.Phase == board.UpdateIdle })
	if v.Outcome.State != board.UpdateConfirmed || v.Former != "0.2.0" {
		t.Fatalf("%+v %+v", v, v.Outcome)
	}
	g.verify()

	// Without a running gateway.
	g.stop()
	r.offer("0.2.1", []byte("#!/bin/sh\nexit 3\n"), 2)
	if v := ask[board.Update](g, "update", "apply"); v.Phase != board.UpdateRestarting {
		t.Errorf("while stopped: %+v", v)
	}
	if v := ask[board.Update](g, "update", "rollback"); v.Outcome == nil || v.Outcome.State != board.UpdateRolledBack {
		t.Errorf("while stopped: %+v", v)
	}
	g.start()
	if v := ask[board.Update](g, "update", "status"); v.Runs != update.Packaged {
		t.Errorf("%+v", v)
	}
}

func newUpdatable(t *testing.T) (*grid, *gateway) {
	t.Helper()
	grid := newGrid(t, 1)
	g := grid.gateways[0]
	g.install()
	return grid, g
}

// trust makes a gateway take releases that both maintainers have signed.
func (g *gateway) trust(r *releases) {
	g.t.Helper()
	b, err := os.ReadFile(g.config)
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := config.Parse(b)
	if err != nil {
		g.t.Fatal(err)
	}
	c.Update.Source, c.Update.Keys, c.Update.Patience = r.dir, r.public(), config.Duration(10*time.Second)
	if err := os.WriteFile(g.config, config.Render(c), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

// behind runs a command that outlives the gateway's program.
func (g *gateway) behind(args ...string) {
	g.t.Helper()
	c := g.command(args...)
	if err := c.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
}
