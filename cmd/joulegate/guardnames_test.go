package main

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/pipe"
)

// TestNameServerOfTheSensors runs the sensors' process' loop with a name
// server and speaks to it as the gateway does: it filters, reads lists anew
// when told, keeps the former ones when a new one is broken, and nothing that
// it says of itself names what was asked.
func TestNameServerOfTheSensors(t *testing.T) {
	up, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := &dns.Server{PacketConn: up, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		rr, _ := dns.NewRR(m.Question[0].Name + " 60 A 203.0.113.7")
		r.Answer = []dns.RR{rr}
		_ = w.WriteMsg(r)
	})}
	go func() { _ = upstream.ActivateAndServe() }()
	t.Cleanup(func() { _ = upstream.Shutdown() })

	list := filepath.Join(t.TempDir(), "list")
	write := func(text string) {
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("||evil.example^\n")
	orders, orderIn, _ := os.Pipe()
	outR, out, _ := os.Pipe()
	done := make(chan error, 1)
	setup := sensorsSetup{State: t.TempDir(), Interface: "lo", Memory: 1 << 28, DNS: config.DNS{Listen: []string{"127.0.0.1:0"}, Upstreams: []string{up.LocalAddr().String()}, Block: []string{list}}}
	go func() { done <- runSensors(t.Context(), setup, orders, out, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		orderIn.Close()
		outR.Close() // whoever is writing fails
		<-done
	})
	order := func(o pipe.Order) {
		if err := pipe.Write(orderIn, o); err != nil {
			t.Fatal(err)
		}
	}
	var found []guard.Finding
	until := func(what string, good func(n *guard.Names, domain guard.Coverage) bool) *guard.Names {
		t.Helper()
		_ = outR.SetReadDeadline(time.Now().Add(time.Minute))
		for {
			m, err := pipe.ReadMessage(outR)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if m.Finding != nil {
				found = append(found, *m.Finding)
			}
			if m.Beat == nil || m.Beat.Names == nil {
				continue
			}
			for _, c := range m.Beat.Coverage {
				if c.Sensor == guard.Domain && good(m.Beat.Names, c) {
					return m.Beat.Names
				}
			}
		}
	}
	order(pipe.Order{Reload: 7}) // asked of an earlier process
	n := until("it listens", func(n *guard.Names, c guard.Coverage) bool { return n.Rules == 1 && c.Level == "resolver" })
	if n.Reload.Order != 7 {
		t.Errorf("what was asked before it began is not done: %+v", n.Reload)
	}
	ask := func(name string) int {
		t.Helper()
		m := new(dns.Msg).SetQuestion(name+".", dns.TypeA)
		r, _, err := (&dns.Client{Timeout: 10 * time.Second}).Exchange(m, n.Listen[0])
		if err != nil {
			t.Fatal(err)
		}
		return r.Rcode
	}
	if ask("www.example.org") != dns.RcodeSuccess || ask("secret.evil.example") != dns.RcodeNameError {
		t.Error("it does not filter")
	}
	write("other.example\nb..ad\n")
	order(pipe.Order{Reload: 8})
	n = until("a broken list is refused", func(n *guard.Names, c guard.Coverage) bool {
		return n.Reload.Order == 8 && !n.Reload.Running && strings.Contains(c.Reason, ":2:")
	})
	if !strings.Contains(n.Reload.Error, list+":2:") || n.Rules != 1 || ask("evil.example") != dns.RcodeNameError {
		t.Errorf("%+v", n)
	}
	write("other.example\nmore.example\n")
	order(pipe.Order{Reload: 9, Charging: true})
	n = until("a good one is taken", func(n *guard.Names, _ guard.Coverage) bool { return n.Reload.Order == 9 && !n.Reload.Running })
	if n.Reload.Error != "" || n.Rules != 2 || ask("evil.example") != dns.RcodeSuccess || ask("more.example") != dns.RcodeNameError {
		t.Errorf("%+v", n)
	}
	n = until("all is counted", func(n *guard.Names, _ guard.Coverage) bool { return n.Questions == 5 })
	if n.Blocked != 3 {
		t.Errorf("%+v", n.NameCounts)
	}
	named := map[string]uint64{}
	for _, f := range found {
		if f.Rule == guard.DomainBlocked {
			named[f.Subject.Value] += f.Count
		}
	}
	if len(named) != 3 || named["secret.evil.example"] != 1 {
		t.Errorf("findings %v", named)
	}
	if s := pipeText(t, n); strings.Contains(s, "evil") {
		t.Errorf("the state, which is published, names what was asked: %s", s)
	}
}

func pipeText(t *testing.T, v any) string {
	t.Helper()
	var b strings.Builder
	if err := pipe.Write(&b, v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
