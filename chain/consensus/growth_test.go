package consensus

import (
	"cmp"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	cs "github.com/cometbft/cometbft/consensus"
	"github.com/cometbft/cometbft/crypto"
	cmted "github.com/cometbft/cometbft/crypto/ed25519"
	cmtlog "github.com/cometbft/cometbft/libs/log"
	"github.com/cometbft/cometbft/mempool"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/proxy"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	cmt "github.com/cometbft/cometbft/types"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

// How a gateway's disk fills. The ledger is generated, but everything below
// it is real: CometBFT's block store and state, the tree on disk, thirteen
// signatures under every block, each checked. Consensus messages alone are
// left out: they leave nothing behind but the write-ahead log, which is of a
// fixed size.
const (
	growGateways = 60
	growBlocks   = 6 // with transactions, of a slot: readings come in over some seconds
	growEmpty    = 2 // without: a changed app hash is proven by one more block
	growSessions = 2 // a day, at every third gateway, each of two hours
)

var growDays = flag.Int("grow.days", 0, "days that BenchmarkTenYears generates at 900 s; 0: 1")

// grower is the ledger of one gateway on disk, fed block by block.
type grower struct {
	t      testing.TB
	home   string
	stores *stores
	conns  proxy.AppConns
	blocks *store.BlockStore
	exec   *sm.BlockExecutor
	app    *app
	states sm.Store
	state  sm.State
	last   *cmt.Commit
	keys   map[string]crypto.PrivKey
	now    time.Time
	slot   int64 // seconds
	txs    int64
	bytes  int64 // of transactions

	devices []*growDevice
	ids     byte
	bank    int
	driver  ed25519.PrivateKey
}

type growDevice struct {
	key  ed25519.PrivateKey
	num  uint64
	prev chain.Hash
	page uint64
	imp  meter.WattHour
	exp  meter.WattHour
	s    *growSession
}

type growSession struct {
	id  chain.ID
	seq uint32
	reg meter.WattHour
}

func newGrower(t testing.TB, slotSeconds, retainDays int64) *grower {
	gen := testGenesis()
	gen.SlotSeconds, gen.RetainDays = slotSeconds, retainDays
	return growFrom(t, gen, growing{})
}

// growing says how a generated ledger differs from a real one.
type growing struct {
	validators int           // founders who vote; 0: as many as may
	blocks     int64         // for which evidence of misbehaviour counts; 0: as the genesis has it
	age        time.Duration // likewise
}

// growFrom makes a ledger of growGateways founders.
func growFrom(t testing.TB, gen chain.Genesis, how growing) *grower {
	how.validators = cmp.Or(how.validators, ledger.MaxValidators)
	g := &grower{t: t, home: t.TempDir(), keys: map[string]crypto.PrivKey{}, now: time.Unix(1_800_000_000, 0), slot: gen.SlotSeconds, driver: keyFrom("driver")}
	for i := range growGateways {
		d := &growDevice{key: keyFrom(fmt.Sprint("grow ", i)), imp: 1000}
		m := chain.Member{Device: public(d.key), Name: fmt.Sprintf("house%02d", i), Owner: public(keyFrom(fmt.Sprint("owner ", i))), MaxPower: 17_000}
		if i < how.validators {
			k := cmted.GenPrivKeyFromSecret([]byte(m.Name))
			m.Validator = chain.Key(k.PubKey().Bytes())
			g.keys[k.PubKey().Address().String()] = k
		}
		g.devices = append(g.devices, d)
		gen.Members = append(gen.Members, chain.Founder{Member: m, Node: "root", Fee: 5000})
	}
	path := filepath.Join(g.home, "genesis.json")
	_, err := WriteGenesis(path, gen, g.now.Add(-time.Second))
	must(t, err)
	if how.blocks > 0 {
		shortEvidence(t, path, how.blocks, how.age)
	}
	doc, gen, _, err := ReadGenesis(path)
	must(t, err)
	g.stores, err = openStores(g.home, false)
	must(t, err)
	a, err := newApp(g.stores.ledger, doc, gen, slog.New(slog.DiscardHandler))
	must(t, err)
	g.app = a
	g.states = sm.NewStore(g.stores.state, sm.StoreOptions{DiscardABCIResponses: true})
	g.conns = proxy.NewAppConns(proxy.NewLocalClientCreator(a), proxy.NopMetrics())
	must(t, g.conns.Start())
	g.state, err = g.states.LoadFromDBOrGenesisDoc(doc)
	must(t, err)
	g.blocks = store.NewBlockStore(g.stores.blocks)
	must(t, cs.NewHandshaker(g.states, g.state, g.blocks, doc).Handshake(g.conns))
	g.state, err = g.states.Load()
	must(t, err)
	g.exec = sm.NewBlockExecutor(g.states, cmtlog.NewNopLogger(), g.conns.Consensus(), &mempool.NopMempool{}, sm.EmptyEvidencePool{}, g.blocks)
	g.last = &cmt.Commit{}
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// block makes, signs, stores and executes the next block.
func (g *grower) block(txs ...[]byte) {
	h := g.state.LastBlockHeight + 1
	raw := make([]cmt.Tx, len(txs))
	for i, tx := range txs {
		raw[i] = tx
		g.bytes += int64(len(tx))
	}
	g.txs += int64(len(txs))
	b, err := g.state.MakeBlock(h, raw, g.last, nil, g.state.Validators.GetProposer().Address)
	must(g.t, err)
	parts, err := b.MakePartSet(cmt.BlockPartSizeBytes)
	must(g.t, err)
	id := cmt.BlockID{Hash: b.Hash(), PartSetHeader: parts.Header()}
	g.now = g.now.Add(time.Second)
	c := &cmt.Commit{Height: h, BlockID: id}
	for i, v := range g.state.Validators.Validators {
		vote := &cmt.Vote{Type: cmtproto.PrecommitType, Height: h, BlockID: id, Timestamp: g.now, ValidatorAddress: v.Address, ValidatorIndex: int32(i)}
		p := vote.ToProto()
		sig, err := g.keys[v.Address.String()].Sign(cmt.VoteSignBytes(g.state.ChainID, p))
		must(g.t, err)
		c.Signatures = append(c.Signatures, cmt.CommitSig{BlockIDFlag: cmt.BlockIDFlagCommit, ValidatorAddress: v.Address, Timestamp: g.now, Signature: sig})
	}
	g.blocks.SaveBlock(b, parts, c)
	g.state, err = g.exec.ApplyBlock(g.state, id, b)
	must(g.t, err)
	g.last = c
	if g.app.retain != nil {
		must(g.t, g.app.retain.step(g.t.Context()))
	}
}

// keepBlocks prunes from now on.
func (g *grower) keepBlocks(keep time.Duration) {
	r, err := newRetainer(g.app, g.blocks, g.states, milestonesOf(g.home), keep, slog.New(slog.DiscardHandler))
	must(g.t, err)
	g.app.retain = r
}

// shortEvidence rewrites a genesis so that evidence of misbehaviour counts for
// so long and so many blocks only.
func shortEvidence(t testing.TB, path string, blocks int64, age time.Duration) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	var doc map[string]any
	must(t, json.Unmarshal(b, &doc))
	e := doc["consensus_params"].(map[string]any)["evidence"].(map[string]any)
	e["max_age_num_blocks"], e["max_age_duration"] = fmt.Sprint(blocks), fmt.Sprint(age.Nanoseconds())
	b, err = json.Marshal(doc)
	must(t, err)
	must(t, os.WriteFile(path, b, 0o600))
}

func (g *grower) sign(d *growDevice, records ...chain.Record) []byte {
	d.num++
	s, err := chain.SignBlock(chain.Block{Chain: "test-grid", Epoch: 1, Number: d.num, Prev: d.prev, Time: g.now.UnixMilli(), Records: records}, d.key)
	must(g.t, err)
	d.prev = s.Hash
	return s.Raw
}

func (g *grower) mint(to chain.Account) []byte {
	g.bank++
	return chain.SignTx("test-grid", uint64(g.bank), chain.TxMint, chain.Mint{To: to, Amount: 1e14, BankRef: fmt.Sprint("grow ", g.bank)}, operator(0))
}

// live generates slots: every gateway reports its house, every second one its
// roof; cars charge.
func (g *grower) live(slots int64) {
	if g.bank == 0 {
		g.block(g.mint(chain.AccountGrid))
		g.block(g.mint(chain.AccountOf(public(g.driver))))
	}
	perDay := 86400 / g.slot
	for range slots {
		s := chain.SlotAt(g.now.UnixMilli(), g.slot)
		of := int64(s) % perDay
		end := time.UnixMilli(s.End(g.slot))
		var opens [][]byte
		for i, d := range g.devices {
			if i%3 == 0 && d.s == nil && of%(perDay/growSessions) == int64(i)%(perDay/growSessions) {
				opens = append(opens, g.open(d, i))
			}
		}
		if len(opens) > 0 {
			g.block(opens...)
		}
		g.now = end.Add(time.Second)
		var txs [][]byte
		for i, d := range g.devices {
			txs = append(txs, g.report(d, i, s))
		}
		for n := range growBlocks {
			per := len(txs) / growBlocks
			g.block(txs[n*per : (n+1)*per]...)
		}
		for range growEmpty {
			g.block()
		}
	}
}

func (g *grower) open(d *growDevice, i int) []byte {
	g.ids++
	now := g.now.UnixMilli()
	sum := chain.Sum(fmt.Appendf(nil, "%d %d", now, i))
	id := chain.ID(sum[:16])
	q := chain.Quote{
		Version: chain.Version, Chain: "test-grid", ID: id, Gateway: public(d.key), Connector: 1, Driver: public(g.driver),
		Created: now, Expires: now + 300_000, MaxWh: 20_000, Cap: 400_000, Hold: 400_000 * 20_000,
	}
	raw := chain.Marshal(q)
	d.s = &growSession{id: id, seq: 1, reg: meter.WattHour(1000 + d.num)}
	return g.sign(d,
		chain.NewRecord(chain.KindSessionOpen, chain.SessionOpen{Quote: chain.SignedQuote{Quote: raw, Sig: chain.Sign(g.driver, chain.DomainQuote, raw)}}),
		chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: id, Seq: 1, Slot: chain.SlotAt(now, g.slot), Register: d.s.reg, Quality: meter.Good, At: now}),
		chain.NewRecord(chain.KindEvent, chain.Event{Code: "charger.closed", Severity: 1, Subject: id.String(), At: now, Text: "revision 12, joulegate 1.0.0"}),
	)
}

func (g *grower) report(d *growDevice, i int, s chain.Slot) []byte {
	var records []chain.Record
	at := s.End(g.slot)
	sum := func(what string) chain.Hash { return chain.Sum(fmt.Appendf(nil, "%s %d %d", what, i, s)) }
	if d.s != nil {
		d.s.seq++
		d.s.reg += 800
		if int64(d.s.seq) > 2*3600/g.slot+1 {
			records = append(records,
				chain.NewRecord(chain.KindSessionStop, chain.SessionStop{Session: d.s.id, Seq: d.s.seq, Slot: s, Register: d.s.reg, Quality: meter.Good, At: at, Reason: chain.StopDriver, Receipt: sum("receipt")}),
				chain.NewRecord(chain.KindEvent, chain.Event{Code: "charger.opened", Severity: 1, Subject: d.s.id.String(), At: at, Text: "revision 12, joulegate 1.0.0"}))
			d.s = nil
		} else {
			records = append(records, chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: d.s.id, Seq: d.s.seq, Slot: s, Register: d.s.reg, Quality: meter.Good, At: at}))
		}
		d.imp += 800
	}
	d.page++
	d.imp += meter.WattHour(40 + (i*7+int(s))%90)
	d.exp += meter.WattHour(i % 2 * ((i*13 + int(s)) % 400))
	profile := chain.Sum([]byte("profile"))
	records = append(records, chain.NewRecord(chain.KindMeter, chain.MeterRecord{Slot: s, Meter: "site", Role: chain.RoleSite, Page: d.page, Import: d.imp, Export: d.exp, Quality: meter.Good, At: at, Count: 900, Root: sum("root"), Profile: profile}))
	if i%2 == 1 {
		records = append(records, chain.NewRecord(chain.KindMeter, chain.MeterRecord{Slot: s, Meter: "pv", Role: chain.RoleProduction, Page: d.page, Export: d.exp * 2, Quality: meter.Good, At: at, Count: 900, Root: sum("pv"), Profile: profile}))
	}
	return g.sign(d, records...)
}

// disk returns the bytes of a store's files.
func (g *grower) disk(name string) (n int64) {
	_ = filepath.WalkDir(filepath.Join(dataDir(g.home), name+".db"), func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if i, err := e.Info(); err == nil {
				n += i.Size()
			}
		}
		return nil
	})
	return n
}

// entries returns the number and bytes of the state's entries.
func (g *grower) entries(st ledger.State) (n, bytes int64) {
	st.Iterate(nil, func(k, v []byte) bool {
		n++
		bytes += int64(len(k) + len(v))
		return true
	})
	return n, bytes
}

func (g *grower) close() {
	_ = g.conns.Stop()
	must(g.t, g.stores.close())
}

// A generated ledger is a real one: verification executes it again.
func TestGeneratedLedgerVerifies(t *testing.T) {
	g := newGrower(t, 900, 0)
	g.live(2)
	height := g.state.LastBlockHeight
	g.close()
	r, err := VerifyHome(t.Context(), g.home, filepath.Join(g.home, "genesis.json"), nil)
	if err != nil || len(r.Violations) > 0 || r.Height != height {
		t.Fatalf("height %d of %d: %v %v", r.Height, height, r.Violations, err)
	}
}

// BenchmarkTenYears generates ledgers of 60 gateways on disk and tells what
// ten years of them take:
//
//	blocks   a day of 96 slots, measured; every day adds the same
//	state    40 days kept of 55, with a slot an hour: what an hour's slot takes on disk, and
//	         that it no longer grows once old slots leave; times the 96 x 400 slots that are kept
//	journal  its limits, and the own blocks of ten years
func BenchmarkTenYears(b *testing.B) {
	const years, mb = 3652, 1e6
	for b.Loop() {
		days := int64(max(*growDays, 1))
		g := newGrower(b, 900, 0)
		g.live(8)
		blocks, state, bytes, txs := g.disk("blockstore"), g.disk("state"), g.bytes, g.txs
		from := g.now
		g.live(days * 96)
		day := g.now.Sub(from).Hours() / 24
		blocksDay, stateDay := float64(g.disk("blockstore")-blocks)/day, float64(g.disk("state")-state)/day
		bytesDay, txsDay := float64(g.bytes-bytes)/day, float64(g.txs-txs)/day
		g.close()

		h := newGrower(b, 3600, 40)
		size := map[int]int64{}
		at := 0
		for _, day := range []int{42, 48, 55} {
			h.live(int64(day-at) * 24)
			at = day
			size[day] = h.disk("ledger")
		}
		n, logical := h.entries(working{h.app.tree})
		h.close()
		slot := float64(max(size[42], size[48], size[55])) / (40 * 24)

		ledgerDB := slot * 96 * 400
		journal := float64(growGateways-1)*8*(1<<20) + 512*(1<<20) + bytesDay/growGateways*years
		total := (blocksDay+stateDay)*years + ledgerDB + journal
		b.ReportMetric(txsDay, "tx/day")
		b.ReportMetric(bytesDay/mb, "tx-MB/day")
		b.ReportMetric(blocksDay/mb, "blocks-MB/day")
		b.ReportMetric(stateDay/mb, "state-MB/day")
		b.ReportMetric(float64(size[42])/mb, "ledger42-MB")
		b.ReportMetric(float64(size[48])/mb, "ledger48-MB")
		b.ReportMetric(float64(size[55])/mb, "ledger55-MB")
		b.ReportMetric(float64(n), "entries")
		b.ReportMetric(float64(logical)/mb, "entries-MB")
		b.ReportMetric(ledgerDB/1e9, "ledger-GB")
		b.ReportMetric(journal/1e9, "journal-GB")
		b.ReportMetric(total/1e9, "ten-years-GB")
	}
}
