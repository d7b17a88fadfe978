package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/mqtt"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/drivers/scan"
)

// commissioningFor is how long a person at the gateway is taken to stay.
const commissioningFor = 15 * time.Minute

// commissioning is the mode in which relays may be tested and lines scanned.
// Only somebody who is there begins it: at the control socket, or with a file
// on the boot partition. It ends by itself, and with the program.
type commissioning struct {
	mu    sync.Mutex
	from  time.Time
	until time.Time
}

func (c *commissioning) begin() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !now.Before(c.until) { // else it goes on
		c.from = now
	}
	c.until = now.Add(commissioningFor)
	return c.until
}

// since returns when it began; zero: it is not on.
func (c *commissioning) since() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !time.Now().Before(c.until) {
		return time.Time{}
	}
	return c.from
}

func (c *commissioning) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = time.Time{}
}

// ends returns when it ends; zero: it is not on.
func (c *commissioning) ends() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !time.Now().Before(c.until) {
		return time.Time{}
	}
	return c.until
}

const notCommissioning = "only while the gateway is being commissioned: joulegate commission start at the gateway, its commissioning button held for 3 s, or a file joulegate-commission on its boot partition"

// bootFiles begin commissioning mode when the program starts. One that cannot
// be removed counts once, or every return of the power would begin it.
var bootFiles = []string{"/boot/firmware/joulegate-commission", "/boot/joulegate-commission"}

const bootFileKey = "commission-boot-file"

// commissionByFile begins commissioning mode if somebody has put a file there.
func (g *gateway) commissionByFile(files []string) {
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			continue
		}
		mark := fmt.Sprintf("%s %d", name, info.ModTime().UnixNano())
		if seen, err := g.journal.Load(bootFileKey); err != nil || string(seen) == mark {
			continue
		}
		if err := g.journal.Save(bootFileKey, []byte(mark)); err != nil {
			g.log.Warn("commissioning mode not begun", "err", err)
			continue
		}
		_ = os.Remove(name) // the mark is what counts
		g.log.Warn("commissioning mode: relays may be tested and lines scanned", "until", g.commissioning.begin().UTC().Format(time.RFC3339), "by", name)
	}
}

// Commissioning implements panel.Backend.
func (b backend) Commissioning(_ context.Context, o panel.CommissioningOrder) (panel.Commissioning, error) {
	switch o.Do {
	case "start":
		b.log.Warn("commissioning mode: relays may be tested and lines scanned", "until", b.commissioning.begin().UTC().Format(time.RFC3339), "by", "control socket")
	case "stop":
		b.commissioning.end()
	case "":
	default:
		return panel.Commissioning{}, panel.Invalid("commissioning cannot be told to %q: start or stop", o.Do)
	}
	until := b.commissioning.ends()
	return panel.Commissioning{On: !until.IsZero(), Until: until, Done: b.doneWords()}, nil
}

// TestRelay implements panel.Backend.
func (b backend) TestRelay(ctx context.Context, o panel.RelayOrder) (board.RelayTest, error) {
	if b.commissioning.ends().IsZero() {
		return board.RelayTest{}, panel.Refused("the relay of charger %d is not tested: %s", o.Charger, notCommissioning)
	}
	d := time.Duration(o.Seconds) * time.Second
	if o.Seconds < 1 || o.Seconds > 5 {
		return board.RelayTest{}, panel.Invalid("%d seconds: 1 to 5", o.Seconds)
	}
	v, err := b.station.TestRelay(ctx, o.Charger, d)
	if err == nil {
		b.triedRelay(o.Charger, v)
	}
	return v, refused(err)
}

// command is something that an installer may ask for over MQTT.
type command struct {
	about string
	args  string        // JSON Schema of args
	slow  bool          // others do not wait for it
	wait  time.Duration // a slow one may take longer than slowWait
	local bool          // only in commissioning mode
	run   func(ctx context.Context, r remote, client string, args json.RawMessage) (any, error)
}

const (
	noArgsSchema  = `{"type":"object","additionalProperties":false}`
	txnArgsSchema = `{"type":"object","additionalProperties":false,"properties":{"txn":{"type":"string","maxLength":64,"description":"transaction of the change; left out: the one that waits"}}}`
)

// commands are the names that cmd/<client>/<name> may have.
var commands map[string]command

func init() { // refers to itself through remote
	commands = map[string]command{
		"config.confirm": {about: "keep the change that waits", args: txnArgsSchema, run: with(func(ctx context.Context, r remote, _ string, a struct {
			Txn string `json:"txn"`
		},
		) (any, error) {
			return r.settings.ConfigConfirm(ctx, a.Txn)
		})},
		"config.cancel": {about: "end the change that waits", args: txnArgsSchema, run: with(func(_ context.Context, r remote, client string, a struct {
			Txn string `json:"txn"`
		},
		) (any, error) {
			if err := r.settings.step(config.Cancel{Txn: a.Txn, Why: "cancelled by " + client}); err != nil {
				return nil, err
			}
			return r.settings.result(), nil
		})},
		"diag": {about: "status, newest snapshot, counters of the connection", args: noArgsSchema, run: with(func(ctx context.Context, r remote, _ string, _ struct{}) (any, error) {
			s, err := backend(r).Status(ctx)
			if err != nil {
				return nil, err
			}
			snap, _ := r.live.Latest()
			return map[string]any{"status": s, "snapshot": snap, "mqtt": r.mqtt.Stats(), "commissioning_until": r.commissioning.ends()}, nil
		})},
		"guard.release": guarding("guard.release", "take back a reaction of the guard, or all of them", `{"type":"object","additionalProperties":false,"properties":{"id":{"type":"integer","minimum":1},"all":{"type":"boolean"}}}`),
		"guard.answer":  guarding("guard.answer", "say whether the guard shall react", `{"type":"object","additionalProperties":false,"required":["id","yes"],"properties":{"id":{"type":"integer","minimum":1},"yes":{"type":"boolean"}}}`),
		"guard.resume":  guarding("guard.resume", "let the guard react again after everything was taken back", noArgsSchema),
		"session.start": {
			about: "start the session of a quote that its driver has signed", slow: true,
			args: `{"type":"object","additionalProperties":false,"required":["quote","sig"],"properties":{"quote":{"type":"string","contentEncoding":"base64","description":"the bytes that session quote has given"},"sig":{"type":"string","contentEncoding":"base64","description":"the driver's signature of them"}}}`,
			run: with(func(ctx context.Context, r remote, _ string, a struct {
				Quote []byte `json:"quote"`
				Sig   []byte `json:"sig"`
			},
			) (any, error) {
				return backend(r).StartSession(ctx, chain.SignedQuote{Quote: a.Quote, Sig: a.Sig})
			}),
		},
		"session.stop": {
			about: "end the session at a charger: 0 A, wait, open",
			args:  `{"type":"object","additionalProperties":false,"required":["charger"],"properties":{"charger":{"type":"integer","minimum":1,"maximum":255}}}`,
			run: with(func(ctx context.Context, r remote, client string, a struct {
				Charger uint8 `json:"charger"`
			},
			) (any, error) {
				if err := r.station.StopCharger(ctx, a.Charger, chain.StopOperator, "stopped over MQTT by "+client); err != nil {
					return nil, refused(err)
				}
				return r.station.Charger(ctx, a.Charger)
			}),
		},
		"backup": {
			about: "write a backup into the state folder, readable by its owner only, and say where it is", slow: true, wait: backupWait,
			args: `{"type":"object","additionalProperties":false,"properties":{"with_keys":{"type":"boolean","default":false,"description":"include the secret keys: whoever has that file is this gateway"}}}`,
			run: with(func(ctx context.Context, r remote, client string, a struct {
				Keys bool `json:"with_keys"`
			},
			) (any, error) {
				b, err := r.storeBackup(ctx, a.Keys)
				if err == nil {
					r.log.Warn("backup written", "file", b.Path, "keys", b.Keys, "by", client)
				}
				return b, err
			}),
		},
		"update": {
			about: "look for a signed release of this program, apply it when no car charges, or go back", slow: true,
			args: `{"type":"object","additionalProperties":false,"required":["action"],"properties":{"action":{"enum":["status","check","apply","rollback"]}}}`,
			run: with(func(ctx context.Context, r remote, _ string, a struct {
				Action string `json:"action"`
			},
			) (any, error) {
				switch a.Action {
				case "status":
					a.Action = ""
				case "":
					return nil, panel.Invalid("action: status, check, apply or rollback")
				}
				return backend(r).Update(ctx, panel.UpdateOrder{Do: a.Action})
			}),
		},
		"relay.test": {
			about: "close the relay of a charger without a vehicle for a moment; in commissioning mode", slow: true, local: true,
			args: `{"type":"object","additionalProperties":false,"required":["charger"],"properties":{"charger":{"type":"integer","minimum":1,"maximum":255},"seconds":{"type":"integer","minimum":1,"maximum":5,"default":2}}}`,
			run: with(func(ctx context.Context, r remote, _ string, a panel.RelayOrder) (any, error) {
				if a.Seconds == 0 {
					a.Seconds = 2
				}
				return backend(r).TestRelay(ctx, a)
			}),
		},
		"bus.scan": {
			about: "what answers on a configured line, at its present setting; in commissioning mode", slow: true, local: true,
			args: `{"type":"object","additionalProperties":false,"required":["line"],"properties":{"line":{"type":"string"},"units":{"type":"string","default":"1-247","description":"for example 1-10,50"}}}`,
			run: with(func(ctx context.Context, r remote, _ string, a panel.ScanOrder) (any, error) {
				return r.scanLine(ctx, a)
			}),
		},
		"meter.identify": {
			about: "what the device at a unit of a line is; in commissioning mode", slow: true, local: true,
			args: `{"type":"object","additionalProperties":false,"required":["line","unit"],"properties":{"line":{"type":"string"},"unit":{"type":"integer","minimum":1,"maximum":255}}}`,
			run: with(func(ctx context.Context, r remote, _ string, a struct {
				Line string `json:"line"`
				Unit uint8  `json:"unit"`
			},
			) (any, error) {
				return r.scanLine(ctx, panel.ScanOrder{Line: a.Line, Units: strconv.Itoa(int(a.Unit))})
			}),
		},
	}
}

func guarding(name, about, args string) command {
	return command{about: about, args: args, run: func(ctx context.Context, r remote, _ string, raw json.RawMessage) (any, error) {
		return r.guardCommand(ctx, name, raw)
	}}
}

// with reads args strictly before it calls f.
func with[A any](f func(ctx context.Context, r remote, client string, a A) (any, error)) func(context.Context, remote, string, json.RawMessage) (any, error) {
	return func(ctx context.Context, r remote, client string, raw json.RawMessage) (any, error) {
		var a A
		if len(raw) > 0 && !bytes.Equal(raw, []byte("null")) {
			d := json.NewDecoder(bytes.NewReader(raw))
			d.DisallowUnknownFields()
			if err := d.Decode(&a); err != nil {
				return nil, &mqtt.CommandError{Code: "invalid", Text: "args: " + strings.TrimPrefix(err.Error(), "json: ")}
			}
		}
		return f(ctx, r, client, a)
	}
}

// slowWait bounds a command that others do not wait for, backupWait one that
// reads everything there is.
const (
	slowWait   = 3 * time.Minute
	backupWait = 30 * time.Minute
)

// Slow implements mqtt.Remote.
func (r remote) Slow(name string) bool { return commands[name].slow }

// Command implements mqtt.Remote.
func (r remote) Command(ctx context.Context, client, name string, args json.RawMessage) (any, error) {
	c, ok := commands[name]
	if !ok {
		return nil, &mqtt.CommandError{Code: "unavailable", Text: fmt.Sprintf("this program has no command %q over MQTT", name)}
	}
	if c.local && r.commissioning.ends().IsZero() {
		return nil, &mqtt.CommandError{Code: "not_commissioning", Text: notCommissioning}
	}
	wait := utilityWait
	if c.slow {
		wait = max(slowWait, c.wait)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	v, err := c.run(ctx, r, client, args)
	if err != nil {
		return nil, coded(err)
	}
	return v, nil
}

// coded gives an error the code that a script can act on.
func coded(err error) error {
	var denial *config.Denial
	var refusal *panel.Error
	switch {
	case errors.As(err, &denial):
		return &mqtt.CommandError{Code: denial.Code, Text: denial.Text}
	case errors.As(err, &refusal):
		return &mqtt.CommandError{Code: refusal.Code, Text: refusal.Message}
	}
	return err
}

// tellCommands publishes what each command takes.
func (g *gateway) tellCommands() error {
	for name, c := range commands {
		var schema map[string]any
		if err := json.Unmarshal([]byte(c.args), &schema); err != nil {
			panic(fmt.Sprintf("schema of %s: %v", name, err)) // a literal
		}
		schema["$schema"], schema["title"], schema["description"] = "https://json-schema.org/draft/2020-12/schema", name, c.about
		if err := g.mqtt.PublishCommand(name, schema); err != nil {
			return err
		}
	}
	return nil
}

// ScanLine implements panel.Backend.
func (b backend) ScanLine(ctx context.Context, o panel.ScanOrder) (json.RawMessage, error) {
	if b.commissioning.ends().IsZero() {
		return nil, panel.Refused("line %s is not scanned: %s", o.Line, notCommissioning)
	}
	v, err := remote(b).scanLine(ctx, o)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// scanLine asks units of a line that is in use, at its present setting and
// behind its readers.
func (r remote) scanLine(ctx context.Context, o panel.ScanOrder) (any, error) {
	line, ok := r.devices.lines[o.Line]
	if !ok {
		return nil, panel.NotFound("there is no line %q", o.Line)
	}
	if o.Units == "" {
		o.Units = "1-247"
	}
	tcp := false
	cfg := scan.Config{Probe: probeNetwork, Sweep: probeNetwork, Patient: patience * probeNetwork, Full: true}
	for _, l := range r.cfg.Lines {
		if l.ID != o.Line {
			continue
		}
		tcp = l.TCP != ""
		if l.Device != "" {
			cfg.Probe, cfg.Sweep, cfg.Patient = probeSerial, probeSerial, patience*probeSerial
			cfg.Settings = []scan.Setting{{Baud: l.Baud, Framing: l.Framing}}
		}
	}
	var err error
	if cfg.Units, err = unitList(o.Units, tcp); err != nil {
		return nil, panel.Invalid("%v", err)
	}
	cfg.Profiles = r.devices.library.All()
	cfg.Open = func(context.Context, scan.Setting) (scan.Bus, error) { return sharedLine{line}, nil }
	result, err := scan.Run(ctx, cfg)
	if err != nil && len(result.Answers) == 0 {
		return nil, fmt.Errorf("scan %s: %w", o.Line, err)
	}
	out := newScanJSON(o.Line, result)
	if err == nil {
		r.triedScan(o.Line, cfg.Units, out.Found)
	}
	return out, nil
}

// sharedLine is a line that has another owner.
type sharedLine struct{ line *modbus.Line }

// Register implements scan.Bus.
func (s sharedLine) Register(unit uint8, timeout time.Duration) drivers.Register {
	return s.line.Device(modbus.DeviceConfig{Unit: unit, Name: fmt.Sprintf("unit %d", unit), Class: modbus.Scan, Timeout: timeout})
}

// Late implements scan.Bus.
func (s sharedLine) Late(unit uint8) bool { return s.line.Stats().Units[unit].Late > 0 }

// Close implements scan.Bus.
func (sharedLine) Close() error { return nil }
