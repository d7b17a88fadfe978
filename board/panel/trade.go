package panel

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/market"
	"github.com/joulegate/joulegate/meter"
)

// TradeBackend is what the gateway tells of trades: who supplied whom, what
// was cleared and why it is right, what suppliers and network operators need.
type TradeBackend interface {
	// Flow tells who supplied whom. The panel has checked the request's
	// proof before it gets here.
	Flow(ctx context.Context, req FlowRequest) (Flow, error)
	// Allocation divides a period's energy by metering points. It needs the
	// control socket.
	Allocation(ctx context.Context, from, to chain.Slot) (ledger.Allocation, error)
	// SlotProof reconstructs what a slot cleared and proves it optimal; slot
	// 0 is the newest. It needs the control socket.
	SlotProof(ctx context.Context, slot chain.Slot) (SlotProof, error)
	// Terms tells what holds for trades now and later.
	Terms(ctx context.Context) (Terms, error)
	// Correct signs and records that this gateway's site meter was wrong. It
	// needs the control socket.
	Correct(ctx context.Context, c chain.MeterCorrection) error
}

// MaxFlowSlots bounds the slots of one Flow or Allocation: a day of ten-second
// slots, 90 days of quarters of an hour.
const MaxFlowSlots = 8640

// FlowRequest asks who supplied whom in slots From..To, or in a session.
// Everything 0 asks for the newest cleared slot.
type FlowRequest struct {
	From    chain.Slot
	To      chain.Slot // inclusive
	Session chain.ID

	// Key is who asks. He sees what his account is part of, operators and
	// auditors see everything. Zero, on the control socket only: everything.
	Key chain.Key
	At  int64  // Unix ms of the signature
	Sig []byte // of Key under domainFlow
}

// domainFlow separates questions about flows from what else a person signs.
const domainFlow = "joulegate/flow/1\x00"

// maxProofAge is how old a signed question may be: clocks of phones differ.
const maxProofAge = 5 * time.Minute

func (r *FlowRequest) message() []byte {
	return chain.Marshal([]any{r.From, r.To, r.Session, r.Key, r.At})
}

// Sign makes the request person's.
func (r *FlowRequest) Sign(person ed25519.PrivateKey, now time.Time) {
	copy(r.Key[:], person.Public().(ed25519.PublicKey))
	r.At = now.UnixMilli()
	r.Sig = chain.Sign(person, domainFlow, r.message())
}

// check reports whether the request is signed, freshly.
func (r *FlowRequest) check(now time.Time) error {
	if !chain.Verify(r.Key, domainFlow, r.message(), r.Sig) {
		return &Error{http.StatusForbidden, "forbidden", "who supplied whom is told to those concerned: sign the question with your wallet"}
	}
	if d := now.Sub(time.UnixMilli(r.At)); d > maxProofAge || d < -maxProofAge {
		return &Error{http.StatusForbidden, "expired", "the question was not signed within the last five minutes; check the clocks"}
	}
	return nil
}

func (r *FlowRequest) query() string {
	q := url.Values{}
	if r.From != 0 || r.To != 0 {
		q.Set("from", fmt.Sprint(r.From))
		q.Set("to", fmt.Sprint(r.To))
	}
	if r.Session != (chain.ID{}) {
		q.Set("session", r.Session.String())
	}
	if r.Sig != nil {
		q.Set("key", r.Key.String())
		q.Set("at", fmt.Sprint(r.At))
		q.Set("sig", base64.RawURLEncoding.EncodeToString(r.Sig))
	}
	return q.Encode()
}

// parseFlow reads a request from a query. slot=N is from=N&to=N.
func parseFlow(q url.Values) (r FlowRequest, err error) {
	if s := q.Get("slot"); s != "" {
		q.Set("from", s)
		q.Set("to", s)
	}
	if r.From, r.To, err = slotRange(q); err != nil {
		return r, err
	}
	if s := q.Get("session"); s != "" {
		if err := r.Session.UnmarshalText([]byte(s)); err != nil {
			return r, Invalid("session: %v", err)
		}
	}
	if s := q.Get("key"); s != "" {
		if err := r.Key.UnmarshalText([]byte(s)); err != nil {
			return r, Invalid("key: %v", err)
		}
		if r.At, err = strconv.ParseInt(q.Get("at"), 10, 64); err != nil {
			return r, Invalid("at %q is not a number", short(q.Get("at")))
		}
		if r.Sig, err = base64.RawURLEncoding.DecodeString(q.Get("sig")); err != nil {
			return r, Invalid("sig is not base64url")
		}
	}
	return r, nil
}

func slotRange(q url.Values) (from, to chain.Slot, err error) {
	for _, p := range []struct {
		name string
		dst  *chain.Slot
	}{{"from", &from}, {"to", &to}} {
		if s := q.Get(p.name); s != "" {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil || n < 0 {
				return 0, 0, Invalid("%s %q is not a slot", p.name, short(s))
			}
			*p.dst = chain.Slot(n)
		}
	}
	if to < from || to-from >= MaxFlowSlots {
		return 0, 0, Invalid("slots %d..%d: at most %d at a time", from, to, MaxFlowSlots)
	}
	return from, to, nil
}

// Flow is who supplied whom.
type Flow struct {
	From        chain.Slot `json:"from_slot"`
	To          chain.Slot `json:"to_slot"`
	Session     *chain.ID  `json:"session,omitempty"`
	SlotSeconds int64      `json:"slot_seconds"`
	Slots       int        `json:"slots"` // cleared, with energy, in the range
	Scope       string     `json:"scope"` // "all", or the account whose part it is
	Words       []string   `json:"words"`
	Contractual []FlowLine `json:"contractual"` // trades: who sold to whom
	Physical    []FlowLine `json:"physical"`    // which way the energy went

	Late []ledger.LateView `json:"late"` // of both: what came after its slot was settled
}

// FlowLine is energy that went from one party to another, over all slots.
type FlowLine struct {
	ledger.FlowPart
	FromName string `json:"from_name"`
	ToName   string `json:"to_name"`
}

// NewFlow tells the flows of slots as a Flow: of a session if it is not zero,
// and of one account if viewer is not nil.
func NewFlow(slots []ledger.Flow, session chain.ID, viewer *chain.Account, sessions map[chain.ID]string) Flow {
	f := Flow{Slots: len(slots), Scope: "all", Words: []string{}, Contractual: []FlowLine{}, Physical: []FlowLine{}}
	if viewer != nil {
		f.Scope = viewer.String()
	}
	if session != (chain.ID{}) {
		f.Session = &session
	}
	type edge struct{ from, to, kind string }
	sum := func(pick func(ledger.Flow) []ledger.FlowPart) []FlowLine {
		sums := map[edge]*FlowLine{}
		for _, s := range slots {
			for _, p := range pick(s) {
				if session != (chain.ID{}) && !ofSession(p.From, session) && !ofSession(p.To, session) {
					continue
				}
				if viewer != nil {
					from, okFrom := s.Parties[p.From]
					to, okTo := s.Parties[p.To]
					if !(okFrom && from == *viewer) && !(okTo && to == *viewer) {
						continue
					}
				}
				e := edge{p.From, p.To, p.Kind}
				if sums[e] == nil {
					sums[e] = &FlowLine{FlowPart: ledger.FlowPart{From: p.From, To: p.To, Kind: p.Kind}, FromName: partyName(p.From, sessions), ToName: partyName(p.To, sessions)}
				}
				sums[e].Wh += p.Wh
				sums[e].Certified += p.Certified
			}
		}
		out := []FlowLine{}
		for _, l := range sums {
			out = append(out, *l)
		}
		slices.SortFunc(out, func(a, b FlowLine) int {
			return cmp.Or(cmp.Compare(a.ToName, b.ToName), cmp.Compare(b.Wh, a.Wh), cmp.Compare(a.FromName, b.FromName), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
		})
		return out
	}
	f.Contractual = sum(func(s ledger.Flow) []ledger.FlowPart { return s.Contractual })
	f.Physical = sum(func(s ledger.Flow) []ledger.FlowPart { return s.Physical })
	f.Late = lateSums(slots, session, viewer)
	f.Words = append(flowWords(f.Contractual), lateWords(f.Late)...)
	return f
}

// lateSums adds up what came late, by house; a session's is in its lines.
func lateSums(slots []ledger.Flow, session chain.ID, viewer *chain.Account) []ledger.LateView {
	out := []ledger.LateView{}
	for _, s := range slots {
		for _, l := range s.Late {
			if session != (chain.ID{}) || viewer != nil && l.Owner != *viewer {
				continue
			}
			i := slices.IndexFunc(out, func(o ledger.LateView) bool { return o.Member == l.Member })
			if i < 0 {
				out = append(out, l)
				continue
			}
			out[i].Add(l)
		}
	}
	slices.SortFunc(out, func(a, b ledger.LateView) int { return cmp.Compare(a.Member, b.Member) })
	return out
}

// lateWords tells what came after its slot was settled, and what became of it.
func lateWords(late []ledger.LateView) []string {
	var words []string
	for _, l := range late {
		var parts []string
		tell := func(format string, wh meter.WattHour) {
			if wh != 0 {
				parts = append(parts, fmt.Sprintf(format, wattHours(wh)))
			}
		}
		tell("it took %s from the supplier at the supplier's price", l.Import)
		tell("it gave %s to the supplier at the supplier's price", l.Export)
		tell("it passed %s on to cars", l.Cars)
		tell("cars gave it %s", l.CarsGave)
		tell("its roof produced %s", l.Produced)
		tell("its battery took %s", l.Charged)
		tell("its battery gave %s", l.Discharged)
		if len(parts) > 0 {
			w := fmt.Sprintf("Of %s came after the slot was settled: %s; trades with neighbours stay as they were.", l.Member, join(parts))
			if l.Issued > 0 {
				w += fmt.Sprintf(" Certificates of origin for %s were issued then: %s withdrawn with what left the house, %s cancelled by the house.", wattHours(l.Issued), wattHours(l.Withdrawn), wattHours(l.Own))
			}
			words = append(words, w)
		}
		if l.FixImport != 0 || l.FixExport != 0 {
			words = append(words, fmt.Sprintf("Readings of %s were corrected against the supplier: import by %s, export by %s.", l.Member, wattHours(l.FixImport), wattHours(l.FixExport)))
		}
	}
	return words
}

func ofSession(party string, id chain.ID) bool { return strings.HasSuffix(party, "/"+id.String()) }

// partyName says who a party is. sessions tells at whose charger.
func partyName(party string, sessions map[chain.ID]string) string {
	kind, rest, _ := strings.Cut(party, "/")
	switch kind {
	case "buy", "sell":
		return rest
	case "car", "v2v":
		var id chain.ID
		if id.UnmarshalText([]byte(rest)) == nil {
			return fmt.Sprintf("the car at %s (%s)", sessions[id], rest[:8])
		}
	case "roof", "battery":
		return rest + "'s " + kind
	case "use":
		return rest + " itself"
	case "unmetered":
		return rest + ", not metered"
	case ledger.FlowGridParty:
		return "the grid"
	case ledger.FlowLoss:
		return "losses"
	}
	return party
}

// flowWords tells the contractual matrix in sentences, one per taker.
func flowWords(lines []FlowLine) []string {
	words := []string{}
	for i := 0; i < len(lines); {
		j := i
		var total, certified meter.WattHour
		var parts []string
		for ; j < len(lines) && lines[j].ToName == lines[i].ToName; j++ {
			l := lines[j]
			total += l.Wh
			certified += l.Certified
			how := ""
			switch l.Kind {
			case ledger.FlowFirm:
				how = ", as promised"
			case ledger.FlowBill:
				how = ", on the supplier's own bill"
			case ledger.FlowLate:
				how = ", told late"
			case ledger.FlowFix:
				how = ", by correction"
			}
			parts = append(parts, fmt.Sprintf("%s from %s%s", wattHours(l.Wh), l.FromName, how))
		}
		w := fmt.Sprintf("%s got %s: %s.", lines[i].ToName, wattHours(total), join(parts))
		if certified > 0 {
			w += fmt.Sprintf(" Certificates of origin for %s were cancelled.", wattHours(certified))
		}
		words = append(words, strings.ToUpper(w[:1])+w[1:])
		i = j
	}
	return words
}

func wattHours(e meter.WattHour) string {
	if e >= 10_000 || e <= -10_000 {
		return fmt.Sprintf("%d.%02d kWh", e/1000, max(e%1000, -(e%1000))/10)
	}
	return fmt.Sprintf("%d Wh", e)
}

// SlotProof is what a slot cleared, and the outcome of checking it.
type SlotProof struct {
	Slot    chain.Slot     `json:"slot"`
	Proven  bool           `json:"proven"` // optimal, by its fills and prices alone
	Why     string         `json:"why,omitempty"`
	Problem market.Problem `json:"problem"` // as market clear reads it
	Result  market.Result  `json:"result"`
}

// UnmarshalJSON reads what a gateway has proven; the proof is meant to be
// checked again, so problem and result are read in full.
func (p *SlotProof) UnmarshalJSON(b []byte) error {
	var in struct {
		Slot    chain.Slot      `json:"slot"`
		Proven  bool            `json:"proven"`
		Why     string          `json:"why"`
		Problem json.RawMessage `json:"problem"`
		Result  market.Result   `json:"result"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	problem, err := market.ParseProblem(in.Problem)
	*p = SlotProof{Slot: in.Slot, Proven: in.Proven, Why: in.Why, Problem: problem, Result: in.Result}
	return err
}

// Terms is what holds for trades: prices, the network and its fees, what is
// allowed, and the firm offers that can be taken.
type Terms struct {
	SlotSeconds int64                   `json:"slot_seconds"`
	Slot        chain.Slot              `json:"slot"`               // next to clear
	Retail      chain.NanoPerWh         `json:"retail_nano_per_wh"` // where no range says otherwise
	FeedIn      chain.NanoPerWh         `json:"feed_in_nano_per_wh"`
	Tariffs     []chain.Tariff          `json:"tariffs"`
	Periods     []chain.Slot            `json:"billing_bounds"` // with which billing periods begin, and the last one ends
	Zones       []ledger.ZoneView       `json:"zones"`
	Features    []ledger.FeatureView    `json:"features"`
	Firm        []ledger.FirmView       `json:"firm"`
	Corrections []ledger.CorrectionView `json:"corrections"`
}

// trade registers what TradeBackend answers.
func (s *Server) trade(handle func(pattern string, h func(r *http.Request) (any, error)), control bool) {
	b := s.cfg.Backend
	handle("GET /flow", func(r *http.Request) (any, error) {
		req, err := parseFlow(r.URL.Query())
		if err != nil {
			return nil, err
		}
		if !control || req.Sig != nil {
			if err := req.check(time.Now()); err != nil {
				return nil, err
			}
		}
		return b.Flow(r.Context(), req)
	})
	handle("GET /market/terms", func(r *http.Request) (any, error) {
		t, err := b.Terms(r.Context())
		if !control {
			t.Corrections = []ledger.CorrectionView{} // between a site and its supplier
		}
		return t, err
	})
	if !control {
		return
	}
	handle("GET /market/allocation", func(r *http.Request) (any, error) {
		from, to, err := slotRange(r.URL.Query())
		if err != nil {
			return nil, err
		}
		return b.Allocation(r.Context(), from, to)
	})
	handle("GET /market/proof", func(r *http.Request) (any, error) {
		slot, _, err := slotRange(url.Values{"from": {r.URL.Query().Get("slot")}, "to": {r.URL.Query().Get("slot")}})
		if err != nil {
			return nil, err
		}
		return b.SlotProof(r.Context(), slot)
	})
	handle("POST /market/correct", func(r *http.Request) (any, error) {
		var c correction
		if err := body(r, &c); err != nil {
			return nil, err
		}
		return struct{}{}, b.Correct(r.Context(), chain.MeterCorrection(c))
	})
}

// correction is chain.MeterCorrection in JSON.
type correction struct {
	ID     chain.ID       `json:"id"`
	Slot   chain.Slot     `json:"slot"`
	Import meter.WattHour `json:"import_wh"`
	Export meter.WattHour `json:"export_wh"`
	Reason string         `json:"reason"`
}

// Flow implements Backend.
func (c *Client) Flow(ctx context.Context, req FlowRequest) (Flow, error) {
	return get[Flow](ctx, c, "/flow?"+req.query())
}

// Allocation implements Backend. Only the control socket offers it.
func (c *Client) Allocation(ctx context.Context, from, to chain.Slot) (ledger.Allocation, error) {
	return get[ledger.Allocation](ctx, c, fmt.Sprintf("/market/allocation?from=%d&to=%d", from, to))
}

// SlotProof implements Backend. Only the control socket offers it.
func (c *Client) SlotProof(ctx context.Context, slot chain.Slot) (SlotProof, error) {
	return get[SlotProof](ctx, c, fmt.Sprintf("/market/proof?slot=%d", slot))
}

// Terms implements Backend.
func (c *Client) Terms(ctx context.Context) (Terms, error) {
	return get[Terms](ctx, c, "/market/terms")
}

// Correct implements Backend. Only the control socket offers it.
func (c *Client) Correct(ctx context.Context, m chain.MeterCorrection) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/market/correct", correction(m))
	return err
}
