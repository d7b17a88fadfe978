// Package consensus agrees on the order of the microgrid's transactions and
// keeps the state they lead to: CometBFT in this process, on the
// application's own libp2p host, with the ledger as its application.
//
// The words:
//
//	validator   a gateway whose vote counts; more than two thirds of the
//	            voting power must sign before a block is final
//	full node   a gateway that follows and checks every block without a vote
//	app hash    root of the state after a block; the NEXT block's header
//	            carries it, so one set of signatures proves every entry
//	proof block an empty block that follows every change of state and signs
//	            its app hash; an idle microgrid writes nothing
//	handshake   at start, blocks that are stored but not applied are applied
//	            again, so that a power cut between any two steps is harmless
//
// How a transaction becomes state:
//
//	Submit ──► mempool ──gossip──► proposer ──► block ──votes──► final
//	             │ CheckTx                                        │
//	             ▼                                                ▼
//	      committed state ◄── Commit: one synced ◄── FinalizeBlock on a
//	      (View, Prove)       batch, version=height     scratch overlay
//
// State is an IAVL tree whose version is the block height. Height, root and
// contents therefore reach the disk in one atomic batch, and a single entry
// can be proven to a stranger with an ICS-23 proof (see [VerifyProof]).
//
// A single gateway is a microgrid of one: its own vote is all there is, and
// it commits by itself. When others join through the ledger they become
// validators two blocks after the block that admitted them.
//
// Time: a block's time is the median of the votes on the block before it. The
// first block after an idle period therefore still carries the time of the
// last one; the proof block right after it carries the present.
//
// A ledger that cannot go on (an impossible state, a disk that fails) halts
// and says so in [Engine.Halted] and [Status]; it never ends the process,
// because the same process keeps a charger safe.
//
// Example:
//
//	key, err := consensus.InitValidator(home)    // once, by init
//	eng, err := consensus.Open(ctx, consensus.Config{
//		Home: home, GenesisFile: "genesis.json", Host: host, Log: log,
//	})
//	go eng.Run(ctx)
//	res, err := eng.Submit(ctx, chain.SignTx(...)) // res.Code == 0: committed
package consensus
