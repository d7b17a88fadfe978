package ledger

import (
	"fmt"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

func TestDimming(t *testing.T) {
	w := newWorld(t)
	order := func(node string, limit, forMs int64) chain.Dim {
		return chain.Dim{Node: node, Limit: limit, Until: w.now + forMs, Reason: "transformer 7"}
	}
	expect := func(what string, h *house, limit meter.Watt) {
		t.Helper()
		if v, ok := DimOf(w.st, h.key, w.now); v.Limit != limit || ok != (limit > 0) {
			t.Fatalf("%s: %s is dimmed to %+v (%t), want %d W", what, h.name, v, ok, limit)
		}
	}
	w.ok(w.tx(w.op, chain.TxDim, order("f1", 4_200, 3_600_000)))
	w.saw("utility.dimmed")
	expect("an inner node", w.a, 4_200)
	expect("an inner node", w.b, 4_200)
	expect("the other feeder", w.c, 0)
	w.ok(w.tx(w.op, chain.TxDim, order("root", 8_000, 3_600_000)), w.tx(w.op, chain.TxDim, order("b", 6_000, 1_800_000)))
	expect("the lowest counts", w.b, 4_200)
	expect("all below the root", w.c, 8_000)
	w.ok(w.tx(w.op, chain.TxDim, chain.Dim{Node: "f1", Reason: "over"}))
	w.saw("utility.released")
	expect("what is left", w.b, 6_000)
	expect("what is left", w.a, 8_000)
	w.now += 1_800_000
	expect("it has ended by itself", w.b, 8_000)
	if got := Dims(w.st); len(got) != 2 || got[0].Node != "b" || got[1].By != w.op.key || got[1].Reason != "transformer 7" {
		t.Fatalf("%+v", got)
	}
	w.ok(w.tx(w.op, chain.TxDim, order("root", 9_000, 1_000_000)))
	if got := Dims(w.st); len(got) != 1 || got[0].Limit != 9_000 {
		t.Fatalf("the ended one is kept, or the old one of the node: %+v", got)
	}

	bad := func(d chain.Dim) []byte { return chain.SignTx("test", w.nonces[w.op.key]+1, chain.TxDim, d, w.op.priv) }
	w.refused(CodeNotAllowed, chain.SignTx("test", 1, chain.TxDim, order("f1", 4_200, 1_000_000), w.driver.priv))
	w.refused(CodeNode, bad(order("f9", 4_200, 1_000_000)))
	w.refused(CodeRange, bad(order("f1", -1, 1_000_000)))
	w.refused(CodeRange, bad(order("f1", 4_200, -dayMs)))
	w.refused(CodeRange, bad(order("f1", 4_200, 8*dayMs)))
	w.refused(CodeMalformed, bad(chain.Dim{Node: "f1", Limit: 4_200, Until: w.now + 1_000_000}))
	w.refused(CodeMalformed, bad(chain.Dim{Node: "f1", Limit: 4_200, Until: w.now + 1_000_000, Reason: strings.Repeat("x", 65)}))
}

func TestDimmingIsBounded(t *testing.T) {
	w := newWorld(t)
	for i := range MaxDims {
		put(w.st, key(tabDim, fmt.Appendf(nil, "old%d", i)), DimView{Node: fmt.Sprintf("old%d", i), Limit: 1, Until: w.now + dayMs})
	}
	full := chain.Dim{Node: "f1", Limit: 4_200, Until: w.now + 3_600_000, Reason: "one more"}
	w.refused(CodeLimit, chain.SignTx("test", w.nonces[w.op.key]+1, chain.TxDim, full, w.op.priv))
	w.now += dayMs
	full.Until += dayMs
	w.ok(w.tx(w.op, chain.TxDim, full))
	if got := Dims(w.st); len(got) != 1 {
		t.Fatalf("%d orders, the ended ones are kept", len(got))
	}
}
