package slave

import (
	"testing"

	"github.com/joulegate/joulegate/meter/profile"
)

// Whatever a master sends, a request is cut off only if its checksum is right,
// no byte is used twice, and the answer fits into a frame.
func FuzzRequest(f *testing.F) {
	f.Add(wrapRTU(1, []byte{4, 0, 0, 0, 2}), true)
	f.Add(wrapRTU(1, []byte{3, 0x9C, 0x40, 0, 4}), false)
	f.Add(wrapRTU(1, []byte{16, 3, 0xE8, 0, 1, 2, 0, 16}), false)
	f.Add(append(wrapRTU(1, []byte{6, 3, 0xE8, 0, 16}), wrapRTU(2, []byte{4, 0, 0, 0, 2})...), false)
	f.Add(wrapRTU(1, []byte{43, 14, 1, 0}), true)
	bus, err := NewBus(Config{})
	if err != nil {
		f.Fatal(err)
	}
	for i, p := range profile.All() {
		u, err := NewUnit(p, UnitConfig{})
		if err != nil {
			f.Fatal(err)
		}
		if err := bus.Add(uint8(i+1), u); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, silent bool) {
		for len(b) > 0 {
			req, rest := takeRequest(b, silent)
			if req == nil {
				if silent && rest != nil {
					t.Fatalf("% X is kept after silence", b)
				}
				return
			}
			if len(req)+len(rest) != len(b) {
				t.Fatalf("%d bytes became %d and %d", len(b), len(req), len(rest))
			}
			unit, pdu, ok := unwrapRTU(req)
			if !ok {
				t.Fatalf("% X has a wrong checksum", req)
			}
			if reply := bus.Handle(unit, pdu); reply != nil && len(wrapRTU(unit, reply)) > maxADU {
				t.Fatalf("answer of %d bytes to % X", len(reply), pdu)
			}
			b = rest
		}
	})
}
