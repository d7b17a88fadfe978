package update

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// card is a card that can lose power: a partition that was not synced holds
// anything, the sector of autoboot.txt either text, and the flag, which lies in
// memory, is gone.
type card struct {
	*disk // data partition; it counts the writes
	boot  []byte
	parts map[string][]byte
	flag  bool
}

func newCard() *card {
	return &card{disk: newDisk(), boot: []byte(Autoboot("2", "3")), parts: map[string][]byte{"2": []byte("image 1.0.0 and more"), "3": []byte("image 1.0.0 and more")}}
}

func (c *card) Boot() ([]byte, error) { return bytes.Clone(c.boot), nil }

func (c *card) WriteBoot(b []byte) error {
	err := c.step()
	if err == nil || c.dead && c.left%2 == 0 {
		copy(c.boot, b)
	}
	return err
}

func (c *card) Slot(name string) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(c.parts[name])), nil
}

func (c *card) WriteSlot(name string) (File, error) {
	if err := c.step(); err != nil {
		return nil, err
	}
	return &cardFile{c, name, 0}, nil
}

func (c *card) Tryboot() error {
	if err := c.step(); err != nil {
		return err
	}
	c.flag = true
	return nil
}

type cardFile struct {
	c    *card
	name string
	at   int
}

func (f *cardFile) Write(b []byte) (int, error) {
	err := f.c.step()
	if err != nil && f.c.dead {
		b = b[:len(b)/2]
	}
	f.at += copy(f.c.parts[f.name][f.at:], b)
	return len(b), err
}

func (f *cardFile) Sync() error { return f.c.step() }
func (*cardFile) Close() error  { return nil }

// start is what the firmware and then the gateway do after a reset.
func (c *card) start(t *testing.T) *rig {
	t.Helper()
	p := Partitions{Card: c, Slots: [2]string{"2", "3"}}
	running, err := p.lasting()
	if err != nil {
		t.Fatal(err)
	}
	if c.flag {
		running = map[string]string{"2": "3", "3": "2"}[running]
	}
	c.flag = false
	text := string(c.parts[running])
	version, ok := strings.CutPrefix(text, "image ")
	version, more, _ := strings.Cut(version, " ")
	if !ok || !(more == "and more") {
		t.Fatalf("partition %s starts, and holds %q", running, text)
	}
	choice := Booted(c.disk, running, epoch)
	_, k1 := signer(1)
	_, k2 := signer(2)
	g := &rig{store: c.disk, source: memory{}, need: 1}
	if g.Updater, err = New(Config{
		Store: c.disk, Slots: p, Source: g.source, Keys: []chain.Key{k1, k2}, Threshold: 2, Auto: AutoAll, Channel: "stable",
		Self: Program{Version: version, RulesFrom: 1, Rules: 1}, Place: running, Trial: choice.Trial, Arches: []string{"arm64"}, Device: k1,
		Patience: time.Minute, Restart: func() { g.restarts++ }, Now: func() time.Time { return epoch }, Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *rig) offersImage(t *testing.T, version string) {
	t.Helper()
	image := []byte("image " + version + " and more")
	m := manifest(version, image)
	m.Artifacts[0].Kind = KindPartition
	g.offers(t, m, image)
}

// life takes a card through a version that is well, one that is not, and one
// more.
func (c *card) life(t *testing.T) error {
	for _, v := range []struct {
		version string
		well    bool
	}{{"1.1.0", true}, {"1.2.0", false}, {"1.3.0", true}} {
		g := c.start(t)
		g.offersImage(t, v.version)
		if _, err := g.Apply(t.Context()); err != nil {
			return err
		}
		g = c.start(t)
		if c.dead {
			return errCut
		}
		if g.cfg.Self.Version != v.version || g.cfg.Trial == nil {
			return fmt.Errorf("%s runs, %s was to be tried", g.cfg.Self.Version, v.version)
		}
		var err error
		if v.well {
			err = g.confirm(g.cfg.Place)
		} else {
			err = g.abandon("not well")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TestPartitionPowerCuts cuts the power at each write of a card's life: the
// firmware always finds a whole slot, and the next update finds its way.
func TestPartitionPowerCuts(t *testing.T) {
	whole := newCard()
	whole.left = 1 << 30
	if err := whole.life(t); err != nil {
		t.Fatal(err)
	}
	if g := whole.start(t); g.cfg.Self.Version != "1.3.0" || g.Status().Former != "1.1.0" {
		t.Fatalf("at the end %+v", g.Status())
	}
	writes := 1<<30 - whole.left
	if writes < 40 {
		t.Fatalf("only %d writes", writes)
	}
	for cut := 1; cut <= writes; cut++ {
		for seed := range int64(6) {
			c := newCard()
			c.left = cut
			if err := c.life(t); err == nil {
				t.Fatalf("cut %d was not seen", cut)
			}
			c.disk = c.after(rand.New(rand.NewSource(seed<<16 | int64(cut))))
			c.flag = false
			g := c.start(t)  // fails the test unless what starts is whole
			if g.onTrial() { // made lasting, and the record did not get to say so
				if err := g.confirm(g.cfg.Place); err != nil {
					t.Fatal(err)
				}
			}
			g.offersImage(t, "2.0.0")
			if _, err := g.Apply(t.Context()); err != nil {
				t.Fatalf("cut %d, seed %d: %v", cut, seed, err)
			}
			if g = c.start(t); g.cfg.Self.Version != "2.0.0" {
				t.Fatalf("cut %d, seed %d: then %s starts", cut, seed, g.cfg.Self.Version)
			}
			if err := g.confirm(g.cfg.Place); err != nil {
				t.Fatal(err)
			}
			if g = c.start(t); g.cfg.Self.Version != "2.0.0" || g.onTrial() {
				t.Fatalf("cut %d, seed %d: %s is not lasting", cut, seed, g.cfg.Self.Version)
			}
		}
	}
}

// A trial that ends in a reset has failed; a person goes back by a trial of
// the other partition.
func TestPartitionReset(t *testing.T) {
	c := newCard()
	g := c.start(t)
	g.offersImage(t, "1.1.0")
	if _, err := g.Apply(t.Context()); err != nil || g.restarts != 1 {
		t.Fatal(err)
	}
	c.start(t) // on trial, and hangs: the watchdog resets the board
	g = c.start(t)
	if st := g.Status(); st.Version != "1.0.0" || st.Outcome == nil || st.Outcome.State != "rolled_back" {
		t.Fatalf("%+v", st)
	}
	g.offersImage(t, "1.1.0")
	if _, do, err := g.begin(t.Context(), true); do != nil || err != nil {
		t.Errorf("it comes again by itself: %v", err)
	}
	if _, err := g.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	g = c.start(t)
	if err := g.confirm("3"); err != nil {
		t.Fatal(err)
	}
	if err := g.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	g = c.start(t)
	if g.cfg.Place != "2" || !g.onTrial() {
		t.Fatalf("%+v", g.Status())
	}
	if err := g.confirm("2"); err != nil {
		t.Fatal(err)
	}
	if g = c.start(t); g.cfg.Place != "2" || g.onTrial() {
		t.Fatalf("%+v", g.Status())
	}
}

// Files does on real files what card does in memory.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	f := Files{Autoboot: filepath.Join(dir, "autoboot.txt"), Flag: filepath.Join(dir, "tryboot"), Devices: map[string]string{"2": filepath.Join(dir, "p2"), "3": filepath.Join(dir, "p3")}}
	for name, b := range map[string][]byte{f.Autoboot: []byte("# ours\n" + Autoboot("2", "3")), f.Devices["2"]: []byte("running"), f.Devices["3"]: make([]byte, 64)} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := Partitions{f, [2]string{"2", "3"}}
	image := []byte("an image")
	if err := p.Write("2", bytes.NewReader(image)); err == nil {
		t.Error("the running partition was written to")
	}
	if err := p.Write("3", bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	want := Program{Size: int64(len(image)), SHA256: chain.Sum(image)}
	if err := p.Verify("3", want); err != nil {
		t.Error(err)
	}
	want.SHA256[0] ^= 1
	if err := p.Verify("3", want); err == nil {
		t.Error("another image verifies")
	}
	if err := p.Arm("3"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(f.Flag); err != nil || !strings.HasPrefix(string(b), "0 tryboot") {
		t.Errorf("%q %v", b, err)
	}
	before, _ := os.Stat(f.Autoboot)
	if err := p.Keep("3"); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(f.Autoboot); err != nil || !os.SameFile(before, after) || after.Size() != before.Size() {
		t.Error("autoboot.txt was not overwritten in place")
	}
	if got, err := p.lasting(); err != nil || got != "3" {
		t.Errorf("%q starts, %v", got, err)
	}
	if err := p.Write("3", bytes.NewReader(image)); err == nil {
		t.Error("the partition that now starts was written to")
	}
	if err := os.Truncate(f.Autoboot, 10); err != nil {
		t.Fatal(err)
	}
	if err := p.Keep("2"); err == nil || !strings.Contains(err.Error(), "autoboot.txt") {
		t.Errorf("a file that is too short: %v", err)
	}
	if _, err := f.Slot("4"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
