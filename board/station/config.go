package station

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/circuit"
	"github.com/joulegate/joulegate/meter/discharge"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/setpoint"
	"github.com/joulegate/joulegate/meter/slot"
)

// Limits.
const (
	MaxQueue    = 4096 // records waiting for the outbox; then no new slot record is made
	MaxBatch    = 64   // records per Append; fits chain.MaxBlockBytes
	MaxQuotes   = 64   // quotes not yet accepted; the oldest is forgotten
	MaxNotes    = 64   // ledger notes for sessions not open yet; the oldest is forgotten
	MaxCommands = 16   // commands waiting for the loop; callers wait
	MaxWh       = meter.WattHour(200_000)
)

// ErrRefused is what every Refusal is.
var ErrRefused = errors.New("refused")

// Refusal is a command that a limit or a rule refused.
type Refusal struct {
	Code string // one word for programs: the limit or rule
	Text string // for people, with both values
}

func (r *Refusal) Error() string { return "refused: " + r.Text }

// Is makes every refusal ErrRefused.
func (r *Refusal) Is(target error) bool { return target == ErrRefused }

// Codes of refusals. Programs rely on them.
const (
	UnknownCharger = "unknown_charger"
	UnknownMeter   = "unknown_meter"
	AboveRating    = "above_rating"
	BelowMinimum   = "below_minimum"
	Busy           = "busy"
	Faulted        = "faulted"
	Stopped        = "emergency_stop"
	NoFault        = "no_fault"
	NoSession      = "no_session"
	NoHold         = "no_hold"
	NoSignature    = "no_signature"
	QuoteUnknown   = "quote_unknown"
	QuoteExpired   = "quote_expired"
	EnergyLimit    = "energy_limit"
	Unpriced       = "unpriced"
	SwitchedOff    = "switched_off"
	ShuttingDown   = "shutting_down"
	ClockUnset     = "clock_unset"
	InSession      = "in_session"
	Negative       = "negative"
	NoDischarge    = "no_discharge"
	NoRelay        = "no_relay"
	NotNow         = "not_now"
)

func refuse(code, format string, args ...any) error {
	return &Refusal{code, fmt.Sprintf(format, args...)}
}

// Outbox takes records on their way to the gateway's own chain.
type Outbox interface {
	// Keep returns when the readings that a record will commit to are durable.
	// The same ones may come again.
	Keep(leaves slot.Leaves) error
	// Append returns after the records are durable, in order, or with an
	// error and none of them. The station calls it from one goroutine; others
	// may append records of their own at the same time.
	Append(ctx context.Context, records []chain.Record) error
	// Unsent returns those of records, in order, that are not on the chain: a
	// crash came between their being saved and being appended, or after both.
	Unsent(records []chain.Record) ([]chain.Record, error)
}

// Store keeps what the station needs after a crash.
type Store interface {
	// Load returns what was saved last, or nil.
	Load() ([]byte, error)
	// Save replaces it, atomically and synced.
	Save(b []byte) error
}

// Publisher takes snapshots. Publish must not block.
type Publisher interface {
	Publish(s board.Snapshot)
}

// Receipt is what a receipt of a session states.
type Receipt struct {
	Session   chain.ID
	Quote     chain.Quote
	Meter     string
	Begin     Register
	End       Register
	Reason    chain.StopReason
	Connector uint8
}

// Register is one end of a session.
type Register struct {
	Value   meter.WattHour
	At      int64 // Unix ms
	Quality meter.Quality
	Export  meter.WattHour // of a vehicle that may give energy
}

// Meter is one meter of this gateway.
type Meter struct {
	ID       string
	Role     chain.Role
	Interval time.Duration // between readings
}

// Thermometer is a sensor at a charger. Temperature may take a second; it is
// called by one goroutine.
type Thermometer interface {
	Temperature(ctx context.Context) (session.MilliCelsius, error)
}

// Charger is one charging point with its hardware. What is nil is not fitted.
type Charger struct {
	ID          uint8
	Meter       string          // id of its session meter
	Relay       drivers.Relay   // nil: the wallbox behind Limiter switches by itself
	Limiter     drivers.Limiter // nil: relay only
	EStop       drivers.Input
	Feedback    drivers.Input // auxiliary contact
	Pilot       drivers.Input // a vehicle is ready; only without a Limiter
	Earth       drivers.Input // residual current monitor
	StopButton  drivers.Input
	Trip        drivers.Relay // shunt trip
	Thermometer Thermometer
	Departure   Departure // of sessions that name no goal
	Wiring      circuit.Wiring
	Circuit     string // of Config.Circuits
	Session     session.Rules
	// Switch says when to change between one and three phases. Allowed is
	// the wiring's to set, after it has checked an installer's signature.
	Switch   setpoint.SwitchRules
	Setpoint setpoint.Rules
	Mode     setpoint.Mode
	// Discharge is nil unless energy may be taken out of vehicles.
	Discharge *Discharge
}

// Config is what a station is made of.
type Config struct {
	Name        string
	ChainID     string
	Device      chain.Key // this gateway, for quotes
	SlotSeconds int64
	Tick        time.Duration
	Watchdog    time.Duration // the loop is stalled when silent for longer
	QuoteLife   time.Duration
	Meters      []Meter
	Chargers    []Charger
	Battery     string // meter of the house's battery; "": none
	// Circuits with, at the same index, the meter of each ("": none), and how
	// they are shared.
	Circuits      []circuit.Circuit
	CircuitMeters []string
	Sharing       circuit.Rules
	Dim           circuit.DimRules
	DimContact    drivers.Input // of the utility; nil: none
	// Lease returns what the leader of a shared feeder allows each charger, in
	// their order, or leased false: then the feeder's circuit limits, which is
	// this gateway's share. It must not block. Nil: nobody leads.
	Lease func(chargers []uint8, now time.Duration) (caps []meter.MilliAmpere, leased bool)

	Outbox    Outbox
	Store     Store
	Publisher Publisher
	// Receipt makes the receipt of an ended session and returns the hash of
	// its payload. It may be called again for the same session after a crash.
	Receipt func(Receipt) (chain.Hash, error)

	// By names the configuration and the program in records of what was done,
	// for example "config 1a2b3c4d, program 9f8e7d6c".
	By string
	// PowerReturned says that the board has just got power, as its neighbours
	// may have: sessions that go on are spread.
	PowerReturned bool
	// Founded is when the microgrid was. A wall clock that says less is not
	// set, and nobody is offered a price. Zero: not judged.
	Founded time.Time

	// Verified is called after each verified turn of the loop, and must not
	// block: whoever is not told for long enough opens the relays. nil: nobody.
	Verified func()

	// Now is monotonic time on the same scale as meter.Reading.Mono.
	Now    func() time.Duration
	Wall   func() time.Time // nil: time.Now
	Random io.Reader        // nil: crypto/rand
	Log    *slog.Logger
}

// FromConfig fills in everything that a configuration file says. Hardware,
// stores and identity are the caller's to add.
func FromConfig(c config.Config) (Config, error) {
	t := c.Timing
	out := Config{Name: c.Name, Tick: t.Tick.D(), Watchdog: t.Watchdog.D(), QuoteLife: t.QuoteLife.D()}
	intervals := map[string]time.Duration{}
	site := false
	for _, m := range c.Meters {
		role, err := chain.ParseRole(m.Role)
		if err != nil {
			return out, err
		}
		site = site || role == chain.RoleSite
		intervals[m.ID] = m.Interval.D()
		out.Meters = append(out.Meters, Meter{ID: m.ID, Role: role, Interval: m.Interval.D()})
	}
	out.Circuits, out.CircuitMeters = c.Tree()
	out.Battery = c.Battery.Meter
	out.Sharing, out.Dim = c.CircuitRules(), c.DimRules()
	ends, err := c.Ends()
	if err != nil {
		return out, err
	}
	for i, h := range c.Chargers {
		var leave Departure
		if d := h.Departure; d.Wh > 0 {
			m, err := config.MinuteOf(d.By)
			if err != nil {
				return out, err
			}
			leave = Departure{m, d.Wh, d.MaxPrice}
		}
		mode, err := setpoint.ParseMode(h.Mode)
		if err != nil {
			return out, err
		}
		var back *Discharge
		if d := h.Discharge; d.Enabled {
			back = &Discharge{Rules: discharge.Rules{
				MaxPower: d.MaxPower, MinPower: d.MinPower, Capacity: d.Capacity, Floor: d.Floor, FloorWh: d.FloorWh,
				House: d.House, StaleAfter: t.StaleAfter.D(),
			}}
		}
		out.Chargers = append(out.Chargers, Charger{
			Discharge: back,
			ID:        h.ID, Meter: h.Meter, Mode: mode, Wiring: ends[i].Wiring, Circuit: ends[i].Circuit, Departure: leave,
			Switch: setpoint.SwitchRules{UpDelay: t.OnDelay.D(), DownLate: t.OffDelay.D(), Rest: t.OffDelay.D()},
			Session: session.Rules{
				MaxCurrent: h.MaxCurrent, Phases: h.Phases, Wallbox: h.Relay == "", Pilot: h.EVSE.Fitted() || h.Pilot != "", Site: site,
				Temp: h.TempSensor != "", Trip: h.Trip != "", Fuse: c.Site.Fuse,
				DerateFrom: session.MilliCelsius(h.DerateFrom) * 1000, TempMax: session.MilliCelsius(h.MaxTemp) * 1000,
				MaxSwitches: h.MaxSwitches, OfflineWh: h.OfflineWh, StartSpread: t.StartSpread.D(),
				StaleAfter: t.StaleAfter.D(), StaleOff: t.StaleOff.D(), StopWait: t.StopWait.D(), MinOff: t.MinOff.D(),
				HoldLimit: t.HoldLimit.D(), StartLimit: t.StartLimit.D(), FullAfter: t.FullAfter.D(), ResumeLimit: t.ResumeLimit.D(),
				LoopLimit: t.Watchdog.D(),
				// A reading may be one interval old when it is acted upon, and
				// an ordinary stop takes StopWait.
				Horizon: intervals[h.Meter] + t.StopWait.D() + 2*t.Tick.D(),
			},
			Setpoint: setpoint.Rules{MaxCurrent: h.MaxCurrent, Phases: h.Phases, BatteryFirst: c.Battery.First, OnDelay: t.OnDelay.D(), OffDelay: t.OffDelay.D()},
		})
	}
	return out, nil
}

func (c *Config) check() error {
	switch {
	case c.Outbox == nil || c.Store == nil || c.Publisher == nil || c.Receipt == nil || c.Now == nil || c.Log == nil:
		return errors.New("station: outbox, store, publisher, receipt, clock and logger are required")
	case c.Tick <= 0 || c.Watchdog < 2*c.Tick || c.QuoteLife <= 0 || c.SlotSeconds < 1:
		return fmt.Errorf("station: tick %s, watchdog %s, quote life %s, slot %d s", c.Tick, c.Watchdog, c.QuoteLife, c.SlotSeconds)
	}
	seen := map[uint8]bool{}
	for _, h := range c.Chargers {
		known := slices.ContainsFunc(c.Meters, func(m Meter) bool { return m.ID == h.Meter && m.Role == chain.RoleCharger })
		r := h.Session
		if !known || seen[h.ID] {
			return fmt.Errorf("station: charger %d: needs a number and a charger meter of its own", h.ID)
		}
		if r.Wallbox != (h.Relay == nil) || r.Wallbox && h.Limiter == nil || r.Pilot != (h.Limiter != nil || h.Pilot != nil) || r.Trip != (h.Trip != nil) || r.Temp != (h.Thermometer != nil) {
			return fmt.Errorf("station: charger %d: its hardware is not what its rules say: %+v", h.ID, r)
		}
		if err := h.checkDischarge(); err != nil {
			return fmt.Errorf("station: %w", err)
		}
		seen[h.ID] = true
	}
	if c.Wall == nil {
		c.Wall = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	return nil
}
