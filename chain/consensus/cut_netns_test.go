//go:build netns

// This file cuts real links and takes minutes: go test -tags netns -run
// TestCut ./chain/consensus, as root, with iproute2.

package consensus

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

const cutSelf, cutPeers = "JOULEGATE_CUT_SELF", "JOULEGATE_CUT_PEERS"

func init() {
	if os.Getenv(cutSelf) != "" {
		cutChild()
	}
}

// cutChild is one gateway in a network namespace: it tells its blocks and
// submits a transaction a second.
func cutChild() {
	die := func(err error) { fmt.Println("error:", err); os.Exit(3) }
	var self int
	fmt.Sscan(os.Getenv(cutSelf), &self)
	name := fmt.Sprintf("house%d", self)
	var known []peer.AddrInfo
	for _, s := range strings.Fields(os.Getenv(cutPeers)) {
		info, err := peer.AddrInfoFromString(s)
		if err != nil {
			die(err)
		}
		known = append(known, *info)
	}
	h := newHost(keyFrom("device "+name), fmt.Sprintf("/ip4/10.99.0.%d/tcp/4001", self))
	eng, err := Open(context.Background(), Config{
		Home: os.Getenv(crashHome), GenesisFile: os.Getenv(crashGenesis), Host: h, Peers: func() []peer.AddrInfo { return known },
		Log: testLog(nil, name),
	})
	if err != nil {
		die(err)
	}
	blocks, _, err := eng.Subscribe(1024)
	if err != nil {
		die(err)
	}
	go eng.Run(context.Background())
	go func() {
		for b := range blocks {
			fmt.Println("block", b.Height, b.AppHash, b.Txs)
		}
	}()
	op := operator(self)
	for {
		var nonce uint64
		if err := eng.View(func(st ledger.State) { nonce = ledger.NextNonce(st, public(op)) }); err != nil {
			die(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		tx := chain.SignTx("test-grid", nonce, chain.TxMint, chain.Mint{To: account("driver"), Amount: 1, BankRef: fmt.Sprint(self, nonce)}, op)
		_, _ = eng.Submit(ctx, tx) // while the link is cut it fails, and is tried again
		cancel()
		time.Sleep(time.Second)
	}
}

// TestCut separates two of four gateways from the other two for longer than
// three minutes by taking a link between two bridges down. Nothing may fork,
// and after the link is back blocks must come.
func TestCut(t *testing.T) {
	const cut = 190 * time.Second
	w := newWorld(t, 4)
	id := fmt.Sprintf("jgc%d", os.Getpid()%10000)
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v %s", strings.Join(args, " "), err, out)
		}
	}
	hub := id + "h"
	ip("netns", "add", hub)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", hub).Run() })
	in := func(ns string, args ...string) { t.Helper(); ip(append([]string{"-n", ns}, args...)...) }
	for _, b := range []string{"left", "right"} {
		in(hub, "link", "add", b, "type", "bridge")
		in(hub, "link", "set", b, "up")
	}
	in(hub, "link", "add", "cutl", "type", "veth", "peer", "name", "cutr")
	in(hub, "link", "set", "cutl", "master", "left", "up")
	in(hub, "link", "set", "cutr", "master", "right", "up")

	var peers []string
	for i, n := range w.nodes {
		h := newHost(n.key, "/ip4/127.0.0.1/tcp/0")
		peers = append(peers, fmt.Sprintf("/ip4/10.99.0.%d/tcp/4001/p2p/%s", i+1, h.ID()))
		h.Close()
	}
	type line struct {
		node   int
		height int64
		hash   string
		txs    int
	}
	lines := make(chan line, 10000)
	for i, n := range w.nodes {
		ns, port := fmt.Sprintf("%s%d", id, i+1), fmt.Sprintf("p%d", i+1)
		ip("netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		in(hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", ns)
		in(hub, "link", "set", port, "master", map[bool]string{true: "left", false: "right"}[i < 2], "up")
		in(ns, "addr", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", "eth0")
		in(ns, "link", "set", "eth0", "up")
		in(ns, "link", "set", "lo", "up")
		cmd := exec.Command("ip", "netns", "exec", ns, os.Args[0])
		cmd.Env = append(os.Environ(), cutSelf+"="+fmt.Sprint(i+1), cutPeers+"="+strings.Join(peers, " "),
			crashHome+"="+n.home, crashGenesis+"="+w.genesis)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		go func() {
			for s := bufio.NewScanner(out); s.Scan(); {
				l := line{node: i + 1}
				if n, _ := fmt.Sscanf(s.Text(), "block %d %s %d", &l.height, &l.hash, &l.txs); n == 3 {
					lines <- l
				} else {
					fmt.Println(name(i), s.Text())
				}
			}
		}()
	}
	hashes := map[int64]string{}
	top := [5]int64{}
	// follow reads blocks until done says so or the time is over.
	follow := func(limit time.Duration, done func() bool) bool {
		end := time.After(limit)
		for !done() {
			select {
			case l := <-lines:
				if was, ok := hashes[l.height]; ok && was != l.hash {
					t.Fatalf("fork at height %d: %s and %s", l.height, was, l.hash)
				}
				hashes[l.height], top[l.node] = l.hash, max(top[l.node], l.height)
			case <-end:
				return false
			}
		}
		return true
	}
	all := func(h int64) func() bool {
		return func() bool { return min(top[1], top[2], top[3], top[4]) >= h }
	}
	if !follow(patience, all(10)) {
		t.Fatalf("no blocks at start: %v", top)
	}
	in(hub, "link", "set", "cutl", "down")
	follow(cut, func() bool { return false })
	before := max(top[1], top[2], top[3], top[4])
	t.Logf("after %v without the link: %v", cut, top)
	in(hub, "link", "set", "cutl", "up")
	t0 := time.Now()
	if !follow(2*patience, func() bool { return max(top[1], top[2], top[3], top[4]) > before }) {
		t.Fatalf("no block after the heal: %v", top)
	}
	t.Logf("first new block %v after the heal", time.Since(t0).Round(10*time.Millisecond))
	if !follow(2*patience, all(before+10)) {
		t.Fatalf("not all follow after the heal: %v", top)
	}
	t.Logf("all ten blocks further %v after the heal: %v", time.Since(t0).Round(10*time.Millisecond), top)
}

func name(i int) string { return fmt.Sprintf("house%d", i+1) }
