package microgrid

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/tools/e2e/browser"
)

// TestSettingsInABrowser: an installer signs in on the page with a code from
// the gateway, is told what is wrong with a change and where, tries a good one,
// and keeps it after the gateway has started anew with it. The next he lets go.
func TestSettingsInABrowser(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath(browser.Program); err != nil {
		t.Skip("chromium is not installed (make setup)")
	}
	grid := newGrid(t, 1)
	grid.found()
	g := grid.gateways[0]
	b, err := browser.Open(t.Context(), browser.Config{URL: "http://" + g.addr + ":8080/settings"})
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
	do := func(js string) {
		t.Helper()
		if done, err := b.Eval(`(() => { ` + js + `; return true })()`); err != nil || done != true {
			t.Fatalf("%s: %v", js, err)
		}
	}
	signIn := func(code string) {
		t.Helper()
		do(fmt.Sprintf(`document.querySelector('#digits').value = %q; document.querySelector('#codeform').requestSubmit()`, code))
	}
	set := func(path, value string) {
		t.Helper()
		do(fmt.Sprintf(`const i = document.querySelector('.setting[data-path=%q] input, .setting[data-path=%q] select'); i.value = %q; i.dispatchEvent(new Event('input')); i.dispatchEvent(new Event('change'))`, path, path, value))
	}
	click := func(selector string) { t.Helper(); do(`document.querySelector('` + selector + `').click()`) }

	until("a way in", `!document.querySelector('#signin').hidden && document.querySelector('#settings').hidden`)
	until("no orders before that", `!document.querySelector('#bar').checkVisibility()`)
	signIn("00000000")
	until("a refusal that says how", `/joulegate config code/.test(document.querySelector('#refusal').textContent)`)
	code, _, _ := strings.Cut(g.run("config", "code"), ",")
	signIn(code)
	until("the settings", `document.querySelector('.setting[data-path=name] input')?.value === '`+g.name+`'`)

	// What is wrong is told where it is wrong.
	set("chargers[0].max_current_ma", "999000")
	click("#apply")
	until("the error at its setting", `/max_current_ma/.test(document.querySelector('#outcome').textContent) && document.querySelector('.setting[data-path="chargers[0].max_current_ma"] .wrong') !== null`)
	set("chargers[0].max_current_ma", "16000")
	until("nothing left to do", `document.querySelector('#bar').hidden`)

	set("meters[0].interval", "2s")
	click("#check")
	until("what it would change", `/meters\[.*\]\.interval.*1s.*2s/s.test(document.querySelector('#outcome').textContent)`)
	before := must(g, g.client.ConfigView)
	click("#apply")
	until("the trial", `/On trial.*[1-5]:[0-5][0-9]/s.test(document.querySelector('#trial').textContent)`)
	click("#trial button.main")
	until("that it is kept", `/Kept/.test(document.querySelector('#trial').textContent)`)
	if v := must(g, g.client.ConfigView); v.Rev != before.Rev+1 || v.By != "page" || v.Pending != nil || !strings.Contains(v.Text, "interval: 2s") {
		t.Errorf("revision %d by %s, %+v", v.Rev, v.By, v.Pending)
	}

	set("meters[0].interval", "5s")
	click("#apply")
	until("the next trial", `/On trial/.test(document.querySelector('#trial').textContent)`)
	click("#trial .buttons button:not(.main)")
	until("the former settings", `/The settings before it are in force/.test(document.querySelector('#trial').textContent)`)
	g.wait(patience, "the former revision", func(ctx context.Context) (bool, any) {
		v, err := g.client.ConfigView(ctx)
		return err == nil && v.Pending == nil && v.Rev == before.Rev+1, fmt.Sprint(v.Rev, v.Pending, err)
	})

	do(`document.querySelector('#find').value = 'fuse'; document.querySelector('#find').dispatchEvent(new Event('input'))`)
	until("what was looked for", `[...document.querySelectorAll('.setting')].filter(f => f.checkVisibility()).every(f => /fuse/.test(f.dataset.find)) && document.querySelector('.setting[data-path="site.fuse_ma"]').checkVisibility()`)
	if err := b.Size(360, 780, true); err != nil {
		t.Fatal(err)
	}
	until("all of itself on a telephone", `document.documentElement.scrollWidth <= 360`)
	click("#out")
	until("nothing after signing out", `document.querySelector('#settings').hidden && document.querySelectorAll('.setting').length === 0 && !sessionStorage.token`)
	for _, c := range b.Complaints {
		if !strings.Contains(c, "401") && !strings.Contains(c, "403") && !strings.Contains(c, "ERR_CONNECTION") { // it was away, and refused
			t.Error(c)
		}
	}
}
