package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/mempool"
	cmt "github.com/cometbft/cometbft/types"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Submit hands a transaction to the ledger and waits until it is in a block
// or refused. Submitting the same bytes again is harmless: it waits for, or
// repeats, the first result. Without a deadline in ctx it gives up after 30 s;
// the transaction may still come into a block after an error.
//
// A refusal by the ledger's rules is a Result, not an error. Errors: ErrFull
// (queue full: try later), ErrHalted, ErrClosed, and those of ctx.
func (e *Engine) Submit(ctx context.Context, tx []byte) (Result, error) {
	if err := e.Halted(); err != nil {
		return Result{}, err
	}
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, submitTimeout)
		defer cancel()
	}
	done, giveUp, err := e.hub.wait(chain.Sum(tx))
	if err != nil {
		return Result{}, err
	}
	defer giveUp()
	if r, err := e.enqueue(tx); err != nil || r.Code != ledger.CodeOK {
		select {
		case r := <-done: // it was committed a moment ago, hence "known already"
			return r, nil
		default:
			return r, err
		}
	}
	select {
	case r := <-done:
		return r, nil
	case <-e.halt:
		return Result{}, e.Halted()
	case <-e.stop:
		return Result{}, ErrClosed
	case <-ctx.Done():
		return Result{}, fmt.Errorf("waiting for a block: %w", context.Cause(ctx))
	}
}

// SubmitAsync hands a transaction to the ledger and returns when the mempool
// has it. A refusal by the ledger's rules is a *Rejected.
func (e *Engine) SubmitAsync(tx []byte) error {
	if err := e.Halted(); err != nil {
		return err
	}
	r, err := e.enqueue(tx)
	if err == nil && r.Code != ledger.CodeOK {
		err = &Rejected{r.Code, r.Info}
	}
	return err
}

// Rejected is the ledger's refusal of a transaction.
type Rejected struct {
	Code ledger.Code
	Info string
}

func (r *Rejected) Error() string { return fmt.Sprintf("refused: %s: %s", r.Code, r.Info) }

// enqueue puts tx into the mempool. A transaction that is there already is
// accepted again.
func (e *Engine) enqueue(tx []byte) (Result, error) {
	select {
	case <-e.stop:
		return Result{}, ErrClosed
	default:
	}
	var res *abci.ResponseCheckTx // set before CheckTx returns: the client is in this process
	err := e.pool.CheckTx(tx, func(r *abci.ResponseCheckTx) { res = r }, mempool.TxInfo{})
	var big mempool.ErrTxTooLarge
	var full mempool.ErrMempoolIsFull
	switch {
	case err == nil:
		return Result{Code: ledger.Code(res.Code), Info: res.Info}, nil
	case errors.Is(err, mempool.ErrTxInCache):
		return Result{}, nil
	case errors.As(err, &big):
		return Result{Code: ledger.CodeTooLarge, Info: fmt.Sprintf("%d bytes, at most %d", big.Actual, big.Max)}, nil
	case errors.As(err, &full), errors.Is(err, mempool.ErrRecheckFull):
		return Result{}, ErrFull
	}
	return Result{}, err
}

// Status is the ledger at a glance.
type Status struct {
	ChainID    string           `json:"chain_id"`
	First      int64            `json:"first"`      // oldest block that is here
	Height     int64            `json:"height"`     // last committed block
	BlockTime  time.Time        `json:"block_time"` // its time
	AppHash    chain.Hash       `json:"app_hash"`   // of the state after it
	Validators chain.Validators `json:"validators"` // of the next block
	Validator  chain.Key        `json:"validator"`  // this gateway's own key
	Voting     bool             `json:"voting"`     // whether it is among Validators
	CatchingUp bool             `json:"catching_up"`
	Peers      int              `json:"peers"`   // gateways connected
	Mempool    int              `json:"mempool"` // transactions waiting
	Halted     string           `json:"halted,omitempty"`
	Sync       SyncStatus       `json:"sync"` // of a snapshot being fetched
}

// Genesis returns the rules and founders of this microgrid.
func (e *Engine) Genesis() chain.Genesis { return e.genesis }

// Status returns the state of the ledger. What a failing disk hides is left
// empty, and Halted tells.
func (e *Engine) Status() (s Status) {
	e.app.mu.Lock()
	last := e.app.last
	e.app.mu.Unlock()
	defer func() {
		if r := recover(); r != nil {
			s.Halted = fmt.Sprintf("the stores cannot be read: %v", r)
		}
	}()
	s = Status{
		ChainID: e.doc.ChainID, First: max(e.blocks.Base(), 1), Height: last.height, BlockTime: last.time, Validator: e.validator,
		CatchingUp: e.consR.WaitSync(), Peers: e.sw.Peers().Size(), Mempool: e.pool.Size(),
		Sync: *e.syncer.status.Load(),
	}
	copy(s.AppHash[:], last.hash)
	if s.BlockTime.IsZero() {
		s.BlockTime = e.doc.GenesisTime
		if m := e.blocks.LoadBlockMeta(last.height); m != nil {
			s.BlockTime = m.Header.Time
		}
	}
	if vals, err := validatorsOf(e.states, last.height+1); err == nil {
		for _, v := range vals.Validators {
			key := chain.Key(v.PubKey.Bytes())
			s.Validators = append(s.Validators, chain.Validator{Key: key, Power: v.VotingPower})
			s.Voting = s.Voting || key == e.validator
		}
	}
	if err := e.Halted(); err != nil {
		s.Halted = err.Error()
	}
	return s
}

// View calls fn with the state of the last committed block. The state does
// not change while fn runs and must not be written or kept; fn may read it
// from several goroutines. A read error of the disk, or a panic of fn, is
// returned.
func (e *Engine) View(fn func(st ledger.State)) error {
	return e.ViewAt(func(_ int64, st ledger.State) { fn(st) })
}

// ViewAt is View that also tells the height.
func (e *Engine) ViewAt(fn func(height int64, st ledger.State)) error {
	return e.app.view(func(c committed, st ledger.State) error {
		fn(c.height, st)
		return nil
	})
}

// Subscribe returns a channel with every block committed from now on, and a
// function that ends it. A receiver that lags behind by more than buffer
// loses the oldest events; a gap in the heights tells. The channel is closed
// when the engine stops.
func (e *Engine) Subscribe(buffer int) (<-chan BlockEvent, func(), error) {
	return e.hub.subscribe(buffer)
}

// Block is a block of the ledger.
type Block struct {
	Height         int64      `json:"height"`
	Time           time.Time  `json:"time"`
	ChainID        string     `json:"chain_id"`
	Hash           chain.Hash `json:"hash"`          // of the header
	Previous       chain.Hash `json:"previous_hash"` // of the header before
	AppHash        chain.Hash `json:"app_hash"`      // of the state BEFORE this block
	DataHash       chain.Hash `json:"data_hash"`
	ValidatorsHash chain.Hash `json:"validators_hash"`
	Proposer       string     `json:"proposer"`
	Txs            [][]byte   `json:"txs"`
}

// Block returns the block at height, Status().First to Status().Height.
func (e *Engine) Block(height int64) (b Block, err error) {
	defer recovered(&err)
	raw := e.blocks.LoadBlock(height)
	if raw == nil {
		return b, e.absent(height)
	}
	return toBlock(raw), nil
}

func toBlock(raw *cmt.Block) Block {
	b := Block{Height: raw.Height, Time: raw.Time, ChainID: raw.ChainID, Proposer: fmt.Sprintf("%x", []byte(raw.ProposerAddress))}
	copy(b.Hash[:], raw.Hash())
	copy(b.Previous[:], raw.LastBlockID.Hash)
	copy(b.AppHash[:], raw.AppHash)
	copy(b.DataHash[:], raw.DataHash)
	copy(b.ValidatorsHash[:], raw.ValidatorsHash)
	for _, tx := range raw.Txs {
		b.Txs = append(b.Txs, tx)
	}
	return b
}

// absent says which blocks are here.
func (e *Engine) absent(height int64) error {
	if first := e.blocks.Base(); height < first {
		return fmt.Errorf("block %d has been dropped: blocks are kept from %d on", height, first)
	}
	return fmt.Errorf("no block %d, the ledger is at %d", height, e.blocks.Height())
}

// AppHashAt returns the root of the state after block height, Status().First-1
// to Status().Height. It is what the validators signed in block height+1 or, for
// the last block, what this gateway computed.
func (e *Engine) AppHashAt(height int64) (h chain.Hash, err error) {
	defer recovered(&err)
	e.app.mu.Lock()
	last := e.app.last
	e.app.mu.Unlock()
	if height == last.height && height > 0 {
		return chain.Hash(last.hash), nil
	}
	if m := e.blocks.LoadBlockMeta(height + 1); m != nil && height >= 0 && height < last.height {
		return chain.Hash(m.Header.AppHash), nil
	}
	return h, fmt.Errorf("no state of height %d: %w", height, e.absent(height+1))
}

// LightBlock returns the header of height with the validators' signatures and
// keys, in CometBFT's protobuf encoding: what an offline verifier needs beside
// a proof. It carries the app hash of the state after height-1.
func (e *Engine) LightBlock(height int64) (b []byte, err error) {
	defer recovered(&err)
	m := e.blocks.LoadBlockMeta(height)
	commit := e.blocks.LoadBlockCommit(height)
	if commit == nil {
		commit = e.blocks.LoadSeenCommit(height)
	}
	if m == nil || commit == nil {
		return nil, fmt.Errorf("it is not signed: %w", e.absent(height))
	}
	vals, err := validatorsOf(e.states, height)
	if err != nil {
		return nil, err
	}
	p, err := (&cmt.LightBlock{SignedHeader: &cmt.SignedHeader{Header: &m.Header, Commit: commit}, ValidatorSet: vals}).ToProto()
	if err != nil {
		return nil, err
	}
	return p.Marshal()
}
