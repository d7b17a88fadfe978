package audit

import (
	"bytes"
	"crypto/ed25519"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"strconv"
	"strings"

	"rsc.io/qr"

	"github.com/joulegate/joulegate/chain"
)

// Slip is a receipt that stands for itself on paper: its text, which the QR
// code holds, is checked without a network.
//
//	OCMF|{payload}|{signature}                                           by the receipt key
//	JGSLIP1|chain|device|receipt key|height|app hash|signature           by the device key, over all before it
//
// Chain is the microgrid's id, keys and hash are in hex (the receipt key as
// DER SubjectPublicKeyInfo, RFC 5480), the signature is in base64. Height and
// app hash are those of the newest block's header when the slip was printed:
// whoever holds a checkpoint of that height can tell whether both come from
// one history.
type Slip struct {
	Chain  string     `json:"chain_id"`
	Device chain.Key  `json:"device"` // the gateway
	Line   string     `json:"-"`      // OCMF
	Key    []byte     `json:"-"`      // receipt key
	Height int64      `json:"height"`
	State  chain.Hash `json:"app_hash"`
}

const (
	slipHeader = "JGSLIP1"
	domainSlip = "joulegate/slip/1\x00"
	maxSlip    = 2300 // bytes; a QR code with medium correction holds 2331
)

// Sign returns the slip's text.
func (s Slip) Sign(device ed25519.PrivateKey) (string, error) {
	copy(s.Device[:], device.Public().(ed25519.PublicKey))
	body := fmt.Sprintf("%s\n%s|%s|%s|%x|%d|%s|", s.Line, slipHeader, s.Chain, s.Device, s.Key, s.Height, s.State)
	text := body + base64.StdEncoding.EncodeToString(chain.Sign(device, domainSlip, []byte(body)))
	if _, _, err := ParseSlip(text); err != nil {
		return "", fmt.Errorf("make a slip: %w", err)
	}
	return text, nil
}

// Reading is one register of a receipt.
type Reading struct {
	At   string      `json:"at"` // ISO 8601 and the state of the clock: S synchronised, U not
	KWh  json.Number `json:"kwh"`
	What string      `json:"what"` // OCMF's TX: B begin, E end, R ended remotely, A by a fault, P power failure
	Good bool        `json:"good"`
}

// Content is what a receipt says.
type Content struct {
	Number  string  `json:"number"`
	Gateway string  `json:"gateway"`
	Meter   string  `json:"meter"`
	Driver  string  `json:"driver"`
	Text    string  `json:"text"`                     // session, price limit, what it is not, whom to call
	Block   int64   `json:"block,omitempty"`          // the newest when charging ended
	Anchor  string  `json:"block_app_hash,omitempty"` // its app hash, or the first digits of it
	Begin   Reading `json:"begin"`
	End     Reading `json:"end"`
}

// ParseSlip checks the signatures of a slip's text and that the gateway that
// signed is the one that the receipt names. Whether the microgrid knows that
// gateway is not on the paper.
func ParseSlip(text string) (Slip, Content, error) {
	var s Slip
	text = strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n") // as scanners and editors leave it
	if len(text) > maxSlip {
		return s, Content{}, fmt.Errorf("slip: %d bytes, at most %d", len(text), maxSlip)
	}
	line, tail, _ := strings.Cut(text, "\n")
	f := strings.Split(tail, "|")
	if len(f) != 7 || f[0] != slipHeader {
		return s, Content{}, fmt.Errorf("slip: want an OCMF line and a line %s|chain|device|key|height|hash|signature", slipHeader)
	}
	s.Line, s.Chain = line, f[1]
	var errs [5]error
	var sig []byte
	errs[0], errs[1] = s.Device.UnmarshalText([]byte(f[2])), s.State.UnmarshalText([]byte(f[5]))
	s.Key, errs[2] = hex.DecodeString(f[3])
	s.Height, errs[3] = strconv.ParseInt(f[4], 10, 64)
	sig, errs[4] = base64.StdEncoding.DecodeString(f[6])
	if err := errors.Join(errs[:]...); err != nil {
		return s, Content{}, fmt.Errorf("slip: %w", err)
	}
	if !chain.Verify(s.Device, domainSlip, []byte(text[:len(text)-len(f[6])]), sig) {
		return s, Content{}, fmt.Errorf("slip: not signed by gateway %s, or changed since", s.Device.Short())
	}
	payload, _, err := VerifyOCMF(s.Line, s.Key)
	if err != nil {
		return s, Content{}, err
	}
	var p ocmfPayload
	if err := json.Unmarshal(payload, &p); err != nil {
		return s, Content{}, fmt.Errorf("slip: %w", err)
	}
	if p.GS != s.Device.String() || len(p.RD) != 2 {
		return s, Content{}, fmt.Errorf("slip: gateway %s signed for gateway %q, %d readings", s.Device.Short(), p.GS, len(p.RD))
	}
	c := Content{Number: p.PG, Gateway: p.GS, Driver: p.ID, Text: p.TT, Begin: told(p.RD[0]), End: told(p.RD[1])}
	c.Block, c.Anchor = Anchor(s.Line)
	c.Meter = strings.TrimSpace(strings.Join([]string{p.MV, p.MM, p.MS}, " "))
	return s, c, nil
}

func told(r ocmfReading) Reading { return Reading{At: r.TM, KWh: r.RV, What: r.TX, Good: r.ST == "G"} }

// Page is what stands on a printed slip beside its QR code. Lines that are
// empty are left out.
type Page struct {
	Energy   string      // in large letters, with its unit
	Rows     [][2]string // what the ledger says of the session
	Notes    []string    // that come first, such as that it is not for billing
	Attested []string    // by third parties, or that nobody has
	Contact  string      // whom to call
}

//go:embed slip.html
var slipSource string

// HTML returns a page that prints on one sheet and loads nothing.
func (p Page) HTML(text string) ([]byte, error) {
	s, c, err := ParseSlip(text)
	if err != nil {
		return nil, err
	}
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return nil, fmt.Errorf("QR code of a slip of %d bytes: %w", len(text), err)
	}
	var path strings.Builder
	for y := range code.Size {
		for x := range code.Size {
			if code.Black(x, y) {
				fmt.Fprintf(&path, "M%d %dh1v1h-1z", x, y)
			}
		}
	}
	var notes, rows, attested strings.Builder
	for _, n := range p.Notes {
		fmt.Fprintf(&notes, "<p class=\"note\">%s</p>\n", html.EscapeString(n))
	}
	for _, r := range p.Rows {
		fmt.Fprintf(&rows, "<tr><th>%s</th><td>%s</td></tr>\n", html.EscapeString(r[0]), html.EscapeString(r[1]))
	}
	for _, a := range p.Attested {
		fmt.Fprintf(&attested, "%s<br>", html.EscapeString(a))
	}
	return fill(slipSource, map[string]string{
		"number": c.Number, "chain": s.Chain, "energy": p.Energy, "begin": c.Begin.String(), "end": c.End.String(),
		"meter": c.Meter, "driver": c.Driver, "disclaimer": disclaimer, "contact": p.Contact,
		"box": fmt.Sprintf("-4 -4 %d %d", code.Size+8, code.Size+8), "path": path.String(),
		"device": s.Device.String(), "height": strconv.FormatInt(s.Height, 10), "state": s.State.String(), "text": text,
	}, map[string]string{"notes": notes.String(), "rows": rows.String(), "attested": attested.String()}), nil
}

// String is a reading in words.
func (r Reading) String() string {
	s := fmt.Sprintf("%s kWh at %s", r.KWh, r.At)
	if !r.Good {
		s += ", not a good reading"
	}
	return s
}

// fill replaces {{name}} by an escaped text, or by markup. html/template would
// do more than is needed here, and with a template reachable the linker keeps
// every method of the whole program: 6 MB.
func fill(page string, texts, markup map[string]string) []byte {
	var out bytes.Buffer
	for {
		before, rest, found := strings.Cut(page, "{{")
		out.WriteString(before)
		if !found {
			return out.Bytes()
		}
		name, after, _ := strings.Cut(rest, "}}")
		text, ok := texts[name]
		value, isMarkup := markup[name]
		if !ok && !isMarkup {
			panic(fmt.Sprintf("slip.html: nothing is called %q", name))
		}
		out.WriteString(html.EscapeString(text) + value)
		page = after
	}
}
