package passbook

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cometbft/cometbft-db"
	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
)

func keyOf(name string) ed25519.PrivateKey {
	h := chain.Sum([]byte(name))
	return ed25519.NewKeyFromSeed(h[:])
}

func public(k ed25519.PrivateKey) chain.Key { return chain.Key(k.Public().(ed25519.PublicKey)) }

func person(i int) ed25519.PrivateKey { return keyOf(fmt.Sprint("person ", i)) }

func accountOf(i int) chain.Account { return chain.AccountOf(public(person(i))) }

const t0 = 1_800_000_000_000

// bank is a ledger on which money moves, with all that a passbook asks of it.
type bank struct {
	st     *ledger.MapState
	height int64
	now    int64
	nonces map[chain.Key]uint64
	blocks []block // from height 1
	kept   int64   // blocks up to it have been dropped; Replay begins after it
	states map[int64]*ledger.MapState
}

func newBank(t interface{ Fatal(...any) }) *bank {
	b := &bank{st: ledger.NewMapState(), now: t0, nonces: map[chain.Key]uint64{}, states: map[int64]*ledger.MapState{}}
	founder := chain.Founder{Node: "root", Member: chain.Member{Device: public(keyOf("device")), Name: "a", Owner: public(keyOf("owner")), Validator: public(keyOf("validator")), MaxPower: 20_000}}
	if _, err := ledger.InitGenesis(b.st, chain.Genesis{
		Version: chain.Version, ChainID: "test", SlotSeconds: 900, GraceSeconds: 60, Currency: "EUR", MinorDigits: 2, Operators: []chain.Key{public(keyOf("operator"))},
		Retail: 300_000, FeedIn: 80_000, Nodes: []chain.Node{{ID: "root"}}, Members: []chain.Founder{founder}, StartSeconds: 300, Basis: "simulated", Transfers: true,
	}, t0); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bank) tx(k ed25519.PrivateKey, kind chain.TxKind, body any) []byte {
	b.nonces[public(k)]++
	return chain.SignTx("test", b.nonces[public(k)], kind, body, k)
}

// block executes a block and tells the book of it.
func (b *bank) block(t interface{ Fatal(...any) }, book *Book, txs ...[]byte) {
	b.height++
	b.now += 60_000
	out, err := ledger.Apply(b.st, ledger.BlockInput{Height: b.height, TimeMs: b.now, Txs: txs, Trace: true})
	if err != nil {
		t.Fatal(err)
	}
	b.blocks = append(b.blocks, block{b.height, b.now, out.Movements})
	if book != nil {
		book.Add(b.height, time.UnixMilli(b.now), out.Movements)
	}
}

func (b *bank) mint(i int, n chain.Nano) []byte {
	op := keyOf("operator")
	return b.tx(op, chain.TxMint, chain.Mint{To: accountOf(i), Amount: n, BankRef: fmt.Sprint("ref ", b.height, " ", b.nonces[public(op)])})
}

func (b *bank) transfer(from, to int, n chain.Nano) []byte {
	return b.tx(person(from), chain.TxTransfer, chain.Transfer{To: accountOf(to), Amount: n})
}

// keep remembers the state, so that earlier blocks can be dropped.
func (b *bank) keep() {
	st := ledger.NewMapState()
	b.st.Iterate(nil, func(k, v []byte) bool { st.Set(k, v); return true })
	b.states[b.height] = st
}

func (b *bank) Head(fn func(int64, time.Time, ledger.State)) error {
	fn(b.height, time.UnixMilli(b.now), b.st)
	return nil
}

func (b *bank) Replay(_ context.Context, _ time.Time, begin func(int64, time.Time, ledger.State) error, fn func(int64, time.Time, []ledger.Movement)) error {
	st, at := ledger.State(ledger.NewMapState()), int64(t0)
	if b.kept > 0 {
		if b.states[b.kept] == nil {
			return errors.New("the blocks are not here")
		}
		st, at = b.states[b.kept], b.blocks[b.kept-1].ms
	}
	if err := begin(b.kept, time.UnixMilli(at), st); err != nil {
		return err
	}
	for _, n := range b.blocks[b.kept:] {
		fn(n.height, time.UnixMilli(n.ms), n.moves)
	}
	return nil
}

// want is the statement that the blocks tell.
func (b *bank) want(a chain.Account, from, to int64) invoice.Statement {
	s := invoice.Statement{Account: a, FromMs: from, ToMs: to, Rows: []invoice.StatementRow{}}
	for _, n := range b.blocks {
		s.Add(n.height, n.ms, n.moves)
	}
	return s
}

func (b *bank) ask(book *Book, a chain.Account, from, to int64) (invoice.Statement, error) {
	s := invoice.Statement{Account: a, FromMs: from, ToMs: to, Rows: []invoice.StatementRow{}}
	return s, book.Statement(&s, b.height, ledger.BalanceOf(b.st, a))
}

func openBook(t interface{ Fatal(...any) }, dir string) *Book {
	b, err := Open(Config{Dir: dir, ChainID: "test", unsynced: true})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fill is what Run does at a start.
func fill(t interface{ Fatal(...any) }, book *Book, l Ledger) {
	book.mu.Lock()
	book.filling = true
	book.mu.Unlock()
	var err error
	for range attempts {
		if err = book.fill(context.Background(), l); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// Whatever happens to the book (a gateway that runs without it for a while,
// crashes, copies of an old folder, entries that rot), every statement is what
// the blocks tell, or is refused.
func TestStatementsAreWhatTheBlocksTell(t *testing.T) {
	gaps := 0
	rapid.Check(t, func(rt *rapid.T) {
		n := func(what string, max int) int { return rapid.IntRange(0, max).Draw(rt, what) }
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		dir = filepath.Join(dir, "book")
		b := newBank(rt)
		book := openBook(rt, dir)
		fill(rt, book, b)
		defer func() { book.Close() }()
		for range 12 {
			txs := [][]byte{b.mint(n("to", 3), chain.Nano(1+n("amount", 1000)))}
			for range n("transfers", 2) {
				txs = append(txs, b.transfer(n("from", 3), n("to", 3), chain.Nano(1+n("amount", 1000))))
			}
			switch n("what", 9) {
			case 0: // without the book
				b.block(rt, nil, txs...)
				fill(rt, book, b)
			case 1: // a crash before the state was saved, or after
				b.block(rt, book, txs...)
				book.Close()
				book = openBook(rt, dir)
				last := b.blocks[b.height-1]
				book.Add(last.height, time.UnixMilli(last.ms), last.moves)
				fill(rt, book, b)
			case 2: // an entry rots
				b.block(rt, book, txs...)
				a := accountOf(n("account", 3))
				var k []byte
				if err := book.scan(entryKey(a, 0, 0), entryKey(a, 1<<62, 0), true, func(_ chain.Account, ms, h int64, _ entry) bool {
					k = entryKey(a, ms, h)
					return false
				}); err != nil {
					rt.Fatal(err)
				}
				if k == nil {
					continue
				}
				if err := book.db.Set(k, chain.Marshal(entry{Money: 1 << 50})); err != nil {
					rt.Fatal(err)
				}
				if _, err := b.ask(book, a, b.now, 1<<61); !errors.Is(err, ErrDamaged) {
					rt.Fatalf("a book that is wrong was not noticed: %v", err)
				}
				if _, err := b.ask(book, a, 0, 1<<61); !errors.Is(err, ErrFilling) {
					rt.Fatal(err)
				}
				fill(rt, book, b)
			case 3: // old blocks are dropped
				b.block(rt, book, txs...)
				b.keep()
				b.kept = b.height
			case 4: // a state from a neighbour: no blocks at all
				b.block(rt, nil, txs...)
				b.kept = b.height
				fill(rt, book, b)
			default:
				b.block(rt, book, txs...)
			}
			from := int64(0)
			if n("from", 2) > 0 {
				from = t0 + int64(n("from", 13))*60_000
			}
			to := from + int64(n("length", 14))*60_000
			if n("open", 2) == 0 {
				to = 1 << 61
			}
			a := accountOf(n("account", 3))
			if n("system", 5) == 0 {
				a = chain.AccountGrid
			}
			got, err := b.ask(book, a, from, to)
			if gap := (*GapError)(nil); errors.As(err, &gap) {
				gaps++
				if lost := gap.To.UnixMilli(); lost < from || gap.From.UnixMilli() > to || b.kept == 0 {
					rt.Fatalf("refused %d..%d: %v", from, to, err)
				}
				continue
			}
			if err != nil {
				rt.Fatal(err)
			}
			want := b.want(a, got.FromMs, to)
			if !reflect.DeepEqual(got, want) {
				rt.Fatalf("block %d, %d..%d:\n%+v, want\n%+v", b.height, from, to, got, want)
			}
		}
	})
	if gaps == 0 {
		t.Error("no statement was ever refused for a gap")
	}
}

// Of a system account, movements of one reason in one block are one row, and
// none if they cancel out; people see every movement.
func TestRowsOfABlock(t *testing.T) {
	book := openBook(t, filepath.Join(t.TempDir(), "book"))
	defer book.Close()
	fill(t, book, newBank(t))
	move := func(a chain.Account, n chain.Nano, cause string) ledger.Movement {
		return ledger.Movement{Account: a, Amount: n, Cause: cause, Ref: "7"}
	}
	anna, grid := accountOf(0), chain.AccountGrid
	book.Add(1, time.UnixMilli(t0), []ledger.Movement{
		move(grid, 5, "sold"), move(anna, -5, "bought"), move(grid, 6, "sold"), move(anna, -6, "bought"), move(grid, 1, "fees"), move(grid, -1, "fees"), move(anna, 20, "paid in"),
	})
	for _, c := range []struct {
		account chain.Account
		want    []chain.Nano
		balance chain.Nano
	}{{grid, []chain.Nano{11}, 11}, {anna, []chain.Nano{-5, -6, 20}, 9}} {
		s := invoice.Statement{Account: c.account, ToMs: 1 << 61}
		if err := book.Statement(&s, 1, ledger.AccountView{Balance: c.balance}); err != nil {
			t.Fatal(err)
		}
		var got []chain.Nano
		for _, r := range s.Rows {
			got = append(got, r.Amount)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.account, got, c.want)
		}
	}
}

// A book is filled beside a ledger that goes on, and tells how far it is.
func TestFillsBesideARunningLedger(t *testing.T) {
	b := newBank(t)
	for range 20 {
		b.block(t, nil, b.mint(0, 1))
	}
	dir := filepath.Join(t.TempDir(), "book")
	book := openBook(t, dir)
	l := &slow{bank: b, at: make(chan struct{}), go_: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- book.Run(ctx, l) }()
	<-l.at // in the middle
	if _, err := b.ask(book, accountOf(0), 0, 1<<61); !errors.Is(err, ErrFilling) {
		t.Errorf("answered: %v", err)
	}
	if n, of := book.Progress(); n >= of || of < 20 {
		t.Errorf("%d of %d", n, of)
	}
	l.blocks = append([]block{}, b.blocks...) // what Replay had seen
	b.block(t, book, b.mint(0, 100))
	close(l.go_)
	for {
		s, err := b.ask(book, accountOf(0), 0, 1<<61)
		if errors.Is(err, ErrFilling) {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if err != nil || s.Closing != 120 || len(s.Rows) != 21 {
			t.Errorf("%d rows, %d, %v", len(s.Rows), s.Closing, err)
		}
		break
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := errors.Join(book.Close(), book.Close()); err != nil {
		t.Error(err)
	}
	book.Add(99, time.Now(), nil) // after the end: nothing

	// Somebody who looks at it while no gateway runs.
	r, err := Open(Config{Dir: dir, ChainID: "test", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := b.ask(r, accountOf(0), 0, 1<<61); err != nil || s.Closing != 120 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// slow stops in the middle of a replay.
type slow struct {
	*bank
	blocks []block
	at     chan struct{}
	go_    chan struct{}
}

func (s *slow) Head(fn func(int64, time.Time, ledger.State)) error {
	fn(20, time.UnixMilli(t0), s.st)
	return nil
}

func (s *slow) Replay(_ context.Context, _ time.Time, begin func(int64, time.Time, ledger.State) error, fn func(int64, time.Time, []ledger.Movement)) error {
	if err := begin(0, time.UnixMilli(t0), ledger.NewMapState()); err != nil {
		return err
	}
	seen := s.bank.blocks[:20]
	for i, n := range seen {
		if i == 10 {
			s.at <- struct{}{}
			<-s.go_
		}
		fn(n.height, time.UnixMilli(n.ms), n.moves)
	}
	return nil
}

// Files that cannot be read, and those of another ledger, are put aside.
func TestDamagedFilesArePutAside(t *testing.T) {
	for what, damage := range map[string]func(dir string){
		"not a database": func(dir string) {
			files, _ := filepath.Glob(filepath.Join(dir, "statements.db", "MANIFEST*"))
			for _, f := range files {
				_ = os.WriteFile(f, []byte("rust"), 0o600)
			}
		},
		"another ledger's": func(dir string) {
			d, err := db.NewGoLevelDB("statements", dir)
			if err == nil {
				err = errors.Join(d.SetSync(keyHead, chain.Marshal(head{Format: format, Chain: "other"})), d.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(strings.ReplaceAll(what, " ", "_"), func(t *testing.T) {
			b := newBank(t)
			dir := filepath.Join(t.TempDir(), "book")
			book := openBook(t, dir)
			fill(t, book, b)
			b.block(t, book, b.mint(0, 5))
			if err := book.Close(); err != nil {
				t.Fatal(err)
			}
			damage(dir)
			if _, err := Open(Config{Dir: dir, ChainID: "test", ReadOnly: true}); !errors.Is(err, ErrDamaged) {
				t.Errorf("read: %v", err)
			}
			book = openBook(t, dir)
			defer book.Close()
			if _, err := os.Stat(dir + ".damaged"); err != nil {
				t.Error(err)
			}
			if _, err := b.ask(book, accountOf(0), 0, 1<<61); !errors.Is(err, ErrFilling) {
				t.Errorf("answered: %v", err)
			}
			fill(t, book, b)
			if s, err := b.ask(book, accountOf(0), 0, 1<<61); err != nil || s.Closing != 5 {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

// What is older than the law asks for goes; the balances stay right.
func TestForgets(t *testing.T) {
	b := newBank(t)
	book := openBook(t, filepath.Join(t.TempDir(), "book"))
	defer book.Close()
	fill(t, book, b)
	for range 5 {
		b.block(t, book, b.mint(0, 10), b.mint(1, 1))
	}
	b.now += (KeepYears*366 + 1) * 24 * 3600 * 1000
	b.block(t, book, b.mint(0, 100))
	for range 2 {
		if err := book.forget(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.ask(book, accountOf(0), 0, 1<<61)
	if err != nil || len(s.Rows) != 1 || s.Opening != 50 || s.Closing != 150 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := b.ask(book, accountOf(0), t0, 1<<61); !errors.As(err, new(*GapError)) {
		t.Errorf("told of what is gone: %v", err)
	}
	if s, err := b.ask(book, accountOf(1), b.now, 1<<61); err != nil || s.Closing != 5 {
		t.Errorf("%+v, %v", s, err)
	}
	n := 0
	if err := book.scan([]byte{'e'}, []byte{'f'}, false, func(chain.Account, int64, int64, entry) bool { n++; return true }); err != nil || n != 3 {
		t.Errorf("%d entries are left, %v", n, err)
	}
}
