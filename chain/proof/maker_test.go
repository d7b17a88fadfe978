package proof

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/tree"
	"github.com/joulegate/joulegate/chain/tree/treetest"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

const (
	slotSeconds = 900
	t0          = 1_800_000_000_000 // a slot's start, Unix ms
	firstSlot   = chain.Slot(t0 / 1000 / slotSeconds)
)

func seeded(name string) (ed25519.PrivateKey, chain.Key) {
	seed := chain.Sum([]byte(name))
	k := ed25519.NewKeyFromSeed(seed[:])
	return k, chain.Key(k.Public().(ed25519.PublicKey))
}

// tables is a state in memory with one ordered map per table, so that a long
// history stays quick.
type tables [256]*ledger.MapState

func newTables() *tables {
	t := &tables{}
	for i := range t {
		t[i] = ledger.NewMapState()
	}
	return t
}
func (t *tables) Get(k []byte) []byte { return t[k[0]].Get(k) }
func (t *tables) Set(k, v []byte)     { t[k[0]].Set(k, v) }
func (t *tables) Delete(k []byte)     { t[k[0]].Delete(k) }
func (t *tables) Iterate(p []byte, fn func(k, v []byte) bool) {
	if len(p) > 0 {
		t[p[0]].Iterate(p, fn)
		return
	}
	more := true
	for i := range t {
		t[i].Iterate(nil, func(k, v []byte) bool { more = fn(k, v); return more })
		if !more {
			return
		}
	}
}

// home is a gateway that signs blocks.
type home struct {
	name  string
	priv  ed25519.PrivateKey
	key   chain.Key
	owner chain.Key
	pos   chain.Position
	prev  chain.Hash
	pages map[string]uint64
	regs  map[string][2]meter.WattHour
}

// maker makes a microgrid's history without any of the code that runs one: it
// executes blocks, builds headers, and signs them with the validators' keys.
type maker struct {
	tb       testing.TB
	genesis  Genesis
	file     []byte
	homes    []*home
	st       *tables
	vals     chain.Validators
	signers  map[chain.Key]ed25519.PrivateKey
	headers  []chain.LedgerHeader // from height 1
	txs      [][][]byte
	sets     []chain.Validators // of each height
	readings []Readings
	profile  Profile
	next     chain.Validators // a change after the next block
	roots    bool             // every block signs the true root
	now      int64
	results  chain.Hash
	nonce    uint64
}

func newMaker(tb testing.TB, owners ...string) *maker {
	m := &maker{tb: tb, st: newTables(), signers: map[chain.Key]ed25519.PrivateKey{}, roots: true, now: t0, results: chain.MerkleRoot(nil)}
	_, op := seeded("operator")
	g := chain.Genesis{
		Version: 1, ChainID: "maple-street", SlotSeconds: slotSeconds, GraceSeconds: 300, Currency: "EUR", MinorDigits: 2, Operators: []chain.Key{op},
		Retail: 300_000, FeedIn: 80_000, Nodes: []chain.Node{{ID: "root"}, {ID: "f1", Parent: "root", Fee: 20_000}},
		Credit: chain.Credit{EarnPPM: 50_000, RedeemPPM: 500_000, ExpirySlots: 100_000}, StartSeconds: 900, Basis: chain.Simulated,
	}
	for i, owner := range owners {
		h := &home{name: fmt.Sprint("house", i+1), pos: chain.Position{Epoch: 1}, pages: map[string]uint64{}, regs: map[string][2]meter.WattHour{}}
		h.priv, h.key = seeded("device " + h.name)
		_, h.owner = seeded("owner " + owner)
		val, key := seeded("validator " + h.name)
		m.signers[key] = val
		m.homes = append(m.homes, h)
		g.Members = append(g.Members, chain.Founder{Member: chain.Member{Device: h.key, Name: h.name, Owner: h.owner, Validator: key, MaxPower: 20_000}, Node: "f1"})
	}
	at := time.UnixMilli(t0 - slotSeconds*1000).UTC()
	state, err := json.Marshal(g)
	if err != nil {
		tb.Fatal(err)
	}
	m.file = fmt.Appendf(nil, "{\"genesis_time\":%q,\"chain_id\":%q,\"app_state\":%s}\n", at.Format(time.RFC3339Nano), g.ChainID, state)
	if m.genesis, err = ParseGenesis(m.file); err != nil {
		tb.Fatal(err)
	}
	if _, err := ledger.InitGenesis(m.st, g, at.UnixMilli()); err != nil {
		tb.Fatal(err)
	}
	m.vals = chain.FoundingValidators(g)
	p, err := profile.Get("sdm630")
	if err != nil {
		ids := profile.All()
		p = ids[0]
	}
	m.profile.Source, _, _ = p.Source()
	return m
}

func (m *maker) entries() []tree.Entry { return treetest.Entries(m.st.Iterate) }

// everything is all keys.
var everything = [][2][]byte{{nil, nil}}

// block adds a block of the ledger.
func (m *maker) block(txs ...[]byte) {
	m.tb.Helper()
	height := int64(len(m.headers)) + 1
	h := chain.LedgerHeader{Protocol: 11, App: 1, Chain: m.genesis.State.ChainID, Height: height, Time: m.now * 1e6, Data: dataHash(txs), Validators: m.vals.Hash(), Results: m.results}
	if height > 1 {
		last := &m.headers[height-2]
		h.Last = chain.BlockRef{Hash: last.Hash(), Parts: 1, Root: chain.Sum([]byte{1})}
	}
	if m.roots {
		h.AppHash = treetest.Root(m.entries())
	}
	m.sets = append(m.sets, m.vals)
	if m.next != nil {
		m.vals, m.next = m.next, nil
	}
	h.Next = m.vals.Hash()
	out, err := ledger.Apply(m.st, ledger.BlockInput{Height: height, TimeMs: m.now, Txs: txs})
	if err != nil {
		m.tb.Fatal(err)
	}
	leaves := make([][]byte, len(txs))
	for i, r := range out.Results {
		if r.Code != 0 {
			leaves[i] = []byte{8, byte(r.Code)}
		}
		if len(r.Refused) > 0 || r.Code != 0 && r.Code != ledger.CodeDuplicate {
			m.tb.Fatalf("block %d: %+v", height, r)
		}
	}
	m.results = chain.MerkleRoot(leaves)
	m.headers = append(m.headers, h)
	m.txs = append(m.txs, txs)
	m.now += 1000
}

// votes signs a block.
func (m *maker) votes(height int64) *chain.Checkpoint {
	h := m.headers[height-1]
	c := &chain.Checkpoint{Version: chain.CheckpointVersion, Header: h, Set: m.sets[height-1], Commit: chain.Commit{Parts: 1, Root: chain.Sum([]byte{1})}}
	if h.Next != h.Validators {
		if c.Next = m.vals; int(height) < len(m.sets) {
			c.Next = m.sets[height]
		}
	}
	for i, v := range c.Set {
		vote := chain.Vote{Index: uint16(i), Time: h.Time + 1e6}
		vote.Sig = ed25519.Sign(m.signers[v.Key], c.Commit.SignBytes(&h, vote))
		c.Commit.Votes = append(c.Commit.Votes, vote)
	}
	return c
}

// settles locks money for another microgrid, which is believed first.
func (m *maker) settles() {
	_, operator := seeded("operator")
	_, other := seeded("other operator")
	far := chain.Validators{{Key: other, Power: chain.ValidatorPower}}
	at, me := m.now*1e6, chain.AccountOf(operator)
	m.block(m.tx(chain.TxRemote, chain.Remote{Genesis: chain.Sum([]byte("far")), Trust: chain.Trust{Chain: "oak-street", Time: at, Next: far}}),
		m.tx(chain.TxMint, chain.Mint{To: me, Amount: 5e9, BankRef: "settle"}))
	m.block(m.tx(chain.TxSettle, chain.Settlement{
		ID: chain.ID{1}, Home: m.genesis.State.ChainID, Payer: me, Payee: chain.AccountOf(other), Amount: 3e9,
		Away: "oak-street", AwayPayer: chain.AccountOf(other), AwayPayee: me, AwayAmount: 2e9,
		Deadline: m.now + 3_600_000, Expires: m.now + 3_600_000 + chain.MinSettleSpan,
	}))
	m.block()
}

func (m *maker) tx(kind chain.TxKind, body any) []byte {
	op, _ := seeded("operator")
	m.nonce++
	return chain.SignTx(m.genesis.State.ChainID, m.nonce, kind, body, op)
}

func (m *maker) sign(h *home, records ...chain.Record) []byte {
	h.pos.Number++
	s, err := chain.SignBlock(chain.Block{Chain: m.genesis.State.ChainID, Epoch: h.pos.Epoch, Number: h.pos.Number, Prev: h.prev, Time: m.now, Records: records}, h.priv)
	if err != nil {
		m.tb.Fatal(err)
	}
	h.prev = s.Hash
	return s.Raw
}

// measure moves a meter's registers and states them, with readings under the
// record.
func (m *maker) measure(h *home, id string, role chain.Role, s chain.Slot, imp, exp meter.WattHour) chain.Record {
	r := h.regs[id]
	r[0] += imp
	r[1] += exp
	h.regs[id] = r
	h.pages[id]++
	reading := meter.Reading{
		Device: id, Profile: "test", ProfileHash: m.profile.Hash(), Unit: h.name[5], Page: h.pages[id], Wall: s.End(slotSeconds), Quality: meter.Good,
		Points: []meter.Point{{Quantity: meter.Import, Value: int64(r[0]) * 1000}, {Quantity: meter.Export, Value: int64(r[1]) * 1000}},
	}
	leaves := [][]byte{chain.Marshal(reading)}
	rec := chain.MeterRecord{
		Slot: s, Meter: id, Role: role, Page: h.pages[id], Import: r[0], Export: r[1], Quality: meter.Good, At: s.End(slotSeconds),
		Count: 1, Root: chain.MerkleRoot(leaves), Profile: m.profile.Hash(),
	}
	m.readings = append(m.readings, Readings{Root: rec.Root, Leaves: leaves})
	return chain.NewRecord(chain.KindMeter, rec)
}

// live is a few slots with a sale between neighbours, a charging session and
// evidence.
func (m *maker) live(slots int) {
	driver, driverKey := seeded("driver")
	a, b := m.homes[0], m.homes[len(m.homes)-1]
	begin := []([]byte){m.tx(chain.TxMint, chain.Mint{To: chain.AccountGrid, Amount: 1e12, BankRef: "a"}), m.tx(chain.TxMint, chain.Mint{To: chain.AccountOf(driverKey), Amount: 1e11, BankRef: "b"}), m.tx(chain.TxMint, chain.Mint{To: chain.AccountPromotion, Amount: 1e11, BankRef: "c"})}
	for _, h := range m.homes {
		begin = append(begin, m.sign(h, m.measure(h, "site", chain.RoleSite, firstSlot-1, 0, 0)))
	}
	m.block(begin...)
	q := chain.Quote{Version: 1, Chain: m.genesis.State.ChainID, ID: chain.ID{7}, Gateway: a.key, Connector: 1, Driver: driverKey, Created: m.now, Expires: m.now + 300_000, MaxWh: 10_000, Cap: 400_000, Hold: 400_000 * 10_000}
	raw := chain.Marshal(q)
	m.block(m.sign(a, chain.NewRecord(chain.KindSessionOpen, chain.SessionOpen{Quote: chain.SignedQuote{Quote: raw, Sig: chain.Sign(driver, chain.DomainQuote, raw)}})))
	m.block(m.sign(a, chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: q.ID, Seq: 1, Slot: firstSlot, Register: 100, Quality: meter.Good, At: m.now}),
		chain.NewRecord(chain.KindEvent, chain.Event{Code: "charger.closed", Severity: 1, Subject: "1", At: m.now}), chain.NewRecord(chain.KindGuard, map[int]int{1: 2})))
	for i := range slots {
		s := firstSlot + chain.Slot(i)
		m.now = s.End(slotSeconds) + 2000
		recs := []chain.Record{m.measure(a, "site", chain.RoleSite, s, 500, 0)}
		if i < 2 {
			recs = append(recs, chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: q.ID, Seq: uint32(i + 2), Slot: s, Register: 100 + 400*meter.WattHour(i+1), Quality: meter.Good, At: m.now}))
		} else if i == 2 {
			recs = append(recs, chain.NewRecord(chain.KindSessionStop, chain.SessionStop{Session: q.ID, Seq: 4, Slot: s, Register: 1000, Quality: meter.Good, At: m.now, Reason: chain.StopDriver, Receipt: chain.Hash{9}}))
		}
		txs := [][]byte{m.sign(a, recs...)}
		for _, h := range m.homes[1:] {
			exp := meter.WattHour(0)
			if h == b {
				exp = 450
			}
			txs = append(txs, m.sign(h, m.measure(h, "site", chain.RoleSite, s, 0, exp)))
		}
		m.block(txs...)
	}
	m.now += 400_000
	m.block()
	m.block()
}

// bundle writes what the maker has made; edit, if set, changes frames.
func (m *maker) bundle(edit func(frames []rawFrame) []rawFrame) []byte {
	m.tb.Helper()
	tip := int64(len(m.headers))
	return m.claimed(Claim{Version: Version, Chain: m.genesis.State.ChainID, Genesis: m.genesis.Hash, All: true, ToSlot: 1 << 40, First: 1, To: tip - 1, Tip: tip}, everything, edit)
}

func (m *maker) claimed(c Claim, rs [][2][]byte, edit func([]rawFrame) []rawFrame) []byte {
	m.tb.Helper()
	var buf bytes.Buffer
	w, err := NewWriter(&buf, c)
	must := func(err error) {
		m.tb.Helper()
		if err != nil {
			m.tb.Fatal(err)
		}
	}
	must(err)
	wanted := map[chain.Hash]bool{}
	for i := range m.headers {
		h := &m.headers[i]
		switch {
		case h.Height < c.First:
			if h.Next != h.Validators {
				must(w.Checkpoint(m.votes(h.Height)))
			}
			continue
		case h.Height > c.Tip:
			continue
		}
		b := Block{Header: *h}
		if h.Height <= c.To {
			b.Txs = Pack(m.txs[i])
			for _, root := range WantedBy(m.txs[i]).Roots {
				wanted[root] = true
			}
		}
		must(w.Block(b))
		if h.Next != h.Validators || h.Height == c.Tip {
			must(w.Checkpoint(m.votes(h.Height)))
		}
	}
	told, _ := treetest.Prune(m.entries(), rs...)
	must(w.State(told))
	for _, r := range m.readings {
		if wanted[r.Root] {
			must(w.Readings(r))
		}
	}
	_, err = w.Close()
	must(err)
	if edit == nil {
		return buf.Bytes()
	}
	return join(edit(split(m.tb, buf.Bytes())))
}

type rawFrame struct {
	kind byte
	b    []byte
}

func split(tb testing.TB, b []byte) (out []rawFrame) {
	f, err := newReader(bytes.NewReader(b))
	for err == nil {
		var fr rawFrame
		if fr.kind, fr.b, err = f.next(); err == nil && fr.kind != frameEnd {
			out = append(out, fr)
		} else {
			break
		}
	}
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// join writes frames with an end that fits them: what a forger would do.
func join(frames []rawFrame) []byte {
	var buf bytes.Buffer
	w := &Writer{w: &buf, sum: newSum()}
	_ = w.write([]byte(Magic))
	for _, f := range frames {
		_ = w.frame(f.kind, f.b)
	}
	_, _ = w.Close()
	return buf.Bytes()
}

func (m *maker) options() Options { return Options{Genesis: m.genesis, Now: time.UnixMilli(m.now)} }

func (m *maker) verify(b []byte) Report { return Verify(bytes.NewReader(b), m.options()) }

func red(r Report) string {
	var s []string
	for _, c := range r.Checks {
		if !c.OK && c.Detail != "not reached" {
			s = append(s, c.Name+": "+c.Detail)
		}
	}
	return strings.Join(s, "\n")
}
