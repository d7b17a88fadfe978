package modbus

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	gm "github.com/goburrow/modbus"

	"github.com/joulegate/joulegate/drivers"
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
			h := gm.NewRTUClientHandler(pacedSlave(b, l))
			h.BaudRate, h.DataBits, h.Parity, h.StopBits, h.SlaveId, h.Timeout = baud, 8, "N", 1, 1, 2*time.Second
			defer h.Close()
			c := gm.NewClient(h)
			measure(b, func(addr uint16) error { _, err := c.ReadInputRegisters(addr, n); return err })
		})
	}
}

// pacedSlave serves the registers of unit 1 on a pseudo-terminal with the
// wire times of l, whose name it returns.
func pacedSlave(b *testing.B, l *Line) string {
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
	time.Sleep(time.Until(t) - 200*time.Microsecond)
	for time.Now().Before(t) {
		runtime.Gosched()
	}
}
