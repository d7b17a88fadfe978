package station

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/driverstest"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/poll"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/setpoint"
	"github.com/joulegate/joulegate/meter/slot"
)

const testConfig = `
version: 1
name: north
board: simulated
lines: [{id: rs485, tcp: "127.0.0.1:502"}]
meters:
- {id: house, line: rs485, unit: 1, profile: eastron-sdm630, role: site}
- {id: car, line: rs485, unit: 2, profile: eastron-sdm630, role: charger}
chargers:
- id: 1
  meter: car
  relay: RELAY1
  estop: IN1
  evse: {line: rs485, unit: 10, profile: simpleevse}
pins: {socket: /run/pins}
timing: {min_off: 2s, hold_limit: 20s, start_limit: 60s, full_after: 30s, resume_limit: 20s, on_delay: 20s, off_delay: 60s}
`

var (
	driverKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	deviceKey = chain.Key{1}
)

// world is everything around a station, and what survives its death: the
// physics, the disk, and a ledger that judges what it is told.
type world struct {
	t  *testing.T
	mu sync.Mutex

	yaml      string // of the gateway
	tweak     func(*Config)
	relay     *driverstest.Relay // nil: the wallbox switches
	evse      *driverstest.Limiter
	volts     [3]int64                   // at the car's meter
	reversed  bool                       // the session meter says that the phases are
	v2g       *v2g                       // the wallbox, if it can discharge
	draw      func(offered int64) int64  // what the car takes; nil: what it is offered
	poll      *poll.State                // judges the car's readings as the poller does; nil: they are good
	skew      time.Duration              // of the wall clock
	signed    chain.SignedQuote          // of the last start
	serial    string                     // of the car's meter
	shown     func(register int64) int64 // what its register shows; nil: what it counted
	doubt     string                     // why its readings are suspect; "": they are good
	estop     *driverstest.Input
	connector uint8 // of the next start; 0: 1
	unplugged atomic.Bool
	block     func()           // called by the stop button, to stall the loop
	silent    map[string]bool  // meters that say nothing
	reg       map[string]int64 // mWh
	house     int64            // mW that the house draws beside the car
	page      uint64
	station   *Station
	end       func() error // ends the station
	boot      time.Time

	disk      []byte
	writes    int
	killAt    int  // this write is the last: 0 is never
	killAfter bool // it lands
	dead      bool
	killed    chan struct{}
	failDisk  error
	slow      time.Duration // a write takes so long

	closedBox bool // the outbox takes nothing yet
	records   []chain.Record
	leaves    []slot.Leaves
	refuse    bool // the ledger holds nothing
	held      map[chain.ID]bool
	seqs      map[chain.ID]uint32
	regs      map[chain.ID][]meter.WattHour
	stops     map[chain.ID][]chain.SessionStop
	out       map[chain.ID][]meter.WattHour // export registers
	pages     map[string]uint64
	meters    map[string]chain.MeterRecord
	shots     []board.Snapshot
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, yaml: testConfig, volts: [3]int64{230_000, 230_000, 230_000}, relay: &driverstest.Relay{}, evse: &driverstest.Limiter{}, estop: &driverstest.Input{}, killed: make(chan struct{}),
		silent: map[string]bool{}, reg: map[string]int64{"house": 9_000_700, "car": 5_000_300}, house: 500_000,
		held: map[chain.ID]bool{}, seqs: map[chain.ID]uint32{}, regs: map[chain.ID][]meter.WattHour{}, stops: map[chain.ID][]chain.SessionStop{}, out: map[chain.ID][]meter.WattHour{},
		pages: map[string]uint64{}, meters: map[string]chain.MeterRecord{},
	}
	w.evse.Plug(drivers.StateB)
	return w
}

func (w *world) Load() ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.disk, nil
}

// land decides whether a write reaches the disk, and kills the process at the
// one that is asked for.
func (w *world) land(write func()) error {
	w.mu.Lock()
	slow := w.slow
	w.mu.Unlock()
	time.Sleep(slow)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return errors.New("dead")
	}
	if w.failDisk != nil {
		return w.failDisk
	}
	w.writes++
	if w.writes == w.killAt {
		w.dead = true
		close(w.killed)
		if !w.killAfter {
			return errors.New("dead")
		}
	}
	write()
	return nil
}

func (w *world) Save(b []byte) error {
	return w.land(func() { w.disk = bytes.Clone(b) })
}

func (w *world) Keep(l slot.Leaves) error {
	return w.land(func() {
		if !slices.ContainsFunc(w.leaves, func(o slot.Leaves) bool { return o.Root == l.Root }) {
			w.leaves = append(w.leaves, l)
		}
	})
}

func (w *world) Append(ctx context.Context, records []chain.Record) error {
	w.mu.Lock()
	closed := w.closedBox
	w.mu.Unlock()
	if closed {
		<-ctx.Done()
		return ctx.Err()
	}
	if unsent, _ := w.Unsent(records); len(unsent) < len(records) {
		w.t.Errorf("of %d records %d are on the chain already", len(records), len(records)-len(unsent))
	}
	return w.land(func() {
		w.records = append(w.records, records...)
		for _, r := range records {
			w.judge(r)
		}
	})
}

func (w *world) Unsent(records []chain.Record) (out []chain.Record, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range records {
		if !slices.ContainsFunc(w.records, func(o chain.Record) bool { return o.Kind == r.Kind && bytes.Equal(o.Body, r.Body) }) {
			out = append(out, r)
		}
	}
	return out, nil
}

// judge is the ledger's rule: a repeated record has no effect, one that does
// not follow is refused.
func (w *world) judge(r chain.Record) {
	next := func(id chain.ID, seq uint32, reg meter.WattHour) bool {
		switch {
		case !w.held[id]:
			w.t.Errorf("record %d of session %s that the ledger does not know", seq, id)
		case seq <= w.seqs[id]:
			return false
		case seq != w.seqs[id]+1:
			w.t.Errorf("session record %d follows %d", seq, w.seqs[id])
		case len(w.stops[id]) > 0:
			w.t.Errorf("record %d after the stop", seq)
		case len(w.regs[id]) > 0 && reg < w.regs[id][len(w.regs[id])-1]:
			w.t.Errorf("register fell to %d", reg)
		}
		w.seqs[id] = seq
		w.regs[id] = append(w.regs[id], reg)
		return true
	}
	decode := func(v any) {
		if err := chain.Unmarshal(r.Body, v); err != nil {
			w.t.Error(err)
		}
	}
	switch r.Kind {
	case chain.KindSessionOpen:
		var o chain.SessionOpen
		decode(&o)
		q, err := o.Quote.Open()
		if err != nil {
			w.t.Error(err)
		}
		w.held[q.ID] = !w.refuse
	case chain.KindSessionMeter:
		var m chain.SessionMeter
		decode(&m)
		next(m.Session, m.Seq, m.Register)
		w.out[m.Session] = append(w.out[m.Session], m.Export)
	case chain.KindSessionStop:
		var m chain.SessionStop
		decode(&m)
		if next(m.Session, m.Seq, m.Register) {
			w.stops[m.Session] = append(w.stops[m.Session], m)
			w.out[m.Session] = append(w.out[m.Session], m.Export)
		}
	case chain.KindMeter:
		var m chain.MeterRecord
		decode(&m)
		if m.Page <= w.pages[m.Meter] {
			return
		}
		if !slices.ContainsFunc(w.leaves, func(l slot.Leaves) bool { return l.Root == m.Root }) {
			w.t.Errorf("page %d of %s was appended, and its readings are nowhere", m.Page, m.Meter)
		}
		if m.Page != w.pages[m.Meter]+1 || m.Import < w.meters[m.Meter].Import || (m.Page > 1 && m.Slot <= w.meters[m.Meter].Slot) {
			w.t.Errorf("meter record %+v after %+v", m, w.meters[m.Meter])
		}
		w.pages[m.Meter], w.meters[m.Meter] = m.Page, m
	}
}

// events returns the recorded events of one code.
func (w *world) events(code string) (out []chain.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.records {
		var e chain.Event
		if r.Kind == chain.KindEvent && chain.Unmarshal(r.Body, &e) == nil && e.Code == code {
			out = append(out, e)
		}
	}
	return out
}

func (w *world) Publish(s board.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shots = append(w.shots, s)
}

func (w *world) last() board.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shots[len(w.shots)-1]
}

// Active is the stop button.
func (w *world) Active() (bool, error) {
	w.mu.Lock()
	f := w.block
	w.mu.Unlock()
	if f != nil {
		f()
	}
	return w.estop.Active()
}

func (w *world) config() Config {
	c, err := config.Parse([]byte(w.yaml))
	if err != nil {
		w.t.Fatal(err)
	}
	cfg, err := FromConfig(c)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg.ChainID, cfg.Device, cfg.SlotSeconds = "test", deviceKey, 10
	h := &cfg.Chargers[0]
	if w.relay != nil {
		h.Relay = w.relay
	}
	h.Limiter, h.EStop = w.evse, w
	if w.v2g != nil {
		h.Limiter = w.v2g
	}
	cfg.Outbox, cfg.Store, cfg.Publisher = w, w, w
	cfg.Receipt = func(r Receipt) (chain.Hash, error) {
		if r.End.Value < r.Begin.Value || r.Quote.ID != r.Session {
			w.t.Errorf("receipt of %+v", r)
		}
		return chain.Sum([]byte(fmt.Sprint(r.Session, r.End.Value))), nil
	}
	boot := time.Now()
	w.mu.Lock()
	w.boot = boot
	w.mu.Unlock()
	cfg.Now = func() time.Duration { return time.Since(boot) }
	cfg.By = "config 0badc0de, joulegate test"
	cfg.Log = slog.New(slog.NewTextHandler(logWriter{w.t}, nil))
	if w.tweak != nil {
		w.tweak(&cfg)
	}
	return cfg
}

type logWriter struct{ t *testing.T }

func (l logWriter) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// physics moves energy ten times a second and lets meters speak once.
func (w *world) physics(ctx context.Context) {
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
		closed := w.relay == nil
		if !closed {
			closed, _ = w.relay.Closed()
		}
		amps := int64(0)
		if closed {
			amps = int64(w.evse.Limit())
		}
		if f := w.draw; f != nil {
			amps = f(amps)
		}
		switch {
		case w.unplugged.Load():
			w.evse.Plug(drivers.StateA)
		case amps > 0:
			w.evse.Plug(drivers.StateC)
		default:
			w.evse.Plug(drivers.StateB)
		}
		power := amps * 3 * 230
		w.mu.Lock()
		w.reg["car"] += power / 36_000
		if w.v2g != nil {
			power -= w.v2g.flow()
			w.reg["car out"] += max(0, -power) / 36_000
		}
		w.reg["house"] += max(0, power+w.house) / 36_000
		w.reg["house out"] += max(0, -power-w.house) / 36_000
		st, since := w.station, time.Since(w.boot)
		if w.dead {
			st = nil
		}
		var say []meter.Reading
		for id, p := range map[string]int64{"house": power + w.house, "car": power} {
			if n%10 == 0 && !w.silent[id] && st != nil {
				w.page++
				r := meter.Reading{
					Device: id, Profile: "eastron-sdm630", Unit: 1, Page: w.page, Wall: time.Now().UnixMilli(), Quality: meter.Good, Mono: since,
					Points: []meter.Point{{Quantity: meter.Power, Value: p}, {Quantity: meter.Import, Value: w.reg[id]}, {Quantity: meter.Export, Value: w.reg[id+" out"]}, {Quantity: meter.Current, Phase: 1, Value: p / 690}},
				}
				if id == "car" {
					if w.v2g != nil {
						r.Points = append(r.Points, meter.Point{Quantity: meter.StateOfCharge, Value: w.v2g.soc()})
					}
					for l, v := range w.volts {
						r.Points = append(r.Points, meter.Point{Quantity: meter.Voltage, Phase: uint8(l + 1), Value: v})
					}
					if w.reversed {
						r.Points = append(r.Points, meter.Point{Quantity: meter.PhaseSequence, Value: -1})
					}
					if w.shown != nil {
						r.Points[1].Value = w.shown(w.reg[id])
					}
					if w.poll != nil {
						digits := make([]int64, len(r.Points))
						var judged meter.Reading
						*w.poll, judged = poll.Step(*w.poll, poll.Limits{MaxPower: 22_000_000}.WithDefaults(), poll.Outcome{
							Now: since, Wall: r.Wall, Points: r.Points, Digits: digits, Identity: poll.Identity{Serial: w.serial},
						})
						r.Quality, r.Reason = judged.Quality, judged.Reason
					}
					if w.doubt != "" {
						r.Quality, r.Reason = meter.Suspect, w.doubt
					}
				}
				say = append(say, r)
			}
		}
		var notes []chain.ID
		if st != nil && n%5 == 0 { // the ledger's next block
			notes = st.Sessions()
		}
		w.mu.Unlock()
		for _, r := range say {
			st.Reading(r)
		}
		for _, id := range notes {
			w.mu.Lock()
			held, known := w.held[id]
			over := len(w.stops[id]) > 0
			w.mu.Unlock()
			if known {
				st.LedgerSession(id, held && !over, "no money")
			}
		}
	}
}

// run starts a station; the returned function ends it and gives Run's error.
func (w *world) run() func() error {
	st, err := New(w.config())
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan error, 1)
	go func() { out <- st.Run(ctx) }()
	w.mu.Lock()
	w.station = st
	w.mu.Unlock()
	end := sync.OnceValue(func() error { cancel(); return <-out })
	w.end = end
	w.t.Cleanup(func() { end() }) // a failed test ends its station, too
	return end
}

func (w *world) isDead() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dead
}

func (w *world) closed() bool {
	c, err := w.relay.Closed()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) car() meter.WattHour {
	w.mu.Lock()
	defer w.mu.Unlock()
	return meter.MilliWattHour(w.reg["car"]).WattHours()
}

func signed(q chain.Quote) chain.SignedQuote {
	b := chain.Marshal(q)
	return chain.SignedQuote{Quote: b, Sig: chain.Sign(driverKey, chain.DomainQuote, b)}
}

func (w *world) start(max meter.WattHour) chain.ID {
	w.t.Helper()
	var driver chain.Key
	copy(driver[:], driverKey.Public().(ed25519.PublicKey))
	q, err := w.station.Quote(w.t.Context(), cmp.Or(w.connector, 1), driver, max, 300_000, false)
	if err != nil {
		w.t.Fatal(err)
	}
	w.signed = signed(q)
	if err := w.station.Start(w.t.Context(), w.signed); err != nil && !w.isDead() {
		w.t.Fatal(err)
	}
	return q.ID
}

func wait(d time.Duration) { time.Sleep(d); synctest.Wait() }

// bubble runs f with a world in fake time.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { w.physics(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		f(t, w)
	})
}

func TestSessionFromQuoteToReceipt(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		id := w.start(2000)
		begin := w.car()
		wait(4 * time.Second)
		if !w.closed() || w.evse.Limit() != 16_000 {
			t.Fatalf("relay %t, %d mA: %s", w.closed(), w.evse.Limit(), w.last().Chargers[0].Why)
		}
		wait(60 * time.Second)
		c := w.last().Chargers[0]
		if c.State != "charging" || c.SessionWh < 100 || c.Session != id.String() || !c.Relay || c.Limit != 16_000 {
			t.Fatalf("snapshot %+v", c)
		}
		if err := w.station.Stop(t.Context(), id, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		wait(10 * time.Second)
		if w.closed() || w.evse.Limit() != 0 {
			t.Fatal("still energised")
		}
		stop := w.stops[id]
		if len(stop) != 1 || stop[0].Reason != chain.StopDriver || stop[0].Register != w.car() || w.regs[id][0] != begin || stop[0].Receipt == (chain.Hash{}) {
			t.Fatalf("stop %+v; registers %v; meter from %d to %d", stop, w.regs[id], begin, w.car())
		}
		if n := len(w.regs[id]); n < 7 {
			t.Fatalf("%d session records in 6 slots", n)
		}
		if w.last().Chargers[0].State != "idle" || len(w.station.Sessions()) != 0 {
			t.Fatalf("%+v", w.last().Chargers[0])
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		order(t, w)
		leaves(t, w)
	})
}

// order checks that records came before what they allow.
func order(t *testing.T, w *world) {
	var kinds []chain.RecordKind
	for _, r := range w.records {
		if r.Kind != chain.KindMeter {
			kinds = append(kinds, r.Kind)
		}
	}
	if kinds[0] != chain.KindSessionOpen || kinds[1] != chain.KindSessionMeter || kinds[len(kinds)-1] != chain.KindSessionStop {
		t.Errorf("kinds %v", kinds)
	}
}

// leaves checks that what is kept proves what was recorded.
func leaves(t *testing.T, w *world) {
	for _, l := range w.leaves {
		if chain.MerkleRoot(l.Data) != l.Root || len(l.Data) == 0 {
			t.Errorf("leaves of %s page %d do not lead to their root", l.Meter, l.Page)
		}
	}
	if len(w.leaves) != int(w.pages["house"]+w.pages["car"]) {
		t.Errorf("%d sets of leaves for %v records", len(w.leaves), w.pages)
	}
}

// A confirmed exchange of a meter begins a new segment; in the middle of a
// session it is refused, because the session's registers would not meet.
func TestSwappedMeterBeginsASegment(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		if err := w.station.SwapMeter(t.Context(), "nobody"); !errors.Is(err, ErrRefused) {
			t.Errorf("unknown meter: %v", err)
		}
		if err := w.station.SwapMeter(t.Context(), "house"); err != nil {
			t.Fatal(err)
		}
		w.start(2000)
		wait(4 * time.Second)
		if err := w.station.SwapMeter(t.Context(), "car"); !errors.Is(err, ErrRefused) {
			t.Errorf("session meter in a session: %v", err)
		}
		wait(25 * time.Second) // two slots
		if err := end(); err != nil {
			t.Fatal(err)
		}
		segments := map[string]uint32{}
		for _, r := range w.records {
			if r.Kind != chain.KindMeter {
				continue
			}
			var m chain.MeterRecord
			if err := chain.Unmarshal(r.Body, &m); err != nil {
				t.Fatal(err)
			}
			segments[m.Meter] = m.Segment
		}
		if segments["house"] != 1 || segments["car"] != 0 {
			t.Errorf("segments %v", segments)
		}
	})
}

func TestNothingClosesBeforeItsRecordIsDurable(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		w.start(2000)
		w.mu.Lock()
		w.failDisk = errors.New("no space left on device")
		w.mu.Unlock()
		wait(30 * time.Second)
		if slices.Contains(w.relay.Log(), true) {
			t.Fatal("closed while the begin register could not be written")
		}
		if a := w.last().Alarms; len(a) == 0 || a[0].Code != "disk" {
			t.Fatalf("alarms %+v", a)
		}
		w.mu.Lock()
		w.failDisk = nil
		w.mu.Unlock()
		wait(5 * time.Second)
		if !w.closed() {
			t.Fatalf("disk is well again: %s", w.last().Chargers[0].Why)
		}
		w.mu.Lock()
		w.failDisk = errors.New("no space left on device")
		w.mu.Unlock()
		wait(20 * time.Second) // the next slot's record fails
		if w.closed() {
			t.Fatal("charges without being able to record it")
		}
		w.mu.Lock()
		w.failDisk = nil
		w.mu.Unlock()
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestHangingDiskSuspends(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		id := w.start(5000)
		wait(20 * time.Second)
		w.mu.Lock()
		w.slow = 60 * time.Second
		w.mu.Unlock()
		wait(35 * time.Second) // the next slot's record hangs
		if w.closed() {
			t.Fatal("charges while the disk hangs")
		}
		if a := w.last().Alarms; len(a) == 0 || a[0].Code != "disk" {
			t.Fatalf("alarms %+v", a)
		}
		w.mu.Lock()
		w.slow = 0
		w.mu.Unlock()
		wait(60 * time.Second)
		if !w.closed() {
			t.Fatalf("the disk is well again: %s", w.last().Chargers[0].Why)
		}
		if err := w.station.Stop(t.Context(), id, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		wait(10 * time.Second)
		if s := w.stops[id]; len(s) != 1 || s[0].Register != w.car() {
			t.Fatalf("%+v, meter %d", s, w.car())
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// Whoever ends a gateway before the neighbours have said where its chain goes
// on loses no record, and is told of no failure.
func TestRecordsThatFindNoOutboxWaitForTheNextStart(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.closedBox = true
		end := w.run()
		w.station.Note("gateway.started", 1, "north", "started")
		wait(4 * time.Second)
		if err := end(); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		w.closedBox = false
		w.mu.Unlock()
		end = w.run()
		wait(2 * time.Second)
		if len(w.events("gateway.started")) != 1 {
			t.Error("the record of before is lost")
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSurplusFollowsTheHouse(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		if err := w.station.SetMode(t.Context(), 1, setpoint.Surplus); err != nil {
			t.Fatal(err)
		}
		house := func(milliwatt int64) {
			w.mu.Lock()
			w.house = milliwatt
			w.reg["house"] = 50_000_000
			w.mu.Unlock()
		}
		id := w.start(20_000)
		wait(20 * time.Second)
		if w.closed() || !strings.Contains(w.last().Chargers[0].Why, "surplus") {
			t.Fatalf("the house imports and the car charges: %s", w.last().Chargers[0].Why)
		}
		house(-6_210_000) // 9 A on three phases
		wait(15 * time.Second)
		if w.closed() {
			t.Fatal("did not wait for the surplus to last")
		}
		wait(10 * time.Second)
		if !w.closed() || w.evse.Limit() != 9_000 {
			t.Fatalf("relay %t, %d mA on 6.2 kW of surplus: %s", w.closed(), w.evse.Limit(), w.last().Chargers[0].Why)
		}
		house(1_000_000)
		wait(10 * time.Second)
		if !w.closed() || w.evse.Limit() != 6_000 {
			t.Fatalf("relay %t, %d mA in the shade", w.closed(), w.evse.Limit())
		}
		wait(65 * time.Second)
		if w.closed() || w.last().Chargers[0].State != "suspended" {
			t.Fatalf("still charges from the network: %+v", w.last().Chargers[0])
		}
		if err := w.station.Stop(t.Context(), id, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		wait(10 * time.Second)
		if len(w.stops[id]) != 1 {
			t.Fatal("not stopped")
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLedgerRefusesTheHold(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.refuse = true
		end := w.run()
		wait(4 * time.Second)
		w.start(2000)
		wait(10 * time.Second)
		if slices.Contains(w.relay.Log(), true) {
			t.Fatal("closed without a hold")
		}
		if c := w.last().Chargers[0]; c.State != "idle" || !strings.Contains(c.LastStop, "no money") {
			t.Fatalf("%+v", c)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStaleMeterGivesSixAmpereThenOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		w.start(5000)
		wait(10 * time.Second)
		w.mu.Lock()
		w.silent["car"] = true
		w.mu.Unlock()
		wait(13 * time.Second)
		if !w.closed() || w.evse.Limit() != 6000 {
			t.Fatalf("relay %t, %d mA after 13 s of silence", w.closed(), w.evse.Limit())
		}
		wait(25 * time.Second)
		if w.closed() || w.evse.Limit() != 0 {
			t.Fatalf("relay %t, %d mA after 38 s of silence", w.closed(), w.evse.Limit())
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestEmergencyStopOpensWithinTicks(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		id := w.start(5000)
		wait(20 * time.Second)
		w.estop.Put(true, nil)
		wait(50 * time.Millisecond) // two ticks
		if w.closed() {
			t.Fatal("still closed")
		}
		wait(15 * time.Second)
		if s := w.stops[id]; len(s) != 1 || s[0].Reason != chain.StopSafety || s[0].Register != w.car() {
			t.Fatalf("%+v, meter %d", s, w.car())
		}
		w.estop.Put(false, errors.New("wire cut"))
		wait(time.Second)
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStalledLoopOpensRelayAndRecovers(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		w.start(5000)
		wait(20 * time.Second)
		if !w.closed() || !w.station.Alive() {
			t.Fatal("not charging")
		}
		until := time.Now().Add(8 * time.Second) // whoever reads the button hangs until then
		w.mu.Lock()
		w.block = func() { time.Sleep(time.Until(until)) }
		w.mu.Unlock()
		wait(1500 * time.Millisecond)
		if w.closed() || w.station.Alive() {
			t.Fatal("the loop hangs and the relay is closed")
		}
		still := w.station.Progress()
		wait(2 * time.Second)
		if w.evse.Limit() != 0 {
			t.Fatalf("the loop hangs and %d mA are offered", w.evse.Limit())
		}
		if n := w.station.Progress(); n != still || n == 0 {
			t.Fatalf("the loop hangs and its progress goes from %d to %d", still, n)
		}
		wait(10 * time.Second)
		if !w.station.Alive() || !w.closed() {
			t.Fatalf("does not go on: %s", w.last().Chargers[0].Why)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if len(w.events("loop.stalled")) == 0 {
			t.Error("no evidence of the stall")
		}
	})
}

func TestPanicOpensRelay(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		w.start(5000)
		wait(20 * time.Second)
		if !w.closed() {
			t.Fatal("not charging")
		}
		w.mu.Lock()
		w.block = func() { panic("a bug") }
		w.mu.Unlock()
		wait(100 * time.Millisecond)
		if w.closed() {
			t.Fatal("closed after a panic")
		}
		if err := end(); err == nil || !strings.Contains(err.Error(), "a bug") {
			t.Fatalf("Run returned %v", err)
		}
		if w.evse.Limit() != 0 {
			t.Fatal("still offers")
		}
		if err := w.station.Stop(t.Context(), chain.ID{}, chain.StopDriver); err == nil {
			t.Fatal("a command to a loop that has ended succeeds")
		}
	})
}

func TestShutdownIsOrdinaryAndResumes(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		id := w.start(5000)
		wait(25 * time.Second)
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if w.closed() {
			t.Fatal("closed after the end")
		}
		wait(5 * time.Second)
		end = w.run()
		wait(8 * time.Second)
		if !w.closed() || w.station.Sessions()[0] != id {
			t.Fatalf("not resumed: %s", w.last().Chargers[0].Why)
		}
		if err := w.station.Stop(t.Context(), id, chain.StopDriver); err != nil {
			t.Fatal(err)
		}
		wait(10 * time.Second)
		if s := w.stops[id]; len(s) != 1 || s[0].Register != w.car() {
			t.Fatalf("%+v, meter %d", s, w.car())
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestKilledAtEveryWrite kills the gateway before and after each write of a
// session's life lands, and at many moments between, restarts it, and lets the session end. Not one Wh may
// be missing in what the ledger was told.
func TestKilledAtEveryWrite(t *testing.T) {
	writes := 0
	life := func(t *testing.T, w *world) {
		begin := w.car()
		end := w.run()
		restart := func() {
			w.relay.Halt() // the pin's pull-down; nobody is there to drive it
			end()
			if w.closed() {
				t.Fatal("closed while nobody is there")
			}
			w.mu.Lock()
			w.dead, w.killAt = false, 0
			w.mu.Unlock()
			wait(2 * time.Second)
			end = w.run()
		}
		sleep := func(d time.Duration) {
			select {
			case <-time.After(d):
			case <-w.killed:
				if w.isDead() {
					restart()
				}
				time.Sleep(d)
			}
			synctest.Wait()
		}
		sleep(4 * time.Second)
		var driver chain.Key
		copy(driver[:], driverKey.Public().(ed25519.PublicKey))
		q, err := w.station.Quote(t.Context(), 1, driver, 2000, 300_000, false)
		if err != nil {
			t.Fatal(err)
		}
		startErr := w.station.Start(t.Context(), signed(q))
		sleep(40 * time.Second)
		stopErr := w.station.Stop(t.Context(), q.ID, chain.StopDriver)
		if w.isDead() && stopErr != nil { // nobody answered: ask again
			sleep(4 * time.Second)
			stopErr = w.station.Stop(t.Context(), q.ID, chain.StopDriver)
		}
		if startErr == nil && stopErr != nil && len(w.stops[q.ID]) == 0 {
			t.Errorf("the session is gone: %v", stopErr)
		}
		sleep(40 * time.Second)
		if w.closed() {
			t.Error("closed at the end")
		}
		if startErr == nil || len(w.regs[q.ID]) > 0 {
			regs := w.regs[q.ID]
			if len(w.stops[q.ID]) != 1 || regs[0] != begin || regs[len(regs)-1] != w.car() {
				t.Errorf("registers %v, stops %+v; the meter went from %d to %d", regs, w.stops[q.ID], begin, w.car())
			}
		}
		if err := end(); err != nil && !w.isDead() {
			t.Error(err)
		}
		if len(w.regs[q.ID]) == 0 && w.car() != begin {
			t.Errorf("%d Wh flowed without a session", w.car()-begin)
		}
	}
	bubble(t, func(t *testing.T, w *world) { life(t, w); writes = w.writes })
	if writes < 15 {
		t.Fatalf("only %d writes in a session's life", writes)
	}
	for ms := 4100; ms < 70_000; ms += 1730 { // and between writes
		t.Run(fmt.Sprintf("%dms", ms), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				time.AfterFunc(time.Duration(ms)*time.Millisecond, func() {
					w.mu.Lock()
					defer w.mu.Unlock()
					w.dead = true
					close(w.killed)
				})
				life(t, w)
			})
		})
	}
	for at := 1; at <= writes; at++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/%t", at, after), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.killAt, w.killAfter = at, after
					life(t, w)
				})
			})
		}
	}
}

func TestCommandsAreRefusedWithTheLimit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		ctx := t.Context()
		var driver chain.Key
		copy(driver[:], driverKey.Public().(ed25519.PublicKey))
		quote := func(c uint8, wh meter.WattHour, price chain.NanoPerWh) error {
			_, err := w.station.Quote(ctx, c, driver, wh, price, false)
			return err
		}
		good, err := w.station.Quote(ctx, 1, driver, 1000, 300_000, false)
		if err != nil {
			t.Fatal(err)
		}
		cheap := good
		cheap.Cap, cheap.Hold = 1, 1000
		unsigned := signed(good)
		unsigned.Sig = make([]byte, 64)
		foreign := good
		foreign.ID[0]++
		for name, c := range map[string]struct {
			err  error
			word string
		}{
			"32 A on a 16 A charger":    {w.station.SetLimit(ctx, 1, 32_000), "rated 16000 mA"},
			"3 A":                       {w.station.SetLimit(ctx, 1, 3_000), "6000 mA"},
			"unknown charger":           {w.station.SetLimit(ctx, 9, 10_000), "no charger 9"},
			"quote for unknown charger": {quote(9, 1000, 1), "no charger 9"},
			"too much energy":           {quote(1, MaxWh+1, 1), "outside"},
			"no energy":                 {quote(1, 0, 1), "outside"},
			"no price":                  {quote(1, 1000, 0), "priced"},
			"overflow":                  {quote(1, 200_000, 1<<60), "priced"},
			"no signature, no hold":     {w.station.Start(ctx, unsigned), "signature"},
			"a price of his own":        {w.station.Start(ctx, signed(cheap)), "not made by this gateway"},
			"a quote of nobody":         {w.station.Start(ctx, signed(foreign)), "not made by this gateway"},
			"garbage":                   {w.station.Start(ctx, chain.SignedQuote{Quote: []byte{1}}), "quote"},
			"stop of nothing":           {w.station.Stop(ctx, chain.ID{5}, chain.StopDriver), "no open session"},
			"clear of no fault":         {w.station.ClearFault(ctx, 1), "no fault"},
		} {
			if !errors.Is(c.err, ErrRefused) || !strings.Contains(c.err.Error(), c.word) {
				t.Errorf("%s: %v, want a refusal with %q", name, c.err, c.word)
			}
		}
		w.mu.Lock()
		if len(w.records) > 2 {
			t.Errorf("refused commands left records: %d", len(w.records))
		}
		w.mu.Unlock()
		wait(11 * time.Minute)
		if err := w.station.Start(ctx, signed(good)); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "expired") {
			t.Errorf("expired quote: %v", err)
		}
		id := w.start(500)
		if err := quote(1, 1000, 1); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), id.String()) {
			t.Errorf("busy charger: %v", err)
		}
		if err := w.station.SetLimit(ctx, 1, 7_000); err != nil {
			t.Fatal(err)
		}
		wait(5 * time.Second)
		if w.evse.Limit() != 7_000 {
			t.Errorf("a lower limit gives %d mA", w.evse.Limit())
		}
		if err := w.station.SetMode(ctx, 1, setpoint.Off); err != nil {
			t.Fatal(err)
		}
		wait(5 * time.Second)
		if w.closed() {
			t.Error("switched off and closed")
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLatchedFaultOutlivesRestartsUntilAPersonClearsIt(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.disk = chain.Marshal(saved{
			Version: savedVersion, Meters: []savedMeter{}, Pending: []chain.Record{},
			Chargers: []savedCharger{{ID: 1, Session: session.Saved{Fault: session.Weld}}},
		})
		var driver chain.Key
		copy(driver[:], driverKey.Public().(ed25519.PublicKey))
		for range 2 {
			end := w.run()
			wait(4 * time.Second)
			if _, err := w.station.Quote(t.Context(), 1, driver, 1000, 300_000, false); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "welded") {
				t.Fatalf("a welded charger makes an offer: %v", err)
			}
			if a := w.last().Alarms; len(a) != 1 || a[0].Code != "charger.fault" {
				t.Fatalf("alarms %+v", a)
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
		}
		end := w.run()
		wait(4 * time.Second)
		if err := w.station.ClearFault(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		end = w.run()
		wait(4 * time.Second)
		w.start(1000)
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRelayThatDoesNotObeyChargesNobody(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		end := w.run()
		wait(4 * time.Second)
		w.relay.Weld(true) // the output reads back closed
		wait(2 * time.Second)
		w.relay.Weld(false)
		w.start(5000)
		wait(10 * time.Second)
		if !w.closed() {
			t.Fatalf("obeys again: %s", w.last().Chargers[0].Why)
		}
		w.relay.Fail(errors.New("pins are gone"))
		wait(3 * time.Second)
		if c := w.last().Chargers[0]; c.Relay || c.State != "suspended" {
			t.Fatalf("%+v", c)
		}
		w.relay.Fail(nil)
		wait(6 * time.Second)
		if !w.closed() {
			t.Fatalf("pins are back: %s", w.last().Chargers[0].Why)
		}
		if n := len(w.events("relay.stuck")); n != 1 {
			t.Errorf("%d records of one fault", n)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCorruptStateIsAnError(t *testing.T) {
	w := newWorld(t)
	w.disk = []byte("not cbor")
	if _, err := New(w.config()); err == nil || !strings.Contains(err.Error(), "station state") {
		t.Fatal(err)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte{})
	f.Add(chain.Marshal(saved{Version: savedVersion, Chargers: []savedCharger{{ID: 1}}, Meters: []savedMeter{{ID: "car"}}, Pending: []chain.Record{}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s saved
		if s.parse(b) == nil && len(b) > 0 && !bytes.Equal(chain.Marshal(s), b) {
			t.Fatal("two encodings of one state")
		}
	})
}
