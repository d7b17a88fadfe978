// Package proof judges a bundle: one file in which a microgrid's history can
// be checked by somebody who runs no gateway, has no network, and trusts
// nobody but the genesis file in his hand.
//
//	genesis ──► founding validators
//	               │ sign
//	               ▼
//	 hop ─► hop ─► block ─► block ─► ... ─► block ─► tip   each names the one before by hash
//	               │ data hash                        │ app hash
//	               ▼                                  ▼
//	       transactions: signed               state: slots, fills, sessions,
//	       gateway blocks of records          rules, members, heads
//	               │ Merkle root
//	               ▼
//	       readings ─ raw registers ─ profile
//
// What comes from the signatures is added up again: registers to slots, slots
// by the certificate of their clearing, captures to sessions, raw registers to
// readings. A ledger that is short enough, or that is asked to be, is executed
// again from its first block.
//
// Completeness has three legs. Blocks link by hash and have every height, so
// none is missing between two. A gateway's own blocks number 1, 2, 3, and
// the state holds the last number that the ledger has taken. A range of the
// state is a run of neighbouring leaves of its tree, so that no entry can be
// left out between two.
//
// The package is pure and small, so that it runs in a browser, and shares no
// line with CometBFT or IAVL: it is a second implementation of what it checks.
// docs/FORMAT.md describes the file for a third.
package proof
