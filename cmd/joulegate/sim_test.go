package main

import (
	"strings"
	"testing"
)

// A person chooses what stands at the wallbox and what goes wrong, and reads
// it all the same.
func TestSimCarAndFaults(t *testing.T) {
	for car, want := range map[string]string{"A": `"status_code":1`, "B": `"status_code":2`, "F": `"status_code":5`} {
		_, addr, _ := strings.Cut(startSim(t, "--profile", "simpleevse", "--listen", "tcp://127.0.0.1:0", "--car", car, "--fault", "block-limit:2,single-client"), "://")
		out, err := runMeter(t, "meter", "read", "--profile", "simpleevse", "--tcp", addr, "--json", "--timeout", "25s")
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("car %s: %v: %s", car, err, out)
		}
	}
	for _, args := range [][]string{
		{"--car", "G"},
		{"--car", "charging"},
		{"--fault", "block-limit:0"},
		{"--fault", "single-client:2"},
		{"--fault", "unplug"},
	} {
		out, err := runMeter(t, append([]string{"sim", "meter", "--profile", "simpleevse", "--listen", "tcp://127.0.0.1:0"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), args[0][2:]) && !strings.Contains(err.Error(), "A..F") {
			t.Errorf("%v: %v %s", args, err, out)
		}
	}
}
