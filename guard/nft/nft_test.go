package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// alone puts the test into a network of its own, with a loopback interface.
func alone(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("network namespaces are not permitted here (CAP_SYS_ADMIN): %v", err)
	}
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "-6", "addr", "add", "fd00::2/128", "dev", "lo", "nodad")
	if err := Probe(); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

func layout() Layout {
	return Layout{
		Table: "joulegate_test",
		Sets: []Set{
			{Name: "b4", Type: IPv4, Timeout: time.Hour, Size: 4},
			{Name: "b6", Type: IPv6, Timeout: time.Hour},
			{Name: "nets", Type: IPv4, Nets: true, Expires: true},
		},
		Chains: []Chain{{Name: "in", Hook: Input, Priority: -10, Rules: []Rule{
			{Match: []Match{UDP(), ToPort(123)}, Comment: "time"},
			{Match: []Match{From("b4")}, Verdict: Drop, Comment: "blocked"},
			{Match: []Match{From("b6")}, Verdict: Drop, Comment: "blocked"},
			{Match: []Match{From("nets")}, Verdict: Drop, Comment: "nets"},
		}}},
	}
}

func open(t testing.TB, l Layout) *Table {
	t.Helper()
	tab, err := Open(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tab.Close() })
	return tab
}

// passes tells whether a datagram from an address arrives at a port.
func passes(t testing.TB, from string, port int) bool {
	t.Helper()
	to := "127.0.0.1"
	if strings.Contains(from, ":") {
		to = "::1"
	}
	in, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(to), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, in.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	_, _ = out.Write([]byte("x")) // a filtered one is an error when it leaves
	// Loopback delivers before Write returns.
	_ = in.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err = in.Read(make([]byte, 8))
	return err == nil
}

func host(s string) Element { return Element{Prefix: Host(netip.MustParseAddr(s))} }

func TestSetsDecideAboutRealPackets(t *testing.T) {
	alone(t)
	tab := open(t, layout())
	want := func(from string, port int, pass bool) {
		t.Helper()
		if got := passes(t, from, port); got != pass {
			t.Errorf("from %s to port %d: passes %t, want %t\n%s", from, port, got, pass, run(t, "nft", "list", "ruleset"))
		}
	}
	want("127.0.0.2", 0, true)
	for set, e := range map[string]Element{"b4": host("127.0.0.2"), "b6": host("fd00::2"), "nets": {Prefix: netip.MustParsePrefix("127.9.0.0/16")}} {
		if err := tab.Add(set, e); err != nil {
			t.Fatal(err)
		}
	}
	want("127.0.0.2", 0, false)
	want("127.0.0.2", 123, true) // an earlier rule lets it pass
	want("127.0.0.3", 0, true)
	want("fd00::2", 0, false)
	want("::1", 0, true)
	want("127.9.255.255", 0, false)
	want("127.10.0.0", 0, true)
	n, err := tab.Counts()
	if err != nil || n["blocked"].Packets != 2 || n["nets"].Packets != 1 || n["time"].Packets != 1 {
		t.Errorf("counted %v, %v", n, err)
	}
	if err := tab.Remove("b4", host("127.0.0.2"), host("127.0.0.77")); err != nil {
		t.Error("what is not there cannot be removed:", err)
	}
	want("127.0.0.2", 0, true)
	if err := tab.Flush("nets"); err != nil {
		t.Error(err)
	}
	want("127.9.255.255", 0, true)
}

// TestElementsAreThereFromTheFirstMoment: a table that takes the place of
// another one never lets through what its sets begin with.
func TestElementsAreThereFromTheFirstMoment(t *testing.T) {
	alone(t)
	l := layout()
	l.Sets[0].Elements = []Element{{Prefix: Host(netip.MustParseAddr("127.0.0.1")), Timeout: time.Minute}}
	l.Sets[2].Elements = []Element{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("192.168.0.0/16")}}
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	tab := open(t, l)
	stop, sent := make(chan struct{}), make(chan struct{})
	go func() { // while tables come and go
		defer close(sent)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = client.Write([]byte("x"))
			}
		}
	}()
	for range 20 {
		tab = open(t, l)
	}
	close(stop)
	<-sent
	_ = server.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := server.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes came through", n)
	}
	for set, want := range map[string]int{"b4": 1, "b6": 0} {
		if e, err := tab.List(set); err != nil || len(e) != want {
			t.Errorf("%s holds %v, %v", set, e, err)
		}
	}
	l.Sets[1].Elements = l.Sets[0].Elements
	if _, err := Open(l); err == nil {
		t.Error("an address of another version was taken")
	}
}

func TestElementsExpire(t *testing.T) {
	alone(t)
	tab := open(t, layout())
	e := host("127.0.0.2")
	e.Timeout = 20 * time.Millisecond
	if err := tab.Add("b4", host("127.0.0.2"), host("127.0.0.3")); err != nil {
		t.Fatal(err)
	}
	if err := tab.Renew("b4", e); err != nil { // its life is set anew
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); !passes(t, "127.0.0.2", 0); {
		if time.Now().After(end) {
			t.Fatal("an element outlives its timeout")
		}
	}
	left, err := tab.List("b4")
	for _, e := range left {
		if e.Prefix.Addr().String() == "127.0.0.3" && (e.Timeout < 59*time.Minute || e.Timeout > time.Hour) {
			t.Errorf("%s stays for %s", e.Prefix, e.Timeout)
		}
	}
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v remain", left, err)
	}
}

func TestASetHasALimit(t *testing.T) {
	alone(t)
	tab := open(t, layout())
	for i := range 4 {
		if err := tab.Add("b4", host(fmt.Sprintf("192.0.2.%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := tab.Add("b4", host("192.0.2.9")); !errors.Is(err, ErrFull) {
		t.Errorf("a full set says %v", err)
	}
	if left, err := tab.List("b4"); err != nil || len(left) != 4 {
		t.Errorf("%v, %v", left, err)
	}
	// Many at once need several messages and one transaction.
	var many []Element
	for i := range MaxElements {
		a := netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})
		many = append(many, Element{Prefix: Host(a)})
	}
	if err := tab.Add("b6", many...); err != nil {
		t.Fatal(err)
	}
	if left, err := tab.List("b6"); err != nil || len(left) != len(many) {
		t.Errorf("%d elements, %v", len(left), err)
	}
}

// A process that was killed leaves its table; the next one begins anew, and
// the uninstaller finds whatever is left. Others' tables stay.
func TestNothingStays(t *testing.T) {
	alone(t)
	run(t, "nft", "add table inet others; add table ip joulegate_of_somebody")
	first := open(t, layout())
	if err := first.Add("b4", host("127.0.0.2")); err != nil {
		t.Fatal(err)
	}
	second := open(t, layout())
	if left, err := second.List("b4"); err != nil || len(left) != 0 {
		t.Errorf("the one before left %v, %v", left, err)
	}
	if !passes(t, "127.0.0.2", 0) {
		t.Error("a block of the one before is still in force")
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if err := second.Close(); err != nil {
		t.Error("closing twice:", err)
	}
	open(t, layout())
	if err := RemoveAll(); err != nil {
		t.Error(err)
	}
	if got := run(t, "nft", "list", "tables"); strings.Contains(got, "inet joulegate") || !strings.Contains(got, "inet others") || !strings.Contains(got, "ip joulegate_of_somebody") {
		t.Errorf("left are %q", got)
	}
}

func TestDefaultDropLetsAnswersThrough(t *testing.T) {
	alone(t)
	open(t, Layout{
		Table: "joulegate_out",
		Sets:  []Set{{Name: "ok", Type: IPv4, Timeout: time.Hour}},
		Chains: []Chain{{Name: "out", Hook: Output, Default: Drop, Rules: []Rule{
			{Match: []Match{Known()}},
			{Match: []Match{Mark(7)}},
			{Match: []Match{To("ok")}},
			{Match: []Match{TCP(), ToPort(22)}, Verdict: Reject, Comment: "refused"},
			{Match: []Match{Out("eth9"), UDP(), FromPort(68)}},
		}}},
	})
	if passes(t, "127.0.0.2", 0) {
		t.Error("a packet left that no rule lets out")
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	if _, err := d.Dial("tcp", "127.0.0.1:22"); !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EHOSTUNREACH) {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Error("a refused connection waits for its time-out")
		}
	}
}

func TestWhatIsNoLayoutIsRefused(t *testing.T) {
	for name, break_ := range map[string]func(*Layout){
		"somebody's table": func(l *Layout) { l.Table = "filter" },
		"injected name":    func(l *Layout) { l.Table = "joulegate; flush ruleset" },
		"set twice":        func(l *Layout) { l.Sets = append(l.Sets, l.Sets[0]) },
		"set of nothing":   func(l *Layout) { l.Sets[0].Type = 0 },
		"no hook":          func(l *Layout) { l.Chains[0].Hook = 0 },
	} {
		l := layout()
		break_(&l)
		if err := l.check(); err == nil {
			t.Error(name, "is taken")
		}
	}
}

func TestEncodeRefusesWhatASetCannotHold(t *testing.T) {
	s := &set{Set: Set{Name: "s", Type: IPv4}}
	nets := &set{Set: Set{Name: "n", Type: IPv4, Nets: true}}
	for _, e := range []Element{{}, host("fd00::1"), {Prefix: netip.MustParsePrefix("192.0.2.0/24")}, {Prefix: host("192.0.2.1").Prefix, Timeout: time.Second}} {
		if _, err := s.encode(e); err == nil {
			t.Errorf("%v is taken", e)
		}
	}
	for in, want := range map[string]string{
		"192.0.2.0/24": "192.0.3.0", "192.0.2.255/32": "192.0.3.0", "127.255.255.255/32": "128.0.0.0", "10.1.2.3/8": "11.0.0.0",
		"0.0.0.0/0": "", "224.0.0.0/3": "", "255.255.255.255/32": "",
	} {
		got, err := nets.encode(Element{Prefix: netip.MustParsePrefix(in)})
		end := ""
		if len(got) == 2 {
			a, _ := netip.AddrFromSlice(got[1].Key)
			end = a.String()
		}
		if err != nil || end != want {
			t.Errorf("%s ends before %q, %v; want %q", in, end, err, want)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	alone(b)
	l := layout()
	l.Sets[1].Size = 0
	tab := open(b, l)
	var i uint32
	for b.Loop() {
		i++
		a := netip.AddrFrom16([16]byte{0xfd, 13: byte(i >> 16 & 3), 14: byte(i >> 8), 15: byte(i)})
		if err := tab.Add("b6", Element{Prefix: Host(a)}); err != nil && !errors.Is(err, ErrFull) {
			b.Fatal(err)
		}
	}
}
