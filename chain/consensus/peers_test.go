package consensus

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

// TestForgetfulHost: a host forgets what was noted about a peer a minute
// after the peer has gone, and about all who have gone when it closes, while
// votes of that peer may still wait to be counted. CometBFT panics about a
// listed peer without a state, and would end the process.
func TestForgetfulHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	for _, n := range w.nodes {
		n.start()
	}
	a, b := w.nodes[0], w.nodes[1]
	for i := range 5 {
		a.host.Peerstore().RemovePeer(b.host.ID())
		b.host.Peerstore().RemovePeer(a.host.ID())
		r := a.submit(w.mint(0, "driver", 1))
		b.reach(r.Height)
		t.Logf("%d: height %d", i, r.Height)
	}
	// A host that closes under a running ledger harms nobody.
	if err := b.host.Close(); err != nil {
		t.Fatal(err)
	}
	b.stop()
}

// TestNotes: notes are kept while their peer may be listed, and do not grow
// without limit.
func TestNotes(t *testing.T) {
	t.Parallel()
	live := map[peer.ID]bool{"p0": true, "p1": true}
	n := newNotes(func(p peer.ID) bool { return live[p] })
	for i := range 3 * maxNoted {
		n.put(peer.ID(fmt.Sprintf("p%d", i)), "state", i)
	}
	if len(n.of) > maxNoted {
		t.Errorf("notes about %d peers, at most %d are kept", len(n.of), maxNoted)
	}
	for i, p := range []peer.ID{"p0", "p1", peer.ID(fmt.Sprintf("p%d", 3*maxNoted-1))} {
		want := []int{0, 1, 3*maxNoted - 1}[i]
		if v, ok := n.get(p, "state"); !ok || v != want {
			t.Errorf("note about %s: %v %t, want %d", p, v, ok, want)
		}
	}
	if v, ok := n.get("p0", "other"); ok {
		t.Errorf("a note nobody made: %v", v)
	}
}
