// Package journal keeps signed gateway blocks on disk: this gateway's own,
// which exist nowhere else until neighbours have copies, and the neighbours',
// so that a gateway that is cut off loses nothing.
//
//	Append(records) ─► sign ─► write + sync ─► returned: only now may it be sent
//	                                 │
//	  gossip ─► Accept ──────────────┤         one goleveldb, checksummed
//	  Sync ◄──► Serve (neighbours) ──┘
//
// # Who signs at which number
//
// Two different blocks of one author with equal (epoch, number) are
// equivocation, and a memory card that comes back from a backup, or that lied
// about a sync, makes an honest gateway do just that. Therefore nothing is
// signed before Recover has asked the neighbours for this gateway's newest
// block:
//
//	neighbours answer, know nothing newer     continue at number + 1
//	neighbours know newer blocks              adopt them, open a new epoch
//	nobody answers, or the files were damaged open a new epoch
//	a write failed                            open a new epoch: it may have landed
//	restored from a backup                    open a new epoch: what was signed since is unknown
//
// A new epoch is the greater of the last known epoch plus one and the Unix
// time in seconds: a gateway that has forgotten its epochs still never uses
// one twice, as long as its clock is right once.
//
// # Judging neighbours' blocks
//
// Accept checks size, signature, chain and membership, then the place: the
// next of its epoch is stored; one further ahead is held for a while and
// fetched around by Sync; one already there is a replay; a different one for
// the same place is equivocation, and both are kept as evidence. Each
// author's copies have a limit in bytes, the oldest go first.
//
// # Letting own blocks go
//
// Own blocks are what bills rest on. One is let go when three things hold: the
// ledger has told for its epoch that it is booked, its time is before the one
// that Config.Retire names, and it is the oldest of its epoch that is left. The
// ledger may go on to a new epoch without the last blocks of the one before:
// those stay for ever. So does the newest own block, because neighbours'
// answers are compared with it.
//
// # Catching up
//
// Gossip does not repeat itself. On connect and every SyncEvery the heads
// (author, epoch, first, last) are compared with each neighbour's and what is
// missing is fetched, at most MaxRange blocks at a time. The requests are
// bytes in and bytes out; who carries them is the caller's affair.
package journal
