package microgrid

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
)

// restored makes a gateway that takes the place of g: the same house and
// address, a new state folder from a backup.
func (g *gateway) restored(backup string) *gateway {
	g.t.Helper()
	n := *g
	n.state = g.state + "-new"
	n.config = filepath.Join(n.state, "joulegate.yaml")
	n.log, n.cmd = g.log+"-new", nil
	n.client = dialControl(&n)
	g.t.Cleanup(n.cleanup)
	_, errOut, code := n.try("restore", backup)
	if code != 0 || !strings.Contains(errOut, "NEVER start the old gateway again") || !strings.Contains(errOut, "grid replace") {
		g.t.Fatalf("restore: exit %d, %q", code, errOut)
	}
	return &n
}

// quickly lets a gateway agree on blocks fast, and catch up by a snapshot
// early.
func (g *gateway) quickly(behind int64) {
	g.t.Helper()
	b, err := os.ReadFile(g.config)
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := config.Parse(b)
	if err != nil {
		g.t.Fatal(err)
	}
	c.Ledger.TimeoutCommit, c.Ledger.SnapshotBehind = config.Duration(50*time.Millisecond), behind
	if err := os.WriteFile(g.config, config.Render(c), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

// mint commits so many mints, a block each and one that signs its state.
func (g *gateway) mint(to, ref string, n int) {
	g.t.Helper()
	for i := range n {
		g.run("account", "mint", "--to", to, "--amount", "0.01", "--ref", fmt.Sprintf("%s-%d", ref, i))
	}
}

// TestRestoredGateway backs a running gateway up, loses it, restores it, and
// gives it its vote back.
func TestRestoredGateway(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 4)
	g.found()
	north, lost := g.gateways[0], g.gateways[3]
	north.mint("sys:grid", "BEFORE", 2)
	g.agree()

	backup := filepath.Join(g.dir, "lost.backup")
	made := ask[struct {
		Ledger bool `json:"ledger"`
		Keys   bool `json:"keys"`
	}](lost, "backup", backup, "--with-keys")
	if !made.Ledger || !made.Keys {
		t.Fatalf("backup of a running gateway: %+v", made)
	}
	had := lost.status()
	old := lost.newest()[lost.name]
	lost.grow(had.Height) // it goes on
	lost.kill()
	north.mint("sys:grid", "MEANWHILE", 2)

	back := lost.restored(backup)
	if v := ask[panel.VerifyReport](back, "ledger", "verify"); len(v.Violations) > 0 || v.Height < had.Height-1 {
		t.Errorf("the restored ledger: %+v, it was at %d", v, had.Height)
	}
	if b, err := os.ReadFile(filepath.Join(back.state, "settings", "revisions.json")); err != nil || !bytes.Contains(b, []byte("sum")) {
		t.Errorf("settings: %v", err)
	}
	g.gateways[3] = back
	back.start()
	g.connected()
	g.agree()
	s := back.status()
	if !s.NewKey || s.Validator {
		t.Errorf("a restored gateway: %+v", s)
	}
	if text := back.run("ledger", "status"); !strings.Contains(text, "grid replace") {
		t.Errorf("status does not say what to do: %q", text)
	}
	back.wait(patience, "a block in a later epoch", func(ctx context.Context) (bool, any) {
		now := north.newest()[back.name]
		return now.Epoch > old.Epoch, now
	})

	// The vote, by an operator at another gateway.
	r := ask[struct{ Request string }](back, "grid", "replace")
	if _, errOut, code := north.try("grid", "replace", r.Request[:len(r.Request)-3]); code == 0 || !strings.Contains(errOut, "damaged") {
		t.Errorf("a damaged request: exit %d, %q", code, errOut)
	}
	north.run("grid", "replace", r.Request)
	back.wait(patience, "a vote", func(ctx context.Context) (bool, any) {
		s, err := back.client.LedgerStatus(ctx)
		return err == nil && s.Validator && !s.NewKey, fmt.Sprintf("%+v %v", s, err)
	})
	if _, errOut, code := back.try("grid", "replace"); code != 1 || !strings.Contains(errOut, "nothing to replace") {
		t.Errorf("twice: exit %d, %q", code, errOut)
	}
	// Three of four must vote: without this one nothing would go on.
	g.gateways[2].stop()
	north.mint("sys:grid", "AFTER", 1)
	g.gateways[2].start()
	g.connected()
	g.agree()
	g.honest()
	for _, gw := range g.gateways {
		gw.books()
		gw.verify()
	}
}

// TestRestoredAlone restores a gateway that has no neighbours: the ledger is
// there, and goes on with the validator from the old card, which comes with
// its memory and the blocks since.
func TestRestoredAlone(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 1)
	g.found()
	one := g.gateways[0]
	one.mint("sys:grid", "BEFORE", 2)
	backup := filepath.Join(g.dir, "one.backup")
	one.run("backup", backup, "--with-keys")
	had := ask[[]struct {
		Account chain.Account `json:"account"`
		Balance chain.Nano    `json:"balance"`
	}](one, "account", "ls")
	one.stop()

	back := one.restored(backup)
	if got := ask[[]struct {
		Account chain.Account `json:"account"`
		Balance chain.Nano    `json:"balance"`
	}](back, "account", "ls"); len(got) != len(had) {
		t.Errorf("accounts %+v, were %+v", got, had)
	}
	back.verify()
	if _, err := os.Stat(filepath.Join(back.state, "consensus", "validator")); err == nil {
		t.Error("the validator's key came with the backup")
	}
	ledger := filepath.Join(back.state, "consensus")
	if err := os.RemoveAll(ledger); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(one.state, "consensus"), ledger); err != nil {
		t.Fatal(err)
	}
	g.gateways[0] = back
	back.start()
	s := back.status()
	back.mint("sys:grid", "AFTER", 1)
	back.grow(s.Height)
	if s = back.status(); !s.Validator || s.NewKey {
		t.Errorf("with its old validator key: %+v", s)
	}
	back.books()
	back.verify()
}

// TestCatchUpBySnapshot stops one of four gateways, lets the ledger grow, and
// brings it back: it fetches the state, and agrees.
func TestCatchUpBySnapshot(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 4)
	for i, gw := range g.gateways {
		gw.install()
		gw.quickly(64)
		if i == 0 {
			gw.create()
			gw.start()
		} else {
			gw.join(g.gateways[0])
		}
	}
	g.connected()
	north, away := g.gateways[0], g.gateways[3]
	north.mint("sys:grid", "BEFORE", 1)
	g.agree()
	was := away.status()
	guard := filepath.Join(away.state, "consensus", "validator", "key.json")
	key, err := os.ReadFile(guard)
	if err != nil {
		t.Fatal(err)
	}
	away.stop()
	for i := 0; north.status().Height < was.Height+110; i++ {
		north.mint("sys:grid", fmt.Sprintf("AWAY-%d", i), 5)
	}

	away.start() // the process stays the same while it begins again
	away.wait(2*patience, "a state from a snapshot", func(ctx context.Context) (bool, any) {
		s, err := away.client.LedgerStatus(ctx)
		if err != nil || s.CatchingUp {
			return false, err
		}
		b, err := os.ReadFile(filepath.Join(away.state, "consensus", "data", "snapshot"))
		return err == nil, fmt.Sprintf("%s %v %+v", b, err, s)
	})
	g.connected()
	g.agree()
	if now, err := os.ReadFile(guard); err != nil || !bytes.Equal(now, key) {
		t.Errorf("the validator's key has changed: %v", err)
	}
	if b, _ := os.ReadFile(away.log); !bytes.Contains(b, []byte("catching up from a snapshot")) || !bytes.Contains(b, []byte("goes on from a snapshot")) {
		t.Error("the log does not say so")
	}
	away.wait(patience, "its vote", func(ctx context.Context) (bool, any) {
		s, err := away.client.LedgerStatus(ctx)
		return err == nil && s.Validator && s.Sync == "", fmt.Sprintf("%+v %v", s, err)
	})
	g.gateways[2].stop() // three of four must vote
	north.mint("sys:grid", "AFTER", 1)
	g.gateways[2].start()
	g.connected()
	g.agree()
	g.honest()
	for _, gw := range g.gateways {
		gw.books()
	}
}
