package consensus

import (
	"cmp"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// nodeFactor is how much more an entry takes in the tree on disk than by
// itself.
const nodeFactor = 1.5

var (
	growDays  = flag.Int("grow.days", 0, "days that BenchmarkFullLoad generates; 0: five")
	growYears = flag.Float64("grow.years", 0, "years that BenchmarkEvergreen generates; 0: a quarter")
)

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
	drivers []ed25519.PrivateKey // live through years
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

// quiet generates six slots a day of which each has two houses' reports, in
// turn, so that ten years of them can be made: all that is kept for ever comes from it
// as from the full load. Every day a car charges for two hours at another
// house, every month each of 60 drivers pays in and every house is billed.
func (g *grower) quiet(slots int64) {
	if g.drivers == nil {
		for i := range growGateways {
			g.drivers = append(g.drivers, keyFrom(fmt.Sprint("driver ", i)))
		}
		g.block(g.mint(chain.AccountGrid))
	}
	const perDay = 6
	for range slots {
		s := chain.SlotAt(g.now.UnixMilli(), g.slot)
		turn := int64(s) * g.slot * perDay / 86400
		day, of := turn/perDay, turn%perDay
		var txs [][]byte
		if of == 0 && day%30 == 0 {
			for _, d := range g.drivers {
				txs = append(txs, g.mint(chain.AccountOf(public(d))))
			}
		}
		if at := int(day % (growGateways / 3) * 3); of == 2 && g.devices[at].s == nil {
			g.driver = g.drivers[day%growGateways]
			txs = append(txs, g.open(g.devices[at], at))
		}
		if len(txs) > 0 {
			g.block(txs...)
			txs = nil
		}
		g.now = time.UnixMilli(s.End(g.slot)).Add(time.Second)
		for i, d := range g.devices {
			if d.s != nil || int64(i)/2 == turn%(growGateways/2) {
				txs = append(txs, g.report(d, i, s))
			}
		}
		g.block(txs...)
		g.now = g.now.Add(time.Duration(86400/perDay-g.slot) * time.Second)
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

// disk returns the bytes of the files in a folder beside the stores.
func (g *grower) disk(name string) (n int64) {
	_ = filepath.WalkDir(filepath.Join(dataDir(g.home), name), func(_ string, e fs.DirEntry, err error) error {
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

// tables returns the number and bytes of the state's entries by table, which
// is the first byte of their keys.
func (g *grower) tables() map[byte][2]int64 {
	out := map[byte][2]int64{}
	working{g.app.tree}.Iterate(nil, func(k, v []byte) bool {
		t := out[k[0]]
		out[k[0]] = [2]int64{t[0] + 1, t[1] + int64(len(k)+len(v))}
		return true
	})
	return out
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

// sizes are the bytes of what a ledger keeps on disk.
type sizes struct{ blocks, state, evidence, tree, milestones int64 }

func (s sizes) total() int64 { return s.blocks + s.state + s.evidence + s.tree + s.milestones }

func (s sizes) String() string {
	return fmt.Sprintf("%.1f MB: blocks %.1f, CometBFT's state %.1f, evidence %.1f, tree %.1f, kept states %.1f",
		float64(s.total())/1e6, float64(s.blocks)/1e6, float64(s.state)/1e6, float64(s.evidence)/1e6, float64(s.tree)/1e6, float64(s.milestones)/1e6)
}

func (g *grower) sizes() sizes {
	return sizes{g.disk("blockstore.db"), g.disk("state.db"), g.disk("evidence.db"), g.disk("ledger.db"), g.disk("../milestones")}
}

// tell prints how far a long generation is.
func (g *grower) tell(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s: height %d: %s; %s\n", g.now.UTC().Format(time.DateOnly), g.state.LastBlockHeight, fmt.Sprintf(format, args...), g.sizes())
}

// BenchmarkTenYears generates ledgers of 60 gateways on disk, pruned as in
// operation, and tells what ten years of them take:
//
//	full     a day of 96 slots, every gateway reporting: what it adds to blocks
//	state    40 days kept of 55, with a slot an hour: what an hour's slot takes on disk, and
//	         that it no longer grows once old slots leave; times the 96 x 400 slots that are
//	         kept; and how much smaller it is as a kept state
//	ever     slots of which few gateways report, kept for 40 days: what they leave behind for ever
//	journal  its limits, and the own blocks of ten years
//	the rest the movements of eleven years, as they are entered for statements, and the limit
//	         of CometBFT's log of votes
//
// BenchmarkFullLoad and BenchmarkEvergreen generate more of it.
func BenchmarkTenYears(b *testing.B) {
	const years, mb = 3652, 1e6
	const kept = 600        // days of blocks: 400, and until they go together
	const voteLog = 1_073e6 // CometBFT's limit of its log of votes
	for b.Loop() {
		const days = 1
		g := newGrower(b, 900, 0)
		moves := int64(0)
		g.app.onMoves = func(_ int64, _ time.Time, all []ledger.Movement) {
			for _, m := range all {
				moves += int64(len(chain.Marshal(m)))
			}
		}
		g.live(8)
		moves = 0
		from, bytes, txs := g.sizes(), g.bytes, g.txs
		begin := g.now
		g.live(days * 96)
		day := g.now.Sub(begin).Hours() / 24
		to := g.sizes()
		blocksDay, stateDay := float64(to.blocks-from.blocks)/day, float64(to.state-from.state)/day
		bytesDay, txsDay := float64(g.bytes-bytes)/day, float64(g.txs-txs)/day
		g.close()

		h := newGrower(b, 3600, 40)
		h.keepBlocks(0)
		size := map[int]int64{}
		at := 0
		for _, day := range []int{42, 48, 55} {
			h.live(int64(day-at) * 24)
			at = day
			size[day] = h.sizes().tree
		}
		n, logical := h.entries(working{h.app.tree})
		largest := max(size[42], size[48], size[55])
		_, err := h.app.retain.make(b.Context(), h.state.LastBlockHeight-1)
		must(b, err)
		packed := float64(h.sizes().milestones) / float64(largest)
		h.close()
		slot := float64(largest) / (40 * 24)

		e, old := evergreen(b, 0.25)
		e *= nodeFactor

		ledgerDB := slot*96*400 + e*years
		journal := float64(growGateways-1)*8*(1<<20) + 512*(1<<20) + bytesDay/growGateways*years
		milestones := 4 * packed * ledgerDB
		movements := float64(moves) / day * 365.25 * 11 // each is in the book of statements for so long
		rest := ledgerDB + milestones + journal + movements + voteLog
		b.ReportMetric(txsDay, "tx/day")
		b.ReportMetric(bytesDay/mb, "tx-MB/day")
		b.ReportMetric(blocksDay/mb, "blocks-MB/day")
		b.ReportMetric(stateDay/mb, "state-MB/day")
		b.ReportMetric(float64(size[42])/mb, "ledger42-MB")
		b.ReportMetric(float64(size[48])/mb, "ledger48-MB")
		b.ReportMetric(float64(size[55])/mb, "ledger55-MB")
		b.ReportMetric(float64(n), "entries")
		b.ReportMetric(float64(logical)/mb, "entries-MB")
		b.ReportMetric(e*365.25/mb, "ever-MB/year")
		b.ReportMetric(float64(old.total())/mb, "ever-MB")
		b.ReportMetric(ledgerDB/1e9, "ledger-GB")
		b.ReportMetric(milestones/1e9, "kept-states-GB")
		b.ReportMetric(journal/1e9, "journal-GB")
		b.ReportMetric(movements/1e9, "movements-GB")
		b.ReportMetric(((blocksDay+stateDay)*kept+rest)/1e9, "pruned-GB")
		b.ReportMetric(((blocksDay+stateDay)*years+rest)/1e9, "ten-years-GB")
	}
}

// evergreen generates a ledger that keeps 40 days of everything, one slot every
// four hours, and returns by how many bytes a day its entries grow once old
// slots leave, and what is on disk in the end. What each slot leaves for ever is
// one entry of one size: those of the other quarter-hours are put into the tree
// at the end, without their slots.
func evergreen(b *testing.B, years float64) (perDay float64, end sizes) {
	const slot, quarter, step = 3600, 900, 4 * 3600
	gen := testGenesis()
	gen.SlotSeconds, gen.RetainDays = slot, 40
	g := growFrom(b, gen, growing{validators: 1, blocks: 100, age: 14 * 24 * time.Hour})
	g.keepBlocks(40 * 24 * time.Hour)
	defer g.close()
	const halfYear, first = 365 * 86400 / step / 2, 45 * 86400 / step
	begin := chain.SlotAt(g.now.UnixMilli(), quarter)
	g.quiet(first)
	was, from := g.tables(), g.now
	for done, total := int64(first), int64(years*365.25*86400/step); done < total; {
		n := min(total-done, halfYear)
		g.quiet(n)
		done += n
		g.tell("%d slots, %d bank references, blocks from %d", done, g.bank, g.blocks.Base())
	}
	now, day := g.tables(), g.now.Sub(from).Hours()/24
	value := chain.Marshal(ledger.Archive{Hash: chain.Sum(nil), Entries: 200})
	for s := begin; s < chain.SlotAt(g.now.UnixMilli(), quarter); s++ {
		_, err := g.app.tree.Set(ledger.ArchivedSlotKey(s), append([]byte(nil), value...))
		must(b, err)
	}
	_, _, err := g.app.tree.SaveVersion()
	must(b, err)
	for _, t := range slices.Sorted(maps.Keys(now)) {
		fmt.Fprintf(os.Stderr, "table %q: %d entries, %d bytes; after %.0f days more %d entries, %d bytes\n", t, was[t][0], was[t][1], day, now[t][0], now[t][1])
		perDay += float64(now[t][1]-was[t][1]) / day
	}
	perDay += float64(86400/quarter-86400/step) * float64(len(value)+len(ledger.ArchivedSlotKey(begin)))
	g.tell("with the entry of every quarter-hour")
	return perDay, g.sizes()
}

// BenchmarkEvergreen generates years of what remains for ever and prints what
// is on disk twice a year, and at the end which tables of the state have grown.
func BenchmarkEvergreen(b *testing.B) {
	for b.Loop() {
		perDay, end := evergreen(b, max(*growYears, 0.25))
		b.ReportMetric(perDay*365.25/1e6, "entries-MB/year")
		b.ReportMetric(float64(end.total())/1e6, "MB")
	}
}

// BenchmarkFullLoad generates days of the full load, as little kept as may be, and
// prints what is on disk every five: it must stop growing.
func BenchmarkFullLoad(b *testing.B) {
	for b.Loop() {
		gen := testGenesis()
		gen.RetainDays = 40
		g := growFrom(b, gen, growing{blocks: 100, age: 14 * 24 * time.Hour})
		g.keepBlocks(MinKeepBlocks)
		for day := 5; day <= max(*growDays, 5); day += 5 {
			g.live(5 * 96)
			g.tell("%d days, blocks from %d", day, g.blocks.Base())
		}
		b.ReportMetric(float64(g.sizes().total())/1e6, "MB")
		height := g.state.LastBlockHeight
		g.close()
		if r, err := VerifyHome(b.Context(), g.home, filepath.Join(g.home, "genesis.json"), nil); err != nil || len(r.Violations) > 0 || r.Height != height {
			b.Errorf("%+v, %v", r, err)
		}
	}
}
