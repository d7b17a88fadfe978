package audit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

const (
	ocmfHeader    = "OCMF"
	ocmfFormat    = "1.3"
	ocmfAlgorithm = "ECDSA-secp256r1-SHA256"
	// ocmfTime is ISO 8601 with a comma before the milliseconds, followed by
	// a letter for the clock's state.
	ocmfTime = "2006-01-02T15:04:05,000-0700"
	// obisImport is the cumulative import register of active energy.
	obisImport = "01-00:01.08.00*FF"
	// disclaimer goes into the tariff text, which every viewer shows.
	disclaimer = "Tamper-evident record, not a certified (MID, Eichrecht) measurement."

	maxField = 128      // bytes of a text field
	maxLine  = 16 << 10 // bytes of a line that is read
)

// Register is the session meter's import register at one moment.
type Register struct {
	At      time.Time // in the zone that the receipt shows
	Synced  bool      // the clock was synchronised
	Wh      meter.WattHour
	Quality meter.Quality
}

// Receipt holds the facts of a closed session. Texts are at most 128 bytes
// and contain no '|'.
type Receipt struct {
	Number  uint64 // pagination: +1 with every receipt of this gateway, from 1
	Session chain.ID
	Gateway string        // its serial: the device key
	Version string        // of the program
	Vendor  string        // of the meter, may be empty
	Model   string        // of the meter, may be empty
	Serial  string        // of the meter, required
	Driver  chain.Account // pseudonymous: derived from the key that signed the quote
	Tariff  string        // for people, e.g. "at most 0.30 EUR/kWh"; may be empty
	Begin   Register
	End     Register
	Reason  chain.StopReason
	// Shown says what identified the driver: 0 a key of his own, a card, a
	// printed code, a card or car on its owner's list.
	Shown chain.MandateKind
	// Contact is whom to call about it, at most MaxContact bytes.
	Contact string
	// Height and State name the newest block's header when charging ended:
	// whoever holds a checkpoint of that height can tell whether the receipt
	// and it come from one history. Zero: no block was known.
	Height int64
	State  chain.Hash // app hash
}

// MaxContact is how long the text may be that says whom to call: the tariff
// text of OCMF holds 250 characters.
const MaxContact = 64

// Field order is the specification's.
type ocmfPayload struct {
	FV string
	GI string
	GS string
	GV string `json:",omitempty"`
	PG string
	MV string `json:",omitempty"`
	MM string `json:",omitempty"`
	MS string
	IS bool
	IL string
	IF []string
	IT string
	ID string
	TT string
	RD []ocmfReading
}

type ocmfReading struct {
	TM string
	TX string
	RV json.Number
	RI string
	RU string
	RT string
	EF string
	ST string
}

type ocmfSignature struct {
	SA string `json:",omitempty"`
	SE string `json:",omitempty"`
	SM string `json:",omitempty"`
	SD string
}

// OCMF returns the signed line and the hash of its payload, which goes into
// the ledger as chain.SessionStop.Receipt. key is the P-256 receipt key.
func (r Receipt) OCMF(key *ecdsa.PrivateKey) (line string, payload chain.Hash, err error) {
	if key == nil || key.Curve != elliptic.P256() {
		return "", chain.Hash{}, errors.New("receipt: the key is not ECDSA P-256")
	}
	body, err := r.payload()
	if err != nil {
		return "", chain.Hash{}, fmt.Errorf("receipt of session %s: %w", r.Session, err)
	}
	digest := sha256.Sum256(body)
	der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return "", chain.Hash{}, fmt.Errorf("receipt of session %s: sign: %w", r.Session, err)
	}
	sig, err := json.Marshal(ocmfSignature{SA: ocmfAlgorithm, SE: "hex", SD: hex.EncodeToString(der)})
	if err != nil {
		return "", chain.Hash{}, err
	}
	return ocmfHeader + "|" + string(body) + "|" + string(sig), digest, nil
}

func (r Receipt) payload() ([]byte, error) {
	for _, s := range []string{r.Gateway, r.Version, r.Vendor, r.Model, r.Serial, r.Tariff, r.Contact} {
		if len(s) > maxField || strings.ContainsAny(s, "|\r\n") {
			return nil, fmt.Errorf("text %q: at most %d bytes, without '|' and line breaks", s, maxField)
		}
	}
	switch {
	case r.Number == 0:
		return nil, errors.New("receipts are numbered from 1")
	case r.Gateway == "" || r.Serial == "":
		return nil, errors.New("serial of gateway or meter is missing")
	case r.Begin.Wh < 0 || r.End.Wh < r.Begin.Wh:
		return nil, fmt.Errorf("register went from %d to %d Wh", r.Begin.Wh, r.End.Wh)
	case r.End.At.Before(r.Begin.At):
		return nil, fmt.Errorf("it ends at %s, before it begins at %s", r.End.At, r.Begin.At)
	}
	if len(r.Contact) > MaxContact {
		return nil, fmt.Errorf("contact of %d bytes, at most %d", len(r.Contact), MaxContact)
	}
	end, err := stopCode(r.Reason)
	if err != nil {
		return nil, err
	}
	text := "Session " + r.Session.String() + ". "
	if r.Tariff != "" {
		text += r.Tariff + ". "
	}
	text += disclaimer
	if r.Contact != "" {
		text += " Questions: " + r.Contact
	}
	text += r.anchor(maxTariff - len(text))
	p := ocmfPayload{
		FV: ocmfFormat,
		GI: "joulegate", GS: r.Gateway, GV: r.Version,
		PG: "T" + strconv.FormatUint(r.Number, 10),
		MV: r.Vendor, MM: r.Model, MS: r.Serial,
		IS: true, IL: "VERIFIED", IF: []string{}, IT: "UNDEFINED", ID: r.Driver.String(),
		TT: text,
		RD: []ocmfReading{r.Begin.reading("B"), r.End.reading(end)},
	}
	// A driver's key, or that of a code, signed the quote and the gateway
	// checked it. A card is another matter: its number can be copied.
	switch r.Shown {
	case chain.MandateCard, chain.MandateOwner:
		p.IL, p.IF, p.IT = "HEARSAY", []string{"RFID_PLAIN"}, "LOCAL"
	case chain.MandateCode:
		p.IT = "KEY_CODE"
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(p); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// maxTariff is how many characters OCMF gives to the tariff text.
const maxTariff = 250

// anchor names the newest block in at most room bytes: its number, and of the
// app hash's hex digits as many as fit, 16 at least (64 bits; all 64 if there is
// room).
func (r *Receipt) anchor(room int) string {
	if r.Height <= 0 {
		return ""
	}
	text := fmt.Sprintf(" Ledger block %d, state ", r.Height)
	digits := r.State.String()
	n := min(room-len(text), len(digits))
	if n < 16 {
		return ""
	}
	return text + digits[:n]
}

var anchored = regexp.MustCompile(` Ledger block ([1-9][0-9]{0,18}), state ([0-9a-f]{16,64})$`)

// Anchor returns the block that an OCMF line names, and the app hash's first
// hex digits; zero and nothing if it names none. It checks no signature.
func Anchor(line string) (height int64, state string) {
	var p ocmfPayload
	parts := strings.Split(line, "|")
	if len(parts) != 3 || json.Unmarshal([]byte(parts[1]), &p) != nil {
		return 0, ""
	}
	m := anchored.FindStringSubmatch(p.TT)
	if m == nil {
		return 0, ""
	}
	height, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, ""
	}
	return height, m[2]
}

func (r Register) reading(tx string) ocmfReading {
	clock, errs, state := " U", "", "G"
	if r.Synced {
		clock = " S"
	}
	switch r.Quality {
	case meter.Good:
	case meter.Estimated:
		errs, state = "E", "S" // substitute value
	case meter.Stale:
		errs, state = "E", "T" // timeout
	default:
		errs, state = "E", "E"
	}
	return ocmfReading{
		TM: r.At.Format(ocmfTime) + clock, TX: tx,
		RV: json.Number(fmt.Sprintf("%d.%03d", r.Wh/1000, r.Wh%1000)), RI: obisImport, RU: "kWh", RT: "AC",
		EF: errs, ST: state,
	}
}

// stopCode maps a stop reason to OCMF's TX: E end, R ended remotely, A
// aborted by a fault, P power failure.
func stopCode(r chain.StopReason) (string, error) {
	switch r {
	case chain.StopDriver, chain.StopHold, chain.StopUnplugged, chain.StopNoEnergy, chain.StopFull:
		return "E", nil
	case chain.StopOperator:
		return "R", nil
	case chain.StopMeter, chain.StopSafety:
		return "A", nil
	case chain.StopRestart:
		return "P", nil
	}
	return "", fmt.Errorf("stop reason %s is unknown", r)
}

// VerifyOCMF checks a line against a receipt key (DER SubjectPublicKeyInfo)
// and returns the payload's bytes and their hash.
func VerifyOCMF(line string, spki []byte) (payload []byte, hash chain.Hash, err error) {
	if len(line) > maxLine {
		return nil, hash, fmt.Errorf("ocmf: %d bytes, at most %d", len(line), maxLine)
	}
	parts := strings.Split(line, "|")
	if len(parts) != 3 || parts[0] != ocmfHeader {
		return nil, hash, errors.New("ocmf: not OCMF|payload|signature")
	}
	var s ocmfSignature
	d := json.NewDecoder(strings.NewReader(parts[2]))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil || d.More() {
		return nil, hash, fmt.Errorf("ocmf: signature section: %w", errors.Join(err, errMalformed))
	}
	if s.SA != "" && s.SA != ocmfAlgorithm || s.SE != "" && s.SE != "hex" || s.SM != "" && s.SM != "application/x-der" {
		return nil, hash, fmt.Errorf("ocmf: signature %s %s %s, want %s in hex, DER", s.SA, s.SE, s.SM, ocmfAlgorithm)
	}
	der, err := hex.DecodeString(s.SD)
	if err != nil {
		return nil, hash, fmt.Errorf("ocmf: signature: %w", err)
	}
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, hash, fmt.Errorf("ocmf: receipt key: %w", err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, hash, errors.New("ocmf: receipt key is not ECDSA P-256")
	}
	hash = sha256.Sum256([]byte(parts[1]))
	if !ecdsa.VerifyASN1(key, hash[:], der) {
		return nil, chain.Hash{}, errors.New("ocmf: signature does not fit the payload")
	}
	return []byte(parts[1]), hash, nil
}

var errMalformed = errors.New("malformed")

type xmlValues struct {
	XMLName xml.Name   `xml:"values"`
	Value   []xmlValue `xml:"value"`
}

type xmlValue struct {
	Transaction uint64   `xml:"transactionId,attr"`
	Context     string   `xml:"context,attr"`
	Signed      xmlText  `xml:"signedData"`
	Key         *xmlText `xml:"publicKey,omitempty"`
}

type xmlText struct {
	Format   string `xml:"format,attr,omitempty"`
	Encoding string `xml:"encoding,attr"`
	Text     string `xml:",chardata"`
}

// XML wraps a line of receipt number n and the receipt key (DER
// SubjectPublicKeyInfo) in the container that transparency software opens, and
// the meter's own records after it.
func XML(n uint64, line string, spki []byte, native ...Native) ([]byte, error) {
	value := func(line, key string) xmlValue {
		v := xmlValue{Transaction: n, Context: "Transaction.End", Signed: xmlText{Format: ocmfHeader, Encoding: "plain", Text: line}}
		if key != "" {
			v.Key = &xmlText{Encoding: "hex", Text: key}
		}
		return v
	}
	doc := xmlValues{Value: []xmlValue{value(line, hex.EncodeToString(spki))}}
	for _, r := range native {
		doc.Value = append(doc.Value, value(r.Line, r.Key))
	}
	out, err := xml.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("receipt xml: %w", err)
	}
	return append([]byte(xml.Header), append(out, '\n')...), nil
}
