package consensus

import (
	"context"
	"fmt"
	"time"

	cs "github.com/cometbft/cometbft/consensus"
	cstypes "github.com/cometbft/cometbft/consensus/types"
	"github.com/cometbft/cometbft/lp2p"
	"github.com/cometbft/cometbft/p2p"
	cmtcons "github.com/cometbft/cometbft/proto/tendermint/consensus"
)

// repeatEvery is how long a round may stand still before the neighbours are
// told again where this gateway is.
const repeatEvery = time.Second

// repeater mends what messages that overtake each other have broken.
//
// CometBFT's consensus counts on the order of a connection: it says once which
// height it is at and which parts of a block it lacks, and neighbours send
// each part once. lp2p carries every message on a stream of its own, so that
// "I lack all parts of block 2" can arrive before "I am at height 2", where it
// means nothing and is dropped. The neighbour then believes that it has sent
// the block, and this gateway waits for it for ever; if its vote is needed,
// everybody does.
//
// Both statements can be repeated without harm: what is known already changes
// nothing. They are repeated only while a round stands still, so an idle
// ledger stays silent.
//
// It also sees what no repetition mends. After a block CometBFT waits until a
// time of the wall clock, not for a time to pass: set back just then by three
// hours, as a clock without a battery is when it first hears the time, it
// waits for three hours, and goes on doing so if the clock is set right again.
type repeater struct {
	cons  *cs.State
	consR *cs.Reactor
	set   *lp2p.PeerSet
	pause time.Duration // the longest honest wait after a block
	last  position
	since time.Time // of last, with a monotonic clock
}

// pauseGrace is how much longer than its timeout the wait after a block may
// take on a busy machine before it is no wait but a mistake.
const pauseGrace = 10 * time.Second

// ErrClock is what Run returns when the ledger waits for a time that the wall
// clock has left behind. It is an ErrReopen.
var ErrClock = fmt.Errorf("the clock was set while the ledger waited for its next block: %w", ErrReopen)

type position struct {
	height int64
	round  int32
	step   cstypes.RoundStepType
	parts  string // which are here, as bits
}

func (r *repeater) run(ctx context.Context) error {
	tick := time.NewTicker(repeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if r.consR.WaitSync() { // until then block sync leads
				continue
			}
			r.look()
			if r.last.step == cstypes.RoundStepNewHeight && time.Since(r.since) > r.pause {
				return ErrClock
			}
		}
	}
}

func (r *repeater) look() {
	rs := r.cons.GetRoundState()
	now := position{rs.Height, rs.Round, rs.Step, ""}
	if rs.ProposalBlockParts != nil {
		now.parts = string(rs.ProposalBlockParts.BitArray().Bytes()) // Count takes no lock
	}
	still := now == r.last
	if !still {
		r.last, r.since = now, time.Now()
	}
	if !still || rs.Step < cstypes.RoundStepPropose { // before it there is nothing to be had
		return
	}
	step := &cmtcons.NewRoundStep{
		Height: rs.Height, Round: rs.Round, Step: uint32(rs.Step),
		SecondsSinceStartTime: int64(time.Since(rs.StartTime).Seconds()), LastCommitRound: rs.LastCommit.GetRound(),
	}
	var parts *cmtcons.NewValidBlock
	if rs.Step == cstypes.RoundStepCommit && rs.ProposalBlockParts != nil {
		header := rs.ProposalBlockParts.Header()
		parts = &cmtcons.NewValidBlock{
			Height: rs.Height, Round: rs.Round, IsCommit: true,
			BlockPartSetHeader: header.ToProto(), BlockParts: rs.ProposalBlockParts.BitArray().ToProto(),
		}
	}
	var peers []p2p.Peer
	r.set.ForEach(func(p p2p.Peer) { peers = append(peers, p) })
	for _, p := range peers {
		// In this order: Send returns when the stream has been written.
		if p.TrySend(p2p.Envelope{ChannelID: cs.StateChannel, Message: step}) && parts != nil {
			p.TrySend(p2p.Envelope{ChannelID: cs.StateChannel, Message: parts})
		}
	}
}
