//go:build hil

package hil

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/ledger"
)

// card returns a card as it is shipped, on a larger one: the data partition
// has to grow.
func (l *lab) card(t *testing.T) string {
	t.Helper()
	agent := l.program(t, ARM64, "github.com/joulegate/joulegate/cmd/joulegate")
	made := l.once(t, "sd.img", func(path string) error {
		dist := t.TempDir()
		if err := os.Symlink(agent, filepath.Join(dist, "joulegate-linux-arm64")); err != nil {
			return err
		}
		for _, c := range []struct {
			env  []string
			args []string
		}{
			{[]string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64"}, []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dist, "joulegate-init-linux-arm64"), "./init"}},
			{nil, []string{"run", ".", "-root", "../..", "-dist", dist, "-card", "only"}},
		} {
			cmd := exec.Command("go", c.args...)
			cmd.Dir, cmd.Env = "../image", append(os.Environ(), c.env...)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("go %s: %w: %s", strings.Join(c.args, " "), err, out)
			}
		}
		found, err := filepath.Glob(filepath.Join(dist, "*-sd.img"))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%d images, %w", len(found), err)
		}
		return exec.Command("cp", "--sparse=always", found[0], path).Run()
	})
	card := filepath.Join(t.TempDir(), "sd.img")
	if out, err := exec.Command("cp", "--sparse=always", made, card).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Truncate(card, 1<<30); err != nil {
		t.Fatal(err)
	}
	return card
}

// onSetup writes files to the first partition of a card, as a person does on
// another computer.
func onSetup(t *testing.T, card string, files map[string]string) {
	t.Helper()
	at, err := onCard(card, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		cmd := exec.Command("mcopy", "-n", "-o", "-i", at, "-", "::"+name)
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mcopy: %v: %s", err, out)
		}
	}
}

// partition copies a partition out of a card.
func partition(t *testing.T, card string, n int) string {
	t.Helper()
	all, err := Partitions(card)
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(card)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint("p", n)))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, io.NewSectionReader(in, all[n-1].Start, all[n-1].Size)); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

// timeServer answers SNTP (RFC 5905) with this machine's time, and returns
// its port.
func timeServer(t *testing.T) int {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		stamp := func(b []byte) {
			const since1900 = 2_208_988_800
			now := time.Now()
			binary.BigEndian.PutUint32(b, uint32(now.Unix()+since1900))
			binary.BigEndian.PutUint32(b[4:], uint32(uint64(now.Nanosecond())<<32/1e9))
		}
		for q := make([]byte, 512); ; {
			n, from, err := c.ReadFromUDP(q)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			a := make([]byte, 48)
			a[0], a[1], a[2], a[3] = 0x24, 1, 6, 0xec // version 4, a server, stratum 1
			copy(a[24:32], q[40:48])
			stamp(a[16:])
			stamp(a[32:])
			stamp(a[40:])
			_, _ = c.WriteToUDP(a, from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// open lets everybody in.
type open struct{ mochi.HookBase }

func (*open) Provides(b byte) bool                                     { return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck }
func (*open) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }
func (*open) OnACLCheck(*mochi.Client, string, bool) bool              { return true }

// exchange is the broker of an installer's office.
type exchange struct {
	*mochi.Server
	port int
	got  chan packets.Packet
}

func newExchange(t *testing.T) *exchange {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &exchange{Server: mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)}), port: l.Addr().(*net.TCPAddr).Port, got: make(chan packets.Packet, 4096)}
	if err := errors.Join(x.AddHook(new(open), nil), x.AddListener(listeners.NewNet("lan", l)), x.Serve()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	if err := x.Subscribe("joulegate/1/#", 1, func(_ *mochi.Client, _ packets.Subscription, p packets.Packet) {
		select {
		case x.got <- p:
		default: // nobody waits any more
		}
	}); err != nil {
		t.Fatal(err)
	}
	return x
}

// hear waits for a message below a topic that is as wanted.
func hear[T any](t *testing.T, x *exchange, topic string, wanted func(T) bool) T {
	t.Helper()
	late := time.After(piLimit)
	var last []byte
	for {
		select {
		case p := <-x.got:
			if p.TopicName != "joulegate/1/north/"+topic {
				continue
			}
			var v T
			if last = p.Payload; json.Unmarshal(p.Payload, &v) == nil && wanted(v) {
				return v
			}
		case <-late:
			t.Fatalf("nothing as wanted on %s within %s; the last was %s", topic, piLimit, last)
		}
	}
}

func (x *exchange) tell(t *testing.T, topic string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		err = x.Publish("joulegate/1/north/"+topic, b, false, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// piLimit is for any one step: this machine is emulated with its four
// processors on one, and shares that.
const piLimit = 5 * time.Minute

// relayLine is RELAY1 of a Raspberry Pi.
const relayLine = 17

// TestPi: the card as it is shipped, from the first start to its end. The
// installer's setup lies on it; he configures over MQTT, begins commissioning
// at the gateway's console, and tests the relay, which is seen from outside.
// What has happened is read from the card afterwards.
func TestPi(t *testing.T) {
	t.Parallel()
	st := neighbourhood(t, 1)
	x := newExchange(t)
	card := theLab.card(t)
	onSetup(t, card, map[string]string{"joulegate-setup.yaml": fmt.Sprintf(`version: 1
name: north
network: {ntp: ["%s:%d"]}
broker: {url: "tcp://%s:%d", user: north, password: a-secret-word}
grid: {create: {currency: EUR}}
`, HostInside, timeServer(t), HostInside, x.port)})
	cfg := PiConfig{Card: card, Line: st.Houses()[0].Line, Dir: filepath.Join(theLab.out, t.Name()), Name: "pi"}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if *verbose {
		cfg.Echo = os.Stderr
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), piLimit)
	defer cancel()
	m, err := BootPi(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		if t.Failed() {
			t.Logf("what it said: %s", filepath.Join(cfg.Dir, "pi.console"))
		}
	})
	says := func(text string, times int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), piLimit)
		defer cancel()
		if err := m.AwaitConsole(ctx, text, times); err != nil {
			t.Fatal(err)
		}
	}
	says("init: clock set by ", 1)
	says("init: the gateway is at work", 1)
	t.Logf("at work after %s", time.Since(start).Round(time.Second))

	// A new gateway knows nothing of its meters: over MQTT it is told.
	rev := hear(t, x, "config/reported", func(r struct{ Rev int }) bool { return r.Rev > 0 }).Rev
	want := (&site{}).configure(st.Houses()[0])
	want.Name, want.Board = "north", "raspberrypi-3"
	want.Lines[0].Device, want.Lines[0].Timeout = "/dev/ttyAMA0", config.Duration(2*time.Second)
	want.Guard.Mode = "off"        // it is not what is looked at here
	want.Chargers[0].Feedback = "" // nothing moves the contacts of this machine
	x.tell(t, "config/desired", map[string]any{"txn": "site", "base_rev": rev, "mode": "merge", "confirm_s": 600, "config": changes(t, want)})
	type result struct {
		Txn, State, Error string
		Errors            []config.Error
	}
	if r := hear(t, x, "config/result", func(r result) bool { return r.Txn == "site" && r.State != "stored" && r.State != "applying" }); r.State != "pending_confirm" {
		t.Fatalf("%+v", r)
	}
	x.tell(t, "cmd/installer/config.confirm", order("c1", map[string]any{"txn": "site"}))
	hear(t, x, "config/result", func(r result) bool { return r.Txn == "site" && r.State == "confirmed" })
	meter := want.Chargers[0].Meter
	defer func() { t.Logf("requests on ttyAMA0: %+v", st.Stats(0)) }()
	hear(t, x, "device/"+meter+"/state", func(v struct{ Quality string }) bool { return v.Quality == "good" })
	t.Logf("meters answer %s after power-on", time.Since(start).Round(time.Second))
	if output, high, err := m.PiOutput(relayLine); err != nil || !output || high {
		t.Fatalf("at rest the relay's pin is output=%t high=%t, %v", output, high, err)
	}

	// Without somebody at the gateway no relay moves.
	type answer struct {
		Txn, Status, Code, Error string
	}
	test := func(txn string) {
		x.tell(t, "cmd/installer/relay.test", order(txn, map[string]any{"charger": 1, "seconds": 5}))
	}
	test("r1")
	if a := hear(t, x, "rsp/installer/relay.test", func(a answer) bool { return a.Txn == "r1" }); a.Code != "not_commissioning" {
		t.Fatalf("%+v", a)
	}
	for i, c := range []struct{ typed, answer string }{
		{"", "This is the gateway's own screen"},
		{"commission start", "commissioning mode is on until"},
		{"help", "Usage:"}, // the screen takes more than one command
	} {
		if err := m.Type(c.typed + "\n"); err != nil {
			t.Fatal(err)
		}
		says(c.answer, 1)
		// What is typed before a command has ended is the command's.
		says("joulegate> ", i+1)
	}
	test("r2")
	for _, high := range []bool{true, false} {
		for until := time.Now().Add(piLimit); ; {
			_, is, err := m.PiOutput(relayLine)
			if err != nil {
				t.Fatal(err)
			}
			if is == high {
				break
			}
			select {
			case p := <-x.got: // refused?
				if strings.HasSuffix(p.TopicName, "/relay.test") && strings.Contains(string(p.Payload), `"error"`) {
					t.Fatalf("%s", p.Payload)
				}
			default:
			}
			if time.Now().After(until) {
				t.Fatalf("GPLEV0 does not show high=%t", high)
			}
		}
	}

	// Ctrl-Alt-Del is an orderly end.
	if err := m.Press("ctrl", "alt", "delete"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-time.After(piLimit):
		t.Fatal("it does not end")
	}
	t.Logf("ended after %s", time.Since(start).Round(time.Second))
	readBack(t, card)
}

// order is a command over MQTT.
func order(txn string, args map[string]any) map[string]any {
	return map[string]any{"txn": txn, "exp": time.Now().Add(10 * time.Minute).Unix(), "args": args}
}

// changes is what of a configuration an installer sends: the wiring and the
// times of a test.
func changes(t *testing.T, c config.Config) map[string]any {
	t.Helper()
	all := config.Document(c)
	out := map[string]any{}
	for _, k := range []string{"board", "lines", "meters", "chargers", "timing", "guard"} {
		out[k] = all[k]
	}
	return out
}

// readBack looks at a card as another computer would.
func readBack(t *testing.T, card string) {
	t.Helper()
	tool := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, tail(string(out)))
		}
		return string(out)
	}
	setup, data := partition(t, card, 1), partition(t, card, 4)
	tool("fsck.fat", "-n", setup)
	tool("e2fsck", "-fn", data)
	left := tool("mtype", "-i", setup, "::joulegate-setup.yaml")
	if !strings.Contains(left, "applied: ") || strings.Contains(left, "a-secret-word") {
		t.Errorf("joulegate-setup.yaml afterwards: %s", left)
	}
	if raw, err := os.ReadFile(setup); err != nil || strings.Contains(string(raw), "a-secret-word") {
		t.Errorf("the password is still on the first partition (%v)", err)
	}
	all, err := Partitions(card)
	if err != nil {
		t.Fatal(err)
	}
	if end := all[3].Start + all[3].Size; end != 1<<30 {
		t.Errorf("the data partition ends at %d, the card at %d", end, 1<<30)
	}
	dir := t.TempDir()
	tool("debugfs", "-R", "rdump /config /state /log "+dir, data)
	b, err := os.ReadFile(filepath.Join(dir, "config", "joulegate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := config.Parse(b); err != nil || c.Name != "north" || len(c.Chargers) != 1 || c.Lines[0].Device != "/dev/ttyAMA0" {
		t.Errorf("joulegate.yaml on the card: %v\n%s", err, b)
	}
	var height int64
	state := filepath.Join(dir, "state")
	if err := consensus.ViewHome(filepath.Join(state, "consensus"), filepath.Join(state, "genesis.json"), func(h int64, _ time.Time, _ chain.Hash, _ ledger.State) { height = h }); err != nil || height == 0 {
		t.Errorf("the ledger on the card is at block %d: %v", height, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "log", "joulegate.log")); err != nil || !strings.Contains(string(b), "init: restart\n") {
		t.Errorf("the log on the card does not tell of its end: %v", err)
	}
}
