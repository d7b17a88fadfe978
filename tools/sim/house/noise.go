package house

// Everything random is a pure function of (seed, stream, index), so that the
// simulation has no generator whose state depends on how it was stepped.

// Streams of randomness.
const (
	streamCloud = iota + 1
	streamSource
	streamStandby
	streamFridge
	streamRegister
	streamFlicker
	streamCooking // and one more per house
)

// hash is splitmix64 over its arguments.
func hash(seed uint64, stream, index int64) uint64 {
	x := seed
	for _, v := range [...]int64{stream, index} {
		x += 0x9e3779b97f4a7c15 + uint64(v)
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		x ^= x >> 31
	}
	return x
}

// between returns lo <= x < hi.
func between(seed uint64, stream, index, lo, hi int64) int64 {
	return lo + int64(hash(seed, stream, index)%uint64(hi-lo))
}

// smooth is noise of 0..1000 that is drawn anew every period and moves
// smoothly in between.
func smooth(seed uint64, stream, t, period int64) int64 {
	i, at := floorDiv(t, period)
	a, b := between(seed, stream, i, 0, 1001), between(seed, stream, i+1, 0, 1001)
	return a + (b-a)*ease(at*1000/period)/1000
}

// ease maps 0..1000 onto itself with flat ends: 3x²-2x³.
func ease(x int64) int64 { return x * x * (3000 - 2*x) / 1_000_000 }

func floorDiv(a, b int64) (q, r int64) {
	q, r = a/b, a%b
	if r < 0 {
		q, r = q-1, r+b
	}
	return q, r
}

func clamp(x, lo, hi int64) int64 { return min(max(x, lo), hi) }
