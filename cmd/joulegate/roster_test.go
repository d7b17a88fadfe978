package main

import (
	"bytes"
	"crypto/ed25519"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/p2p"
)

// TestBarredBeforeKnown: a gateway that starts anew shuts a neighbour out
// before the ledger has told it who that is.
func TestBarredBeforeKnown(t *testing.T) {
	west := keys.Public(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
	id, err := p2p.PeerIDOf(west)
	if err != nil {
		t.Fatal(err)
	}
	r := newRoster(chain.Key{1}, nil)
	r.bar("west", true)
	r.update([]ledger.MemberView{{Member: chain.Member{Device: west, Name: "west"}, Active: true}}, nil)
	if r.allow(id) {
		t.Error("it is talked to")
	}
	if !r.active(west) {
		t.Error("it is no member any more")
	}
	r.bar("west", false)
	if !r.allow(id) {
		t.Error("it is never talked to again")
	}
}
