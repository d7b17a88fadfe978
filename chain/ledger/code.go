package ledger

import "fmt"

// Code is the stable result of a transaction or of one record in a gateway
// block. Append only: other programs compare numbers.
type Code uint32

// Result codes.
const (
	CodeOK            Code = 0  // accepted
	CodeMalformed     Code = 1  // not the canonical encoding, or a field out of form
	CodeTooLarge      Code = 2  // more bytes than chain.MaxTxBytes
	CodeSignature     Code = 3  // a signature does not verify
	CodeChain         Code = 4  // made for another microgrid
	CodeNotAllowed    Code = 5  // the signer may not do this, or it is not the author's
	CodeNotMember     Code = 6  // the author is no active member
	CodeDuplicate     Code = 7  // already in the ledger; no effect, nothing to do
	CodeEquivocation  Code = 8  // a different block holds this author's position
	CodeGap           Code = 9  // an earlier block of this author is missing: submit that first
	CodeStale         Code = 10 // behind the author's position and no longer comparable
	CodeNonce         Code = 11 // not the signer's next nonce
	CodeAmount        Code = 12 // zero or negative amount
	CodeOverflow      Code = 13 // a number would leave its range
	CodeFunds         Code = 14 // the balance does not cover it
	CodeAccount       Code = 15 // no such account, or not one that this may touch
	CodeBankRef       Code = 16 // the bank reference has been used
	CodeRules         Code = 17 // the genesis rules do not allow it
	CodeInvitation    Code = 18 // unknown, used or expired invitation
	CodeTaken         Code = 19 // the device, name or validator key is known already
	CodeNode          Code = 20 // no such node in the fee tree, or the tree would be too deep
	CodeLimit         Code = 21 // a named limit of the ledger is reached
	CodeState         Code = 22 // the session is not in a state for it
	CodeSession       Code = 23 // unknown session, or another gateway's
	CodeConnector     Code = 24 // the connector has an open session
	CodeExpired       Code = 25 // the quote has expired
	CodeRange         Code = 26 // a slot, price or power out of range
	CodeKind          Code = 27 // unknown kind
	CodeSequence      Code = 28 // a meter page or session sequence that does not follow
	CodeRole          Code = 29 // a meter in a role that another meter has
	CodeLastValidator Code = 30 // would leave no validator
	CodeInvariant     Code = 31 // would break an invariant of the ledger

	CodeApproval Code = 40 // more people have to approve it
	CodeUnknown  Code = 41 // no such payout, dispute, invoice, account or quarantine

	CodeQuarantine Code = 42 // the meter has jumped: it bills nothing until it is released

	CodeProof Code = 43 // it does not follow from what another microgrid has signed
)

var codes = [...]string{
	CodeOK: "ok", CodeMalformed: "malformed", CodeTooLarge: "too_large", CodeSignature: "signature", CodeChain: "chain",
	CodeNotAllowed: "not_allowed", CodeNotMember: "not_member", CodeDuplicate: "duplicate", CodeEquivocation: "equivocation",
	CodeGap: "gap", CodeStale: "stale", CodeNonce: "nonce", CodeAmount: "amount", CodeOverflow: "overflow", CodeFunds: "funds",
	CodeAccount: "account", CodeBankRef: "bank_ref", CodeRules: "rules", CodeInvitation: "invitation", CodeTaken: "taken",
	CodeNode: "node", CodeLimit: "limit", CodeState: "state", CodeSession: "session", CodeConnector: "connector",
	CodeExpired: "expired", CodeRange: "range", CodeKind: "kind", CodeSequence: "sequence", CodeRole: "role",
	CodeLastValidator: "last_validator", CodeInvariant: "invariant",
	CodeApproval: "approval", CodeUnknown: "unknown", CodeQuarantine: "quarantine", CodeProof: "proof",
}

// String returns the code's word.
func (c Code) String() string {
	if int(c) >= len(codes) || codes[c] == "" {
		return fmt.Sprintf("code(%d)", uint32(c))
	}
	return codes[c]
}

// MarshalText implements encoding.TextMarshaler.
func (c Code) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// refusal is an error that a transaction or record itself is to blame for.
type refusal struct {
	code Code
	info string
}

func (r *refusal) Error() string { return r.code.String() + ": " + r.info }

func refuse(code Code, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}
