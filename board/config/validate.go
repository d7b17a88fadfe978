package config

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/boards"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// MinCurrent is the smallest current that can be offered to a vehicle
// (IEC 61851-1, table A.8).
const MinCurrent meter.MilliAmpere = 6000

// MaxCurrent is the most that a wallbox without a relay of ours is told to
// offer.
const MaxCurrent meter.MilliAmpere = 32_000

// MinKeepDays is the least that blocks of the ledger are kept: validators
// answer for two weeks for what they have signed.
const (
	MinKeepDays = 21
	maxKeepDays = 36_525
)

type checker struct {
	errs  Errors
	ids   map[string]string // what an id was used for
	units map[string]string // line/unit -> path
	pins  map[string]string // pin -> path
}

func (c *checker) add(path, format string, args ...any) {
	c.errs = append(c.errs, Error{Path: path, Message: fmt.Sprintf(format, args...)})
}

// Validate returns everything that is wrong with c.
func (c *Config) Validate() Errors {
	k := &checker{ids: map[string]string{}, units: map[string]string{}, pins: map[string]string{}}
	if c.Version != Version {
		k.add("version", "%d, this program reads %d", c.Version, Version)
	}
	if !word(c.Name) {
		k.add("name", "%q: 1 to %d of a-z, 0-9 and -", c.Name, chain.MaxName)
	}
	if odd := func(r rune) bool { return r == '|' || !unicode.IsPrint(r) }; len(c.Contact) > MaxContact || strings.ContainsFunc(c.Contact, odd) {
		k.add("contact", "%q: at most %d bytes on one line, without '|'", c.Contact, MaxContact)
	}
	b, err := boards.Get(c.Board)
	if err != nil {
		k.add("board", "%v", err)
	} else if b, err = c.Hardware(); err != nil {
		k.add("pins.lines", "%v", err)
	}
	if b.ID == "" {
		b.Rating = board.Rating{MaxCurrent: 32_000, Phases: 3, MaxChargers: MaxChargers} // keep the other messages meaningful
	}
	k.tags("", reflect.ValueOf(*c))
	c.lines(k)
	c.meters(k)
	c.chargers(k, b)
	c.limits(k, b)
	c.watchdog(k, b)
	c.readers(k)
	c.services(k)
	c.guard(k)
	c.update(k)
	c.timing(k)
	return k.errs
}

func (c *Config) lines(k *checker) {
	if len(c.Lines) > MaxLines {
		k.add("lines", "%d, at most %d", len(c.Lines), MaxLines)
		return
	}
	seen := map[string]bool{}
	where := map[string]string{}
	for i, l := range c.Lines {
		p := fmt.Sprintf("lines[%d]", i)
		if !word(l.ID) || seen[l.ID] {
			k.add(p+".id", "%q is not a word, or used twice", l.ID)
		}
		seen[l.ID] = true
		var kinds []string
		for _, e := range []struct{ key, value string }{{"device", l.Device}, {"tcp", l.TCP}, {"rtutcp", l.RTUTCP}} {
			if e.value == "" {
				continue
			}
			kinds = append(kinds, e.key)
			if first, taken := where[e.value]; taken {
				k.add(p+"."+e.key, "%s is already used by %s: one line has one owner", e.value, first)
			}
			where[e.value] = p
			if e.key != "device" && !hostPort(e.value) {
				k.add(p+"."+e.key, "%q is not host:port", e.value)
			}
		}
		if len(kinds) != 1 {
			k.add(p, "has %d of device, tcp, rtutcp, wants exactly one", len(kinds))
		}
		if l.Device != "" {
			switch l.Baud {
			case 1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200:
			default:
				k.add(p+".baud", "%d is not a usual speed (1200 to 115200)", l.Baud)
			}
		}
	}
}

func (c *Config) hasLine(id string) bool {
	for _, l := range c.Lines {
		if l.ID == id {
			return true
		}
	}
	return false
}

// isTCP reports whether a line speaks Modbus TCP.
func (c *Config) isTCP(id string) bool {
	return slices.ContainsFunc(c.Lines, func(l Line) bool { return l.ID == id && l.TCP != "" })
}

func (c *Config) device(k *checker, p, line string, unit uint8) {
	if !c.hasLine(line) {
		k.add(p+".line", "there is no line %q", line)
	}
	if unit > 247 && (unit != 255 || !c.isTCP(line)) {
		k.add(p+".unit", "%d is outside 1..247 (255 on a tcp line: a device without units)", unit)
	}
	at := line + "/" + strconv.Itoa(int(unit))
	if first, taken := k.units[at]; taken {
		k.add(p+".unit", "unit %d on line %s is already %s", unit, line, first)
	}
	k.units[at] = p
}

func (c *Config) meters(k *checker) {
	if len(c.Meters) > MaxMeters {
		k.add("meters", "%d, at most %d", len(c.Meters), MaxMeters)
		return
	}
	sites := 0
	for i, m := range c.Meters {
		p := fmt.Sprintf("meters[%d]", i)
		if !word(m.ID) || k.ids[m.ID] != "" {
			k.add(p+".id", "%q is not a word, or used twice", m.ID)
		}
		k.ids[m.ID] = m.Role
		c.device(k, p, m.Line, m.Unit)
		if m.Profile == "" {
			k.add(p+".profile", "is required")
		}
		if m.Role == chain.RoleSite.String() {
			if sites++; sites > 1 {
				k.add(p+".role", "a gateway has one site meter")
			}
		}
		if _, err := hex.DecodeString(m.Key); err != nil || len(m.Key) > 1024 {
			k.add(p+".public_key", "%d characters: want at most 1024 hex digits", len(m.Key))
		}
	}
	if sites == 0 && len(c.Meters) > 0 {
		k.add("meters", "none has the role site: the house's own connection is what is settled")
	}
}

func (c *Config) chargers(k *checker, b board.Board) {
	if len(c.Chargers) > MaxChargers {
		k.add("chargers", "%d, at most %d", len(c.Chargers), MaxChargers)
		return
	}
	relays := 0 // a wallbox brings its own
	for _, h := range c.Chargers {
		if h.Relay != "" {
			relays++
		}
	}
	if relays > b.Rating.MaxChargers {
		k.add("chargers", "%d with a relay, board %s has room for %d", relays, c.Board, b.Rating.MaxChargers)
		return
	}
	ids, meters := map[uint8]bool{}, map[string]bool{}
	for i, h := range c.Chargers {
		p := fmt.Sprintf("chargers[%d]", i)
		if ids[h.ID] {
			k.add(p+".id", "%d is used twice", h.ID)
		}
		ids[h.ID] = true
		if role, ok := k.ids[h.Meter]; !ok || role != chain.RoleCharger.String() || meters[h.Meter] {
			k.add(p+".meter", "%q is not a meter with role charger of its own", h.Meter)
		}
		meters[h.Meter] = true
		limit, phases, whose := b.Rating.MaxCurrent, b.Rating.Phases, "the rating of board "+c.Board
		switch {
		case h.Relay != "":
			if pin, ok := k.pin(b, p+".relay", h.Relay, board.Output); ok && pin.MaxCurrent > 0 {
				limit = min(limit, pin.MaxCurrent)
			}
		case !h.EVSE.Fitted():
			k.add(p+".relay", "is required unless a wallbox under evse switches by itself")
		case h.Feedback != "":
			k.add(p+".feedback", "there is no relay whose contact it could be")
		}
		if h.Relay == "" {
			limit, phases, whose = MaxCurrent, 3, "what IEC 61851-1 lets a wallbox offer"
		}
		for _, in := range []struct{ key, pin string }{
			{"estop", h.EStop},
			{"feedback", h.Feedback},
			{"pilot", h.Pilot},
			{"earth_fault", h.EarthFault},
			{"stop_button", h.StopButton},
		} {
			if in.pin != "" {
				k.pin(b, p+"."+in.key, in.pin, board.Input)
			}
		}
		if h.Trip != "" {
			k.pin(b, p+".trip", h.Trip, board.Output)
		}
		if h.Pilot != "" && h.EVSE.Fitted() {
			k.add(p+".pilot", "the controller under evse already says whether a vehicle is ready")
		}
		if (h.DerateFrom != 0 || h.MaxTemp != 0) && h.DerateFrom >= h.MaxTemp {
			k.add(p+".max_temp_c", "derate_from_c %d and max_temp_c %d: want derate_from_c < max_temp_c", h.DerateFrom, h.MaxTemp)
		}
		if h.MaxCurrent < MinCurrent || h.MaxCurrent > limit {
			k.add(p+".max_current_ma", "%d is outside %d..%d, %s", h.MaxCurrent, MinCurrent, limit, whose)
		}
		if (h.Phases != 1 && h.Phases != 3) || h.Phases > phases {
			k.add(p+".phases", "%d, want 1 or 3 and at most %d, %s", h.Phases, phases, whose)
		}
		if h.EVSE.Fitted() {
			if c.ownMeter(h) {
				// The wallbox is its session meter too, as one device.
				delete(k.units, h.EVSE.Line+"/"+strconv.Itoa(int(h.EVSE.Unit)))
			}
			c.device(k, p+".evse", h.EVSE.Line, h.EVSE.Unit)
			c.wallbox(k, p+".evse", h)
		}
	}
}

// ownMeter reports whether a charger's session meter is its wallbox itself.
func (c *Config) ownMeter(h Charger) bool {
	return slices.ContainsFunc(c.Meters, func(m Meter) bool {
		return m.ID == h.Meter && m.Line == h.EVSE.Line && m.Unit == h.EVSE.Unit && m.Profile == h.EVSE.Profile
	})
}

// wallbox checks that a built-in profile is one of a wallbox and can be told
// the charger's current. Profiles of a folder are checked when it is read.
func (c *Config) wallbox(k *checker, path string, h Charger) {
	if h.EVSE.Profile == "" {
		k.add(path+".profile", "is required: 'joulegate meter profiles' lists the wallboxes")
		return
	}
	if c.Profiles != "" {
		return
	}
	p, err := profile.Get(h.EVSE.Profile)
	switch {
	case err != nil:
		k.add(path+".profile", "%q is unknown: 'joulegate meter profiles' lists the wallboxes", h.EVSE.Profile)
	case p.Kind != profile.Wallbox:
		k.add(path+".profile", "%s is a %s, not a wallbox", p.ID, p.Kind)
	default:
		if w, ok := p.Write("current_limit"); ok && w.Max > 0 && int64(h.MaxCurrent) > w.Max {
			k.add(path+".profile", "%s takes at most %d mA, max_current_ma is %d", p.ID, w.Max, h.MaxCurrent)
		}
	}
}

func (k *checker) pin(b board.Board, path, name string, dir board.Direction) (board.Pin, bool) {
	pin, ok := b.Pin(name)
	switch {
	case !ok || pin.Direction != dir:
		k.add(path, "board %s has no %s %q", b.ID, dir, name)
		return pin, false
	case k.pins[name] != "":
		k.add(path, "%s is already used by %s", name, k.pins[name])
	}
	k.pins[name] = path
	return pin, true
}

func (c *Config) watchdog(k *checker, b board.Board) {
	w := c.Watchdog
	if w.Device != "" && !strings.HasPrefix(w.Device, "/dev/") {
		k.add("watchdog.device", "%q is not a device such as /dev/watchdog0", w.Device)
	}
	if w.Heartbeat != "" {
		k.pin(b, "watchdog.heartbeat", w.Heartbeat, board.Output)
	}
	if n := len(c.Pins.Lines); n > MaxPins {
		k.add("pins.lines", "%d, at most %d", n, MaxPins)
	}
	for i, p := range c.Pins.Lines[:min(len(c.Pins.Lines), MaxPins)] {
		at := fmt.Sprintf("pins.lines[%d]", i)
		if p.Chip == "" && p.Label == "" {
			k.add(at+".chip", "neither chip nor label says which line it is")
		}
	}
}

func (c *Config) readers(k *checker) {
	if len(c.Readers) > MaxChargers {
		k.add("readers", "%d, at most %d", len(c.Readers), MaxChargers)
		return
	}
	where := map[string]string{}
	for i, r := range c.Readers {
		p := fmt.Sprintf("readers[%d]", i)
		if !slices.ContainsFunc(c.Chargers, func(h Charger) bool { return h.ID == r.Charger }) {
			k.add(p+".charger", "there is no charger %d", r.Charger)
		}
		if (r.Device == "") == (r.Socket == "") {
			k.add(p, "wants exactly one of device and socket")
		} else if at := r.Device + r.Socket; where[at] != "" {
			k.add(p, "%s is already used by %s", at, where[at])
		} else {
			where[at] = p
		}
	}
}

func (c *Config) services(k *checker) {
	if l := c.Market.SellLimit; l != nil && *l < 0 {
		k.add("market.sell_limit_nano_per_wh", "%d is negative", *l)
	}
	if l := c.Market.BuyLimit; l != nil && *l < 0 {
		k.add("market.buy_limit_nano_per_wh", "%d is negative", *l)
	}
	if len(c.P2P.Listen) > MaxListen {
		k.add("p2p.listen", "%d addresses, at most %d", len(c.P2P.Listen), MaxListen)
	}
	for i, a := range c.P2P.Listen[:min(len(c.P2P.Listen), MaxListen)] {
		if !strings.HasPrefix(a, "/") {
			k.add(fmt.Sprintf("p2p.listen[%d]", i), "%q is not a multiaddr such as /ip4/0.0.0.0/tcp/4001", a)
		}
	}
	if c.MQTT.Broker != "" {
		scheme, rest, ok := strings.Cut(c.MQTT.Broker, "://")
		if !ok || (scheme != "tcp" && scheme != "tls") || !hostPort(rest) {
			k.add("mqtt.broker", "%q is not tcp://host:port or tls://host:port", c.MQTT.Broker)
		}
	} else if !hostPort(c.MQTT.Listen) {
		k.add("mqtt.listen", "%q is not host:port", c.MQTT.Listen)
	}
	c.MQTT.security(k)
	if !hostPort(c.Panel.Listen) {
		k.add("panel.listen", "%q is not host:port", c.Panel.Listen)
	}
	// Own records are what bills rest on: they go last.
	if d, blocks := c.Ledger.JournalDays, c.Ledger.KeepDays; d != 0 && d < blocks {
		k.add("ledger.journal_days", "%d: 0, or at least keep_days (%d): own records stay as long as blocks do", d, blocks)
	}
	if c.Board == "simulated" && len(c.Chargers) > 0 && c.Pins.Socket == "" {
		k.add("pins.socket", "board simulated needs the socket of its pins")
	}
	if c.Board != "simulated" && c.Pins.Socket != "" {
		k.add("pins.socket", "only board simulated has pins on a socket")
	}
}

// security checks what names certificates, and the prefix of Home Assistant.
func (m *MQTT) security(k *checker) {
	plain := strings.HasPrefix(m.Broker, "tcp://")
	for _, f := range []struct{ key, file string }{{"ca_file", m.CAFile}, {"cert_file", m.CertFile}, {"key_file", m.KeyFile}} {
		if f.file != "" && plain {
			k.add("mqtt."+f.key, "without effect at %s: the broker has to be tls://host:8883", m.Broker)
		}
	}
	switch {
	case m.CertFile != "" && m.KeyFile == "":
		k.add("mqtt.key_file", "missing: cert_file needs its key")
	case m.CertFile == "" && m.KeyFile != "":
		k.add("mqtt.cert_file", "missing: key_file needs its certificate")
	case m.Broker == "" && m.CAFile != "" && m.CertFile == "":
		k.add("mqtt.cert_file", "missing: client certificates are for an embedded broker with TLS")
	}
	for level := range strings.SplitSeq(m.DiscoveryPrefix, "/") {
		if !topicLevel(level) || len(m.DiscoveryPrefix) > 64 {
			k.add("mqtt.discovery_prefix", "%q: at most 64 of A-Z a-z 0-9 _ - and /, such as homeassistant", m.DiscoveryPrefix)
			break
		}
	}
}

// topicLevel reports whether s can be a level of a topic of Home Assistant.
func topicLevel(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	})
}

func (c *Config) timing(k *checker) {
	if t := c.Timing; t.Watchdog < 4*t.Tick {
		k.add("timing.watchdog", "%s is outside %s..5s, four ticks at least", t.Watchdog, 4*t.Tick)
	}
}

// word reports whether s is an id: it is used in topics, file names, records
// and the fee tree, so nothing in it ever needs quoting.
func word(s string) bool {
	if s == "" || len(s) > chain.MaxName || s[0] == '-' {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

func hostPort(s string) bool {
	if _, err := netip.ParseAddrPort(s); err == nil {
		return true
	}
	i := strings.LastIndexByte(s, ':')
	if i <= 0 && i != 0 {
		return false
	}
	if host := s[:i]; strings.ContainsAny(host, " /:@") || len(host) > 253 {
		return false
	}
	_, err := strconv.ParseUint(s[i+1:], 10, 16)
	return err == nil
}

// maxUpdateKeys bounds update.keys.
const maxUpdateKeys = 16

func (c *Config) update(k *checker) {
	u := c.Update
	if u.Source != "" && !strings.HasPrefix(u.Source, "/") {
		if a, err := url.Parse(u.Source); err != nil || a.Scheme != "https" || a.Host == "" || a.RawQuery != "" || a.Fragment != "" || a.User != nil {
			k.add("update.source", "%q is neither an absolute folder nor an https address", u.Source)
		}
	}
	if len(u.Keys) > maxUpdateKeys {
		k.add("update.keys", "%d, at most %d", len(u.Keys), maxUpdateKeys)
	}
	seen := map[chain.Key]bool{}
	for i, t := range u.Keys {
		var key chain.Key
		if err := key.UnmarshalText([]byte(t)); err != nil || seen[key] {
			k.add(fmt.Sprintf("update.keys[%d]", i), "%q is not a public key (64 hex digits), or there twice", t)
		}
		seen[key] = true
	}
	if u.Threshold < 0 || u.Threshold > len(u.Keys) {
		k.add("update.threshold", "%d of %d keys", u.Threshold, len(u.Keys))
	}
	if !slices.Contains(autos, u.Auto) {
		k.add("update.auto", "%q is not one of %s", u.Auto, strings.Join(autos, ", "))
	}
	if !word(u.Channel) {
		k.add("update.channel", "%q: 1 to %d of a-z, 0-9 and -", u.Channel, chain.MaxName)
	}
}
