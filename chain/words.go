package chain

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/joulegate/joulegate/meter"
)

// Key is an Ed25519 public key: a device (libp2p identity and block author),
// an owner, a driver, an operator. Its text form is 64 hex digits.
type Key [32]byte

// Hash is a SHA-256.
type Hash [32]byte

// ID names a session or quote: 16 random bytes.
type ID [16]byte

func (k Key) String() string  { return hex.EncodeToString(k[:]) }
func (h Hash) String() string { return hex.EncodeToString(h[:]) }
func (i ID) String() string   { return hex.EncodeToString(i[:]) }

// Short returns the first eight hex digits, for logs and tables.
func (k Key) Short() string { return hex.EncodeToString(k[:4]) }

// MarshalText implements encoding.TextMarshaler (hex).
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalText implements encoding.TextMarshaler (hex).
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// MarshalText implements encoding.TextMarshaler (hex).
func (i ID) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Key) UnmarshalText(b []byte) error { return unhex("key", k[:], b) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) error { return unhex("hash", h[:], b) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *ID) UnmarshalText(b []byte) error { return unhex("id", i[:], b) }

func unhex(what string, dst, src []byte) error {
	if len(src) != 2*len(dst) {
		return fmt.Errorf("%s of %d characters, want %d hex digits", what, len(src), 2*len(dst))
	}
	_, err := hex.Decode(dst, src)
	return err
}

// Account names who holds money: a person's account is derived from the
// person's public key and says nothing about the person; a system account is
// named. Its text form is 40 hex digits, or "sys:" and a name.
type Account [20]byte

// AccountOf returns the account of the holder of key.
func AccountOf(key Key) Account {
	h := Sum(append([]byte(domainAccount), key[:]...))
	var a Account
	copy(a[:], h[:])
	a[0] |= 0x80 // person; system accounts start with zero
	return a
}

func system(name string) Account {
	var a Account
	copy(a[1:], name)
	return a
}

// System accounts.
var (
	AccountGrid      = system("grid")      // the supplier: retail in, feed-in out
	AccountNetwork   = system("network")   // use-of-network fees
	AccountLoss      = system("loss")      // value of losses
	AccountReserve   = system("reserve")   // backs every credit outstanding
	AccountPromotion = system("promotion") // funds credits to be earned
	AccountRounding  = system("rounding")  // residue of invoices
	AccountDispute   = system("dispute")   // disputed amounts
	AccountPayout    = system("payout")    // locked until a bank has paid it out
	// AccountCollateral holds what both sides of firm orders have put up.
	AccountCollateral = system("collateral")
	// AccountSettlement holds what is locked until another microgrid has paid.
	AccountSettlement = system("settlement")
)

// IsSystem reports whether a is a named account of the ledger itself.
func (a Account) IsSystem() bool { return a[0] == 0 }

func (a Account) String() string {
	if a.IsSystem() {
		return "sys:" + strings.TrimRight(string(a[1:]), "\x00")
	}
	return hex.EncodeToString(a[:])
}

// MarshalText implements encoding.TextMarshaler.
func (a Account) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Account) UnmarshalText(b []byte) error {
	if name, ok := strings.CutPrefix(string(b), "sys:"); ok {
		s := system(name)
		for _, k := range []Account{AccountGrid, AccountNetwork, AccountLoss, AccountReserve, AccountPromotion, AccountRounding, AccountDispute, AccountPayout, AccountCollateral, AccountSettlement} {
			if s == k && len(name) < len(a) {
				*a = k
				return nil
			}
		}
		return fmt.Errorf("unknown system account %q", b)
	}
	if err := unhex("account", a[:], b); err != nil {
		return err
	}
	if a[0]&0x80 == 0 {
		return errors.New("not an account: a person's account starts with 8 to f")
	}
	return nil
}

// Nano is money: 1e-9 of the currency unit that the genesis names.
type Nano int64

// NanoPerWh is a price. 300000 nano/Wh is 0.30 per kWh.
type NanoPerWh int64

// Slot numbers the settlement intervals: Unix time divided by the slot length
// of the genesis (900 s; shorter in demonstrations), UTC.
type Slot int64

// SlotAt returns the slot that holds Unix time ms (milliseconds).
func SlotAt(unixMs int64, slotSeconds int64) Slot {
	d := slotSeconds * 1000
	q := unixMs / d
	if unixMs%d < 0 {
		q--
	}
	return Slot(q)
}

// Start returns the slot's first millisecond.
func (s Slot) Start(slotSeconds int64) int64 { return int64(s) * slotSeconds * 1000 }

// End returns the first millisecond after the slot.
func (s Slot) End(slotSeconds int64) int64 { return (int64(s) + 1) * slotSeconds * 1000 }

// ErrOverflow is returned by checked arithmetic.
var ErrOverflow = errors.New("arithmetic overflow")

// AddNano returns a+b or ErrOverflow.
func AddNano(a, b Nano) (Nano, error) {
	c := a + b
	if (c > a) != (b > 0) && b != 0 {
		return 0, ErrOverflow
	}
	return c, nil
}

// Cost returns price times energy, exactly, or ErrOverflow.
func Cost(p NanoPerWh, e meter.WattHour) (Nano, error) {
	if p == 0 || e == 0 {
		return 0, nil
	}
	c := int64(p) * int64(e)
	if c/int64(e) != int64(p) || (int64(p) == -1 && int64(e) == math.MinInt64) || (int64(e) == -1 && int64(p) == math.MinInt64) {
		return 0, ErrOverflow
	}
	return Nano(c), nil
}

// PPM returns floor(n*ppm/1e6) for n >= 0 and 0 <= ppm <= 1e6.
func PPM(n Nano, ppm int64) Nano {
	if n < 0 || ppm < 0 || ppm > 1_000_000 {
		panic(fmt.Sprintf("chain: PPM(%d, %d) out of range", n, ppm))
	}
	hi, lo := bits.Mul64(uint64(n), uint64(ppm))
	q, _ := bits.Div64(hi, lo, 1_000_000)
	return Nano(q)
}

// Side is the side of an order.
type Side uint8

// Sides.
const (
	Buy  Side = 1
	Sell Side = 2
)

func (s Side) String() string {
	switch s {
	case Buy:
		return "buy"
	case Sell:
		return "sell"
	}
	return fmt.Sprintf("side(%d)", uint8(s))
}

// Role says what a meter stands for in its gateway's energy balance.
type Role uint8

// Meter roles.
const (
	// RoleSite is the meter at the house's connection: what it imports and
	// exports is what the house owes and is owed. Exactly one per gateway.
	RoleSite Role = 1 + iota
	// RoleProduction is behind the site meter and counts generation in its
	// export register.
	RoleProduction
	// RoleCharger is the session meter of a charger, behind the site meter.
	RoleCharger
	// RoleConnection is the meter between the microgrid and the public grid:
	// against it losses are reconciled. At most one per microgrid.
	RoleConnection
	// RoleStorage is a battery's meter, behind the site meter: its import
	// register counts charging, its export register discharging.
	RoleStorage
)

var roles = [...]string{RoleSite: "site", RoleProduction: "production", RoleCharger: "charger", RoleConnection: "connection", RoleStorage: "storage"}

func (r Role) String() string {
	if r == 0 || int(r) >= len(roles) {
		return fmt.Sprintf("role(%d)", uint8(r))
	}
	return roles[r]
}

// ParseRole is the inverse of Role.String.
func ParseRole(s string) (Role, error) {
	for i := RoleSite; int(i) < len(roles); i++ {
		if roles[i] == s {
			return i, nil
		}
	}
	return 0, fmt.Errorf("unknown meter role %q (site, production, charger, connection, storage)", s)
}
