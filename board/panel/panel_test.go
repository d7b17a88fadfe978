package panel

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/commission"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/report"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/identify"
)

// fake is a neighbourhood on a sunny noon: it answers as a gateway would and
// grows a block whenever tick is called.
type fake struct {
	Money       // not part of what these tests ask
	mu          sync.Mutex
	started     time.Time
	height      int64
	bundle      func(BundleQuery, io.Writer) error
	begin       chan VerifyProgress // LedgerVerify waits for these when not nil
	stopped     []chain.ID
	confirmed   int
	guardOrders []GuardOrder
	watch       []chan Update
}

const fakeGenesis = "{ \"version\": 1,\n  \"chain_id\": \"sunny-street\" }\n"

var (
	names     = []string{"house1", "house2", "house3", "house4"}
	driver    = key("driver")
	openID    = id(1)
	closedID  = id(2)
	redeemID  = id(3)
	slotNow   = chain.Slot(170_000_000)
	errDisk   = errors.New("read /var/lib/joulegate/secret-path: input/output error")
	fakeStart = time.Unix(1_700_000_000, 0).UTC()
)

func key(seed string) ed25519.PrivateKey {
	h := chain.Sum([]byte(seed))
	return ed25519.NewKeyFromSeed(h[:])
}

func pub(k ed25519.PrivateKey) (out chain.Key) {
	copy(out[:], k.Public().(ed25519.PublicKey))
	return out
}

func id(n byte) (out chain.ID) { out[15] = n; return out }

func (f *fake) block(h int64) Block {
	what := [][]string{
		{"house1 metered slot 170000000", "house2 metered slot 170000000"},
		{"house3 metered slot 170000000", "house4: session 0000..01 metered 412 Wh", "slot 169999999 cleared at 0.193"},
		{"house2: session 0000..02 closed, 2.05 paid"},
	}[h%3]
	return Block{
		Height: h, Time: f.started.Add(time.Duration(h) * 1500 * time.Millisecond), Txs: len(what),
		StateHash: chain.Sum([]byte(fmt.Sprint(h))), What: what,
	}
}

// tick grows the ledger and tells the watchers.
func (f *fake) tick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.height++
	for _, w := range f.watch {
		select {
		case w <- Update{UpdateBlock, f.block(f.height)}:
		default:
		}
		select {
		case w <- Update{UpdateSnapshot, f.snapshot()}:
		default:
		}
	}
}

func (f *fake) snapshot() board.Snapshot {
	return board.Snapshot{
		Gateway: "house4", Seq: uint64(f.height), Time: f.started, Live: true,
		Meters: []board.Meter{
			{ID: "site", Role: "site", Profile: "eastron-sdm630", Quality: "good", PowerW: 3120 + meter.Watt(f.height%7)*13, Import: 81234, Export: 120},
			{ID: "pv", Role: "production", Profile: "sunspec-103", Quality: "good", PowerW: -640, Import: 0, Export: 5210},
			{ID: "cp", Role: "charger", Profile: "eastron-sdm120", Quality: "good", PowerW: 3450, Import: 20412},
		},
		Chargers: []board.Charger{{
			ID: 1, Meter: "cp", State: "charging", Why: "buying neighbours' surplus at 0.193, below the quoted 0.30", Vehicle: "C", Mode: "market",
			Limit: 16000, Current: 15000, PowerW: 3450, Relay: true, Session: openID.String(), SessionWh: 412, MaxWh: 2000, Cap: 300000,
		}, {
			ID: 2, Meter: "cp2", State: "charging", Why: "delivers what was promised", Vehicle: "C", Mode: "market", Actuator: "wallbox", PowerW: -4980, Relay: true, Session: id(8).String(),
			Sale: &board.Sale{PowerW: 5000, Why: "delivers what was promised", SellWh: 900, SellLimit: 100_000, SoldWh: 310, Promised: 42, Short: 3},
		}},
	}
}

func (f *fake) Status(context.Context) (Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Status{
		Gateway: "house4", Version: "0.1.0", Device: pub(key("house4")), Chain: "sunny-street", Currency: "EUR", SlotSeconds: 10, Started: f.started,
		Height: f.height, StateHash: chain.Sum([]byte(fmt.Sprint(f.height))), Peers: 3, Members: 4, Basis: "simulated",
	}, nil
}

func (f *fake) Watch(ctx context.Context) (<-chan Update, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := make(chan Update, 64)
	w <- Update{UpdateSnapshot, f.snapshot()}
	f.watch = append(f.watch, w)
	out := make(chan Update)
	go func() {
		defer close(out)
		for {
			select {
			case u := <-w:
				select {
				case out <- u:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (f *fake) LedgerStatus(context.Context) (LedgerStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := LedgerStatus{
		Status:    ledger.Status{ChainID: "sunny-street", Height: f.height, Members: 4, Validators: 4, OpenSessions: 1, Minted: 50e9},
		StateHash: chain.Sum([]byte(fmt.Sprint(f.height))), Validator: true, Waiting: 1, Blocks: []Block{},
	}
	for h := f.height; h > max(0, f.height-12); h-- {
		l.Blocks = append(l.Blocks, f.block(h))
	}
	return l, nil
}

func (f *fake) Claim(_ context.Context, key []byte) ([]byte, error) {
	return fmt.Appendf(nil, "claim %x", key), nil
}

func (f *fake) Checkpoint(_ context.Context, height int64) (chain.Checkpoint, error) {
	if height > f.height {
		return chain.Checkpoint{}, NotFound("no block %d yet", height)
	}
	k := key("validator")
	set := chain.Validators{{Key: pub(k), Power: chain.ValidatorPower}}
	c := chain.Checkpoint{Version: chain.CheckpointVersion, Set: set, Commit: chain.Commit{Parts: 1, Votes: []chain.Vote{{Time: 1}}}, Header: chain.LedgerHeader{
		Chain: "sunny-street", Height: max(height, 1), Time: 1_764_000_000_000_000_000, Validators: set.Hash(), Next: set.Hash(), Proposer: set[0].Address(),
	}}
	c.Commit.Votes[0].Sig = chain.Sign(k, "", c.Commit.SignBytes(&c.Header, c.Commit.Votes[0]))
	return c, nil
}

func (f *fake) Stores(_ context.Context, w io.Writer) error {
	return f.bundle(BundleQuery{}, w)
}
func (f *fake) Bundle(_ context.Context, q BundleQuery, w io.Writer) error { return f.bundle(q, w) }

func (f *fake) LedgerVerify(ctx context.Context, progress func(VerifyProgress)) (VerifyReport, error) {
	if f.begin != nil {
		for p := range f.begin {
			progress(p)
		}
	}
	return VerifyReport{1, "the genesis", 57, chain.Sum([]byte("57")), []string{}}, ctx.Err()
}

func (f *fake) StateHash(_ context.Context, h int64) (StateHash, error) {
	if h > 57 {
		return StateHash{}, NotFound("no block %d yet", h)
	}
	return StateHash{h, chain.Sum([]byte(fmt.Sprint(h)))}, nil
}

func (f *fake) Genesis(context.Context) ([]byte, error) { return []byte(fakeGenesis), nil }

func (f *fake) Submit(_ context.Context, raw []byte) (TxResult, error) {
	return TxResult{Code: uint32(ledger.CodeFunds), Info: "funds", Height: 58, Hash: chain.Sum(raw)}, nil
}

func (f *fake) Nonce(_ context.Context, k chain.Key) (uint64, error) {
	if k == pub(driver) {
		return 7, nil
	}
	return 1, nil
}

func (f *fake) Accounts(context.Context) ([]Account, error) {
	return []Account{
		{ledger.AccountView{Account: chain.AccountOf(pub(driver)), Balance: 19e9, Held: 6e8, Credits: 25e6, Lots: []ledger.LotView{{Seq: 1, Amount: 25e6, Session: closedID}}}, ""},
		{ledger.AccountView{Account: chain.AccountReserve, Balance: 25e6}, ""},
	}, nil
}

func (f *fake) Account(_ context.Context, a chain.Account) (Account, error) {
	all, _ := f.Accounts(context.Background())
	for _, v := range all {
		if v.Account == a {
			return v, nil
		}
	}
	return Account{}, NotFound("no account %s", a)
}

func (f *fake) views() []ledger.MemberView {
	var out []ledger.MemberView
	for i, n := range names {
		v := ledger.MemberView{Member: chain.Member{Device: pub(key(n)), Name: n, Owner: pub(key("owner" + n)), MaxPower: 22000}, Node: "feeder1", Fee: 10000, Active: true, Power: 1}
		if i < 2 {
			v.Produced = 18000 >> i
		}
		out = append(out, v)
	}
	return out
}

func (f *fake) Members(context.Context) ([]Member, error) {
	var out []Member
	for i, v := range f.views() {
		out = append(out, Member{MemberView: v, Self: i == 3, Connected: i != 2, Newest: chain.Position{Epoch: 1, Number: 40}})
	}
	return out, nil
}

func (f *fake) Peers(context.Context) ([]Peer, error) {
	return []Peer{{Device: pub(key("house1")), Name: "house1", Addr: "/ip4/127.0.0.1/tcp/4001", Since: fakeStart, Direction: "out"}}, nil
}

func (f *fake) ConfirmMeter(_ context.Context, id string) error {
	if id != "house" {
		return NotFound("no meter %q", id)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.confirmed++
	return nil
}

func (f *fake) Mandates(_ context.Context, payer chain.Account) (Mandates, error) {
	return Mandates{Mandates: []ledger.MandateView{{Payer: payer, Used: 3}}, Reserves: []ledger.ReserveView{}}, nil
}

func (f *fake) Failsafe(_ context.Context, id uint8, set *Failsafe) (Failsafe, error) {
	if id != 1 {
		return Failsafe{}, NotFound("no charger %d", id)
	}
	if set != nil {
		return *set, nil
	}
	return Failsafe{Charger: id, Current: 6000, TimeoutMs: 30_000}, nil
}

func (f *fake) Commissioning(_ context.Context, o CommissioningOrder) (Commissioning, error) {
	return Commissioning{On: o.Do == "start"}, nil
}

func (f *fake) Update(_ context.Context, o UpdateOrder) (board.Update, error) {
	return board.Update{Version: "1.0.0", Phase: o.Do}, nil
}

func (f *fake) TestRelay(_ context.Context, o RelayOrder) (board.RelayTest, error) {
	return board.RelayTest{OK: o.Seconds == 2}, nil
}

func (f *fake) ScanLine(_ context.Context, o ScanOrder) (json.RawMessage, error) {
	return json.Marshal(o)
}

func (f *fake) Directions(_ context.Context, o DirectionOrder) error {
	if len(o.Meters) == 0 {
		return Invalid("no meter")
	}
	return nil
}

func (f *fake) CommissionReport(_ context.Context, o ReportOrder) ([]byte, error) {
	return fmt.Appendf(nil, "report by %s, page %t", o.Installer, o.Page), nil
}

func (f *fake) LastReport(context.Context) ([]byte, error) { return []byte("the last report"), nil }

func (f *fake) Chargers(context.Context) ([]board.Charger, error) { return f.snapshot().Chargers, nil }

func (f *fake) OrderCharger(_ context.Context, id uint8, o ChargerOrder) (board.Charger, error) {
	c := f.snapshot().Chargers[0]
	switch {
	case id != c.ID:
		return board.Charger{}, &Error{http.StatusNotFound, "unknown_charger", "this gateway has no charger 7"}
	case o.Limit > 16_000:
		return board.Charger{}, &Error{http.StatusConflict, "above_rating", "32000 mA: charger 1 is rated 16000 mA"}
	}
	c.Mode, c.Limit = o.Mode, o.Limit
	return c, nil
}

func (f *fake) SetPlan(ctx context.Context, id chain.ID, o PlanOrder) (Session, error) {
	s, err := f.Session(ctx, id)
	s.Plan = &board.Plan{Wh: 5000, By: o.By, MaxPrice: o.MaxPrice, Shares: []board.PlanShare{}}
	return s, err
}

func (f *fake) Dim(_ context.Context, o DimOrder) error {
	if o.Limit != 4200 || o.For != time.Hour {
		return Refused("%+v", o)
	}
	return nil
}

func (f *fake) Events(_ context.Context, from, to time.Time) ([]Event, error) {
	return []Event{{Time: fakeStart, Code: "charger.opened", Severity: 2, Subject: "charger-1", Text: from.UTC().String() + to.UTC().String(), Block: chain.Position{Epoch: 1, Number: 3}}}, nil
}

func (f *fake) Meters(context.Context) ([]board.Meter, error) { return f.snapshot().Meters, nil }

func fill(i int, kind string, side chain.Side, wh, local meter.WattHour, price chain.NanoPerWh) ledger.FillView {
	return ledger.FillView{ID: kind + "/" + names[i], Device: pub(key(names[i])), Account: chain.AccountOf(pub(key("owner" + names[i]))), Side: side, Wh: wh, Local: local, Price: price}
}

func (f *fake) slots() []ledger.SlotView {
	var out []ledger.SlotView
	for i := range 30 {
		wave := meter.WattHour(6 + (i*7)%11)
		out = append(out, ledger.SlotView{
			Slot: slotNow - chain.Slot(i), Retail: 300000, FeedIn: 80000, Reported: 4, Fees: 340000,
			Energy: ledger.Energy{Produced: 30, Consumed: 24, Traded: wave, GridImport: 3 + wave/3, GridExport: meter.WattHour(i % 4)},
			Prices: []ledger.PriceView{{Node: "root", Price: 193000}, {Node: "house1", Price: 183000}, {Node: "house2", Price: 181000}, {Node: "house3", Price: 203000}, {Node: "house4", Price: 203000}},
		})
	}
	car := fill(3, "car", chain.Buy, 10, 8, 203000)
	car.Session = openID
	out[0].Height = f.height
	out[0].Energy = ledger.Energy{Produced: 24, Consumed: 24, Traded: 15, GridImport: 2, GridExport: 2}
	out[0].Fills = []ledger.FillView{fill(0, "sell", chain.Sell, 12, 12, 183000), fill(1, "sell", chain.Sell, 5, 3, 181000), fill(2, "buy", chain.Buy, 7, 7, 203000), car}
	return out
}

func (f *fake) ReloadNames(context.Context) (uint64, error) { return 1, nil }

func (f *fake) Guard(context.Context) (guard.Status, error) {
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	secret := func(k guard.Kind, v string) guard.Subject { return guard.Subject{Kind: k, Value: v} }
	return guard.Status{
		Mode: "observe",
		Coverage: []guard.Coverage{
			{Sensor: guard.Domain, Level: guard.None, Reason: "the name server is off: guard.dns.listen in the configuration"},
			{Sensor: guard.Packet, Level: "ring", Seen: 12},
			{Sensor: guard.Process, Level: "connector", Lost: 38, Reason: "ebpf: this kernel describes no types (BTF); ebpf-syscall: grant CAP_BPF and CAP_PERFMON"},
			{Sensor: guard.Load, Level: "partial", Reason: "not available here: temperature"},
		},
		Rules:  []guard.RuleState{{ID: guard.ARPSpoof, Mode: guard.Enforce, InForce: guard.Enforce}, {ID: guard.LoadMiner, Mode: guard.Ask, InForce: guard.Ask}},
		Unable: map[string]string{"kill": "programs of other users cannot be ended: grant CAP_KILL"},
		Told:   map[string]uint64{guard.ARPSpoof: 2}, Silent: []string{"north"},
		Findings: []guard.Finding{
			{Rule: guard.ARPSpoof, Severity: guard.High, Subject: secret(guard.Host, "192.0.2.66"), Count: 2, Last: at, Evidence: map[string]string{"name": "secret.example"}},
			{Rule: guard.LoadBinary, Severity: guard.Critical, Subject: secret(guard.Machine, ""), Count: 1, Last: at},
			{Rule: guard.TCPPortScan, Severity: guard.Medium, Subject: secret(guard.Host, "192.0.2.66"), Count: 14_302, Last: at},
			{Rule: guard.DomainBypass, Severity: guard.Low, Subject: secret(guard.Machine, ""), Count: 9, Last: at},
		},
		Reactions: []guard.Standing{
			{Reaction: guard.Reaction{ID: 12, Action: guard.Block, Rule: guard.ARPSpoof, Subject: secret(guard.Host, "192.0.2.66")}, Since: at, Until: at.Add(time.Hour)},
			{Reaction: guard.Reaction{ID: 14, Action: guard.Refuse, Rule: guard.DomainBypass, Subject: secret(guard.Machine, "")}, Since: at, Until: at.Add(24 * time.Hour)},
		},
		Questions: []guard.Standing{{Reaction: guard.Reaction{ID: 13, Action: guard.Kill, Ask: true, Rule: guard.LoadMiner, Image: "/tmp/secret-miner", Subject: secret(guard.PID, "66@66")}, Since: at, Until: at.Add(time.Hour)}},
	}, nil
}

func (f *fake) GuardReport(_ context.Context, from, to time.Time) (report.Report, error) {
	s, _ := f.Guard(context.Background())
	return report.Make(report.Input{Made: f.started, From: from, To: to, Status: s}), nil
}

func (f *fake) GuardOrder(_ context.Context, o GuardOrder) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.guardOrders = append(f.guardOrders, o)
	return nil
}

func (f *fake) Market(context.Context) (Market, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return NewMarket(ledger.Rules{Currency: "EUR", SlotSeconds: 10}, f.views(), f.slots()), nil
}

func (f *fake) Energy(context.Context) (ledger.Energy, error) {
	return ledger.Energy{Produced: 27000, Consumed: 31400, Traded: 14200, GridImport: 9300, GridExport: 4700, Loss: 200}, nil
}

func (f *fake) Sessions(context.Context) ([]Session, error) {
	at := f.started.UnixMilli()
	s := func(id chain.ID, v ledger.SessionView, name string) Session {
		v.ID, v.Connector, v.Cap, v.Driver, v.DriverKey, v.Gateway = id, 1, 300000, chain.AccountOf(pub(driver)), pub(driver), pub(key(name))
		v.Hold = chain.Nano(v.Cap) * chain.Nano(v.MaxWh)
		return Session{SessionView: v, GatewayName: name}
	}
	return []Session{
		s(openID, ledger.SessionView{State: ledger.SessionCharging, MaxWh: 2000, Wh: 412, LocalWh: 371, OpenedMs: at + 60000, Redeem: true}, "house4"),
		s(closedID, ledger.SessionView{State: ledger.SessionClosed, MaxWh: 4000, Wh: 3870, LocalWh: 3500, Paid: 812_300_000, CreditEarned: 40_615_000, Captured: 812_300_000, Released: 387_700_000, OpenedMs: at, Reason: chain.StopFull}, "house2"),
		s(redeemID, ledger.SessionView{State: ledger.SessionClosed, MaxWh: 1000, Wh: 640, LocalWh: 640, Paid: 98_620_000, CreditRedeemed: 24_900_000, CreditEarned: 4_931_000, Released: 176_480_000, OpenedMs: at + 30000, Reason: chain.StopDriver, Redeem: true, SellWh: 900, Sold: 310, Earned: 54_250_000}, "house4"),
	}, nil
}

func (f *fake) Session(_ context.Context, id chain.ID) (Session, error) {
	all, _ := f.Sessions(context.Background())
	for _, s := range all {
		if s.ID == id {
			return s, nil
		}
	}
	return Session{}, NotFound("no session %s", id)
}

func (f *fake) Quote(_ context.Context, r QuoteRequest) (Quote, error) {
	if r.Connector > 1 {
		return Quote{}, Refused("connector %d: there is 1", r.Connector)
	}
	q := chain.Quote{Version: chain.Version, Chain: "sunny-street", ID: id(9), Gateway: pub(key("house4")), Connector: r.Connector, Driver: r.Driver, Created: 1, Expires: 2, MaxWh: r.MaxWh, Cap: 300000, Hold: chain.Nano(r.MaxWh) * 300000, Redeem: r.Redeem}
	return Quote{Bytes: chain.Marshal(q), ID: q.ID, Gateway: q.Gateway, Driver: q.Driver, Expires: fakeStart, MaxWh: q.MaxWh, Cap: q.Cap, Hold: q.Hold, Redeem: q.Redeem, Words: []string{"at most 0.30 EUR/kWh"}}, nil
}

func (f *fake) StartSession(_ context.Context, q chain.SignedQuote) (Session, error) {
	quote, err := q.Open()
	if err != nil {
		return Session{}, err
	}
	return Session{SessionView: ledger.SessionView{ID: quote.ID, State: ledger.SessionHeld, Driver: chain.AccountOf(quote.Driver), MaxWh: quote.MaxWh, Hold: quote.Hold}, GatewayName: "house4"}, nil
}

func (f *fake) StopSession(ctx context.Context, id chain.ID, _ StopOrder) (Session, error) {
	f.mu.Lock()
	f.stopped = append(f.stopped, id)
	f.mu.Unlock()
	return f.Session(ctx, id)
}

func (f *fake) Receipt(_ context.Context, id chain.ID, format string) ([]byte, error) {
	if id != closedID {
		return nil, errDisk
	}
	return []byte(format + `|{"RV":3.870}|`), nil
}

func (f *fake) Invite(_ context.Context, r InviteRequest) (Invitation, error) {
	return Invitation{"jg1.secret-" + r.Node, fakeStart.Add(r.Valid)}, nil
}

// serve runs a panel on both doors.
func serve(t testing.TB, f *fake) (tcp, control *Client, addr, socket string) {
	t.Helper()
	return serveWith(t, f, func(*Config) {})
}

// serveWith is serve with more in its configuration.
func serveWith(t testing.TB, f *fake, more func(*Config)) (tcp, control *Client, addr, socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "panel") // t.TempDir may be too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if f.started.IsZero() {
		f.started, f.height = fakeStart, 57
	}
	socket = filepath.Join(dir, "control.sock")
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "joulegate_test", Help: "x"}, func() float64 { return 42 }))
	cfg := Config{Backend: f, Listen: "127.0.0.1:0", Hosts: []string{"gate.lan"}, Socket: socket, Metrics: reg}
	more(&cfg)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run did not return")
		}
	})
	tcp, control = NewClient("http://"+s.Addr()+"/"), Dial(socket)
	t.Cleanup(func() { tcp.Close(); control.Close() })
	return tcp, control, s.Addr(), socket
}

// TestClientIsTheBackend: whatever the backend says arrives unchanged through
// both doors.
func TestClientIsTheBackend(t *testing.T) {
	f := &fake{}
	tcp, control, _, _ := serve(t, f)
	ctx := t.Context()
	quote, err := f.Quote(ctx, QuoteRequest{Connector: 1, Driver: pub(driver), MaxWh: 500, Redeem: true})
	if err != nil {
		t.Fatal(err)
	}
	signed := quote.Sign(driver)
	order := SignStop(openID, driver)
	calls := map[string]func(b Backend) (any, error){
		"status":   func(b Backend) (any, error) { return b.Status(ctx) },
		"ledger":   func(b Backend) (any, error) { return b.LedgerStatus(ctx) },
		"signed":   func(b Backend) (any, error) { return b.Checkpoint(ctx, 0) },
		"hash":     func(b Backend) (any, error) { return b.StateHash(ctx, 12) },
		"genesis":  func(b Backend) (any, error) { return b.Genesis(ctx) },
		"nonce":    func(b Backend) (any, error) { return b.Nonce(ctx, pub(driver)) },
		"accounts": func(b Backend) (any, error) { return b.Accounts(ctx) },
		"account":  func(b Backend) (any, error) { return b.Account(ctx, chain.AccountReserve) },
		"members":  func(b Backend) (any, error) { return b.Members(ctx) },
		"peers":    func(b Backend) (any, error) { return b.Peers(ctx) },
		"meters":   func(b Backend) (any, error) { return b.Meters(ctx) },
		"chargers": func(b Backend) (any, error) { return b.Chargers(ctx) },
		"events":   func(b Backend) (any, error) { return b.Events(ctx, fakeStart, time.Time{}) },
		"market":   func(b Backend) (any, error) { return b.Market(ctx) },
		"energy":   func(b Backend) (any, error) { return b.Energy(ctx) },
		"sessions": func(b Backend) (any, error) { return b.Sessions(ctx) },
		"session":  func(b Backend) (any, error) { return b.Session(ctx, closedID) },
		"quote": func(b Backend) (any, error) {
			return b.Quote(ctx, QuoteRequest{Connector: 1, Driver: pub(driver), MaxWh: 500})
		},
		"start":     func(b Backend) (any, error) { return b.StartSession(ctx, signed) },
		"stop":      func(b Backend) (any, error) { return b.StopSession(ctx, openID, order) },
		"receipt":   func(b Backend) (any, error) { return b.Receipt(ctx, closedID, "xml") },
		"not found": func(b Backend) (any, error) { return b.StateHash(ctx, 58) },
		"refused": func(b Backend) (any, error) {
			return b.Quote(ctx, QuoteRequest{Connector: 2, Driver: pub(driver), MaxWh: 500})
		},
	}
	for name, call := range calls {
		want, wantErr := call(f)
		for door, c := range map[string]*Client{"tcp": tcp, "control": control} {
			got, err := call(c)
			if !reflect.DeepEqual(err, wantErr) {
				t.Errorf("%s through %s: error %v, want %v", name, door, err, wantErr)
			}
			if wantErr == nil && asJSON(got) != asJSON(want) {
				t.Errorf("%s through %s:\n%s\nwant\n%s", name, door, asJSON(got), asJSON(want))
			}
		}
	}
	if len(f.stopped) != 3 {
		t.Errorf("stopped %d times, want 3", len(f.stopped))
	}
}

func asJSON(v any) string {
	if b, ok := v.([]byte); ok {
		return string(b)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestChargerOrdersAreRefusedByName: whoever asks learns which limit refused.
func TestChargerOrdersAreRefusedByName(t *testing.T) {
	_, control, _, _ := serve(t, &fake{})
	for name, c := range map[string]struct {
		id   uint8
		o    ChargerOrder
		code string
	}{
		"above the rating": {1, ChargerOrder{Do: "limit", Limit: 32_000}, "above_rating"},
		"unknown charger":  {7, ChargerOrder{Do: "stop"}, "unknown_charger"},
		"unknown order":    {1, ChargerOrder{Do: "explode"}, "invalid"},
		"no order":         {1, ChargerOrder{}, "invalid"},
	} {
		_, err := control.OrderCharger(t.Context(), c.id, c.o)
		var e *Error
		if !errors.As(err, &e) || e.Code != c.code || e.Message == "" {
			t.Errorf("%s: %v, want code %s", name, err, c.code)
		}
	}
}

// TestAdministrationIsLocal: what needs no signature of its own passes only
// through the socket.
func TestAdministrationIsLocal(t *testing.T) {
	f := &fake{}
	tcp, control, _, socket := serve(t, f)
	ctx := t.Context()
	tx := chain.SignTx("sunny-street", 1, chain.TxMint, chain.Mint{To: chain.AccountOf(pub(driver)), Amount: 1, BankRef: "x"}, key("operator"))
	calls := map[string]func(b Backend) (any, error){
		"claim":         func(b Backend) (any, error) { return b.Claim(ctx, []byte("key")) },
		"submit":        func(b Backend) (any, error) { return b.Submit(ctx, tx) },
		"invite":        func(b Backend) (any, error) { return b.Invite(ctx, InviteRequest{Node: "feeder1", Valid: time.Hour}) },
		"verify":        func(b Backend) (any, error) { return b.LedgerVerify(ctx, nil) },
		"confirm":       func(b Backend) (any, error) { return nil, b.ConfirmMeter(ctx, "house") },
		"charger":       func(b Backend) (any, error) { return b.OrderCharger(ctx, 1, ChargerOrder{Do: "limit", Limit: 8000}) },
		"commissioning": func(b Backend) (any, error) { return b.Commissioning(ctx, CommissioningOrder{Do: "start"}) },
		"update":        func(b Backend) (any, error) { return b.Update(ctx, UpdateOrder{Do: "check"}) },
		"relay test":    func(b Backend) (any, error) { return b.TestRelay(ctx, RelayOrder{1, 2}) },
		"scan":          func(b Backend) (any, error) { return b.ScanLine(ctx, ScanOrder{"rs485", "1-3"}) },
		"directions": func(b Backend) (any, error) {
			return nil, b.Directions(ctx, DirectionOrder{"a kettle", map[string][]commission.Line{"house": {{Phase: 1, StepW: 2000, Wiring: identify.Right}}}})
		},
		"plan": func(b Backend) (any, error) {
			return b.SetPlan(ctx, openID, PlanOrder{By: fakeStart.Add(time.Hour), MaxPrice: 250_000})
		},
		"dim": func(b Backend) (any, error) { return nil, b.Dim(ctx, DimOrder{Limit: 4200, For: time.Hour}) },
		"unsigned stop": func(b Backend) (any, error) {
			return b.StopSession(ctx, openID, StopOrder{})
		},
		"stop by a stranger": func(b Backend) (any, error) { return b.StopSession(ctx, openID, SignStop(openID, key("stranger"))) },
		"stop by an old order": func(b Backend) (any, error) {
			return b.StopSession(ctx, openID, SignStop(closedID, driver))
		},
	}
	for name, call := range calls {
		if _, err := call(tcp); err == nil {
			t.Errorf("%s passed the TCP door", name)
		}
		want, _ := call(f)
		if got, err := call(control); err != nil || asJSON(got) != asJSON(want) {
			t.Errorf("%s through the socket: %s %v, want %s", name, asJSON(got), err, asJSON(want))
		}
	}
	// A report is made through the socket; who comes by TCP gets the last one.
	if b, err := control.CommissionReport(ctx, ReportOrder{"A & B", true}); err != nil || string(b) != "report by A & B, page true" {
		t.Errorf("report: %q %v", b, err)
	}
	if b, err := tcp.CommissionReport(ctx, ReportOrder{"A & B", true}); err != nil || string(b) != "the last report" {
		t.Errorf("report by TCP: %q %v", b, err)
	}
	fi, err := os.Stat(socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v, want 0600", fi.Mode(), err)
	}
	// The gateway's own trouble is told locally and logged, not shown around.
	_, local := control.Receipt(ctx, openID, "ocmf")
	_, remote := tcp.Receipt(ctx, openID, "ocmf")
	if local == nil || local.Error() != errDisk.Error() || remote == nil || strings.Contains(remote.Error(), "secret-path") {
		t.Errorf("locally %v, remotely %v", local, remote)
	}
}

func TestVerifyShowsProgress(t *testing.T) {
	f := &fake{begin: make(chan VerifyProgress)}
	_, control, _, _ := serve(t, f)
	seen := make(chan VerifyProgress, 10)
	done := make(chan error, 1)
	go func() {
		r, err := control.LedgerVerify(t.Context(), func(p VerifyProgress) { seen <- p })
		if err == nil && r.Height != 57 {
			err = fmt.Errorf("height %d", r.Height)
		}
		done <- err
	}()
	f.begin <- VerifyProgress{10, 57}
	if p := <-seen; p != (VerifyProgress{10, 57}) { // arrives while it still runs
		t.Errorf("progress %+v", p)
	}
	if _, err := control.LedgerVerify(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "being made: try again") {
		t.Errorf("a second verification at the same time: %v", err)
	}
	close(f.begin)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLive(t *testing.T) {
	f := &fake{}
	tcp, _, _, _ := serve(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	updates, err := tcp.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := <-updates
	var snap board.Snapshot
	if err := json.Unmarshal(first.Data.(json.RawMessage), &snap); err != nil || first.Event != UpdateSnapshot || len(snap.Meters) != 3 {
		t.Fatalf("first update %s %s: %v", first.Event, first.Data, err)
	}
	f.tick()
	var b Block
	if u := <-updates; u.Event != UpdateBlock || json.Unmarshal(u.Data.(json.RawMessage), &b) != nil || b.Height != 58 {
		t.Fatalf("after a block: %s %s", u.Event, u.Data)
	}
	cancel()
	for range updates { // ends
	}
}

func TestWatchersAreBounded(t *testing.T) {
	tcp, _, _, _ := serve(t, &fake{})
	for range MaxWatchers {
		if _, err := tcp.Watch(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var e *Error
	if _, err := tcp.Watch(t.Context()); !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable {
		t.Errorf("one watcher too many: %v", err)
	}
}

// TestHostileRequests: every refusal has the status, the JSON form and the
// headers that it must have, and none reaches the backend.
func TestHostileRequests(t *testing.T) {
	f := &fake{}
	_, _, addr, _ := serve(t, f)
	quote, _ := f.Quote(t.Context(), QuoteRequest{Connector: 1, Driver: pub(driver), MaxWh: 500})
	good := quote.Sign(driver)
	b64 := base64.StdEncoding.EncodeToString
	type header map[string]string
	isJSON := header{"Content-Type": "application/json"}
	for _, c := range []struct {
		name, method, path, body string
		header                   header
		status                   int
	}{
		{"fine", "GET", "/api/v1/status", "", nil, 200},
		{"own name", "GET", "/api/v1/status", "", header{"Host": "gate.lan:8080"}, 200},
		{"localhost", "GET", "/api/v1/status", "", header{"Host": "localhost"}, 200},
		{"IPv6", "GET", "/api/v1/status", "", header{"Host": "[fe80::1]:8080"}, 200},
		{"DNS rebinding", "GET", "/api/v1/status", "", header{"Host": "evil.example"}, 421},
		{"DNS rebinding to a page", "GET", "/", "", header{"Host": "evil.example"}, 421},
		{"DNS rebinding to metrics", "GET", "/metrics", "", header{"Host": "127.0.0.1.evil.example"}, 421},
		{"cross-site post", "POST", "/api/v1/sessions", `{}`, header{"Content-Type": "application/json", "Origin": "http://evil.example"}, 403},
		{"cross-site post of a new browser", "POST", "/api/v1/sessions", `{}`, header{"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, 403},
		{"form post", "POST", "/api/v1/sessions", "a=b", header{"Content-Type": "text/plain"}, 415},
		{"no type", "POST", "/api/v1/sessions", "{}", nil, 415},
		{"not JSON", "POST", "/api/v1/sessions", "{", isJSON, 400},
		{"two documents", "POST", "/api/v1/sessions/quote", "{} {}", isJSON, 400},
		{"unknown key", "POST", "/api/v1/sessions/quote", `{"connector":1,"surprise":1}`, isJSON, 400},
		{"nothing asked", "POST", "/api/v1/sessions/quote", `{}`, isJSON, 400},
		{"negative energy", "POST", "/api/v1/sessions/quote", `{"connector":1,"max_wh":-5,"driver":"` + pub(driver).String() + `"}`, isJSON, 400},
		{"oversize", "POST", "/api/v1/sessions", `{"quote":"` + strings.Repeat("A", MaxBody) + `"}`, isJSON, 413},
		{"unsigned quote", "POST", "/api/v1/sessions", `{"quote":"` + b64(good.Quote) + `","sig":"` + b64(make([]byte, 64)) + `"}`, isJSON, 400},
		{"signed quote", "POST", "/api/v1/sessions", `{"quote":"` + b64(good.Quote) + `","sig":"` + b64(good.Sig) + `"}`, isJSON, 200},
		{"bad id", "GET", "/api/v1/sessions/..%2f..%2fetc", "", nil, 400},
		{"bad account", "GET", "/api/v1/accounts/sys:nobody", "", nil, 400},
		{"bad key", "GET", "/api/v1/nonce?key=zz", "", nil, 400},
		{"bad height", "GET", "/api/v1/ledger/hash?height=-1", "", nil, 400},
		{"bad format", "GET", "/api/v1/receipts/" + closedID.String() + "?format=exe", "", nil, 400},
		{"no such endpoint", "GET", "/api/v1/passwd", "", nil, 404},
		{"wrong method", "DELETE", "/api/v1/status", "", nil, 404},
		{"control only", "POST", "/api/v1/tx", `{"envelope":""}`, isJSON, 404},
		{"no such page", "GET", "/etc/passwd", "", nil, 404},
		{"page", "GET", "/", "", nil, 200},
		{"metrics", "GET", "/metrics", "", nil, 200},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+addr+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range c.header {
			req.Header.Set(k, v)
		}
		if h := c.header["Host"]; h != "" {
			req.Host = h
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != c.status {
			t.Errorf("%s: %s %s answered %d, want %d: %s", c.name, c.method, c.path, res.StatusCode, c.status, body)
		}
		var e struct{ Error, Code string }
		if strings.HasPrefix(c.path, "/api/") && c.status != 200 && (json.Unmarshal(body, &e) != nil || e.Error == "" || e.Code == "") {
			t.Errorf("%s: the refusal is not {error, code}: %s", c.name, body)
		}
		if res.Header.Get("Access-Control-Allow-Origin") != "" || !strings.Contains(res.Header.Get("Content-Security-Policy"), "default-src 'none'") || res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", c.name, res.Header)
		}
	}
}

// TestConnectionsAreBounded: the next connection waits until an earlier one
// has closed.
func TestConnectionsAreBounded(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limit(ln, 2)
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for range 2 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	third := make(chan error, 1)
	go func() { _, err := l.Accept(); third <- err }()
	select {
	case err := <-third:
		t.Fatalf("a third connection was accepted: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	conns[0].Close()
	if err := <-third; err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error, 1)
	go func() { _, err := l.Accept(); blocked <- err }()
	l.Close()
	if err := <-blocked; err == nil {
		t.Error("Accept after Close")
	}
}

func TestSocketIsTakenCarefully(t *testing.T) {
	_, _, addr, socket := serve(t, &fake{})
	if _, err := New(Config{Backend: &fake{}, Socket: socket}); err == nil || !strings.Contains(err.Error(), "another gateway") {
		t.Errorf("a second gateway on the same socket: %v", err)
	}
	if _, err := New(Config{Backend: &fake{}, Listen: addr}); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("an address in use: %v", err)
	}
	dir, err := os.MkdirTemp("", "panel")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Backend: &fake{}, Socket: file}); err == nil {
		t.Error("a file of that name was replaced")
	}
	// A socket that a killed gateway left behind is no obstacle.
	stale := filepath.Join(dir, "stale.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	s, err := New(Config{Backend: &fake{}, Socket: stale})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("the socket stays after the end: %v", err)
	}
	if _, err := New(Config{Backend: &fake{}, Socket: filepath.Join(dir, strings.Repeat("x", 120))}); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a path too long for a socket: %v", err)
	}
}

func TestMarketTellsWhoAndWhy(t *testing.T) {
	f := &fake{height: 57}
	m, _ := f.Market(t.Context())
	want := []House{
		{Name: "house1", Price: 183000, Sold: 12},
		{Name: "house2", Price: 181000, Sold: 3, Export: 2},
		{Name: "house3", Price: 203000, Bought: 7},
		{Name: "house4", Price: 203000, Bought: 8, Charged: 10, Import: 2},
	}
	if !reflect.DeepEqual(m.Houses, want) {
		t.Errorf("houses\n%+v\nwant\n%+v", m.Houses, want)
	}
	if m.Last.Slot != slotNow || len(m.History) != 30 || m.History[29].Price != 193000 || m.History[0].Slot != slotNow-29 {
		t.Errorf("last %d, history %d", m.Last.Slot, len(m.History))
	}
	rules, members := ledger.Rules{Currency: "EUR", SlotSeconds: 10}, f.views()
	for _, c := range []struct {
		fills []ledger.FillView
		want  string
	}{
		{nil, "Nobody used"},
		{[]ledger.FillView{fill(0, "buy", chain.Buy, 5, 0, 0)}, "bought from the grid at 0.30 EUR/kWh"},
		{[]ledger.FillView{fill(0, "sell", chain.Sell, 5, 0, 0)}, "5 Wh went to the grid for 0.08 EUR/kWh"},
		{[]ledger.FillView{fill(0, "sell", chain.Sell, 5, 0, 0), fill(1, "buy", chain.Buy, 5, 0, 0)}, "did not meet"},
		{[]ledger.FillView{fill(0, "sell", chain.Sell, 5, 5, 0), fill(1, "buy", chain.Buy, 9, 5, 0)}, "house1 sold 5 Wh to house2. There was less surplus"},
		{[]ledger.FillView{fill(0, "sell", chain.Sell, 9, 5, 0), fill(1, "buy", chain.Buy, 5, 5, 0)}, "more surplus than demand"},
	} {
		got := NewMarket(rules, members, []ledger.SlotView{{Slot: 1, Retail: 300000, FeedIn: 80000, Fills: c.fills}}).Why
		if !strings.Contains(got, c.want) {
			t.Errorf("%q does not say %q", got, c.want)
		}
	}
	if got := NewMarket(rules, nil, nil); got.Last != nil || got.Why == "" {
		t.Errorf("before the first slot: %+v", got)
	}
}

func TestPerKWh(t *testing.T) {
	for p, want := range map[chain.NanoPerWh]string{0: "0.00", 300000: "0.30", 193500: "0.1935", 1: "0.000001", -80000: "-0.08", 1_250_000: "1.25"} {
		if got := PerKWh(p, "EUR"); got != want+" EUR/kWh" {
			t.Errorf("PerKWh(%d) = %q, want %s", p, got, want)
		}
	}
}

// TestPagesStandAlone: nothing on the pages leads to another host, and every
// file they name is there.
func TestPagesStandAlone(t *testing.T) {
	p, err := loadPages()
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"/", "/settings"} {
		html := string(p[page].data)
		for _, attr := range []string{`src="`, `href="`} {
			for _, part := range strings.Split(html, attr)[1:] {
				ref, _, _ := strings.Cut(part, `"`)
				if _, ok := p["/"+strings.TrimPrefix(ref, "/")]; !ok && !strings.HasPrefix(ref, "#") && !strings.HasPrefix(ref, "/api/v1/") && ref != "/metrics" && ref != "/verify" {
					t.Errorf("%s names %q, which is not embedded", page, ref)
				}
			}
		}
	}
	for name, a := range p {
		text := strings.ReplaceAll(string(a.data), "http://www.w3.org/2000/svg", "")
		for _, bad := range []string{"http://", "https://", "innerHTML", " style=", "eval("} {
			if strings.Contains(text, bad) {
				t.Errorf("%s contains %q", name, bad)
			}
		}
	}
}

// FuzzBody: no body makes a handler panic or answer anything but JSON.
func FuzzBody(f *testing.F) {
	for _, s := range []string{`{}`, `{"quote":"AA==","sig":"AA=="}`, `{"connector":1,"max_wh":9223372036854775807,"driver":"00"}`, `{"driver":"` + pub(driver).String() + `","sig":"AAAA"}`, `[`, `{"envelope":"g0FAQQ=="}`} {
		f.Add(s)
	}
	srv, err := New(Config{Backend: &fake{started: fakeStart, height: 57}})
	if err != nil {
		f.Fatal(err)
	}
	h := srv.Handler(true)
	f.Fuzz(func(t *testing.T, text string) {
		for _, path := range []string{"/sessions", "/sessions/quote", "/sessions/" + openID.String() + "/stop", "/tx", "/grid/invite"} {
			req, _ := http.NewRequest("POST", "http://localhost"+Prefix+path, strings.NewReader(text))
			req.Header.Set("Content-Type", "application/json")
			w := &recorder{header: http.Header{}}
			h.ServeHTTP(w, req)
			if w.status == 500 || !json.Valid(w.body) {
				t.Errorf("%s answered %d: %s", path, w.status, w.body)
			}
		}
	})
}

type recorder struct {
	header http.Header
	status int
	body   []byte
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(s int)           { r.status = s }
func (r *recorder) Write(b []byte) (int, error) { r.body = append(r.body, b...); return len(b), nil }

// asksAgain is a client that asks for the next long piece of work the moment
// it sees the end of an answer.
type asksAgain struct {
	*httptest.ResponseRecorder
	end string
	ask func()
}

func (a *asksAgain) Write(b []byte) (int, error) {
	if a.end != "" && strings.Contains(string(b), a.end) {
		a.end = ""
		a.ask()
	}
	return a.ResponseRecorder.Write(b)
}

func (a *asksAgain) SetReadDeadline(time.Time) error  { return nil }
func (a *asksAgain) SetWriteDeadline(time.Time) error { return nil }

// A client that has its answer may ask for the next: the gateway must not
// tell it that the work which it just received is still going on.
func TestLongWorkInTurn(t *testing.T) {
	s := &Server{cfg: Config{Backend: &fake{}}, log: slog.New(slog.DiscardHandler)}
	for _, c := range []struct {
		path, end string
		serve     func(http.ResponseWriter, *http.Request) error
	}{
		{"/guard/report", "</html>", s.guardReport},
		{"/guard/report?format=json", "}", s.guardReport},
		{"/ledger/verify", `"report":`, s.ledgerVerify},
	} {
		asked, again := false, error(nil)
		w := &asksAgain{httptest.NewRecorder(), c.end, func() {
			asked, again = true, s.alone(func() error { return nil })
		}}
		if err := c.serve(w, httptest.NewRequest(http.MethodGet, c.path, nil)); err != nil || !asked || again != nil {
			t.Errorf("%s: %v; asked again: %v, %v", c.path, err, asked, again)
		}
	}
}
