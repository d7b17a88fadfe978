package consensus

import (
	"bytes"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Another microgrid checks a claim with the genesis alone.
func TestClaimIsCheckedFromTheGenesis(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	n.submit(w.mint(0, "driver", 5_000))
	n.submit(w.mint(0, "other", 1)) // the header after it signs the state
	doc, g, _, err := ReadGenesis(w.genesis)
	if err != nil {
		t.Fatal(err)
	}
	trust := chain.TrustGenesis(g, doc.GenesisTime)
	key := ledger.AccountKey(account("driver"))
	c, err := n.eng.Claim(key)
	if err != nil {
		t.Fatal(err)
	}
	raw := chain.Marshal(c)
	got, err := ParseClaim(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(trust); err != nil {
		t.Fatal(err)
	}
	if v, err := ledger.ParseBalance(got.Value); err != nil || v != 5_000 || !bytes.Equal(got.Key, key) {
		t.Fatalf("the claim says %d under %x: %v", v, got.Key, err)
	}

	richer := got
	richer.Value = chain.Marshal([]any{1, 50_000})
	gone := got
	gone.Value = nil
	other := got
	other.Key = ledger.AccountKey(account("other"))
	forged := got
	forged.Checkpoint.Header.AppHash[0] ^= 1
	foreign := trust
	foreign.Chain = "elsewhere"
	stranger := trust
	stranger.Next = chain.Validators{{Key: chain.Key{1}, Power: trust.Next.Power()}}
	for name, bad := range map[string]error{
		"another value": richer.Verify(trust), "absence": gone.Verify(trust), "another entry": other.Verify(trust), "another app hash": forged.Verify(trust),
		"another microgrid": got.Verify(foreign), "validators that are not trusted": got.Verify(stranger),
	} {
		if bad == nil {
			t.Errorf("a claim is believed for %s", name)
		}
	}

	absent, err := n.eng.Claim(ledger.SessionKey(chain.ID{9}))
	if err != nil {
		t.Fatal(err)
	}
	if err := absent.Verify(trust); err != nil || len(absent.Value) != 0 {
		t.Errorf("absence of a session: %x, %v", absent.Value, err)
	}
}

func FuzzParseClaim(f *testing.F) {
	f.Add(chain.Marshal(Claim{Version: claimVersion, Key: []byte{1}}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseClaim(b)
		if err != nil {
			return
		}
		if c.Verify(chain.Trust{Chain: "x"}) == nil {
			t.Fatal("a claim is believed without a validator")
		}
	})
}
