package commission

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/label"
	"github.com/joulegate/joulegate/chain"
)

// A page is text up to its last comment, which holds a signature over all of
// it. The signed report is in a script element that no browser executes.
const (
	domainPage = "joulegate/commissioning-page/1\x00"
	openJSON   = `<script type="application/json" id="report">`
	closeJSON  = `</script>`
	openSig    = "<!-- signature "
	closeSig   = " -->\n"
)

type signedPage struct {
	text []byte
	sig  signature
}

func (p *signedPage) check(by chain.Key) error {
	sig, err := base64.StdEncoding.Strict().DecodeString(p.sig.Sig)
	if err != nil || p.sig.Alg != "Ed25519" || p.sig.Kid != by || !chain.Verify(by, domainPage, p.text, sig) {
		return fmt.Errorf("%w: the page was changed; the signed report inside may still be whole", ErrChanged)
	}
	return nil
}

// unpage returns the sealed report of a file, and the page around it if there
// is one.
func unpage(file []byte) ([]byte, *signedPage, error) {
	if !bytes.HasPrefix(file, []byte("<!doctype html>")) {
		return file, nil, nil
	}
	at := bytes.LastIndex(file, []byte(openSig))
	tail, ended := []byte(nil), false
	if at >= 0 {
		tail, ended = bytes.CutSuffix(file[at+len(openSig):], []byte(closeSig))
	}
	p := &signedPage{}
	if !ended || json.Unmarshal(tail, &p.sig) != nil {
		return nil, nil, fmt.Errorf("%w: the page does not end with a signature", ErrChanged)
	}
	// What is signed is the one way to write it: no byte of the file is free.
	if again, err := json.Marshal(p.sig); err != nil || !bytes.Equal(again, tail) {
		return nil, nil, fmt.Errorf("%w: the page's signature is written in another way", ErrChanged)
	}
	p.text = file[:at]
	_, rest, found := bytes.Cut(p.text, []byte(openJSON))
	sealed, _, closed := bytes.Cut(rest, []byte(closeJSON))
	if !found || !closed {
		return nil, nil, fmt.Errorf("%w: the page holds no report", ErrChanged)
	}
	return sealed, p, nil
}

// Code is what the QR code of a page says: enough to tell whether a file is
// the one that was printed.
func Code(hash chain.Hash) string { return Format + " " + hash.String() }

// Page returns a sealed report as a page to read and to print, signed as a
// whole.
func Page(sealed []byte, key ed25519.PrivateKey) ([]byte, error) {
	o, err := Open(sealed)
	if err != nil {
		return nil, err
	}
	code, err := label.Encode(Code(o.Hash))
	if err != nil {
		return nil, fmt.Errorf("QR code of a commissioning report: %w", err)
	}
	var p page
	p.raw(`<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>`)
	p.text("Commissioning report, " + o.Gateway.Name)
	p.raw("</title><style>" + style + "</style></head><body>\n")
	p.head(&o, label.SVG(code))
	if red := o.Red(); len(red) > 0 {
		p.raw("<section class=\"todo\"><h2>Left to do</h2><ol>\n")
		for _, row := range red {
			p.raw("<li><b>")
			p.text(row.What)
			p.raw("</b> ")
			p.text(row.Seen)
			p.remedy(row)
			p.raw("</li>\n")
		}
		p.raw("</ol></section>\n")
	}
	for _, s := range o.Steps {
		p.step(s)
	}
	p.raw("<h2>How to check this report</h2><ol>\n")
	for _, s := range []string{
		"joulegate commission verify FILE takes this page or the signed JSON file. It needs neither a gateway nor a network, and finds any changed byte.",
		"Compare the device key above with the one on the gateway's label, or with 'joulegate grid members' of a neighbour.",
		"The code above holds the SHA-256 of the signed report: a printed page and a file belong together if they name the same.",
		"Who does not want to trust this program: the element with id \"report\" holds payload and signature in base64; the signature is Ed25519 over the payload's bytes.",
	} {
		p.raw("<li>")
		p.text(s)
		p.raw("</li>\n")
	}
	p.raw("</ol>\n" + openJSON)
	p.raw(strings.TrimSuffix(string(sealed), "\n")) // base64, hex and fixed words: nothing to escape
	p.raw(closeJSON + "</body></html>\n")
	sig, err := json.Marshal(sign(key, domainPage, []byte(p.String())))
	if err != nil {
		return nil, err
	}
	p.raw(openSig + string(sig) + closeSig)
	return []byte(p.String()), nil
}

// page is HTML that only gets text by way of text.
type page struct{ strings.Builder }

func (p *page) raw(s string)  { p.WriteString(s) }
func (p *page) text(s string) { p.WriteString(html.EscapeString(s)) }

func (p *page) head(o *Opened, code string) {
	g := &o.Gateway
	p.raw(`<header><div><h1>Commissioning report</h1><p class="name">`)
	p.text(g.Name)
	p.raw("</p>")
	verdict, class := "Complete: nothing is left to do", "ok"
	if !o.Complete {
		verdict, class = fmt.Sprintf("Not complete: %d left to do", o.Open), "red"
	}
	p.raw(`<p class="verdict ` + class + `">`)
	p.text(verdict)
	p.raw("</p></div>" + code + "</header>\n<dl>")
	by := o.Installer
	if by == "" {
		by = "not named (commission --by NAME)"
	}
	for _, r := range [][2]string{
		{"Made", day(o.Made)},
		{"By", by},
		{"Microgrid", g.Chain},
		{"Device key", g.Device.String()},
		{"Computer", strings.TrimSuffix(g.Model+", serial "+g.Serial, ", serial ")},
		{"Board", g.Board},
		{"Program", "joulegate " + g.Version + ", SHA-256 " + g.Program},
		{"Configuration", fmt.Sprintf("revision %d, SHA-256 %s", g.Revision, g.Config)},
		{"Genesis", g.Genesis.String()},
		{"This report", "SHA-256 " + o.Hash.String()},
	} {
		p.raw("<dt>")
		p.text(r[0])
		p.raw("</dt><dd>")
		p.text(r[1])
		p.raw("</dd>\n")
	}
	p.raw("</dl>\n")
}

// marks stand before a row, also where nobody sees colours.
var marks = map[State]string{OK: "✓", Note: "!", Skip: "–", NotDone: "✗", Fail: "✗"}

func (p *page) step(s Step) {
	p.raw("<h2>")
	p.text(s.Title)
	p.raw("</h2>\n<table><thead><tr><th></th><th>What</th><th>Seen</th><th>Tried</th></tr></thead><tbody>\n")
	for _, r := range s.Rows {
		p.raw(`<tr class="` + string(r.State) + `"><td>` + marks[r.State] + "</td><td>")
		p.text(r.What)
		p.raw("</td><td>")
		if r.State == NotDone {
			p.raw("<b>not done</b> ")
		}
		p.text(r.Seen)
		p.remedy(r)
		p.raw("</td><td>")
		if !r.At.IsZero() {
			p.text(day(r.At))
		}
		p.raw("</td></tr>\n")
	}
	p.raw("</tbody></table>\n")
}

func (p *page) remedy(r Row) {
	if r.Remedy != "" {
		p.raw("<small>→ ")
		p.text(r.Remedy)
		p.raw("</small>")
	}
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

const style = `
:root{font:15px/1.45 system-ui,"Noto Sans",sans-serif;color:#14201c;background:#fff}
body{max-width:60rem;margin:2rem auto;padding:0 1.2rem}
header{display:flex;justify-content:space-between;align-items:flex-start;gap:1rem}
h1{font-size:1.6rem;margin:0}.name{font-size:1.15rem;color:#56655f;margin:.1rem 0 .8rem}
header svg{width:9.8rem;height:9.8rem;flex:none}
.verdict{display:inline-block;margin:0;padding:.35rem .8rem;border-radius:.4rem;font-weight:600;color:#fff;-webkit-print-color-adjust:exact;print-color-adjust:exact}
.verdict.ok{background:#0b7a5d}.verdict.red{background:#b3261e}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.86rem;margin:1rem 0}
dt{color:#56655f}dd{margin:0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:1.8rem 0 .5rem;break-after:avoid}
.todo{border-left:.25rem solid #b3261e;padding-left:1rem}.todo h2{margin-top:1rem}li{margin:.2rem 0}
table{border-collapse:collapse;width:100%;font-size:.86rem;table-layout:fixed}
th,td{text-align:left;vertical-align:top;padding:.35rem .5rem;border-bottom:1px solid #dfe5e2;overflow-wrap:anywhere}
th:first-child,td:first-child{width:1.4rem;font-weight:700;text-align:center}
th:nth-child(2){width:13rem}th:last-child{width:8.2rem}
thead th{color:#56655f;font-size:.78rem}thead{display:table-header-group}tr{break-inside:avoid}
small{display:block;color:#3b4843}
tr.ok td:first-child{color:#0b7a5d}tr.note td:first-child{color:#b26a00}tr.skip{color:#56655f}
tr.fail td:first-child,tr.not_done td:first-child,tr.not_done b{color:#b3261e}
tr.fail,tr.not_done{background:#fdf1f0;-webkit-print-color-adjust:exact;print-color-adjust:exact}
@media(max-width:40rem){header svg{width:7rem;height:7rem}th:nth-child(2){width:8rem}th:last-child,td:last-child{display:none}dl{grid-template-columns:1fr}dt{margin-top:.4rem}}
@media print{body{margin:0;max-width:none;font-size:9pt}@page{margin:15mm}}
`
