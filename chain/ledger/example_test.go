package ledger_test

import (
	"crypto/ed25519"
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

// A microgrid of one house: money comes in, the roof exports for a slot, and
// the supplier pays the feed-in price, since there is no neighbour.
func Example() {
	const start = 1_800_000_000_000 // Unix ms, the start of a slot
	device := ed25519.NewKeyFromSeed(make([]byte, 32))
	operator := ed25519.NewKeyFromSeed([]byte("a seed of exactly thirty-two ..."))
	public := func(k ed25519.PrivateKey) chain.Key { return chain.Key(k.Public().(ed25519.PublicKey)) }

	st := ledger.NewMapState()
	_, err := ledger.InitGenesis(st, chain.Genesis{
		Version: chain.Version, ChainID: "lane", SlotSeconds: 900, GraceSeconds: 60, Currency: "EUR", MinorDigits: 2,
		Operators: []chain.Key{public(operator)}, Retail: 300_000, FeedIn: 80_000, Nodes: []chain.Node{{ID: "root"}},
		Members: []chain.Founder{{Node: "root", Member: chain.Member{
			Device: public(device), Name: "mill", Owner: public(operator), Validator: public(device), MaxPower: 11_000,
		}}},
	}, start)
	if err != nil {
		panic(err)
	}

	slot := chain.SlotAt(start, 900)
	prev := chain.Hash{}
	export := func(number uint64, s chain.Slot, register meter.WattHour) []byte {
		b, err := chain.SignBlock(chain.Block{Chain: "lane", Epoch: 1, Number: number, Prev: prev, Records: []chain.Record{
			chain.NewRecord(chain.KindMeter, chain.MeterRecord{
				Slot: s, Meter: "site", Role: chain.RoleSite, Page: number, Export: register, Quality: meter.Good, At: s.End(900),
			}),
		}}, device)
		if err != nil {
			panic(err)
		}
		prev = b.Hash
		return b.Raw
	}
	for i, txs := range [][][]byte{
		{chain.SignTx("lane", 1, chain.TxMint, chain.Mint{To: chain.AccountGrid, Amount: 1e9, BankRef: "2027-01"}, operator)},
		{export(1, slot, 0)},
		{export(2, slot+1, 1500)},
	} {
		out, err := ledger.Apply(st, ledger.BlockInput{Height: int64(i + 1), TimeMs: slot.Start(900) + int64(i)*900_000, Txs: txs})
		if err != nil {
			panic(err)
		}
		for _, e := range out.Events {
			fmt.Println(e.Code, e.Detail)
		}
	}
	cleared, _ := ledger.SlotOf(st, slot+1)
	fmt.Println(cleared.Fills[0].ID, cleared.Fills[0].Grid, "Wh:", ledger.AccountOf(st, chain.AccountOf(public(operator))).Balance, "nano")
	// Output:
	// money.minted 1000000000 nano
	// slot.cleared 1 sites, 0 missing, 0 Wh traded, fees 0 nano
	// slot.cleared 1 sites, 0 missing, 0 Wh traded, fees 0 nano
	// sell/mill 1500 Wh: 120000000 nano
}
