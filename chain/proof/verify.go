package proof

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/tree"
	"github.com/joulegate/joulegate/meter/profile"
)

// Genesis is what everybody who verifies trusts: the microgrid's founding.
type Genesis struct {
	Hash  chain.Hash // SHA-256 of the file
	Time  time.Time
	State chain.Genesis
}

// MaxGenesis bounds a genesis file in bytes.
const MaxGenesis = 4 << 20

// ParseGenesis reads a genesis file.
func ParseGenesis(b []byte) (g Genesis, err error) {
	if len(b) > MaxGenesis {
		return g, fmt.Errorf("genesis of %d bytes, at most %d", len(b), MaxGenesis)
	}
	var doc struct {
		Time  time.Time     `json:"genesis_time"`
		Chain string        `json:"chain_id"`
		State chain.Genesis `json:"app_state"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return g, fmt.Errorf("genesis: %w", err)
	}
	if err := doc.State.Check(); err != nil {
		return g, err
	}
	if doc.Chain != doc.State.ChainID {
		return g, fmt.Errorf("genesis: chain %q holds the state of %q", doc.Chain, doc.State.ChainID)
	}
	if len(chain.FoundingValidators(doc.State)) == 0 {
		return g, errors.New("genesis: no founding validator")
	}
	return Genesis{Hash: chain.Sum(b), Time: doc.Time, State: doc.State}, nil
}

// Options say what to believe and how much to do.
type Options struct {
	Genesis    Genesis
	Checkpoint *chain.Checkpoint // that the verifier trusts; nil: none
	Now        time.Time         // the verifier's clock, to judge the checkpoint's age
	Execute    bool              // execute every block again, however many
	Progress   func(height, of int64)
}

// ExecuteUpTo is how many transactions are executed again without being asked.
const ExecuteUpTo = 2000

// Check is one thing that was looked at, in words.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Report is what came of a verification.
type Report struct {
	OK         bool    `json:"ok"`
	Assurance  string  `json:"assurance"`
	Checks     []Check `json:"checks"`
	Claim      Claim   `json:"claim"`
	Validators int     `json:"validators"` // that sign the last block
	Owners     int     `json:"owners"`     // distinct ones behind them; 0: not known
	SelfAttest bool    `json:"self_attested"`
	Unique     bool    `json:"proven_unique"`
}

// Checks, in the order in which they are made.
const (
	checkFile       = "the file is whole"
	checkGenesis    = "it belongs to the trusted genesis"
	checkSignatures = "validators have signed, from the genesis to the last block"
	checkBlocks     = "no block is missing, changed or exchanged"
	checkCheckpoint = "it holds the trusted checkpoint"
	checkTxs        = "every transaction is in its block, and none is missing"
	checkGateways   = "gateways' own blocks are signed and numbered without a gap"
	checkState      = "the state is the one that was signed, and complete"
	checkRules      = "the rules in force"
	checkSlots      = "every slot was cleared optimally, and its sums are right"
	checkMeters     = "meters' registers add up"
	checkSessions   = "sessions' captures, energy and payments add up"
	checkReadings   = "raw registers say what the readings and records say"
	checkEvidence   = "guard and device evidence is whole"
	checkSums       = "money, credit and energy of the whole ledger add up"
	checkExecution  = "executing every block again leads to the same state"
)

var checkOrder = []string{
	checkFile, checkGenesis, checkBlocks, checkSignatures, checkCheckpoint, checkTxs, checkGateways, checkState,
	checkRules, checkSlots, checkMeters, checkSessions, checkReadings, checkEvidence, checkSums, checkExecution,
}

// failure is a check that did not hold.
type failure struct {
	check string
	err   error
}

func (f *failure) Error() string { return f.check + ": " + f.err.Error() }

func fail(check, format string, args ...any) error {
	return &failure{check, fmt.Errorf(format, args...)}
}

// verifier holds what has been seen. What it keeps of a record is small: the
// records themselves go by.
type verifier struct {
	opt    Options
	claim  Claim
	said   map[string]string // details of checks that held
	trust  chain.Trust
	expect chain.Hash // validators of the next block
	hops   int

	prev     *chain.LedgerHeader
	prevHash chain.Hash
	pending  bool // prev wants its votes next
	tip      *chain.Checkpoint
	seen     bool     // the trusted checkpoint
	last     [][]byte // transactions of the block before, whose outcomes the next header signs
	txs      int
	unclear  int // blocks in which the ledger refused some

	books   books
	blocks  []ledger.BlockInput // to be executed again
	execute bool

	tree     tree.Reader
	treeOn   bool
	state    *tree.State
	profiles map[chain.Hash]*profile.Profile
	used     map[chain.Hash]bool
	reads    reads
}

// Verify judges a bundle. It reads r once, from front to back, in memory that
// grows with the ledger's entries but not with its readings.
func Verify(r io.Reader, opt Options) (rep Report) {
	v := &verifier{opt: opt, said: map[string]string{}, profiles: map[chain.Hash]*profile.Profile{}, used: map[chain.Hash]bool{}}
	err := v.run(r)
	rep.Claim = v.claim
	rep.OK = err == nil
	var f *failure
	if err != nil && !errors.As(err, &f) {
		f = &failure{checkFile, err}
	}
	for _, name := range checkOrder {
		switch detail, held := v.said[name]; {
		case f != nil && f.check == name:
			rep.Checks = append(rep.Checks, Check{name, false, f.err.Error()})
		case held:
			rep.Checks = append(rep.Checks, Check{name, true, detail})
		case f != nil && name == checkCheckpoint && opt.Checkpoint == nil, f != nil && name == checkExecution:
		case f != nil:
			rep.Checks = append(rep.Checks, Check{name, false, "not reached"})
		}
	}
	v.assure(&rep)
	return rep
}

func (v *verifier) held(check, format string, args ...any) {
	v.said[check] = fmt.Sprintf(format, args...)
}

// assure says how much all of it is worth.
func (v *verifier) assure(rep *Report) {
	if !rep.OK {
		rep.Assurance = "none: a check failed"
		return
	}
	rep.Validators = len(v.tip.Set)
	owners := map[chain.Key]bool{}
	known := true
	byKey := map[chain.Key]chain.Key{}
	for _, m := range ledger.Members(v.state) {
		byKey[m.Member.Validator] = m.Member.Owner
	}
	for _, val := range v.tip.Set {
		o, ok := byKey[val.Key]
		known = known && ok
		owners[o] = true
	}
	if known {
		rep.Owners = len(owners)
	}
	rep.SelfAttest = len(owners) == 1
	kind := fmt.Sprintf("signed by %d validators of %d owners", rep.Validators, len(owners))
	if rep.SelfAttest {
		kind = fmt.Sprintf("self-attested: one owner holds every validator (%d), so nobody else has agreed", rep.Validators)
	}
	if c := v.opt.Checkpoint; c != nil && v.opt.Now.Sub(c.Time()) <= chain.TrustingPeriod {
		rep.Unique = true
		rep.Assurance = kind + "; the only history, by a checkpoint of " + c.Time().Format(time.DateOnly)
		return
	}
	why := "no checkpoint was given"
	if v.opt.Checkpoint != nil {
		why = fmt.Sprintf("the checkpoint is older than the trusting period of %d days", chain.TrustingPeriod/(24*time.Hour))
	}
	rep.Assurance = kind + "; not proven unique: " + why + ", and former validators could have signed another history"
}

func (v *verifier) run(r io.Reader) error {
	f, err := newReader(r)
	if err != nil {
		return err
	}
	for {
		kind, b, err := f.next()
		if err != nil {
			return fail(checkFile, "at byte %d: %w", f.size, err)
		}
		switch kind {
		case frameClaim:
			err = v.open(b)
		case frameCheckpoint:
			err = v.checkpoint(b)
		case frameBlock:
			err = v.block(b)
		case frameState:
			if !v.treeOn {
				err = v.blocksEnd()
				v.treeOn = true
			}
			if err == nil {
				if err = v.tree.Feed(b); err != nil || v.tree.Len() > maxEntries {
					err = fail(checkState, "its tree cannot be read after %d entries: %w", v.tree.Len(), errors.Join(err))
				}
			}
		default:
			if err = v.stateEnd(); err != nil {
				break
			}
			switch kind {
			case frameProfile:
				err = v.profile(b)
			case frameReadings:
				err = v.readings(b)
			case frameEnd:
				v.held(checkFile, "%d bytes, as they were written", f.size)
				return v.finish()
			}
		}
		if err != nil {
			return err
		}
	}
}

// open begins with what the bundle claims.
func (v *verifier) open(b []byte) error {
	if err := chain.Unmarshal(b, &v.claim); err != nil {
		return fail(checkFile, "claim: %w", err)
	}
	if err := v.claim.check(); err != nil {
		return fail(checkFile, "claim: %w", err)
	}
	g := v.opt.Genesis
	if v.claim.Chain != g.State.ChainID || v.claim.Genesis != g.Hash {
		return fail(checkGenesis, "it is of chain %q with genesis %s, the trusted one is %q with %s", v.claim.Chain, v.claim.Genesis, g.State.ChainID, g.Hash)
	}
	v.trust = chain.TrustGenesis(g.State, g.Time)
	v.expect = v.trust.Next.Hash()
	v.execute = v.claim.First == 1 && v.claim.All && v.claim.To == v.claim.Tip-1
	v.books.init(g.State)
	return nil
}

// checkpoint takes votes: of a block on the way, or of the block before it.
func (v *verifier) checkpoint(b []byte) error {
	if len(b) > chain.MaxCheckpoint {
		return fail(checkSignatures, "a checkpoint of %d bytes", len(b))
	}
	c := &chain.Checkpoint{}
	if err := chain.Unmarshal(b, c); err != nil {
		return fail(checkSignatures, "a checkpoint cannot be read: %w", err)
	}
	if err := c.Check(); err != nil {
		return fail(checkSignatures, "%w", err)
	}
	h := c.Header.Hash()
	if v.prev != nil { // within the run
		if !v.pending || h != v.prevHash {
			return fail(checkSignatures, "votes for block %d stand after block %d", c.Header.Height, v.prev.Height)
		}
		v.pending = false
		v.expect = c.Header.Next
		if c.Header.Height == v.claim.Tip {
			v.tip = c
		}
		return nil
	}
	// Before the run: a change of validators, each by those who were trusted.
	if c.Header.Chain != v.claim.Chain || c.Header.Height >= v.claim.First || c.Header.Height <= v.trust.Height || len(c.Next) == 0 {
		return fail(checkSignatures, "a checkpoint of block %d that leads nowhere", c.Header.Height)
	}
	if c.Header.Validators != v.expect {
		return fail(checkSignatures, "block %d was signed by validators that nobody before it named", c.Header.Height)
	}
	v.trust, v.expect = c.Trust(), c.Header.Next
	v.hops++
	return v.meet(c.Header.Height, h)
}

// meet compares a block with the trusted checkpoint.
func (v *verifier) meet(height int64, h chain.Hash) error {
	c := v.opt.Checkpoint
	if c == nil || c.Header.Height != height {
		return nil
	}
	if c.Header.Hash() != h {
		return fail(checkCheckpoint, "block %d is %s, the checkpoint says %s: this is another history", height, h, c.Header.Hash())
	}
	v.seen = true
	return nil
}

func (v *verifier) block(raw []byte) error {
	var b Block
	if err := chain.Unmarshal(raw, &b); err != nil {
		return fail(checkBlocks, "a block cannot be read: %w", err)
	}
	h := &b.Header
	if v.pending {
		return fail(checkSignatures, "the votes for block %d are missing", v.prev.Height)
	}
	want := v.claim.First
	if v.prev != nil {
		want = v.prev.Height + 1
	}
	hash := h.Hash()
	switch {
	case h.Chain != v.claim.Chain:
		return fail(checkBlocks, "block %d is of chain %q", h.Height, h.Chain)
	case h.Height != want || h.Height > v.claim.Tip:
		return fail(checkBlocks, "block %d stands where %d belongs", h.Height, want)
	case v.prev != nil && (h.Last.Hash != v.prevHash || h.Time < v.prev.Time):
		return fail(checkBlocks, "block %d does not follow the block before it", h.Height)
	case v.prev == nil && h.Height == 1 && h.Last != (chain.BlockRef{}):
		return fail(checkBlocks, "block 1 follows another")
	}
	if err := v.meet(h.Height, hash); err != nil {
		return err
	}
	if h.Validators != v.expect {
		// A gateway that has dropped its oldest blocks begins at a
		// checkpoint, which the verifier must hold himself.
		if v.prev != nil || !v.seen || v.opt.Checkpoint.Header.Height != h.Height {
			return fail(checkSignatures, "block %d is signed by validators that nobody before it named", h.Height)
		}
	}
	if err := v.outcomes(h); err != nil {
		return err
	}
	if h.Height <= v.claim.To {
		txs, err := unpack(b.Txs)
		if err != nil || dataHash(txs) != h.Data {
			return fail(checkTxs, "the %d transactions of block %d are not those that were signed", len(txs), h.Height)
		}
		v.txs += len(txs)
		v.last = txs
		if v.execute = v.execute && (v.opt.Execute || v.txs <= ExecuteUpTo); v.execute {
			v.blocks = append(v.blocks, ledger.BlockInput{Height: h.Height, TimeMs: h.Time / 1e6, Txs: txs})
		} else {
			v.blocks = nil
		}
	} else if len(b.Txs) != 0 {
		return fail(checkTxs, "block %d has transactions beyond what is claimed", h.Height)
	}
	v.prev, v.prevHash = h, hash
	v.pending = h.Next != h.Validators || h.Height == v.claim.Tip
	v.expect = h.Next
	if v.opt.Progress != nil && h.Height%256 == 0 {
		v.opt.Progress(h.Height, v.claim.Tip)
	}
	return nil
}

// outcomes reads the transactions of the block before h. h signs their
// outcomes: where all took effect, as almost always, every one must fit; where
// the ledger refused some, those that do not fit are the refused ones.
func (v *verifier) outcomes(h *chain.LedgerHeader) error {
	if len(v.last) == 0 {
		return nil
	}
	all := chain.MerkleRoot(make([][]byte, len(v.last))) == h.Results // code 0 is encoded as nothing
	if !all {
		v.unclear++
	}
	for _, tx := range v.last {
		if err := v.books.take(v.prev, tx, all); err != nil {
			return err
		}
	}
	v.last = nil
	return nil
}

// blocksEnd is after the last block.
func (v *verifier) blocksEnd() error {
	switch {
	case v.prev == nil || v.prev.Height != v.claim.Tip:
		return fail(checkBlocks, "blocks up to %d are claimed and not here", v.claim.Tip)
	case v.tip == nil:
		return fail(checkSignatures, "the votes for the last block are missing")
	}
	v.held(checkGenesis, "chain %q, genesis %s", v.claim.Chain, v.claim.Genesis)
	v.held(checkBlocks, "blocks %d to %d, until %s, each names the one before by hash", v.claim.First, v.claim.Tip, v.tip.Time().Format(time.RFC3339))
	v.held(checkSignatures, "block %d has the votes of more than two thirds of %d validators; %d changes of validators before block %d", v.claim.Tip, len(v.tip.Set), v.hops, v.claim.First)
	if c := v.opt.Checkpoint; c != nil {
		switch {
		case v.seen:
			v.held(checkCheckpoint, "block %d is the one that the checkpoint of %s names", c.Header.Height, c.Time().Format(time.RFC3339))
		case c.Header.Height > v.claim.Tip:
			return fail(checkCheckpoint, "the bundle ends at block %d, before the checkpoint at %d, so nobody can tell whether it leads there: ask for a bundle that was made later", v.claim.Tip, c.Header.Height)
		default:
			return fail(checkCheckpoint, "the bundle does not hold block %d of the checkpoint, only %d to %d", c.Header.Height, v.claim.First, v.claim.Tip)
		}
	}
	v.held(checkTxs, "%d transactions in blocks %d to %d; in %d blocks the ledger refused some", v.txs, v.claim.First, v.claim.To, v.unclear)
	return nil
}

// stateEnd is after the last node of the state's tree.
func (v *verifier) stateEnd() error {
	if v.state != nil {
		return nil
	}
	if !v.treeOn || !v.tree.Done {
		return fail(checkState, "its tree is not whole")
	}
	if v.tree.Root != v.tip.Header.AppHash {
		return fail(checkState, "its root is %s, block %d signs %s", v.tree.Root, v.claim.Tip, v.tip.Header.AppHash)
	}
	v.state = v.tree.State()
	v.tree = tree.Reader{}
	var missing []byte
	want := func(lo, hi []byte) {
		if missing == nil && !v.state.Told(lo, hi) {
			missing = append([]byte{}, lo...)
		}
	}
	if v.claim.All {
		want(nil, nil)
	}
	for _, p := range ledger.CommonPrefixes() {
		want(p, tree.After(p))
	}
	for _, r := range ledger.SlotRanges(v.claim.FromSlot, v.claim.ToSlot) {
		want(r[0], r[1])
	}
	if v.claim.Session != (chain.ID{}) {
		k := ledger.SessionKey(v.claim.Session)
		want(k, append(bytes.Clone(k), 0))
	}
	if missing != nil {
		return fail(checkState, "entries after key %x are claimed and left out", missing)
	}
	v.held(checkState, "%d entries of the state after block %d, root %s", v.state.Len(), v.claim.Tip-1, v.tip.Header.AppHash)
	return nil
}

func (v *verifier) finish() (err error) {
	// The ledger panics on entries that it cannot have written: a majority of
	// validators can sign such a state, and that is a finding.
	at := checkState
	defer func() {
		if p := recover(); p != nil {
			err = fail(at, "the state holds what no ledger writes: %v", p)
		}
	}()
	for _, step := range []struct {
		check string
		fn    func() error
	}{
		{checkGateways, v.gateways},
		{checkRules, v.rules},
		{checkSlots, v.slots},
		{checkMeters, v.meters},
		{checkSessions, v.sessions},
		{checkReadings, v.readingsEnd},
		{checkEvidence, v.evidence},
		{checkSums, v.sums},
		{checkExecution, v.executed},
	} {
		at = step.check
		if err := step.fn(); err != nil {
			var f *failure
			if errors.As(err, &f) {
				return err
			}
			return &failure{step.check, err}
		}
		if v.state.Unknown != nil {
			return fail(step.check, "the entry %x is needed and not in the bundle", v.state.Unknown)
		}
	}
	return nil
}

// WriteText prints a report for people.
func (r *Report) WriteText(w io.Writer) error {
	var b bytes.Buffer
	for _, c := range r.Checks {
		mark := "ok  "
		if !c.OK {
			mark = "RED "
		}
		fmt.Fprintf(&b, "%s %s\n       %s\n", mark, c.Name, c.Detail)
	}
	verdict := "RED: do not rely on this bundle"
	if r.OK {
		verdict = "GREEN"
	}
	fmt.Fprintf(&b, "\n%s\nassurance: %s\n", verdict, r.Assurance)
	_, err := w.Write(b.Bytes())
	return err
}
