package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a simulated inverter produces is in its models; a model that only a
// file knows is read with the file, and a wrong file costs nothing.
func TestMeterSunSpec(t *testing.T) {
	_, addr, _ := strings.Cut(startSim(t, "--profile", "sunspec-meter", "--model", "213", "--listen", "tcp://127.0.0.1:0", "--set", "power_mw=-3456500,import_mwh=1000"), "://")
	read := func(args ...string) (sunspecJSON, string) {
		t.Helper()
		out, err := runMeter(t, append([]string{"meter", "sunspec", "--tcp", addr, "--json"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		var dev sunspecJSON
		if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &dev); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return dev, out
	}
	dev, out := read()
	if dev.Manufacturer != "joulegate" || dev.Serial != "SIM-1" || len(dev.Models) != 2 || dev.Models[1].ID != 213 || !dev.Models[1].Known {
		t.Errorf("%s", out)
	}
	points := map[string]string{}
	for _, p := range dev.Models[1].Points {
		points[p.Name] = p.Value + p.Unit
	}
	if points["W"] != "-3456.5W" || points["TotWhImp"] != "1Wh" {
		t.Errorf("%v", points)
	}

	dir := t.TempDir()
	for name, text := range map[string]string{
		"model_213.json": `{"id": 213, "group": {"name": "own", "points": [{"name": "ID", "type": "uint16", "size": 1}, {"name": "L", "type": "uint16", "size": 1}, {"name": "Amps", "type": "float32", "size": 2, "units": "A"}]}}`,
		"model_9.json":   "{",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dev, out = read("--models", dir, "--model", "213")
	if len(dev.Models) != 1 || dev.Models[0].Name != "own" || dev.Models[0].Points[0].Name != "Amps" || !strings.Contains(out, "warning: --models") || !strings.Contains(out, "model_9.json") {
		t.Errorf("%s", out)
	}

	if out, err := runMeter(t, "meter", "sunspec", "--tcp", addr); err != nil || !strings.Contains(out, "-3456.5") || !strings.Contains(out, "model 213") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, c := range []struct{ args, want string }{{"meter sunspec --tcp 127.0.0.1:1 --profile eastron-sdm630", "not a SunSpec profile"}, {"meter sunspec --tcp 127.0.0.1:1 --models /nope", "want a folder"}} {
		var usage usageError
		if _, err := runMeter(t, strings.Fields(c.args)...); !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
	_, plain, _ := strings.Cut(startSim(t, "--profile", "keba-p30", "--listen", "tcp://127.0.0.1:0"), "://")
	if _, err := runMeter(t, "meter", "sunspec", "--tcp", plain, "--unit", "255"); err == nil || !strings.Contains(err.Error(), "SunS") {
		t.Errorf("a device without SunSpec: %v", err)
	}
}
