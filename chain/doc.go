// Package chain holds the words of the record: keys, money, slots, records,
// signed gateway blocks, signed transactions, and their one canonical
// encoding.
//
// Two chains exist and must not be confused.
//
//	gateway chain   each gateway's own hash-linked, signed blocks of records
//	                (offers, meter registers, session events). One author,
//	                no agreement needed, works without peers.
//
//	ledger          the microgrid's agreed order of transactions
//	                (chain/consensus) and the state they lead to
//	                (chain/ledger). A gateway block is itself a transaction.
//
//	 records ──► Block{author, epoch, number, prev} ──sign──► Envelope ──► journal
//	                                                             │
//	                              gossip to neighbours ◄─────────┼────► ledger
//
// # Signing
//
// What is signed is the exact byte string of the body under a domain prefix;
// nobody ever re-serialises to verify. Because CBOR decoders are lenient, a
// body whose re-encoding differs from what was received is refused, so that
// every object has one encoding and one hash.
//
// # Epochs
//
// A gateway that lost its journal (restored or lying SD card) cannot know its
// last number. It asks its neighbours for its newest block before it signs;
// if none answers it opens a new epoch and starts at number 1. Two different
// blocks with equal (author, epoch, number) are equivocation; a new epoch is
// not.
//
// # Numbers
//
// Energy is Wh, money is nano (1e-9 of the currency unit), prices are nano
// per Wh, so that energy times price is exact. There are no floats here.
package chain
