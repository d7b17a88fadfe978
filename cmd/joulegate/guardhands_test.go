package main

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/board/mqtt"
	"github.com/joulegate/joulegate/chain"
)

// ruleset gives the test a network of its own, and returns what its packet
// filter holds.
func ruleset(t *testing.T) func() string {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("network namespaces are not permitted here (CAP_SYS_ADMIN): %v", err)
	}
	return func() string {
		t.Helper()
		out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Skipf("nft is missing: apt-get install nftables: %v: %s", err, out)
		}
		return string(out)
	}
}

// The table is there while something is blocked, and only then, also when
// somebody has flushed the packet filter.
func TestThePacketFilterHoldsWhatIsBlocked(t *testing.T) {
	rules := ruleset(t)
	f := newPacketFilter(chain.Key{0xab, 0xcd})
	a, b := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	if err := f.Unblock(a); err != nil {
		t.Error("what is not blocked:", err)
	}
	if strings.Contains(rules(), "table") {
		t.Errorf("a gateway that blocks nobody has changed the packet filter:\n%s", rules())
	}
	for _, addr := range []netip.Addr{a, b, a} {
		if err := f.Block(addr, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"table inet joulegate_abcd0000", "192.0.2.7", "2001:db8::7", "udp sport 53", "udp sport 123", "udp sport 67 udp dport 68"} {
		if !strings.Contains(rules(), want) {
			t.Errorf("%q is missing in\n%s", want, rules())
		}
	}
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := f.Block(netip.MustParseAddr("192.0.2.8"), time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"192.0.2.7", "192.0.2.8", "2001:db8::7"} {
		if !strings.Contains(rules(), want) {
			t.Errorf("after a flush %q is missing in\n%s", want, rules())
		}
	}
	for _, addr := range []netip.Addr{a, b, netip.MustParseAddr("192.0.2.8")} {
		if err := f.Unblock(addr); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(rules(), "table") {
		t.Errorf("something stays behind:\n%s", rules())
	}
	if err := f.Block(a, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := f.close(); err != nil || strings.Contains(rules(), "table") {
		t.Errorf("a gateway that has ended leaves something behind: %v\n%s", err, rules())
	}
}

// What the network has given this machine is found, so that it is not blocked.
func TestGivenAddresses(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/net/route":                      "Iface\tDestination\tGateway\neth0\t00000000\t0100A8C0\t0003\neth0\t0000A8C0\t00000000\t0001\n",
		"proc/net/ipv6_route":                 "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400\n",
		"etc/resolv.conf":                     "# comment\nsearch home\nnameserver 192.0.2.53\nnameserver fe80::53%eth0\n",
		"run/systemd/netif/leases/2":          "ADDRESS=192.0.2.9\nROUTER=192.0.2.1\nSERVER_ADDRESS=192.0.2.67\nNTP=192.0.2.123 192.0.2.124\nDNS=192.0.2.54\n",
		"var/lib/dhcp/dhclient.eth0.leases":   "lease {\n  option routers 198.51.100.1;\n  option dhcp-server-identifier 198.51.100.67;\n  option domain-name-servers 198.51.100.53,198.51.100.54;\n}\n",
		"var/lib/NetworkManager/x-eth0.lease": "SERVER_ADDRESS=nonsense\n",
	} {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, a := range givenAddresses(root) {
		got = append(got, a.String())
	}
	for _, want := range []string{
		"192.168.0.1", "fe80::1", "192.0.2.53", "fe80::53%eth0", "192.0.2.1", "192.0.2.67", "192.0.2.123", "192.0.2.124", "192.0.2.54",
		"198.51.100.1", "198.51.100.67", "198.51.100.53", "198.51.100.54",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not found in %v", want, got)
		}
	}
}

// One bad block is a bug somewhere; three are somebody.
func TestANeighbourIsBlamedForSeveral(t *testing.T) {
	var c culprits
	now := time.Now()
	for i, step := range []struct {
		id   peer.ID
		at   time.Time
		want bool
	}{
		{"a", now, false},
		{"a", now, false},
		{"b", now, false},
		{"a", now, true},
		{"a", now, false},
		{"a", now, false},
		{"a", now.Add(rejectsIn), false}, // old ones do not count
	} {
		if got := c.rejected(step.id, step.at); got != step.want {
			t.Errorf("step %d: one too many: %t", i, got)
		}
	}
	for i := range 1000 {
		c.rejected(peer.ID(rune(i)), now)
	}
	if len(c.all) > maxCulprit {
		t.Errorf("%d neighbours are counted", len(c.all))
	}
}

func TestRunsItsFile(t *testing.T) {
	if same, err := runsItsFile(); !same || err != nil {
		t.Errorf("the file that runs is another one: %v", err)
	}
}

func TestGuardCommandsAreChecked(t *testing.T) {
	r := remote{&gateway{}}
	for name, args := range map[string]string{"guard.release": `{}`, "guard.answer": `{"id":1}`, "guard.resume": `[]`} {
		var e *mqtt.CommandError
		if _, err := r.guardCommand(t.Context(), name, json.RawMessage(args)); !errors.As(err, &e) || e.Code != "invalid" {
			t.Errorf("%s %s: %v", name, args, err)
		}
	}
	var e *mqtt.CommandError
	if _, err := r.guardCommand(t.Context(), "guard.release", json.RawMessage(`{"all":true}`)); !errors.As(err, &e) || e.Code != "refused" || !strings.Contains(e.Text, "guard.mode") {
		t.Errorf("without a guard: %v", err)
	}
}
