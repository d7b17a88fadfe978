package consensus

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// patience is how long anything may take on a busy machine.
const patience = 60 * time.Second

var quick = Timing{Commit: 50 * time.Millisecond, Propose: time.Second, Vote: 300 * time.Millisecond, Gossip: 20 * time.Millisecond}

// keyFrom makes a person's or device's key from a name.
func keyFrom(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(k ed25519.PrivateKey) chain.Key { return chain.Key(k.Public().(ed25519.PublicKey)) }

// operators is how many operators a world has: each has nonces of its own.
const operators = 16

func operator(i int) ed25519.PrivateKey { return keyFrom(fmt.Sprintf("operator %d", i)) }

// world is a microgrid of gateways in this process, on real connections.
type world struct {
	t       testing.TB
	dir     string
	genesis string
	timing  Timing
	mu      sync.Mutex
	nodes   []*gateway
	nonces  [operators]uint64
	wrap    func(host.Host) host.Host // nil: hosts as they are
	keep    time.Duration             // of blocks; 0: for ever
	change  func(*gateway, *Config)   // nil: as below
}

type gateway struct {
	world  *world
	name   string
	home   string
	key    ed25519.PrivateKey
	member chain.Member
	addr   peer.AddrInfo // empty until the first start
	host   host.Host
	eng    *Engine
	up     atomic.Pointer[Engine] // what runs, for the others
	cancel context.CancelFunc
	done   chan error
}

func newWorld(t testing.TB, founders int) *world {
	t.Helper()
	return foundedAt(t, founders, time.Now().Add(-time.Second))
}

func foundedAt(t testing.TB, founders int, at time.Time) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), timing: quick}
	w.genesis = filepath.Join(w.dir, "genesis.json")
	g := testGenesis()
	for i := range founders {
		n := w.newGateway(fmt.Sprintf("house%d", i+1))
		g.Members = append(g.Members, chain.Founder{Member: n.member, Node: "root"})
	}
	if _, err := WriteGenesis(w.genesis, g, at); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, n := range w.nodes {
			n.stop()
		}
	})
	return w
}

func testGenesis() chain.Genesis {
	g := chain.Genesis{
		Version: chain.Version, ChainID: "test-grid", SlotSeconds: 900, GraceSeconds: 60, Currency: "EUR", MinorDigits: 2,
		Retail: 300_000, FeedIn: 80_000, Nodes: []chain.Node{{ID: "root"}},
		Credit: chain.Credit{EarnPPM: 50_000, RedeemPPM: 500_000}, Transfers: true, StartSeconds: 600, Basis: "simulated",
	}
	for i := range operators {
		g.Operators = append(g.Operators, public(operator(i)))
	}
	return g
}

func (w *world) newGateway(name string) *gateway {
	w.t.Helper()
	n := &gateway{world: w, name: name, home: filepath.Join(w.dir, name), key: keyFrom("device " + name)}
	val, err := InitValidator(n.home)
	if err != nil {
		w.t.Fatal(err)
	}
	n.member = chain.Member{
		Device: public(n.key), Name: name, Owner: public(keyFrom("owner " + name)), Validator: val, MaxPower: 17_000,
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes = append(w.nodes, n)
	return n
}

// addresses is the address book of the microgrid.
func (w *world) addresses() []peer.AddrInfo {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []peer.AddrInfo
	for _, n := range w.nodes {
		if n.addr.ID != "" {
			out = append(out, n.addr)
		}
	}
	return out
}

// newHost makes a host as a gateway would, without a gate.
func newHost(key ed25519.PrivateKey, listen string) host.Host {
	priv, err := crypto.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		panic(err)
	}
	h, err := libp2p.New(libp2p.Identity(priv), libp2p.ListenAddrStrings(listen),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, noise.New), libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.DisableRelay(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		panic(err)
	}
	return h
}

// open makes host and engine without running it.
func (n *gateway) open() *gateway {
	n.world.t.Helper()
	listen := "/ip4/127.0.0.1/tcp/0"
	if len(n.addr.Addrs) > 0 {
		listen = n.addr.Addrs[0].String()
	}
	n.host = newHost(n.key, listen)
	if n.world.wrap != nil {
		n.host = n.world.wrap(n.host)
	}
	n.world.mu.Lock()
	n.addr = peer.AddrInfo{ID: n.host.ID(), Addrs: n.host.Addrs()}
	n.world.mu.Unlock()
	c := Config{
		Home: n.home, GenesisFile: n.world.genesis, Host: n.host, KeepBlocks: n.world.keep, Peers: n.world.addresses, Timing: n.world.timing, Log: testLog(n.world.t, n.name),
	}
	if n.world.change != nil {
		n.world.change(n, &c)
	}
	var err error
	n.eng, err = Open(context.Background(), c)
	if err != nil {
		n.host.Close()
		n.world.t.Fatalf("open %s: %v", n.name, err)
	}
	return n
}

func (n *gateway) run() *gateway {
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan error, 1)
	eng := n.eng
	n.up.Store(eng)
	go func() { n.done <- eng.Run(ctx) }()
	return n
}

func (n *gateway) start() *gateway { n.world.t.Helper(); return n.open().run() }

func (n *gateway) stop() {
	if n.cancel == nil {
		return
	}
	n.up.Store(nil)
	n.cancel()
	n.cancel = nil
	select {
	case err := <-n.done:
		if err != nil {
			n.world.t.Errorf("%s stopped with %v", n.name, err)
		}
	case <-time.After(patience):
		n.world.t.Errorf("%s does not stop", n.name)
	}
	if n.host.Network().Peers(); n.host.ID() == "" {
		n.world.t.Errorf("%s: the engine closed a host that is not its own", n.name)
	}
	n.host.Close()
}

// testLog shows warnings of a failing test; JOULEGATE_TEST_LOG=debug shows all.
func testLog(t testing.TB, name string) *slog.Logger {
	level := slog.LevelWarn
	if os.Getenv("JOULEGATE_TEST_LOG") == "debug" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("gateway", name)
}

// mint returns the next transaction of an operator: amount for the account of
// the person called to.
func (w *world) mint(op int, to string, amount chain.Nano) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nonces[op]++
	n := w.nonces[op]
	return chain.SignTx("test-grid", n, chain.TxMint, chain.Mint{
		To: account(to), Amount: amount, BankRef: fmt.Sprintf("ref-%d-%d", op, n),
	}, operator(op))
}

func account(person string) chain.Account { return chain.AccountOf(public(keyFrom(person))) }

// submit commits tx through n.
func (n *gateway) submit(tx []byte) Result {
	n.world.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := n.eng.Submit(ctx, tx)
	if err != nil || r.Code != ledger.CodeOK || r.Height == 0 {
		n.world.t.Fatalf("%s: submit: %+v, %v (status %+v)", n.name, r, err, n.eng.Status())
	}
	return r
}

func (n *gateway) balance(person string) (b chain.Nano) {
	n.world.t.Helper()
	if err := n.eng.View(func(st ledger.State) {
		if v := st.Get(ledger.AccountKey(account(person))); v != nil {
			var err error
			if b, err = ledger.ParseBalance(v); err != nil {
				n.world.t.Error(err)
			}
		}
	}); err != nil {
		n.world.t.Fatal(err)
	}
	return b
}

// reach waits until n has committed height, woken by its blocks.
func (n *gateway) reach(height int64) {
	n.world.t.Helper()
	n.until(fmt.Sprintf("height %d", height), func(s Status) bool { return s.Height >= height })
}

// until waits for a condition, woken by blocks and, for what no block tells,
// every 50 ms.
func (n *gateway) until(what string, ok func(Status) bool) {
	n.world.t.Helper()
	defer func(t0 time.Time) {
		n.world.t.Logf("%s: %s after %v", n.name, what, time.Since(t0).Round(time.Millisecond))
	}(time.Now())
	blocks, cancel, err := n.eng.Subscribe(1)
	if err != nil {
		n.world.t.Fatal(err)
	}
	defer cancel()
	limit := time.After(patience)
	for !ok(n.eng.Status()) {
		select {
		case <-blocks:
		case <-time.After(50 * time.Millisecond):
		case <-limit:
			n.world.t.Fatalf("%s: no %s after %v: %+v", n.name, what, patience, n.eng.Status())
		}
	}
}

// agree checks that all have one app hash at a height that all have.
func agree(t testing.TB, nodes ...*gateway) {
	t.Helper()
	low := nodes[0].eng.Status().Height
	for _, n := range nodes {
		low = min(low, n.eng.Status().Height)
	}
	want, err := nodes[0].eng.AppHashAt(low)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if got, err := n.eng.AppHashAt(low); err != nil || got != want {
			t.Errorf("height %d: %s has app hash %s (%v), %s has %s", low, n.name, got, err, nodes[0].name, want)
		}
	}
}
