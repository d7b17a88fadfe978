package board

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Some things a gateway does only on an installer's word, because no program
// can see whether they are safe: switching phases under a contactor that bears
// it, and feeding energy out of a vehicle into a network whose operator has
// agreed and which protection disconnects when it is gone. Statement is that
// word: signed, for one charger of one gateway, for a time.
const (
	domainStatement  = "joulegate/statement/1\x00"
	statementVersion = 1
	maxStatement     = 8 << 10 // bytes of the file
	maxReference     = 128     // bytes of a reference
	// MaxStatementYears is how long a statement may be valid: protection is
	// inspected again.
	MaxStatementYears = 5
)

// Statement is what an installer vouches for.
type Statement struct {
	Version     uint8     `cbor:"1,keyasint" json:"version"`
	Gateway     chain.Key `cbor:"2,keyasint" json:"gateway"` // device key
	Charger     uint8     `cbor:"3,keyasint" json:"charger"`
	PhaseSwitch bool      `cbor:"4,keyasint" json:"phase_switch"` // contactor and vehicles bear a change of phases
	Discharge   bool      `cbor:"5,keyasint" json:"discharge"`
	// With Discharge: the most power back, the certificate of the grid
	// protection and the network operator's approval.
	MaxPower       meter.Watt `cbor:"6,keyasint" json:"max_power_w,omitempty"`
	GridProtection string     `cbor:"7,keyasint" json:"grid_protection,omitempty"`
	Approval       string     `cbor:"8,keyasint" json:"utility_approval,omitempty"`
	Issued         time.Time  `cbor:"-" json:"issued"`
	Expires        time.Time  `cbor:"-" json:"expires"`
	Installer      chain.Key  `cbor:"11,keyasint" json:"installer"`

	IssuedMs  int64 `cbor:"9,keyasint" json:"-"`
	ExpiresMs int64 `cbor:"10,keyasint" json:"-"`
}

// statementFile is the file: for people to read, the signature over the
// canonical encoding.
type statementFile struct {
	Statement Statement `json:"statement"`
	Sig       string    `json:"signature"`
}

// Check reports what is wrong with the statement itself.
func (s *Statement) Check() error {
	ref := func(what, v string) error {
		if strings.TrimSpace(v) == "" || len(v) > maxReference {
			return fmt.Errorf("statement: %s is required, at most %d bytes", what, maxReference)
		}
		return nil
	}
	switch {
	case s.Version != statementVersion:
		return fmt.Errorf("statement version %d, this program knows %d", s.Version, statementVersion)
	case s.Gateway == chain.Key{} || s.Charger == 0 || s.Installer == chain.Key{}:
		return fmt.Errorf("statement: gateway, charger and installer are required")
	case !s.PhaseSwitch && !s.Discharge:
		return fmt.Errorf("statement: it allows nothing")
	case !s.Issued.Before(s.Expires) || s.Expires.After(s.Issued.AddDate(MaxStatementYears, 0, 0)):
		return fmt.Errorf("statement: issued %s, expires %s: want up to %d years", s.Issued.Format(time.DateOnly), s.Expires.Format(time.DateOnly), MaxStatementYears)
	case s.Discharge && (s.MaxPower < 1 || s.MaxPower > 50_000):
		return fmt.Errorf("statement: max_power_w %d is outside 1..50000", s.MaxPower)
	case !s.Discharge && (s.MaxPower != 0 || s.GridProtection != "" || s.Approval != ""):
		return fmt.Errorf("statement: max_power_w, grid_protection and utility_approval belong to discharge")
	}
	if s.Discharge {
		if err := ref("grid_protection", s.GridProtection); err != nil {
			return err
		}
		return ref("utility_approval", s.Approval)
	}
	return nil
}

func (s *Statement) bytes() []byte {
	s.IssuedMs, s.ExpiresMs = s.Issued.UnixMilli(), s.Expires.UnixMilli()
	return chain.Marshal(*s)
}

// SignStatement returns the file of a statement. Version, Installer and times
// to the second are set from the arguments' own.
func SignStatement(s Statement, key ed25519.PrivateKey) ([]byte, error) {
	s.Version = statementVersion
	copy(s.Installer[:], key.Public().(ed25519.PublicKey))
	s.Issued, s.Expires = s.Issued.UTC().Truncate(time.Second), s.Expires.UTC().Truncate(time.Second)
	if err := s.Check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(statementFile{s, hex.EncodeToString(chain.Sign(key, domainStatement, s.bytes()))}, "", "  ")
	return append(b, '\n'), err
}

// OpenStatement checks form and signature of a statement's file. Whether the
// installer counts here, and whether it is still valid, Allows says.
func OpenStatement(file []byte) (Statement, error) {
	if len(file) > maxStatement {
		return Statement{}, fmt.Errorf("statement of %d bytes, at most %d", len(file), maxStatement)
	}
	var f statementFile
	d := json.NewDecoder(strings.NewReader(string(file)))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return Statement{}, fmt.Errorf("statement: %w", err)
	}
	if d.More() {
		return Statement{}, fmt.Errorf("statement: more than one document")
	}
	sig, err := hex.DecodeString(f.Sig)
	if err != nil {
		return Statement{}, fmt.Errorf("statement: signature: %w", err)
	}
	s := f.Statement
	s.Issued, s.Expires = s.Issued.UTC().Truncate(time.Second), s.Expires.UTC().Truncate(time.Second)
	if err := s.Check(); err != nil {
		return Statement{}, err
	}
	if !chain.Verify(s.Installer, domainStatement, s.bytes(), sig) {
		return Statement{}, fmt.Errorf("statement: %w", chain.ErrSignature)
	}
	return s, nil
}

// Allows reports why the statement does not count for a charger of a gateway
// at a time, or nil.
func (s *Statement) Allows(gateway chain.Key, charger uint8, installers []chain.Key, at time.Time) error {
	known := false
	for _, k := range installers {
		known = known || k == s.Installer
	}
	switch {
	case !known:
		return fmt.Errorf("statement: installer %s is not among this gateway's installers", s.Installer.Short())
	case s.Gateway != gateway || s.Charger != charger:
		return fmt.Errorf("statement: it is for charger %d of gateway %s", s.Charger, s.Gateway.Short())
	case at.Before(s.Issued):
		return fmt.Errorf("statement: it is valid from %s on", s.Issued.Format(time.DateOnly))
	case !at.Before(s.Expires):
		return fmt.Errorf("statement: it expired on %s", s.Expires.Format(time.DateOnly))
	}
	return nil
}

// Hash names the statement in records.
func (s *Statement) Hash() chain.Hash { return chain.Sum(s.bytes()) }
