// Package label writes what is stuck on a gateway's housing: where its page
// and broker are, and the secret that is this device's alone. There is no
// default password; whoever holds the label may configure the device.
//
//	┌────────────────────────────────────────┐
//	│ ▄▄▄▄▄ ▄ ▄▄▄▄▄   joulegate north        │
//	│ █ ▄ █ ▀ █ ▄ █   page   http://...local │   Text: the console at first boot, label.txt
//	│ █▄▄▄█ █ █▄▄▄█   broker ...:1883        │   HTML: label.html, to print
//	└────────────────────────────────────────┘
//
// QR codes are drawn here for whoever prints them.
package label

import (
	"fmt"
	"html"
	"strings"

	"rsc.io/qr"
)

// Label is what stands on it. It holds a secret: who keeps it, keeps it from
// others.
type Label struct {
	Name     string `json:"name"`               // of the gateway
	Device   string `json:"device"`             // key
	Host     string `json:"host"`               // joulegate-<id>.local
	Page     string `json:"page,omitempty"`     // address of the page; empty: this device alone reaches it
	Broker   string `json:"broker"`             // address of the broker
	User     string `json:"user,omitempty"`     // at the broker
	Password string `json:"password,omitempty"` // empty: the broker is somebody else's
}

// code is what the QR code says: a URI that a program can take apart.
func (l *Label) code() string {
	s := "joulegate://" + l.Host + "/?device=" + l.Device
	if l.Password != "" {
		s += "&broker=" + l.Broker + "&user=" + l.User + "&password=" + l.Password
	}
	return s
}

func (l *Label) rows() [][2]string {
	rows := [][2]string{{"gateway", l.Name}, {"device", l.Device}, {"host", l.Host}}
	if l.Page != "" {
		rows = append(rows, [2]string{"page", l.Page})
	}
	rows = append(rows, [2]string{"broker", l.Broker})
	if l.Password != "" {
		rows = append(rows, [2]string{"user", l.User}, [2]string{"password", l.Password})
	}
	return rows
}

// Text returns the label for a console or a text file.
func (l *Label) Text() (string, error) {
	c, err := qr.Encode(l.code(), qr.L)
	if err != nil {
		return "", fmt.Errorf("QR code of a label: %w", err)
	}
	var s strings.Builder
	s.WriteString(Blocks(c))
	s.WriteString("\n")
	for _, r := range l.rows() {
		fmt.Fprintf(&s, "  %-9s %s\n", r[0], r[1])
	}
	return s.String(), nil
}

// HTML returns the label as a page that prints at its size, 90 mm wide.
func (l *Label) HTML() ([]byte, error) {
	c, err := qr.Encode(l.code(), qr.M)
	if err != nil {
		return nil, fmt.Errorf("QR code of a label: %w", err)
	}
	var s strings.Builder
	s.WriteString(`<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>`)
	s.WriteString(html.EscapeString(l.Name) + "</title><style>" + style + "</style></head><body><main>\n" + SVG(c) + "<div><h1>joulegate</h1><dl>\n")
	for _, r := range l.rows() {
		fmt.Fprintf(&s, "<dt>%s</dt><dd>%s</dd>\n", r[0], html.EscapeString(r[1]))
	}
	s.WriteString("</dl></div></main></body></html>\n")
	return []byte(s.String()), nil
}

const style = `
@page{margin:10mm}body{margin:8mm;font:8.5pt/1.35 system-ui,"Noto Sans",sans-serif;color:#000;background:#fff}
main{width:90mm;border:.3mm solid #000;border-radius:2mm;padding:3mm;display:grid;grid-template-columns:32mm 1fr;gap:3mm;box-sizing:border-box}
svg{width:32mm;height:32mm}h1{font-size:11pt;margin:0 0 1mm}
dl{margin:0;display:grid;grid-template-columns:max-content 1fr;column-gap:2mm}
dt{color:#444}dd{margin:0;overflow-wrap:anywhere;font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:7.5pt}
`

// Encode returns the QR code of a text, with medium correction.
func Encode(text string) (*qr.Code, error) { return qr.Encode(text, qr.M) }

// quiet is the margin that a reader needs around a code, in modules.
const quiet = 4

// SVG draws a code.
func SVG(c *qr.Code) string {
	var path strings.Builder
	for y := range c.Size {
		for x := range c.Size {
			if c.Black(x, y) {
				fmt.Fprintf(&path, "M%d %dh1v1h-1z", x, y)
			}
		}
	}
	return fmt.Sprintf(`<svg viewBox="%d %d %d %d" role="img" aria-label="QR code" shape-rendering="crispEdges"><path fill="#fff" d="M%d %dh%dv%dh-%dz"/><path d="%s"/></svg>`,
		-quiet, -quiet, c.Size+2*quiet, c.Size+2*quiet, -quiet, -quiet, c.Size+2*quiet, c.Size+2*quiet, c.Size+2*quiet, path.String())
}

// Blocks draws a code with half blocks, light on a dark console and with the
// margin drawn, so that it can be read on either.
func Blocks(c *qr.Code) string {
	light := func(x, y int) bool { return !c.Black(x, y) } // outside the code nothing is black
	var s strings.Builder
	for y := -quiet / 2; y < c.Size+quiet/2; y += 2 {
		for x := -quiet / 2; x < c.Size+quiet/2; x++ {
			switch up, down := light(x, y), light(x, y+1); {
			case up && down:
				s.WriteRune('█')
			case up:
				s.WriteRune('▀')
			case down:
				s.WriteRune('▄')
			default:
				s.WriteByte(' ')
			}
		}
		s.WriteByte('\n')
	}
	return s.String()
}
