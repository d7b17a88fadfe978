package report

import (
	"fmt"
	"html"
	"strings"
	"time"
)

// HTML returns the report as a page of its own, to read and to print.
func (r *Report) HTML() []byte {
	var p page
	p.raw(`<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>`)
	p.text("Guard report, " + r.Gateway.Name)
	p.raw("</title><style>" + style + "</style></head><body>\n<header><h1>What the guard saw</h1><p>")
	p.text(fmt.Sprintf("Gateway %s in %s, %s to %s", r.Gateway.Name, r.Gateway.Chain, day(r.From), day(r.To)))
	p.raw("</p></header>\n")
	for _, s := range r.Statement {
		p.tag("p", s)
	}

	p.tag("h2", "Who says so")
	p.table(nil, [][]string{
		{"Device key", r.Gateway.Device.String()},
		{"Version", r.Gateway.Version},
		{"Program, SHA-256", r.Gateway.Program},
		{"Configuration", r.Gateway.Config},
		{"Genesis", r.Gateway.Genesis.String()},
		{"Ledger", fmt.Sprintf("height %d, state %s", r.Gateway.Height, r.Gateway.State)},
		{"Rules in force", r.RuleSet.String()},
		{"Made", day(r.Made)},
	})

	p.tag("h2", "How much it saw")
	var rows [][]string
	for _, c := range r.Coverage {
		note := c.Reason
		if c.Gap {
			note = strings.TrimPrefix(note+"; heartbeats are missing", "; ")
		}
		rows = append(rows, []string{c.Sensor.String(), c.Level, fmt.Sprint(c.Lost), fmt.Sprintf("%d, %d of them blind", c.Heartbeats, c.Blind), (time.Duration(c.LongestS) * time.Second).String(), note})
	}
	p.table([]string{"Sensor", "Sees now", "Missed", "Heartbeats", "Longest pause", ""}, rows)

	p.tag("h2", "What it found")
	rows = nil
	for _, c := range r.Findings {
		rows = append(rows, []string{c.Severity.String(), c.Rule, c.Title, fmt.Sprint(c.Records), fmt.Sprint(c.Events)})
	}
	if len(rows) == 0 {
		p.tag("p", "Nothing is on record for this time, beside heartbeats.")
	} else {
		p.table([]string{"Severity", "Rule", "", "Records", "Events"}, rows)
	}
	if r.HeldBack > 0 {
		p.tag("p", fmt.Sprintf("%d records were held back since the gateway started: more than the ledger takes in a day.", r.HeldBack))
	}

	p.tag("h2", "What it may do")
	rows = nil
	for _, m := range r.Rules {
		rows = append(rows, []string{m.Rule, m.Action.String(), m.Mode.String(), m.InForce.String()})
	}
	if len(rows) == 0 {
		p.tag("p", "Nothing: every rule observes.")
	} else {
		p.table([]string{"Rule", "Action", "Configured", "In force"}, rows)
	}

	last := ""
	for _, c := range r.Clauses {
		if c.Standard != last {
			if last != "" {
				p.raw("</tbody></table>\n")
			}
			last = c.Standard
			p.tag("h2", c.Standard)
			p.raw("<table><thead><tr><th>Clause</th><th>About</th><th>What answers it</th><th>State</th></tr></thead><tbody>\n")
		}
		state := states[c.State]
		if c.Records > 0 {
			state += fmt.Sprintf(": %d", c.Records)
		}
		p.raw("<tr><td>")
		p.text(c.Clause)
		p.raw("</td><td>")
		p.text(c.About)
		p.raw("</td><td>")
		p.text(c.How)
		if len(c.Rules) > 0 {
			p.raw("<small>")
			p.text(strings.Join(c.Rules, ", "))
			p.raw("</small>")
		}
		p.raw(`</td><td class="` + string(c.State) + `">`)
		p.text(state)
		if c.Reason != "" {
			p.raw("<small>")
			p.text(c.Reason)
			p.raw("</small>")
		}
		p.raw("</td></tr>\n")
	}
	if last != "" {
		p.raw("</tbody></table>\n")
	}

	p.tag("h2", "The records")
	rows = nil
	for _, e := range r.Evidence {
		rows = append(rows, []string{day(time.UnixMilli(e.Last)), e.Severity.String(), e.Rule, fmt.Sprint(e.Count), fmt.Sprintf("%d/%d", e.Block.Epoch, e.Block.Number), e.Hash.String(), e.Detail.String()})
	}
	if len(rows) == 0 {
		p.tag("p", "None in this time, beside heartbeats.")
	} else {
		p.table([]string{"Last", "Severity", "Rule", "Count", "Block", "Hash of the block", "Hash of the finding"}, rows)
	}
	if r.Left > 0 {
		p.tag("p", fmt.Sprintf("%d older ones are not listed; they are in the bundle.", r.Left))
	}
	p.tag("h2", "How to check it")
	p.raw("<ol>\n")
	for _, s := range r.Check {
		p.tag("li", s)
	}
	p.raw("</ol></body></html>\n")
	return []byte(p.String())
}

// states in words.
var states = map[State]string{
	ByDesign: "by how records are kept", Found: "watched, records", Watched: "watched, nothing found", Partly: "partly watched, nothing found", Unseen: "not seen: nothing can be said",
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// page is HTML that only gets text by way of text.
type page struct{ strings.Builder }

func (p *page) raw(s string)  { p.WriteString(s) }
func (p *page) text(s string) { p.WriteString(html.EscapeString(s)) }

func (p *page) tag(name, s string) {
	p.raw("<" + name + ">")
	p.text(s)
	p.raw("</" + name + ">\n")
}

// table writes rows; without a head the first cell of each heads it.
func (p *page) table(head []string, rows [][]string) {
	p.raw("<table>")
	if head != nil {
		p.raw("<thead><tr>")
		for _, h := range head {
			p.tag("th", h)
		}
		p.raw("</tr></thead>")
	}
	p.raw("<tbody>\n")
	for _, r := range rows {
		p.raw("<tr>")
		for i, c := range r {
			if head == nil && i == 0 {
				p.tag("th", c)
			} else {
				p.tag("td", c)
			}
		}
		p.raw("</tr>\n")
	}
	p.raw("</tbody></table>\n")
}

const style = `
:root{font:15px/1.45 system-ui,"Noto Sans",sans-serif;color:#14201c;background:#fff}
body{max-width:60rem;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.6rem;margin:0}header p{color:#56655f;margin:.2rem 0 1.2rem}
h2{font-size:1.1rem;margin:1.8rem 0 .5rem;break-after:avoid}
table{border-collapse:collapse;width:100%;font-size:.86rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .5rem;border-bottom:1px solid #dfe5e2;overflow-wrap:anywhere}
thead th{color:#56655f;font-size:.78rem}thead{display:table-header-group}tr{break-inside:avoid}
small{display:block;color:#56655f}
td.found{color:#b26a00;font-weight:600}td.watched,td.by_design{color:#0b7a5d}td.unseen{color:#b3261e;font-weight:600}td.partly{color:#b26a00}
td.found small,td.unseen small,td.partly small{font-weight:400}
@media print{body{margin:0;max-width:none;font-size:9pt}@page{margin:15mm}}
`
