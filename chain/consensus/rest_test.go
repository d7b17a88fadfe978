package consensus

import (
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// TestViewBeforeTheFirstBlock: a gateway that was started and has not agreed
// on anything yet has stores without a state, and is no reason to panic.
func TestViewBeforeTheFirstBlock(t *testing.T) {
	w := newWorld(t, 1)
	home := t.TempDir()
	s, err := openStores(home, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	err = ViewHome(home, w.genesis, func(height int64, _ time.Time, _ chain.Hash, _ ledger.State) {
		t.Errorf("height %d", height)
	})
	if err == nil || !strings.Contains(err.Error(), "no block yet; start the gateway") {
		t.Error(err)
	}
}
