package modbus

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gm "github.com/goburrow/modbus"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter/profile"
)

// The benchmarks poll a slave that answers as fast as the standard allows, on
// a pseudo-terminal whose far end keeps the time of a wire. They report polls
// per second and the percentage of the wire limit: (8 + 5 + 2N) characters
// and two silences of 3.5 characters for N registers.

func BenchmarkRTUPaced9600(b *testing.B)   { paced(b, 9600) }
func BenchmarkRTUPaced19200(b *testing.B)  { paced(b, 19200) }
func BenchmarkRTUPaced115200(b *testing.B) { paced(b, 115200) }

func paced(b *testing.B, baud int) {
	for _, n := range []uint16{2, 20, 80} {
		l := newLine(Config{Device: "wire", Baud: baud, Timeout: 500 * time.Millisecond}, nil)
		limit := (l.wire(8+5+2*int(n)) + 2*l.gap()).Seconds()
		measure := func(b *testing.B, read func(addr uint16) error) {
			if err := read(0); err != nil {
				b.Fatal(err)
			}
			start := time.Now()
			polls := 0
			for b.Loop() {
				polls++
				if err := read(uint16(polls % 1000)); err != nil {
					b.Fatal(err)
				}
			}
			rate := float64(polls) / time.Since(start).Seconds()
			b.ReportMetric(rate, "polls/s")
			b.ReportMetric(100*rate*limit, "%wire")
		}
		b.Run(fmt.Sprintf("N=%d/line", n), func(b *testing.B) {
			name := pacedSlave(b, l)
			l, err := New(Config{Device: name, Baud: baud, Timeout: 500 * time.Millisecond})
			if err != nil {
				b.Fatal(err)
			}
			defer running(l)()
			dev := l.Device(DeviceConfig{Unit: 1})
			measure(b, func(addr uint16) error {
				_, err := dev.ReadRegisters(b.Context(), drivers.InputRegisters, addr, n)
				return err
			})
		})
		b.Run(fmt.Sprintf("N=%d/goburrow", n), func(b *testing.B) {
			_, c := plain(b, l, baud)
			measure(b, func(addr uint16) error { _, err := c.ReadInputRegisters(addr, n); return err })
		})
	}
}

// BenchmarkSnapshots reads everything that three SDM630 on one bus at 9600
// baud have, as a gateway does: what changes every time, energy per line and
// sums every tenth time; "all" reads those every time, too. It reports
// complete snapshots of all three per second.
func BenchmarkSnapshots(b *testing.B) {
	const baud = 9600
	p, err := profile.Get("eastron-sdm630")
	if err != nil {
		b.Fatal(err)
	}
	units := []uint8{1, 2, 3}
	wire := newLine(Config{Device: "wire", Baud: baud, Timeout: 500 * time.Millisecond}, nil)
	for _, every := range []int{10, 1} {
		measure := func(b *testing.B, read func(unit uint8, k profile.Block) error) {
			blocks := p.Blocks(0)
			if err := read(1, blocks[0]); err != nil { // the line listens first
				b.Fatal(err)
			}
			rounds, begin := 0, time.Now()
			for b.Loop() {
				for range 10 {
					for _, u := range units {
						for _, k := range blocks {
							if k.Slow && rounds%every != 0 {
								continue
							}
							if err := read(u, k); err != nil {
								b.Fatal(err)
							}
						}
					}
					rounds++
				}
			}
			b.ReportMetric(float64(rounds)/time.Since(begin).Seconds(), "Hz")
		}
		name := map[int]string{10: "polled", 1: "all"}[every]
		b.Run(name+"/line", func(b *testing.B) {
			l, err := New(Config{Device: pacedSlave(b, wire), Baud: baud})
			if err != nil {
				b.Fatal(err)
			}
			defer running(l)()
			var devs [4]drivers.Register
			for _, u := range units {
				devs[u] = l.Device(DeviceConfig{Unit: u, Class: Fast})
			}
			measure(b, func(unit uint8, k profile.Block) error {
				_, err := devs[unit].ReadRegisters(b.Context(), k.Function, k.Address, k.Count)
				return err
			})
		})
		b.Run(name+"/goburrow", func(b *testing.B) {
			h, c := plain(b, wire, baud)
			measure(b, func(unit uint8, k profile.Block) error {
				h.SlaveId = unit
				_, err := c.ReadInputRegisters(k.Address, k.Count)
				return err
			})
		})
	}
}

// BenchmarkDeadSlave polls two meters at 9600 baud beside a third one that is
// dead, and reports which part of the polls of the two is lost by it.
func BenchmarkDeadSlave(b *testing.B) {
	const (
		baud  = 9600
		dead  = 2
		alone = 4 * time.Second
		span  = 31 * time.Second // two probes of the dead slave
	)
	wire := newLine(Config{Device: "wire", Baud: baud, Timeout: 500 * time.Millisecond}, nil)
	lost := func(b *testing.B, before, beside float64) { b.ReportMetric(100*(1-beside/before), "%lost") }
	b.Run("line", func(b *testing.B) {
		l, err := New(Config{Device: pacedSlave(b, wire, dead), Baud: baud})
		if err != nil {
			b.Fatal(err)
		}
		defer running(l)()
		var polls atomic.Int64
		poll := func(ctx context.Context, unit uint8) {
			dev := l.Device(DeviceConfig{Unit: unit, Class: Fast})
			for ctx.Err() == nil {
				if _, err := dev.ReadRegisters(ctx, drivers.InputRegisters, 0, 20); err == nil {
					polls.Add(1)
				} else {
					select { // as a reader does
					case <-time.After(time.Second):
					case <-ctx.Done():
					}
				}
			}
		}
		// The first seconds, in which the dead one has its three time-outs,
		// are not measured.
		rate := func(span time.Duration, units ...uint8) float64 {
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			for _, u := range units {
				wg.Go(func() { poll(ctx, u) })
			}
			time.Sleep(4 * time.Second)
			before, begin := polls.Load(), time.Now()
			time.Sleep(span)
			r := float64(polls.Load()-before) / time.Since(begin).Seconds()
			cancel()
			wg.Wait()
			return r
		}
		for b.Loop() {
			lost(b, rate(alone, 1, 3), rate(span, 1, dead, 3))
		}
	})
	b.Run("goburrow", func(b *testing.B) {
		h, c := plain(b, wire, baud, dead)
		h.Timeout = 500 * time.Millisecond
		rate := func(span time.Duration, units ...uint8) float64 {
			polls, begin := 0, time.Now()
			for time.Since(begin) < span {
				for _, u := range units {
					h.SlaveId = u
					if _, err := c.ReadInputRegisters(0, 20); err == nil {
						polls++
					}
				}
			}
			return float64(polls) / time.Since(begin).Seconds()
		}
		for b.Loop() {
			lost(b, rate(alone, 1, 3), rate(2*alone, 1, dead, 3))
		}
	})
}

// plain is a goburrow client as its documentation shows it.
func plain(b *testing.B, wire *Line, baud int, dead ...byte) (*gm.RTUClientHandler, gm.Client) {
	h := gm.NewRTUClientHandler(pacedSlave(b, wire, dead...))
	h.BaudRate, h.DataBits, h.Parity, h.StopBits, h.SlaveId, h.Timeout = baud, 8, "N", 1, 1, 2*time.Second
	b.Cleanup(func() { _ = h.Close() })
	return h, gm.NewClient(h)
}

// pacedSlave serves the registers of all units but the dead ones on a
// pseudo-terminal with the wire times of l, whose name it returns.
func pacedSlave(b *testing.B, l *Line, dead ...byte) string {
	master, name := openPTY(b)
	// A master whose other end nobody has open reads an error.
	hold, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { hold.Close() })
	go func() {
		buf, have := make([]byte, 256), 0
		for {
			n, err := master.Read(buf[have:])
			if err != nil {
				return
			}
			start := time.Now()
			if have += n; have < 8 {
				continue
			}
			have = 0
			if slices.Contains(dead, buf[0]) {
				continue
			}
			reply := registers(addressed).reply(buf[:8])
			until(start.Add(l.wire(8) + l.gap() + l.wire(len(reply))))
			if _, err := master.Write(reply); err != nil {
				return
			}
		}
	}()
	return name
}

// until sleeps, and spins at the end, which a sleep overshoots.
func until(t time.Time) {
	for {
		d := time.Until(t) - 100*time.Microsecond
		if d <= 0 {
			break
		}
		pause(min(d, time.Second))
	}
	for time.Now().Before(t) {
		runtime.Gosched()
	}
}
