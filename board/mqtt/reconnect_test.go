package mqtt

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
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

// TestThousandReconnects: the connection is cut a thousand times, while events
// and commands are on their way. Every event arrives, every command is
// answered, and nothing is left behind.
func TestThousandReconnects(t *testing.T) {
	const cuts = 1000
	broker, err := NewBroker(BrokerConfig{Listen: "127.0.0.1:0", Users: []User{
		{Name: "house1", Hash: hash(t, "h"), Rules: GatewayRules("house1", DefaultPrefix)},
		{Name: "anna", Hash: hash(t, "a"), Rules: InstallerRules("anna")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	runBroker(t, broker)
	network := newLossy(t, broker.Addr())

	type told struct {
		Seq  uint64
		Data int
	}
	events, answers := make(chan told, 4*cuts), make(chan Reply, 4*cuts)
	anna, err := dial(t, broker.Addr(), "anna", "a", func(o *paho.ClientOptions) {
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
		Gateway: "house1", URL: "tcp://" + network.Addr().String(), Username: "house1", Password: "h", Spool: spool,
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
