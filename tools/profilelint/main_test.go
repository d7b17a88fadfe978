package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/meter/profile"
)

func TestBuiltinProfiles(t *testing.T) {
	for _, p := range profile.All() {
		for _, c := range lint(p) {
			t.Errorf("%s: %s", p.ID, c)
		}
	}
}

// The page of supported devices is what the profiles say.
func TestDevicesPage(t *testing.T) {
	got, err := os.ReadFile("../../docs/DEVICES.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != table(profile.All()) {
		t.Error("docs/DEVICES.md is out of date: go run ./tools/profilelint -write")
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if want, err := withList(string(readme), profile.All()); err != nil || string(readme) != want {
		t.Errorf("the list of devices in README.md is out of date: go run ./tools/profilelint -write (%v)", err)
	}
}

const acme = `version: 1
id: acme-one
vendor: ACME
model: One
kind: meter
serial: {baud: 9600, framing: 8N1, unit: 1}
function: 4
points:
  - {quantity: voltage, phase: 1, address: 0x10, type: u16, scale: 100}
  - {quantity: power, address: 0x20, type: s32, sign: export}
  - {quantity: import, address: 5, type: s64}
detect:
  - {quantity: voltage, phase: 1, min: 207000, max: 253000}
  - {quantity: power, min: -1000000, max: 1000000}
sources:
  - {name: "list 1.2", confidence: B}
`

const box = `version: 1
id: acme-box
vendor: ACME
model: Box
kind: wallbox
serial: {port: 502, unit: 1}
function: 4
points:
  - {quantity: status, address: 1, type: u16}
  - {quantity: current_limit, address: 2, type: u16, scale: 1000}
writes:
  - {name: current_limit, address: 3, scale: 1000, min: 6000, max: 16000}
states: {1: A, 2: B, 3: C}
detect:
  - {quantity: status, min: 1, max: 3}
  - {quantity: current_limit, min: 0, max: 32000}
sources:
  - {name: "list 1.2", confidence: B}
`

func TestLint(t *testing.T) {
	for name, c := range map[string]struct{ text, old, new, want string }{
		"good":             {acme, "", "", ""},
		"good box":         {box, "", "", ""},
		"slow import":      {acme, "type: s64", "type: s64, slow: true", "import_mwh is slow"},
		"signed import":    {acme, "type: s64", "type: s64, sign: export", "import_mwh has a sign"},
		"small import":     {acme, "type: s64", "type: u16", "import_mwh in one register"},
		"signs differ":     {acme, "points:", "points:\n  - {quantity: power, phase: 1, address: 9, type: s32}", "power_l1_mw has another sign"},
		"gap in lines":     {acme, "points:", "points:\n  - {quantity: voltage, phase: 3, address: 9, type: u16}", "voltage_l3_mv without line 2"},
		"one voltage":      {acme, "voltage, phase: 1", "voltage", "a voltage is of a line"},
		"same rule twice":  {acme, "{quantity: voltage, phase: 1, min: 207000, max: 253000}", "{quantity: power, min: 0, max: 5}", "detection by 1 points"},
		"no voltage rule":  {acme, "{quantity: voltage, phase: 1, min: 207000, max: 253000}", "{quantity: import, min: 0, max: 5}", "not recognised by it"},
		"one value":        {acme, "min: 207000, max: 253000", "min: 230000, max: 230000", "one value"},
		"vendor":           {acme, "vendor: ACME", "vendor: Other", "does not start as the vendor"},
		"lonely A":         {acme, "confidence: B", "confidence: A", "name the second"},
		"silent":           {acme, "kind: meter", "kind: meter\nexperimental: true", "without a note"},
		"states of meter":  {box, "kind: wallbox", "kind: meter", "on a meter"},
		"no current_limit": {box, "{name: current_limit, address: 3, scale: 1000, min: 6000, max: 16000}", "{name: enable, address: 3, values: {0: 0, 1: 1}}", "takes a current_limit"},
		"rare heartbeat":   {box, "max: 16000}\n", "max: 16000, every: 10s}\n  - {name: failsafe_timeout, address: 4, scale: 1000, min: 15000, max: 60000, read: {address: 4}}\nwatchdog: {fed_by: current_limit}\n", "too rare"},
		"rare feed":        {box, "max: 16000}\n", "max: 16000, every: 10s}\nwatchdog: {fed_by: current_limit, timeout: 15s}\n", "too rare"},
		"no interval":      {box, "max: 16000}\n", "max: 16000}\nwatchdog: {fed_by: current_limit, timeout: 15s}\n", "how often"},
		"no watchdog":      {box, "max: 16000}\n", "max: 16000}\n  - {name: failsafe_current, address: 4, scale: 1000, min: 6000, max: 16000}\n", "a failsafe_current without a watchdog"},
		"blind failsafe":   {box, "max: 16000}\n", "max: 16000}\n  - {name: failsafe_timeout, address: 4, scale: 1000, min: 15000, max: 60000}\nwatchdog: {fed_by: request}\n", "has no read"},
		"endless":          {box, "max: 16000}", "max: 16000, nonzero: true}", "nothing pauses it"},
		"perhaps":          {box, "max: 16000}\n", "max: 16000, nonzero: true}\n  - {name: enable, address: 4, values: {0: 0, 1: 1}, optional: true}\n", "nothing pauses it"},
		"5 A":              {box, "min: 6000", "min: 5000", "nothing below 6 A"},
		"phases":           {box, "max: 16000}\n", "max: 16000}\n  - {name: phases, address: 4, values: {1: 0, 2: 1}}\n", "phases takes 1 and 3"},
		"cables":           {box, "detect:", "cables: {1: true}\ndetect:", "cables without a cable"},
		"no vehicle":       {box, "writes:", "  - {quantity: cable, address: 9, type: u16}\ncables: {1: false}\nwrites:", "no cable means"},
		"cables of meter":  {acme, "detect:", "cables: {1: true}\ndetect:", "cables on a meter"},
		"orders of meter":  {acme, "kind: meter", "kind: meter\nwrites: [{name: power_command, address: 4, max: 9}]\norders: {release: [{write: power_command, value: 0}]}", "orders to a battery on a meter"},
		"blind orders":     {acme, "kind: meter", "kind: inverter\nwrites: [{name: power_command, address: 4, max: 9}]\norders: {release: [{write: power_command, value: 0}]}", "no battery_power"},
		"same orders":      {acme, "kind: meter", "kind: inverter\nwrites: [{name: power_command, address: 4, max: 9}]\norders: {charge: [{write: power_command}], release: [{write: power_command, value: 0}]}", "order release cannot be told from charge"},
		"no C":             {box, ", 3: C", "", "no status means C"},
		"slow status":      {box, "address: 1, type: u16", "address: 1, type: u16, slow: true", "read every time"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(c.text, c.old) {
				t.Fatalf("%q is not there", c.old)
			}
			p, err := profile.Parse("x.yaml", []byte(strings.ReplaceAll(c.text, c.old, c.new)))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(lint(p), "\n"); !strings.Contains(got, c.want) || c.want == "" && got != "" {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// A folder of one's own is held to the same rules, and its names.
func TestFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "acme-one.yaml")
	for text, want := range map[string]string{
		acme: "",
		strings.Replace(acme, "type: s64", "type: s64, slow: true", 1):                                   "1 complaints:\nacme-one: import_mwh is slow",
		strings.Replace(acme, "id: acme-one", "id: acme-two", 1):                                         "acme-one.yaml:2: id",
		strings.Replace(acme, "sources:\n  - {name: \"list 1.2\", confidence: B}\n", "sources: []\n", 1): "sources: missing",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run([]string{dir}, false, "", "")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	out := filepath.Join(dir, "page.md")
	readme := filepath.Join(dir, "readme.md")
	for text, want := range map[string]string{"": "want <!-- devices -->", "<!-- /devices --><!-- devices -->": "after it", "a\n<!-- devices -->old<!-- /devices -->\nb\n": ""} {
		if err := os.WriteFile(readme, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run(nil, true, out, readme)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		b, err := os.ReadFile(readme)
		if s := string(b); err != nil || want != "" && s != text || want == "" && (strings.Contains(s, "old") || !strings.HasPrefix(s, "a\n") || !strings.HasSuffix(s, "\nb\n") || !strings.Contains(s, "| `eastron-sdm120` | A")) {
			t.Errorf("%q became %q, %v", text, s, err)
		}
	}
	if b, err := os.ReadFile(out); err != nil || !strings.Contains(string(b), "| Eastron SDM120 Modbus | `eastron-sdm120` |") {
		t.Errorf("%v\n%s", err, b)
	}
}
