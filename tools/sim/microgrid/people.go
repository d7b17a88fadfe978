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
	name  string
	priv  ed25519.PrivateKey
	key   chain.Key
	nonce uint64 // last used in an accepted transaction, as far as he knows
}

func newPerson(name string) *person {
	priv, k := keyOf("person " + name)
	return &person{name: name, priv: priv, key: k}
}

func (p *person) account() chain.Account { return chain.AccountOf(p.key) }

// home is a house: its gateway's chain, its meters, and what is wrong with
// them.
type home struct {
	name    string
	feeder  string
	priv    ed25519.PrivateKey
	key     chain.Key
	owner   *person
	pv      int64 // W peak
	charger bool
	battery bool
	gone    bool // revoked
	pos     chain.Position
	prev    chain.Hash

	// The truth, and what the meter shows of it.
	imp, exp   meter.WattHour
	gen        meter.WattHour
	ev         meter.WattHour // into cars in this slot, by their session meters
	v2g        meter.WattHour // out of cars
	page, pvPg uint64
	segment    uint32
	offImp     meter.WattHour // shown - true, after a swap
	offExp     meter.WattHour
	stuck      int // slots for which the meter stands still
	away       int // slots for which the gateway is cut off
	queue      [][]byte
	flushed    int64 // block in which it handed in what it had kept
	dirty      int   // slots for which its fills are not predicted
	shown      reg   // by the site meter, when it was last well
	last       MeterTruth
}

type reg struct{ imp, exp meter.WattHour }

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

func newHome(i int) *home {
	name := fmt.Sprintf("h%04d", i)
	priv, k := keyOf("device " + name)
	return &home{
		name: name, feeder: fmt.Sprintf("f%02d", i/20), priv: priv, key: k, owner: newPerson("owner " + name), pos: chain.Position{Epoch: 1},
		pv: int64(i%3) * 4000, charger: i%3 != 1, battery: i%17 == 0, imp: meter.WattHour(1000 + i), exp: meter.WattHour(500 + i), gen: 1000,
	}
}

func (h *home) member(validator bool) chain.Member {
	m := chain.Member{Device: h.key, Name: h.name, Owner: h.owner.key, MaxPower: maxPower}
	if validator {
		_, m.Validator = keyOf("validator " + h.name)
	}
	return m
}

// sign appends a block to the home's chain.
func (h *home) sign(now int64, records ...chain.Record) []byte {
	h.pos.Number++
	s, err := chain.SignBlock(chain.Block{Chain: chainID, Epoch: h.pos.Epoch, Number: h.pos.Number, Prev: h.prev, Time: now, Records: records}, h.priv)
	if err != nil {
		panic(err)
	}
	h.prev = s.Hash
	return s.Raw
}

// car is a driver with a car.
type car struct {
	*person
	card *person // with a mandate of his; nil: he has none
	at   *charging
	rest int // slots until he comes again
}

// charging is a session as its gateway and driver know it.
type charging struct {
	home   *home
	by     *car
	id     chain.ID
	quote  chain.Quote
	seq    uint32
	reg    meter.WattHour // import register of the session meter
	out    meter.WattHour // export register
	given  meter.WattHour // of it, since the begin
	begun  bool
	begin  meter.WattHour
	since  int64 // ms of the last reading
	power  int64 // W; negative: the car gives
	ends   int64 // ms
	clean  bool  // nothing has been wrong with it
	opened int64
}
