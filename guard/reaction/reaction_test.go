package reaction

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/guard"
)

// A victim is this test's binary, or a copy of it, that waits to be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "wait" {
		fmt.Println("ready")
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	os.Exit(m.Run())
}

// start runs a program until it says that it is ready.
func start(t *testing.T, path string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(path, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// copyOf makes an executable that differs from this one only as a file.
func copyOf(t *testing.T, name string) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, self, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func reactionTo(t *testing.T, cmd *exec.Cmd, image string) guard.Reaction {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	ticks, err := startTime(stat)
	if err != nil {
		t.Fatal(err)
	}
	return guard.Reaction{ID: 1, Action: guard.Kill, Subject: guard.Subject{Kind: guard.PID, Value: fmt.Sprintf("%d@%d", cmd.Process.Pid, ticks)}, Rule: guard.LoadMiner, Image: image}
}

func alive(cmd *exec.Cmd) bool { return cmd.Process.Signal(unix.Signal(0)) == nil }

// killed tells whether a process ended by SIGKILL.
func killed(cmd *exec.Cmd) bool {
	var e *exec.ExitError
	return errors.As(cmd.Wait(), &e) && strings.Contains(e.String(), "killed")
}

func TestKillEndsTheProcessThatWasFound(t *testing.T) {
	miner := copyOf(t, "x mrig) (") // a name that confuses readers of stat
	cmd := start(t, miner, "wait")
	r := reactionTo(t, cmd, miner)
	sum, err := hashOf(miner)
	if err != nil {
		t.Fatal(err)
	}
	r.SHA256 = hex.EncodeToString(sum[:])
	if err := New(Config{}).Do(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if !killed(cmd) {
		t.Error("it ended otherwise")
	}
	if err := New(Config{}).Do(t.Context(), r); err == nil || !strings.Contains(err.Error(), "by itself") {
		t.Errorf("a second time: %v", err)
	}
}

func TestKillReachesWhatHasNoFile(t *testing.T) {
	gone := copyOf(t, "dropper")
	cmd := start(t, gone, "wait")
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if err := New(Config{}).Do(t.Context(), reactionTo(t, cmd, gone+" (deleted)")); err != nil || !killed(cmd) {
		t.Errorf("a deleted executable: %v", err)
	}

	fd, err := unix.MemfdCreate("payload", 0)
	if err != nil {
		t.Fatal(err)
	}
	mem := os.NewFile(uintptr(fd), "payload")
	defer mem.Close()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mem.Write(self); err != nil {
		t.Fatal(err)
	}
	cmd = start(t, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), "wait")
	if err := New(Config{}).Do(t.Context(), reactionTo(t, cmd, "/memfd:payload (deleted)")); err != nil || !killed(cmd) {
		t.Errorf("a program in memory: %v", err)
	}
}

func TestKillSpares(t *testing.T) {
	miner := copyOf(t, "miner")
	sum, err := hashOf(miner)
	if err != nil {
		t.Fatal(err)
	}
	cmd := start(t, miner, "wait")
	part := start(t, "/proc/self/exe", "wait") // this program in another role, as the reflex and the sensors are
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	good := reactionTo(t, cmd, miner)
	for name, c := range map[string]struct {
		Processes
		change func(*guard.Reaction)
	}{
		"another process with its number":  {change: func(r *guard.Reaction) { r.Subject.Value += "1" }},
		"one that runs something else now": {change: func(r *guard.Reaction) { r.Image = "/usr/bin/other" }},
		"an executable that is not named":  {change: func(r *guard.Reaction) { r.Image = "" }},
		"an executable of another hash":    {change: func(r *guard.Reaction) { r.SHA256 = strings.Repeat("0", 64) }},
		"a listed executable":              {Processes: Processes{Listed: func(i string, s [32]byte) bool { return i == miner && s == sum }}},
		"a program of the configuration":   {Processes: Processes{Never: []string{miner}}},
		"this gateway": {change: func(r *guard.Reaction) {
			r.Subject.Value = fmt.Sprintf("%d@%d", os.Getpid(), ownStart(t))
			r.Image = self
		}},
		"a part of this gateway":            {change: func(r *guard.Reaction) { *r = reactionTo(t, part, self) }},
		"init":                              {change: func(r *guard.Reaction) { r.Subject.Value = "1@1" }},
		"no process":                        {change: func(r *guard.Reaction) { r.Subject.Value = "-1@1" }},
		"a host":                            {change: func(r *guard.Reaction) { r.Subject.Kind = guard.Host }},
		"everybody":                         {change: func(r *guard.Reaction) { r.Subject.Value = "0@1" }},
		"a kernel thread, or anything else": {change: func(r *guard.Reaction) { r.Subject.Value = "2@1" }},
	} {
		r := good
		if c.change != nil {
			c.change(&r)
		}
		if err := New(Config{Processes: c.Processes}).Do(t.Context(), r); err == nil {
			t.Errorf("%s is killed", name)
		}
	}
	if !alive(cmd) || !alive(part) {
		t.Error("somebody was killed after all")
	}
}

func ownStart(t *testing.T) uint64 {
	t.Helper()
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	ticks, err := startTime(stat)
	if err != nil {
		t.Fatal(err)
	}
	return ticks
}

// A name protects only where the system keeps its programs.
func TestDaemonsAreKnownByPlace(t *testing.T) {
	for image, want := range map[string]bool{
		"/usr/sbin/sshd": true, "/usr/lib/systemd/systemd-networkd": true, "/usr/sbin/mosquitto": true, "/sbin/init": true,
		"/tmp/sshd": false, "/dev/shm/systemd": false, "/usr/sbinx/sshd": false, "/usr/bin/xmrig": false, "sshd": false, "/home/pi/usr/sbin/sshd": false,
	} {
		if got := isDaemon(image); got != want {
			t.Errorf("%s: %t", image, got)
		}
	}
	if bare("/usr/sbin/sshd (deleted)") != "/usr/sbin/sshd" {
		t.Error("a daemon whose file an update replaced is not known any more")
	}
}

type fakeHands struct{ got []string }

func (f *fakeHands) Block(a netip.Addr, d time.Duration) error {
	f.got = append(f.got, fmt.Sprint("block ", a, " ", d))
	return nil
}

func (f *fakeHands) Unblock(a netip.Addr) error {
	f.got = append(f.got, fmt.Sprint("unblock ", a))
	return nil
}

func (f *fakeHands) Quarantine(name string, on bool) error {
	f.got = append(f.got, fmt.Sprint("quarantine ", name, " ", on))
	return nil
}

func (f *fakeHands) SafeStop(_ context.Context, rule string) error {
	f.got = append(f.got, "stop "+rule)
	return nil
}

func TestEveryActionReachesItsHand(t *testing.T) {
	f := &fakeHands{}
	r := New(Config{Filter: f, Peers: f, Chargers: f})
	do := func(ok bool, a guard.Reaction) {
		t.Helper()
		if err := r.Do(t.Context(), a); (err == nil) != ok {
			t.Errorf("%+v: %v", a, err)
		}
	}
	host := guard.Subject{Kind: guard.Host, Value: "::ffff:192.0.2.7"}
	do(true, guard.Reaction{Action: guard.Block, Subject: host, For: time.Hour})
	do(true, guard.Reaction{Action: guard.Block, Subject: host, Undo: true})
	do(false, guard.Reaction{Action: guard.Block, Subject: host})
	do(false, guard.Reaction{Action: guard.Block, Subject: guard.Subject{Kind: guard.Host, Value: "x"}, For: time.Hour})
	do(false, guard.Reaction{Action: guard.Block, Subject: host, For: time.Hour, Ask: true})
	do(true, guard.Reaction{Action: guard.Quarantine, Subject: guard.Subject{Kind: guard.Peer, Value: "north"}})
	do(true, guard.Reaction{Action: guard.Quarantine, Subject: guard.Subject{Kind: guard.Peer, Value: "north"}, Undo: true})
	do(true, guard.Reaction{Action: guard.SafeStop, Rule: guard.LoadBinary})
	do(true, guard.Reaction{Action: guard.SafeStop, Rule: guard.LoadBinary, Undo: true})
	do(false, guard.Reaction{})
	want := "[block 192.0.2.7 1h0m0s unblock 192.0.2.7 quarantine north true quarantine north false stop load.binary_changed]"
	if got := fmt.Sprint(f.got); got != want {
		t.Errorf("did %s\nwant %s", got, want)
	}
	if err := New(Config{}).Do(t.Context(), guard.Reaction{Action: guard.SafeStop}); !errors.Is(err, errCannot) {
		t.Errorf("without hands: %v", err)
	}
}

func TestHashIsOfTheWholeFile(t *testing.T) {
	p := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(p, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := hashOf(p); err != nil || got != sha256.Sum256([]byte("abc")) {
		t.Errorf("%x, %v", got, err)
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("1 (a) b) S 1 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 77 1"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = startTime(b)
		_, _, _ = parseProcess(guard.Subject{Kind: guard.PID, Value: string(b)})
	})
}
