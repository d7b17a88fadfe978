package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	cfg "github.com/cometbft/cometbft/config"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Limits. Every queue here is bounded; what happens when it is full is said.
const (
	// MempoolTxs and MempoolBytes bound the waiting transactions; further
	// ones are refused with ErrFull, which is backpressure for the sender.
	MempoolTxs   = 10_000
	MempoolBytes = 32 << 20
	// MaxBlockBytes bounds a ledger block; the rest waits for the next.
	MaxBlockBytes = 2 << 20
	// KeepVersions is how many past states stay provable. Older ones are
	// pruned.
	KeepVersions = 128

	pruneEvery      = 64             // blocks between prunings of versions
	maxPruned       = 32             // versions pruned at a time: one synced batch
	maxPrunedBlocks = 256            // blocks dropped with each new one; the next goes on
	milestoneRetry  = time.Hour      // after a state could not be kept
	recentResults   = 2 * MempoolTxs // committed results remembered for retries; the oldest is forgotten
	maxWaiters      = 16_384         // transactions waited for at a time; further ones get ErrFull
	maxSubscriber   = 256            // subscriptions; further ones are refused
	maxNoted        = 1024           // peers of which consensus keeps the state; beyond, those who are not connected are forgotten
	nodeCache       = 8_192          // tree nodes in memory, for the writer and for the readers each
	dbBlockCache    = 2 << 20        // bytes per store
	dbWriteBuffer   = 1 << 20        // bytes per store
	dbOpenFiles     = 64             // per store
	submitTimeout   = 30 * time.Second
	redialEvery     = 3 * time.Second
)

// Timing is how patiently validators wait for one another. The zero value of
// a field means its default.
type Timing struct {
	Commit    time.Duration // pause after a block, to collect late votes and batch transactions; 500 ms
	Propose   time.Duration // wait for a proposal before voting nil; 3 s, plus a sixth per round
	Vote      time.Duration // wait for the missing votes once two thirds are in; 1 s, plus half per round
	Gossip    time.Duration // pause of a gossip routine with nothing to send; 100 ms
	ClockSkew time.Duration // refuse blocks further in the future; 0: off, since a gateway without a clock must still follow
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&t.Commit, 500*time.Millisecond)
	set(&t.Propose, 3*time.Second)
	set(&t.Vote, time.Second)
	set(&t.Gossip, 100*time.Millisecond)
	return t
}

// MinKeepBlocks is the least that Config.KeepBlocks may be in a microgrid
// whose genesis was written by this program: evidence of misbehaviour counts
// for 14 days, and catching up and telling take a while.
const MinKeepBlocks = 21 * 24 * time.Hour

// Config is what an Engine needs.
type Config struct {
	Home        string    // folder of the ledger's stores and of the validator key
	GenesisFile string    // written by WriteGenesis
	Host        host.Host // stays its owner's: the engine never closes it

	// Peers lists the addresses of the other members, for redialling those
	// that are not connected. It is called every few seconds from one
	// goroutine. Nil: the owner of Host keeps the connections up.
	Peers func() []peer.AddrInfo

	// Neighbours lists whom to ask for a snapshot of the ledger (see Serve).
	// Nil: blocks are the only way to catch up.
	Neighbours func() []Neighbour
	// SnapshotBehind is how many blocks this gateway may be behind before it
	// fetches a snapshot instead of executing them; 0: SnapshotBehind.
	SnapshotBehind int64
	// Pause is called before Run ends with ErrSnapshot and returns when the
	// owner can bear that. Nil: at any time.
	Pause func(context.Context)

	// KeepBlocks is how long blocks stay, by block time; at least as long as
	// their validators can be held to account (MinKeepBlocks), 0 for ever.
	// What is older goes once the state after it has been kept as a whole:
	// half of KeepBlocks more may be there.
	KeepBlocks time.Duration

	// Movements is told what every block did to every account, in order,
	// before the block's state is saved: a block that is executed again after
	// a crash is told again. It must be quick. Nil: movements are not noted.
	Movements func(height int64, at time.Time, moves []ledger.Movement)
	// Events is told what happened in every block, likewise.
	Events func(height int64, at time.Time, events []ledger.Event)

	Timing Timing
	Log    *slog.Logger

	lookEvery  time.Duration // tests: between looks at the neighbours
	pauseLimit time.Duration // tests: the longest honest wait after a block
}

func (c *Config) check() error {
	switch {
	case c.Home == "":
		return errors.New("consensus: no home folder")
	case c.GenesisFile == "":
		return errors.New("consensus: no genesis file")
	case c.Host == nil:
		return errors.New("consensus: no libp2p host")
	}
	for _, d := range []time.Duration{c.Timing.Commit, c.Timing.Propose, c.Timing.Vote, c.Timing.Gossip, c.Timing.ClockSkew} {
		if d < 0 || d > time.Hour {
			return fmt.Errorf("consensus: timing %v out of range (0 to 1 h)", d)
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.SnapshotBehind == 0 {
		c.SnapshotBehind = SnapshotBehind
	}
	c.Timing = c.Timing.withDefaults()
	return nil
}

// Folders under Home.
func dataDir(home string) string      { return filepath.Join(home, "data") }
func validatorDir(home string) string { return filepath.Join(home, "validator") }

// comet translates to CometBFT's configuration.
func (c *Config) comet() *cfg.Config {
	k := cfg.DefaultConfig()
	k.SetRoot(c.Home)
	k.TxIndex.Indexer = "null"
	k.Storage.DiscardABCIResponses = true
	k.RPC.ListenAddress = ""
	k.P2P.PexReactor = false
	k.P2P.LibP2PConfig.Enabled = true
	k.StateSync.Enable = false
	// Adaptive sync would let consensus and block sync write side by side;
	// its documentation warns of equivocation by validators.
	k.BlockSync.AdaptiveSync = false

	k.Mempool.Size = MempoolTxs
	k.Mempool.MaxTxsBytes = MempoolBytes
	k.Mempool.MaxTxBytes = chain.MaxTxBytes
	// What the mempool calls known must have a result that can be repeated.
	k.Mempool.CacheSize = recentResults

	// One worker keeps what a neighbour sends in its order: the second
	// transaction of one signer is refused while the first is missing, and a
	// block's part is dropped before its proposal. Both take one lock anyway.
	// What overtakes on the way is mended by repeater.
	k.P2P.LibP2PConfig.Scaler.Overrides = nil
	for _, reactor := range []string{"MEMPOOL", "CONSENSUS"} {
		k.P2P.LibP2PConfig.Scaler.Overrides = append(k.P2P.LibP2PConfig.Scaler.Overrides, cfg.LibP2PScalerOverride{
			Reactor: reactor, MinWorkers: 1, MaxWorkers: 1, ThresholdLatency: time.Second,
		})
	}

	t := c.Timing
	k.Consensus.WalPath = filepath.Join("data", "cs.wal", "wal")
	k.Consensus.CreateEmptyBlocks = false
	k.Consensus.TimeoutCommit = t.Commit
	k.Consensus.TimeoutPropose = t.Propose
	k.Consensus.TimeoutProposeDelta = t.Propose / 6
	k.Consensus.TimeoutPrevote = t.Vote
	k.Consensus.TimeoutPrevoteDelta = t.Vote / 2
	k.Consensus.TimeoutPrecommit = t.Vote
	k.Consensus.TimeoutPrecommitDelta = t.Vote / 2
	k.Consensus.PeerGossipSleepDuration = t.Gossip
	k.Consensus.BlockTimeTolerance = t.ClockSkew
	return k
}
