package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/boards"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Version is the format version this program writes and reads.
const Version = 1

// Limits of a configuration.
const (
	MaxBytes    = 1 << 20 // longer input is refused unread
	MaxLines    = 8
	MaxMeters   = 64
	MaxChargers = 8
	MaxPins     = 32
	MaxContact  = 64 // bytes, as a receipt holds
	MaxListen   = 4  // as a member's record in the ledger
	maxNesting  = 16
	maxTokens   = 20_000 // several times what the fullest configuration has
)

// Config is one gateway's configuration. The doc tags become the comments
// that Render writes.
type Config struct {
	Version    int       `yaml:"version" doc:"format of this file"`
	Name       string    `yaml:"name" doc:"this gateway's name in the microgrid: a-z, 0-9 and -, no person's name"`
	Contact    string    `yaml:"contact,omitempty" doc:"whom drivers call about a receipt, at most 64 bytes; it stands on every receipt"`
	Board      string    `yaml:"board" doc:"the hardware it runs on; 'joulegate board ls' lists them"`
	Lines      []Line    `yaml:"lines" items:"8" doc:"Modbus lines; each has exactly one of device, tcp, rtutcp"`
	Profiles   string    `yaml:"profiles,omitempty" doc:"folder with device profiles of your own; they go before the built-in ones"`
	Meters     []Meter   `yaml:"meters" items:"64" doc:"smart meters and inverters; exactly one has the role site"`
	Chargers   []Charger `yaml:"chargers,omitempty" items:"8" doc:"charging points, each with its own session meter"`
	Readers    []Reader  `yaml:"readers,omitempty" items:"8" doc:"readers of cards and printed codes, for drivers without a phone"`
	Site       Site      `yaml:"site" doc:"limits of the house connection"`
	Circuits   []Circuit `yaml:"circuits,omitempty" doc:"cables with fuses of their own below the main fuse, down to the chargers"`
	Feeder     Feeder    `yaml:"feeder,omitempty" doc:"a cable that several gateways share, above the main fuse"`
	Dimming    Dimming   `yaml:"dimming,omitempty" doc:"orders of the utility; they only ever lower"`
	Battery    Battery   `yaml:"battery,omitempty" doc:"the house's battery"`
	Installers []string  `yaml:"installers,omitempty" items:"8" doc:"public keys of the people whose signed statements count; 'joulegate commission sign' makes one"`
	Market     Market    `yaml:"market,omitempty" doc:"standing price limits; left out, the microgrid's tariff is the limit"`
	P2P        P2P       `yaml:"p2p" doc:"how neighbours reach this gateway"`
	MQTT       MQTT      `yaml:"mqtt" doc:"the installer's line"`
	Panel      Panel     `yaml:"panel" doc:"web pages"`
	Ledger     Ledger    `yaml:"ledger" doc:"agreement with the neighbours"`
	Pins       Pins      `yaml:"pins,omitempty" doc:"pins that are not the board's own"`
	Button     string    `yaml:"commission_button,omitempty" doc:"input pin of a push button; held for 3 s it begins commissioning mode"`
	Watchdog   Watchdog  `yaml:"watchdog" doc:"what ends charging when this program hangs; systemd's own watchdog needs nothing here"`
	Guard      Guard     `yaml:"guard" doc:"what watches this gateway; see docs/GUARD.md"`
	Update     Update    `yaml:"update" doc:"newer versions of this program; see docs/UPDATE.md"`
	Timing     Timing    `yaml:"timing" doc:"times of the control loop; safety times may be shortened, not stretched"`
}

// Line is one Modbus line.
type Line struct {
	ID      string   `yaml:"id" doc:"name that meters and chargers refer to"`
	Device  string   `yaml:"device,omitempty" doc:"serial device, for example /dev/ttyUSB0"`
	TCP     string   `yaml:"tcp,omitempty" doc:"Modbus TCP, host:port"`
	RTUTCP  string   `yaml:"rtutcp,omitempty" doc:"RTU frames over TCP, host:port"`
	Baud    int      `yaml:"baud,omitempty" doc:"1200..115200, serial only"`
	Framing string   `yaml:"framing,omitempty" enum:"8N1 8E1 8N2" doc:"8N1, 8E1 or 8N2, serial only"`
	Timeout Duration `yaml:"timeout" range:"20ms..10s" doc:"how long to wait for a reply"`
}

// Meter is one meter or inverter.
type Meter struct {
	ID       string     `yaml:"id" doc:"name in records, at most 32 characters"`
	Line     string     `yaml:"line" doc:"id of its line"`
	Unit     uint8      `yaml:"unit" range:"1..255" doc:"Modbus unit, 1..247"`
	Profile  string     `yaml:"profile" doc:"'joulegate meter profiles' lists them"`
	Role     string     `yaml:"role" enum:"site production charger connection storage" doc:"site, production, charger, connection or storage"`
	Interval Duration   `yaml:"interval" range:"100ms..15m" doc:"time between readings"`
	MaxPower meter.Watt `yaml:"max_power_w" range:"1..1000000" doc:"no plausible reading exceeds it"`
	Invert   bool       `yaml:"invert,omitempty" doc:"the current transformers are mounted the wrong way round"`
	Key      string     `yaml:"public_key,omitempty" doc:"of a meter that signs records itself: the key on its plate, SubjectPublicKeyInfo in hex"`
}

// Charger is one charging point: a contactor of this board, or a wallbox that
// switches by itself.
type Charger struct {
	ID          uint8             `yaml:"id" range:"1..255" doc:"number on the connector"`
	Meter       string            `yaml:"meter" doc:"id of its session meter, role charger"`
	Relay       string            `yaml:"relay,omitempty" doc:"output pin of the contactor; left out: the wallbox under evse switches by itself"`
	EVSE        EVSE              `yaml:"evse,omitempty" doc:"wallbox or charge controller that offers current to the car over Modbus; left out: relay only"`
	EStop       string            `yaml:"estop,omitempty" doc:"input pin of the emergency stop; active stops"`
	Feedback    string            `yaml:"feedback,omitempty" doc:"input pin of the contactor's auxiliary contact; active means closed"`
	Pilot       string            `yaml:"pilot,omitempty" doc:"input pin of a pilot module without Modbus; active means that a vehicle is ready"`
	EarthFault  string            `yaml:"earth_fault,omitempty" doc:"input pin of a residual current monitor; active latches a fault"`
	StopButton  string            `yaml:"stop_button,omitempty" doc:"input pin of a push button for an ordinary stop"`
	Trip        string            `yaml:"trip,omitempty" doc:"output pin of the shunt trip, pulsed when the contactor has welded"`
	TempSensor  string            `yaml:"temp_sensor,omitempty" doc:"file with a temperature in 1/1000 degree Celsius, as Linux shows sensors"`
	DerateFrom  int               `yaml:"derate_from_c,omitempty" range:"20..109" doc:"from this temperature on less current is offered"`
	MaxTemp     int               `yaml:"max_temp_c,omitempty" range:"21..110" doc:"above this temperature charging stops until a person clears it"`
	MaxCurrent  meter.MilliAmpere `yaml:"max_current_ma" doc:"per phase, 6000 up to the board's rating"`
	Phases      int               `yaml:"phases" doc:"1 or 3"`
	Mode        string            `yaml:"mode" enum:"off now surplus market" doc:"off, now, surplus or market"`
	MaxSwitches int               `yaml:"max_switches" range:"1..120" doc:"most times it is switched on within an hour, 1..120"`
	Circuit     string            `yaml:"circuit,omitempty" doc:"the circuit that feeds it; left out: the main fuse"`
	Wiring      string            `yaml:"wiring,omitempty" doc:"phases of the network at its terminals, for example L2 L3 L1 or L3; left out: L1 L2 L3 or L1"`
	PhaseSwitch bool              `yaml:"phase_switch,omitempty" doc:"change between one and three phases by surplus; needs a statement that allows it"`
	Statement   string            `yaml:"statement,omitempty" doc:"file with what an installer has signed for this charger"`
	Departure   Departure         `yaml:"departure,omitempty" doc:"what a session in mode market charges that names no goal of its own"`
	Discharge   Discharge         `yaml:"discharge,omitempty" doc:"take energy out of vehicles; off unless enabled, and needs a statement that allows it"`
	OfflineWh   meter.WattHour    `yaml:"offline_limit_wh" range:"1..200000" doc:"most energy of a session while the ledger cannot be reached; the hold limits it as well"`
}

// Discharge is what may be taken out of vehicles at a charger.
type Discharge struct {
	Enabled   bool            `yaml:"enabled" doc:"take energy out of vehicles whose drivers sell"`
	Capacity  meter.WattHour  `yaml:"capacity_wh" doc:"of the vehicle's battery"`
	Floor     int64           `yaml:"floor_permille,omitempty" doc:"state of charge that is never gone below, 100..1000; default 400"`
	FloorWh   meter.WattHour  `yaml:"floor_wh,omitempty" doc:"the same as energy; the higher of the two counts"`
	MaxPower  meter.Watt      `yaml:"max_power_w" doc:"most that is taken out; the statement may allow less"`
	MinPower  meter.Watt      `yaml:"min_power_w,omitempty" doc:"the converter does not work below it"`
	SellLimit chain.NanoPerWh `yaml:"sell_limit_nano_per_wh,omitempty" doc:"no session sells below"`
	House     bool            `yaml:"house,omitempty" doc:"vehicles that sell cover what the house draws, beside what they have promised"`
}

// EVSE is the wallbox or charge controller on a Modbus line.
type EVSE struct {
	Line    string `yaml:"line" doc:"id of its line"`
	Unit    uint8  `yaml:"unit" range:"1..255" doc:"Modbus unit, 1..247; 255 on a tcp line: a device without units"`
	Profile string `yaml:"profile" doc:"a wallbox: 'joulegate meter profiles' lists them"`
}

// Fitted reports whether the charger has a charge controller.
func (e EVSE) Fitted() bool { return e != EVSE{} }

// Reader reads cards and printed codes at a charger.
type Reader struct {
	Charger uint8          `yaml:"charger" range:"1..255" doc:"number of the charger it starts and stops"`
	Device  string         `yaml:"device,omitempty" doc:"serial device that says one card number (hex) or code per line"`
	Socket  string         `yaml:"socket,omitempty" doc:"instead: Unix socket, made by the gateway, that takes such lines and answers them"`
	MaxWh   meter.WattHour `yaml:"max_wh" range:"100..200000" doc:"most energy that one tap pays for"`
}

// Site holds the limits of the house connection.
type Site struct {
	Fuse meter.MilliAmpere `yaml:"fuse_ma" range:"0|6000..250000" doc:"main fuse per phase; chargers keep the house below it; 0: not watched"`
}

// SiteCircuit is the id of the circuit behind the main fuse.
const SiteCircuit = "site"

// Circuit is a cable behind a fuse.
type Circuit struct {
	ID      string            `yaml:"id" doc:"name that chargers and circuits below it refer to"`
	Parent  string            `yaml:"parent,omitempty" doc:"the circuit above it; left out: the main fuse (site)"`
	Rating  meter.MilliAmpere `yaml:"rating_ma" range:"6000..250000" doc:"fuse per phase, 6000..250000"`
	Reserve meter.MilliAmpere `yaml:"reserve_ma,omitempty" doc:"kept free per phase for other loads on it, which nobody measures"`
	Power   meter.Watt        `yaml:"power_w,omitempty" range:"0..250000" doc:"most that its chargers take together; 0: the fuse alone limits"`
}

// Feeder is a cable that several gateways share.
type Feeder struct {
	Share   meter.MilliAmpere `yaml:"share_ma" range:"1..250000" doc:"this gateway's chargers may take so much per phase: always without a leader, and with one while it is silent"`
	Leader  string            `yaml:"leader,omitempty" doc:"gateway that shares the feeder among all; left out: the share is fixed"`
	Lease   Duration          `yaml:"lease,omitempty" range:"15s..5m" doc:"how long an allotment of the leader is valid, 15s..5m; the same at all gateways"`
	Rating  meter.MilliAmpere `yaml:"rating_ma,omitempty" range:"6000..1000000" doc:"leader only: fuse of the feeder per phase"`
	Reserve meter.MilliAmpere `yaml:"reserve_ma,omitempty" doc:"leader only: kept free per phase for what is no charger"`
	Members []FeederMember    `yaml:"members,omitempty" doc:"leader only: all gateways on the feeder, itself too"`
}

// Shared reports whether the gateway is behind a shared feeder.
func (f Feeder) Shared() bool {
	return f.Share != 0 || f.Leader != "" || f.Rating != 0 || len(f.Members) > 0
}

// FeederMember is a gateway on the feeder.
type FeederMember struct {
	Gateway  string            `yaml:"gateway" doc:"its name"`
	Share    meter.MilliAmpere `yaml:"share_ma" doc:"as in its own configuration"`
	Chargers []FeederCharger   `yaml:"chargers" doc:"its chargers"`
}

// FeederCharger is a charger as the feeder's leader knows it.
type FeederCharger struct {
	ID         uint8             `yaml:"id" doc:"as in its gateway's configuration"`
	MaxCurrent meter.MilliAmpere `yaml:"max_current_ma" doc:"per phase"`
	Wiring     string            `yaml:"wiring" doc:"phases of the feeder at its terminals, for example L2 L3 L1"`
}

// Dimming says how the utility's orders reach this gateway. It is off unless a
// pin, MQTT or the ledger is named.
type Dimming struct {
	PerDevice meter.Watt `yaml:"per_device_w,omitempty" range:"4200..100000" doc:"what a charger keeps, however low the order: 4200 by section 14a EnWG"`
	Total     meter.Watt `yaml:"total_w,omitempty" range:"0..1000000" doc:"what all chargers keep together, as the network operator has confirmed it; 0: per_device_w each"`
	Pin       string     `yaml:"pin,omitempty" doc:"input pin of the control box; active dims"`
	MQTT      bool       `yaml:"mqtt,omitempty" doc:"follow the topic utility/limit; it must be heard every silence"`
	Ledger    bool       `yaml:"ledger,omitempty" doc:"follow operators' orders on the ledger"`
	Silence   Duration   `yaml:"silence,omitempty" range:"5s..2m" doc:"a source that must be heard and is not for so long is lost; at most 2m"`
	Failsafe  Duration   `yaml:"failsafe,omitempty" range:"2h..24h" doc:"a lost source counts as dimmed for so long, 2h..24h; then own_limit_w holds"`
	Own       meter.Watt `yaml:"own_limit_w,omitempty" range:"0..100000" doc:"limit per charger after failsafe, until the source is heard; 0: none"`
}

// On reports whether any source is named.
func (d Dimming) On() bool { return d.Pin != "" || d.MQTT || d.Ledger }

// Battery is the house's battery, as its inverter tells it.
type Battery struct {
	Meter string `yaml:"meter" doc:"inverter that tells battery_power and state_of_charge"`
	First int64  `yaml:"first_permille,omitempty" range:"0..1000" doc:"it fills up to this state of charge before a car gets surplus; 0: the car goes first"`
}

// Departure is a goal of every day.
type Departure struct {
	By       string          `yaml:"by" doc:"time of day, for example 07:00"`
	Wh       meter.WattHour  `yaml:"wh" doc:"energy by then; a session's hold limits it"`
	MaxPrice chain.NanoPerWh `yaml:"max_price_nano_per_wh,omitempty" doc:"charge at this price at most; 0: any"`
}

// Market holds the standing limits.
type Market struct {
	SellLimit *chain.NanoPerWh `yaml:"sell_limit_nano_per_wh,omitempty" doc:"never sell below; default: feed-in"`
	BuyLimit  *chain.NanoPerWh `yaml:"buy_limit_nano_per_wh,omitempty" doc:"never buy above; default: retail"`
}

// P2P is the microgrid's network.
type P2P struct {
	Listen []string `yaml:"listen" items:"4" doc:"multiaddrs to listen on"`
	MDNS   bool     `yaml:"mdns" doc:"look for neighbours on the local network"`
}

// MQTT is the installer's line.
type MQTT struct {
	Broker          string `yaml:"broker" doc:"tcp://host:1883 or tls://host:8883; empty: the embedded broker"`
	Listen          string `yaml:"listen" doc:"address of the embedded broker; beyond loopback it needs cert_file and key_file"`
	User            string `yaml:"user,omitempty" doc:"user name at the broker"`
	PasswordFile    string `yaml:"password_file,omitempty" secret:"true" doc:"file that holds the password"`
	CAFile          string `yaml:"ca_file,omitempty" doc:"file with the certificates (PEM) of the authority that has signed the broker's; left out: the system's authorities. Of the embedded broker: the authority whose client certificates are logins, by their common name"`
	CertFile        string `yaml:"cert_file,omitempty" doc:"file with this gateway's certificate (PEM): its client certificate at a tls:// broker, the server certificate of the embedded broker; read again at every connection"`
	KeyFile         string `yaml:"key_file,omitempty" secret:"true" doc:"file with the private key (PEM) of cert_file; nobody but its owner and its group may read it"`
	Discovery       string `yaml:"discovery,omitempty" enum:"homeassistant off" doc:"homeassistant: Home Assistant finds this gateway's devices by itself; off: it does not. Left out: homeassistant at a broker of your own, off at the embedded one"`
	DiscoveryPrefix string `yaml:"discovery_prefix,omitempty" doc:"topic below which Home Assistant looks for devices"`
}

// Discovers reports whether Home Assistant is told of the devices.
func (m *MQTT) Discovers() bool {
	if m.Discovery == "" {
		return m.Broker != ""
	}
	return m.Discovery == DiscoveryHomeAssistant
}

// Words of MQTT.Discovery.
const (
	DiscoveryHomeAssistant = "homeassistant"
	DiscoveryOff           = "off"
)

// Panel is the web server.
type Panel struct {
	Listen string `yaml:"listen" doc:"host:port; port 0 picks one"`
}

// Ledger tunes agreement, and says how much of the past stays on this gateway.
type Ledger struct {
	TimeoutCommit  Duration `yaml:"timeout_commit" range:"50ms..1m" doc:"pause after a block, to collect transactions"`
	KeepDays       int64    `yaml:"keep_days" range:"0|21..36525" doc:"days that blocks of the ledger stay, at least 21, and half as long again until they go together; 0: for ever. Bundles and the verification of the ledger reach back so far, statements eleven years"`
	JournalDays    int64    `yaml:"journal_days" range:"0|21..36525" doc:"days that this gateway's own signed records stay once they are on the ledger, at least keep_days; 0: for ever"`
	SnapshotBehind int64    `yaml:"snapshot_behind" range:"64..1000000" doc:"blocks that this gateway may be behind before it fetches the state as a whole instead of executing them"`
}

// Pins are those that a board's description cannot know.
type Pins struct {
	Socket string `yaml:"socket,omitempty" doc:"Unix socket of the simulated pins; only for board simulated"`
	Lines  []Pin  `yaml:"lines,omitempty" items:"32" doc:"lines of GPIO chips that the installer has wired; 'joulegate board lines' shows what there is"`
}

// Pin is a line that the installer has wired. What an output does when nobody
// drives it follows from its polarity: it leaves the relay open.
type Pin struct {
	ID        string          `yaml:"name" doc:"what chargers call it, for example RELAY3"`
	Chip      string          `yaml:"chip" doc:"label of the chip, for example pinctrl-bcm2835"`
	Line      int             `yaml:"line" range:"0..4095" doc:"offset on the chip; counts where the kernel has no line of that label"`
	Label     string          `yaml:"label,omitempty" doc:"the kernel's name of the line, for example GPIO22"`
	Direction board.Direction `yaml:"direction" doc:"output or input"`
	Polarity  board.Polarity  `yaml:"polarity" doc:"active_high or active_low"`
	Pull      board.Pull      `yaml:"pull,omitempty" doc:"bias of an input: none, up or down"`
	Debounce  uint32          `yaml:"debounce_us,omitempty" range:"0..100000" doc:"an input must be steady this long, in microseconds"`
}

// Watchdog says who looks after the control loop from outside.
type Watchdog struct {
	Device    string   `yaml:"device,omitempty" doc:"hardware watchdog, for example /dev/watchdog0; empty: none"`
	Timeout   Duration `yaml:"timeout" range:"5s..1m" doc:"the hardware resets the board when it was not fed for this long"`
	Heartbeat string   `yaml:"heartbeat,omitempty" doc:"output pin that is toggled ten times a second while the control loop is verified, for a retriggerable relay driver"`
}

// Update says whose releases this gateway takes, and when. Keys and threshold
// are the root of all trust in its program: they change only at the machine.
type Update struct {
	Source    string   `yaml:"source,omitempty" doc:"where releases lie: an https address or a folder, for example a mounted stick; empty: none"`
	Keys      []string `yaml:"keys,omitempty" doc:"public keys of those who sign releases; without them nothing is updated. They cannot be changed over MQTT"`
	Threshold int      `yaml:"threshold,omitempty" doc:"so many of the keys must have signed; 0: more than half of them. It cannot be changed over MQTT"`
	Auto      string   `yaml:"auto" doc:"what is applied without a person, when no car charges: security, all or off"`
	Channel   string   `yaml:"channel" doc:"releases of this kind only, for example stable or beta"`
	Patience  Duration `yaml:"patience" range:"10s..30m" doc:"a new program that is not well within this time gives way to the former one, 10s..30m"`
}

// Wanted is how many of the keys must have signed.
func (u Update) Wanted() int {
	if u.Threshold == 0 {
		return len(u.Keys)/2 + 1
	}
	return u.Threshold
}

// Values of update.auto.
var autos = []string{"security", "all", "off"}

// Timing holds the times of the control loop.
type Timing struct {
	Tick        Duration `yaml:"tick" range:"5ms..250ms" doc:"period of the control loop"`
	Watchdog    Duration `yaml:"watchdog" range:"20ms..5s" doc:"a loop silent for longer is stalled: every relay opens"`
	StaleAfter  Duration `yaml:"stale_after" range:"500ms..10s" doc:"older readings do not count: 6 A, at most 10s"`
	StaleOff    Duration `yaml:"stale_off" range:"0s..1m" doc:"and this much later the relay opens"`
	StopWait    Duration `yaml:"stop_wait" range:"200ms..3s" doc:"0 A is offered this long before an ordinary stop cuts, at most 3s"`
	MinOff      Duration `yaml:"min_off" range:"1s..1h" doc:"a relay that opened stays open this long"`
	HoldLimit   Duration `yaml:"hold_limit" range:"1s..1h" doc:"the ledger has this long to confirm a hold"`
	StartLimit  Duration `yaml:"start_limit" range:"5s..24h" doc:"a session without energy ends after this"`
	FullAfter   Duration `yaml:"full_after" range:"2s..24h" doc:"a car that takes nothing for this long is full"`
	ResumeLimit Duration `yaml:"resume_limit" range:"1s..1h" doc:"after a restart a session resumes within this or ends"`
	OnDelay     Duration `yaml:"on_delay" range:"0s..1h" doc:"surplus must last this long before charging starts"`
	OffDelay    Duration `yaml:"off_delay" range:"0s..1h" doc:"surplus may be missing this long before charging pauses"`
	QuoteLife   Duration `yaml:"quote_life" range:"10s..24h" doc:"a quote can be accepted this long"`
	StartSpread Duration `yaml:"start_spread" range:"0s..30m" doc:"starts at a slot's edge, a tariff change or after power returned wait a random time of up to this; 10m is the rule in Great Britain"`
}

// Duration is a time.Duration that is written as Go writes it: 500ms, 1m30s.
type Duration time.Duration

func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalYAML implements yaml.NodeUnmarshaler, which lets the error say
// where it is. Negative times are refused.
func (d *Duration) UnmarshalYAML(n ast.Node) error {
	t := n.GetToken()
	v, err := time.ParseDuration(t.Value)
	if _, scalar := n.(*ast.StringNode); !scalar || err != nil || v < 0 {
		return &yaml.SyntaxError{Token: t, Message: fmt.Sprintf("%q is not a time such as 500ms, 10s or 15m", t.Value)}
	}
	*d = Duration(v)
	return nil
}

// Default returns the configuration that every field starts from.
func Default() Config {
	return Config{
		Version:  Version,
		P2P:      P2P{Listen: []string{"/ip4/0.0.0.0/tcp/4470"}},
		MQTT:     MQTT{Listen: "127.0.0.1:1883", DiscoveryPrefix: "homeassistant"},
		Panel:    Panel{Listen: "127.0.0.1:8080"},
		Ledger:   Ledger{TimeoutCommit: ms(500), SnapshotBehind: 2000, JournalDays: 3653},
		Watchdog: Watchdog{Timeout: sec(15)},
		Update:   Update{Auto: "security", Channel: "stable", Patience: Duration(3 * time.Minute)},
		Guard:    Guard{Mode: "observe", Heartbeat: Duration(time.Hour), MemoryMB: 96},
		Timing: Timing{
			Tick: ms(25), Watchdog: ms(1000),
			StaleAfter: sec(10), StaleOff: sec(20), StopWait: sec(3), MinOff: sec(10),
			HoldLimit: sec(60), StartLimit: sec(600), FullAfter: sec(300), ResumeLimit: sec(120),
			OnDelay: sec(60), OffDelay: sec(180), QuoteLife: sec(600), StartSpread: sec(600),
		},
	}
}

// Sample is what `joulegate init` writes: a gateway named name with one meter
// on a serial line, to be edited by the installer.
func Sample(name string) Config {
	c := Default()
	c.Name, c.Board = name, "generic"
	c.Lines = []Line{{ID: "rs485", Device: "/dev/ttyUSB0"}}
	c.Meters = []Meter{{ID: "house", Line: "rs485", Unit: 1, Profile: "eastron-sdm630", Role: "site"}}
	c.fill()
	return c
}

// Hardware returns the board with the installer's own pins added. An error
// names what is wrong with them.
func (c *Config) Hardware() (board.Board, error) {
	b, err := boards.Get(c.Board)
	if err != nil || len(c.Pins.Lines) == 0 {
		return b, err
	}
	if !b.OwnPins {
		return b, fmt.Errorf("board %s takes no pins of your own", b.ID)
	}
	b.Pins = slices.Clone(b.Pins)
	for _, p := range c.Pins.Lines {
		d := board.Pin{
			Name: p.ID, Backend: board.BackendChip, Chip: p.Chip, Line: p.Line, Label: p.Label,
			Direction: p.Direction, Polarity: p.Polarity, Pull: p.Pull, Debounce: p.Debounce,
		}
		if p.Direction == board.Output {
			d.Pull, d.SafeHigh = board.PullDown, p.Polarity == board.ActiveLow
			if d.SafeHigh {
				d.Pull = board.PullUp
			}
		}
		for _, o := range b.Pins {
			if o.Chip == d.Chip && (o.Line == d.Line || o.Label != "" && o.Label == d.Label) {
				return b, fmt.Errorf("%s is line %d (%s) of %s, which is %s already", d.Name, d.Line, d.Label, d.Chip, o.Name)
			}
		}
		b.Pins = append(b.Pins, d)
	}
	return b, b.Check()
}

// Outputs names the output pins that this configuration uses.
func (c *Config) Outputs() []string {
	out := []string{c.Watchdog.Heartbeat}
	for _, h := range c.Chargers {
		out = append(out, h.Relay, h.Trip)
	}
	return slices.DeleteFunc(out, func(name string) bool { return name == "" })
}

// fill sets the defaults of list entries, which Default cannot know.
func (c *Config) fill() {
	for i := range c.Lines {
		l := &c.Lines[i]
		if l.Device != "" {
			l.Baud = or(l.Baud, 9600)
			l.Framing = or(l.Framing, "8N1")
		}
		l.Timeout = or(l.Timeout, ms(500))
	}
	for i := range c.Meters {
		m := &c.Meters[i]
		m.Interval = or(m.Interval, sec(1))
		m.MaxPower = or(m.MaxPower, 22_000)
	}
	for i := range c.Pins.Lines {
		p := &c.Pins.Lines[i]
		p.Pull = or(p.Pull, board.PullNone)
	}
	for i := range c.Circuits {
		c.Circuits[i].Parent = or(c.Circuits[i].Parent, SiteCircuit)
	}
	if c.Feeder.Leader != "" {
		c.Feeder.Lease = or(c.Feeder.Lease, sec(30))
	}
	if c.Dimming.On() {
		d := &c.Dimming
		d.PerDevice = or(d.PerDevice, 4_200)
		d.Silence = or(d.Silence, sec(120))
		d.Failsafe = or(d.Failsafe, Duration(2*time.Hour))
	}
	for i := range c.Readers {
		r := &c.Readers[i]
		r.MaxWh = or(r.MaxWh, 30_000)
	}
	for i := range c.Chargers {
		h := &c.Chargers[i]
		h.MaxCurrent = or(h.MaxCurrent, 16_000)
		h.Circuit = or(h.Circuit, SiteCircuit)
		h.Phases = or(h.Phases, 3)
		h.Mode = or(h.Mode, "market")
		h.MaxSwitches = or(h.MaxSwitches, 20)
		h.OfflineWh = or(h.OfflineWh, 20_000)
		if h.Discharge.Enabled {
			h.Discharge.Floor = or(h.Discharge.Floor, 400)
		}
		if h.TempSensor != "" {
			h.DerateFrom = or(h.DerateFrom, 60)
			h.MaxTemp = or(h.MaxTemp, 75)
		}
	}
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func ms(n int64) Duration  { return Duration(time.Duration(n) * time.Millisecond) }
func sec(n int64) Duration { return Duration(time.Duration(n) * time.Second) }
