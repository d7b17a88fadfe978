package domain

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestManyQuestionsAtOnce: questions that wait together are answered each to
// whom it came from, over both versions of IP, blocked ones and others, and
// what is none does not hold the rest up.
func TestManyQuestionsAtOnce(t *testing.T) {
	u := newZone(t)
	filter := load(t, Options{Block: []string{listFile(t, "||evil.example^\n")}})
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
		c := Config{Listen: []string{listen}, Upstreams: []string{u.serve(t)}, Filter: filter}
		s, addr := start(t, c)
		if got := netip.MustParseAddrPort(addr).Addr().Is4(); got != (listen[0] != '[') {
			t.Fatalf("listens on %s", addr)
		}
		const clients, each = 3, batchSize + 8 // as many as a socket holds
		var conns []net.Conn
		for range clients {
			conn, err := net.Dial("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conns = append(conns, conn)
		}
		for i := range each {
			for c, conn := range conns {
				name := fmt.Sprintf("n%d-%d.evil.example.", c, i)
				switch i % 8 {
				case 5:
					name = "www.example.com."
				case 6:
					_, _ = conn.Write([]byte("noise"))
				}
				m := new(dns.Msg).SetQuestion(name, dns.TypeA)
				m.Id = uint16(i)
				b, err := m.Pack()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Write(b); err != nil {
					t.Fatal(err)
				}
			}
		}
		for c, conn := range conns {
			seen := map[uint16]bool{}
			b := make([]byte, 4096)
			for len(seen) < each {
				_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
				n, err := conn.Read(b)
				if err != nil {
					t.Fatalf("%s: client %d got %d of %d answers: %v", listen, c, len(seen), each, err)
				}
				m := new(dns.Msg)
				if err := m.Unpack(b[:n]); err != nil {
					t.Fatal(err)
				}
				want, code := fmt.Sprintf("n%d-%d.evil.example.", c, m.Id), dns.RcodeNameError
				if m.Id%8 == 5 {
					want, code = "www.example.com.", dns.RcodeSuccess
				}
				if m.Question[0].Name != want || m.Rcode != code || seen[m.Id] {
					t.Fatalf("client %d: %v", c, m)
				}
				seen[m.Id] = true
			}
		}
		if n := s.Counts(); n.Blocked != clients*each*7/8 || n.Dropped != clients*each/8 {
			t.Errorf("%+v", n)
		}
	}
}

func TestAddressesOfTheKernel(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		server, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		client, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		b, err := newBatch(server.(*net.UDPConn))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("who am I")); err != nil {
			t.Fatal(err)
		}
		n, err := b.questions()
		if err != nil || n != 1 {
			t.Fatalf("%d datagrams, %v", n, err)
		}
		if text, from := b.question(0); string(text) != "who am I" || from.String() != client.LocalAddr().String() {
			t.Errorf("%q from %s, want %s", text, from, client.LocalAddr())
		}
	}
}
