package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/drivers"
)

const ms = time.Millisecond

// truth gives every register a value that names it, except that every fourth
// address reads zero, so that different registers share bytes, and some
// change over time.
func truth(unit, fn byte, addr uint16) uint16 {
	if addr%4 == 0 {
		return 0
	}
	return addressed(unit, fn, addr)
}

// TestWrongValueImpossible throws every mixture of faults at the line, within
// the two properties it relies on (answers in order, copies within a time-out),
// and looks at each value that comes out.
func TestWrongValueImpossible(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		faulty := rapid.IntRange(5, 90).Draw(rt, "percent of faulty answers")
		sizes := rapid.SampledFrom([][]uint16{{1}, {2}, {1, 2}, {2, 10}, {1, 2, 3, 40}}).Draw(rt, "block sizes")
		maxBlock := rapid.SampledFrom([]int{2, 10, 125}).Draw(rt, "largest block")
		picky := rapid.Bool().Draw(rt, "refuses other sizes and functions")
		silences := rapid.Bool().Draw(rt, "is silent for long at times")
		cfg := Config{}
		if rapid.Bool().Draw(rt, "serial") {
			cfg = Config{Device: "wire", Baud: 115200}
		}
		if int(slices.Max(sizes)) > maxBlock {
			maxBlock = int(slices.Max(sizes))
		}
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			const timeout = 50 * ms
			var last time.Duration // the slave's output keeps its order
			start := time.Now()
			var held []byte
			var mute time.Duration // the slave hears nothing until then
			var mu sync.Mutex
			const commands = 0xC0           // registers from here on take writes
			written := map[[2]byte]uint16{} // unit and register: what the slave last obeyed
			has := registers(func(unit, fn byte, addr uint16) uint16 {
				if fn == fnReadHolding && addr >= commands {
					return written[[2]byte{unit, byte(addr)}]
				}
				return truth(unit, fn, addr)
			})
			script := func(req []byte) []sending {
				now := time.Since(start)
				if silences && now >= mute && rnd.IntN(100) == 0 {
					mute = now + time.Duration(rnd.IntN(30_000))*ms
				}
				if now < mute {
					return nil
				}
				at := func(d time.Duration, data []byte) sending {
					last = max(last, now+d)
					return sending{last - now, data}
				}
				turn := time.Duration(1+rnd.IntN(5)) * ms
				var out []sending
				if held != nil { // the answer that was kept back comes just before this one
					out = append(out, at(0, held))
					held = nil
				}
				var good []byte // as it is once the request has been obeyed
				fault := -1
				if rnd.IntN(100) < faulty {
					fault = rnd.IntN(12)
				}
				if fault != 8 && fault != 11 { // not refused, not unheard
					mu.Lock()
					switch {
					case req[1] == fnWriteOne:
						written[[2]byte{req[0], req[3]}] = binary.BigEndian.Uint16(req[4:])
					case req[1] == fnWriteMany:
						for i := range req[5] {
							written[[2]byte{req[0], req[3] + i}] = binary.BigEndian.Uint16(req[7+2*i:])
						}
					}
					mu.Unlock()
				}
				mu.Lock()
				good = has.reply(req)
				mu.Unlock()
				if k := keyOf(req[1:]); picky && k.read() && (k.fn < fnReadHolding || !slices.Contains(sizes, k.count)) {
					good = seal(req[0], req[1]|exceptionBit, 2)
				}
				switch fault {
				case -1:
					return append(out, at(turn, good))
				case 0: // late
					return append(out, at(timeout+time.Duration(rnd.IntN(200))*ms, good))
				case 1: // later than any patience
					return append(out, at(time.Duration(rnd.IntN(3000))*ms, good))
				case 2: // when the next request is on its way
					held = good
					return out
				case 3: // again, at once or within a time-out
					out = append(out, at(turn, good))
					return append(out, at(turn+time.Duration(rnd.Int64N(int64(timeout))), good))
				case 4: // checksum
					bad := slices.Clone(good)
					bad[rnd.IntN(len(bad))] ^= 1 << rnd.IntN(8)
					return append(out, at(turn, bad))
				case 5: // truncated
					return append(out, at(turn, good[:rnd.IntN(len(good))]))
				case 6: // in two pieces
					i := rnd.IntN(len(good))
					out = append(out, at(turn, good[:i]))
					return append(out, at(turn+time.Duration(rnd.IntN(30))*ms, good[i:]))
				case 7: // somebody else's
					body := slices.Clone(good[:len(good)-2])
					body[0] ^= 8
					out = append(out, at(turn, seal(body...)))
					return append(out, at(turn+ms, good))
				case 8: // exception, in two pieces
					x := seal(req[0], req[1]|exceptionBit, byte(1+rnd.IntN(6)))
					out = append(out, at(turn, x[:2]))
					return append(out, at(turn+ms, x[2:]))
				case 9: // echo before the answer
					out = append(out, at(0, req))
					return append(out, at(turn, good))
				case 10: // late and again
					d := timeout + time.Duration(rnd.IntN(100))*ms
					out = append(out, at(d, good))
					return append(out, at(d+time.Duration(rnd.Int64N(int64(timeout))), good))
				}
				return out // silence
			}
			var wire []string // the end of the conversation, for a failure
			trace := func(tr Trace) {
				arrow := "<-"
				if tr.Sent {
					arrow = "->"
				}
				wire = append(wire[max(0, len(wire)-40):], fmt.Sprintf("%v %s % x", tr.At.Sub(start), arrow, tr.Data))
			}
			cfg := cfg
			cfg.Timeout, cfg.Rand, cfg.Trace = timeout, rand.New(rand.NewPCG(seed, 2)), trace
			l, _, stop := pipeLine(cfg, script)
			defer stop()
			devices := []drivers.Writer{
				l.Device(DeviceConfig{Unit: 1, Name: "a", MaxBlock: maxBlock}),
				l.Device(DeviceConfig{Unit: 2, Name: "b", MaxBlock: maxBlock}),
			}
			right, chance := 0, rand.New(rand.NewPCG(seed, 3)) // the slave has its own
			for range 150 {
				i := chance.IntN(2)
				if chance.IntN(5) == 0 {
					values := []uint16{uint16(chance.IntN(2)), uint16(chance.IntN(2))}[:1+chance.IntN(2)]
					w := drivers.Write{Address: commands + uint16(chance.IntN(3)), Values: values, Verify: chance.IntN(2) == 0}
					if chance.IntN(2) == 0 {
						w.Function = drivers.WriteMultiple
					}
					if err := devices[i].Write(context.Background(), w); err == nil {
						for j, v := range values {
							mu.Lock()
							got := written[[2]byte{byte(i + 1), byte(w.Address) + byte(j)}]
							mu.Unlock()
							if got != v {
								t.Fatalf("unit %d register %d: write of %d confirmed, the slave has %d\n%s", i+1, int(w.Address)+j, v, got, strings.Join(wire, "\n"))
							}
						}
					}
				}
				fn := drivers.HoldingRegisters + drivers.Function(chance.IntN(2))
				addr, count := uint16(chance.IntN(24)), sizes[chance.IntN(len(sizes))]
				data, err := devices[i].ReadRegisters(context.Background(), fn, addr, count)
				if err == nil {
					want := registers(truth).data(byte(i+1), key{byte(fn), addr, count})
					if !slices.Equal(data, want) {
						t.Fatalf("unit %d function %d registers %d+%d: got % x, want % x\n%s", i+1, fn, addr, count, data, want, strings.Join(wire, "\n"))
					}
					right++
				} else if errors.Is(err, ErrBackoff) {
					time.Sleep(time.Second)
				}
				if chance.IntN(4) == 0 {
					time.Sleep(time.Duration(chance.IntN(200)) * ms)
				}
			}
			if faulty < 30 && right == 0 && !silences {
				t.Fatalf("no value in 150 reads with %d %% faults: %+v", faulty, l.Stats())
			}
		})
	})
}

// A late answer as long as the next one is what makes other clients bill
// export as import.
func TestLateAnswerIsNotTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := true
		l, s, stop := pipeLine(Config{}, func(req []byte) []sending {
			d := ms
			if first {
				first, d = false, 130*ms // 30 ms after the time-out
			}
			return []sending{{d, registers(addressed).reply(req)}}
		})
		defer stop()
		dev := l.Device(DeviceConfig{Unit: 1, Name: "grid"})
		if _, err := dev.ReadRegisters(t.Context(), 4, 0x48, 2); !errors.Is(err, ErrTimeout) {
			t.Fatalf("first read: %v, want a time-out", err)
		}
		for addr := uint16(0x4a); addr < 0x60; addr += 2 {
			data, err := dev.ReadRegisters(t.Context(), 4, addr, 2)
			if err != nil {
				t.Fatal(err)
			}
			if got := binary.BigEndian.Uint16(data); got != addressed(1, 4, addr) {
				t.Fatalf("register %#x: got the value %#x, want %#x", addr, got, addressed(1, 4, addr))
			}
		}
		st := l.Stats().Units[1]
		if st.Timeouts != 1 || st.Late != 1 || st.Resyncs != 1 {
			t.Errorf("time-outs, late, resyncs: %d, %d, %d, want 1 each", st.Timeouts, st.Late, st.Resyncs)
		}
		if fence := keyOf(s.requests()[1][1:]); fence.count == 2 {
			t.Errorf("the read after the time-out asks for %d registers like the one that may be late", fence.count)
		}
	})
}

// A copy of an answer takes the place of the next answer to the same request,
// whose value is right either way. The answer proper, with a new value by now,
// must not become the next register's.
func TestCopyLeavesADoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		l, _, stop := pipeLine(Config{}, func(req []byte) []sending {
			n++
			good := registers(addressed).reply(req)
			switch n {
			case 1:
				return []sending{{ms, good}, {2 * ms, good}}
			case 2:
				return []sending{{10 * ms, seal(1, 4, 2, 0x77, 0x77)}}
			}
			return []sending{{ms, good}}
		})
		defer stop()
		dev := l.Device(DeviceConfig{Unit: 1, Name: "grid"})
		for i, addr := range []uint16{5, 5, 6, 7} {
			data, err := dev.ReadRegisters(t.Context(), 4, addr, 1)
			if err != nil {
				t.Fatalf("read %d: %v", i, err)
			}
			if got := binary.BigEndian.Uint16(data); got != addressed(1, 4, addr) {
				t.Errorf("read %d: register %d: got %#x, want %#x", i, addr, got, addressed(1, 4, addr))
			}
		}
		if n := l.Stats().Units[1].Resyncs; n != 1 {
			t.Errorf("%d resyncs, want 1", n)
		}
	})
}

// Each fault alone gives an error that says so, or none, and the line is in
// order again afterwards.
func TestFaults(t *testing.T) {
	good := registers(addressed).reply
	for _, tt := range []struct {
		name  string
		fault func(req []byte) []sending
		want  error // nil: survived
		say   string
		check func(UnitStats) uint64
	}{
		{"silence", func([]byte) []sending { return nil }, ErrTimeout, "silence for 100ms, expected 9 bytes", func(s UnitStats) uint64 { return s.Timeouts }},
		{"checksum", func(req []byte) []sending {
			b := good(req)
			b[len(b)-1] ^= 0x40
			return []sending{{ms, b}}
		}, ErrFrame, "expected unit 1, function 4, 9 bytes", func(s UnitStats) uint64 { return s.BadFrames }},
		{"truncated", func(req []byte) []sending { return []sending{{ms, good(req)[:6]}} }, ErrTimeout, "expected 9 bytes, got 6", func(s UnitStats) uint64 { return s.Timeouts }},
		{"wrong unit", func(req []byte) []sending { return []sending{{ms, seal(2, 4, 4, 0, 1, 0, 2)}} }, ErrTimeout, "silence", func(s UnitStats) uint64 { return s.Timeouts }},
		{"too short", func(req []byte) []sending { return []sending{{ms, seal(1, 4, 2, 0, 1)}} }, ErrShort, "1 registers, expected 2", func(s UnitStats) uint64 { return s.BadFrames }},
		{"too long", func(req []byte) []sending { return []sending{{ms, seal(1, 4, 6, 0, 1, 0, 2, 0, 3)}} }, ErrTimeout, "silence", func(s UnitStats) uint64 { return s.Foreign }},
		{"wrong function", func(req []byte) []sending { return []sending{{ms, seal(1, 3, 4, 0, 1, 0, 2)}} }, ErrTimeout, "silence", func(s UnitStats) uint64 { return s.Foreign }},
		{"split", func(req []byte) []sending {
			var out []sending
			for i, b := range good(req) {
				out = append(out, sending{time.Duration(i) * 5 * ms, []byte{b}})
			}
			return out
		}, nil, "", func(s UnitStats) uint64 { return s.Answers }},
		{"copy at once", func(req []byte) []sending { b := good(req); return []sending{{ms, append(b, b...)}} }, nil, "", func(s UnitStats) uint64 { return s.Duplicates }},
		{"more behind it", func(req []byte) []sending { return []sending{{ms, append(good(req), 1, 2, 3)}} }, ErrSuspect, "3 bytes follow", func(s UnitStats) uint64 { return s.Suspect }},
		{"echo", func(req []byte) []sending { return []sending{{0, req}, {ms, good(req)}} }, nil, "", func(s UnitStats) uint64 { return s.Answers }},
		{"foreign before it", func(req []byte) []sending { return []sending{{ms, seal(9, 3, 2, 0, 1)}, {2 * ms, good(req)}} }, nil, "", func(s UnitStats) uint64 { return s.Answers }},
		{"split exception", func(req []byte) []sending {
			x := seal(1, 0x84, 2)
			return []sending{{ms, x[:3]}, {20 * ms, x[3:]}}
		}, nil, "illegal data address", func(s UnitStats) uint64 { return s.Exceptions }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				l, _, stop := pipeLine(Config{}, func(req []byte) []sending {
					if n++; n == 2 {
						return tt.fault(req)
					}
					return []sending{{ms, good(req)}}
				})
				defer stop()
				dev := l.Device(DeviceConfig{Unit: 1, Name: "grid"})
				l.Device(DeviceConfig{Unit: 2, Name: "other"})
				for i := range uint16(5) {
					data, err := dev.ReadRegisters(t.Context(), 4, 10+2*i, 2)
					switch {
					case i == 1 && tt.want == nil && tt.say == "":
						if err != nil {
							t.Fatalf("during the fault: %v", err)
						}
					case i == 1:
						var e *Error
						if !errors.As(err, &e) || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.say) {
							t.Fatalf("during the fault: %v, want %v and %q", err, tt.want, tt.say)
						}
						if e.Unit != 1 || e.Device != "grid" || e.Address != 12 || e.Count != 2 {
							t.Errorf("%+v does not name the registers", e)
						}
						continue
					case err != nil:
						t.Fatalf("read %d: %v", i, err)
					}
					if want := registers(addressed).data(1, key{4, 10 + 2*i, 2}); !slices.Equal(data, want) {
						t.Fatalf("read %d: % x, want % x", i, data, want)
					}
				}
				if c := tt.check(l.Stats().Units[1]); c == 0 {
					t.Errorf("not counted: %+v", l.Stats())
				}
			})
		})
	}
}

func TestExceptionCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, stop := pipeLine(Config{}, func(req []byte) []sending { return []sending{{ms, seal(req[0], req[1]|0x80, 2)}} })
		defer stop()
		_, err := l.Device(DeviceConfig{Unit: 7}).ReadRegisters(t.Context(), 3, 40000, 2)
		var e *Error
		if !errors.As(err, &e) {
			t.Fatal(err)
		}
		if code, ok := e.Exception(); !ok || code != 2 || e.Timeout() {
			t.Errorf("exception %d, %v, time-out %v; want 2, true, false", code, ok, e.Timeout())
		}
	})
}

// A slave that has always been quick is not waited for as long as the slowest
// may take, except by who must know, and after a first silence.
func TestLearnedTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		l, _, stop := pipeLine(Config{}, func(req []byte) []sending {
			if dead.Load() {
				return nil
			}
			return []sending{{20 * ms, registers(addressed).reply(req)}}
		})
		defer stop()
		const timeout = 5 * time.Second // as slow inverters want
		dev := func(c Class) drivers.Register {
			return l.Device(DeviceConfig{Unit: 1, Class: c, Timeout: timeout})
		}
		for i := range uint16(50) {
			if _, err := dev(Fast).ReadRegisters(t.Context(), 3, i, 2); err != nil {
				t.Fatal(err)
			}
		}
		dead.Store(true)
		silent := func(c Class) time.Duration {
			start := time.Now()
			if _, err := dev(c).ReadRegisters(t.Context(), 3, 0, 2); !errors.Is(err, ErrTimeout) {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		if d := silent(Fast); d > timeout*2/5+100*ms {
			t.Errorf("waited %v for a slave that answers in 20 ms", d)
		}
		if d := silent(Fast); d < timeout {
			t.Errorf("waited %v the second time, want all of %v", d, timeout)
		}
		dead.Store(false)
		if _, err := dev(Fast).ReadRegisters(t.Context(), 3, 0, 2); err != nil {
			t.Fatal(err)
		}
		dead.Store(true)
		if d := silent(Safety); d < timeout {
			t.Errorf("waited %v in a matter of safety, want all of %v", d, timeout)
		}
	})
}

// A device that refuses everything, as most do while somebody finds out what
// they are, is believed at once: no refusal is held against the next.
func TestRefusalsAreBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, stop := pipeLine(Config{Timeout: 150 * ms}, func(req []byte) []sending {
			return []sending{{10 * ms, seal(req[0], req[1]|0x80, 2)}}
		})
		defer stop()
		dev := l.Device(DeviceConfig{Unit: 7, Class: Scan, Timeout: 750 * ms})
		if _, err := dev.ReadRegisters(t.Context(), 3, 0, 1); err == nil { // the line listens first
			t.Fatal("no refusal")
		}
		start := time.Now()
		const reads = 60
		for i := range reads {
			_, err := dev.ReadRegisters(t.Context(), drivers.Function(3+i%2), uint16(100*i), uint16(1+i/2%4))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatal(err)
			}
			if code, ok := e.Exception(); !ok || code != 2 {
				t.Fatalf("read %d: %v, want the exception", i, err)
			}
		}
		if d := time.Since(start); d > reads*100*ms {
			t.Errorf("%d refusals took %v in %d requests", reads, d, len(s.requests()))
		}
	})
}

// A device that answers few reads, and refuses all others and longer ones, is
// asked as before soon after a silence, however long that was: a way to be sure
// of its answers is left, and the requests of the silence do not use it up.
func TestSilenceOfAPickyDevice(t *testing.T) {
	for _, reads := range [][]key{{{3, 1002, 1}, {3, 1001, 2}, {3, 1005, 1}, {3, 2005, 1}}, {{3, 100, 2}}, {{4, 0, 76}}} {
		for _, silent := range []time.Duration{time.Second, 5 * time.Second, 32 * time.Second, 10 * time.Minute} {
			t.Run(fmt.Sprint(len(reads), " reads ", reads[0].count, " ", silent), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var dead atomic.Bool
					l, s, stop := pipeLine(Config{Timeout: 500 * ms, Rand: rand.New(rand.NewPCG(1, 1))}, func(req []byte) []sending {
						switch k := keyOf(req[1:]); {
						case dead.Load():
							return nil
						case slices.Contains(reads, k):
							return []sending{{5 * ms, registers(addressed).reply(req)}}
						case k.fn == reads[0].fn:
							return []sending{{5 * ms, seal(req[0], req[1]|exceptionBit, 2)}}
						}
						return []sending{{5 * ms, seal(req[0], req[1]|exceptionBit, 1)}}
					})
					defer stop()
					dev := l.Device(DeviceConfig{Unit: 4, Name: "wallbox"})
					poll := func() error {
						for _, k := range reads {
							data, err := dev.ReadRegisters(t.Context(), drivers.Function(k.fn), k.addr, k.count)
							if err != nil {
								return err
							}
							if got, want := binary.BigEndian.Uint16(data), addressed(4, k.fn, k.addr); got != want {
								t.Fatalf("register %d: %#x, want %#x", k.addr, got, want)
							}
						}
						return nil
					}
					for range 50 {
						if err := poll(); err != nil {
							t.Fatal(err)
						}
					}
					dead.Store(true)
					for end := time.Now().Add(silent); time.Now().Before(end); time.Sleep(200 * ms) {
						_ = poll()
					}
					dead.Store(false)
					back, asked := time.Now(), len(s.requests())
					for poll() != nil {
						time.Sleep(200 * ms)
					}
					// The next probe is a minute away at most, and a fifth.
					if d := time.Since(back); d > min(2*silent, 72*time.Second)+2*time.Second {
						t.Errorf("it answers %v after the silence, in %d requests: %+v", d, len(s.requests())-asked, l.Stats().Units[4])
					}
				})
			})
		}
	}
}

// A wallbox falls back to its failsafe current unless it is written to in
// time. A scan of a bus of absent units, and meters that are polled beside it,
// may cost it the request that is under way and no more.
func TestHeartbeatIsNeverLateBecauseOfAScan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const turnaround, scanTimeout = 30 * ms, 150 * ms
		l, s, stop := pipeLine(Config{}, func(req []byte) []sending {
			if req[0] > 3 {
				return nil
			}
			return []sending{{turnaround, registers(addressed).reply(req)}}
		})
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for unit := uint8(2); unit <= 3; unit++ {
			meter := l.Device(DeviceConfig{Unit: unit, Class: Fast})
			wg.Go(func() {
				for i := uint16(0); ctx.Err() == nil; i++ {
					_, _ = meter.ReadRegisters(ctx, drivers.InputRegisters, i%100, 20)
					time.Sleep(200 * ms)
				}
			})
		}
		scanned := 0
		for range 4 { // a Scan never waits alone: the queue is never without one
			wg.Go(func() {
				for unit := uint8(10); ctx.Err() == nil; unit = max(10, (unit+1)%248) {
					_, _ = l.Device(DeviceConfig{Unit: unit, Class: Scan, Timeout: scanTimeout}).ReadRegisters(ctx, drivers.HoldingRegisters, 0, 1)
				}
			})
		}
		box := l.Device(DeviceConfig{Unit: 1, Name: "wallbox", Class: Safety})
		time.Sleep(2 * time.Second)
		var worst time.Duration
		for i := range uint16(200) {
			start := time.Now()
			if err := box.WriteRegisters(ctx, 1000, []uint16{6 + i%10, i}); err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(start))
			time.Sleep(time.Second / 3)
		}
		// The request under way, its time-out, and the write itself.
		if limit := scanTimeout + 2*turnaround + 10*ms; worst > limit {
			t.Errorf("the slowest heartbeat took %v, want at most %v", worst, limit)
		}
		for _, req := range s.requests() {
			if req[0] >= 10 {
				scanned++
			}
		}
		if scanned < 100 {
			t.Errorf("%d scan requests: that is no scan", scanned)
		}
	})
}

// Function 6 is confirmed by the same bytes that an adapter echoes. A dead
// slave behind such an adapter must not look as if it had obeyed.
func TestEchoDoesNotConfirmWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := false
		l, s, stop := pipeLine(Config{}, func(req []byte) []sending {
			if dead {
				return []sending{{0, req}}
			}
			return []sending{{0, req}, {5 * ms, registers(addressed).reply(req)}}
		})
		defer stop()
		dev := l.Device(DeviceConfig{Unit: 1, Name: "wallbox"})
		if err := dev.WriteRegisters(t.Context(), 100, []uint16{16}); err != nil {
			t.Fatal(err)
		}
		if fn := s.requests()[0][1]; fn == fnWriteOne {
			t.Error("wrote before it knew whether the adapter echoes")
		}
		if err := dev.WriteRegisters(t.Context(), 100, []uint16{1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		dead = true
		if err := dev.WriteRegisters(t.Context(), 100, []uint16{0}); !errors.Is(err, ErrTimeout) {
			t.Fatalf("write to a dead slave: %v, want a time-out", err)
		}
		if !l.Stats().Echo {
			t.Error("echo not noticed")
		}
	})
}

func TestWriteUsesFunction6And16(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, stop := pipeLine(Config{}, func(req []byte) []sending { return []sending{{ms, registers(addressed).reply(req)}} })
		defer stop()
		dev := l.Device(DeviceConfig{Unit: 1})
		if _, err := dev.ReadRegisters(t.Context(), 3, 1, 1); err != nil {
			t.Fatal(err)
		}
		if err := dev.WriteRegisters(t.Context(), 5, []uint16{0x1234}); err != nil {
			t.Fatal(err)
		}
		if err := dev.WriteRegisters(t.Context(), 6, []uint16{1, 2}); err != nil {
			t.Fatal(err)
		}
		want := [][]byte{seal(1, 3, 0, 1, 0, 1), seal(1, 6, 0, 5, 0x12, 0x34), seal(1, 16, 0, 6, 0, 2, 4, 0, 1, 0, 2)}
		if got := s.requests(); !slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("sent % x, want % x", got, want)
		}
	})
}

// The line serves the most urgent request, whoever came first.
func TestUrgentFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s, stop := pipeLine(Config{}, func(req []byte) []sending { return []sending{{20 * ms, registers(addressed).reply(req)}} })
		defer stop()
		var wg sync.WaitGroup
		ask := func(c Class, addr uint16, within time.Duration) {
			dev := l.Device(DeviceConfig{Unit: 1, Class: c})
			ctx, cancel := context.WithTimeout(t.Context(), within)
			wg.Go(func() {
				defer cancel()
				if _, err := dev.ReadRegisters(ctx, 3, addr, 1); err != nil {
					t.Errorf("register %d: %v", addr, err)
				}
			})
			synctest.Wait()
		}
		time.Sleep(time.Second)   // the line listens first
		ask(Slow, 0, time.Minute) // goes at once: nobody else waits
		ask(Scan, 6, time.Second)
		ask(Slow, 5, 20*time.Second)
		ask(Slow, 4, 10*time.Second)
		ask(Fast, 3, time.Minute)
		ask(Safety, 2, time.Minute)
		ask(Safety, 1, 30*time.Second)
		wg.Wait()
		for i, req := range s.requests() {
			if k := keyOf(req[1:]); int(k.addr) != i {
				t.Errorf("request %d was for register %d", i, k.addr)
			}
		}
	})
}

func TestQueueOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(Config{RTUTCP: "x:1", Timeout: time.Second}, nil) // never run: nothing leaves the queue
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var mu sync.Mutex
		full := map[Class]int{}
		ask := func(c Class) {
			dev := l.Device(DeviceConfig{Unit: 1, Class: c})
			wg.Go(func() {
				if _, err := dev.ReadRegisters(ctx, 3, 0, 1); errors.Is(err, ErrQueueFull) {
					mu.Lock()
					full[c]++
					mu.Unlock()
				}
			})
		}
		for range MaxQueue {
			ask(Slow)
		}
		synctest.Wait()
		ask(Slow)   // refused
		ask(Safety) // pushes one out
		synctest.Wait()
		if full[Slow] != 2 || full[Safety] != 0 {
			t.Errorf("refused: %v, want two slow ones", full)
		}
		if s := l.Stats(); s.Queued != MaxQueue || s.Overflows != 2 {
			t.Errorf("queued %d, overflows %d; want %d, 2", s.Queued, s.Overflows, MaxQueue)
		}
		cancel()
		wg.Wait()
	})
}

// A slave that died costs the others less than 5 % and is back soon after it
// answers again.
func TestDeadSlaveCostsLittle(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("answered before %v", known), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var dead atomic.Bool
				dead.Store(!known)
				l, _, stop := pipeLine(Config{Timeout: 500 * ms, Rand: rand.New(rand.NewPCG(1, 1))}, func(req []byte) []sending {
					if req[0] == 2 && dead.Load() {
						return nil
					}
					return []sending{{30 * ms, registers(addressed).reply(req)}}
				})
				defer stop()
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				defer wg.Wait()
				defer cancel()
				good := l.Device(DeviceConfig{Unit: 1, Name: "good"})
				other := l.Device(DeviceConfig{Unit: 2, Name: "other"})
				var polls, answers, refused, slowest atomic.Int64
				wg.Go(func() {
					for ctx.Err() == nil {
						if _, err := good.ReadRegisters(ctx, 3, uint16(polls.Load()), 2); err == nil {
							polls.Add(1)
						} else if ctx.Err() == nil {
							t.Error(err)
						}
					}
				})
				wg.Go(func() {
					for ctx.Err() == nil {
						start := time.Now()
						_, err := other.ReadRegisters(ctx, 3, 1, 2)
						switch {
						case err == nil:
							answers.Add(1)
						case errors.Is(err, ErrBackoff):
							refused.Add(1)
							slowest.Store(max(slowest.Load(), int64(time.Since(start))))
						}
						time.Sleep(time.Second)
					}
				})
				if known {
					time.Sleep(10 * time.Second)
					synctest.Wait()
					if answers.Load() == 0 {
						t.Fatal("the other slave never answered")
					}
					dead.Store(true)
				}
				time.Sleep(10 * time.Second) // it takes three time-outs to be sure
				before := polls.Load()
				const span = 300 * time.Second
				time.Sleep(span)
				synctest.Wait()
				alone := int64(span / (30 * ms))
				if got := polls.Load() - before; got*100 < alone*95 {
					t.Errorf("%d polls beside a dead slave, %d alone: %.1f %% lost", got, alone, 100-100*float64(got)/float64(alone))
				}
				if refused.Load() == 0 || slowest.Load() > 0 {
					t.Errorf("%d requests to the dead slave refused, the slowest after %v; want at once", refused.Load(), time.Duration(slowest.Load()))
				}
				answers.Store(0)
				dead.Store(false)
				time.Sleep(75 * time.Second)
				synctest.Wait()
				if answers.Load() == 0 {
					t.Errorf("the slave answers again, but is not asked: %+v", l.Stats().Units[2])
				}
			})
		})
	}
}

// Slaves' wishes: a pause between requests, a longer one when the line turns
// to them, one after connecting.
func TestGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		type arrival struct {
			unit byte
			at   time.Duration
		}
		var got []arrival
		l, _, stop := pipeLine(Config{Timeout: 100 * ms}, func(req []byte) []sending {
			got = append(got, arrival{req[0], time.Since(start)})
			return []sending{{0, registers(addressed).reply(req)}}
		})
		defer stop()
		a := l.Device(DeviceConfig{Unit: 1, SlaveChangeGap: 150 * ms})
		b := l.Device(DeviceConfig{Unit: 2, Gap: 40 * ms, ConnectDelay: time.Second})
		for _, d := range []drivers.Register{b, b, a, a, b} {
			if _, err := d.ReadRegisters(t.Context(), 3, 0, 1); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		want := []arrival{{2, 1000 * ms}, {2, 1040 * ms}, {1, 1190 * ms}, {1, 1190 * ms}, {2, 1190 * ms}}
		for i, w := range want {
			if got[i].unit != w.unit || got[i].at < w.at || got[i].at > w.at+5*ms {
				t.Errorf("request %d: unit %d at %v, want unit %d at %v", i, got[i].unit, got[i].at, w.unit, w.at)
			}
		}
	})
}

// Whoever gives up waiting leaves the line in order.
func TestCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, stop := pipeLine(Config{}, func(req []byte) []sending { return []sending{{50 * ms, registers(addressed).reply(req)}} })
		defer stop()
		dev := l.Device(DeviceConfig{Unit: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 120*ms) // 100 ms pass listening
		defer cancel()
		if _, err := dev.ReadRegisters(ctx, 3, 1, 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		data, err := dev.ReadRegisters(t.Context(), 3, 9, 2)
		if err != nil {
			t.Fatal(err)
		}
		if want := registers(addressed).data(1, key{3, 9, 2}); !slices.Equal(data, want) {
			t.Errorf("got % x, want % x", data, want)
		}
	})
}

func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, stop := pipeLine(Config{Timeout: time.Second}, func([]byte) []sending { return nil })
		dev := l.Device(DeviceConfig{Unit: 1})
		errs := make(chan error, 2)
		for range 2 { // one on the wire, one waiting
			go func() {
				_, err := dev.ReadRegisters(context.Background(), 3, 0, 1)
				errs <- err
			}()
		}
		time.Sleep(1500 * ms)
		stop()
		for range 2 {
			if err := <-errs; !errors.Is(err, ErrClosed) {
				t.Errorf("got %v, want ErrClosed", err)
			}
		}
		if _, err := dev.ReadRegisters(context.Background(), 3, 0, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("after the end: %v, want ErrClosed", err)
		}
	})
}

// The connection of a TCP line is lost and comes back.
func TestReopen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // of what follows
		var far net.Conn
		gone, dials := false, 0
		set := func(away bool) (tried int) {
			mu.Lock()
			defer mu.Unlock()
			tried, gone, dials = dials, away, 0
			if away {
				far.Close()
			}
			return tried
		}
		l := newLine(Config{RTUTCP: "bridge:1", Timeout: 50 * ms}, func(context.Context) (port, error) {
			mu.Lock()
			defer mu.Unlock()
			dials++
			if gone {
				return nil, errors.New("connection refused")
			}
			near, f := net.Pipe()
			far = f
			go serveRTU(f, func(req []byte) []sending { return []sending{{0, registers(addressed).reply(req)}} })
			return near, nil
		})
		stop := running(l)
		defer func() { stop(); far.Close(); synctest.Wait() }()
		dev := l.Device(DeviceConfig{Unit: 1})
		read := func() error { _, err := dev.ReadRegisters(t.Context(), 3, 0, 1); return err }
		if err := read(); err != nil {
			t.Fatal(err)
		}
		set(true)
		time.Sleep(time.Second)
		for range 3 {
			if err := read(); !errors.Is(err, ErrLineDown) || !strings.Contains(err.Error(), "refused") {
				t.Fatalf("while the bridge is away: %v", err)
			}
		}
		set(true)
		time.Sleep(10 * time.Second)
		if tried := set(false); tried > 51 || tried < 20 {
			t.Errorf("%d attempts in 10 s", tried)
		}
		time.Sleep(450 * ms)
		if err := read(); err != nil {
			t.Errorf("0.45 s after its return: %v", err)
		}
		if n := l.Stats().Opened; n != 2 {
			t.Errorf("opened %d times, want 2", n)
		}
	})
}

func TestConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "exactly one of"},
		{Config{Device: "/dev/x", TCP: "a:1"}, "exactly one of"},
		{Config{Device: "/dev/ttyUSB9"}, "open /dev/ttyUSB9: no such device; is the adapter plugged in?"},
		{Config{Device: "/dev/null"}, "open /dev/null: not a serial device"},
		{Config{Device: "/etc/hostname"}, "not a serial device"},
		{Config{Device: "/dev/x", Framing: "7E1"}, `framing "7E1": want 8N1, 8E1 or 8N2`},
		{Config{Device: "/dev/x", Baud: 7}, "baud 7"},
		{Config{Device: "/dev/x", Timeout: time.Hour}, "timeout 1h0m0s"},
		{Config{TCP: "10.0.0.1"}, "want host:port"},
	} {
		if _, err := New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.cfg, err, tt.want)
		}
	}
	l := newLine(Config{RTUTCP: "x:1"}, nil)
	for _, cfg := range []DeviceConfig{{Unit: 0}, {Unit: 248}, {Unit: 1, Class: 9}, {Unit: 1, MaxBlock: 126}, {Unit: 1, Gap: -1}} {
		if _, err := l.Device(cfg).ReadRegisters(t.Context(), 3, 0, 1); err == nil {
			t.Errorf("%+v accepted", cfg)
		}
	}
	for _, u := range []uint8{0, 1, 247, 255} {
		if err := (&DeviceConfig{Unit: u}).Validate(true); err != nil {
			t.Errorf("unit %d over TCP: %v", u, err)
		}
	}
	dev := l.Device(DeviceConfig{Unit: 1, MaxBlock: 10})
	for _, err := range []error{
		second(dev.ReadRegisters(t.Context(), 3, 0, 0)), second(dev.ReadRegisters(t.Context(), 3, 0, 11)),
		second(dev.ReadRegisters(t.Context(), 3, 65535, 2)), second(dev.ReadRegisters(t.Context(), 1, 0, 2)),
		dev.WriteRegisters(t.Context(), 0, nil), dev.WriteRegisters(t.Context(), 65535, []uint16{1, 2}),
		dev.WriteRegisters(t.Context(), 0, make([]uint16, 124)),
	} {
		if err == nil {
			t.Error("a request out of range was accepted")
		}
	}
}

func second[T any](_ T, err error) error { return err }

// writable is a slave whose registers and coils keep what is written to them.
// fault, if set, may take the place of an answer.
func writable(table map[key]uint16, fault func(n int, req, good []byte) []sending) func(req []byte) []sending {
	n := 0
	return func(req []byte) []sending {
		n++
		k := keyOf(req[1 : len(req)-2])
		good := seal(slices.Clone(req[:6])...)
		switch k.fn {
		case fnReadCoils:
			good = seal(req[0], k.fn, 1, byte(table[key{fn: k.fn, addr: k.addr}]>>15))
		case fnReadHolding:
			good = registers(func(_, _ byte, addr uint16) uint16 { return table[key{fn: fnReadHolding, addr: addr}] }).reply(req)
		}
		if fault != nil {
			if out := fault(n, req, good); out != nil {
				return out
			}
		}
		switch k.fn {
		case fnWriteCoil:
			table[key{fn: fnReadCoils, addr: k.addr}] = k.count
		case fnWriteOne:
			table[key{fn: fnReadHolding, addr: k.addr}] = k.count
		case fnWriteMany:
			for i := range k.count {
				table[key{fn: fnReadHolding, addr: k.addr + i}] = binary.BigEndian.Uint16(req[7+2*i:])
			}
		}
		return []sending{{ms, good}}
	}
}

// A device gets the function that it insists on, and is asked what it holds.
func TestWriteFunctions(t *testing.T) {
	for _, w := range []drivers.Write{
		{Function: drivers.WriteCoil, Address: 400, Values: []uint16{drivers.CoilOn}},
		{Function: drivers.WriteCoil, Address: 400, Values: []uint16{drivers.CoilOff}},
		{Function: drivers.WriteSingle, Address: 261, Values: []uint16{60}},
		{Function: drivers.WriteMultiple, Address: 261, Values: []uint16{60}},
		{Function: drivers.WriteMultiple, Address: 1210, Values: []uint16{0x4158, 0}},
		{Address: 1, Values: []uint16{7}},
		{Address: 1, Values: slices.Repeat([]uint16{7}, MaxWrite)},
	} {
		for _, verify := range []bool{false, true} {
			for _, deaf := range []bool{false, true} { // confirms, and does nothing
				w.Verify = verify
				t.Run(fmt.Sprintf("function %d of %d verified %v deaf %v", w.Function, len(w.Values), verify, deaf), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						table := map[key]uint16{{fn: fnReadCoils, addr: 400}: drivers.CoilOn ^ w.Values[0]}
						l, s, stop := pipeLine(Config{}, writable(table, func(_ int, req, good []byte) []sending {
							if k := keyOf(req[1:]); deaf && !k.read() {
								return []sending{{ms, good}}
							}
							return nil
						}))
						defer stop()
						dev := l.Device(DeviceConfig{Unit: 1, Name: "wallbox", MaxBlock: 40})
						err := dev.Write(t.Context(), w)
						if deaf && verify {
							var e *Error
							if !errors.Is(err, drivers.ErrNotTaken) || !errors.As(err, &e) || e.Device != "wallbox" {
								t.Errorf("a deaf device: %v", err)
							}
						} else if err != nil {
							t.Fatal(err)
						}
						for _, req := range s.requests() {
							k := keyOf(req[1:])
							if k.read() {
								continue
							}
							want := w.Function
							if want == 0 && len(w.Values) == 1 {
								want = drivers.WriteSingle
							} else if want == 0 {
								want = drivers.WriteMultiple
							}
							if drivers.Function(k.fn) != want {
								t.Errorf("function %d, want %d", k.fn, want)
							}
						}
					})
				})
			}
		}
	}
}

func TestWritesThatAreNone(t *testing.T) {
	l, _, stop := pipeLine(Config{}, func([]byte) []sending { panic("it was sent") })
	defer stop()
	dev := l.Device(DeviceConfig{Unit: 1})
	for _, w := range []drivers.Write{
		{},
		{Function: drivers.HoldingRegisters, Values: []uint16{1}},
		{Function: 15, Values: []uint16{1}},
		{Function: drivers.WriteCoil, Values: []uint16{1}},
		{Function: drivers.WriteCoil, Values: []uint16{drivers.CoilOn, drivers.CoilOn}},
		{Function: drivers.WriteSingle, Values: []uint16{1, 2}},
		{Function: drivers.WriteMultiple},
		{Function: drivers.WriteMultiple, Values: make([]uint16, MaxWrite+1)},
		{Address: 65535, Values: []uint16{1, 2}},
	} {
		if err := dev.Write(t.Context(), w); err == nil {
			t.Errorf("%+v is accepted", w)
		}
	}
}

// A damaged confirmation decides nothing: what the device holds does.
func TestDamagedConfirmation(t *testing.T) {
	for name, damage := range map[string]func(good []byte) []byte{
		"too long":  func(good []byte) []byte { return seal(append(slices.Clone(good[:6]), make([]byte, 14)...)...) },
		"checksum":  func(good []byte) []byte { return append(slices.Clone(good[:6]), 1, 2) },
		"too short": func(good []byte) []byte { return seal(append(slices.Clone(good[:4]), 0xFF, 0xFF, 0xFF)...) },
	} {
		for _, obeyed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s obeyed %v", name, obeyed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					table := map[key]uint16{}
					l, _, stop := pipeLine(Config{}, writable(table, func(_ int, req, good []byte) []sending {
						if keyOf(req[1:]).fn != fnWriteMany {
							return nil
						}
						if obeyed {
							table[key{fn: fnReadHolding, addr: 261}] = binary.BigEndian.Uint16(req[7:])
						}
						return []sending{{ms, damage(good)}}
					}))
					defer stop()
					err := l.Device(DeviceConfig{Unit: 1}).Write(t.Context(), drivers.Write{Function: drivers.WriteMultiple, Address: 261, Values: []uint16{60}})
					if obeyed && err != nil || !obeyed && !errors.Is(err, drivers.ErrNotTaken) {
						t.Error(err)
					}
				})
			})
		}
	}
}

// A lost confirmation of a verified write is as good as a read of what the
// device holds; of another one it stays a time-out.
func TestLostConfirmation(t *testing.T) {
	for _, verify := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			table := map[key]uint16{}
			l, _, stop := pipeLine(Config{}, writable(table, func(_ int, req, _ []byte) []sending {
				if k := keyOf(req[1:]); k.fn == fnWriteMany {
					table[key{fn: fnReadHolding, addr: 261}] = 60
					return []sending{}
				}
				return nil
			}))
			defer stop()
			err := l.Device(DeviceConfig{Unit: 1}).Write(t.Context(), drivers.Write{Function: drivers.WriteMultiple, Address: 261, Values: []uint16{60}, Verify: verify})
			if verify && err != nil || !verify && !errors.Is(err, ErrTimeout) {
				t.Errorf("verified %v: %v", verify, err)
			}
		})
	}
}

// A copy of what was read back before the last write must not confirm it.
func TestReadBackIsNoCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var old []byte // the first answer to a read of the register
		damaged := false
		l, _, stop := pipeLine(Config{}, writable(map[key]uint16{}, func(_ int, req, good []byte) []sending {
			switch k := keyOf(req[1:]); {
			case k == key{fnWriteOne, 100, 1} && old != nil:
				damaged = true
				return []sending{{ms, append(slices.Clone(good[:6]), 1, 2)}} // and is not obeyed
			case k == key{fnReadHolding, 100, 1} && old == nil:
				old = good
			case k == key{fnReadHolding, 100, 1} && damaged:
				damaged = false
				return []sending{{ms, old}, {2 * ms, good}}
			}
			return nil
		}))
		defer stop()
		dev := l.Device(DeviceConfig{Unit: 1})
		if _, err := dev.ReadRegisters(t.Context(), 3, 7, 2); err != nil { // is there an echo?
			t.Fatal(err)
		}
		if err := dev.Write(t.Context(), drivers.Write{Address: 100, Values: []uint16{1}, Verify: true}); err != nil {
			t.Fatal(err)
		}
		if err := dev.Write(t.Context(), drivers.Write{Address: 100, Values: []uint16{0}}); err != nil {
			t.Fatal(err)
		}
		if err := dev.Write(t.Context(), drivers.Write{Address: 100, Values: []uint16{1}, Verify: true}); !errors.Is(err, drivers.ErrNotTaken) {
			t.Errorf("a write that was ignored: %v", err)
		}
	})
}
