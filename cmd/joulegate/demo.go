package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/tools/sim/house"
	"github.com/joulegate/joulegate/tools/sim/street"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func newDemoCmd() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch a neighbourhood on this machine",
		Long: `Starts a neighbourhood with nothing installed beside this program. Each gateway is
a process of its own and reads Modbus RTU frames over its own pseudo-terminal.
This process plays the physics: sun, houses, cars. A car draws current only if
its gateway has closed the relay. Cars arrive, drivers accept a price, neighbours
sell their surplus, sessions are settled, discount credit is earned and spent.

Without --for it prints the panels' addresses and runs until interrupted.`,
		Example: "  joulegate demo\n  joulegate demo --for 2m --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.gateways < 1 || o.gateways > 16 {
				return usageError{fmt.Errorf("--gateways %d: 1 to 16", o.gateways)}
			}
			if o.duration < 0 {
				return usageError{fmt.Errorf("--for %s: not negative", o.duration)}
			}
			if !cmd.Flags().Changed("state") {
				dir, err := os.MkdirTemp("", "joulegate-demo-")
				if err != nil {
					return err
				}
				o.dir, o.temporary = dir, true
			} else {
				o.dir = string(stateOf(cmd))
			}
			return runDemo(cmd, o)
		},
	}
	f := c.Flags()
	f.DurationVar(&o.duration, "for", 0, "end by itself after this `DURATION` and print a summary")
	f.IntVar(&o.gateways, "gateways", 4, "number of houses, 1 to 16")
	f.Uint64Var(&o.seed, "seed", 1, "of sun, houses and cars")
	return c
}

type demoOptions struct {
	duration  time.Duration
	gateways  int
	seed      uint64
	dir       string
	temporary bool // dir was made for this run
}

// demo is a running demonstration.
type demo struct {
	demoOptions
	out     io.Writer // progress, for people
	live    bool      // out is a terminal: one line that overwrites itself
	start   time.Time
	street  *street.Street
	grid    *demoGrid
	clients []*panel.Client
	procs   []*child

	mu       sync.Mutex
	sessions []demoSession
}

type demoSession struct {
	id      chain.ID
	driver  string
	gateway int
}

// Limits of the path of a Unix socket on Linux (sun_path), less the longest
// name below the demo's folder.
const maxDemoDir = 108 - len("/xxxxxx99/control.sock") - 1

func runDemo(cmd *cobra.Command, o demoOptions) (err error) {
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	if len(o.dir) > maxDemoDir {
		return fmt.Errorf("--state %s: the path is too long for Unix sockets below it, at most %d characters", o.dir, maxDemoDir)
	}
	if entries, err := os.ReadDir(o.dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("--state %s is not empty: every demo founds a new microgrid, give it an empty folder", o.dir)
	}
	if o.temporary {
		defer func() {
			if err == nil {
				os.RemoveAll(o.dir)
			}
		}()
	}
	d := &demo{demoOptions: o, out: cmd.ErrOrStderr(), start: time.Now()}
	if f, ok := d.out.(interface{ Fd() uintptr }); ok {
		d.live = terminal(f.Fd())
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()

	d.say("making %d houses in %s", o.gateways, o.dir)
	if d.street, err = street.New(street.Default(o.dir, o.seed, o.gateways)); err != nil {
		return err
	}
	defer d.street.Close()
	physics := make(chan error, 1)
	worlds, endWorld := context.WithCancel(context.WithoutCancel(ctx))
	go func() { physics <- d.street.Run(worlds) }()
	defer func() {
		endWorld()
		err = errors.Join(err, <-physics)
	}()

	if d.grid, err = provision(o.dir, d.street.Houses()); err != nil {
		return err
	}
	d.say("keys, genesis and configurations written; starting %d gateways", o.gateways)
	defer func() { err = errors.Join(err, d.stopAll()) }()
	if err := d.startAll(ctx, cancel); err != nil {
		return err
	}
	if err := d.fund(ctx); err != nil {
		return err
	}
	d.banner()

	end := ctx
	if o.duration > 0 {
		var stop context.CancelFunc
		end, stop = context.WithDeadline(ctx, d.start.Add(o.duration))
		defer stop()
	}
	d.play(end)
	if err := context.Cause(ctx); err != nil && cmd.Context().Err() == nil {
		return err // a gateway died
	}
	if o.duration == 0 {
		d.say("stopping")
		return nil
	}
	if cmd.Context().Err() != nil {
		return errors.New("interrupted before the time was over")
	}
	return d.summarise(ctx, cmd)
}

// say prints a line of progress.
func (d *demo) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.live {
		fmt.Fprint(d.out, "\r\x1b[K")
	}
	fmt.Fprintf(d.out, "%5.1fs  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

// child is a gateway's process.
type child struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // why, after done
}

// startAll starts the gateways and waits until all are connected. If one ends
// by itself later, fail is called.
func (d *demo) startAll(ctx context.Context, fail context.CancelFunc) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, gw := range d.grid.gateways {
		logFile := gw.state.path("log")
		f, err := os.Create(logFile)
		if err != nil {
			return err
		}
		c := exec.Command(self, "run", "--config", gw.config, "--state", string(gw.state))
		c.Stdout, c.Stderr = f, f
		// Own process group: Ctrl-C reaches this process, which then stops
		// them in order. If this process is killed, they get SIGTERM.
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
		err = c.Start()
		f.Close()
		if err != nil {
			return fmt.Errorf("start gateway %s: %w", gw.house.Name, err)
		}
		p := &child{name: gw.house.Name, cmd: c, log: logFile, done: make(chan struct{})}
		d.procs = append(d.procs, p)
		go func() {
			p.err = c.Wait()
			close(p.done)
		}()
		d.clients = append(d.clients, panel.Dial(gw.state.control()))
	}
	if err := d.writeIndex(); err != nil {
		return err
	}
	waiting, stop := context.WithTimeout(ctx, 60*time.Second)
	defer stop()
	for i, c := range d.clients {
		for {
			s, err := c.Status(waiting)
			if err == nil && s.Peers >= len(d.clients)-1 {
				d.say("%s is connected with its %d neighbours", d.procs[i].name, s.Peers)
				break
			}
			select {
			case <-d.procs[i].done:
				return fmt.Errorf("gateway %s ended: %s", d.procs[i].name, lastLine(d.procs[i].log))
			case <-waiting.Done():
				return fmt.Errorf("gateway %s is not connected after 60 s: %s; see %s", d.procs[i].name, lastLine(d.procs[i].log), d.procs[i].log)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// lastLine returns the last line of a log, for an error.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// writeIndex writes demo.json: where everything is.
func (d *demo) writeIndex() error {
	type gatewayIndex struct {
		Name    string `json:"name"`
		Panel   string `json:"panel"`
		PID     int    `json:"pid"`
		State   string `json:"state"`
		Config  string `json:"config"`
		Control string `json:"control"`
		PTY     string `json:"pty"`
		Pins    string `json:"pins,omitempty"`
		Log     string `json:"log"`
	}
	index := struct {
		PID      int            `json:"pid"`
		Gateways []gatewayIndex `json:"gateways"`
		Broker   map[string]any `json:"broker"`
		Wallets  string         `json:"wallets"`
	}{PID: os.Getpid(), Wallets: filepath.Join(d.dir, "wallets")}
	for i, gw := range d.grid.gateways {
		index.Gateways = append(index.Gateways, gatewayIndex{
			Name: gw.house.Name, Panel: "http://" + gw.panel, PID: d.procs[i].cmd.Process.Pid, State: string(gw.state), Config: gw.config,
			Control: gw.state.control(), PTY: gw.house.Line, Pins: gw.house.Pins, Log: d.procs[i].log,
		})
	}
	index.Broker = map[string]any{"address": d.grid.gateways[0].broker, "user": d.grid.mqttUser, "password": d.grid.mqttPass}
	b, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(d.dir, "demo.json"), b, 0o600)
}

// stopAll ends the gateways, and kills those that do not end.
func (d *demo) stopAll() error {
	for _, c := range d.clients {
		c.Close()
	}
	for _, p := range d.procs {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	}
	var errs []error
	deadline := time.After(15 * time.Second)
	for _, p := range d.procs {
		select {
		case <-p.done:
			if p.err != nil {
				errs = append(errs, fmt.Errorf("gateway %s: %w: %s", p.name, p.err, lastLine(p.log)))
			}
		case <-deadline:
			_ = p.cmd.Process.Kill()
			<-p.done
			errs = append(errs, fmt.Errorf("gateway %s did not end within 15 s and was killed; see %s", p.name, p.log))
		}
	}
	return errors.Join(errs...)
}

// tx signs and submits a transaction at the first gateway.
func (d *demo) tx(ctx context.Context, w keys.Wallet, nonce uint64, kind chain.TxKind, body any) error {
	raw := chain.SignTx(d.grid.chainID, nonce, kind, body, w.Key)
	for {
		r, err := d.clients[0].Submit(ctx, raw)
		switch {
		case err != nil || r.Code == 0:
			return err
		case r.Code != uint32(ledger.CodeNonce):
			return fmt.Errorf("the ledger refused: %s", r.Info)
		}
		// It has overtaken the transaction before it: they travel at once.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// fund mints what people have paid in, and what backs feed-in and credit.
func (d *demo) fund(ctx context.Context) error {
	type credit struct {
		to     chain.Account
		amount chain.Nano
	}
	list := []credit{{chain.AccountGrid, 1000e9}, {chain.AccountPromotion, 50e9}}
	for _, w := range d.grid.owners {
		list = append(list, credit{w.Account(), 20e9})
	}
	for _, w := range d.grid.drivers {
		list = append(list, credit{w.Account(), 50e9})
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	for i, c := range list {
		g.Go(func() error {
			return d.tx(gctx, d.grid.operator, uint64(i+1), chain.TxMint, chain.Mint{To: c.to, Amount: c.amount, BankRef: fmt.Sprintf("DEMO-%04d", i+1)})
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("mint: %w", err)
	}
	d.say("the operator has minted prepaid money for %d people", len(list)-2)
	return nil
}

func (d *demo) banner() {
	for _, gw := range d.grid.gateways {
		d.say("panel of %-6s http://%s/", gw.house.Name, gw.panel)
	}
	d.say("broker          tcp://%s  user %s, password in %s", d.grid.gateways[0].broker, d.grid.mqttUser, filepath.Join(d.dir, "demo.json"))
}

// play lets cars come and go until ctx ends.
func (d *demo) play(ctx context.Context) {
	var chargers []int
	for i, h := range d.street.Houses() {
		if h.Pins != "" {
			chargers = append(chargers, i)
		}
	}
	// The house with the most sun comes last: a car is best seen at a house
	// that has to buy.
	chargers = append(chargers[1:], chargers[0])
	free := make(chan int, len(chargers))
	for _, c := range chargers {
		free <- c
	}
	var wg sync.WaitGroup
	for k, w := range d.grid.drivers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for round := 0; ctx.Err() == nil; round++ {
				var at int
				select {
				case <-ctx.Done():
					return
				case at = <-free:
				}
				if err := d.visit(ctx, w, at, k, round); err != nil && ctx.Err() == nil {
					d.say("%s at %s: %v", w.Name, d.procs[at].name, err)
					pause(ctx, 3*time.Second)
				}
				free <- at
			}
		}()
	}
	d.ticker(ctx)
	wg.Wait()
}

func pause(ctx context.Context, t time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(t):
	}
}

// enoughTime reports whether a session that starts now can be seen settled.
func (d *demo) enoughTime(charge time.Duration) bool {
	return d.duration == 0 || time.Until(d.start.Add(d.duration)) > charge+2*demoSlot+4*time.Second
}

// visit is one car at one charger: arrive, ask the price, accept it, charge,
// leave, and wait until the bill is settled.
func (d *demo) visit(ctx context.Context, w keys.Wallet, at, k, round int) error {
	charge := 22*time.Second + time.Duration(k)*6*time.Second
	if !d.enoughTime(charge) {
		<-ctx.Done()
		return nil
	}
	name, c := d.procs[at].name, d.clients[at]
	car := house.Car{Name: w.Name, Capacity: 58_000, Charge: 21_000, Target: 50_000, MaxCurrent: 16_000, Phases: 3}
	if err := d.street.PlugIn(at, car); err != nil {
		return err
	}
	defer func() { _, _ = d.street.Unplug(at) }() // it may have left already
	q, err := c.Quote(ctx, panel.QuoteRequest{Connector: 1, Driver: w.Public(), MaxWh: meter.WattHour(150), Redeem: round > 0})
	if err != nil {
		return err
	}
	credit := ""
	if round > 0 {
		credit = ", spends saved credit"
	}
	d.say("%s plugs in at %s: at most %s, %s held%s", w.Name, name, perKWh(q.Cap), money(q.Hold), credit)
	s, err := c.StartSession(ctx, q.Sign(w.Key))
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.sessions = append(d.sessions, demoSession{s.ID, w.Name, at})
	d.mu.Unlock()
	pause(ctx, charge)
	if _, err := c.StopSession(context.WithoutCancel(ctx), s.ID, panel.SignStop(s.ID, w.Key)); err != nil {
		return err
	}
	pause(ctx, 4*time.Second)
	if s, err = d.settled(ctx, c, s.ID); err != nil {
		return err
	}
	d.say("%s at %s: %s, %s from neighbours; paid %s, %s credit spent, %s earned",
		w.Name, name, kWh(s.Wh), kWh(s.LocalWh), money(s.Paid), money(s.CreditRedeemed), money(s.CreditEarned))
	return nil
}

// settled waits until the ledger has closed a session.
func (d *demo) settled(ctx context.Context, c *panel.Client, id chain.ID) (panel.Session, error) {
	for {
		s, err := c.Session(ctx, id)
		if err == nil && !s.State.Open() {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, ctx.Err()
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// ticker shows what a passer-by would see, until ctx ends.
func (d *demo) ticker(ctx context.Context) {
	every := 5 * time.Second
	if d.live {
		every = time.Second
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		var parts []string
		for i, p := range d.procs {
			s := d.street.State(i)
			word := fmt.Sprintf("%s %+.1f kW", p.name, -float64(s.Net)/1e6)
			if s.Charging > 0 {
				word += fmt.Sprintf(" (%s's car %.1f)", s.Car, float64(s.Charging)/1e6)
			}
			parts = append(parts, word)
		}
		var height int64
		if s, err := d.clients[0].Status(ctx); err == nil {
			height = s.Height
		}
		line := fmt.Sprintf("block %d | %s", height, strings.Join(parts, " | "))
		if d.live {
			d.mu.Lock()
			fmt.Fprintf(d.out, "\r\x1b[K%5.0fs  %s", time.Since(d.start).Seconds(), line)
			d.mu.Unlock()
		} else {
			d.say("%s", line)
		}
	}
}

// demoReport is the summary of CONTRACTS: what a script reads.
type demoReport struct {
	Gateways   int              `json:"gateways"`
	Height     int64            `json:"height"`
	StateHash  chain.Hash       `json:"state_hash"`
	SameState  bool             `json:"same_state"`
	Energy     ledger.Energy    `json:"energy"`
	Sessions   []sessionReport  `json:"sessions"`
	Invariants invariantsReport `json:"invariants"`
}

type sessionReport struct {
	ID             chain.ID       `json:"id"`
	Driver         string         `json:"driver"`
	Gateway        string         `json:"gateway"`
	State          string         `json:"state"`
	Wh             meter.WattHour `json:"wh"`
	LocalWh        meter.WattHour `json:"local_wh"`
	Paid           chain.Nano     `json:"paid_nano"`
	CreditEarned   chain.Nano     `json:"credit_earned_nano"`
	CreditRedeemed chain.Nano     `json:"credit_redeemed_nano"`
	Receipt        string         `json:"receipt"`
}

type invariantsReport struct {
	BlocksChecked int64 `json:"blocks_checked"`
	Violations    int   `json:"violations"`
}

// summarise compares the gateways, verifies the ledger and prints the report.
// Every figure comes from a running gateway.
func (d *demo) summarise(ctx context.Context, cmd *cobra.Command) error {
	r := demoReport{Gateways: len(d.clients), SameState: true, Sessions: []sessionReport{}}
	var heights []int64
	for i, c := range d.clients {
		s, err := c.Status(ctx)
		if err != nil {
			return fmt.Errorf("gateway %s: %w", d.procs[i].name, err)
		}
		heights = append(heights, s.Height)
	}
	r.Height = slices.Min(heights)
	for i, c := range d.clients {
		h, err := c.StateHash(ctx, r.Height)
		if err != nil {
			return fmt.Errorf("gateway %s: %w", d.procs[i].name, err)
		}
		if i == 0 {
			r.StateHash = h.StateHash
		}
		r.SameState = r.SameState && h.StateHash == r.StateHash
	}
	var err error
	if r.Energy, err = d.clients[0].Energy(ctx); err != nil {
		return err
	}
	receipts := filepath.Join(d.dir, "receipts")
	if d.temporary { // the folder goes; receipts stay
		receipts = filepath.Join(os.TempDir(), filepath.Base(d.dir)+"-receipts")
	}
	if err := os.MkdirAll(receipts, 0o755); err != nil {
		return err
	}
	for _, x := range d.sessions {
		s, err := d.clients[0].Session(ctx, x.id)
		if err != nil {
			return fmt.Errorf("session %s: %w", x.id, err)
		}
		out := sessionReport{
			ID: x.id, Driver: x.driver, Gateway: s.GatewayName, State: s.State.String(), Wh: s.Wh, LocalWh: s.LocalWh,
			Paid: s.Paid, CreditEarned: s.CreditEarned, CreditRedeemed: s.CreditRedeemed,
		}
		if b, err := d.clients[x.gateway].Receipt(ctx, x.id, "ocmf"); err == nil {
			out.Receipt = filepath.Join(receipts, x.id.String()+".ocmf")
			if err := os.WriteFile(out.Receipt, append(b, '\n'), 0o644); err != nil {
				return err
			}
		}
		r.Sessions = append(r.Sessions, out)
	}
	d.say("executing every block again to check the invariants")
	v, err := d.clients[0].LedgerVerify(ctx, func(panel.VerifyProgress) {})
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	r.Invariants = invariantsReport{BlocksChecked: v.Height - v.FromHeight + 1, Violations: len(v.Violations)}
	err = emit(cmd, r, func(w io.Writer) error { return printDemo(w, r) })
	e := r.Energy
	switch {
	case err != nil:
		return err
	case !r.SameState:
		return errors.New("the gateways disagree about the state")
	case r.Invariants.Violations > 0:
		return fmt.Errorf("the ledger violates its invariants: %s", strings.Join(v.Violations, "; "))
	case e.Produced+e.GridImport != e.Consumed+e.GridExport+e.Loss:
		return fmt.Errorf("energy does not balance: %+v", e)
	}
	return nil
}

func printDemo(w io.Writer, r demoReport) error {
	e := r.Energy
	same := map[bool]string{true: "all gateways agree", false: "THE GATEWAYS DISAGREE"}[r.SameState]
	rows := [][]string{
		{"ledger", fmt.Sprintf("%d blocks, %s on %s, %d violations", r.Height, same, r.StateHash, r.Invariants.Violations)},
		{"energy", fmt.Sprintf("%s produced + %s from the grid = %s used + %s to the grid + %s lost", kWh(e.Produced), kWh(e.GridImport), kWh(e.Consumed), kWh(e.GridExport), kWh(e.Loss))},
		{"traded", kWh(e.Traded) + " between neighbours"},
	}
	if err := table(w, rows); err != nil {
		return err
	}
	fmt.Fprintln(w)
	rows = [][]string{{"DRIVER", "CHARGED AT", "STATE", "ENERGY", "LOCAL", "PAID", "CREDIT SPENT", "EARNED", "RECEIPT"}}
	for _, s := range r.Sessions {
		rows = append(rows, []string{s.Driver, s.Gateway, s.State, kWh(s.Wh), kWh(s.LocalWh), money(s.Paid), money(s.CreditRedeemed), money(s.CreditEarned), s.Receipt})
	}
	return table(w, rows)
}
