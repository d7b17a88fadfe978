// Package fault measures how long it takes from a contact to a relay: a stop
// button is pressed, and the output behind the charger's contactor changes.
//
// Everything between the two pins is the product: drivers/gpio, the station's
// loop with real sessions, and beside it, in the same process as in a real
// gateway, the work that could delay it:
//
//	pin ─► reflex, a process of its own ─► pin              measured
//	         └─► station, its session ends
//	ledger burst · guard replay · bus scan · a busy thread per processor    the load
//
// The pins are memory that this process and the reflexes share, and note when
// they change. They have no time of their own. A GPIO line adds two system calls, and
// a contactor some 10 to 30 ms that no program can change. A fault that only
// a meter can see, an over-current for example, adds one poll period of that
// meter.
package fault

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/gpio"
	"github.com/joulegate/joulegate/drivers/gpio/reflex"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/drivers/scan"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/packet"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/setpoint"
	"github.com/joulegate/joulegate/meter/slot"
	"github.com/joulegate/joulegate/p2p"
	"github.com/joulegate/joulegate/tools/sim/slave"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sys/unix"
	periph "periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/gpio/gpiotest"
)

// As in the field: the tick and the watchdog of config.Default.
const (
	tick     = 25 * time.Millisecond
	watchdog = time.Second
)

// Many chargers share the time: each has a fault about ten times a second.
const (
	stations = 8
	chargers = 8 // of each, config.MaxChargers
)

var driver = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

// TestMain goes before the other programs of this machine, as the service's
// CPUWeight= does on a gateway: what is measured is this program under its own
// load. Without permission it competes with them. Started as a reflex, it is
// nothing else.
func TestMain(m *testing.M) {
	if path := os.Getenv(reflexEnv); path != "" {
		if err := beReflex(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if _, err := unix.Setsid(); err == nil {
		_ = os.WriteFile("/proc/self/autogroup", []byte("-20"), 0)
	}
	os.Exit(m.Run())
}

// reflexEnv holds the file of the pins in a process that is to be a reflex.
const reflexEnv = "JOULEGATE_BENCH_REFLEX"

func beReflex(path string) error {
	w, err := mapWires(path)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := reflex.Urgent(); err != nil {
		return err // then nothing is as in the field
	}
	return reflex.ServeStarted(reflex.ServerConfig{Pins: w, Lease: watchdog, Log: slog.New(slog.DiscardHandler)})
}

// wires are the pins of one gateway: two words each, the level and, of an
// output, when it went low (CLOCK_MONOTONIC, ns).
type wires []uint64

func mapWires(path string) (wires, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const words = 2 * 2 * chargers
	if err := f.Truncate(words * 8); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, words*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), words), nil
}

// Open implements reflex.Opener: the pin's line is its number.
func (w wires) Open(p board.Pin) (periph.PinIO, error) { return w.wire(p.Line), nil }

func (w wires) wire(n int) *wire { return &wire{level: &w[2*n], fell: &w[2*n+1]} }

// wire is a pin that remembers when it went low.
type wire struct {
	gpiotest.Pin // for what nobody asks
	level, fell  *uint64
}

func (w *wire) high() bool                        { return atomic.LoadUint64(w.level) != 0 }
func (w *wire) Level() (periph.Level, error)      { return periph.Level(w.high()), nil }
func (w *wire) Read() periph.Level                { return periph.Level(w.high()) }
func (w *wire) In(periph.Pull, periph.Edge) error { return nil }
func (w *wire) Halt() error                       { return nil }
func (w *wire) Out(l periph.Level) error {
	w.put(bool(l))
	return nil
}

func (w *wire) put(high bool) {
	v := uint64(0)
	if high {
		v = 1
	}
	if atomic.SwapUint64(w.level, v) == 1 && !high {
		atomic.StoreUint64(w.fell, monotonic())
	}
}

// monotonic is CLOCK_MONOTONIC, which all processes share, without a system
// call, in which a busy program may lose its turn.
func monotonic() uint64 { return uint64(started + time.Since(startedAt)) }

var started, startedAt = func() (time.Duration, time.Time) {
	var ts unix.Timespec
	for {
		t := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic(err)
		}
		if time.Since(t) < 100*time.Microsecond {
			return time.Duration(ts.Nano()), t
		}
	}
}()

// charger is one charging point and the person who presses its button.
type charger struct {
	st          *station.Station
	id          uint8
	meter       string
	relay, stop *wire
	early       *atomic.Uint64 // relays that were open before the button was pressed
}

// gateway is a station with everything that it needs to charge for ever.
type gateway struct {
	st       *station.Station
	chargers []*charger
	reflex   *reflex.Process
}

// Append implements station.Outbox: what a ledger holds at once.
func (g *gateway) Append(_ context.Context, records []chain.Record) error {
	for _, r := range records {
		var o chain.SessionOpen
		if r.Kind != chain.KindSessionOpen {
			continue
		}
		if err := chain.Unmarshal(r.Body, &o); err != nil {
			return err
		}
		q, err := o.Quote.Open()
		if err != nil {
			return err
		}
		g.st.LedgerSession(q.ID, true, "")
	}
	return nil
}

func (*gateway) Load() ([]byte, error)                           { return nil, nil }
func (*gateway) Save([]byte) error                               { return nil }
func (*gateway) Keep(slot.Leaves) error                          { return nil }
func (*gateway) Unsent(r []chain.Record) ([]chain.Record, error) { return r, nil }
func (*gateway) Publish(board.Snapshot)                          {}

func newGateway(b *testing.B, origin time.Time, early *atomic.Uint64) *gateway {
	b.Helper()
	g := &gateway{}
	cfg := station.Config{
		Name: "bench", ChainID: "bench", SlotSeconds: 900, Tick: tick, Watchdog: watchdog, QuoteLife: time.Hour,
		Outbox: g, Store: g, Publisher: g, Receipt: func(station.Receipt) (chain.Hash, error) { return chain.Hash{}, nil },
		Now: func() time.Duration { return time.Since(origin) }, Log: slog.New(slog.DiscardHandler),
	}
	path := filepath.Join(b.TempDir(), "pins")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	pins, err := mapWires(path)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stderr = append(os.Environ(), reflexEnv+"="+path), os.Stderr
	if g.reflex, err = reflex.Start(cmd); err != nil {
		b.Fatal(err)
	}
	cfg.Verified = g.reflex.Beat
	for i := range chargers {
		c := &charger{id: uint8(i + 1), meter: fmt.Sprintf("car%d", i+1), relay: pins.wire(2 * i), stop: pins.wire(2*i + 1), early: early}
		output := board.Pin{Name: fmt.Sprintf("RELAY%d", i+1), Line: 2 * i, Direction: board.Output, Polarity: board.ActiveHigh}
		input := board.Pin{Name: fmt.Sprintf("STOP%d", i+1), Line: 2*i + 1, Direction: board.Input, Polarity: board.ActiveHigh, Pull: board.PullNone}
		relay, err := gpio.NewRelay(g.reflex, output)
		if err != nil {
			b.Fatal(err)
		}
		stop, err := gpio.NewInput(g.reflex, input)
		if err != nil {
			b.Fatal(err)
		}
		if err := g.reflex.Guard(output.Name, input.Name, periph.High); err != nil {
			b.Fatal(err)
		}
		cfg.Meters = append(cfg.Meters, station.Meter{ID: c.meter, Role: chain.RoleCharger, Interval: time.Second})
		cfg.Chargers = append(cfg.Chargers, station.Charger{
			ID: c.id, Meter: c.meter, Relay: relay, EStop: stop, Mode: setpoint.Now,
			Session: session.Rules{
				MaxCurrent: 16_000, Phases: 3, StaleAfter: 10 * time.Second, StaleOff: 20 * time.Second, StopWait: 3 * time.Second,
				// The contactor's rest is the one thing that is not as in the field: a fault every ten seconds would take days.
				MinOff:    time.Millisecond,
				HoldLimit: time.Minute, StartLimit: time.Hour, FullAfter: time.Hour, ResumeLimit: time.Minute, LoopLimit: watchdog, Horizon: 4 * time.Second,
			},
			Setpoint: setpoint.Rules{MaxCurrent: 16_000, Phases: 3},
		})
		g.chargers = append(g.chargers, c)
	}
	if g.st, err = station.New(cfg); err != nil {
		b.Fatal(err)
	}
	numbers := map[string]uint8{}
	for _, c := range g.chargers {
		c.st = g.st
		numbers[fmt.Sprintf("RELAY%d", c.id)] = c.id
	}
	if err := g.reflex.Listen(func(t reflex.Trip) {
		why := station.EmergencyStop
		if t.Contact == "" {
			why = station.LoopLost
		}
		g.st.Tripped(numbers[t.Output], why)
	}); err != nil {
		b.Fatal(err)
	}
	return g
}

// read is the meters: a reading of each, many times a second, so that sessions
// begin and end as fast as the loop allows.
func (g *gateway) read(ctx context.Context, origin time.Time) {
	reg := int64(1_000_000)
	for page := uint64(1); ; page++ {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tick):
		}
		reg++
		for _, c := range g.chargers {
			amps := int64(0)
			if c.relay.high() {
				amps = 10_000
			}
			g.st.Reading(meter.Reading{
				Device: c.meter, Page: page, Wall: time.Now().UnixMilli(), Mono: time.Since(origin), Quality: meter.Good,
				Points: []meter.Point{{Quantity: meter.Import, Value: reg}, {Quantity: meter.Current, Value: amps}},
			})
		}
	}
}

// press charges a car, presses the button at a random moment and says how long
// it took; 0 if the car was not charged.
func (c *charger) press(ctx context.Context) (time.Duration, error) {
	q, err := c.st.Quote(ctx, c.id, keys.Public(driver), 50_000, 300_000, false)
	if r := (*station.Refusal)(nil); errors.As(err, &r) && r.Code == station.Stopped {
		return 0, wait(ctx, 5*time.Millisecond) // it was not seen yet that the button was released
	}
	if err != nil {
		return 0, err
	}
	body := chain.Marshal(q)
	if err := c.st.Start(ctx, chain.SignedQuote{Quote: body, Sig: chain.Sign(driver, chain.DomainQuote, body)}); err != nil {
		return 0, err
	}
	for !c.relay.high() {
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
		if !slices.Contains(c.st.Sessions(), q.ID) {
			return 0, nil // the loop had not seen yet that the button was released
		}
	}
	if err := wait(ctx, 10*time.Millisecond+rand.N(2*tick)); err != nil {
		return 0, err
	}
	before := atomic.LoadUint64(c.relay.fell)
	early := !c.relay.high()
	pressed := monotonic()
	c.stop.put(true)
	var took time.Duration
	if early {
		// The process had no processor for a second and the loop's watchdog
		// or the reflex opened everything: safe, and told, but not what is
		// measured.
		c.early.Add(1)
	} else {
		for atomic.LoadUint64(c.relay.fell) == before {
			if err := wait(ctx, time.Millisecond); err != nil {
				return 0, err
			}
		}
		took = time.Duration(atomic.LoadUint64(c.relay.fell) - pressed)
	}
	for early && slices.Contains(c.st.Sessions(), q.ID) {
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
	}
	c.stop.put(false)
	for slices.Contains(c.st.Sessions(), q.ID) {
		if err := wait(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return took, nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// BenchmarkFaultToRelayOff reports percentiles over its iterations, one press
// each: -benchtime 100000x for the budget's worst of 100,000.
func BenchmarkFaultToRelayOff(b *testing.B) {
	for _, c := range []struct {
		name string
		load []load
	}{{"idle", nil}, {"load", loads}} {
		b.Run(c.name, func(b *testing.B) { measure(b, c.load) })
	}
}

func measure(b *testing.B, with []load) {
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	for _, l := range with {
		done := make(chan uint64, 1)
		run := l.start(b)
		all.Go(func() { done <- run(ctx) })
		defer func() {
			stop()
			n := <-done
			if n == 0 {
				b.Errorf("%s did nothing: it was no load", l.name)
			}
			b.ReportMetric(float64(n), l.unit)
		}()
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 3*runtime.NumCPU()))) // as joulegate run does
	origin := time.Now()
	took := make(chan time.Duration, stations*chargers)
	var early atomic.Uint64
	for range stations {
		g := newGateway(b, origin, &early)
		all.Go(func() {
			if err := errors.Join(g.st.Run(ctx), g.reflex.Close()); err != nil {
				b.Error(err)
			}
		})
		all.Go(func() { g.read(ctx, origin) })
		for _, c := range g.chargers {
			all.Go(func() {
				for ctx.Err() == nil {
					d, err := c.press(ctx)
					if ctx.Err() != nil {
						return
					}
					if err != nil {
						b.Error(err)
						return
					}
					if d == 0 {
						continue
					}
					select {
					case took <- d:
					case <-ctx.Done():
					}
				}
			})
		}
	}
	var seen []time.Duration
	for b.Loop() {
		select {
		case d := <-took:
			seen = append(seen, d)
		case <-time.After(time.Minute):
			b.Fatal("no fault for a minute")
		}
	}
	slices.Sort(seen)
	at := func(permille int) float64 { return float64(seen[(len(seen)-1)*permille/1000].Microseconds()) / 1000 }
	b.ReportMetric(at(500), "p50-ms")
	b.ReportMetric(at(999), "p99.9-ms")
	b.ReportMetric(at(1000), "worst-ms")
	b.ReportMetric(float64(early.Load()), "early")
	b.ReportMetric(0, "ns/op") // presses run side by side: time per press means nothing
}

// load is work that a gateway does beside its control loop. start prepares it;
// what it returns works until ctx ends and says how much it did.
type load struct {
	name, unit string
	start      func(b *testing.B) func(ctx context.Context) uint64
}

// loads are all at once.
var loads = []load{
	{"ledger burst", "tx", ledgerBurst},
	{"guard replay", "packets", guardReplay},
	{"bus scan", "probes", busScan},
	{"busy threads", "MB", busy},
}

// ledgerBurst is a validator that is handed transactions faster than it can
// book them.
func ledgerBurst(b *testing.B) func(context.Context) uint64 {
	dir := b.TempDir()
	home, genesis := filepath.Join(dir, "consensus"), filepath.Join(dir, "genesis.json")
	validator, err := consensus.InitValidator(home)
	if err != nil {
		b.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize))
	g := chain.Genesis{
		Version: chain.Version, ChainID: "bench", SlotSeconds: 900, GraceSeconds: 60, Currency: "EUR", MinorDigits: 2,
		Retail: 300_000, FeedIn: 80_000, Nodes: []chain.Node{{ID: "root"}}, StartSeconds: 600, Basis: "simulated",
		Members: []chain.Founder{{Member: chain.Member{Device: keys.Public(key), Name: "bench", Owner: keys.Public(driver), Validator: validator, MaxPower: 17_000}, Node: "root"}},
	}
	operators := make([]ed25519.PrivateKey, 16)
	for i := range operators {
		seed := sha256.Sum256(binary.BigEndian.AppendUint32([]byte("operator"), uint32(i)))
		operators[i] = ed25519.NewKeyFromSeed(seed[:])
		g.Operators = append(g.Operators, keys.Public(operators[i]))
	}
	if _, err := consensus.WriteGenesis(genesis, g, time.Now().Add(-time.Second)); err != nil {
		b.Fatal(err)
	}
	node, err := p2p.New(p2p.Config{
		Key: key, PSK: bytes.Repeat([]byte{1}, 32), Listen: []string{"/ip4/127.0.0.1/tcp/0"},
		Allow: func(peer.ID) bool { return true }, Book: func() []peer.AddrInfo { return nil }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	e, err := consensus.Open(b.Context(), consensus.Config{
		Home: home, GenesisFile: genesis, Host: node.Host(), Timing: consensus.Timing{Commit: 500 * time.Millisecond}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	return func(ctx context.Context) uint64 {
		var all sync.WaitGroup
		defer node.Close()
		defer all.Wait()
		all.Go(func() { _ = e.Run(ctx) }) // ends with ctx
		to := chain.AccountOf(keys.Public(driver))
		var nonce uint64
		for ctx.Err() == nil {
			nonce++
			for i, op := range operators {
				tx := chain.SignTx("bench", nonce, chain.TxMint, chain.Mint{To: to, Amount: 1, BankRef: fmt.Sprintf("%d-%d", i, nonce)}, op)
				for e.SubmitAsync(tx) != nil && wait(ctx, 5*time.Millisecond) == nil { // full: the burst is at its limit
				}
			}
		}
		var booked chain.Nano
		_ = e.View(func(st ledger.State) { booked = ledger.AccountOf(st, to).Balance })
		return uint64(booked)
	}
}

// guardReplay runs the guard's detectors on a capture, over and over.
func guardReplay(b *testing.B) func(context.Context) uint64 {
	var capture bytes.Buffer
	w := pcapgo.NewWriter(&capture)
	if err := w.WriteFileHeader(65536, layers.LinkTypeEthernet); err != nil {
		b.Fatal(err)
	}
	at := time.Unix(1_700_000_000, 0)
	for i := range 20_000 {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IPv4(192, 0, 2, byte(i)), DstIP: net.IPv4(192, 0, 2, 250)}
		tcp := &layers.TCP{SrcPort: layers.TCPPort(20_000 + i%20_000), DstPort: layers.TCPPort([]uint16{502, 443, 1883, 22}[i%4]), SYN: i%5 == 0, ACK: i%5 != 0, Seq: uint32(i), Window: 65535}
		if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
			b.Fatal(err)
		}
		frame := gopacket.NewSerializeBuffer()
		err := gopacket.SerializeLayers(frame, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			&layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 1, 0}, EthernetType: layers.EthernetTypeIPv4},
			ip, tcp, gopacket.Payload([]byte{0, byte(i), 0, 0, 0, 6, 1, 6, 0, 16, 0, byte(i)}))
		if err != nil {
			b.Fatal(err)
		}
		at = at.Add(time.Millisecond)
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(frame.Bytes()), Length: len(frame.Bytes())}, frame.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
	return func(ctx context.Context) (packets uint64) {
		for ctx.Err() == nil {
			c, err := packet.Replay(ctx, bytes.NewReader(capture.Bytes()), packet.Rules{}, slog.New(slog.DiscardHandler), func(guard.Finding) {}, nil)
			packets += c.Packets
			if err != nil && ctx.Err() == nil {
				b.Error(err)
				return packets
			}
		}
		return packets
	}
}

// busScan looks for devices on a line of which one answers, over and over.
func busScan(b *testing.B) func(context.Context) uint64 {
	p, err := profile.Get("eastron-sdm630")
	if err != nil {
		b.Fatal(err)
	}
	u, err := slave.NewUnit(p, slave.UnitConfig{})
	if err != nil {
		b.Fatal(err)
	}
	bus, err := slave.NewBus(slave.Config{})
	if err != nil {
		b.Fatal(err)
	}
	if err := bus.Add(1, u); err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	return func(ctx context.Context) uint64 {
		var all sync.WaitGroup
		defer all.Wait()
		all.Go(func() { _ = bus.ServeTCP(ctx, ln) }) // ends with ctx
		var probes uint64
		for ctx.Err() == nil {
			r, _ := scan.Run(ctx, scan.Config{
				Units: []uint8{1, 2, 3, 4, 5}, Profiles: []*profile.Profile{p},
				Probe: 20 * time.Millisecond, Sweep: 20 * time.Millisecond, Patient: 200 * time.Millisecond,
				Open: func(ctx context.Context, _ scan.Setting) (scan.Bus, error) { return openLine(ctx, ln.Addr().String()) },
			})
			probes += uint64(r.Probes)
		}
		return probes
	}
}

// line is a Modbus line as the scanner wants it.
type line struct {
	*modbus.Line
	stop func()
}

func openLine(ctx context.Context, addr string) (scan.Bus, error) {
	l, err := modbus.New(modbus.Config{TCP: addr, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx) // ends with ctx
	}()
	return line{l, func() { cancel(); <-done }}, nil
}

func (l line) Register(unit uint8, timeout time.Duration) drivers.Register {
	return l.Device(modbus.DeviceConfig{Unit: unit, Class: modbus.Scan, Timeout: timeout})
}
func (l line) Late(uint8) bool { return false }
func (l line) Close() error    { l.stop(); return nil }

// busy keeps every processor occupied with work that never waits, and the
// garbage collector with it.
func busy(*testing.B) func(context.Context) uint64 {
	return func(ctx context.Context) uint64 {
		var all sync.WaitGroup
		var blocks atomic.Uint64
		for range runtime.NumCPU() {
			all.Go(func() {
				for ctx.Err() == nil {
					b := make([]byte, 1<<20)
					sum := sha256.Sum256(b)
					blocks.Add(uint64(sum[0]&1) + 1)
				}
			})
		}
		all.Wait()
		return blocks.Load()
	}
}
