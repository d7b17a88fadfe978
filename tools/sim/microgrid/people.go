package microgrid

import (
	"crypto/ed25519"
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

const (
	chainID  = "soak"
	slotMs   = 900_000
	maxPower = 20_000 // W at every house
	start    = 1_800_000_000_000
)

var first = chain.SlotAt(start, slotMs/1000)

// keyOf derives a key pair from a name, so that a seed gives the same world.
func keyOf(name string) (ed25519.PrivateKey, chain.Key) {
	seed := chain.Sum([]byte("soak " + name))
	priv := ed25519.NewKeyFromSeed(seed[:])
	return priv, chain.Key(priv.Public().(ed25519.PublicKey))
}

// person signs transactions and quotes.
type person struct {
	Name  string
	priv  ed25519.PrivateKey
	key   chain.Key
	Nonce uint64 // last used in an accepted transaction, as far as he knows
}

func newPerson(name string) *person {
	priv, k := keyOf("person " + name)
	return &person{Name: name, priv: priv, key: k}
}

func (p *person) account() chain.Account { return chain.AccountOf(p.key) }

// home is a house: its gateway's chain, its meters, and what is wrong with
// them. What is not exported follows from N.
type home struct {
	N       int
	Feeder  string
	Owner   *person
	Gone    bool // revoked
	Pos     chain.Position
	Prev    chain.Hash
	name    string
	priv    ed25519.PrivateKey
	key     chain.Key
	pv      int64 // W peak
	charger bool
	battery bool

	// The truth, and what the meter shows of it.
	Imp, Exp     meter.WattHour
	Gen          meter.WattHour
	EV           meter.WattHour // into cars in this slot, by their session meters
	V2G          meter.WattHour // out of cars
	In, Out      meter.WattHour // of the battery
	Page, PVPage uint64
	BatteryPage  uint64
	Segment      uint32
	OffImp       meter.WattHour // shown - true, after a swap
	OffExp       meter.WattHour
	Stuck        int        // slots for which the meter stands still
	Away         int        // slots for which the gateway is cut off
	Skew         chain.Slot // by which its clock is ahead
	Skewed       int        // slots for which it is
	Queue        [][]byte
	Flushed      int64 // block in which it handed in what it had kept
	Dirty        int   // slots for which its fills are not predicted
	Shown        reg   // by the site meter, when it was last well
	Last         MeterTruth
}

// cut tells whether the ledger does not hear the gateway yet.
func (h *home) cut() bool { return h.Away > 0 || len(h.Queue) > 0 }

type reg struct{ Imp, Exp meter.WattHour }

// MeterTruth is what the ledger's view of a meter was after the last block.
type MeterTruth struct {
	Page             uint64
	Epoch, Segment   uint32
	Import, Export   meter.WattHour
	AtMs             int64
	SegImp, SegExp   meter.WattHour // sums over segments that are over
	Known            bool
	FirstImp, FirstE meter.WattHour
	Jumped           bool // in quarantine
	Waits            reg  // for its release
}

func charges(n int) bool { return n%3 != 1 }

func newHome(n int) *home {
	h := &home{N: n, Feeder: fmt.Sprintf("f%02d", n/20), Pos: chain.Position{Epoch: 1}, Imp: meter.WattHour(1000 + n), Exp: meter.WattHour(500 + n), Gen: 1000}
	h.identify()
	h.Owner = newPerson("owner " + h.name)
	return h
}

// identify sets what follows from the home's number.
func (h *home) identify() {
	h.name = fmt.Sprintf("h%04d", h.N)
	h.priv, h.key = keyOf("device " + h.name)
	h.pv, h.charger, h.battery = int64(h.N%3)*4000, charges(h.N), h.N%17 == 2
}

func (h *home) validator() chain.Key {
	_, k := keyOf("validator " + h.name)
	return k
}

func (h *home) member(validator bool) chain.Member {
	m := chain.Member{Device: h.key, Name: h.name, Owner: h.Owner.key, MaxPower: maxPower}
	if validator {
		m.Validator = h.validator()
	}
	return m
}

// join is what a gateway says to become a member.
func (h *home) join(validator bool) chain.Join {
	m := h.member(validator)
	return chain.Join{Member: m, Sig: chain.Sign(h.priv, chain.DomainMember, chain.Marshal(m))}
}

// sign appends a block to the home's chain.
func (h *home) sign(now int64, records ...chain.Record) []byte {
	h.Pos.Number++
	s, err := chain.SignBlock(chain.Block{Chain: chainID, Epoch: h.Pos.Epoch, Number: h.Pos.Number, Prev: h.Prev, Time: now, Records: records}, h.priv)
	if err != nil {
		panic(err)
	}
	h.Prev = s.Hash
	return s.Raw
}

// car is a driver with a car, and who pays when it is charged by its card:
//
//	i%3 = 0   the driver
//	i%3 = 1   the driver of the car before, who has several cards: a family's
//	i%3 = 2   the owner of the house where the car is at home
type car struct {
	Driver *person
	Card   *person  // with a mandate; nil: he has none
	Lost   *person  // a card whose mandate was revoked
	Rest   int      // slots until he comes again
	Cards  int      // that he has had
	AtID   chain.ID // of at, in a checkpoint

	i    int
	at   *charging
	home int // house at which it is at home; -1: it has none
}

// newCar is car i of a microgrid that has been founded with so many homes.
func newCar(i, homes int) *car {
	c := &car{Driver: newPerson(fmt.Sprint("driver ", i)), i: i, home: -1}
	if i%3 == 2 {
		if c.home = i * 7 % homes; !charges(c.home) {
			c.home = (c.home + 1) % homes
		}
	}
	return c
}

func (c *car) kind() chain.MandateKind {
	if c.home >= 0 {
		return chain.MandateOwner
	}
	return chain.MandateCard
}

// charging is a session as its gateway and driver know it.
type charging struct {
	HomeAt, CarAt int // of home and by, in a checkpoint

	home *home
	by   *car

	ID     chain.ID
	Quote  chain.Quote
	Seq    uint32
	Reg    meter.WattHour // import register of the session meter
	Out    meter.WattHour // export register
	Given  meter.WattHour // of it, since the begin
	Begun  bool
	Begin  meter.WattHour
	Since  int64 // ms of the last reading
	Power  int64 // W; negative: the car gives
	Ends   int64 // ms
	Clean  bool  // nothing has been wrong with it
	Opened int64
}
