package main

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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

// TestTheMachinesOwnResolver: a resolv.conf that leads elsewhere is told in the
// coverage, and when it led here before, it is a finding.
func TestTheMachinesOwnResolver(t *testing.T) {
	var found []guard.Finding
	n := newNameServer(config.DNS{}, func(f guard.Finding) { found = append(found, f) }, func() time.Duration { return 0 }, slog.New(slog.DiscardHandler))
	here := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}
	self := netip.MustParseAddr("127.0.0.1")
	for i, step := range []struct {
		text   string
		reason string
		found  int
	}{
		{"nameserver 192.0.2.53\n", "192.0.2.53", 0}, // not set up yet
		{"nameserver 127.0.0.1\n", "", 0},
		{"nameserver 192.0.2.53\n", "192.0.2.53", 1},
		{"nameserver 192.0.2.54\n", "192.0.2.54", 1}, // still
		{"nameserver 127.0.0.1\n", "", 1},
	} {
		n.judgeOwn(step.text, nil, here)
		if len(found) != step.found || !strings.Contains(n.Coverage().Reason, step.reason) || n.answers.Asks(self) != (step.reason == "") {
			t.Errorf("step %d: %d findings, %+v", i, len(found), n.Coverage())
		}
	}
	n.judgeOwn("nameserver 127.0.0.1\n", nil, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:5353")})
	if !strings.Contains(n.Coverage().Reason, "port 53") || found[0].Rule != guard.DomainBypass || found[0].Evidence["asks"] != "192.0.2.53" {
		t.Errorf("%+v, %+v", n.Coverage(), found[0])
	}
}

func TestResolversOfTheNetwork(t *testing.T) {
	c := config.DNS{Listen: []string{"192.168.1.2:53"}, Upstreams: []string{"tls://dns.example", "udp://9.9.9.9", "9.9.9.10:5353", "https://192.0.2.1/dns-query"}, Bootstrap: []string{"9.9.9.11"}}
	if r := resolversOf(c); r != nil {
		t.Errorf("without consent others are judged by %v", r)
	}
	c.LAN = "consent"
	all := resolversOf(c)
	for _, want := range []string{"127.0.0.1", "9.9.9.9", "9.9.9.10", "192.0.2.1", "9.9.9.11"} {
		if !slices.Contains(all, netip.MustParseAddr(want)) {
			t.Errorf("%s is missing in %v", want, all)
		}
	}
}

// TestAWriteWhileChargingIsGraver: what the gateway says of its charger
// reaches the packet sensor.
func TestAWriteWhileChargingIsGraver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs CAP_NET_RAW, to see packets")
	}
	device, err := net.Listen("tcp", "127.0.0.77:502")
	if err != nil {
		t.Skipf("needs port 502 of 127.0.0.77: %v", err)
	}
	defer device.Close()
	orders, orderIn, _ := os.Pipe()
	outR, out, _ := os.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- runSensors(t.Context(), sensorsSetup{State: t.TempDir(), Interface: "lo", Memory: 1 << 28}, orders, out, slog.New(slog.DiscardHandler))
	}()
	defer func() { orderIn.Close(); outR.Close(); <-done }()
	for _, tt := range []struct {
		charging bool
		from     string
		want     guard.Severity
	}{{false, "127.0.0.78", guard.High}, {true, "127.0.0.79", guard.Critical}} {
		if err := pipe.Write(orderIn, pipe.Order{Charging: tt.charging}); err != nil {
			t.Fatal(err)
		}
		_ = outR.SetReadDeadline(time.Now().Add(time.Minute))
		sent := false
		for looks := 0; ; {
			m, err := pipe.ReadMessage(outR)
			if err != nil {
				t.Fatal(err)
			}
			if f := m.Finding; f != nil && f.Rule == guard.ModbusWriteUnauthorised && f.Subject.Value == tt.from {
				if f.Severity != tt.want {
					t.Errorf("charging %t: %s", tt.charging, f.Severity)
				}
				break
			}
			if m.Beat == nil {
				continue
			}
			for _, c := range m.Beat.Coverage {
				if c.Sensor == guard.Packet && c.Level != guard.None {
					looks++
				}
			}
			if looks >= 2 && !sent { // the order was read a beat ago
				sent = true
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(tt.from)}}
				c, err := d.Dial("tcp", device.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := c.Write([]byte{0, 1, 0, 0, 0, 6, 1, 6, 0, 40, 0, 1}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
