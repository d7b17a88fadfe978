package packet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/guard"
)

// TestAnyCutOfAStreamGivesTheSameMessages: however segments cut a stream,
// repeat themselves and overtake one another, the same requests are read.
func TestAnyCutOfAStreamGivesTheSameMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "requests")
		var stream []byte
		for i := range n {
			pdu := []byte{writeRegisters, 0, byte(i), 0, 1, 2, 0, 7}
			stream = append(stream, modbusADU(1, pdu...)...)
		}
		type seg struct{ from, to int }
		var segs []seg
		for at := 0; at < len(stream); {
			to := min(len(stream), at+rapid.IntRange(1, 40).Draw(t, "length"))
			segs = append(segs, seg{at, to})
			at = to
		}
		for i := range segs {
			if rapid.IntRange(0, 5).Draw(t, "overtakes") == 0 && i+1 < len(segs) {
				segs[i], segs[i+1] = segs[i+1], segs[i]
			}
			if rapid.IntRange(0, 5).Draw(t, "repeats") == 0 {
				segs = append(segs, segs[i])
			}
		}
		var got []byte
		s := newStreams(Rules{Network: Network{ModbusPorts: []uint16{502}}, Seed: 1, shrink: 4}, func(e *Event, k kind) {
			if k != isModbus || e.modbus.wrong != "" || len(e.modbus.pdu) != 8 {
				t.Fatalf("kind %d, %+v", k, e.modbus)
			}
			got = append(got, e.modbus.pdu[2])
		})
		base := rapid.Uint32().Draw(t, "sequence number") // may wrap
		event := func(flags uint8, seq uint32, payload []byte) {
			e := Event{kinds: isIP | isTCP, proto: 6, src: Addr{0, 1}, dst: Addr{0, 2}, srcPort: 40000, dstPort: 502, flags: flags, seq: seq, payload: payload}
			s.step(&e)
		}
		event(syn, base, nil)
		for _, x := range segs {
			event(ack, base+1+uint32(x.from), stream[x.from:x.to])
		}
		for i := range n {
			if i >= len(got) || got[i] != byte(i) {
				t.Fatalf("requests %v of %d, cut as %v", got, n, segs)
			}
		}
		if len(got) != n {
			t.Fatalf("%d requests read of %d", len(got), n)
		}
		for i := range s.buffers {
			if s.buffers[i].owner != nil {
				t.Fatal("a buffer is still in use")
			}
		}
	})
}

// TestBufferIsAMap: pieces behave like bytes at offsets, the first ones stay.
func TestBufferIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b buffer
		model := map[int]byte{}
		value := byte(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.IntRange(0, 4).Draw(t, "shift") == 0 {
				n := rapid.IntRange(0, 50).Draw(t, "by")
				b.shift(n)
				next := map[int]byte{}
				for at, v := range model {
					if at >= n {
						next[at-n] = v
					}
				}
				model = next
			} else {
				from := rapid.IntRange(0, 200).Draw(t, "from")
				value++
				p := bytes.Repeat([]byte{value}, rapid.IntRange(1, 30).Draw(t, "length"))
				if b.put(from, p) {
					for i, v := range p {
						if _, ok := model[from+i]; !ok {
							model[from+i] = v
						}
					}
				} else if b.n < maxPieces {
					t.Fatalf("no place with %d pieces", b.n)
				}
			}
			count, last := 0, -1
			for _, p := range b.pieces[:b.n] {
				if p.from <= last || p.to <= p.from {
					t.Fatalf("pieces %v", b.pieces[:b.n])
				}
				last = p.to
				for at := p.from; at < p.to; at++ {
					if v, ok := model[at]; !ok || v != b.data[at] {
						t.Fatalf("at %d stands %d, want %d (%t)", at, b.data[at], v, ok)
					}
					count++
				}
			}
			if count != len(model) {
				t.Fatalf("%d bytes held, want %d", count, len(model))
			}
		}
	})
}

// TestHelloSpansSegmentsAndRecords: a post-quantum hello needs two segments,
// and a hostile one comes in many records.
func TestHelloSpansSegmentsAndRecords(t *testing.T) {
	for _, share := range []int{0, 1216, 2600, 7000} {
		for _, size := range []int{1400, 100, 1} {
			for _, order := range []string{"in order", "last first"} {
				asked := &filterAnswers{}
				w := newWire(t, Rules{Answers: asked})
				hello := helloOf(t, "Ocpp.Example.org", share)
				c := w.dial(gateway, outside, 8443)
				if order == "last first" && len(hello) > size {
					last := len(hello) - size
					start := c.seq[0]
					c.seq[0] = start + uint32(last)
					c.segment(0, ack, hello[last:])
					c.seq[0] = start
					hello = hello[:last]
				}
				for len(hello) > 0 {
					n := min(size, len(hello))
					c.send(hello[:n])
					hello = hello[n:]
				}
				if asked.name != "ocpp.example.org" {
					t.Errorf("key share of %d, segments of %d, %s: read %q", share, size, order, asked.name)
				}
			}
		}
	}
	asked := &filterAnswers{}
	w := newWire(t, Rules{Answers: asked})
	whole := helloOf(t, "ocpp.example.org", 1216)[5:]
	var records []byte
	for len(whole) > 0 {
		n := min(64, len(whole))
		records = append(append(records, tlsHandshake, 3, 1, 0, byte(n)), whole[:n]...)
		whole = whole[n:]
	}
	w.dial(gateway, outside, 443).send(records)
	if asked.name != "ocpp.example.org" {
		t.Errorf("in records of 64 bytes: read %q", asked.name)
	}
}

// TestBuffersAreBounded: many half hellos take buffers from one another, and
// the sensor goes on.
func TestBuffersAreBounded(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 5 * maxBuffers {
		w.dial(stranger, fmt.Sprintf("198.51.100.%d", i%200+1), 443).send([]byte{tlsHandshake, 3, 1, 2, 0, 1})
		w.pass(time.Second)
	}
	if w.g.streams.taken == 0 {
		t.Error("no buffer was taken from another")
	}
	w.dial(stranger, inverter, 502).send(modbusADU(1, writeRegister, 0, 1, 0, 1))
	if n := rulesFound(w.findings())[guard.ModbusWriteUnauthorised]; n != 1 {
		t.Errorf("a write is found %d times afterwards", n)
	}
}

// TestTableForgetsTheStalest and never grows.
func TestTableForgetsTheStalest(t *testing.T) {
	tab := newTable[int](64, 42)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 100_000 {
		now := time.Duration(i)
		keep, _ := tab.at(Addr{1, 1}.hash(tab.seed), now)
		*keep = 7
		v, fresh := tab.at(Addr{rnd.Uint64(), rnd.Uint64()}.hash(tab.seed), now)
		if fresh {
			*v = i
		}
	}
	if len(tab.slots) != 64 {
		t.Errorf("%d entries", len(tab.slots))
	}
	if v := tab.find(Addr{1, 1}.hash(tab.seed)); v == nil || *v != 7 {
		t.Error("what is touched all the time was forgotten")
	}
}

// panicky is a detector with a bug.
type panicky struct{ calls int }

func (*panicky) name() string { return "panicky" }
func (*panicky) wants() kind  { return isIP }
func (p *panicky) step(*Event, *sink) {
	p.calls++
	panic("bug")
}

func TestAPanicStopsOneDetectorOnly(t *testing.T) {
	w := newWire(t, Rules{})
	bug := &panicky{}
	w.g.detectors = append([]detector{bug}, w.g.detectors...)
	w.g.wants = [kinds]uint16{}
	w.g.plan()
	c := w.dial(stranger, inverter, 502)
	for range 5 {
		c.send(modbusADU(1, writeRegister, 0, 40, 0, 1))
	}
	if bug.calls != 1 || w.g.panics != 1 || !strings.Contains(w.g.impaired(), "panicky") {
		t.Errorf("%d calls, %d panics, %q", bug.calls, w.g.panics, w.g.impaired())
	}
	w.g.panics = 0
	w.want("modbus.write_unauthorised high 192.168.1.99 x5")
}

// TestSubjectsAreBounded: a thousand attackers are told, the rest together.
func TestSubjectsAreBounded(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 3000 {
		w.dial(fmt.Sprintf("10.9.%d.%d", i/250, i%250+1), inverter, 502).send(modbusADU(1, writeRegister, 0, 1, 0, 1))
		w.pass(time.Minute)
	}
	all := w.findings()
	total, others := uint64(0), uint64(0)
	for _, f := range all {
		total += f.Count
		if f.Subject.Value == "others" {
			others += f.Count
		}
	}
	if len(all) > maxOpen+8 || total != 3000 || others < 1000 {
		t.Errorf("%d findings, %d counted, %d of others", len(all), total, others)
	}
}

// TestFlowsLieOnLines: what every frame needs of its conversation, and of its
// destination, is a line of memory each.
func TestFlowsLieOnLines(t *testing.T) {
	if n := unsafe.Sizeof(slot[flow]{}); unsafe.Sizeof(uintptr(0)) == 8 && n != 64 {
		t.Errorf("a flow and its time take %d bytes", n)
	}
	if n := unsafe.Sizeof(slot[destination]{}); unsafe.Sizeof(uintptr(0)) == 8 && n != 64 {
		t.Errorf("a destination and its time take %d bytes", n)
	}
}
