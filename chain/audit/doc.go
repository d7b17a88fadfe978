// Package audit makes what third parties check: receipts of charging
// sessions that the transparency software of the charging trade reads.
//
// # OCMF
//
// The Open Charge Metering Format is one line:
//
//	OCMF|{payload JSON}|{"SA":"ECDSA-secp256r1-SHA256","SE":"hex","SD":"3045..."}
//
// The signature is over the payload's bytes exactly as they stand between the
// bars, digits of the register values included; nobody re-serialises to
// verify. It is made with the gateway's P-256 receipt key, because OCMF knows
// no Ed25519; the device key vouches for that key, and the ledger holds the
// payload's hash, so that a receipt leads to a member of the microgrid.
//
// A [Slip] is a receipt on paper, with all that is needed to check it in its QR
// code. No device profile reads records that a meter has signed itself; until
// one does, every receipt is signed by the gateway.
//
// A receipt is tamper-evident. It is not a certified (MID, Eichrecht)
// measurement, and says so.
//
// Source: OCMF 1.4.1 (S.A.F.E. e.V.); written as format 1.3, the newest that
// verifiers in the field accept.
package audit
