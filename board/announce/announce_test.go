package announce

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/zeroconf/v2"
	"github.com/miekg/dns"
)

const (
	inside   = "ANNOUNCE_TEST_RESPONDER"
	testHost = "joulegate-6ebf5fa0"
)

// TestMain is also the gateway of the tests: in its network namespace.
func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test closes it
		stop()
	}()
	r, err := New(Config{Host: testHost, Port: 8080, Text: []string{"name=north"}})
	if err == nil {
		fmt.Println("ready")
		err = r.Run(ctx)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// TestQueries: another machine on the network finds the page by name and by
// service, asked by a library that is not ours and by a plain DNS client, and
// is told when it leaves.
func TestQueries(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if os.Getenv("ANNOUNCE_TEST_ASK") == "" {
		// Two namespaces and a cable; this test again in one of them.
		id := fmt.Sprintf("jg-ann-%d", os.Getpid())
		gw, pc := id+"-gw", id+"-pc"
		ip(t, "netns", "add", gw)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", gw).Run() })
		ip(t, "netns", "add", pc)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", pc).Run() })
		ip(t, "-n", gw, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", pc)
		for i, ns := range []string{gw, pc} {
			ip(t, "-n", ns, "addr", "add", fmt.Sprintf("192.0.2.%d/24", i+1), "dev", "eth0")
			ip(t, "-n", ns, "link", "set", "eth0", "up")
			ip(t, "-n", ns, "link", "set", "lo", "up")
			ip(t, "-n", ns, "route", "add", "default", "dev", "eth0")
		}
		responder := exec.Command("ip", "netns", "exec", gw, os.Args[0])
		responder.Env = append(os.Environ(), inside+"=1")
		stdin, err := responder.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := responder.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := responder.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			stdin.Close()
			if err := responder.Wait(); err != nil {
				t.Errorf("the responder: %v", err)
			}
		})
		said := make([]byte, 256)
		if n, err := out.Read(said); err != nil || !strings.HasPrefix(string(said[:n]), "ready") {
			t.Fatalf("the responder: %q %v", said[:n], err)
		}
		ask := exec.Command("ip", "netns", "exec", pc, os.Args[0], "-test.run=^TestQueries$", "-test.v")
		ask.Env = append(os.Environ(), "ANNOUNCE_TEST_ASK=1")
		if b, err := ask.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, b)
		}
		return
	}

	// A plain DNS client: legacy unicast (RFC 6762, section 6.7).
	c := &dns.Client{Timeout: 2 * time.Second}
	query := func(name string, kind uint16) *dns.Msg {
		t.Helper()
		q := new(dns.Msg)
		q.SetQuestion(name, kind)
		var err error
		for range 10 { // it may not have joined yet
			var m *dns.Msg
			if m, _, err = c.Exchange(q, "192.0.2.1:5353"); err == nil {
				return m
			}
		}
		t.Fatalf("%s: %v", name, err)
		return nil
	}
	m := query(testHost+".local.", dns.TypeA)
	if a, ok := m.Answer[0].(*dns.A); !ok || !a.A.Equal(net.IPv4(192, 0, 2, 1)) || a.Hdr.Class != dns.ClassINET || a.Hdr.Ttl > 10 || len(m.Question) != 1 {
		t.Errorf("%v", m)
	}
	m = query(testHost+"._http._tcp.local.", dns.TypeSRV)
	if s, ok := m.Answer[0].(*dns.SRV); !ok || s.Port != 8080 || s.Target != testHost+".local." {
		t.Errorf("%v", m)
	}

	// Multicast, with a library that browses as others do.
	for _, service := range []string{"_http._tcp", "_joulegate._tcp"} {
		found := make(chan *zeroconf.ServiceEntry, 8)
		ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
		go func() { _ = zeroconf.Browse(ctx, service, "local.", found) }()
		select {
		case e, ok := <-found:
			if !ok {
				t.Errorf("%s: nothing is found", service)
				break
			}
			if e.Instance != testHost || e.Port != 8080 || e.HostName != testHost+".local." || len(e.AddrIPv4) == 0 || !e.AddrIPv4[0].Equal(net.IPv4(192, 0, 2, 1)) || len(e.Text) != 1 {
				t.Errorf("%s: %+v", service, e)
			}
		case <-ctx.Done():
			t.Errorf("%s: nothing is found", service)
		}
		stop()
	}
}

// TestAnswers: it answers for its own names, once, and for nothing else.
func TestAnswers(t *testing.T) {
	r := &Responder{cfg: Config{Host: testHost, Port: 80}, host: testHost + ".local."}
	ask := func(name string, kind uint16, has ...dns.RR) *dns.Msg {
		q := new(dns.Msg)
		q.SetQuestion(name, kind)
		q.Answer = has
		m, _ := r.answer(q, 1, false)
		return m
	}
	m := ask("_HTTP._tcp.local.", dns.TypePTR)
	if m == nil || len(m.Answer) != 1 || len(m.Extra) < 2 {
		t.Fatalf("%v", m)
	}
	if again := ask("_http._tcp.local.", dns.TypePTR, m.Answer[0]); again != nil {
		t.Errorf("told again what is known: %v", again)
	}
	if m = ask(directory, dns.TypePTR); m == nil || len(m.Answer) != len(services) {
		t.Errorf("%v", m)
	}
	for _, name := range []string{"other.local.", "local.", testHost + ".example.", "_ipp._tcp.local."} {
		if m = ask(name, dns.TypeANY); m != nil {
			t.Errorf("%s is answered: %v", name, m)
		}
	}
}

func FuzzHear(f *testing.F) {
	q := new(dns.Msg)
	q.SetQuestion("_http._tcp.local.", dns.TypePTR)
	b, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, true)
	f.Add([]byte{}, false)
	f.Add(make([]byte, 12), true)
	r := &Responder{cfg: Config{Host: testHost, Port: 80}, host: testHost + ".local."}
	f.Fuzz(func(t *testing.T, b []byte, legacy bool) {
		var q dns.Msg
		if q.Unpack(b) != nil {
			return
		}
		if m, _ := r.answer(&q, 1, legacy); m != nil {
			if p, err := m.Pack(); err != nil || len(p) > maxPacket+len(b) {
				t.Errorf("%d bytes, %v", len(p), err)
			}
		}
	})
}
