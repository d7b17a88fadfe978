package profile

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// Type is how a number lies in registers. Bytes inside a register are always
// big-endian; WordOrder orders the registers.
type Type string

// Types of numbers.
const (
	U16 Type = "u16"
	S16 Type = "s16"
	U32 Type = "u32"
	S32 Type = "s32"
	U64 Type = "u64"
	S64 Type = "s64"
	F32 Type = "f32" // IEEE 754
	F64 Type = "f64"
	// Acc32 is a SunSpec accumulator: 0 means not implemented, and values
	// with the top bit set are negative (some inverters let them wrap).
	Acc32 Type = "acc32"
)

var typeRegisters = map[Type]uint16{U16: 1, S16: 1, U32: 2, S32: 2, Acc32: 2, F32: 2, U64: 4, S64: 4, F64: 4}

// Registers returns the length of t in registers, 0 if t is unknown.
func (t Type) Registers() uint16 { return typeRegisters[t] }

func (t Type) bits() uint { return uint(t.Registers()) * 16 }

func (t Type) float() bool { return t == F32 || t == F64 }

func (t Type) signed() bool { return t == S16 || t == S32 || t == S64 || t == Acc32 }

// WordOrder orders the registers of one number.
type WordOrder string

// Word orders.
const (
	BigEndian    WordOrder = "be" // most significant register first
	LittleEndian WordOrder = "le"
)

// Sign says which direction the device counts as positive.
type Sign string

// Signs.
const (
	SignImport Sign = "import"
	SignExport Sign = "export"
)

// Scale is an exact positive fraction. The zero value means 1.
type Scale struct{ Num, Den int64 }

// ParseScale reads "1000", "0.1", "1e-3" or "1/3".
func ParseScale(s string) (Scale, error) {
	bad := fmt.Errorf("scale %q: want a positive number or fraction such as 1000, 0.1, 1/3", s)
	if len(s) > 32 {
		return Scale{}, bad
	}
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		// big.Rat would compute any power of ten it is given.
		if e, err := strconv.Atoi(s[i+1:]); err != nil || e < -12 || e > 12 {
			return Scale{}, bad
		}
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok || r.Sign() <= 0 || !r.Num().IsInt64() || !r.Denom().IsInt64() {
		return Scale{}, bad
	}
	out := Scale{r.Num().Int64(), r.Denom().Int64()}
	if out.Num > maxScale || out.Den > maxScale {
		return Scale{}, bad
	}
	return out, nil
}

// UnmarshalYAML implements yaml.BytesUnmarshaler. It never fails: Parse reports
// a bad scale with its line, which an error from here would not have.
func (s *Scale) UnmarshalYAML(b []byte) error {
	var err error
	if *s, err = ParseScale(strings.Trim(strings.TrimSpace(string(b)), `"'`)); err != nil {
		*s = Scale{-1, 1}
	}
	return nil
}

func (s Scale) check(path string) error {
	if s.Num < 0 {
		return at(path, "want a positive number or fraction such as 1000, 0.1, \"1/3\"")
	}
	return nil
}

func (s Scale) orOne() Scale {
	if s.Num == 0 {
		return Scale{1, 1}
	}
	return s
}

// String returns the fraction in lowest terms.
func (s Scale) String() string {
	s = s.orOne()
	if s.Den == 1 {
		return strconv.FormatInt(s.Num, 10)
	}
	return fmt.Sprintf("%d/%d", s.Num, s.Den)
}

var errRange = errors.New("does not fit in 64 bits")

// number is an exact dyadic rational: what a register can hold.
type number struct {
	mant int64
	exp2 int // value = mant x 2^exp2
}

// errAbsent marks a value that the device says it does not have.
var errAbsent = errors.New("not available")

// number reads raw, the registers put together, as t says.
func (t Type) number(raw uint64) (number, error) {
	switch t {
	case F32:
		return floatNumber(float64(math.Float32frombits(uint32(raw))), 24)
	case F64:
		return floatNumber(math.Float64frombits(raw), 53)
	case U64:
		if raw > math.MaxInt64 {
			return number{}, errRange
		}
		return number{mant: int64(raw)}, nil
	case Acc32:
		if raw == 0 {
			return number{}, errAbsent
		}
	}
	if t.signed() {
		shift := 64 - t.bits()
		return number{mant: int64(raw<<shift) >> shift}, nil
	}
	return number{mant: int64(raw)}, nil
}

func floatNumber(f float64, precision int) (number, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return number{}, errAbsent
	}
	if math.Abs(f) >= 1<<63 {
		return number{}, errRange
	}
	frac, exp := math.Frexp(f) // f = frac x 2^exp, 0.5 <= |frac| < 1
	return number{mant: int64(math.Ldexp(frac, precision)), exp2: exp - precision}, nil
}

// times returns n x 10^exp10 x s, rounded half away from zero.
func (n number) times(s Scale, exp10 int) (int64, error) {
	s = s.orOne()
	num := new(big.Int).Mul(big.NewInt(n.mant), big.NewInt(s.Num))
	den := big.NewInt(s.Den)
	if n.exp2 >= 0 {
		num.Lsh(num, uint(n.exp2))
	} else {
		den.Lsh(den, uint(-n.exp2))
	}
	if exp10 >= 0 {
		num.Mul(num, pow10(exp10))
	} else {
		den.Mul(den, pow10(-exp10))
	}
	return roundDiv(num, den)
}

// roundDiv returns num/den rounded half away from zero; den > 0.
func roundDiv(num, den *big.Int) (int64, error) {
	q, r := new(big.Int).QuoRem(num, den, new(big.Int))
	if r.Abs(r).Lsh(r, 1).Cmp(den) >= 0 {
		q.Add(q, big.NewInt(int64(num.Sign())))
	}
	if !q.IsInt64() {
		return 0, errRange
	}
	return q.Int64(), nil
}

func pow10(n int) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil) }

// raw is the inverse of number and times: the registers of t that hold value
// best. It returns errRange if t cannot hold it.
func (t Type) raw(value int64, s Scale, exp10 int) (uint64, error) {
	s = s.orOne()
	num := new(big.Int).Mul(big.NewInt(value), big.NewInt(s.Den))
	den := big.NewInt(s.Num)
	if exp10 >= 0 {
		den.Mul(den, pow10(exp10))
	} else {
		num.Mul(num, pow10(-exp10))
	}
	if t.float() {
		r := new(big.Rat).SetFrac(num, den)
		if t == F32 {
			f, _ := r.Float32()
			return uint64(math.Float32bits(f)), nil
		}
		f, _ := r.Float64()
		return math.Float64bits(f), nil
	}
	v, err := roundDiv(num, den)
	if err != nil {
		return 0, err
	}
	lo, hi := int64(0), int64(math.MaxInt64)
	if bits := t.bits(); t.signed() {
		lo, hi = -1<<(bits-1), 1<<(bits-1)-1
	} else if bits < 64 {
		hi = 1<<bits - 1
	}
	if v < lo || v > hi {
		return 0, errRange
	}
	return uint64(v) & (math.MaxUint64 >> (64 - t.bits())), nil
}

// digit returns the smallest step around raw in the integer unit, at least 1.
func (t Type) digit(raw uint64, s Scale, exp10 int) int64 {
	n := number{mant: 1}
	if t.float() {
		if m, err := t.number(raw); err == nil {
			n.exp2 = m.exp2
		}
	}
	d, err := n.times(s, exp10)
	if err != nil {
		return math.MaxInt64
	}
	return max(d, 1)
}
