// Package update replaces a gateway's program by a newer one that enough
// people have signed, and puts the old one back if the new one is not well.
//
// # Words
//
//   - A manifest names one version and its artifacts by size and SHA-256. It
//     carries signatures; a gateway counts those of the keys in its own
//     configuration and wants at least the threshold.
//   - A place is where a program lies: packaged (/usr/bin/joulegate, never
//     written here), or one of two slots that are written in turn. Boards with
//     an image have two partitions instead, and no packaged one.
//   - The record (boot.json) says which place is current, which one is kept to
//     go back to, and which one is on trial.
//
// # The way of a version
//
//	source ──manifest──► signed? newer? knows the ledger's rules? our turn?
//	   └────artifact──► the slot that does not run ──► read back, same SHA-256
//	                                                        │ no car charges
//	record: trial a ◄───────────────────────────────────────┘
//	   │ start: attempt 1, 2, 3           well: current = a, former = packaged
//	   └─────────────────────────────────►
//	                                      not well, or a third start: as before
//
// # Power cuts
//
// A slot is never written while a record points to it, and a record points to
// it only after its bytes have been synced and read back. Records replace each
// other by rename. So at any moment the disk holds one whole record, old or
// new, and whatever it points to is whole. A start hashes what it is about to
// execute: a slot that is not what the record says is not started, and the
// packaged program is always left.
//
// # Example
//
//	choice, err := update.Choose(store, update.Program{Version: version, Rules: 1})
//	// choice.Place is "packaged": go on; else execute store's choice.Path
package update
