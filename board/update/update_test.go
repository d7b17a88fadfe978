package update

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
)

var epoch = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// signer makes the n-th key of a test.
func signer(n byte) (ed25519.PrivateKey, chain.Key) {
	k := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	return k, chain.Key(k.Public().(ed25519.PublicKey))
}

func manifest(version string, program []byte) Manifest {
	return Manifest{
		Format: 1, Version: version, Channel: "stable", Security: true, RulesFrom: 1, Rules: 1,
		NotBefore: epoch.Add(-time.Hour).Unix(), Expires: epoch.AddDate(0, 1, 0).Unix(), Share: 100,
		Artifacts: []Artifact{{Kind: KindProgram, Arch: "arm64", File: "joulegate-linux-arm64", Size: int64(len(program)), SHA256: chain.Sum(program)}},
	}
}

func sign(t testing.TB, m Manifest, signers ...byte) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range signers {
		k, _ := signer(n)
		if b, err = Sign(b, k); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// memory is a source in memory.
type memory map[string][]byte

func (m memory) Open(_ context.Context, name string, _ int64) (io.ReadCloser, error) {
	b, ok := m[name]
	if !ok {
		return nil, os.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// A manifest counts only with enough signatures of trusted keys, in its time,
// and in its one encoding.
func TestSignatures(t *testing.T) {
	_, k1 := signer(1)
	_, k2 := signer(2)
	_, k3 := signer(3)
	trusted := []chain.Key{k1, k2, k3}
	m := manifest("1.1.0", []byte("new"))
	both := sign(t, m, 1, 2)
	if got, err := Open(both, trusted, 2, epoch); err != nil || got.Version != "1.1.0" {
		t.Fatalf("two of three: %v", err)
	}
	if got, err := Open(sign(t, m, 2, 9, 1), trusted, 2, epoch); err != nil || got.Share != 100 {
		t.Errorf("a stranger's signature beside two: %v", err)
	}
	for name, c := range map[string]struct {
		file      []byte
		keys      []chain.Key
		threshold int
		now       time.Time
		want      error
	}{
		"one of two":         {sign(t, m, 1), trusted, 2, epoch, ErrUnsigned},
		"the same one twice": {twice(t, sign(t, m, 1)), trusted, 2, epoch, ErrUnsigned},
		"strangers":          {sign(t, m, 8, 9), trusted, 1, epoch, ErrUnsigned},
		"nobody":             {sign(t, m, 1, 2), nil, 1, epoch, ErrUnsigned},
		"threshold 0":        {sign(t, m, 1, 2), trusted, 0, epoch, ErrUnsigned},
		"no signature":       {edit(t, both, func(s *signed) { s.Sigs = nil }), trusted, 1, epoch, ErrUnsigned},
		"of another content": {edit(t, both, func(s *signed) { s.Payload = sign0(t, manifest("1.1.1", []byte("new"))) }), trusted, 1, epoch, ErrUnsigned},
		"another algorithm":  {edit(t, both, func(s *signed) { s.Sigs[0].Alg = "none" }), trusted, 1, epoch, ErrUnsigned},
		"a flipped bit":      {edit(t, both, func(s *signed) { s.Sigs[1].Sig[7] ^= 1 }), trusted, 1, epoch, ErrUnsigned},
		"expired":            {both, trusted, 2, epoch.AddDate(0, 1, 0), ErrExpired},
		"not yet":            {both, trusted, 2, epoch.Add(-2 * time.Hour), ErrTooEarly},
		"signed for elsewhere": {edit(t, both, func(s *signed) {
			k, kid := signer(1)
			s.Sigs = []signature{{kid, "Ed25519", chain.Sign(k, "", s.Payload)}}
		}), trusted, 1, epoch, ErrUnsigned},
	} {
		if _, err := Open(c.file, c.keys, c.threshold, c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for name, change := range map[string]func(b []byte) []byte{
		"spaces":        func(b []byte) []byte { return bytes.Replace(b, []byte(`,"share"`), []byte(`, "share"`), 1) },
		"unknown field": func(b []byte) []byte { return bytes.Replace(b, []byte(`"share"`), []byte(`"more":1,"share"`), 1) },
		"other case":    func(b []byte) []byte { return bytes.Replace(b, []byte(`"share"`), []byte(`"Share"`), 1) },
		"twice":         func(b []byte) []byte { return bytes.Replace(b, []byte(`"share"`), []byte(`"share":3,"share"`), 1) },
		"trailing":      func(b []byte) []byte { return append(b, " {}"...) },
	} {
		f := edit(t, both, func(s *signed) {
			s.Payload = change(s.Payload)
			k, kid := signer(1)
			s.Sigs = []signature{{kid, "Ed25519", chain.Sign(k, manifestDomain, s.Payload)}}
		})
		if _, err := Open(f, trusted, 1, epoch); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Open(make([]byte, MaxManifest+1), trusted, 1, epoch); err == nil {
		t.Error("a manifest without end was accepted")
	}
}

func sign0(t *testing.T, m Manifest) []byte {
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func edit(t *testing.T, file []byte, f func(*signed)) []byte {
	t.Helper()
	var s signed
	if err := json.Unmarshal(file, &s); err != nil {
		t.Fatal(err)
	}
	f(&s)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func twice(t *testing.T, file []byte) []byte {
	return edit(t, file, func(s *signed) { s.Sigs = append(s.Sigs, s.Sigs[0]) })
}

// What a manifest may not say, whoever has signed it.
func TestManifestRefused(t *testing.T) {
	for name, change := range map[string]func(m *Manifest){
		"format":         func(m *Manifest) { m.Format = 2 },
		"version":        func(m *Manifest) { m.Version = "newest" },
		"channel":        func(m *Manifest) { m.Channel = "a b" },
		"rules":          func(m *Manifest) { m.Rules = 0 },
		"rules backward": func(m *Manifest) { m.RulesFrom = 2 },
		"share":          func(m *Manifest) { m.Share = 101 },
		"times":          func(m *Manifest) { m.Expires = m.NotBefore },
		"notes":          func(m *Manifest) { m.Notes = "javascript:alert(1)" },
		"no artifact":    func(m *Manifest) { m.Artifacts = nil },
		"kind":           func(m *Manifest) { m.Artifacts[0].Kind = "script" },
		"arch":           func(m *Manifest) { m.Artifacts[0].Arch = "../arm64" },
		"empty":          func(m *Manifest) { m.Artifacts[0].Size = 0 },
		"oversize":       func(m *Manifest) { m.Artifacts[0].Size = MaxProgram + 1 },
		"parent":         func(m *Manifest) { m.Artifacts[0].File = "../joulegate" },
		"absolute":       func(m *Manifest) { m.Artifacts[0].File = "/etc/passwd" },
		"folder":         func(m *Manifest) { m.Artifacts[0].File = "a/b" },
		"dots":           func(m *Manifest) { m.Artifacts[0].File = ".." },
		"query":          func(m *Manifest) { m.Artifacts[0].File = "x?y" },
		"escaped":        func(m *Manifest) { m.Artifacts[0].File = "..%2fx" },
		"nul":            func(m *Manifest) { m.Artifacts[0].File = "x\x00" },
		"itself":         func(m *Manifest) { m.Artifacts[0].File = ManifestFile },
		"twice":          func(m *Manifest) { m.Artifacts = append(m.Artifacts, m.Artifacts[0]) },
	} {
		m := manifest("1.1.0", []byte("x"))
		change(&m)
		if _, err := m.Encode(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzManifest(f *testing.F) {
	_, k1 := signer(1)
	f.Add(sign(f, manifest("1.1.0", []byte("x")), 1))
	f.Add(sign(f, manifest("1.1.0", []byte("x")), 1, 2))
	f.Add([]byte(`{"payload":"e30=","sigs":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Open(b, []chain.Key{k1}, 1, epoch)
		if err != nil {
			return
		}
		// Nobody can sign here: what passes is what was signed.
		if want := manifest("1.1.0", []byte("x")); fmt.Sprint(m) != fmt.Sprint(want) {
			t.Errorf("%+v passes for %+v", m, want)
		}
	})
}

// FuzzRecord: whatever a card gives back, what is read can be written again.
func FuzzRecord(f *testing.F) {
	r, err := Record{Version: 1, Current: Packaged}.with(Packaged, Program{Version: "1.0.0"}).with("a", Program{Version: "1.1.0", Size: 3}).Try(Trial{Place: "a"})
	if err != nil {
		f.Fatal(err)
	}
	b, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	var s sealed
	if err := json.Unmarshal(b, &s); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(s.Doc))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = decodeRecord(b)
		doc, err := json.Marshal(sealed{chain.Sum(b), b})
		if err != nil {
			return // no JSON
		}
		r, err := decodeRecord(doc)
		if err != nil {
			return
		}
		for range 2 * MaxAttempts {
			var place string
			if r, place = r.Start(Program{Version: "1.0.0"}, epoch); place != Packaged && r.Places[place] == (Program{}) && r.Places == nil {
				t.Errorf("starts %q, which is not there", place)
			}
		}
		if r.Trial != nil {
			t.Errorf("a trial without end: %+v", r.Trial)
		}
	})
}

func TestCompare(t *testing.T) {
	order := []string{
		"8f16211", "0.9.0", "v1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-beta", "1.0.0-rc.2", "1.0.0-rc.11", "v1.0.0", "v1.0.0-3-gabcdef0", "1.0.0-12-gabcdef0-dirty", "1.0.1-rc.1", "1.0.1", "1.10.0", "2.0.0",
	}
	for i, a := range order {
		for j, b := range order {
			if got := Compare(a, b); got < 0 != (i < j) || got > 0 != (i > j) {
				t.Errorf("Compare(%s, %s) = %d", a, b, got)
			}
		}
	}
	if Compare("abc", "def") != 0 || Compare("v1.0.0", "1.0.0") != 0 {
		t.Error("what has no order is equal")
	}
}

// Who takes a version first takes it with every larger share, about as many
// as the share says, and others with the next version.
func TestStaged(t *testing.T) {
	counts := map[int]int{}
	for i := range 2000 {
		device := chain.Key(chain.Sum(fmt.Append(nil, i)))
		was := false
		for _, share := range []int{0, 1, 10, 50, 99, 100} {
			is := Staged("1.1.0", device, share)
			if was && !is {
				t.Fatalf("device %d leaves at %d %%", i, share)
			}
			if was = is; is {
				counts[share]++
			}
		}
	}
	if counts[0] != 0 || counts[100] != 2000 || counts[10] < 140 || counts[10] > 260 || counts[50] < 900 || counts[50] > 1100 {
		t.Errorf("of 2000: %v", counts)
	}
	same := 0
	for i := range 2000 {
		device := chain.Key(chain.Sum(fmt.Append(nil, i)))
		if Staged("1.1.0", device, 10) && Staged("1.2.0", device, 10) {
			same++
		}
	}
	if same > 60 {
		t.Errorf("%d of 2000 are first both times", same)
	}
}

// rig is an updater with what surrounds it.
type rig struct {
	*Updater
	store    Store
	source   memory
	mu       sync.Mutex // of busy
	busy     string
	bad      string
	need     uint32
	restarts int
	notes    []string
}

// charge changes why an update has to wait.
func (r *rig) charge(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = why
}

func (r *rig) charging() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.busy
}

func newRig(t *testing.T, s Store, auto string, choice Choice, self Program) *rig {
	t.Helper()
	_, k1 := signer(1)
	_, k2 := signer(2)
	r := &rig{store: s, source: memory{}, need: 1}
	u, err := New(Config{
		Store: s, Slots: Programs{s}, Source: r.source, Keys: []chain.Key{k1, k2}, Threshold: 2, Auto: auto, Channel: "stable",
		Self: self, Place: choice.Place, Trial: choice.Trial, Arches: []string{"arm64"}, Device: k1, Patience: time.Minute,
		Needs: func() (uint32, error) { return r.need, nil }, Busy: r.charging, Well: func([]string) string { return r.bad },
		Restart: func() { r.restarts++ }, Note: func(code string, _ int, _ string) { r.notes = append(r.notes, code) },
		Free: func() (uint64, error) { return 1 << 30, nil },
		Now:  func() time.Time { return epoch }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Updater = u
	return r
}

// made are manifests that were signed already; to sign takes long.
var made = map[string][]byte{}

func (r *rig) offers(t *testing.T, m Manifest, program []byte) {
	t.Helper()
	key := fmt.Sprint(m)
	if made[key] == nil {
		made[key] = sign(t, m, 1, 2)
	}
	r.source[ManifestFile] = made[key]
	r.source[m.Artifacts[0].File] = program
}

var v1 = Program{Version: "1.0.0", RulesFrom: 1, Rules: 1}

// next is the start of whatever the record names.
func next(t *testing.T, s Store, auto string) *rig {
	t.Helper()
	c := Choose(s, v1, epoch)
	self := v1
	if c.Place != Packaged {
		rec, err := Load(s)
		if err != nil {
			t.Fatal(err)
		}
		self = rec.Places[c.Place]
	}
	return newRig(t, s, auto, c, self)
}

func content(t *testing.T, s Store, name string) string {
	t.Helper()
	f, err := s.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A release goes its way: fetched, tried, confirmed; the next one takes the
// other slot; a person goes back.
func TestConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newDisk()
		g := next(t, s, AutoSecurity)
		if st := g.Status(); st.Runs != Packaged || len(s.names()) != 0 {
			t.Fatalf("a gateway that was never updated: %+v, wrote %v", st, s.names())
		}
		g.offers(t, manifest("1.1.0", []byte("one")), []byte("one"))
		if r, err := g.Check(t.Context()); err != nil || r.Refused != "" || !r.Mine || g.Status().Offered == nil {
			t.Fatalf("%+v, %v", r, err)
		}
		if _, err := g.Apply(t.Context()); err != nil || g.restarts != 1 {
			t.Fatalf("%v, %d restarts", err, g.restarts)
		}
		proven := func(want, former string) {
			t.Helper()
			g = next(t, s, AutoSecurity)
			if st := g.Status(); st.Phase != board.UpdateTrial || st.Version != want || st.TriedFrom != former || g.Pending() == "" {
				t.Fatalf("on trial: %+v", st)
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- g.Run(ctx) }()
			time.Sleep(30 * time.Second)
			stop()
			<-done
			if st := g.Status(); st.Phase != board.UpdateIdle || st.Outcome == nil || st.Outcome.State != board.UpdateConfirmed || st.Former != former || !slices.Contains(g.notes, "update.confirmed") {
				t.Fatalf("%+v %v", st, g.notes)
			}
			if c := Choose(s, v1, epoch); c.Trial != nil || content(t, s, c.File) == "" {
				t.Fatalf("after it: %+v", c)
			}
		}
		proven("1.1.0", "1.0.0")
		if got := content(t, s, "a/joulegate"); got != "one" {
			t.Fatalf("slot a holds %q", got)
		}
		g.offers(t, manifest("1.2.0", []byte("two")), []byte("two"))
		if _, err := g.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		proven("1.2.0", "1.1.0")
		if a, b := content(t, s, "a/joulegate"), content(t, s, "b/joulegate"); a != "one" || b != "two" {
			t.Fatalf("slots hold %q and %q", a, b)
		}
		// The same, and an older one, are refused; what is kept is not.
		g.offers(t, manifest("1.2.0", []byte("two")), []byte("two"))
		if _, err := g.Apply(t.Context()); !errors.Is(err, ErrRefused) {
			t.Errorf("1.2.0 again: %v", err)
		}
		g.offers(t, manifest("1.1.5", []byte("old")), []byte("old"))
		if _, err := g.Apply(t.Context()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "newer") {
			t.Errorf("downgrade: %v", err)
		}
		g.busy = "a car charges"
		if err := g.Rollback(t.Context()); !errors.Is(err, ErrRefused) {
			t.Errorf("rollback while a car charges: %v", err)
		}
		g.busy = ""
		if err := g.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		proven("1.1.0", "1.2.0")
		// What a person went back from does not come by itself.
		g.offers(t, manifest("1.2.0", []byte("two")), []byte("two"))
		if _, do, err := g.begin(t.Context(), true); do != nil || err != nil {
			t.Errorf("1.2.0 comes by itself: %v", err)
		}
		// A package that is newer than the slot counts, and so does one whose
		// version says nothing.
		for _, version := range []string{"1.3.0", "8f16211"} {
			d := s.clone()
			if c := Choose(d, Program{Version: version, Rules: 1}, epoch); c.Place != Packaged {
				t.Errorf("package %s: %+v", version, c)
			}
		}
		if c := Choose(s.clone(), Program{Version: "1.0.1", Rules: 1}, epoch); c.Place != "a" {
			t.Errorf("an older package: %+v", c)
		}
	})
}

// What is not well goes by itself: it says so, it never says anything, it ends
// at once, or its slot is damaged.
func TestRolledBack(t *testing.T) {
	apply := func(t *testing.T) (*disk, *rig) {
		s := newDisk()
		g := next(t, s, AutoAll)
		g.offers(t, manifest("1.1.0", []byte("bad")), []byte("bad"))
		if _, err := g.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s, g
	}
	back := func(t *testing.T, s *disk, why string) {
		t.Helper()
		g := next(t, s, AutoAll)
		st := g.Status()
		if st.Runs != Packaged || st.Outcome == nil || st.Outcome.State != board.UpdateRolledBack || !strings.Contains(st.Outcome.Why, why) {
			t.Fatalf("%+v %+v", st, st.Outcome)
		}
		g.offers(t, manifest("1.1.0", []byte("bad")), []byte("bad"))
		if _, do, err := g.begin(t.Context(), true); do != nil || err != nil {
			t.Errorf("it comes again by itself: %v", err)
		}
		if _, err := g.Apply(t.Context()); err != nil || g.restarts != 1 {
			t.Errorf("a person may try it again: %v", err)
		}
	}
	t.Run("not well", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, _ := apply(t)
			g := next(t, s, AutoAll)
			g.bad = "meter house answered before and does not now"
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- g.Run(ctx) }()
			time.Sleep(2 * time.Minute)
			stop()
			<-done
			if g.restarts != 1 {
				t.Fatalf("%d restarts", g.restarts)
			}
			back(t, s, "meter house")
		})
	})
	t.Run("ends at once", func(t *testing.T) {
		s, _ := apply(t)
		for range MaxAttempts {
			if c := Choose(s, v1, epoch); c.Place != "a" || c.Trial == nil {
				t.Fatalf("%+v", c)
			}
		}
		back(t, s, "3 starts")
	})
	t.Run("damaged", func(t *testing.T) {
		s, _ := apply(t)
		s.damage("a/joulegate")
		if c := Choose(s, v1, epoch); c.Place != Packaged || len(c.Told) == 0 {
			t.Fatalf("%+v", c)
		}
		back(t, s, "damaged")
	})
	t.Run("by a person", func(t *testing.T) {
		s, _ := apply(t)
		g := next(t, s, AutoAll)
		if err := g.Rollback(t.Context()); err != nil || g.restarts != 1 {
			t.Fatal(err)
		}
		back(t, s, "person")
	})
	t.Run("damaged record", func(t *testing.T) {
		s, _ := apply(t)
		s.damage(recordFile)
		if c := Choose(s, v1, epoch); c.Place != Packaged || len(c.Told) == 0 {
			t.Fatalf("%+v", c)
		}
	})
	t.Run("starts that cannot be counted", func(t *testing.T) {
		s, _ := apply(t)
		s.full = true
		for range 2 * MaxAttempts {
			if c := Choose(s, v1, epoch); c.Place != Packaged {
				t.Fatalf("%+v", c)
			}
		}
	})
}

// What must not be installed is not, and nothing of it starts.
func TestNotInstalled(t *testing.T) {
	for name, c := range map[string]struct {
		auto   string
		change func(g *rig, m *Manifest)
		want   string
	}{
		"another content": {AutoAll, func(g *rig, m *Manifest) { m.Artifacts[0].SHA256[0] ^= 1 }, "SHA-256"},
		"longer":          {AutoAll, func(g *rig, m *Manifest) { m.Artifacts[0].Size-- }, "longer"},
		"shorter":         {AutoAll, func(g *rig, m *Manifest) { m.Artifacts[0].Size++ }, "ends"},
		"wrong arch":      {AutoAll, func(g *rig, m *Manifest) { m.Artifacts[0].Arch = "armv6" }, "arm64"},
		"channel":         {AutoAll, func(g *rig, m *Manifest) { m.Channel = "beta" }, "channel"},
		"old rules":       {AutoAll, func(g *rig, m *Manifest) { g.need = 2 }, "rules version 2"},
		"new rules only":  {AutoAll, func(g *rig, m *Manifest) { m.RulesFrom, m.Rules = 2, 3 }, "rules version 1"},
		"no room":         {AutoAll, func(g *rig, m *Manifest) { g.cfg.Free = func() (uint64, error) { return keepFree, nil } }, "MB are free"},
		"disk full":       {AutoAll, func(g *rig, m *Manifest) { g.store.(*disk).full = true }, "no space"},
		"no keys":         {AutoAll, func(g *rig, m *Manifest) { g.cfg.Keys = nil }, "update.keys"},
		"not security":    {AutoSecurity, func(g *rig, m *Manifest) { m.Security = false }, "itself"},
		"off":             {AutoOff, func(g *rig, m *Manifest) {}, "itself"},
		"not our turn":    {AutoAll, func(g *rig, m *Manifest) { m.Share = 0 }, "itself"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newDisk()
			g := next(t, s, c.auto)
			program := []byte("program")
			m := manifest("1.1.0", program)
			c.change(g, &m)
			g.offers(t, m, program)
			_, do, err := g.begin(t.Context(), true)
			if c.want == "itself" {
				if do != nil || err != nil {
					t.Fatalf("it comes by itself: %v", err)
				}
			} else {
				if do != nil {
					err = do(t.Context())
				}
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v, want %q", err, c.want)
				}
				if st := g.Status(); st.Error == "" || st.Phase != board.UpdateIdle {
					t.Errorf("%+v", st)
				}
			}
			if s.full = false; g.restarts != 0 {
				t.Error("it restarts")
			}
			if c := Choose(s, v1, epoch); c.Place != Packaged {
				t.Errorf("%+v", c)
			}
		})
	}
}

// Nothing starts while a car charges; it does afterwards, without being
// fetched again.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newDisk()
		g := next(t, s, AutoAll)
		g.offers(t, manifest("1.1.0", []byte("one")), []byte("one"))
		g.busy = "a car charges at charger 1"
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		time.Sleep(time.Hour) // it looks by itself
		synctest.Wait()
		if st := g.Status(); st.Phase != board.UpdateWaiting || st.Wait != g.busy || g.restarts != 0 {
			t.Fatalf("%+v", st)
		}
		if c := Choose(s.clone(), v1, epoch); c.Place != Packaged {
			t.Fatalf("a restart while it waits: %+v", c)
		}
		delete(g.source, "joulegate-linux-arm64")
		g.charge("")
		time.Sleep(time.Minute)
		synctest.Wait()
		if g.restarts != 1 {
			t.Fatalf("%+v", g.Status())
		}
		stop()
		<-done
		if c := Choose(s, v1, epoch); c.Place != "a" || c.Trial == nil {
			t.Errorf("%+v", c)
		}
	})
}

// What a server or a stick may try.
func TestSources(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/r/big", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "1000000") })
	mux.HandleFunc("/r/ok", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "fine") })
	mux.HandleFunc("/r/plain", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/x", http.StatusFound)
	})
	mux.HandleFunc("/r/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/r/loop", http.StatusFound) })
	srv := httptest.NewTLSServer(mux)
	defer srv.Close()
	web := Web{srv.URL + "/r", srv.Client()}
	f, err := web.Open(t.Context(), "ok", 100)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "fine" {
		t.Errorf("%q %v", b, err)
	}
	f.Close()
	for _, name := range []string{"big", "plain", "loop", "missing"} {
		if f, err := web.Open(t.Context(), name, 100); err == nil {
			f.Close()
			t.Errorf("%s: opened", name)
		}
	}
	dir := t.TempDir()
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, "ok"), []byte("fine"), 0o600), os.WriteFile(filepath.Join(dir, "big"), make([]byte, 101), 0o600),
		os.Symlink("/etc/passwd", filepath.Join(dir, "link")), os.Mkdir(filepath.Join(dir, "folder"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	stick, err := NewSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = stick.Open(t.Context(), "ok", 100); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, name := range []string{"big", "link", "folder", "missing", "../ok"} {
		if f, err := stick.Open(t.Context(), name, 100); err == nil {
			f.Close()
			t.Errorf("%s: opened", name)
		}
	}
	for _, where := range []string{"http://example.org", "ftp://example.org", "relative", "https://", "https://u:p@example.org", "https://example.org/?q"} {
		if _, err := NewSource(where); err == nil {
			t.Errorf("%s is a source", where)
		}
	}
}
