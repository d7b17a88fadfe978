package modbus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/joulegate/joulegate/drivers"
)

const debianPython = "/usr/bin/python3"

// startPymodbus starts testdata/slave.py and waits until it serves.
func startPymodbus(t *testing.T, args ...string) {
	t.Helper()
	if err := exec.Command(debianPython, "-c", "import pymodbus.server").Run(); err != nil {
		t.Skip("needs Debian's python3-pymodbus and python3-serial-asyncio")
	}
	cmd := exec.Command(debianPython, append([]string{"testdata/slave.py"}, args...)...)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the slave says %q, %v", line, err)
	}
}

// pump carries bytes between two pseudo-terminals: what the line writes at
// once, what the slave answers late for one answer in ten.
type pump struct {
	near, far *os.File // masters; the line and the slave have the other ends
	timeout   time.Duration
	rnd       *rand.Rand
	late      int // answers held back
}

func (p *pump) run() (stop func()) {
	next := make(chan struct{}, 64)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 512)
		for {
			n, err := p.near.Read(buf)
			if err != nil {
				return
			}
			select {
			case next <- struct{}{}:
			default:
			}
			if _, err := p.far.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		buf := make([]byte, 512)
		for held := false; ; {
			n, err := p.far.Read(buf)
			if err != nil {
				return
			}
			held = !held && p.rnd.IntN(9) == 0
			if held { // every ninth of those that follow one in time: a tenth
				p.late++
				for len(next) > 0 {
					<-next
				}
				if p.rnd.IntN(2) == 0 { // a little late
					time.Sleep(p.timeout + time.Duration(p.rnd.IntN(8))*time.Millisecond)
				} else { // just when the next request is on its way
					select {
					case <-next:
					case <-time.After(2 * p.timeout):
					}
				}
			}
			if _, err := p.near.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	return func() {
		past := time.Unix(1, 0)
		p.near.SetDeadline(past)
		p.far.SetDeadline(past)
		wg.Wait()
	}
}

// One answer in ten comes late, from an independent slave, and not one value
// of 10,000 is another register's. Several lines share the work.
func TestLateAnswersOfPymodbus(t *testing.T) {
	t.Parallel()
	const lines = 4
	want := 10_000
	if testing.Short() {
		want = 800
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range lines {
		near, line := openPTY(t)
		far, slave := openPTY(t)
		hold := holdOpen(t, slave)
		defer hold.Close()
		startPymodbus(t, "rtu", slave, "115200")
		wg.Go(func() { lateAnswers(t, near, far, line, uint64(i), want/lines) })
	}
}

func lateAnswers(t *testing.T, near, far *os.File, line string, seed uint64, want int) {
	const timeout = 12 * time.Millisecond
	p := &pump{near: near, far: far, timeout: timeout, rnd: rand.New(rand.NewPCG(seed, 1))}
	l, err := New(Config{Device: line, Baud: 115200, Timeout: timeout})
	if err != nil {
		t.Error(err)
		return
	}
	defer running(l)()
	stop := p.run()
	var reads, wrong, failed atomic.Int64
	var wg sync.WaitGroup
	for unit := uint8(1); unit <= 3; unit++ {
		dev := l.Device(DeviceConfig{Unit: unit, Name: strconv.Itoa(int(unit)), MaxBlock: 40})
		rnd := rand.New(rand.NewPCG(seed, uint64(unit)))
		wg.Go(func() {
			for reads.Load() < int64(want) && wrong.Load() < 10 {
				fn := drivers.HoldingRegisters + drivers.Function(rnd.IntN(2))
				k := key{byte(fn), uint16(rnd.IntN(60000)), []uint16{1, 2, 2, 2, 2, 20}[rnd.IntN(6)]}
				data, err := dev.ReadRegisters(t.Context(), fn, k.addr, k.count)
				if err != nil {
					failed.Add(1)
					if errors.Is(err, ErrBackoff) {
						time.Sleep(20 * time.Millisecond)
					}
					continue
				}
				reads.Add(1)
				if !slices.Equal(data, registers(addressed).data(unit, k)) {
					wrong.Add(1)
					t.Errorf("unit %d %+v: % x", unit, k, data)
				}
			}
		})
	}
	wg.Wait()
	stop()
	t.Logf("%d reads, %d wrong, %d failed, %d answers late; %+v", reads.Load(), wrong.Load(), failed.Load(), p.late, l.Stats())
	if p.late < want/20 {
		t.Errorf("only %d answers were late", p.late)
	}
}

// holdOpen keeps a pseudo-terminal's slave side open until its user has
// opened it: a master without one reads an error.
func holdOpen(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Every way to a slave reads the same registers and writes them.
func TestPymodbus(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"rtu", "tcp", "rtutcp"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cfg := Config{Timeout: 5 * time.Second, Logger: testLog(t)}
			switch kind {
			case "rtu":
				near, line := openPTY(t)
				far, slave := openPTY(t)
				hold := holdOpen(t, slave)
				defer hold.Close()
				startPymodbus(t, kind, slave, "19200")
				cfg.Device, cfg.Baud, cfg.Framing, cfg.Timeout = line, 19200, "8E1", 300*time.Millisecond
				defer splice(near, far)()
			default:
				port := freePort(t)
				startPymodbus(t, kind, strconv.Itoa(port))
				addr := fmt.Sprintf("127.0.0.1:%d", port)
				if kind == "tcp" {
					cfg.TCP = addr
				} else {
					cfg.RTUTCP, cfg.Timeout = addr, 300*time.Millisecond
				}
			}
			l, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer running(l)()
			var wg sync.WaitGroup
			for unit := uint8(1); unit <= 3; unit++ {
				dev := l.Device(DeviceConfig{Unit: unit})
				wg.Go(func() {
					for _, k := range []key{{3, 0, 1}, {4, 0, 125}, {3, 40000, 2}, {4, 65411, 125}} {
						data, err := dev.ReadRegisters(t.Context(), drivers.Function(k.fn), k.addr, k.count)
						if err != nil {
							t.Error(err)
						} else if !slices.Equal(data, registers(addressed).data(unit, k)) {
							t.Errorf("unit %d %+v: % x", unit, k, data)
						}
					}
				})
			}
			wg.Wait()
			dev := l.Device(DeviceConfig{Unit: 2, Name: "wallbox", Class: Safety})
			writePeer(t, dev)
			if _, err := dev.ReadRegisters(context.Background(), 3, 65535, 1); err != nil {
				t.Error(err)
			}
		})
	}
}

// splice carries bytes between two masters until stop is called.
func splice(a, b *os.File) (stop func()) {
	var wg sync.WaitGroup
	for _, d := range [][2]*os.File{{a, b}, {b, a}} {
		wg.Go(func() {
			buf := make([]byte, 512)
			for {
				n, err := d[0].Read(buf)
				if err != nil {
					return
				}
				if _, err := d[1].Write(buf[:n]); err != nil {
					return
				}
			}
		})
	}
	return func() {
		past := time.Unix(1, 0)
		a.SetDeadline(past)
		b.SetDeadline(past)
		wg.Wait()
	}
}
