package proof

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// yearSlots is a year of quarters of an hour.
const yearSlots = 35_040

// BenchmarkVerifyYear verifies a year of one household: three meters and a
// charging session every other day. Making the year takes longer than the
// verification and is not timed.
func BenchmarkVerifyYear(b *testing.B) {
	slots := yearSlots
	if testing.Short() {
		slots = 960
	}
	m := newMaker(b, "anna")
	m.roots = false
	driver, driverKey := seeded("driver")
	h := m.homes[0]
	m.block(m.tx(chain.TxMint, chain.Mint{To: chain.AccountGrid, Amount: 1e15, BankRef: "a"}), m.tx(chain.TxMint, chain.Mint{To: chain.AccountOf(driverKey), Amount: 1e15, BankRef: "b"}))
	m.block(m.sign(h, m.measure(h, "site", chain.RoleSite, firstSlot-1, 0, 0), m.measure(h, "roof", chain.RoleProduction, firstSlot-1, 0, 0)))
	register, id, seq := meter.WattHour(0), chain.ID{}, uint32(0)
	for i := range slots {
		s := firstSlot + chain.Slot(i)
		m.now = s.End(slotSeconds) + 2000
		recs := []chain.Record{m.measure(h, "site", chain.RoleSite, s, 300, 20), m.measure(h, "roof", chain.RoleProduction, s, 0, 150), m.measure(h, "charger", chain.RoleCharger, s, 0, 0)}
		switch step := i % 192; {
		case step == 10:
			id, seq = chain.ID{byte(i >> 16), byte(i >> 8), byte(i), 1}, 0
			q := chain.Quote{Version: 1, Chain: m.genesis.State.ChainID, ID: id, Gateway: h.key, Connector: 1, Driver: driverKey, Created: m.now, Expires: m.now + 300_000, MaxWh: 10_000, Cap: 400_000, Hold: 400_000 * 10_000}
			raw := chain.Marshal(q)
			recs = append(recs, chain.NewRecord(chain.KindSessionOpen, chain.SessionOpen{Quote: chain.SignedQuote{Quote: raw, Sig: chain.Sign(driver, chain.DomainQuote, raw)}}))
			fallthrough
		case step > 10 && step < 20:
			seq++
			if step > 10 {
				register += 200
			}
			recs = append(recs, chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: id, Seq: seq, Slot: s, Register: register, Quality: meter.Good, At: m.now}))
		case step == 20:
			register += 200
			recs = append(recs, chain.NewRecord(chain.KindSessionStop, chain.SessionStop{Session: id, Seq: seq + 1, Slot: s, Register: register, Quality: meter.Good, At: m.now, Reason: chain.StopDriver}))
		}
		m.block(m.sign(h, recs...))
	}
	m.now += 400_000
	m.block()
	m.roots = true
	m.block()
	raw := m.bundle(nil)
	opt := m.options()
	m = nil
	runtime.GC()
	b.ResetTimer()
	var took time.Duration
	var most uint64
	for b.Loop() {
		done, peak := make(chan struct{}), make(chan uint64)
		go func() { // how much the heap takes beyond the bundle itself
			top := uint64(0)
			for {
				var s runtime.MemStats
				runtime.ReadMemStats(&s)
				top = max(top, s.HeapInuse+s.StackInuse)
				select {
				case <-done:
					peak <- top
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}()
		start := time.Now()
		if r := Verify(bytes.NewReader(raw), opt); !r.OK {
			b.Fatal(red(r))
		}
		took += time.Since(start)
		close(done)
		most = max(most, <-peak)
	}
	b.ReportMetric(took.Seconds()/float64(b.N), "s")
	b.ReportMetric((float64(most)-float64(cap(raw)))/1e6, "MB")
	b.ReportMetric(float64(len(raw))/1e6, "bundle-MB")
}
