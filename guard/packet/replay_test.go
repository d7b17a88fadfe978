package packet

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/guard"
)

// attack is a Modbus write in a capture file.
func attack(t testing.TB, link layers.LinkType, ng bool, prefix []byte, cut int) []byte {
	t.Helper()
	frame := tcpFrame(t, stranger, 40000, inverter, 502, ack, 1, modbusADU(1, writeRegister, 0, 1, 0, 1))
	if link != layers.LinkTypeEthernet {
		frame = append(prefix, frame[14:]...)
	}
	ci := gopacket.CaptureInfo{Timestamp: epoch, Length: len(frame), CaptureLength: len(frame) - cut}
	var out bytes.Buffer
	if ng {
		w, err := pcapgo.NewNgWriter(&out, link)
		if err != nil {
			t.Fatal(err)
		}
		_ = w.WritePacket(ci, frame[:ci.CaptureLength])
		_ = w.Flush()
	} else {
		w := pcapgo.NewWriter(&out)
		_ = w.WriteFileHeader(65536, link)
		_ = w.WritePacket(ci, frame[:ci.CaptureLength])
	}
	return out.Bytes()
}

func TestReplayReadsAllLinkTypes(t *testing.T) {
	for _, tt := range []struct {
		link   layers.LinkType
		prefix []byte
	}{
		{layers.LinkTypeEthernet, nil},
		{layers.LinkTypeRaw, nil},
		{layers.LinkTypeNull, []byte{2, 0, 0, 0}},
		{layers.LinkTypeLinuxSLL, []byte{0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0}},
		{linuxSLL2, []byte{8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0}},
	} {
		for _, ng := range []bool{false, true} {
			all, counts := replay(t, attack(t, tt.link, ng, tt.prefix, 0), Rules{})
			if len(all) != 1 || all[0].Rule != guard.ModbusWriteUnauthorised || !all[0].First.Equal(epoch) || counts != (Counts{Packets: 1}) {
				t.Errorf("link %s, pcapng %t: %+v, %+v", tt.link, ng, counts, all)
			}
		}
	}
}

// TestReplayOfABrokenFile tells what was read, and that it broke off.
func TestReplayOfABrokenFile(t *testing.T) {
	for _, ng := range []bool{false, true} {
		whole := attack(t, layers.LinkTypeEthernet, ng, nil, 0)
		for n := range whole {
			_, err := Replay(context.Background(), bytes.NewReader(whole[:n]), Rules{}, slog.New(slog.DiscardHandler), func(guard.Finding) {}, nil)
			if err == nil && n > 200 {
				t.Errorf("pcapng %t: %d of %d bytes pass for a whole file", ng, n, len(whole))
			}
		}
	}
	_, err := Replay(context.Background(), strings.NewReader("no capture at all, but text"), Rules{}, slog.New(slog.DiscardHandler), nil, nil)
	if err == nil || !strings.Contains(err.Error(), "pcap") {
		t.Errorf("text is a capture: %v", err)
	}
}

// TestReplayRefusesLengthsThatCannotBe: a file of a hundred bytes must not
// make the program allocate gigabytes.
func TestReplayRefusesLengthsThatCannotBe(t *testing.T) {
	whole := attack(t, layers.LinkTypeEthernet, true, nil, 0)
	i := bytes.Index(whole, []byte{6, 0, 0, 0}) // the enhanced packet block
	for _, at := range []int{4, 20} {           // its length, and the packet's
		bad := bytes.Clone(whole)
		copy(bad[i+at:], []byte{0xfc, 0xff, 0xff, 0x7f})
		if _, err := Replay(context.Background(), bytes.NewReader(bad), Rules{}, slog.New(slog.DiscardHandler), nil, nil); err == nil || !strings.Contains(err.Error(), "bytes") {
			t.Errorf("at %d: %v", at, err)
		}
	}
}

func TestReplayCountsDecodeErrors(t *testing.T) {
	var out bytes.Buffer
	w := pcapgo.NewWriter(&out)
	_ = w.WriteFileHeader(65536, layers.LinkTypeEthernet)
	frame := tcpFrame(t, stranger, 40000, inverter, 502, ack, 1, nil)
	for n := range len(frame) + 1 {
		_ = w.WritePacket(gopacket.CaptureInfo{Timestamp: epoch, Length: n, CaptureLength: n}, frame[:n])
	}
	// Options that contradict themselves do not hide a request: its target
	// reads on.
	bad := tcpFrame(t, stranger, 40001, inverter, 502, ack, 1, append([]byte{9, 0, 0, 0}, modbusADU(1, writeRegister, 0, 1, 0, 1)...))
	bad[14+20+12] = 6 << 4
	_ = w.WritePacket(gopacket.CaptureInfo{Timestamp: epoch, Length: len(bad), CaptureLength: len(bad)}, bad)
	all, counts := replay(t, out.Bytes(), Rules{})
	if counts.Packets != uint64(len(frame)+2) || counts.DecodeErrors < 50 || counts.DecodeErrors > uint64(len(frame)+1) {
		t.Errorf("%+v", counts)
	}
	if len(all) != 1 || all[0].Rule != guard.ModbusWriteUnauthorised {
		t.Errorf("%+v", all)
	}
}

// TestLengthsThatLieAreDecodeErrors: an ARP packet whose addresses are said to
// be longer than it is.
func TestLengthsThatLieAreDecodeErrors(t *testing.T) {
	w := newWire(t, Rules{})
	frame := arpFrame(t, layers.ARPReply, router, macOf(router))
	for hw := range 256 {
		frame[14+4] = byte(hw)
		w.frame(frame)
	}
	if w.g.undecoded < 200 {
		t.Errorf("%d decode errors", w.g.undecoded)
	}
	w.want()
}

func TestReplayEndsWhenAsked(t *testing.T) {
	var out bytes.Buffer
	w := pcapgo.NewWriter(&out)
	_ = w.WriteFileHeader(65536, layers.LinkTypeEthernet)
	for range 10_000 {
		_ = w.WritePacket(gopacket.CaptureInfo{Timestamp: epoch, Length: 14, CaptureLength: 14}, make([]byte, 14))
	}
	ctx, cancel := context.WithCancel(context.Background())
	calls := 0
	_, err := Replay(ctx, &out, Rules{}, slog.New(slog.DiscardHandler), nil, func(Counts) { calls++; cancel() })
	if err == nil || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

func TestPolicy(t *testing.T) {
	n, err := ParsePolicy([]byte("modbus:\n  writers: [192.0.2.7, 2001:db8::7]\nbaseline:\n- 198.51.100.0/24\n- 192.0.2.1:443\n- \"[2001:db8::1]:443\"\n- \"*.Time.example.org:123\"\n"))
	want := Network{
		Writers: []netip.Addr{mustAddr("192.0.2.7"), mustAddr("2001:db8::7")},
		Baseline: []Destination{
			{Prefix: netip.MustParsePrefix("198.51.100.0/24")},
			{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Port: 443},
			{Prefix: netip.MustParsePrefix("2001:db8::1/128"), Port: 443},
			{Name: "time.example.org", Port: 123},
		},
	}
	if err != nil || !reflect.DeepEqual(n, want) {
		t.Errorf("%+v, %v", n, err)
	}
	for text, base := range map[string]bool{"": false, "# nothing\n": false, "modbus: {}\n": false, "baseline: []\n": true} {
		if n, err := ParsePolicy([]byte(text)); err != nil || (n.Baseline != nil) != base {
			t.Errorf("%q: %+v, %v", text, n, err)
		}
	}
	for text, want := range map[string]string{
		"modbus:\n  writers: [192.0.2.7]\n  readers: [192.0.2.8]\n": "3:",
		"modbus:\n  writers:\n  - 192.0.2.7\n  - 192.0.2\n":         "line 4",
		"baseline:\n- 192.0.2.0/33\n":                               "line 2",
		"baseline: [a b]\n":                                         "line 1",
		"baselin: []\n":                                             "1:",
		"baseline: 7\n":                                             "1:",
		"modbus:\n writers: !00000000\n0000000":                     "malformed",
		"\tx":                                                       "policy",
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
}

func TestNothingIsAllocatedPerFrame(t *testing.T) {
	for _, c := range load(t) {
		p := newPlayer(everythingBut(t), c)
		p.round() // what is new is allocated
		if n := testing.AllocsPerRun(3, p.round); n > 0 {
			t.Errorf("%v allocations for %d frames", n, len(c.frames))
		}
	}
}

// everythingBut the filter's answers, which take a name as a string.
func everythingBut(t testing.TB) Rules {
	r := everything(t)
	r.Answers, r.shrink = nil, 0
	return r
}

// player plays a capture round after round, each later than the one before.
type player struct {
	all   []captured // one after the other
	g     *engine
	shift time.Duration
}

func newPlayer(r Rules, all ...captured) *player {
	return &player{all: all, g: newEngine(r, all[0].link, 0, func(guard.Finding) {}, slog.New(slog.DiscardHandler))}
}

func (p *player) round() {
	for _, c := range p.all {
		p.g.dec.link = c.link
		for i, f := range c.frames {
			p.g.frame(f, p.shift+time.Duration(c.at[i]-c.at[0]), c.at[i], c.sizes[i], false)
		}
		p.shift = p.g.event.At + time.Hour
	}
}

// decode does that part of a round which is gopacket's.
func (p *player) decode() {
	for _, c := range p.all {
		p.g.dec.link = c.link
		for _, f := range c.frames {
			_ = p.g.dec.decode(f, &p.g.event)
		}
	}
}

// TestMemoryIsBounded: everything that an engine will ever use, it has when
// it is made.
func TestMemoryIsBounded(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	g := newEngine(everythingBut(t), layers.LinkTypeEthernet, 0, func(guard.Finding) {}, slog.New(slog.DiscardHandler))
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(g)
	if n := after.TotalAlloc - before.TotalAlloc; n > 6<<20 {
		t.Errorf("an engine takes %d bytes, at most 6 MiB", n)
	} else {
		t.Logf("an engine takes %d bytes", n)
	}
}

// threadTime is the processor time that this thread has used.
func threadTime(t testing.TB) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkCaptures runs everything on all public captures: frame is the cost
// of a frame, detect what of it is not gopacket's decoding. There is one
// engine, as on a gateway. The mean of what others on the machine disturb is
// told by cpu-ns, the rest is of the best round.
func BenchmarkCaptures(b *testing.B) {
	all := load(b)
	frames := 0
	for _, c := range all {
		frames += len(c.frames)
	}
	p := newPlayer(everythingBut(b), all...)
	p.round()
	b.ReportAllocs()
	runtime.LockOSThread() // whose processor time counts, not the wall's
	defer runtime.UnlockOSThread()
	var sum time.Duration
	whole, decoding := time.Hour, time.Hour
	for b.Loop() {
		start := threadTime(b)
		p.round()
		middle := threadTime(b)
		p.decode()
		end := threadTime(b)
		sum += middle - start
		whole, decoding = min(whole, middle-start), min(decoding, end-middle)
	}
	n := float64(frames)
	b.ReportMetric(float64(sum.Nanoseconds())/n/float64(b.N), "cpu-ns")
	b.ReportMetric(float64(whole.Nanoseconds())/n, "frame-ns")
	b.ReportMetric(float64((whole-decoding).Nanoseconds())/n, "detect-ns")
}
