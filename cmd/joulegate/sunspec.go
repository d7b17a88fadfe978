package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/meter/profile/sunspec"
)

func newMeterSunSpecCmd() *cobra.Command {
	var (
		line   lineFlags
		models string
		only   []uint
	)
	cmd := &cobra.Command{
		Use:   "sunspec (--tcp HOST:PORT | --rtu DEVICE | --rtutcp HOST:PORT)",
		Short: "Print everything that a SunSpec device says about itself",
		Long: `Print everything that a SunSpec device says about itself: each model of its
chain with all points. Models that are not known are named and stepped over;
the official files of the SunSpec Alliance in a folder make them known.`,
		Example: `  joulegate meter sunspec --tcp 192.0.2.7:502 --unit 126
  joulegate meter sunspec --tcp 192.0.2.7:1502 --models /etc/joulegate/sunspec --model 160 --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if line.profile == "" {
				line.profile = "sunspec-inverter"
			}
			p, lineCfg, device, err := line.resolve(cmd)
			if err != nil {
				return err
			}
			if p.SunSpec == nil {
				return usageError{fmt.Errorf("--profile %s: is not a SunSpec profile", p.ID)}
			}
			catalog := sunspec.Builtin()
			if models != "" {
				if info, err := os.Stat(models); err != nil || !info.IsDir() {
					return usageError{fmt.Errorf("--models %s: want a folder", models)}
				}
				// A wrong file costs its model, not the command.
				if catalog, err = sunspec.Load(os.DirFS(models)); err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "warning: --models %s: %v\n", models, err)
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), max(line.timeout, 30*time.Second))
			defer cancel()
			device.Name = fmt.Sprintf("SunSpec unit %d", device.Unit)
			out, err := sunspecRead(ctx, lineCfg, device, p.SunSpec.Bases, catalog, only)
			if err != nil {
				return fmt.Errorf("%s on %s: %w", device.Name, lineCfg.Name(), err)
			}
			return emit(cmd, out, out.print)
		},
	}
	line.add(cmd)
	cmd.Flags().StringVar(&models, "models", "", "`FOLDER` with official model files, model_ID.json")
	cmd.Flags().UintSliceVar(&only, "model", nil, "only the models `ID`,...")
	return cmd
}

// sunspecJSON is a device as scripts see it.
type sunspecJSON struct {
	Base         uint16             `json:"base"`
	Manufacturer string             `json:"manufacturer"`
	Model        string             `json:"model"`
	Version      string             `json:"version"`
	Serial       string             `json:"serial"`
	Models       []sunspecModelJSON `json:"models"`
}

type sunspecModelJSON struct {
	ID      uint16             `json:"id"`
	Name    string             `json:"name,omitempty"`
	Address uint16             `json:"address"`
	Length  uint16             `json:"length"`
	Known   bool               `json:"known"`
	Error   string             `json:"error,omitempty"`
	Points  []sunspecPointJSON `json:"points,omitempty"`
}

type sunspecPointJSON struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	Unit  string `json:"unit,omitempty"`
}

// sunspecRead walks a device and reads its models.
func sunspecRead(ctx context.Context, lineCfg modbus.Config, device modbus.DeviceConfig, bases []uint16, catalog *sunspec.Catalog, only []uint) (*sunspecJSON, error) {
	line, err := modbus.New(lineCfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = line.Run(ctx) // what fails, fails the reads
	}()
	defer func() { cancel(); <-ended }()
	reg := line.Device(device)

	w := profile.NewWalk(bases)
	for {
		fn, addr, count, done := w.Next()
		if done {
			break
		}
		data, err := reg.ReadRegisters(ctx, fn, addr, count)
		if err != nil && !answersNo(err) {
			return nil, err
		}
		if err := w.Feed(data); err != nil {
			return nil, err
		}
	}
	chain, err := w.Chain()
	if err != nil {
		return nil, err
	}
	out := &sunspecJSON{Base: chain.Base, Manufacturer: chain.Manufacturer, Model: chain.Model, Version: chain.Version, Serial: chain.Serial}
	for _, c := range chain.Models {
		if len(only) > 0 && !slices.Contains(only, uint(c.ID)) {
			continue
		}
		m := sunspecModelJSON{ID: c.ID, Address: c.Address, Length: c.Length}
		if known, ok := catalog.Model(c.ID); ok {
			m.Name, m.Known = known.Name, true
			if m.Points, err = sunspecPoints(ctx, reg, known, c); err != nil {
				if !answersNo(err) && ctx.Err() != nil {
					return nil, err
				}
				m.Error = err.Error() // one model less, the others go on
			}
		}
		out.Models = append(out.Models, m)
	}
	return out, nil
}

// answersNo reports whether the device answered with an exception.
func answersNo(err error) bool {
	var x interface{ Exception() (uint8, bool) }
	if !errors.As(err, &x) {
		return false
	}
	_, ok := x.Exception()
	return ok
}

// sunspecPoints reads one model block, in as many reads as it takes.
func sunspecPoints(ctx context.Context, reg drivers.Register, m *sunspec.Model, c profile.ChainModel) ([]sunspecPointJSON, error) {
	var block []byte
	for left, addr := int(c.Length)+2, int(c.Address); left > 0 && addr < 1<<16; {
		n := min(left, profile.MaxBlock)
		data, err := reg.ReadRegisters(ctx, drivers.HoldingRegisters, uint16(addr), uint16(n))
		if err != nil {
			return nil, err
		}
		block, left, addr = append(block, data...), left-n, addr+n
	}
	values, err := m.Decode(block)
	if err != nil {
		return nil, err
	}
	var out []sunspecPointJSON
	for _, v := range values {
		if v.Path != "ID" && v.Path != "L" {
			out = append(out, sunspecPointJSON{v.Path, v.String(), v.Point.Unit})
		}
	}
	return out, nil
}

func (s *sunspecJSON) print(w io.Writer) error {
	rows := [][]string{{s.Manufacturer + " " + s.Model, "version " + s.Version, "serial " + s.Serial}}
	for _, m := range s.Models {
		state := m.Error
		if !m.Known {
			state = "not known"
		}
		rows = append(rows, []string{"model " + strconv.Itoa(int(m.ID)) + " " + m.Name, "register " + strconv.Itoa(int(m.Address)), state})
		for _, p := range m.Points {
			rows = append(rows, []string{"  " + p.Name, p.Value, p.Unit})
		}
	}
	return table(w, rows)
}
