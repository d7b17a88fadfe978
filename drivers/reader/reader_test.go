package reader_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/reader"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/poll"
	"github.com/joulegate/joulegate/meter/profile"
)

// refusal is a Modbus exception as the line reports it.
type refusal uint8

func (r refusal) Error() string            { return fmt.Sprintf("exception %d", uint8(r)) }
func (r refusal) Exception() (uint8, bool) { return uint8(r), true }

// device is a fake drivers.Register with the registers of a profile.
type device struct {
	mu      sync.Mutex
	profile *profile.Profile
	image   profile.Image
	silent  bool
	longest uint16
	cut     uint16 // longer answers are cut short; 0: none
	latency time.Duration
	reads   []profile.Block
	refuses drivers.Function // with exception 1
	code    refusal          // for what is too long, default 3
	short   uint16           // longer reads are answered with so many; 0: none
	mute    drivers.Function // with which it is silent
	noise   int              // every so many reads garbles one; 0: none
}

func newDevice(t *testing.T, id string, points ...meter.Point) *device {
	t.Helper()
	p, err := profile.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	im, err := p.NewImage(0, profile.Identity{Manufacturer: "ACME", Serial: "1"})
	if err != nil {
		t.Fatal(err)
	}
	d := &device{profile: p, image: im, longest: profile.MaxBlock, latency: 50 * time.Millisecond}
	d.set(t, points...)
	return d
}

func (d *device) set(t *testing.T, points ...meter.Point) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.profile.Encode(points, d.image); err != nil {
		t.Fatal(err)
	}
}

func (d *device) do(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *device) ReadRegisters(ctx context.Context, fn drivers.Function, addr, count uint16) ([]byte, error) {
	select {
	case <-time.After(d.latency):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads = append(d.reads, profile.Block{Function: fn, Address: addr, Count: count})
	if d.silent {
		return nil, errors.New("no answer")
	}
	if d.noise > 0 && len(d.reads)%d.noise == 0 {
		return nil, garbled{}
	}
	if fn == d.mute {
		return nil, errors.New("no answer")
	}
	if fn == d.refuses {
		return nil, refusal(1)
	}
	if d.cut > 0 && count > d.cut {
		return nil, garbled{}
	}
	if d.short > 0 && count > d.short {
		return nil, shortAnswer{}
	}
	if count > d.longest {
		return nil, max(d.code, 2)
	}
	data, ok := d.image.Read(fn, addr, count)
	if !ok {
		return nil, refusal(2)
	}
	return data, nil
}

func (d *device) WriteRegisters(context.Context, uint16, []uint16) error {
	return errors.New("a reader writes nothing")
}

// recorder runs a reader inside a synctest bubble and keeps what it delivers.
type recorder struct {
	mu  sync.Mutex
	got []meter.Reading
	r   *reader.Reader
}

func (rec *recorder) all() []meter.Reading {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.got
}

func start(t *testing.T, d *device, cfg reader.Config) *recorder {
	t.Helper()
	rec := &recorder{}
	cfg.Device, cfg.Profile, cfg.Register, cfg.Unit = "grid", d.profile, d, 7
	cfg.Deliver = func(r meter.Reading) {
		rec.mu.Lock()
		defer rec.mu.Unlock()
		rec.got = append(rec.got, r)
	}
	rec.r = reader.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- rec.r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return rec
}

// after lets d pass and returns what was delivered meanwhile.
func (rec *recorder) after(d time.Duration) []meter.Reading {
	n := len(rec.all())
	time.Sleep(d)
	synctest.Wait()
	return rec.all()[n:]
}

func imported(mwh int64) meter.Point { return meter.Point{Quantity: meter.Import, Value: mwh} }

func TestReadsEveryInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "eastron-sdm630", imported(5_000_000), meter.Point{Quantity: meter.Power, Value: 1_500_000})
		rec := start(t, d, reader.Config{})
		got := rec.after(10*time.Second + 500*time.Millisecond)
		if len(got) != 11 {
			t.Fatalf("%d readings in 10 s, want 11", len(got))
		}
		for i, r := range got {
			if r.Quality != meter.Good || r.Page != uint64(i+1) || r.Device != "grid" || r.Unit != 7 || r.Profile != "eastron-sdm630" || r.ProfileHash != d.profile.Hash() {
				t.Fatalf("reading %d: %+v", i, r)
			}
			if v, _ := r.Power(); v != 1_500_000 {
				t.Fatalf("reading %d: power %d", i, v)
			}
			// Anybody can decode the raw registers again.
			again, err := d.profile.Decode(r.Raw)
			if err != nil || !slices.Equal(again, r.Points) {
				t.Fatalf("reading %d: decoded again %v, %v", i, again, err)
			}
			if _, slow := r.Value(meter.Energy, 0); slow != (i%10 == 0) {
				t.Fatalf("reading %d: slow points %v", i, slow)
			}
		}
	})
}

// While the device is silent there is a stale reading every second, from ten
// seconds on, with the last values and their time; and it recovers by itself.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "eastron-sdm630", imported(5_000_000))
		rec := start(t, d, reader.Config{})
		last := rec.after(500 * time.Millisecond)[0]
		d.do(func() { d.silent = true })
		if got := rec.after(9 * time.Second); len(got) != 0 {
			t.Fatalf("%d readings in the first 9 s of silence: %+v", len(got), got[0])
		}
		got := rec.after(60 * time.Second)
		if len(got) != 60-1 && len(got) != 60 {
			t.Fatalf("%d stale readings in 60 s", len(got))
		}
		for i, r := range got {
			if r.Quality != meter.Stale || r.Mono != last.Mono || r.Page != last.Page+uint64(i)+1 {
				t.Fatalf("reading %d: %s page %d mono %s", i, r.Quality, r.Page, r.Mono)
			}
			if v, ok := r.Import(); !ok || v != 5_000_000 {
				t.Fatalf("reading %d lost the last values", i)
			}
		}
		d.do(func() { d.silent = false })
		if r := rec.after(2 * time.Second); len(r) == 0 || r[len(r)-1].Quality != meter.Good {
			t.Fatalf("after silence: %+v", r)
		}
	})
}

// A device that hangs in the middle of a read does not stop the clock.
func TestHangingDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "eastron-sdm630", imported(5_000_000))
		d.latency = time.Hour
		rec := start(t, d, reader.Config{})
		got := rec.after(15 * time.Second)
		if len(got) == 0 || got[0].Quality != meter.Stale || len(got[0].Points) != 0 {
			t.Fatalf("%+v", got)
		}
	})
}

// A restarting meter shows zero: suspect, and good again at its true count.
func TestRestartedMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "eastron-sdm630", imported(5_000_000))
		rec := start(t, d, reader.Config{})
		rec.after(3 * time.Second)
		d.set(t, imported(0))
		if got := rec.after(2 * time.Second); got[1].Quality != meter.Suspect || !strings.Contains(got[1].Reason, "restarted") {
			t.Fatalf("%s %q", got[1].Quality, got[1].Reason)
		}
		d.set(t, imported(5_001_000))
		if got := rec.after(2 * time.Second); got[1].Quality != meter.Good {
			t.Fatalf("%s %q", got[1].Quality, got[1].Reason)
		}
		d.set(t, imported(17))
		rec.after(5 * time.Second)
		rec.r.Rebase() // a person confirms the new meter
		if got := rec.after(2 * time.Second); got[1].Quality != meter.Good {
			t.Fatalf("after Rebase: %s %q", got[1].Quality, got[1].Reason)
		}
	})
}

// A process restart does not open the gate: a register that went back while
// nobody looked is suspect, one that moved on plausibly is good.
func TestResume(t *testing.T) {
	for value, want := range map[int64]meter.Quality{4_999_000: meter.Suspect, 5_900_000: meter.Good, 900_000_000: meter.Suspect} {
		synctest.Test(t, func(t *testing.T) {
			d := newDevice(t, "eastron-sdm630", imported(5_000_000))
			rec := start(t, d, reader.Config{})
			rec.after(2 * time.Second)
			stored := rec.r.State()

			d = newDevice(t, "eastron-sdm630", imported(value))
			again := start(t, d, reader.Config{State: poll.Resume(stored.Page, stored.Registers, poll.Identity{}, 5*time.Minute)})
			got := again.after(500 * time.Millisecond)[0]
			if got.Quality != want || got.Page != stored.Page+1 {
				t.Errorf("%d mWh: %s (%s), page %d after %d", value, got.Quality, got.Reason, got.Page, stored.Page)
			}
		})
	}
}

// Some meters of a family accept ten values per read and lack registers.
func TestLearnsBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "eastron-sdm630", imported(5_000_000), meter.Point{Quantity: meter.Voltage, Phase: 3, Value: 231_500})
		d.longest = 20
		for a := uint16(0x15A); a <= 0x165; a++ { // no energy per line
			delete(d.image, profile.Register{Function: drivers.InputRegisters, Address: a})
		}
		rec := start(t, d, reader.Config{})
		got := rec.after(12*time.Second + 500*time.Millisecond)
		for _, r := range got {
			if r.Quality != meter.Good {
				t.Fatalf("%s (%s)", r.Quality, r.Reason)
			}
			if v, ok := r.Value(meter.Voltage, 3); !ok || v != 231_500 {
				t.Fatalf("voltage_l3 = %d, %v", v, ok)
			}
			if _, ok := r.Value(meter.Import, 1); ok {
				t.Fatal("a register that does not exist has a value")
			}
		}
		d.do(func() { d.reads = nil })
		rec.after(5 * time.Second)
		d.do(func() {
			for _, b := range d.reads {
				if b.Count > 20 {
					t.Errorf("still asks for %d registers", b.Count)
				}
			}
		})
	})
}

// Some units want the same registers read with the other function: the device
// says so with exception 1, or has no register there.
func TestFallbackFunction(t *testing.T) {
	for name, refuses := range map[string]drivers.Function{"illegal function": drivers.HoldingRegisters, "illegal address": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDevice(t, "bernecker-mpm3pm", imported(5_000_000), meter.Point{Quantity: meter.Voltage, Phase: 1, Value: 231_500})
				moved := profile.Image{}
				for r, v := range d.image {
					moved[profile.Register{Function: drivers.InputRegisters, Address: r.Address}] = v
				}
				d.image, d.refuses = moved, refuses
				rec := start(t, d, reader.Config{})
				var last meter.Reading
				for _, r := range rec.after(20 * time.Second) {
					last = r
				}
				if v, ok := last.Value(meter.Voltage, 1); last.Quality != meter.Good || !ok || v != 231_500 {
					t.Fatalf("%s (%s): %v", last.Quality, last.Reason, last.Points)
				}
				again, err := d.profile.Decode(last.Raw)
				if err != nil || !slices.Equal(again, last.Points) {
					t.Errorf("decoded again: %v (%v), want %v", again, err, last.Points)
				}
			})
		})
	}
}

// garbled is what the line reports of an answer that is none.
type garbled struct{}

func (garbled) Error() string { return "bad frame" }
func (garbled) Garbled() bool { return true }
func (garbled) Timeout() bool { return false }

// A bad frame costs one more read, not the poll.
func TestBadFrameIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "eastron-sdm630", imported(5_000_000))
		d.latency, d.noise = time.Millisecond, 7
		rec := start(t, d, reader.Config{SlowEvery: 1})
		got := rec.after(time.Minute + 500*time.Millisecond)
		bad := 0
		for _, r := range got {
			if r.Quality != meter.Good {
				bad++
			}
		}
		// One that met the first read of a poll would still cost it.
		if len(got) < 58 || bad > 3 {
			t.Errorf("%d readings in a minute, %d of them not good", len(got), bad)
		}
	})
}

// shortAnswer is what the line reports of one with too few registers.
type shortAnswer struct{}

func (shortAnswer) Error() string { return "short answer" }
func (shortAnswer) Short() bool   { return true }

// What a device takes at once is learned in one poll, however it says so, and
// no silence makes the reader ask for more again; another device does.
func TestLearnedLimitIsKept(t *testing.T) {
	for name, limit := range map[string]func(d *device){
		"exception 2":  func(d *device) { d.longest, d.code = 10, 2 },
		"exception 3":  func(d *device) { d.longest, d.code = 10, 3 },
		"short answer": func(d *device) { d.short = 10 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDevice(t, "eastron-sdm630", imported(5_000_000))
				limit(d)
				rec := start(t, d, reader.Config{})
				if got := rec.after(5 * time.Second); len(got) == 0 || got[0].Quality != meter.Good {
					t.Fatalf("%d readings, %v", len(got), rec.r.Err())
				}
				longer := func() (n int) {
					d.do(func() {
						for _, b := range d.reads {
							if b.Count > 10 {
								n++
							}
						}
						d.reads = nil
					})
					return n
				}
				if longer() == 0 {
					t.Fatal("it never asked for more")
				}
				d.do(func() { d.silent = true })
				rec.after(time.Minute)
				d.do(func() { d.silent = false })
				if got := rec.after(15 * time.Minute); len(got) < 800 || got[len(got)-1].Quality != meter.Good {
					t.Fatalf("%d readings", len(got))
				}
				if n := longer(); n > 0 {
					t.Errorf("asked %d times for more", n)
				}
				rec.r.Rebase()
				rec.after(5 * time.Second)
				if longer() == 0 {
					t.Error("of another device it expects no more")
				}
			})
		})
	}
}

// A register that the device lacks says nothing about how much it takes.
func TestLackingRegisterIsNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "eastron-sdm630", imported(5_000_000))
		longest := slices.MaxFunc(d.profile.Blocks(0), func(a, b profile.Block) int { return int(a.Count) - int(b.Count) })
		delete(d.image, profile.Register{Function: drivers.InputRegisters, Address: 0x0156})
		rec := start(t, d, reader.Config{})
		rec.after(12 * time.Second)
		d.do(func() { d.reads = nil })
		rec.after(12 * time.Second)
		d.do(func() {
			if !slices.ContainsFunc(d.reads, func(b profile.Block) bool { return b.Count == longest.Count }) {
				t.Errorf("reads no %d registers any more: %v", longest.Count, d.reads)
			}
		})
	})
}

// serial gives the device another serial number.
func (d *device) serial(t *testing.T, s string) {
	t.Helper()
	im, err := d.profile.NewImage(0, profile.Identity{Serial: s})
	if err != nil {
		t.Fatal(err)
	}
	d.do(func() {
		for r, v := range im {
			if r.Function == drivers.HoldingRegisters {
				d.image[r] = v
			}
		}
	})
}

// A meter that somebody has put in the place of another is noticed by its
// serial number: at its first reading if it was away, within a minute if not,
// and after a restart.
func TestSerialNumberIsPinned(t *testing.T) {
	suspect := func(t *testing.T, r meter.Reading) {
		t.Helper()
		if r.Quality != meter.Suspect || !strings.Contains(r.Reason, `serial number is "77", was "1"`) {
			t.Fatalf("%s %q", r.Quality, r.Reason)
		}
	}
	first := func(got []meter.Reading, n int) meter.Reading {
		got = slices.DeleteFunc(slices.Clone(got), func(r meter.Reading) bool { return r.Quality == meter.Stale })
		if n < 0 {
			n += len(got)
		}
		return got[n]
	}
	run := func(name string, f func(t *testing.T, d *device, rec *recorder)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDevice(t, "eastron-sdm630", imported(5_000_000))
				rec := start(t, d, reader.Config{})
				if got := rec.after(3 * time.Second); first(got, 0).Quality != meter.Good {
					t.Fatal(got[0].Reason)
				}
				if s := rec.r.State().Pinned.Serial; s != "1" {
					t.Fatalf("pinned to %q", s)
				}
				f(t, d, rec)
			})
		})
	}
	run("away", func(t *testing.T, d *device, rec *recorder) {
		d.do(func() { d.silent = true })
		rec.after(20 * time.Second)
		d.serial(t, "77")
		d.do(func() { d.silent = false })
		got := rec.after(20 * time.Second)
		suspect(t, first(got, 0))
		suspect(t, first(got, -1))
		rec.r.Rebase()
		if got := rec.after(3 * time.Second); first(got, -1).Quality != meter.Good {
			t.Errorf("after the exchange was confirmed: %q", first(got, -1).Reason)
		}
		if s := rec.r.State().Pinned.Serial; s != "77" {
			t.Errorf("pinned to %q", s)
		}
	})
	run("unnoticed", func(t *testing.T, d *device, rec *recorder) {
		d.serial(t, "77")
		suspect(t, first(rec.after(70*time.Second), -1))
	})
	run("restart", func(t *testing.T, d *device, rec *recorder) {
		stored := rec.r.State()
		d.serial(t, "77")
		again := start(t, d, reader.Config{State: poll.Resume(stored.Page, stored.Registers, stored.Pinned, time.Minute)})
		suspect(t, first(again.after(time.Second), 0))
	})
	run("not told any more", func(t *testing.T, d *device, rec *recorder) {
		for _, how := range []func(){func() { d.refuses = drivers.HoldingRegisters }, func() { d.mute = drivers.HoldingRegisters }} {
			d.do(func() { d.silent = true })
			rec.after(20 * time.Second)
			d.do(func() { d.silent = false; how() })
			got := rec.after(20 * time.Second)
			if r := first(got, 0); r.Quality != meter.Suspect || !strings.Contains(r.Reason, "not told") {
				t.Fatalf("%s %q", r.Quality, r.Reason)
			}
			d.do(func() { d.refuses, d.mute = 0, 0 })
			if got := rec.after(30 * time.Second); first(got, -1).Quality != meter.Good { // it was starting up
				t.Errorf("%q", first(got, -1).Reason)
			}
		}
	})
}

// A device that has never told a serial number is read all the same.
func TestWithoutSerialNumber(t *testing.T) {
	for name, how := range map[string]func(d *device){
		"refused": func(d *device) { d.refuses = drivers.HoldingRegisters },
		"silent":  func(d *device) { d.mute = drivers.HoldingRegisters },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDevice(t, "eastron-sdm630", imported(5_000_000))
				how(d)
				rec := start(t, d, reader.Config{})
				for _, r := range rec.after(2 * time.Minute) {
					if r.Quality != meter.Good {
						t.Fatalf("%s %q", r.Quality, r.Reason)
					}
				}
				asked := 0
				d.do(func() {
					for _, b := range d.reads {
						if b.Function == drivers.HoldingRegisters {
							asked++
						}
					}
				})
				if asked < 2 || asked > 4 {
					t.Errorf("asked %d times in two minutes", asked)
				}
			})
		})
	}
}

// Some adapters cut long answers short. One bad frame is a disturbance and
// costs a poll; two for the same block are a limit, and it is learned for all.
func TestLearnsFromShortAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "eastron-sdm630", imported(5_000_000))
		d.cut = 40
		rec := start(t, d, reader.Config{})
		got := rec.after(15 * time.Second)
		if len(got) < 10 || got[len(got)-1].Quality != meter.Good {
			t.Fatalf("%d readings", len(got))
		}
		d.do(func() { d.reads = nil })
		rec.after(12 * time.Second)
		d.do(func() {
			for _, b := range d.reads {
				if b.Count > 40 {
					t.Errorf("still asks for %d registers", b.Count)
				}
			}
		})
	})
}

// busy is a register access that the line has no time for.
type busy struct {
	drivers.Register
	free *atomic.Bool
}

func (b busy) ReadRegisters(ctx context.Context, fn drivers.Function, addr, count uint16) ([]byte, error) {
	if !b.free.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return b.Register.ReadRegisters(ctx, fn, addr, count)
}

// On a line without time to spare the slow points wait, and nothing else does;
// but not for ever.
func TestSlowPointsGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var free atomic.Bool
		d := newDevice(t, "eastron-sdm630", imported(5_000_000))
		rec := start(t, d, reader.Config{Slow: busy{d, &free}})
		slow := func(got []meter.Reading) (n int) {
			for _, r := range got {
				if _, ok := r.Value(meter.Energy, 0); ok {
					n++
				}
			}
			return n
		}
		if got := rec.after(500 * time.Millisecond); slow(got) != 1 {
			t.Fatalf("the first poll reads everything: %d of %d", slow(got), len(got))
		}
		got := rec.after(60 * time.Second)
		if len(got) < 50 {
			t.Errorf("%d readings in 60 s", len(got))
		}
		if n := slow(got); n < 2 || n > 4 {
			t.Errorf("slow points %d times in 60 s without time for them, want about three", n)
		}
		free.Store(true)
		if got := rec.after(60 * time.Second); slow(got) < 5 {
			t.Errorf("slow points %d times in 60 s", slow(got))
		}
	})
}

// The ratio of the current transformers is part of who a meter is: whoever
// turns it multiplies what is billed.
func TestRatioIsPinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "chint-dtsu666-ct", imported(5_000_000))
		set := func(ratio uint16) {
			for _, p := range d.profile.Points {
				for _, r := range p.Ratios {
					if r.Address == 6 {
						d.do(func() { d.image[profile.Register{Function: p.Function, Address: 6}] = ratio })
					}
				}
			}
		}
		set(1)
		rec := start(t, d, reader.Config{})
		if got := rec.after(3 * time.Second); got[len(got)-1].Quality != meter.Good {
			t.Fatal(got[len(got)-1].Reason)
		}
		stored := rec.r.State()
		set(2)
		if got := rec.after(3 * time.Second); !strings.Contains(got[len(got)-1].Reason, "transformer ratios") {
			t.Errorf("%s %q", got[len(got)-1].Quality, got[len(got)-1].Reason)
		}
		// It is not forgotten over a restart.
		again := start(t, d, reader.Config{State: poll.Resume(stored.Page, stored.Registers, stored.Pinned, time.Minute)})
		if got := again.after(time.Second); got[0].Quality != meter.Suspect || !strings.Contains(got[0].Reason, "transformer ratios") {
			t.Errorf("after a restart: %s %q", got[0].Quality, got[0].Reason)
		}
	})
}

// A device on a network is known by its hardware address.
func TestHardwareAddressIsPinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "eastron-sdm630", imported(5_000_000))
		var mac atomic.Value
		mac.Store("02:00:00:00:00:01")
		rec := start(t, d, reader.Config{Where: func() poll.Identity {
			return poll.Identity{Address: "192.0.2.7:502", Hardware: mac.Load().(string)}
		}})
		if got := rec.after(2 * time.Second); got[0].Quality != meter.Good {
			t.Fatal(got[0].Reason)
		}
		mac.Store("02:00:00:00:00:02")
		if got := rec.after(2 * time.Second); !strings.Contains(got[1].Reason, `hardware address is "02:00:00:00:00:02"`) {
			t.Fatalf("%s %q", got[1].Quality, got[1].Reason)
		}
		rec.r.Rebase()
		if got := rec.after(2 * time.Second); got[1].Quality != meter.Good {
			t.Fatal(got[1].Reason)
		}
	})
}

// A SunSpec device may move its map between two reads, hang up in the walk,
// and be exchanged.
func TestSunSpec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		power := meter.Point{Quantity: meter.Power, Value: -2_500_000}
		d := newDevice(t, "sunspec-inverter", power, meter.Point{Quantity: meter.Export, Value: 7_000_000})
		d.silent = true
		rec := start(t, d, reader.Config{})
		rec.after(3 * time.Second)
		d.do(func() { d.silent = false })
		good := func(when string, within time.Duration) meter.Reading {
			t.Helper()
			got := rec.after(within)
			if len(got) == 0 {
				t.Fatalf("%s: no reading", when)
			}
			r := got[len(got)-1]
			if v, _ := r.Power(); v != -2_500_000 || r.Quality != meter.Good {
				t.Fatalf("%s: %s (%s) power %d", when, r.Quality, r.Reason, v)
			}
			return r
		}
		good("after silence", 2*time.Second)

		// New firmware inserts a model: everything moves down by 12.
		d.do(func() {
			moved := profile.Image{}
			for r, v := range d.image {
				if r.Address >= 40070 {
					r.Address += 12
				}
				moved[r] = v
			}
			for i := uint16(0); i < 12; i++ {
				moved[profile.Register{Function: 3, Address: 40070 + i}] = 0
			}
			moved[profile.Register{Function: 3, Address: 40070}] = 64999
			moved[profile.Register{Function: 3, Address: 40071}] = 10
			d.image = moved
		})
		if r := good("after the map moved", 4*time.Second); r.Raw[0].Address != 40082 {
			t.Fatalf("reads register %d", r.Raw[0].Address)
		}

		// Another device in its place.
		other := newDevice(t, "sunspec-inverter")
		im, err := other.profile.NewImage(0, profile.Identity{Manufacturer: "ACME", Serial: "2"})
		if err != nil {
			t.Fatal(err)
		}
		if err := other.profile.Encode([]meter.Point{power, {Quantity: meter.Export, Value: 7_000_000}}, im); err != nil {
			t.Fatal(err)
		}
		d.do(func() { d.image = im })
		got := rec.after(5 * time.Second)
		if r := got[len(got)-1]; r.Quality != meter.Suspect || !strings.Contains(r.Reason, "confirm the exchange") {
			t.Fatalf("exchanged device: %s (%s)", r.Quality, r.Reason)
		}
		rec.r.Rebase() // a person confirms it
		good("after the exchange was confirmed", 3*time.Second)
	})
}

// A device that answers but is no SunSpec device is left in peace more and
// more, while stale readings go on.
func TestWrongDeviceBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice(t, "sunspec-meter")
		d.image = profile.Image{}
		rec := start(t, d, reader.Config{})
		got := rec.after(10 * time.Minute)
		d.do(func() {
			if n := len(d.reads) / 3; n < 10 || n > 20 {
				t.Errorf("%d walks in 10 minutes, want about 15", n)
			}
		})
		if len(got) < 580 || got[0].Quality != meter.Stale {
			t.Errorf("%d readings", len(got))
		}
	})
}
