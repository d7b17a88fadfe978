package consensus

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/audit"
	"github.com/joulegate/joulegate/chain/proof"
	"github.com/joulegate/joulegate/meter"
)

// kept are raw readings by their root.
type kept map[chain.Hash][][]byte

func (k kept) Readings(root chain.Hash) ([][]byte, error) { return k[root], nil }

// TestBundleOfRealGateways: a ledger that three gateways agreed on is bundled
// while it runs and when it does not, and judged by a verifier that shares no
// code with CometBFT and IAVL. Then its bytes are changed.
func TestBundleOfRealGateways(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	for _, n := range w.nodes {
		n.start()
	}
	readings := kept{}
	prev := map[*gateway]chain.Hash{}
	now := time.Now()
	slot := chain.SlotAt(now.UnixMilli(), 900) - 4
	w.nodes[0].submit(w.mint(0, "driver", 7))
	for number := uint64(1); number <= 3; number++ {
		for i, n := range w.nodes {
			at := (slot + chain.Slot(number)).End(900)
			imp := meter.WattHour(number * uint64(100*i))
			leaf := chain.Marshal(meter.Reading{
				Device: "site", Profile: "test", Unit: uint8(i), Page: number, Wall: at, Quality: meter.Good,
				Points: []meter.Point{{Quantity: meter.Import, Value: int64(imp) * 1000}},
			})
			root := chain.MerkleRoot([][]byte{leaf})
			readings[root] = [][]byte{leaf}
			b, err := chain.SignBlock(chain.Block{Chain: "test-grid", Epoch: 1, Number: number, Prev: prev[n], Time: at, Records: []chain.Record{
				chain.NewRecord(chain.KindMeter, chain.MeterRecord{
					Slot: slot + chain.Slot(number), Meter: "site", Role: chain.RoleSite, Page: number, Import: imp, Quality: meter.Good, At: at, Count: 1, Root: root,
				}),
				chain.NewRecord(chain.KindEvent, chain.Event{Code: "test", Severity: 1, Subject: n.name, At: at}),
			}}, n.key)
			if err != nil {
				t.Fatal(err)
			}
			prev[n] = b.Hash
			n.submit(b.Raw)
		}
	}
	last := w.nodes[0].submit(w.mint(1, "driver", 5))
	for _, n := range w.nodes {
		n.reach(last.Height + 1)
	}
	file, err := os.ReadFile(w.genesis)
	if err != nil {
		t.Fatal(err)
	}
	g, err := proof.ParseGenesis(file)
	if err != nil {
		t.Fatal(err)
	}
	opt := proof.Options{Genesis: g, Now: now}
	write := func(h *History, q audit.Query) []byte {
		t.Helper()
		var buf bytes.Buffer
		src := audit.Source{Chain: "test-grid", Genesis: chain.Sum(file), SlotSeconds: 900, History: h, Readings: readings}
		if _, err := audit.WriteBundle(t.Context(), &buf, src, q); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	green := func(what string, b []byte, opt proof.Options) proof.Report {
		t.Helper()
		r := proof.Verify(bytes.NewReader(b), opt)
		if !r.OK {
			var s bytes.Buffer
			_ = r.WriteText(&s)
			t.Fatalf("%s:\n%s", what, s.String())
		}
		return r
	}
	var all []byte
	n := w.nodes[1]
	if err := n.eng.History(func(h *History) error {
		all = write(h, audit.Query{})
		part := write(h, audit.Query{FromMs: (slot + 2).Start(900), ToMs: now.UnixMilli() + 60_000})
		green("a range of a running gateway", part, opt)
		_, tip := h.Range()
		c, err := h.Checkpoint(tip - 1)
		if err != nil {
			return err
		}
		with := opt
		with.Checkpoint = c
		if r := green("with a checkpoint", all, with); !r.Unique || r.Owners != 3 {
			t.Errorf("%+v", r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r := green("a running gateway", all, opt)
	if got := r.Checks[len(r.Checks)-1]; len(r.Checks) < 14 || !got.OK {
		t.Errorf("%+v", r)
	}
	n.stop()
	if err := HistoryHome(n.home, w.genesis, func(h *History) error {
		green("a stopped gateway", write(h, audit.Query{}), opt)
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	seed := uint64(now.UnixNano())
	t.Logf("seed %d, %d bytes", seed, len(all))
	rng := rand.New(rand.NewPCG(seed, 2))
	for range 400 {
		i := rng.IntN(len(all))
		bad := bytes.Clone(all)
		bad[i] ^= 1 << rng.IntN(8)
		if proof.Verify(bytes.NewReader(bad), opt).OK {
			t.Fatalf("byte %d changed unnoticed", i)
		}
	}
}
