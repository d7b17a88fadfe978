package config

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Limits of the guard's lists.
const (
	MaxWriters  = 64
	MaxBaseline = 256
)

// Guard says what watches this gateway. It observes: it blocks and kills
// nothing.
type Guard struct {
	Mode      string   `yaml:"mode" doc:"off or observe: findings are put on record, nothing is blocked"`
	Interface string   `yaml:"interface,omitempty" doc:"network interface to watch; left out: the one of the default route"`
	Writers   []string `yaml:"writers,omitempty" doc:"addresses that may write Modbus registers, beside this gateway"`
	Baseline  []string `yaml:"baseline,omitempty" doc:"ordinary destinations: address, prefix or name, with or without port; left out: destinations are not judged"`
	Heartbeat Duration `yaml:"heartbeat" doc:"the guard puts on record that it lives; neighbours notice when it stops"`
	MemoryMB  int      `yaml:"memory_mb" doc:"most memory of its own that the guard's process may have, 48..512; then it is started anew"`
}

func (c *Config) guard(k *checker) {
	g := c.Guard
	if g.Mode != "off" && g.Mode != "observe" {
		k.add("guard.mode", "%q is not off or observe", g.Mode)
	}
	if len(g.Interface) > 15 || strings.ContainsAny(g.Interface, "/ \t") {
		k.add("guard.interface", "%q is no name of an interface", g.Interface)
	}
	if len(g.Writers) > MaxWriters {
		k.add("guard.writers", "%d, at most %d", len(g.Writers), MaxWriters)
	}
	for i, w := range g.Writers[:min(len(g.Writers), MaxWriters)] {
		if _, err := netip.ParseAddr(w); err != nil {
			k.add(fmt.Sprintf("guard.writers[%d]", i), "%q is no IP address", w)
		}
	}
	if len(g.Baseline) > MaxBaseline {
		k.add("guard.baseline", "%d, at most %d", len(g.Baseline), MaxBaseline)
	}
	k.between("guard.heartbeat", g.Heartbeat, sec(10), Duration(24*time.Hour))
	if g.MemoryMB < 48 || g.MemoryMB > 512 {
		k.add("guard.memory_mb", "%d is outside 48..512", g.MemoryMB)
	}
}
