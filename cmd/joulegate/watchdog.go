package main

import (
	"fmt"
	"log/slog"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/board/watchdog"
	"github.com/joulegate/joulegate/drivers/gpio"
)

// newWatchdog connects those who watch from outside with the only proof they
// accept: verified turns of the control loop.
func newWatchdog(cfg config.Config, p *pins, loop *station.Station, log *slog.Logger) (*watchdog.Watchdog, error) {
	w := watchdog.Config{
		Probes:   []watchdog.Probe{{Name: "control loop", Progress: loop.Progress}},
		Patience: cfg.Timing.Watchdog.D(), Log: log,
	}
	if d := cfg.Watchdog.Device; d != "" {
		w.Open = watchdog.Device(d, cfg.Watchdog.Timeout.D())
	}
	if name := cfg.Watchdog.Heartbeat; name != "" {
		pin, err := openPin(p, name, gpio.NewRelay)
		if err != nil {
			return nil, fmt.Errorf("watchdog: heartbeat: %w", err)
		}
		w.Heartbeat = pin
	}
	return watchdog.New(w)
}
