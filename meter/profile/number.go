package profile

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
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
	// Text is printable ASCII, padded with NUL or blanks. Its number is what
	// Code makes of it.
	Text Type = "text"
)

var typeRegisters = map[Type]uint16{U16: 1, S16: 1, U32: 2, S32: 2, Acc32: 2, F32: 2, U64: 4, S64: 4, F64: 4}

// Registers returns the length of t in registers, 0 if t is unknown or Text.
func (t Type) Registers() uint16 { return typeRegisters[t] }

func (t Type) bits() uint { return uint(t.Registers()) * 16 }

// most returns the largest raw number of t.
func (t Type) most() uint64 { return math.MaxUint64 >> (64 - t.bits()) }

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

// by returns s x n x f.
func (s Scale) by(n int64, f Scale) (Scale, error) {
	s, f = s.orOne(), f.orOne()
	r := new(big.Rat).SetFrac64(s.Num, s.Den)
	r.Mul(r, new(big.Rat).SetFrac64(f.Num, f.Den))
	r.Mul(r, new(big.Rat).SetInt64(n))
	if r.Sign() <= 0 || !r.Num().IsInt64() || !r.Denom().IsInt64() {
		return Scale{}, errRange
	}
	return Scale{r.Num().Int64(), r.Denom().Int64()}, nil
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

var errRange = errors.New("out of range")

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

// over returns n / s, rounded half away from zero; n is an integer.
func (n number) over(s Scale) (int64, error) {
	s = s.orOne()
	return number{mant: n.mant}.times(Scale{s.Den, s.Num}, 0)
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
	return t.integer(v)
}

// floor is raw, rounded towards zero.
func (t Type) floor(value int64, s Scale) (uint64, error) {
	raw, err := t.raw(value, s, 0)
	if err != nil || t.float() {
		return raw, err
	}
	n, err := t.number(raw)
	if err != nil {
		return 0, err
	}
	// raw rounds half away from zero, so it is one too far or right.
	s = s.orOne()
	back := new(big.Int).Mul(big.NewInt(n.mant), big.NewInt(s.Num))
	want := new(big.Int).Mul(big.NewInt(value), big.NewInt(s.Den))
	if back.CmpAbs(want) > 0 {
		return t.integer(n.mant - int64(back.Sign()))
	}
	return raw, nil
}

// integer returns the registers of an integer type that hold v.
func (t Type) integer(v int64) (uint64, error) {
	lo, hi := int64(0), int64(math.MaxInt64)
	if bits := t.bits(); t.signed() {
		lo, hi = -1<<(bits-1), 1<<(bits-1)-1
	} else if bits < 64 {
		hi = 1<<bits - 1
	}
	if v < lo || v > hi {
		return 0, errRange
	}
	return uint64(v) & t.most(), nil
}

// maxCode is the longest text that is a code.
const maxCode = 4

// Code returns the number of a text of 1..4 printable ASCII characters: its
// bytes, the first one most significant. "C2" is 0x4332. ok is false for any
// other text.
func Code(s string) (code int64, ok bool) {
	if len(s) == 0 || len(s) > maxCode {
		return 0, false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return 0, false
		}
		code = code<<8 | int64(s[i])
	}
	return code, true
}

// textOf is the inverse of Code.
func textOf(code int64) (string, error) {
	var b []byte
	for v := code; v > 0; v >>= 8 {
		b = append(b, byte(v))
	}
	slices.Reverse(b)
	if c, ok := Code(string(b)); !ok || c != code {
		return "", errRange
	}
	return string(b), nil
}

// digit returns the smallest step around n in the integer unit, at least 1.
func (t Type) digit(n number, s Scale, exp10 int) int64 {
	step := number{mant: 1}
	if t.float() {
		step.exp2 = n.exp2
	}
	d, err := step.times(s, exp10)
	if err != nil {
		return math.MaxInt64
	}
	return max(d, 1)
}
