package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/mqtt"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/nft"
	"github.com/joulegate/joulegate/guard/policy"
	"github.com/joulegate/joulegate/guard/reaction"
)

// packetFilter blocks addresses in a table of its own. The table is made with
// the first block, so that a gateway that only observes changes nothing.
type packetFilter struct {
	table string

	mu      sync.Mutex
	t       *nft.Table
	blocked map[netip.Addr]time.Time // until when
}

func newPacketFilter(self chain.Key) *packetFilter {
	return &packetFilter{table: fmt.Sprintf("%s_%x", nft.Prefix, self[:4]), blocked: map[netip.Addr]time.Time{}}
}

// layout drops what comes from and goes to the blocked. Whatever the sets
// hold, this machine hears answers to its own questions for names and times,
// and gets its address.
func (f *packetFilter) layout() nft.Layout {
	dhcp4, dhcp6 := [2]uint16{67, 68}, [2]uint16{547, 546} // server, client: RFC 2131, RFC 8415
	in := []nft.Rule{{Match: []nft.Match{nft.In("lo")}}}
	out := []nft.Rule{{Match: []nft.Match{nft.Out("lo")}}}
	for _, p := range [][2]uint16{dhcp4, dhcp6} {
		in = append(in, nft.Rule{Match: []nft.Match{nft.UDP(), nft.FromPort(p[0]), nft.ToPort(p[1])}, Comment: "addresses"})
		out = append(out, nft.Rule{Match: []nft.Match{nft.UDP(), nft.FromPort(p[1]), nft.ToPort(p[0])}, Comment: "addresses"})
	}
	for _, port := range []uint16{53, 123} {
		in = append(in, nft.Rule{Match: []nft.Match{nft.UDP(), nft.FromPort(port), nft.Known()}, Comment: "names and times"})
		out = append(out, nft.Rule{Match: []nft.Match{nft.UDP(), nft.ToPort(port)}, Comment: "names and times"})
	}
	var forward []nft.Rule
	for _, set := range []string{"blocked4", "blocked6"} {
		in = append(in, nft.Rule{Match: []nft.Match{nft.From(set)}, Verdict: nft.Drop, Comment: "blocked"})
		out = append(out, nft.Rule{Match: []nft.Match{nft.To(set)}, Verdict: nft.Drop, Comment: "blocked"})
		forward = append(forward, nft.Rule{Match: []nft.Match{nft.From(set)}, Verdict: nft.Drop, Comment: "blocked"}, nft.Rule{Match: []nft.Match{nft.To(set)}, Verdict: nft.Drop, Comment: "blocked"})
	}
	blocked := map[string][]nft.Element{}
	for a, until := range f.blocked {
		blocked[setOf(a)] = append(blocked[setOf(a)], nft.Element{Prefix: nft.Host(a), Timeout: max(time.Until(until), time.Millisecond)})
	}
	const early = -10 // before the usual filter, which may accept
	return nft.Layout{
		Table: f.table,
		Sets: []nft.Set{
			{Name: "blocked4", Type: nft.IPv4, Timeout: time.Hour, Size: policy.MaxReactions, Elements: blocked["blocked4"]},
			{Name: "blocked6", Type: nft.IPv6, Timeout: time.Hour, Size: policy.MaxReactions, Elements: blocked["blocked6"]},
		},
		Chains: []nft.Chain{
			{Name: "guard_in", Hook: nft.Input, Priority: early, Rules: in},
			{Name: "guard_out", Hook: nft.Output, Priority: early, Rules: out},
			{Name: "guard_forward", Hook: nft.Forward, Priority: early, Rules: forward},
		},
	}
}

func setOf(a netip.Addr) string {
	if a.Is4() {
		return "blocked4"
	}
	return "blocked6"
}

// Block implements reaction.Filter.
func (f *packetFilter) Block(a netip.Addr, d time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := nft.Element{Prefix: nft.Host(a), Timeout: d}
	err := fs.ErrNotExist
	if f.t != nil {
		err = f.t.Renew(setOf(a), e)
	}
	if errors.Is(err, fs.ErrNotExist) { // not opened yet, or somebody has flushed all tables
		if err = f.open(); err == nil {
			err = f.t.Renew(setOf(a), e)
		}
	}
	if err != nil {
		return err
	}
	f.blocked[a] = time.Now().Add(d)
	return nil
}

// open makes the table, with what was blocked before in it.
func (f *packetFilter) open() (err error) {
	maps.DeleteFunc(f.blocked, func(_ netip.Addr, until time.Time) bool { return time.Until(until) < time.Millisecond })
	if f.t, err = nft.Open(f.layout()); err != nil {
		f.t = nil
	}
	return err
}

// Unblock implements reaction.Filter.
func (f *packetFilter) Unblock(a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.blocked, a)
	if f.t == nil {
		return nil
	}
	err := f.t.Remove(setOf(a), nft.Element{Prefix: nft.Host(a)})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	case err == nil && len(f.blocked) == 0: // nothing stays behind
		err, f.t = f.t.Close(), nil
	}
	return err
}

// close takes everything back.
func (f *packetFilter) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.t == nil {
		return nil
	}
	err := f.t.Close()
	f.t = nil
	return err
}

// hands are what the guard's reactions are carried out by.
type hands struct {
	*gateway
	filter *packetFilter
}

func (g *gateway) reactor(f *packetFilter) *reaction.Reactor {
	h := hands{g, f}
	p := reaction.Processes{}
	for _, n := range g.cfg.Guard.Never {
		if strings.HasPrefix(n, "/") {
			p.Never = append(p.Never, n)
		}
	}
	if list := g.cfg.Guard.Programs; list != "" {
		programs, err := readPrograms(list)
		p.Listed = func(image string, sum [32]byte) bool { return err != nil || programs.Lists(image, sum) } // in doubt nobody is ended
	}
	return reaction.New(reaction.Config{Filter: f, Peers: h, Chargers: h, Processes: p})
}

// Quarantine implements reaction.Peers. The neighbour stays a member: its
// blocks come by way of others, but it is not talked to.
func (h hands) Quarantine(name string, on bool) error {
	h.roster.bar(name, on)
	h.net.Recheck()
	return nil
}

// SafeStop implements reaction.Chargers: the ordinary stop of every session.
func (h hands) SafeStop(ctx context.Context, rule string) error {
	if rule == guard.LoadBinary {
		if same, err := runsItsFile(); err != nil || same {
			return errors.Join(fmt.Errorf("charging goes on: the program's file is the one that runs"), err)
		}
	}
	s, _ := h.live.Latest()
	var failed error
	for _, c := range s.Chargers {
		err := h.station.StopCharger(ctx, c.ID, chain.StopOperator, "guard: "+rule)
		var refused *station.Refusal
		if errors.As(err, &refused) && refused.Code == station.NoSession {
			err = nil
		}
		failed = errors.Join(failed, err)
	}
	h.station.Note("guard.safe_stop", 3, h.cfg.Name, rule)
	return failed
}

// runsItsFile compares the program that runs with the file that it was
// started from: whoever made the sensors say otherwise is found out here.
func runsItsFile() (bool, error) {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return false, err
	}
	runs, err := fileHash("/proc/self/exe")
	if err != nil {
		return false, err
	}
	found, err := fileHash(strings.TrimSuffix(path, " (deleted)"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && runs == found, err
}

// unable says what the guard cannot do here, for the actions that its rules
// want.
func (g *gateway) unable() map[string]string {
	out := map[string]string{}
	for id, m := range g.cfg.Guard.Modes() {
		r, _ := guard.RuleOf(id)
		if m == guard.Observe || out[r.Action.String()] != "" {
			continue
		}
		switch r.Action {
		case guard.Refuse:
			if g.cfg.Guard.DNS.Bypass != "observe" {
				out[r.Action.String()] = "nobody looks at what goes past the name server: guard.dns.bypass"
				continue
			}
			fallthrough
		case guard.Block:
			if err := nft.Probe(); err != nil {
				out[r.Action.String()] = err.Error()
			}
		case guard.Kill:
			// Signal 0 reaches init only with CAP_KILL.
			if err := syscall.Kill(1, 0); err != nil {
				out[r.Action.String()] = "programs of other users cannot be ended: grant CAP_KILL (" + err.Error() + ")"
			}
		}
	}
	return out
}

// Times of looking for bad neighbours.
const (
	rejectsOf  = 3 // blocks within rejectsIn that no honest gateway hands on
	rejectsIn  = 10 * time.Minute
	maxCulprit = 128 // neighbours counted; beyond it nobody new is
)

// culprits counts who hands on blocks that no honest gateway makes.
type culprits struct {
	mu  sync.Mutex
	all map[peer.ID][]time.Time
}

// rejected takes such a block and reports whether it is one too many.
func (c *culprits) rejected(id peer.ID, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[peer.ID][]time.Time{}
	}
	if _, known := c.all[id]; !known && len(c.all) >= maxCulprit {
		return false
	}
	var recent []time.Time
	for _, at := range c.all[id] {
		if now.Sub(at) < rejectsIn {
			recent = append(recent, at)
		}
	}
	recent = append(recent, now)
	if len(recent) >= rejectsOf {
		delete(c.all, id)
		return true
	}
	c.all[id] = recent
	return false
}

// blame reports a neighbour that hands on what no honest gateway makes.
func (g *gateway) blame(id peer.ID, why error) {
	key, ok := g.roster.now.Load().byPeer[id]
	if g.warden == nil || !ok || !g.culprits.rejected(id, time.Now()) {
		return
	}
	now := time.Now()
	g.warden.Report(guard.Finding{
		Rule: guard.PeerInvalid, Severity: guard.High, Subject: guard.Subject{Kind: guard.Peer, Value: g.roster.name(key)},
		Count: rejectsOf, First: now, Last: now, Evidence: map[string]string{"why": fmt.Sprint(why)},
	})
}

// GuardOrder implements panel.Backend.
func (b backend) GuardOrder(ctx context.Context, o panel.GuardOrder) error {
	if b.warden == nil {
		return panel.Refused("the guard is off: guard.mode in the configuration")
	}
	var err error
	switch o.Do {
	case "release":
		err = b.warden.Release(ctx, o.ID)
	case "release_all":
		err = b.warden.ReleaseAll(ctx)
	case "resume":
		err = b.warden.Resume(ctx)
	case "answer":
		err = b.warden.Answer(ctx, o.ID, o.Yes)
	default:
		return panel.Invalid("%q: the guard can be told to release, release_all, resume or answer", o.Do)
	}
	if err != nil {
		return panel.Refused("%v", err)
	}
	return nil
}

// askGuard publishes a question. Programs of a household are not named.
func (g *gateway) askGuard(q guard.Standing) {
	data := map[string]any{"id": q.ID, "action": q.Action, "rule": q.Rule, "subject": panel.Discreet(q.Subject), "until": q.Until}
	if err := g.mqtt.PublishEvent("guard.question", mqtt.Warning, time.Now(), data); err != nil {
		g.log.Debug("not published", "err", err)
	}
}

// guardCommand carries out a command over MQTT.
func (r remote) guardCommand(ctx context.Context, name string, args json.RawMessage) (any, error) {
	var a struct {
		ID  uint64 `json:"id"`
		All bool   `json:"all"`
		Yes *bool  `json:"yes"`
	}
	if len(args) > 0 {
		if err := json.Unmarshal(args, &a); err != nil {
			return nil, &mqtt.CommandError{Code: "invalid", Text: "args: " + err.Error()}
		}
	}
	o := panel.GuardOrder{Do: strings.TrimPrefix(name, "guard."), ID: a.ID}
	switch {
	case o.Do == "release" && a.All && a.ID == 0:
		o.Do = "release_all"
	case o.Do == "release" && (a.All || a.ID == 0):
		return nil, &mqtt.CommandError{Code: "invalid", Text: `args: either {"id": N} or {"all": true}`}
	case o.Do == "answer" && (a.Yes == nil || a.ID == 0):
		return nil, &mqtt.CommandError{Code: "invalid", Text: `args: {"id": N, "yes": true} or {"id": N, "yes": false}`}
	case o.Do == "answer":
		o.Yes = *a.Yes
	}
	if err := backend(r).GuardOrder(ctx, o); err != nil {
		return nil, &mqtt.CommandError{Code: "refused", Text: err.Error()}
	}
	s := panel.DiscreetStatus(r.warden.Status())
	return map[string]any{"reactions": s.Reactions, "questions": s.Questions, "suspended": s.Suspended}, nil
}

// permit refuses to enforce a rule that has not observed for long enough.
func (g *gateway) permit(cur, next config.Config) error {
	if why := g.updater.Pending(); why != "" {
		return &config.Denial{Code: config.InFlight, Text: why + ": change the configuration once it is confirmed"}
	}
	if g.warden == nil {
		return nil // it has no effect before the rule has learned
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	was := cur.Guard.Modes()
	for id, m := range next.Guard.Modes() {
		if m != guard.Enforce || was[id] == guard.Enforce {
			continue
		}
		if err := g.warden.MayEnforce(ctx, id); err != nil {
			return &config.Denial{Code: config.BadRequest, Path: fmt.Sprintf("guard.rules[%s].mode", id), Text: err.Error()}
		}
	}
	return nil
}
