package invoice

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/joulegate/joulegate/chain"
)

// Book is what the operator knows of people and places and the ledger does
// not. It is personal data: keep the file to yourself.
type Book struct {
	Zone    string           `yaml:"zone"` // IANA name; of the dates on documents
	Issuer  Party            `yaml:"issuer"`
	OCPI    OCPI             `yaml:"ocpi"`
	Parties map[string]Party `yaml:"parties"` // by account, 40 hex digits
	Sites   map[string]Site  `yaml:"sites"`   // by device key or member name

	Location *time.Location `yaml:"-"` // that Zone names, by whoever has a zone database; nil: UTC
}

// Party is a person or company on a document.
type Party struct {
	Name      string `yaml:"name"`
	Street    string `yaml:"street"`
	City      string `yaml:"city"`
	PostCode  string `yaml:"post_code"`
	Country   string `yaml:"country"`    // ISO 3166-1 alpha-2
	VATID     string `yaml:"vat_id"`     // with the country's prefix
	VATSalt   string `yaml:"vat_salt"`   // 32 hex digits: what hides the VAT id's hash on the ledger
	TaxNumber string `yaml:"tax_number"` // of a seller without a VAT id
	Email     string `yaml:"email"`
}

// OCPI names the operator towards roaming partners.
type OCPI struct {
	CountryCode string `yaml:"country_code"` // ISO 3166-1 alpha-2
	PartyID     string `yaml:"party_id"`     // three characters, ISO 15118
}

// Site is where a charging point stands.
type Site struct {
	Name      string `yaml:"name"`
	Street    string `yaml:"street"`
	City      string `yaml:"city"`
	PostCode  string `yaml:"post_code"`
	Country   string `yaml:"country"`   // ISO 3166-1 alpha-3, as OCPI wants it
	Latitude  string `yaml:"latitude"`  // decimal degrees, WGS 84
	Longitude string `yaml:"longitude"` //
	Standard  string `yaml:"standard"`  // OCPI ConnectorType; IEC_62196_T2 without
	Format    string `yaml:"format"`    // SOCKET or CABLE
	Power     string `yaml:"power"`     // OCPI PowerType; AC_3_PHASE without
}

// ParseBook reads the operator's file, YAML. Unknown keys are errors.
func ParseBook(b []byte) (Book, error) {
	var k Book
	if len(b) > 4<<20 {
		return k, fmt.Errorf("%d bytes, at most 4 MiB", len(b))
	}
	if err := yaml.UnmarshalWithOptions(b, &k, yaml.Strict()); err != nil {
		return k, errors.New(strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	for id, p := range k.Parties {
		var a chain.Account
		if err := a.UnmarshalText([]byte(id)); err != nil || a.IsSystem() {
			return k, fmt.Errorf("parties: %q is no person's account", id)
		}
		if p.VATSalt != "" {
			if _, err := p.salt(); err != nil {
				return k, fmt.Errorf("parties: %s: %w", id, err)
			}
		}
	}
	return k, nil
}

func (p *Party) salt() (salt [16]byte, err error) {
	b, err := hex.DecodeString(p.VATSalt)
	if err != nil || len(b) != len(salt) {
		return salt, errors.New("vat_salt is 32 hex digits")
	}
	return [16]byte(b), nil
}

// party returns an account's entry, or one that says no more than the ledger.
func (k *Book) party(a chain.Account, vat chain.Hash) (Party, error) {
	p, ok := k.Parties[a.String()]
	if !ok {
		return p, fmt.Errorf("nobody is entered for account %s: add name, city, post_code and country under parties", a)
	}
	if vat != (chain.Hash{}) && p.VATID != "" {
		salt, err := p.salt()
		if err != nil || chain.VATHash(salt, p.VATID) != vat {
			return p, fmt.Errorf("account %s: vat_id and vat_salt are not those whose hash is on the ledger", a)
		}
	}
	return p, nil
}
