package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/keys"
)

// failingDisk is a disk whose power fails at a chosen write: before it, after
// it, or in the middle of it.
type failingDisk struct {
	realDisk
	left  int // operations until then; negative: never
	how   string
	done  int
	blown bool
}

var errPower = errors.New("the power is off")

func (d *failingDisk) step(f, half func() error) error {
	d.done++
	if d.blown {
		return errPower
	}
	if d.left--; d.left != 0 {
		return f()
	}
	d.blown = true
	switch d.how {
	case "after":
		_ = f()
	case "middle":
		_ = half()
	}
	return errPower
}

func (d *failingDisk) replace(path string, b []byte, mode fs.FileMode) error {
	return d.step(func() error { return d.realDisk.replace(path, b, mode) }, func() error {
		return os.WriteFile(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new"), b[:len(b)/2], mode)
	})
}

func (d *failingDisk) blank(path string) error {
	return d.step(func() error { return d.realDisk.blank(path) }, func() error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, _ := f.Stat()
		_, err = f.WriteAt(make([]byte, fi.Size()/2), fi.Size()/3)
		return err
	})
}

func (d *failingDisk) remove(path string) error {
	return d.step(func() error { return d.realDisk.remove(path) }, func() error { return nil })
}

const (
	setupPassword = "p:a#s's word"
	setupKey      = "-----BEGIN PRIVATE KEY-----"
)

// newSetup is a boot partition with a setup that has every secret, an empty
// state folder, and a microgrid that a token leads to.
type newSetup struct {
	boot, config string
	st           state
	token        string
	genesis      []byte
	members      map[chain.Key]bool // at the other gateway
	log          bytes.Buffer
}

func makeSetup(t *testing.T) *newSetup {
	t.Helper()
	dir := t.TempDir()
	s := &newSetup{boot: filepath.Join(dir, "boot"), config: filepath.Join(dir, "etc", "joulegate.yaml"), st: state(filepath.Join(dir, "state")), members: map[chain.Key]bool{}}
	if err := errors.Join(os.Mkdir(s.boot, 0o700), os.Mkdir(string(s.st), 0o700)); err != nil {
		t.Fatal(err)
	}
	other, err := makeIdentity(state(filepath.Join(dir, "other")))
	if err != nil {
		t.Fatal(err)
	}
	owner := keys.Public(other.device)
	g := chain.Genesis{
		Version: chain.Version, ChainID: "sunny", SlotSeconds: 900, GraceSeconds: 120, Currency: "EUR", MinorDigits: 2, Operators: []chain.Key{owner},
		Retail: 300_000, FeedIn: 80_000, Nodes: []chain.Node{{ID: "root"}}, Credit: chain.Credit{ExpirySlots: 1}, StartSeconds: 1800, Basis: chain.Simulated,
		Members: []chain.Founder{{Member: other.member("other", owner, true, 43_000, nil), Node: "root"}},
	}
	file := filepath.Join(dir, "genesis.json")
	hash, err := consensus.WriteGenesis(file, g, time.Unix(1_700_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	if s.genesis, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	s.token = chain.Token{ChainID: "sunny", Genesis: hash, PSK: bytes.Repeat([]byte{1}, 32), Seed: bytes.Repeat([]byte{2}, 32), Addrs: []string{"/ip4/192.0.2.1/tcp/4470"}}.String()
	s.write(t, "joulegate-setup.yaml", `version: 1
name: north
board: simulated
network: {address: 192.168.1.20/24}
broker: {url: "tls://broker.example:8883", user: north, password: "`+setupPassword+`", cert_file: north.pem, key_file: north.key}
grid: {token: `+s.token+`}
`)
	s.write(t, "north.pem", "-----BEGIN CERTIFICATE-----\n")
	s.write(t, "north.key", setupKey+"\n")
	return s
}

func (s *newSetup) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.boot, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *newSetup) file() string { return filepath.Join(s.boot, "joulegate-setup.yaml") }

func (s *newSetup) applier(d setupDisk) *applier {
	a := newApplier(s.file(), s.config, s.st, slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	a.disk = d
	a.member = func(context.Context, *config.Setup, *config.Config) error {
		id, err := makeIdentity(s.st)
		if err != nil {
			return err
		}
		s.members[keys.Public(id.device)] = true // the answer may get lost after this
		return d.replace(s.st.genesis(), s.genesis, 0o644)
	}
	return a
}

// applied fails unless the setup is in force, once, and its secrets are where
// they belong and nowhere else.
func (s *newSetup) applied(t *testing.T, name string) {
	t.Helper()
	c, err := loadConfig(s.config)
	if err != nil || c.Name != "north" || c.MQTT.Broker != "tls://broker.example:8883" || c.MQTT.PasswordFile != s.st.brokerPassword() || c.MQTT.KeyFile == "" {
		t.Errorf("%s: configuration %+v: %v", name, c.MQTT, err)
		return
	}
	for path, want := range map[string]string{c.MQTT.PasswordFile: setupPassword, c.MQTT.KeyFile: setupKey} {
		b, err := os.ReadFile(path)
		if fi, e := os.Stat(path); err != nil || string(b) != want+"\n" || e != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %s holds %q: %v", name, path, b, err)
		}
	}
	if len(s.members) != 1 {
		t.Errorf("%s: %d members have joined", name, len(s.members))
	}
	if _, _, _, err := consensus.ReadGenesis(s.st.genesis()); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	b, err := os.ReadFile(s.file())
	if p, e := config.ParseSetup(b); err != nil || e != nil || p.Applied == "" || p.Network.Address == "" {
		t.Errorf("%s: what is left of the setup: %v %v\n%s", name, err, e, b)
	}
	all, err := os.ReadDir(s.boot)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.Name() == "north.key" || strings.HasSuffix(e.Name(), ".error.txt") {
			t.Errorf("%s: %s is still there", name, e.Name())
		}
		b, err := os.ReadFile(filepath.Join(s.boot, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		s.secretless(t, name+": "+e.Name(), b)
	}
	s.secretless(t, name+": the log", s.log.Bytes())
}

func (s *newSetup) secretless(t *testing.T, where string, b []byte) {
	t.Helper()
	for _, secret := range []string{setupPassword, s.token[10:60], setupKey} {
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s holds a secret: %q", where, b)
		}
	}
}

// TestSetupSurvivesPowerCuts lets the power fail at each write in turn, before,
// after and in the middle of it: the next start has everything applied, once.
func TestSetupSurvivesPowerCuts(t *testing.T) {
	whole := makeSetup(t)
	count := &failingDisk{left: -1}
	if done, err := whole.applier(count).apply(t.Context()); err != nil || !done {
		t.Fatalf("%t %v", done, err)
	}
	whole.applied(t, "without a cut")
	if count.done < 8 {
		t.Fatalf("%d writes: the cuts would prove nothing", count.done)
	}
	for cut := 1; cut <= count.done; cut++ {
		for _, how := range []string{"before", "after", "middle"} {
			name := fmt.Sprintf("cut %s write %d", how, cut)
			s := makeSetup(t)
			if _, err := s.applier(&failingDisk{left: cut, how: how}).apply(t.Context()); err == nil {
				t.Errorf("%s: nobody noticed", name)
			}
			// A second cut while it is repeated.
			_, _ = s.applier(&failingDisk{left: 2, how: how}).apply(t.Context())
			if _, err := s.applier(realDisk{}).apply(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			s.applied(t, name)
			idle := &failingDisk{left: -1}
			if done, err := s.applier(idle).apply(t.Context()); done || err != nil || idle.done != 0 {
				t.Errorf("%s: applied again: %t, %v, %d writes", name, done, err, idle.done)
			}
		}
	}
}

// TestSetupAgain: the same setup put back counts no second time, and its
// secrets leave again; another one does.
func TestSetupAgain(t *testing.T) {
	s := makeSetup(t)
	first, err := os.ReadFile(s.file())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.applier(realDisk{}).apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(b, []byte("name: north"), []byte("name: south"), 1) // somebody configures
	if err := os.WriteFile(s.config, changed, 0o644); err != nil {
		t.Fatal(err)
	}
	s.write(t, "joulegate-setup.yaml", string(first))
	if _, err := s.applier(realDisk{}).apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c, err := loadConfig(s.config); err != nil || c.Name != "south" {
		t.Errorf("the setup was applied twice: %q %v", c.Name, err)
	}
	left, _ := os.ReadFile(s.file())
	s.secretless(t, "the setup", left)
	s.write(t, "joulegate-setup.yaml", "version: 1\nname: west\n")
	if done, err := s.applier(realDisk{}).apply(t.Context()); !done || err != nil {
		t.Errorf("%t %v", done, err)
	}
	if c, err := loadConfig(s.config); err != nil || c.Name != "west" || c.MQTT.User != "north" {
		t.Errorf("another setup: %+v %v", c.MQTT, err)
	}
}

// TestSetupErrorStandsBeside: a setup that is wrong, or cannot be done yet,
// stays, and why stands beside it; the gateway's configuration is untouched by
// a wrong one.
func TestSetupErrorStandsBeside(t *testing.T) {
	s := makeSetup(t)
	good, _ := os.ReadFile(s.file())
	s.write(t, "joulegate-setup.yaml", strings.Replace(string(good), "board: simulated", "board: toaster", 1))
	said := func() string {
		b, err := os.ReadFile(filepath.Join(s.boot, "joulegate-setup.error.txt"))
		if err != nil {
			t.Error(err)
		}
		s.secretless(t, "the error", b)
		return string(b)
	}
	if _, err := s.applier(realDisk{}).apply(t.Context()); err == nil || !strings.Contains(said(), "joulegate-setup.yaml: line 3: board: ") {
		t.Errorf("%v: %s", err, said())
	}
	if _, err := os.Stat(s.config); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a wrong setup was applied")
	}
	if b, _ := os.ReadFile(s.file()); !bytes.Contains(b, []byte("toaster")) {
		t.Error("a wrong setup was changed")
	}
	s.write(t, "joulegate-setup.yaml", string(good))
	a := s.applier(realDisk{})
	a.member = func(context.Context, *config.Setup, *config.Config) error {
		return errors.New("the inviting gateway does not answer")
	}
	if _, err := a.apply(t.Context()); err == nil || !strings.Contains(said(), "does not answer") {
		t.Errorf("%v: %s", err, said())
	}
	if _, err := s.applier(realDisk{}).apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.applied(t, "at the second try")
	// A token of another microgrid is refused.
	other := makeSetup(t)
	other.st, other.config = s.st, s.config
	wrong := chain.Token{ChainID: "cloudy", PSK: bytes.Repeat([]byte{1}, 32), Seed: bytes.Repeat([]byte{2}, 32), Addrs: []string{"/ip4/192.0.2.1/tcp/4470"}}.String()
	other.write(t, "joulegate-setup.yaml", "version: 1\ngrid: {token: "+wrong+"}\n")
	if _, err := other.applier(realDisk{}).apply(t.Context()); err == nil || !strings.Contains(err.Error(), "another microgrid") {
		t.Error(err)
	}
}

// TestSetupCommands: the sample is a setup once its token is one, and check
// says what is wrong with a file.
func TestSetupCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "joulegate-setup.yaml")
	command := func(args ...string) (string, string, int) {
		var out, errOut bytes.Buffer
		code := run(t.Context(), args, strings.NewReader(""), &out, &errOut)
		return out.String(), errOut.String(), code
	}
	sample, _, code := command("setup", "sample")
	if code != 0 {
		t.Fatal(code)
	}
	s := makeSetup(t)
	text := strings.Replace(sample, "jg1...", s.token, 1)
	for _, commented := range []string{"network:", "  address:", "  gateway:", "  dns:", "broker:", "  url:", "  user:", "  password:", "  ca_file:", "  cert_file:", "  key_file:", "panel:"} {
		if !strings.Contains(text, "#"+commented) {
			t.Errorf("the sample lacks %q", commented)
		}
		text = strings.Replace(text, "#"+commented, commented, 1)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, errOut, code := command("setup", "check", file); code != 0 || !strings.Contains(out, "is valid") {
		t.Errorf("the sample with everything: exit %d, %s%s", code, out, errOut)
	}
	if err := os.WriteFile(file, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := command("setup", "check", file); code != 1 || !strings.Contains(errOut, "grid.token") {
		t.Errorf("the sample as it is: exit %d, %s", code, errOut)
	}
	if out, _, code := command("setup", "apply", "--file", filepath.Join(t.TempDir(), "none"), "--state", t.TempDir(), "--config", file+".none"); code != 0 || !strings.Contains(out, "no setup") {
		t.Errorf("nothing to apply: exit %d, %s", code, out)
	}
}
