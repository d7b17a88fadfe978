package journal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/joulegate/joulegate/chain"
)

// Accept judges an envelope that came from outside and stores it if it is
// the next block of its author. The error says why a verdict is not Accept,
// or, with Ignore, that the disk failed. raw is kept.
func (j *Journal) Accept(raw []byte) (Verdict, error) {
	b, v, err := j.check(raw)
	if b == nil {
		return v, err
	}
	j.mu.Lock()
	stored, v, err := j.place(b, false)
	j.mu.Unlock()
	j.tell(stored)
	return v, err
}

// check judges what needs no knowledge of the author's chain. A nil block
// comes with the verdict.
func (j *Journal) check(raw []byte) (*chain.Signed, Verdict, error) {
	if len(raw) > chain.MaxBlockBytes {
		j.count.oversize.Add(1)
		return nil, Reject, fmt.Errorf("block of %d bytes, at most %d", len(raw), chain.MaxBlockBytes)
	}
	b, err := chain.ParseBlock(raw)
	if err != nil {
		j.count.invalid.Add(1)
		return nil, Reject, err
	}
	if b.Chain != j.cfg.ChainID {
		j.count.foreign.Add(1)
		return nil, Reject, fmt.Errorf("block of chain %q, this is %q", b.Chain, j.cfg.ChainID)
	}
	if b.Author != j.self && !j.cfg.Member(b.Author) {
		// The ledger here may be behind the one that admitted the author.
		j.count.strangers.Add(1)
		return nil, Ignore, fmt.Errorf("author %s is not a member", b.Author.Short())
	}
	return b, 0, nil
}

var (
	errReplay = errors.New("block is known")
	errAhead  = errors.New("block is ahead of its author's chain here")
)

// place finds a checked block's place and stores it and held ones that
// follow. anchor permits a chain to begin past what is held: its older part
// has been dropped by everybody. The caller holds j.mu.
func (j *Journal) place(b *chain.Signed, anchor bool) (stored []*chain.Signed, v Verdict, err error) {
	a := j.author(b.Author)
	if b.Author == j.self && j.next != (chain.Position{}) && !b.Position().Less(j.next) {
		// Signed with our key, and we do not know it: the disk has forgotten.
		j.lost = true
		j.log.Error("a neighbour has an own block that is missing here; a new epoch follows", "position", b.Position().String())
	}
	i, known := a.find(b.Epoch)
	if !known && len(a.segments) >= MaxEpochs && i == 0 && b.Author != j.self {
		j.count.replays.Add(1)
		return nil, Ignore, errReplay // older than all that is remembered
	}
	s := segment{Epoch: b.Epoch}
	if known {
		s = a.segments[i]
	}
	switch {
	case known && b.Number < s.First:
		j.count.replays.Add(1)
		return nil, Ignore, errReplay
	case known && b.Number <= s.Head:
		have, err := j.Block(b.Author, b.Position())
		if err != nil {
			return nil, Ignore, fmt.Errorf("journal: read block %s of %s: %w", b.Position(), b.Author.Short(), err)
		}
		if have == nil || have.Hash == b.Hash {
			j.count.replays.Add(1)
			return nil, Ignore, errReplay
		}
		return nil, Ignore, j.accuse(a, have, b)
	case b.Number == s.Head+1 && b.Prev != s.Hash:
		// For number 1 both are zero. Past it the author has linked to
		// another predecessor than the one it signed for us.
		have, err := j.Block(b.Author, s.head())
		if err != nil || have == nil {
			return nil, Ignore, fmt.Errorf("block %s of %s does not link", b.Position(), b.Author.Short())
		}
		return nil, Ignore, j.accuse(a, have, b)
	case b.Number == s.Head+1, anchor:
		if b.Number != s.Head+1 {
			if known && !j.stuck[epochOf{b.Author, b.Epoch}] {
				return nil, Ignore, errAhead
			}
			j.count.gaps.Add(1)
		}
	default:
		return nil, j.hold(a, b), errAhead
	}
	if err := j.store(b, false); err != nil {
		j.count.writeErrors.Add(1)
		return nil, Ignore, err
	}
	stored = append(stored, b)
	for {
		next := chain.Position{Epoch: b.Epoch, Number: stored[len(stored)-1].Number + 1}
		h := a.held[next]
		if h == nil {
			break
		}
		j.release(a, h)
		more, _, err := j.place(h, false)
		if err != nil {
			break
		}
		stored = append(stored, more...)
	}
	j.count.stored.Add(1)
	return stored, Accept, nil
}

// hold keeps a valid block that came early. It is passed on: its place is
// for everybody to judge.
func (j *Journal) hold(a *author, b *chain.Signed) Verdict {
	p := b.Position()
	if have := a.held[p]; have != nil {
		if have.Hash == b.Hash {
			j.count.replays.Add(1)
		} else {
			_ = j.accuse(a, have, b)
		}
		return Ignore
	}
	for q, h := range a.held { // passed by the chain meanwhile
		if i, ok := a.find(q.Epoch); ok && q.Number <= a.segments[i].Head {
			j.release(a, h)
		}
	}
	if len(a.held) >= MaxHeld || j.heldBytes+len(b.Raw) > MaxHeldBytes {
		j.count.heldFull.Add(1)
		return Ignore
	}
	a.held[p] = b
	j.heldBytes += len(b.Raw)
	j.count.held.Add(1)
	j.Nudge()
	return Accept
}

func (j *Journal) release(a *author, b *chain.Signed) {
	delete(a.held, b.Position())
	j.heldBytes -= len(b.Raw)
}

// accuse keeps two contradicting blocks as evidence, once per place.
func (j *Journal) accuse(a *author, have, b *chain.Signed) error {
	j.count.equivocations.Add(1)
	err := fmt.Errorf("equivocation: author %s signed %s twice", b.Author.Short(), b.Position())
	key := keyEvidence(b.Author, b.Position())
	if known, dbErr := j.db.Has(key); dbErr != nil || known || a.evidence >= MaxEvidence {
		return err
	}
	if dbErr := j.db.SetSync(key, chain.Marshal(Evidence{have.Raw, b.Raw})); dbErr != nil {
		j.count.writeErrors.Add(1)
		return errors.Join(err, dbErr)
	}
	a.evidence++
	j.log.Warn("equivocation", "peer", b.Author.Short(), "position", b.Position().String())
	return err
}

func (j *Journal) tell(stored []*chain.Signed) {
	if j.cfg.Stored == nil {
		return
	}
	for _, b := range stored {
		j.cfg.Stored(b)
	}
}

func (a *author) set(s segment) {
	i, ok := a.find(s.Epoch)
	if ok {
		a.segments[i] = s
		return
	}
	a.segments = slices.Insert(a.segments, i, s)
}
