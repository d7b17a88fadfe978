package ledger

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// A scenario is a story about one microgrid, in a file that a person can read:
// what everybody signed and when, and what the ledger made of it.
//
//	case:  which row of the catalogue of abnormal transactions it is
//	rule:  how that is to be handled
//	world: what differs from three houses a, b (feeder f1) and c (feeder f2),
//	       a driver dana with 10.00, retail 0.30 and feed-in 0.08 per kWh
//	steps: one ledger block each
//
// Times are hours:minutes:seconds of block time after the start of slot 0,
// money is in units of the currency, prices are per kWh, energy and registers
// in Wh. A step without a time comes a second after the one before.
type scenario struct {
	Case  string        `yaml:"case"`
	Rule  string        `yaml:"rule"`
	World scenarioWorld `yaml:"world"`
	Steps []step        `yaml:"steps"`
}

type scenarioWorld struct {
	Balances map[string]amount `yaml:"balances"` // by person; beside what the default world has
	Features []string          `yaml:"features"`
	Auditors []string          `yaml:"auditors"`
	Start    int64             `yaml:"start_limit_seconds"`
}

type step struct {
	Note   string `yaml:"note"`
	At     *since `yaml:"at"`
	Do     []act  `yaml:"do"`
	Expect expect `yaml:"expect"`
}

// act is one signed statement. Exactly one of its kinds is set.
type act struct {
	Open      *openAct    `yaml:"open"`
	Meter     *sessionAct `yaml:"meter"`
	Stop      *sessionAct `yaml:"stop"`
	Read      *readAct    `yaml:"read"`
	Offer     *offerAct   `yaml:"offer"`
	Mint      *mintAct    `yaml:"mint"`
	Tariff    *tariffAct  `yaml:"tariff"`
	Refund    *refundAct  `yaml:"refund"`
	Dispute   *refundAct  `yaml:"dispute"`
	Resolve   *resolveAct `yaml:"resolve"`
	Firm      *firmAct    `yaml:"firm"`
	Take      *takeAct    `yaml:"take"`
	Correct   *correctAct `yaml:"correct"`
	Release   *releaseAct `yaml:"release"`
	Attest    *attestAct  `yaml:"attest"`
	Mandate   *mandateAct `yaml:"mandate"`
	Reserve   *reserveAct `yaml:"reserve"`
	Revoke    string      `yaml:"revoke"` // house
	Again     string      `yaml:"again"`  // submits the bytes of a label once more
	Send      string      `yaml:"send"`   // submits what was kept under a label
	Equivocal string      `yaml:"equivocate"`

	Label   string `yaml:"label"`   // remembers the signed bytes
	Keep    bool   `yaml:"keep"`    // signs, and submits nothing: the gateway is cut off
	Refused string `yaml:"refused"` // the code with which the transaction or the record must be refused
}

type openAct struct {
	Session   string         `yaml:"session"`
	At        string         `yaml:"house"`
	Connector uint8          `yaml:"connector"`
	Driver    string         `yaml:"driver"`
	Wh        meter.WattHour `yaml:"wh"`
	Cap       price          `yaml:"cap"`
	Redeem    bool           `yaml:"redeem"`
	SellWh    meter.WattHour `yaml:"sell_wh"`
	SellLimit price          `yaml:"sell_limit"`
	Made      *since         `yaml:"made"` // when the quote was made; now
}

type sessionAct struct {
	Session  string         `yaml:"session"`
	Seq      uint32         `yaml:"seq"` // 0: the next
	Slot     *int64         `yaml:"slot"`
	Register meter.WattHour `yaml:"register"`
	Export   meter.WattHour `yaml:"export"`
	Quality  string         `yaml:"quality"`
	Clock    string         `yaml:"clock"` // what the gateway's clock says, if it is wrong
	Reason   string         `yaml:"reason"`
}

type readAct struct {
	House   string         `yaml:"house"`
	Meter   string         `yaml:"meter"` // its name is its role; site
	Slot    int64          `yaml:"slot"`
	Import  meter.WattHour `yaml:"import"` // register
	Export  meter.WattHour `yaml:"export"` // register
	Segment uint32         `yaml:"segment"`
	Page    uint64         `yaml:"page"` // 0: the next
	Quality string         `yaml:"quality"`
	Clock   string         `yaml:"clock"`
}

type offerAct struct {
	House string `yaml:"house"`
	Side  string `yaml:"side"`
	Slot  int64  `yaml:"slot"`
	Limit price  `yaml:"limit"`
}

type mintAct struct {
	To     string `yaml:"to"`
	Amount amount `yaml:"amount"`
	Ref    string `yaml:"ref"`
}

type tariffAct struct {
	From   int64 `yaml:"from"`
	To     int64 `yaml:"to"`
	Retail price `yaml:"retail"`
	FeedIn price `yaml:"feed_in"`
}

type refundAct struct {
	Session string `yaml:"session"`
	Amount  amount `yaml:"amount"`
	Reason  string `yaml:"reason"`
}

type resolveAct struct {
	Dispute uint64 `yaml:"dispute"`
	Refund  amount `yaml:"refund"`
	Reason  string `yaml:"reason"`
}

type firmAct struct {
	ID      string         `yaml:"id"`
	By      string         `yaml:"by"`
	House   string         `yaml:"house"`
	Session string         `yaml:"session"`
	Side    string         `yaml:"side"`
	Slot    int64          `yaml:"slot"`
	Wh      meter.WattHour `yaml:"wh"`
	Price   price          `yaml:"price"`
}

type takeAct struct {
	ID    string         `yaml:"id"`
	By    string         `yaml:"by"`
	House string         `yaml:"house"`
	Wh    meter.WattHour `yaml:"wh"`
}

type correctAct struct {
	House  string         `yaml:"house"`
	Slot   int64          `yaml:"slot"`
	Import meter.WattHour `yaml:"import"`
	Export meter.WattHour `yaml:"export"`
	Reason string         `yaml:"reason"`
}

type releaseAct struct {
	House     string         `yaml:"house"`
	Connector uint8          `yaml:"connector"`
	Meter     string         `yaml:"meter"`
	Import    meter.WattHour `yaml:"import"`
	Export    meter.WattHour `yaml:"export"`
	By        string         `yaml:"by"` // operator
}

// mandateAct gives a card's key a mandate; sessions name the card as driver.
type mandateAct struct {
	Card   string `yaml:"card"`
	By     string `yaml:"by"`
	PerTap amount `yaml:"per_tap"`
	PerDay amount `yaml:"per_day"`
	Cap    price  `yaml:"cap"`
}

// reserveAct sets money apart for a house's gateway, or asks it back.
type reserveAct struct {
	By     string `yaml:"by"`
	House  string `yaml:"house"`
	Amount amount `yaml:"amount"`
}

type attestAct struct {
	By      string `yaml:"by"`
	Scope   string `yaml:"scope"`
	From    since  `yaml:"from"`
	To      since  `yaml:"to"`
	Expires since  `yaml:"expires"` // left out: withdrawn
}

// expect is what must be so after the step's block. What is left out is free.
type expect struct {
	Events   []string              `yaml:"events"` // of this block, among others
	Never    []string              `yaml:"never"`  // not among this block's
	Same     bool                  `yaml:"same_state"`
	Balances map[string]amount     `yaml:"balances"`
	Held     map[string]amount     `yaml:"held"`
	Credits  map[string]amount     `yaml:"credits"`
	Reserved map[string]amount     `yaml:"reserved"` // of dana, by house
	Sessions map[string]sessionExp `yaml:"sessions"`
	Slots    map[int64]slotExp     `yaml:"slots"`
	Energy   *energyExp            `yaml:"energy"`
	Jumped   *[]string             `yaml:"quarantined"`  // all meters, as house/meter or house/connector
	Flows    map[int64][]string    `yaml:"flows"`        // by slot: the whole contractual matrix, as "from > to: wh kind"
	Certs    map[string]certsExp   `yaml:"certificates"` // by house
	Attested *[]string             `yaml:"attested"`     // scopes that third parties attest, newest first
}

type sessionExp struct {
	State    *string         `yaml:"state"`
	Wh       *meter.WattHour `yaml:"wh"`
	Local    *meter.WattHour `yaml:"local_wh"`
	Excess   *meter.WattHour `yaml:"excess_wh"`
	Sold     *meter.WattHour `yaml:"sold_wh"`
	Register *meter.WattHour `yaml:"register"`
	Begin    *meter.WattHour `yaml:"begin"`
	Captured *amount         `yaml:"captured"`
	Released *amount         `yaml:"released"`
	Disputed *amount         `yaml:"disputed"`
	Paid     *amount         `yaml:"paid"`
	Earned   *amount         `yaml:"earned"`
	Reason   *string         `yaml:"reason"`
	ByRule   *bool           `yaml:"by_rule"`
}

type slotExp struct {
	Missing *int               `yaml:"missing"`
	Traded  *meter.WattHour    `yaml:"traded"`
	Audit   *bool              `yaml:"audit"`
	Open    bool               `yaml:"open"` // not cleared
	Fills   map[string]fillExp `yaml:"fills"`
}

type fillExp struct {
	Wh       *meter.WattHour `yaml:"wh"`
	Local    *meter.WattHour `yaml:"local"`
	Grid     *meter.WattHour `yaml:"grid"`
	Supplier *meter.WattHour `yaml:"supplier"`
	GridAt   *price          `yaml:"grid_price"`
}

type energyExp struct {
	Consumed *meter.WattHour `yaml:"consumed"`
	Produced *meter.WattHour `yaml:"produced"`
	Traded   *meter.WattHour `yaml:"traded"`
}

type certsExp struct {
	Issued    *meter.WattHour `yaml:"issued"`
	Sold      *meter.WattHour `yaml:"sold"`
	Withdrawn *meter.WattHour `yaml:"withdrawn"`
	Own       *meter.WattHour `yaml:"own"`
	Bought    *meter.WattHour `yaml:"bought"`
}

// amount is money in units of the currency: "0.18" is 180,000,000 nano.
type amount chain.Nano

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (a *amount) UnmarshalYAML(b []byte) error {
	n, err := decimal(string(b), 9)
	*a = amount(n)
	return err
}

// price is per kWh: "0.30" is 300,000 nano/Wh.
type price chain.NanoPerWh

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (p *price) UnmarshalYAML(b []byte) error {
	n, err := decimal(string(b), 6)
	*p = price(n)
	return err
}

// decimal reads a decimal fraction exactly, scaled by ten to the digits.
func decimal(s string, digits int) (int64, error) {
	s = strings.Trim(strings.TrimSpace(s), `"`)
	whole, frac, _ := strings.Cut(strings.ReplaceAll(s, "_", ""), ".")
	if len(frac) > digits {
		return 0, fmt.Errorf("%q has more than %d decimals", s, digits)
	}
	n, err := strconv.ParseInt(whole+frac+strings.Repeat("0", digits-len(frac)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", s)
	}
	return n, nil
}

// since is time after the start of slot 0, in ms.
type since int64

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (d *since) UnmarshalYAML(b []byte) error {
	var h, m, s int64
	text := strings.Trim(strings.TrimSpace(string(b)), `"`)
	if n, err := fmt.Sscanf(text, "%d:%d:%d", &h, &m, &s); n != 3 || err != nil {
		return fmt.Errorf("%q: want hours:minutes:seconds", text)
	}
	*d = since(((h*60+m)*60 + s) * 1000)
	return nil
}

func readScenario(path string) (scenario, error) {
	var sc scenario
	b, err := os.ReadFile(path)
	if err != nil {
		return sc, err
	}
	if err := yaml.UnmarshalWithOptions(b, &sc, yaml.Strict()); err != nil {
		return sc, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	if sc.Case == "" || sc.Rule == "" || len(sc.Steps) == 0 {
		return sc, fmt.Errorf("%s: a scenario has a case, a rule and steps", filepath.Base(path))
	}
	for i, s := range sc.Steps {
		for j, a := range s.Do {
			if n := a.kinds(); n != 1 {
				return sc, fmt.Errorf("%s: step %d, statement %d is of %d kinds, want one", filepath.Base(path), i+1, j+1, n)
			}
		}
	}
	return sc, nil
}

// kinds counts which of the act's kinds are set: its fields before Label.
func (a *act) kinds() (n int) {
	for i, v := 0, reflect.ValueOf(*a); v.Type().Field(i).Name != "Label"; i++ {
		if !v.Field(i).IsZero() {
			n++
		}
	}
	return n
}

// The catalogue of abnormal transactions. Each row has at least one scenario.
var catalogue = []string{
	"cable pulled, power lost",
	"begin register 0 after a reboot",
	"rollback, -1, negative",
	"jump beyond max power x time",
	"stuck meter while power flows",
	"meter swapped",
	"energy after stop",
	"second or conflicting stop",
	"duplicate start, replay",
	"communication lost mid-session",
	"ledger partition",
	"clock jump, 1970",
	"price change mid-session",
	"delivery beyond the hold",
	"payment without energy",
	"energy without payment",
	"failed or double deduction",
	"v2v seller below floor or gone",
	"dishonest meter",
	"refund, correction",
	"reading that comes after its slot was settled",
	"attestation forged, expired or replayed",
}

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/scenarios/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
			sc, err := readScenario(path)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(catalogue, sc.Case) {
				t.Fatalf("case %q is not in the catalogue", sc.Case)
			}
			told[sc.Case] = true
			newTeller(t, &sc).tell(sc.Steps)
		})
	}
	for _, c := range catalogue {
		if !told[c] {
			t.Errorf("no scenario tells of %q", c)
		}
	}
}

func TestScenarioWithAnUnknownKeyNamesFileAndLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "typo.yaml")
	text := "case: x\nrule: y\nsteps:\n  - do:\n      - open: {session: s1, hous: b}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := readScenario(path)
	if err == nil || !strings.Contains(err.Error(), "typo.yaml: [5:") || !strings.Contains(err.Error(), "hous") {
		t.Fatalf("got %v", err)
	}
}

// teller plays a scenario.
type teller struct {
	*world
	seq   map[string]uint32
	where map[string]*house // of a session
	sell  map[string]bool
	bytes map[string][]byte
	step  string
}

func newTeller(t *testing.T, sc *scenario) *teller {
	te := &teller{seq: map[string]uint32{}, where: map[string]*house{}, sell: map[string]bool{}, bytes: map[string][]byte{}}
	te.world = newWorldOf(t, func(g *chain.Genesis) {
		if sc.World.Start != 0 {
			g.StartSeconds = sc.World.Start
		}
		for _, who := range sc.World.Auditors {
			g.Money.Auditors = append(g.Money.Auditors, newPerson(who).key)
		}
	})
	te.driver = newPerson("dana")
	te.ok(te.mint(te.driver.account(), 1e10))
	for _, who := range slices.Sorted(mapKeys(sc.World.Balances)) {
		if n := chain.Nano(sc.World.Balances[who]) - te.balance(te.account(who)); n > 0 {
			te.ok(te.mint(te.account(who), n))
		}
	}
	for _, f := range sc.World.Features {
		te.ok(te.tx(te.op, chain.TxFeature, chain.FeatureBasis{Feature: f, On: true, Basis: "scenario"}))
	}
	te.twin = plainState{}
	te.st.Iterate(nil, func(k, v []byte) bool {
		te.twin.Set(k, v)
		return true
	})
	return te
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (te *teller) house(name string) *house {
	for _, h := range []*house{te.a, te.b, te.c} {
		if h.name == name {
			return h
		}
	}
	te.t.Fatalf("%s: no house %q", te.step, name)
	return nil
}

func (te *teller) person(name string) *person {
	if name == "operator" {
		return te.op
	}
	return newPerson(name)
}

// account is a person's ("dana", "owner a") or the ledger's own ("grid").
func (te *teller) account(name string) chain.Account {
	var a chain.Account
	if err := a.UnmarshalText([]byte("sys:" + name)); err == nil {
		return a
	}
	return te.person(name).account()
}

func sessionID(name string) chain.ID {
	h := chain.Sum([]byte("session " + name))
	return chain.ID(h[:16])
}

func (te *teller) tell(steps []step) {
	for i, s := range steps {
		te.step = fmt.Sprintf("step %d (%s)", i+1, s.Note)
		if s.At != nil {
			// block moves the clock on by a second first
			if at := t0 + int64(*s.At) - 1000; at < te.now {
				te.t.Fatalf("%s: is before the step before it", te.step)
			} else {
				te.now = at
			}
		}
		te.play(s)
	}
}

func (te *teller) play(s step) {
	te.t.Helper()
	te.now += 1000
	var txs [][]byte
	var acts []act
	for _, a := range s.Do {
		raw := te.sign(&a)
		if a.Label != "" {
			te.bytes[a.Label] = raw
		}
		if !a.Keep {
			txs, acts = append(txs, raw), append(acts, a)
		}
	}
	te.now -= 1000
	before := StateHash(te.st)
	out := te.block(txs...)
	for i, r := range out.Results {
		got := r.Code.String()
		if len(r.Refused) > 0 {
			got = r.Refused[0].Code.String()
		}
		if want := acts[i].Refused; got != want && (want != "" || got != "ok") {
			te.t.Fatalf("%s: statement %d: %s (%s %v), want %q", te.step, i+1, got, r.Info, r.Refused, want)
		}
	}
	if s.Expect.Same && StateHash(te.st) != before {
		te.t.Fatalf("%s: the state changed", te.step)
	}
	te.check(&s.Expect)
}

func (te *teller) sign(a *act) []byte {
	te.t.Helper()
	switch {
	case a.Open != nil:
		return te.open(a.Open)
	case a.Meter != nil:
		return te.reading(a.Meter, false)
	case a.Stop != nil:
		return te.reading(a.Stop, true)
	case a.Read != nil:
		return te.read(a.Read)
	case a.Offer != nil:
		o := a.Offer
		return te.house(o.House).sign(chain.NewRecord(chain.KindOffer, chain.Offer{From: slotAfter(o.Slot), To: slotAfter(o.Slot), Side: te.side(o.Side), Limit: chain.NanoPerWh(o.Limit)}))
	case a.Mint != nil:
		return te.bad(te.op, chain.TxMint, chain.Mint{To: te.account(a.Mint.To), Amount: chain.Nano(a.Mint.Amount), BankRef: a.Mint.Ref})
	case a.Tariff != nil:
		return te.bad(te.op, chain.TxTariff, chain.Tariff{From: slotAfter(a.Tariff.From), To: slotAfter(a.Tariff.To), Retail: chain.NanoPerWh(a.Tariff.Retail), FeedIn: chain.NanoPerWh(a.Tariff.FeedIn)})
	case a.Refund != nil:
		return te.bad(te.op, chain.TxRefund, chain.Refund{Session: sessionID(a.Refund.Session), Amount: chain.Nano(a.Refund.Amount), Reason: a.Refund.Reason})
	case a.Dispute != nil:
		return te.bad(te.driver, chain.TxDispute, chain.Dispute{Session: sessionID(a.Dispute.Session), Amount: chain.Nano(a.Dispute.Amount), Reason: a.Dispute.Reason})
	case a.Resolve != nil:
		return te.bad(te.op, chain.TxResolve, chain.Resolve{Dispute: a.Resolve.Dispute, Refund: chain.Nano(a.Resolve.Refund), Reason: a.Resolve.Reason})
	case a.Firm != nil:
		f := a.Firm
		o := chain.FirmOffer{ID: sessionID(f.ID), Device: te.house(f.House).key, Side: te.side(f.Side), From: slotAfter(f.Slot), To: slotAfter(f.Slot), Wh: f.Wh, Price: chain.NanoPerWh(f.Price)}
		if f.Session != "" {
			o.Session = sessionID(f.Session)
		}
		return te.bad(te.person(f.By), chain.TxFirmOffer, o)
	case a.Take != nil:
		return te.bad(te.person(a.Take.By), chain.TxFirmTake, chain.FirmTake{Offer: sessionID(a.Take.ID), Device: te.house(a.Take.House).key, Wh: a.Take.Wh})
	case a.Correct != nil:
		c := a.Correct
		id := sessionID(fmt.Sprint("correction ", te.height))
		return te.house(c.House).sign(chain.NewRecord(chain.KindMeterCorrection, chain.MeterCorrection{ID: id, Slot: slotAfter(c.Slot), Import: c.Import, Export: c.Export, Reason: c.Reason}))
	case a.Release != nil:
		x := a.Release
		if x.By == "" {
			x.By = "operator"
		}
		return te.bad(te.person(x.By), chain.TxMeterRelease, chain.MeterRelease{Device: te.house(x.House).key, Connector: x.Connector, Meter: x.Meter, Import: x.Import, Export: x.Export, Reason: "looked at"})
	case a.Mandate != nil:
		x := a.Mandate
		card, payer := te.person(x.Card), te.person(x.By)
		return te.bad(payer, chain.TxMandate, chain.Mandate{
			Token: card.key, Kind: chain.MandateCard, PerTap: chain.Nano(x.PerTap), PerDay: chain.Nano(x.PerDay), Cap: chain.NanoPerWh(x.Cap), Expires: te.now + 365*dayMs,
			Consent: chain.Sign(card.priv, chain.DomainMandate, chain.ConsentBytes("test", payer.key)),
		})
	case a.Reserve != nil:
		return te.bad(te.person(a.Reserve.By), chain.TxOffline, chain.Offline{Gateway: te.house(a.Reserve.House).key, Amount: chain.Nano(a.Reserve.Amount)})
	case a.Attest != nil:
		x := a.Attest
		b := chain.Attestation{Scope: x.Scope, From: t0 + int64(x.From), To: t0 + int64(x.To)}
		if x.Expires != 0 {
			b.Expires = t0 + int64(x.Expires)
		}
		return te.bad(te.person(x.By), chain.TxAttest, b)
	case a.Revoke != "":
		return te.bad(te.op, chain.TxRevoke, chain.Revoke{Device: te.house(a.Revoke).key, Reason: "scenario"})
	case a.Equivocal != "":
		twin := *te.house(a.Equivocal)
		twin.pos.Number--
		if twin.sent = nil; twin.pos.Number == 0 {
			twin.prev = chain.Hash{}
		}
		return twin.sign(chain.NewRecord(chain.KindEvent, chain.Event{Code: "another.truth"}))
	}
	label := a.Again + a.Send
	raw, ok := te.bytes[label]
	if !ok {
		te.t.Fatalf("%s: nothing has the label %q", te.step, label)
	}
	return raw
}

func slotAfter(n int64) chain.Slot { return firstSl + chain.Slot(n) }

func (te *teller) side(s string) chain.Side {
	switch s {
	case "buy":
		return chain.Buy
	case "sell":
		return chain.Sell
	}
	te.t.Fatalf("%s: side %q, want buy or sell", te.step, s)
	return 0
}

func (te *teller) open(o *openAct) []byte {
	h, p := te.house(o.At), te.person(o.Driver)
	if o.Connector == 0 {
		o.Connector = 1
	}
	if o.Cap == 0 {
		o.Cap = 400_000
	}
	q := te.quote(h, p, 0, o.Connector, o.Wh)
	if o.Made != nil {
		q.Created = t0 + int64(*o.Made)
		q.Expires = q.Created + 300_000
	}
	q.ID, q.Cap, q.Redeem, q.SellWh, q.SellLimit = sessionID(o.Session), chain.NanoPerWh(o.Cap), o.Redeem, o.SellWh, chain.NanoPerWh(o.SellLimit)
	q.Hold = chain.Nano(q.Cap) * chain.Nano(q.MaxWh)
	if te.where[o.Session] == nil {
		te.where[o.Session], te.sell[o.Session] = h, o.SellWh > 0
	}
	return h.sign(signQuote(q, p))
}

func (te *teller) quality(s string) meter.Quality {
	if s == "" {
		return meter.Good
	}
	for q := meter.Good; q <= meter.Stale; q++ {
		if q.String() == s {
			return q
		}
	}
	te.t.Fatalf("%s: no quality %q", te.step, s)
	return 0
}

// clock is what a device's clock says: block time, unless it is wrong.
func (te *teller) clock(s string) int64 {
	if s == "" {
		return te.now
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		te.t.Fatalf("%s: %v", te.step, err)
	}
	return at.UnixMilli()
}

func (te *teller) reading(a *sessionAct, stop bool) []byte {
	h := te.where[a.Session]
	if h == nil {
		te.t.Fatalf("%s: no session %q", te.step, a.Session)
	}
	seq := a.Seq
	if seq == 0 {
		te.seq[a.Session]++
		seq = te.seq[a.Session]
	}
	slot := chain.SlotAt(te.now-1, 900)
	if a.Slot != nil {
		slot = slotAfter(*a.Slot)
	}
	id, q, at := sessionID(a.Session), te.quality(a.Quality), te.clock(a.Clock)
	if !stop {
		return h.sign(chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: id, Seq: seq, Slot: slot, Register: a.Register, Export: a.Export, Quality: q, At: at}))
	}
	reason := chain.StopDriver
	if a.Reason != "" {
		if err := reason.UnmarshalText([]byte(a.Reason)); err != nil {
			te.t.Fatalf("%s: %v", te.step, err)
		}
	}
	return h.sign(chain.NewRecord(chain.KindSessionStop, chain.SessionStop{Session: id, Seq: seq, Slot: slot, Register: a.Register, Export: a.Export, Quality: q, At: at, Reason: reason, Receipt: chain.Sum([]byte(a.Session))}))
}

func (te *teller) read(a *readAct) []byte {
	h := te.house(a.House)
	name := a.Meter
	if name == "" {
		name = "site"
	}
	kind, _, _ := strings.Cut(name, "-")
	role, err := chain.ParseRole(kind)
	if err != nil {
		te.t.Fatalf("%s: %v", te.step, err)
	}
	page := a.Page
	if page == 0 {
		h.pages[name]++
		page = h.pages[name]
	}
	at := slotAfter(a.Slot).End(900)
	if a.Clock != "" {
		at = te.clock(a.Clock)
	}
	return h.sign(chain.NewRecord(chain.KindMeter, chain.MeterRecord{
		Slot: slotAfter(a.Slot), Meter: name, Role: role, Page: page, Import: a.Import, Export: a.Export, Quality: te.quality(a.Quality), At: at, Count: 1, Segment: a.Segment,
	}))
}

func (te *teller) check(e *expect) {
	te.t.Helper()
	for _, code := range e.Events {
		if !slices.ContainsFunc(te.last.Events, func(x Event) bool { return x.Code == code }) {
			te.t.Fatalf("%s: no event %s in %+v", te.step, code, te.last.Events)
		}
	}
	for _, code := range e.Never {
		if slices.ContainsFunc(te.last.Events, func(x Event) bool { return x.Code == code }) {
			te.t.Fatalf("%s: event %s in %+v", te.step, code, te.last.Events)
		}
	}
	for who, want := range e.Balances {
		te.same(who+"'s balance", te.balance(te.account(who)), chain.Nano(want))
	}
	for who, want := range e.Held {
		te.same("held of "+who, AccountOf(te.st, te.account(who)).Held, chain.Nano(want))
	}
	for who, want := range e.Credits {
		te.same(who+"'s credit", AccountOf(te.st, te.account(who)).Credits, chain.Nano(want))
	}
	for name, want := range e.Reserved {
		te.same("reserved at "+name, ReserveOf(te.st, te.driver.account(), te.house(name).key).Amount, chain.Nano(want))
	}
	for name, x := range e.Sessions {
		s, ok := SessionOf(te.st, sessionID(name))
		if !ok {
			if x.State == nil || *x.State != "none" {
				te.t.Fatalf("%s: the ledger has no session %s", te.step, name)
			}
			continue
		}
		is(te, name+": state", x.State, s.State.String())
		is(te, name+": energy", x.Wh, s.Wh)
		is(te, name+": local energy", x.Local, s.LocalWh)
		is(te, name+": excess", x.Excess, s.ExcessWh)
		is(te, name+": sold", x.Sold, s.Sold)
		is(te, name+": register", x.Register, s.Register)
		is(te, name+": begin register", x.Begin, s.Begin)
		is(te, name+": captured", x.Captured, amount(s.Captured))
		is(te, name+": released", x.Released, amount(s.Released))
		is(te, name+": disputed", x.Disputed, amount(s.Disputed))
		is(te, name+": paid", x.Paid, amount(s.Paid))
		is(te, name+": credit earned", x.Earned, amount(s.CreditEarned))
		is(te, name+": reason", x.Reason, s.Reason.String())
		is(te, name+": by rule", x.ByRule, s.ByRule)
	}
	for n, x := range e.Slots {
		v, ok := SlotOf(te.st, slotAfter(n))
		if ok == x.Open {
			te.t.Fatalf("%s: slot %d cleared: %t", te.step, n, ok)
		}
		what := fmt.Sprint("slot ", n)
		is(te, what+": missing", x.Missing, v.Missing)
		is(te, what+": traded", x.Traded, v.Energy.Traded)
		is(te, what+": audit", x.Audit, v.Audit)
		for id, want := range x.Fills {
			if kind, name, _ := strings.Cut(id, "/"); kind == "car" || kind == "v2v" {
				id = kind + "/" + sessionID(name).String()
			}
			i := slices.IndexFunc(v.Fills, func(f FillView) bool { return f.ID == id })
			if i < 0 {
				te.t.Fatalf("%s: %s has no fill %s: %+v", te.step, what, id, v.Fills)
			}
			f := v.Fills[i]
			is(te, what+" "+id+": energy", want.Wh, f.Wh)
			is(te, what+" "+id+": local", want.Local, f.Local)
			is(te, what+" "+id+": grid", want.Grid, f.Grid)
			is(te, what+" "+id+": supplier", want.Supplier, f.Supplier)
			is(te, what+" "+id+": grid price", want.GridAt, price(f.GridAt))
		}
	}
	for n, want := range e.Flows {
		f, err := FlowOf(te.st, slotAfter(n))
		if err != nil {
			te.t.Fatalf("%s: %v", te.step, err)
		}
		var got []string
		for _, p := range f.Contractual {
			got = append(got, fmt.Sprintf("%s > %s: %d %s", te.named(p.From), te.named(p.To), p.Wh, p.Kind))
		}
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			te.t.Fatalf("%s: the flow of slot %d is %q, want %q", te.step, n, got, want)
		}
	}
	for name, want := range e.Certs {
		m, _ := MemberOf(te.st, te.house(name).key)
		c := m.Certificates
		is(te, name+": certificates issued", want.Issued, c.Issued+c.Stored)
		is(te, name+": certificates sold", want.Sold, c.Sold)
		is(te, name+": certificates withdrawn", want.Withdrawn, c.Exported)
		is(te, name+": certificates cancelled by the house", want.Own, c.Own)
		is(te, name+": certificates bought", want.Bought, c.Bought)
	}
	if e.Jumped != nil {
		var got []string
		for _, q := range Quarantines(te.st) {
			m, _ := MemberOf(te.st, q.Device)
			if q.Connector != 0 {
				q.Meter = fmt.Sprint(q.Connector)
			}
			got = append(got, m.Name+"/"+q.Meter)
		}
		if !slices.Equal(got, *e.Jumped) {
			te.t.Fatalf("%s: in quarantine are %v, want %v", te.step, got, *e.Jumped)
		}
	}
	if e.Attested != nil {
		got := []string{}
		for _, v := range StatusOf(te.st).Attestations {
			got = append(got, v.Scope)
		}
		if !slices.Equal(got, *e.Attested) {
			te.t.Fatalf("%s: attested is %v, want %v", te.step, got, *e.Attested)
		}
	}
	if x := e.Energy; x != nil {
		v := EnergyOf(te.st)
		is(te, "consumed", x.Consumed, v.Consumed)
		is(te, "produced", x.Produced, v.Produced)
		is(te, "traded", x.Traded, v.Traded)
	}
}

// named puts a session's name for its id in a party.
func (te *teller) named(party string) string {
	kind, rest, _ := strings.Cut(party, "/")
	for name := range te.where {
		if sessionID(name).String() == rest {
			return kind + "/" + name
		}
	}
	return party
}

func (te *teller) same(what string, got, want chain.Nano) {
	te.t.Helper()
	if got != want {
		te.t.Fatalf("%s: %s is %s, want %s", te.step, what, units(got), units(want))
	}
}

func is[T comparable](te *teller, what string, want *T, got T) {
	te.t.Helper()
	if want != nil && got != *want {
		te.t.Fatalf("%s: %s is %v, want %v", te.step, what, got, *want)
	}
}

// units is the inverse of amount.
func units(n chain.Nano) string {
	if n == math.MinInt64 {
		return fmt.Sprint(int64(n))
	}
	sign := ""
	if n < 0 {
		sign, n = "-", -n
	}
	return fmt.Sprintf("%s%d.%09d", sign, n/1e9, n%1e9)
}

func (a amount) String() string { return units(chain.Nano(a)) }
