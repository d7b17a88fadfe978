package ledger

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/chain"
)

// plainState is the simplest State there is, and the second implementation
// that the first is checked against: a map, sorted at every Iterate.
type plainState map[string]string

func (p plainState) Get(key []byte) []byte {
	if v, ok := p[string(key)]; ok {
		return []byte(v)
	}
	return nil
}
func (p plainState) Set(key, value []byte) { p[string(key)] = string(value) }
func (p plainState) Delete(key []byte)     { delete(p, string(key)) }
func (p plainState) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	var keys []string
	for k := range p {
		if strings.HasPrefix(k, string(prefix)) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if !fn([]byte(k), []byte(p[k])) {
			return
		}
	}
}

// Overlays three deep behave like one plain map, whatever is written,
// deleted, committed and discarded in between.
func TestOverlayIsTransparent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plain := []plainState{{}}
		layers := []State{NewMapState()}
		keys := rapid.SliceOfN(rapid.Byte(), 0, 3)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			top := len(layers) - 1
			k := keys.Draw(t, "key")
			switch rapid.IntRange(0, 6).Draw(t, "step") {
			case 0, 1:
				v := append([]byte{1}, k...)
				v[0] = rapid.Byte().Draw(t, "value")
				layers[top].Set(k, v)
				plain[top].Set(k, v)
			case 2:
				layers[top].Delete(k)
				plain[top].Delete(k)
			case 3:
				if top < 3 {
					layers = append(layers, NewOverlay(layers[top]))
					plain = append(plain, maps.Clone(plain[top]))
				}
			case 4:
				if top > 0 {
					layers[top].(*Overlay).Commit()
					layers = layers[:top]
					plain[top-1] = plain[top]
					plain = plain[:top]
				}
			case 5:
				layers, plain = layers[:max(top, 1)], plain[:max(top, 1)]
			}
			top = len(layers) - 1
			if got, want := layers[top].Get(k), plain[top].Get(k); !bytes.Equal(got, want) {
				t.Fatalf("%x holds %x, want %x", k, got, want)
			}
			limit := rapid.IntRange(1, 10).Draw(t, "limit")
			if got, want := first(layers[top], k, limit), first(plain[top], k, limit); !slices.Equal(got, want) {
				t.Fatalf("under %x: %x, want %x", k, got, want)
			}
			if StateHash(layers[top]) != StateHash(plain[top]) {
				t.Fatal("hashes differ")
			}
		}
	})
}

// first returns up to n keys and values under prefix.
func first(st State, prefix []byte, n int) []string {
	var all []string
	st.Iterate(prefix, func(k, v []byte) bool {
		all = append(all, string(k)+"="+string(v))
		return len(all) < n
	})
	return all
}

type writeCounter struct {
	State
	writes int
}

func (w *writeCounter) Set(k, v []byte) { w.writes++; w.State.Set(k, v) }
func (w *writeCounter) Delete(k []byte) { w.writes++; w.State.Delete(k) }

func TestCommitWritesOnlyWhatDiffers(t *testing.T) {
	base := &writeCounter{State: NewMapState()}
	base.Set([]byte("a"), []byte("1"))
	base.writes = 0
	o := NewOverlay(base)
	o.Set([]byte("a"), []byte("2"))
	o.Set([]byte("a"), []byte("1"))
	o.Delete([]byte("absent"))
	o.Commit()
	equal(t, "writes", base.writes, 0)
}

// The quick decoder of balances knows exactly what the general one knows.
func TestBalancesDecodeAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := chain.Nano(rapid.Int64().Draw(t, "n") >> rapid.IntRange(0, 63).Draw(t, "shift"))
		b := chain.Marshal(entry[chain.Nano]{Version: entryVersion, Value: n})
		var quick chain.Nano
		if !parseNano(b, &quick) || quick != n {
			t.Fatalf("%x is %d, quick %d", b, n, quick)
		}
		if rapid.Bool().Draw(t, "flip") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		} else {
			b = append(b[:rapid.IntRange(0, len(b)).Draw(t, "cut")], rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "tail")...)
		}
		var e entry[chain.Nano]
		err := chain.Unmarshal(b, &e)
		known := err == nil && e.Version == entryVersion
		if parseNano(b, &quick) != known || known && quick != e.Value {
			t.Fatalf("%x: %v %+v, quick %d", b, err, e, quick)
		}
	})
}
