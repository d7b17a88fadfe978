// Package access turns what a person shows at a charger into a key that can
// sign: a card, or a printed code.
//
//	card ──UID──► HMAC under the operator's key ──► book ──► token's key ─┐
//	code ──────────────────────────────────────────────────► token's key ─┼─► Desk
//	                                                                      │
//	              ledger: mandate (token, payer, caps) ◄── payer signs    ▼
//	                                              quote, signed by the token's key
//
// Three things stay apart. Identification is this package: it says which token
// was shown, and nothing about a person. Authorisation is the ledger's: whether
// a payer's mandate lets that token charge, and for how much. Control is the
// station's: whether the charger may close its contactor.
//
// # Cards
//
// A card's number is no secret: anybody with a reader nearby can copy it. So it
// is never stored, logged or sent. What is stored is its HMAC-SHA-256 (RFC
// 2104) under a key that only the operator's gateways have, and beside it a
// token that was drawn at random when the card was added, encrypted under the
// same key (AES-256-GCM, NIST SP 800-38D). The ledger knows the token's public
// half only, which has no relation to the card. A copied card still works: the
// mandate's caps per tap and per day bound what it can cost.
//
// # Codes
//
// A code is 128 random bits on paper: the seed of a token's key. It needs no
// book. Its mandate says how often it can be used.
//
// # Reader
//
// A reader says one line per card or code, on a serial device or a Unix
// socket, and on the socket it is told what became of it. It is slowed down
// when it says what nobody knows.
package access

import "time"

// Limits. Each says what happens when it is reached.
const (
	MaxCards   = 10_000           // in a book; another one is refused
	MaxLabel   = 64               // bytes of a label; a longer one is refused
	maxLine    = 128              // bytes of a reader's line; a longer one is skipped
	maxClients = 4                // at a reader's socket; another one waits
	tapPause   = time.Second      // between two taps of a reader; an earlier one is ignored
	maxUnknown = 5                // cards and codes that nobody knows, within lockTime;
	lockTime   = time.Minute      // then the reader is not listened to for as long
	tapTimeout = 20 * time.Second // of a desk's answer
	reopenWait = time.Second      // before a lost reader is opened again
)
