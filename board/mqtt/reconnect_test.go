package mqtt

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// lossy is a network between a gateway and its broker that can be cut.
type lossy struct {
	net.Listener
	to string
	mu sync.Mutex
	on map[net.Conn]struct{}
}

func newLossy(t *testing.T, to string) *lossy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &lossy{Listener: l, to: to, on: map[net.Conn]struct{}{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.pass(c) })
		}
	})
	t.Cleanup(func() { l.Close(); p.cut(); wg.Wait() })
	return p
}

func (p *lossy) pass(c net.Conn) {
	far, err := net.Dial("tcp", p.to)
	if err != nil {
		c.Close()
		return
	}
	p.mu.Lock()
	p.on[c], p.on[far] = struct{}{}, struct{}{}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, d := range [][2]net.Conn{{c, far}, {far, c}} {
		wg.Go(func() {
			_, _ = io.Copy(d[0], d[1])
			c.Close()
			far.Close()
		})
	}
	wg.Wait()
	p.mu.Lock()
	delete(p.on, c)
	delete(p.on, far)
	p.mu.Unlock()
}

// cut ends all connections, without a word.
func (p *lossy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.on {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		c.Close()
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// startMosquitto runs mosquitto until the test ends; the password of a user is
// "secret-" and his name.
func startMosquitto(t *testing.T, users ...string) (addr string) {
	t.Helper()
	program, passwd := find(t, "mosquitto"), find(t, "mosquitto_passwd")
	dir := t.TempDir()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = ln.Addr().String()
	ln.Close()
	_, port, _ := net.SplitHostPort(addr)
	pw, conf := filepath.Join(dir, "passwd"), filepath.Join(dir, "conf")
	for file, text := range map[string]string{pw: "", conf: "user root\nlistener " + port + " 127.0.0.1\nallow_anonymous false\npassword_file " + pw + "\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, u := range users {
		if out, err := exec.Command(passwd, "-b", pw, u, "secret-"+u).CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_passwd: %v: %s", err, out)
		}
	}
	cmd := exec.Command(program, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitFor(t, "mosquitto", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return addr
}

// TestThousandReconnects: the connection is cut a thousand times, while events
// and commands are on their way. Every event arrives, every command is
// answered, and nothing is left behind.
func TestThousandReconnects(t *testing.T) {
	const cuts = 1000
	broker := startMosquitto(t, "house1", "anna")
	network := newLossy(t, broker)

	type told struct {
		Seq  uint64
		Data int
	}
	events, answers := make(chan told, 4*cuts), make(chan Reply, 4*cuts)
	anna, err := dial(t, broker, "anna", "secret-anna", func(o *paho.ClientOptions) {
		o.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
			var e told
			var r Reply
			switch {
			case strings.Contains(m.Topic(), "/event/"):
				if err := json.Unmarshal(m.Payload(), &e); err != nil {
					t.Error(err)
				}
				events <- e
			case strings.Contains(m.Topic(), "/rsp/"):
				if err := json.Unmarshal(m.Payload(), &r); err != nil {
					t.Error(err)
				}
				answers <- r
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"event/+", "rsp/anna/+"} {
		anna.subscribe(t, Topic("house1", f))
	}
	spool, err := OpenSpool(&memory{}, "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Gateway: "house1", URL: "tcp://" + network.Addr().String(), Username: "house1", Password: "secret-house1", Spool: spool,
		Remote: echo{names: make(chan string, 1)}, Discovery: &Discovery{Prefix: DefaultPrefix, Things: things(), Store: &memory{}},
		Backoff: Backoff{time.Millisecond, 2 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	waitFor(t, "the first connection", func() bool { return s.Stats().Connected && s.Stats().Waiting == 0 })
	runtime.GC()
	files, routines := openFiles(t), runtime.NumGoroutine()

	asked := map[string]bool{}
	for i := range cuts {
		before := s.Stats().Connects
		if err := s.PublishEvent("x", Info, time.Now(), i); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 { // also while nobody is there
			txn := fmt.Sprint("t", i)
			asked[txn] = true
			anna.Publish(Topic("house1", "cmd/anna/diag"), 1, false, fmt.Sprintf(`{"txn":%q,"exp":%d}`, txn, time.Now().Unix()+600)).WaitTimeout(patience)
		}
		network.cut()
		waitFor(t, "the next connection", func() bool { return s.Stats().Connects > before })
	}
	seen := map[uint64]int{}
	first := uint64(0)
	for len(seen) < cuts {
		select {
		case e := <-events:
			if first == 0 {
				first = e.Seq
			}
			if was, again := seen[e.Seq]; again && was != e.Data {
				t.Fatalf("seq %d is event %d and was %d", e.Seq, e.Data, was)
			}
			if e.Seq != first+uint64(e.Data) {
				t.Fatalf("event %d has seq %d, the first has %d", e.Data, e.Seq, first)
			}
			seen[e.Seq] = e.Data
		case <-time.After(patience):
			t.Fatalf("%d of %d events arrived", len(seen), cuts)
		}
	}
	for len(asked) > 0 {
		select {
		case r := <-answers:
			delete(asked, r.Txn)
		case <-time.After(patience):
			t.Fatalf("not answered: %v", asked)
		}
	}
	// Still listening, after all that.
	anna.Publish(Topic("house1", "cmd/anna/diag"), 1, false, fmt.Sprintf(`{"txn":"last","exp":%d}`, time.Now().Unix()+600)).WaitTimeout(patience)
	for r := range answers {
		if r.Txn == "last" {
			break
		}
	}
	waitFor(t, "the connections of before gone", func() bool {
		runtime.GC()
		return openFiles(t) <= files+2 && runtime.NumGoroutine() <= routines+8
	})
	t.Logf("%d connections, %d events, %d again", s.Stats().Connects, cuts, len(events))
}
