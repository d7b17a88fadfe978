package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter/poll"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"
)

func newRunCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the gateway",
		Long: `Runs the gateway in the foreground until it is interrupted. Relays are open before
the first reading and after the last. Logs go to stderr.`,
		Example: "  joulegate run\n  joulegate run --config ./joulegate.yaml --state ./state --log-level debug",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd)
			if err != nil {
				return err
			}
			at := launch(stateOf(cmd), log)
			err = runGateway(cmd, at, log)
			switch {
			case startsAnew(err) && cmd.Context().Err() == nil:
				return at.again(err)
			case err != nil && cmd.Context().Err() == nil && at.giveUp(stateOf(cmd), err, log):
				return at.again(err)
			}
			return err
		},
	}
}

// runGateway runs one gateway to its end.
func runGateway(cmd *cobra.Command, at place, log *slog.Logger) error {
	path, _ := cmd.Flags().GetString("config")
	if _, err := applySetup(cmd.Context(), setupFiles(), path, stateOf(cmd), log); err != nil {
		log.Error("the gateway starts without its setup", "err", err)
	}
	set, err := openSettings(path, stateOf(cmd), log)
	if err != nil {
		return err
	}
	set.at = at
	log = log.With("gateway", set.cfg.Name)
	g, err := newGateway(cmd.Context(), set, stateOf(cmd), log)
	if err != nil && set.pending() {
		if err = set.failed(err); err == nil {
			g, err = newGateway(cmd.Context(), set, stateOf(cmd), log)
		}
	}
	if err != nil {
		return err
	}
	if err := set.settle(); err != nil {
		return err
	}
	log.Info("gateway runs", "device", g.self.Short(), "chain", g.genesis.ChainID, "panel", g.panel.Addr(), "broker", g.mqtt.Addr(), "p2p", g.net.Addrs(), "member", g.isMember())
	err = g.run(cmd.Context())
	log.Info("gateway stopped")
	return err
}

// A device key is new until its first block: only then nobody can know a
// block of it, and its chain starts at epoch 1 even without neighbours.
func (s state) newDevice() string { return s.path("keys", "new") }

func freshDevice(s state) bool {
	_, err := os.Stat(s.newDevice())
	return err == nil
}

// usedDevice ends the device's first day. It is called before the first block
// is signed.
func usedDevice(s state) error {
	err := os.Remove(s.newDevice())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// admit answers a stranger who holds a token: it passes his join on to the
// ledger and tells him what a member has to know.
func (g *gateway) admit(ctx context.Context, from peer.ID, req []byte) ([]byte, error) {
	e, err := chain.OpenEnvelope(req)
	if err != nil {
		return nil, err
	}
	tx, err := chain.OpenTx(e)
	if err != nil {
		return nil, err
	}
	if tx.Kind != chain.TxJoin {
		return nil, fmt.Errorf("transaction of kind %d: strangers may join and nothing else", tx.Kind)
	}
	var r consensus.Result
	if !g.joined(tx) { // else it has not heard the answer: it was cut off, or lost its power
		if r, err = g.ledger.Submit(ctx, req); err != nil {
			return nil, err
		}
	}
	g.log.Info("join", "peer", from, "code", r.Code, "info", r.Info)
	reply := joinReply{Code: uint32(r.Code), Info: r.Code.String() + ": " + r.Info}
	if r.Code == ledger.CodeOK {
		if reply.Genesis, err = os.ReadFile(g.state.genesis()); err != nil {
			return nil, err
		}
		if err := g.ledger.View(func(st ledger.State) {
			for _, m := range ledger.Members(st) {
				if m.Active {
					reply.Members = append(reply.Members, m.Member)
				}
			}
		}); err != nil {
			return nil, err
		}
	}
	return json.Marshal(reply)
}

// joined reports whether a join has been executed before, for the same device
// and by the same invitation.
func (g *gateway) joined(tx chain.Tx) (yes bool) {
	var j chain.Join
	if chain.Unmarshal(tx.Body, &j) != nil || !chain.Verify(j.Member.Device, chain.DomainMember, chain.Marshal(j.Member), j.Sig) {
		return false
	}
	_ = g.ledger.View(func(st ledger.State) {
		inv, used := ledger.InvitationOf(st, tx.Signer)
		m, is := ledger.MemberOf(st, j.Member.Device)
		yes = used && inv.Used && inv.Device == j.Member.Device && is && m.Active
	})
	return yes
}

// savedMeter is where a meter stood when this was saved.
type savedMeter struct {
	Page  uint64          `json:"page"`
	Bases []poll.Register `json:"bases"`
	Who   poll.Identity   `json:"who"` // pinned: another device at the same address is suspect until a person confirms it
}

// metersVersion is the format of savedMeters; 0 had no version and is read as 1.
const metersVersion = 1

type savedMeters struct {
	Version int                   `json:"version"`
	Wall    int64                 `json:"wall_ms"`
	Meters  map[string]savedMeter `json:"meters"`
}

const metersKey = "meters"

// saveMeters stores pages and energy registers, once a slot and at the end,
// so that a jump of a register while the gateway was away is still judged.
func (g *gateway) saveMeters() {
	if len(g.devices.readers) == 0 {
		return // an idle gateway writes nothing
	}
	all := savedMeters{metersVersion, time.Now().UnixMilli(), map[string]savedMeter{}}
	for _, r := range g.devices.readers {
		s := r.State()
		all.Meters[r.Device()] = savedMeter{s.Page, s.Registers, s.Pinned}
	}
	b, err := json.Marshal(all)
	if err == nil {
		err = g.journal.Save(metersKey, b)
	}
	if err != nil {
		g.log.Warn("meter state not saved", "err", err)
	}
}

// resumeMeters returns where each meter stood.
func (g *gateway) resumeMeters() func(id string) poll.State {
	var all savedMeters
	b, err := g.journal.Load(metersKey)
	if err == nil && b != nil {
		err = json.Unmarshal(b, &all)
	}
	if err == nil && all.Version > metersVersion {
		err = newer("the saved state of meters", all.Version, metersVersion)
		all = savedMeters{}
	}
	if err != nil {
		g.log.Warn("meter state is damaged; the meters start anew", "err", err)
	}
	away := awaySince(time.UnixMilli(all.Wall), time.Now())
	return func(id string) poll.State {
		s, ok := all.Meters[id]
		if !ok {
			return poll.State{}
		}
		return poll.Resume(s.Page, s.Bases, s.Who, away)
	}
}

// awayUnknown is for how long a gateway takes it to have been away whose clock
// does not know: long enough for any holiday, and a register that jumps wildly
// is still seen.
const awayUnknown = 31 * 24 * time.Hour

// awaySince is how long a gateway was away that has saved its meters before
// now. A clock that says "not yet" is not set, or was set back.
func awaySince(saved, now time.Time) time.Duration {
	if now.Before(saved) {
		return awayUnknown
	}
	return now.Sub(saved)
}
