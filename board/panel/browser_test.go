package panel

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/tools/e2e/browser"
)

// TestPageInABrowser opens the page in a real browser: a person sees who
// produces, who charges, the price and why, and the ledger growing; nothing
// on the page breaks its own security policy.
func TestPageInABrowser(t *testing.T) {
	if _, err := exec.LookPath(browser.Program); err != nil {
		t.Skip("chromium is not installed (make setup)")
	}
	f := &fake{started: time.Now().Add(-90 * time.Second), height: 57}
	_, _, addr, _ := serve(t, f)
	b, err := browser.Open(t.Context(), browser.Config{URL: "http://" + addr + "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	until := func(what, js string) {
		t.Helper()
		if err := b.Until(what, js); err != nil {
			t.Fatal(err)
		}
	}

	for _, c := range []struct{ what, js string }{
		{"live", `document.querySelector('#link').textContent === 'live'`},
		{"who produces", `/house1.*sells 12 Wh/s.test(document.querySelector('.house.sells').textContent)`},
		{"a sun over two houses", `document.querySelectorAll('.house .sunball').length === 2`},
		{"who charges", `/house4.*this house.*buys 8 Wh.*car charging, 412 Wh/s.test(document.querySelector('#street').textContent)`},
		{"the car", `document.querySelectorAll('.house .body').length === 1`},
		{"the price", `document.querySelector('#price').textContent.replace(',', '.') === '0.193'`},
		{"and why", `document.querySelector('#why').textContent.startsWith('house1 and house2 sold 15 Wh to house3 and the car at house4.')`},
		{"this house's meters", `/House connection.*Solar inverter.*640 W.*relay closed/s.test(document.querySelector('#here').textContent)`},
		{"what a car sells, and at which price", `/gives 310 Wh of 900 Wh, sold from 0.10* per kWh.*delivers what was promised.*42 Wh promised.*3 Wh short/s.test(document.querySelector('#here').textContent.replaceAll(',1', '.1'))`},
		{"what it has received", `/gave 310 Wh, received 0.054/.test(document.querySelector('#sessions').textContent.replaceAll(',0', '.0'))`},
		{"the newest block", `document.querySelector('#blocks li').textContent.includes('#57')`},
		{"three sessions", `document.querySelectorAll('#sessions tbody tr').length === 3`},
		{"a discount used", `/used/.test(document.querySelector('#sessions').textContent)`},
		{"receipts", `document.querySelectorAll('#sessions a[href*="/receipts/"][href*="html"]').length === 2 && document.querySelectorAll('#sessions a[href*="ocmf"]').length === 2`},
		{"that nobody has attested it", `/no third party has attested/.test(document.querySelector('#ledger').textContent)`},
		{"the energy balance", `document.querySelector('#energy .equals').textContent === '='`},
		{"no sideways scrolling", `document.documentElement.scrollWidth <= innerWidth`},
	} {
		until(c.what, c.js)
	}
	f.tick()
	until("a new block", `document.querySelector('#blocks li').textContent.includes('#58')`)
	until("the theme switch", `(document.querySelector('#theme').click(), ['light', 'dark'].includes(document.documentElement.dataset.theme))`)
	if err := b.Size(360, 780, true); err != nil {
		t.Fatal(err)
	}
	until("all of itself on a telephone", `innerWidth === 360 && document.documentElement.scrollWidth <= 360`)
	if len(b.Complaints) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(b.Complaints, "\n"))
	}
}

// TestGuardInABrowser looks at a guard that has much to tell: every sensor and
// why it does not see more, what is asked, in force and not possible, each in
// words, on a telephone too. An order needs the code.
func TestGuardInABrowser(t *testing.T) {
	if _, err := exec.LookPath(browser.Program); err != nil {
		t.Skip("chromium is not installed (make setup)")
	}
	f := &fake{started: time.Now().Add(-90 * time.Second), height: 57}
	_, control, addr, _ := serve(t, f)
	b, err := browser.Open(t.Context(), browser.Config{URL: "http://" + addr + "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	until := func(what, js string) {
		t.Helper()
		if err := b.Until(what, js); err != nil {
			t.Fatal(err)
		}
	}
	row := func(title string) string {
		return `[...document.querySelectorAll('#guard .row')].find(r => r.querySelector('h3').textContent === '` + title + `')`
	}
	for _, c := range []struct{ what, js string }{
		{"how much is seen", `/3 of 4 sensors see.*2 rules may act or ask/.test(document.querySelector('#guardstate').textContent)`},
		{"why not more", `/Names.*is off.*Network.*ring.*Programs.*no types.*38 missed.*Machine.*temperature/s.test(document.querySelector('#guard .senses').textContent)`},
		{"a question", row("End a program?") + `.querySelectorAll('button').length === 2`},
		{"a block", `/an address answers from/.test(` + row("An address is blocked") + `.textContent)`},
		{"a refusal", `/went past the name server/.test(` + row("What goes past the name server is refused") + `.textContent)`},
		{"what cannot be done", `/grant CAP_KILL/.test(` + row("Programs cannot be ended here") + `.textContent)`},
		{"a silent neighbour", row("The guard of north is silent") + ` !== undefined`},
		{"findings", `document.querySelectorAll('#guard tbody tr').length === 4`},
		{"nobody's address", `!/192\.0\.2\.66|secret/.test(document.body.textContent)`},
		{"room for all of it", `document.documentElement.scrollWidth <= innerWidth`},
	} {
		until(c.what, c.js)
	}
	code, err := control.GuardCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	until("the release asks for a code", `(`+row("An address is blocked")+`.querySelector('button').click(), document.querySelector('#code').open)`)
	until("a wrong code is refused", `(document.querySelector('#digits').value = '00000000', document.querySelector('#send').click(), document.querySelector('#refusal').textContent !== '')`)
	until("the code is taken", `(document.querySelector('#digits').value = '`+code.Code+`', document.querySelector('#send').click(), !document.querySelector('#code').open)`)
	f.mu.Lock()
	if len(f.guardOrders) != 1 || f.guardOrders[0].Do != "release" || f.guardOrders[0].ID != 12 {
		t.Errorf("the guard heard %+v", f.guardOrders)
	}
	f.mu.Unlock()
	if err := b.Size(360, 780, true); err != nil {
		t.Fatal(err)
	}
	until("all of it on a telephone", `innerWidth === 360 && document.documentElement.scrollWidth <= 360`)
}
