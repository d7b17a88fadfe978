package config

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"pgregory.net/rapid"
)

// TestOnlyWhatWasConfirmedStays: whatever happens in whatever order, the
// confirmed configuration changes by a confirmation or an edit only, and a
// crash or the end of the time brings it back.
func TestOnlyWhatWasConfirmedStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1_800_000_000, 0)
		c, err := Step(Commit{}, Edited{"first"}, now)
		if err != nil {
			t.Fatal(err)
		}
		want := "first" // the model: what was confirmed last
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			before, pending := c, c.Pending
			var e Event
			switch rapid.IntRange(0, 7).Draw(t, "event") {
			case 0:
				base := c.Current.Rev - uint64(rapid.IntRange(0, 1).Draw(t, "stale"))
				e = Propose{Base: base, Text: fmt.Sprint("text", i), Txn: fmt.Sprint("t", rapid.IntRange(0, 30).Draw(t, "txn")), Confirm: time.Minute}
			case 1:
				e = Start{}
			case 2:
				e = Check{}
			case 3:
				e = Check{Err: "broker"}
			case 4:
				e = Confirm{}
			case 5:
				e = Cancel{}
			case 6:
				e = Tick{}
			case 7:
				now = now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
				e = Tick{}
			}
			c, err = Step(c, e, now)
			if err != nil {
				if fmt.Sprintf("%+v", c) != fmt.Sprintf("%+v", before) {
					t.Fatalf("%T was refused and changed something", e)
				}
				continue
			}
			if err := c.Check(); err != nil {
				t.Fatalf("after %T: %v", e, err)
			}
			_, confirmed := e.(Confirm)
			if confirmed && pending.Phase == Checked && now.Before(pending.Deadline) {
				want = pending.Text
			}
			if c.Current.Text != want {
				t.Fatalf("after %T %q is in force, confirmed was %q", e, c.Current.Text, want)
			}
			if _, again := e.(Start); again && pending != nil && pending.Phase != Stored && c.InForce().Text != want {
				t.Fatalf("after a crash %q runs, confirmed was %q", c.InForce().Text, want)
			}
		}
		// However it stands: a power cut and a second start end it.
		c, _ = Step(c, Start{}, now)
		c, _ = Step(c, Start{}, now)
		if c.InForce().Text != want || c.Pending != nil {
			t.Fatalf("%q runs, confirmed was %q", c.InForce().Text, want)
		}
	})
}

func code(err error) string {
	var d *Denial
	if errors.As(err, &d) {
		return d.Code + " " + d.Path
	}
	return fmt.Sprint(err)
}

func TestDenialsNameCodeAndPath(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c, _ := Step(Commit{}, Edited{"a"}, now)
	ok := Propose{Base: 1, Text: "b", Txn: "t1", Confirm: time.Minute}
	with := func(f func(*Propose)) Propose { p := ok; f(&p); return p }
	pending, err := Step(c, ok, now)
	if err != nil {
		t.Fatal(err)
	}
	rolled, _ := Step(pending, Cancel{Why: "x"}, now)
	for _, x := range []struct {
		c    Commit
		e    Event
		want string
	}{
		{c, with(func(p *Propose) { p.Base = 0 }), "stale_revision base_rev"},
		{c, with(func(p *Propose) { p.Txn = "" }), "invalid txn"},
		{c, with(func(p *Propose) { p.Confirm = time.Second }), "invalid confirm_s"},
		{c, with(func(p *Propose) { p.Text = "a" }), "no_change config"},
		{pending, with(func(p *Propose) { p.Txn = "t2" }), "in_flight "},
		{rolled, ok, "replayed txn"},
		{c, Confirm{}, "nothing_pending "},
		{pending, Confirm{}, "not_applied "},
		{pending, Confirm{Txn: "other"}, "other_txn args.txn"},
	} {
		if _, err := Step(x.c, x.e, now); code(err) != x.want {
			t.Errorf("%+v: %s, want %s", x.e, code(err), x.want)
		}
	}
}

func TestPatch(t *testing.T) {
	cur, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ mode, doc, want string }{
		{Merge, `{"meters":{"house":{"interval":"2s"}}}`, "meters[house].interval 1s 2s"},
		{Merge, `{"site":{"fuse_ma":25000}}`, "site.fuse_ma 35000 25000"},
		{Merge, `{"mqtt":{"broker":"tcp://192.0.2.9:1883"}}`, "mqtt.broker tls://broker.example:8883 tcp://192.0.2.9:1883"},
		{Merge, `{"chargers":{"1":{"estop":null}}}`, "chargers[1].estop IN1 "},
		{DryRun, `{"chargers":{"1":{"max_current_ma":40000}}}`, "error chargers[0].max_current_ma"},
		{Merge, `{"meters":{"cellar":{"unit":3}}}`, "error config.meters[cellar]"},
		{Merge, `{"sitte":{"fuse_ma":1}}`, "error sitte"},
		{Replace, `{"version":1}`, "error name"},
	} {
		d := Desired{Mode: c.mode, Config: json.RawMessage(c.doc)}
		next, err := d.Patch(cur)
		got := ""
		var list Errors
		var den *Denial
		switch {
		case errors.As(err, &list):
			got = "error " + list[0].Path
		case errors.As(err, &den):
			got = "error " + den.Path
		default:
			for _, x := range Diff(cur, next) {
				got += x.Path + " " + x.Old + " " + x.New
			}
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s (%v)", c.doc, got, c.want, err)
		}
	}
}

// TestReplaceWithItself: the configuration in force, as JSON in one line, is
// what replace takes.
func TestReplaceWithItself(t *testing.T) {
	cur, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(Document(cur))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range [][]byte{b, Render(cur)} {
		d := Desired{Mode: Replace, Config: doc}
		next, err := d.Patch(cur)
		if err != nil || len(Diff(cur, next)) > 0 {
			t.Errorf("%v %v", err, Diff(cur, next))
		}
	}
}

func TestDiffOfListsWithoutID(t *testing.T) {
	a, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	b := a
	b.Readers = []Reader{{Charger: 1, Socket: "/run/r", MaxWh: 1000}}
	if d := Diff(a, b); len(d) == 0 || !strings.HasPrefix(d[0].Path, "readers[0]") {
		t.Errorf("%v", d)
	}
}

func TestSigned(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(nil)
	_, stranger, _ := ed25519.GenerateKey(nil)
	var k chain.Key
	copy(k[:], pub)
	payload := []byte(`{"txn":"a"}`)
	wrap := func(by ed25519.PrivateKey) []byte {
		var kid chain.Key
		copy(kid[:], by.Public().(ed25519.PublicKey))
		return fmt.Appendf(nil, `{"payload":%q,"sigs":[{"kid":%q,"alg":"Ed25519","sig":%q}]}`,
			base64.StdEncoding.EncodeToString(payload), kid, base64.StdEncoding.EncodeToString(ed25519.Sign(by, payload)))
	}
	if b, err := Unwrap(wrap(key), []chain.Key{k}); err != nil || string(b) != string(payload) {
		t.Errorf("%s %v", b, err)
	}
	for _, c := range []struct {
		b    []byte
		want string
	}{
		{payload, "unsigned sigs"},
		{wrap(stranger), "signature sigs"},
		{[]byte(strings.Replace(string(wrap(key)), `"sig":"`, `"sig":"AAAA`, 1)), "signature sigs[0]"},
		{[]byte(`{"payload":"e30=","sigs":[]}`), "unsigned sigs"},
		{[]byte(`x`), "invalid "},
	} {
		if _, err := Unwrap(c.b, []chain.Key{k}); code(err) != c.want {
			t.Errorf("%s: %s, want %s", c.b, code(err), c.want)
		}
	}
}

// TestSchemaKnowsEverySetting: whatever a configuration can hold, the schema
// names and explains.
func TestSchemaKnowsEverySetting(t *testing.T) {
	c, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	var walk func(path string, s map[string]any, v any)
	walk = func(path string, s map[string]any, v any) {
		switch v := v.(type) {
		case map[string]any:
			props, _ := s["properties"].(map[string]any)
			for k, x := range v {
				p, ok := props[k].(map[string]any)
				if !ok || p["description"] == "" {
					t.Errorf("%s.%s is not described", path, k)
					continue
				}
				walk(path+"."+k, p, x)
			}
		case []any:
			items, _ := s["items"].(map[string]any)
			for _, x := range v {
				walk(path+"[]", items, x)
			}
		case string:
			if s["type"] != "string" {
				t.Errorf("%s is %v in the schema", path, s["type"])
			}
		}
	}
	walk("", Schema(), Document(c))
}

func FuzzDesired(f *testing.F) {
	f.Add([]byte(`{"txn":"a","base_rev":1,"mode":"merge","config":{"site":{"fuse_ma":25000}}}`))
	f.Add([]byte(`{"payload":"e30=","sigs":[{"kid":"","alg":"Ed25519","sig":""}]}`))
	f.Add([]byte(`{"txn":"a","base_rev":1,"mode":"replace","config":{"version":1}}`))
	cur, err := Parse([]byte(full))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		payload, err := Unwrap(b, nil)
		if err != nil {
			return
		}
		d, err := ParseDesired(payload)
		if err != nil {
			return
		}
		c, err := d.Patch(cur)
		if err != nil {
			return
		}
		if again, err := Parse(Render(c)); err != nil || len(Diff(c, again)) > 0 {
			t.Fatalf("what was accepted does not load again: %v", err)
		}
	})
}
