package journal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// Protocol names the requests that Serve answers.
const Protocol = "/joulegate/journal/1"

// SyncEvery is the time between exchanges of heads. One question to a
// neighbour is bounded by askTimeout, all of one exchange by syncTimeout.
const (
	SyncEvery   = 30 * time.Second
	askTimeout  = 10 * time.Second
	syncTimeout = 2 * time.Minute
)

// errSilent ends an exchange: the neighbour gave no usable answer.
var errSilent = errors.New("neighbour does not answer")

// Neighbour is somebody whose journal can be asked.
type Neighbour struct {
	Name string // for logs
	// Ask sends a request of at most MaxRequest bytes to the neighbour's
	// Serve and returns its reply of at most MaxReply bytes.
	Ask func(ctx context.Context, request []byte) ([]byte, error)
}

// What is asked. Append only.
const (
	askHeads  = 1 // -> headsReply
	askNewest = 2 // -> blocksReply with the newest block of Author, or none
	askRange  = 3 // -> blocksReply with blocks of (Author, Epoch) from From on
)

type request struct {
	Version uint8     `cbor:"1,keyasint"`
	Kind    uint8     `cbor:"2,keyasint"`
	Author  chain.Key `cbor:"3,keyasint"` // zero with askHeads: all
	Epoch   uint32    `cbor:"4,keyasint"`
	From    uint64    `cbor:"5,keyasint"`
	Max     uint32    `cbor:"6,keyasint"`
}

type headsReply struct {
	Authors []authorHeads `cbor:"1,keyasint"`
}

type authorHeads struct {
	Author chain.Key   `cbor:"1,keyasint"`
	Epochs []epochHead `cbor:"2,keyasint"`
}

type epochHead struct {
	Epoch uint32 `cbor:"1,keyasint"`
	First uint64 `cbor:"2,keyasint"`
	Head  uint64 `cbor:"3,keyasint"`
}

type blocksReply struct {
	Blocks [][]byte `cbor:"1,keyasint"`
}

// Serve answers one catch-up request. It reads only.
func (j *Journal) Serve(_ context.Context, raw []byte) ([]byte, error) {
	if len(raw) > MaxRequest {
		return nil, fmt.Errorf("request of %d bytes, at most %d", len(raw), MaxRequest)
	}
	var r request
	if err := chain.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if r.Version != chain.Version {
		return nil, fmt.Errorf("request version %d, this program knows %d", r.Version, chain.Version)
	}
	j.count.served.Add(1)
	switch r.Kind {
	case askHeads:
		return chain.Marshal(j.heads(r.Author)), nil
	case askNewest:
		return j.serveNewest(r.Author)
	case askRange:
		if r.Max == 0 || r.Max > MaxRange {
			return nil, fmt.Errorf("request for %d blocks, 1..%d", r.Max, MaxRange)
		}
		start := keyBlock(r.Author, chain.Position{Epoch: r.Epoch, Number: r.From})
		end := prefixEnd(keySegmentOfBlocks(r.Author, r.Epoch))
		blocks, err := j.scan(start, end, int(r.Max))
		if err != nil {
			j.log.Error("catch-up not served", "err", err)
			return nil, errors.New("storage failed")
		}
		return chain.Marshal(blocksReply{blocks}), nil
	}
	return nil, fmt.Errorf("request kind %d is unknown", r.Kind)
}

func keySegmentOfBlocks(a chain.Key, epoch uint32) []byte {
	return keyBlock(a, chain.Position{Epoch: epoch})[:1+len(a)+4]
}

func (j *Journal) serveNewest(a chain.Key) ([]byte, error) {
	j.mu.Lock()
	s, ok := j.authors[a].newest()
	j.mu.Unlock()
	var reply blocksReply
	if ok && s.First <= s.Head {
		raw, err := j.db.Get(keyBlock(a, s.head()))
		if err != nil || raw == nil {
			j.log.Error("catch-up not served", "err", err)
			return nil, errors.New("storage failed")
		}
		reply.Blocks = [][]byte{raw}
	}
	return chain.Marshal(reply), nil
}

// heads lists what is held, of one author or, for the zero key, of all.
func (j *Journal) heads(only chain.Key) headsReply {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out headsReply
	for k, a := range j.authors {
		if len(a.segments) == 0 || only != (chain.Key{}) && k != only || len(out.Authors) == maxHeadsAuthors {
			continue
		}
		h := authorHeads{Author: k}
		for _, s := range a.segments[max(0, len(a.segments)-maxHeadsEpochs):] {
			h.Epochs = append(h.Epochs, epochHead{s.Epoch, s.First, s.Head})
		}
		out.Authors = append(out.Authors, h)
	}
	slices.SortFunc(out.Authors, func(a, b authorHeads) int { return bytes.Compare(a.Author[:], b.Author[:]) })
	return out
}

// syncAll is one round of exchanges. A hole that nobody could fill while
// somebody has what follows it may be skipped in the next round: its blocks
// have been dropped everywhere. One neighbour's word is not enough as long as
// another one has them.
func (j *Journal) syncAll(ctx context.Context) {
	holes := map[epochOf]uint64{} // and the head before them
	defer func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		clear(j.stuck)
		for k, head := range holes {
			if a := j.authors[k.author]; a != nil {
				if i, ok := a.find(k.epoch); ok && a.segments[i].Head == head {
					j.stuck[k] = true
				}
			}
		}
	}()
	// Who did not answer in the last round is asked last: the others shall
	// not wait for it.
	neighbours := slices.Clone(j.cfg.Neighbours())
	slices.SortStableFunc(neighbours, func(a, b Neighbour) int {
		return cmp.Compare(silent(j.silent, a), silent(j.silent, b))
	})
	j.silent = map[string]bool{}
	for _, n := range neighbours {
		if ctx.Err() != nil {
			return
		}
		got, err := j.syncAuthor(ctx, n, chain.Key{}, holes)
		j.silent[n.Name] = errors.Is(err, errSilent)
		switch {
		case err != nil && ctx.Err() == nil:
			j.count.syncErrors.Add(1)
			j.log.Debug("catch-up failed", "peer", n.Name, "blocks", got, "err", err)
		case got > 0:
			j.log.Info("caught up", "peer", n.Name, "blocks", got)
		}
	}
}

func silent(last map[string]bool, n Neighbour) int {
	if last[n.Name] {
		return 1
	}
	return 0
}

// Sync compares heads with one neighbour and fetches what is missing here.
// It returns the number of blocks stored, also with an error.
func (j *Journal) Sync(ctx context.Context, n Neighbour) (int, error) {
	return j.syncAuthor(ctx, n, chain.Key{}, nil)
}

// syncAuthor is Sync for one author, or all for the zero key. It notes in
// holes, unless nil, where a neighbour begins past what is held here.
func (j *Journal) syncAuthor(ctx context.Context, n Neighbour, only chain.Key, holes map[epochOf]uint64) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	var theirs headsReply
	if err := exchange(ctx, n, request{Kind: askHeads, Author: only}, &theirs); err != nil {
		return 0, err
	}
	total := 0
	var errs []error
	for _, a := range theirs.Authors[:min(len(theirs.Authors), maxHeadsAuthors)] {
		if only != (chain.Key{}) && a.Author != only || a.Author != j.self && !j.cfg.Member(a.Author) {
			continue
		}
		for _, e := range a.Epochs[:min(len(a.Epochs), maxHeadsEpochs)] {
			got, err := j.fetch(ctx, n, a.Author, e, holes)
			total += got
			if err != nil {
				errs = append(errs, err)
			}
			if errors.Is(err, errSilent) {
				return total, errors.Join(errs...)
			}
		}
	}
	return total, errors.Join(errs...)
}

// fetch gets the blocks of one epoch that the neighbour says it has.
func (j *Journal) fetch(ctx context.Context, n Neighbour, a chain.Key, theirs epochHead, holes map[epochOf]uint64) (int, error) {
	total := 0
	for {
		have, some, skip := j.epochHead(a, theirs.Epoch)
		if have >= theirs.Head || theirs.First > theirs.Head {
			return total, nil
		}
		if some && theirs.First > have+1 && !skip {
			if holes != nil {
				holes[epochOf{a, theirs.Epoch}] = have
			}
			return total, nil
		}
		from := max(have+1, theirs.First)
		var reply blocksReply
		err := exchange(ctx, n, request{Kind: askRange, Author: a, Epoch: theirs.Epoch, From: from, Max: MaxRange}, &reply)
		if err != nil {
			return total, err
		}
		got, err := j.take(a, theirs.Epoch, from, reply.Blocks)
		total += got
		j.count.fetched.Add(uint64(got))
		if err != nil {
			return total, fmt.Errorf("blocks of %s from %s: %w", a.Short(), n.Name, err)
		}
		if got == 0 {
			return total, nil
		}
	}
}

// take stores a run of blocks that was asked for. Anything else in it ends
// the run.
func (j *Journal) take(a chain.Key, epoch uint32, from uint64, raws [][]byte) (int, error) {
	total := 0
	for i, raw := range raws[:min(len(raws), MaxRange)] {
		b, _, err := j.check(raw)
		if err != nil {
			return total, err
		}
		if b.Author != a || b.Epoch != epoch || b.Number != from+uint64(i) {
			return total, fmt.Errorf("got %s %s, asked for %s %d/%d", b.Author.Short(), b.Position(), a.Short(), epoch, from+uint64(i))
		}
		j.mu.Lock()
		stored, _, err := j.place(b, i == 0)
		j.mu.Unlock()
		j.tell(stored)
		total += len(stored)
		if err != nil && !errors.Is(err, errReplay) { // gossip may have been quicker
			return total, err
		}
	}
	return total, nil
}

// epochHead returns the head of an author's epoch, whether any is held, and
// whether a hole after it may be skipped.
func (j *Journal) epochHead(a chain.Key, epoch uint32) (head uint64, some, skip bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if au := j.authors[a]; au != nil {
		if i, ok := au.find(epoch); ok {
			return au.segments[i].Head, true, j.stuck[epochOf{a, epoch}]
		}
	}
	return 0, false, false
}

// askNewest returns the newest own block that the neighbour holds, or nil.
// Only a block with our signature counts: a claim alone could push us
// anywhere.
func (j *Journal) askNewest(ctx context.Context, n Neighbour) (*chain.Signed, error) {
	var reply blocksReply
	if err := exchange(ctx, n, request{Kind: askNewest, Author: j.self}, &reply); err != nil {
		return nil, err
	}
	switch len(reply.Blocks) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, fmt.Errorf("%d blocks, asked for the newest", len(reply.Blocks))
	}
	b, err := chain.ParseBlock(reply.Blocks[0])
	if err != nil {
		return nil, err
	}
	if b.Author != j.self || b.Chain != j.cfg.ChainID {
		return nil, errors.New("not a block of ours")
	}
	return b, nil
}

// exchange sends one request and decodes the reply.
func exchange(ctx context.Context, n Neighbour, r request, reply any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	r.Version = chain.Version
	raw, err := n.Ask(ctx, chain.Marshal(r))
	switch {
	case err != nil:
	case len(raw) > MaxReply:
		err = fmt.Errorf("reply of %d bytes, at most %d", len(raw), MaxReply)
	default:
		err = chain.Unmarshal(raw, reply)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errSilent, err)
	}
	return nil
}
