package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/p2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"
)

func newGridCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "grid",
		Short: "Create, join and watch a microgrid",
	}
	c.AddCommand(newGridCreateCmd(), newGridInviteCmd(), newGridJoinCmd(), newGridMembersCmd(), newGridRevokeCmd(), newGridReplaceCmd(), newGridDimCmd(), newGridRulesCmd())
	return c
}

// identity is what makes a gateway a gateway.
type identity struct {
	device    ed25519.PrivateKey
	receipt   keys.Receipt
	validator chain.Key
}

// makeIdentity makes the keys of a gateway, or loads those that are there.
func makeIdentity(st state) (id identity, err error) {
	pass, err := passphrase()
	if err != nil {
		return id, err
	}
	for _, dir := range []string{string(st), st.keys(), st.wallets(), st.consensus()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return id, err
		}
	}
	// The mark goes first: a crash in between leaves a mark without a key,
	// which the next try overwrites.
	deviceKey := st.path("keys", "device.key")
	if _, err := os.Stat(deviceKey); errors.Is(err, fs.ErrNotExist) {
		if err := writeFile(st.newDevice(), nil, 0o600); err != nil {
			return id, err
		}
	}
	if id.device, _, err = keys.LoadOrCreateDevice(deviceKey, pass); err != nil {
		return id, err
	}
	if id.receipt, _, err = keys.LoadOrCreateReceipt(st.path("keys", "receipt.key"), pass); err != nil {
		return id, err
	}
	id.validator, err = consensus.InitValidator(st.consensus())
	return id, err
}

// loadIdentity loads the keys of a member. A device key that is lost is not
// made anew: the ledger would not know it.
func loadIdentity(st state) (identity, error) {
	if _, err := os.Stat(st.path("keys", "device.key")); err != nil {
		return identity{}, fmt.Errorf("device key: %w; the ledger knows this gateway by it: restore it, or join again with an empty state folder", err)
	}
	return makeIdentity(st)
}

// member describes the gateway as the ledger will know it.
func (id identity) member(name string, owner chain.Key, validator bool, maxPower int64, addrs []string) chain.Member {
	m := chain.Member{Device: keys.Public(id.device), Name: name, Owner: owner, MaxPower: maxPower, Addrs: addrs}
	if validator {
		m.Validator = id.validator
	}
	return m
}

// writePSK stores the private network key as hex, readable by the owner only.
func writePSK(st state, psk []byte) error {
	return writeFile(st.psk(), []byte(hex.EncodeToString(psk)+"\n"), 0o600)
}

func readPSK(st state) ([]byte, error) {
	b, err := os.ReadFile(st.psk())
	if err != nil {
		return nil, fmt.Errorf("private network key: %w", err)
	}
	psk, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(psk) != 32 {
		return nil, fmt.Errorf("private network key %s is damaged: want 64 hex digits; join the microgrid again", st.psk())
	}
	return psk, nil
}

// writeFile replaces path as a whole or not at all.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already once renamed
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// loadConfig reads and validates the configuration file.
func loadConfig(path string) (config.Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return config.Config{}, fmt.Errorf("%s does not exist; make one with: joulegate init --config %s", path, path)
		}
		return config.Config{}, err
	}
	c, err := config.Parse(b)
	if err != nil {
		return config.Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// advertised returns the addresses under which neighbours reach this
// gateway: --advertise, or the listen addresses if they are concrete.
func advertised(cmd *cobra.Command, c config.Config) ([]string, error) {
	addrs, _ := cmd.Flags().GetStringSlice("advertise")
	if len(addrs) == 0 {
		addrs = c.P2P.Listen
	}
	for _, a := range addrs {
		m, err := ma.NewMultiaddr(a)
		if err != nil {
			return nil, usageError{fmt.Errorf("address %q: %w", a, err)}
		}
		port, err := m.ValueForProtocol(ma.P_TCP)
		if err != nil {
			return nil, usageError{fmt.Errorf("address %q is not a TCP multiaddr such as /ip4/192.168.1.20/tcp/4470", a)}
		}
		ip, _ := m.ValueForProtocol(ma.P_IP4)
		ip6, _ := m.ValueForProtocol(ma.P_IP6)
		if port == "0" || ip == "0.0.0.0" || ip6 == "::" {
			return nil, usageError{fmt.Errorf("neighbours cannot dial %s: give the address of this gateway with --advertise /ip4/ADDRESS/tcp/PORT, and the same port under p2p.listen in the configuration", a)}
		}
	}
	return addrs, nil
}

func newGridCreateCmd() *cobra.Command {
	var (
		chainID, currency, retail, feedIn string
		slot, grace, start                time.Duration
		earn, redeem                      string
		nodes                             []string
		node, fee                         string
		maxPower                          int64
		transfers                         bool
		basis, tax                        string
	)
	c := &cobra.Command{
		Use:   "create",
		Short: "Found a microgrid with this gateway as its first member",
		Long: `Makes the keys of this gateway, an operator wallet and an owner wallet, and the
genesis file: the rules everybody who joins agrees to. The operator wallet mints
money and invites members; move it off this machine when you can.`,
		Example: `  joulegate init --name north
  joulegate grid create --advertise /ip4/192.168.1.20/tcp/4470 --retail 0.32 --feed-in 0.08
  joulegate grid create --tree feeder1:root:0.01 --tree feeder2:root:0.01 --node feeder1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st := stateOf(cmd)
			if _, err := os.Stat(st.genesis()); err == nil {
				return fmt.Errorf("%s exists: this gateway is a member of a microgrid already", st.genesis())
			}
			path, _ := cmd.Flags().GetString("config")
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			addrs, err := advertised(cmd, cfg)
			if err != nil {
				return err
			}
			if chainID == "" {
				chainID = "jg-" + strings.ToLower(rand.Text()[:8])
			}
			digits, known := chain.MinorDigits(currency)
			if !known {
				return usageError{fmt.Errorf("--currency %q is not an active currency of ISO 4217", currency)}
			}
			g := chain.Genesis{
				Version: chain.Version, ChainID: chainID, SlotSeconds: int64(slot.Seconds()), GraceSeconds: int64(grace.Seconds()),
				Currency: currency, MinorDigits: digits, Nodes: []chain.Node{{ID: "root"}},
				Transfers: transfers, StartSeconds: int64(start.Seconds()), Basis: basis,
			}
			if tax != "" {
				ppm, err := parsePercent(tax)
				if err != nil {
					return usageError{fmt.Errorf("--tax: %w", err)}
				}
				g.Money.Tax = []chain.TaxRate{{PPM: ppm}}
			}
			if g.Retail, err = parsePrice(retail); err != nil {
				return usageError{fmt.Errorf("--retail: %w", err)}
			}
			if g.FeedIn, err = parsePrice(feedIn); err != nil {
				return usageError{fmt.Errorf("--feed-in: %w", err)}
			}
			if g.Credit.EarnPPM, err = parsePercent(earn); err != nil {
				return usageError{fmt.Errorf("--earn: %w", err)}
			}
			if g.Credit.RedeemPPM, err = parsePercent(redeem); err != nil {
				return usageError{fmt.Errorf("--redeem-cap: %w", err)}
			}
			for _, s := range nodes {
				n, err := parseNode(s)
				if err != nil {
					return usageError{err}
				}
				g.Nodes = append(g.Nodes, n)
			}
			houseFee, err := parsePrice(fee)
			if err != nil {
				return usageError{fmt.Errorf("--fee: %w", err)}
			}
			id, err := makeIdentity(st)
			if err != nil {
				return err
			}
			pass, err := passphrase()
			if err != nil {
				return err
			}
			operator, _, err := keys.LoadOrCreateWallet(st.wallets(), "operator", pass)
			if err != nil {
				return err
			}
			owner, _, err := keys.LoadOrCreateWallet(st.wallets(), "owner", pass)
			if err != nil {
				return err
			}
			g.Operators = []chain.Key{operator.Public()}
			g.Members = []chain.Founder{{Member: id.member(cfg.Name, owner.Public(), true, maxPower, addrs), Node: node, Fee: houseFee}}
			psk := make([]byte, 32)
			if _, err := rand.Read(psk); err != nil {
				return err
			}
			if err := writePSK(st, psk); err != nil {
				return err
			}
			hash, err := consensus.WriteGenesis(st.genesis(), g, time.Now())
			if err != nil {
				return err
			}
			v := map[string]any{"chain_id": chainID, "genesis": hash, "device": keys.Public(id.device), "operator": operator.Account(), "owner": owner.Account()}
			return emit(cmd, v, func(w io.Writer) error {
				fmt.Fprintf(w, "microgrid %s is founded; genesis %s\n\n", chainID, hash)
				if err := table(w, [][]string{
					{"this gateway", cfg.Name + "  " + keys.Public(id.device).Short()},
					{"operator wallet", st.path("wallets", "operator.key") + "  mints money, invites members"},
					{"owner wallet", st.path("wallets", "owner.key") + "  what this house earns"},
				}); err != nil {
					return err
				}
				fmt.Fprintf(w, "\nnext: joulegate run --config %s --state %s\nthen: joulegate grid invite\n", path, st)
				return nil
			})
		},
	}
	f := c.Flags()
	f.StringVar(&chainID, "chain-id", "", "`NAME` of the ledger; default: a random one")
	f.StringVar(&currency, "currency", "EUR", "ISO 4217 `CODE`")
	f.StringVar(&retail, "retail", "0.30", "supplier's retail `PRICE` per kWh")
	f.StringVar(&feedIn, "feed-in", "0.08", "supplier's feed-in `PRICE` per kWh")
	f.DurationVar(&slot, "slot", 15*time.Minute, "settlement interval")
	f.DurationVar(&grace, "grace", 2*time.Minute, "how long a slot waits for missing readings")
	f.DurationVar(&start, "start-limit", 30*time.Minute, "a hold without energy is void after this")
	f.StringVar(&earn, "earn", "3", "discount credit earned, `PERCENT` of cash paid")
	f.StringVar(&redeem, "redeem-cap", "50", "most `PERCENT` of a bill that credit pays")
	f.StringArrayVar(&nodes, "tree", nil, "inner node of the fee tree as `ID:PARENT:PRICE` per kWh; repeat; root exists")
	f.StringVar(&node, "node", "root", "`NODE` of the fee tree under which this house hangs")
	f.StringVar(&fee, "fee", "0", "network fee `PRICE` per kWh of this house's own edge")
	f.Int64Var(&maxPower, "max-power", 43_000, "`WATTS` at the house connection; bounds plausible energy")
	f.BoolVar(&transfers, "transfers", false, "allow transfers between people")
	f.StringVar(&basis, "basis", chain.Simulated, "legal `BASIS` of selling energy for money, for example a supplier's licence; it cannot be recorded later, while simulated money is in the ledger")
	f.StringVar(&tax, "tax", "", "tax contained in prices, `PERCENT` of the net amount; default: the operator is not subject to tax")
	f.StringSlice("advertise", nil, "`MULTIADDR` at which neighbours reach this gateway; default: p2p.listen")
	return c
}

func parsePrice(s string) (chain.NanoPerWh, error) {
	n, err := parseMoney(s)
	if err != nil || n%1000 != 0 {
		return 0, fmt.Errorf("price %q: per kWh, like 0.30, at most six decimals", s)
	}
	return chain.NanoPerWh(n / 1000), nil
}

// parsePercent returns parts per million.
func parsePercent(s string) (int64, error) {
	n, err := parseMoney(s)
	if err != nil || n < 0 || n > 100e9 || n%1e5 != 0 {
		return 0, fmt.Errorf("percentage %q: 0 to 100, at most four decimals", s)
	}
	return int64(n / 1e5), nil
}

func parseNode(s string) (chain.Node, error) {
	p := strings.Split(s, ":")
	if len(p) != 3 {
		return chain.Node{}, fmt.Errorf("--tree %q: want ID:PARENT:PRICE", s)
	}
	fee, err := parsePrice(p[2])
	return chain.Node{ID: p[0], Parent: p[1], Fee: fee}, err
}

func newGridInviteCmd() *cobra.Command {
	var req panel.InviteRequest
	var fee string
	c := &cobra.Command{
		Use:   "invite",
		Short: "Print a one-time token that lets one gateway join",
		Long: `Signs an invitation with the operator wallet of this gateway, puts its public half
on the ledger and prints the token. The token is a secret until it is used; it
works once and expires.`,
		Example: "  joulegate grid invite --node feeder1\n  joulegate grid invite --follower --valid 2h",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Fee, err = parsePrice(fee); err != nil {
				return usageError{fmt.Errorf("--fee: %w", err)}
			}
			follower, _ := cmd.Flags().GetBool("follower")
			req.Validator = !follower
			cl, err := dial(cmd)
			if err != nil {
				return err
			}
			inv, err := cl.Invite(cmd.Context(), req)
			if err != nil {
				return err
			}
			return emit(cmd, inv, func(w io.Writer) error {
				fmt.Fprintln(w, inv.Token)
				fmt.Fprintf(cmd.ErrOrStderr(), "valid once, until %s; on the new gateway: joulegate grid join TOKEN\n", inv.Expires.Format(time.DateTime))
				return nil
			})
		},
	}
	f := c.Flags()
	f.StringVar(&req.Node, "node", "root", "`NODE` of the fee tree under which the new house hangs")
	f.StringVar(&fee, "fee", "0", "network fee `PRICE` per kWh of the house's own edge")
	f.Bool("follower", false, "the new gateway follows the ledger and does not vote")
	f.DurationVar(&req.Valid, "valid", 24*time.Hour, "how long the token can be used")
	return c
}

// Protocol by which a stranger with a token becomes a member: the request is
// the signed join transaction, the reply a joinReply.
const (
	joinProtocol  = protocol.ID("/joulegate/join/1")
	maxJoinReply  = 5 << 20
	joinDialLimit = 20 * time.Second
)

type joinReply struct {
	Code    uint32         `json:"code"`
	Info    string         `json:"info"`
	Genesis []byte         `json:"genesis"`
	Members []chain.Member `json:"members"`
}

func newGridJoinCmd() *cobra.Command {
	var maxPower int64
	c := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Join a microgrid with a token from its operator",
		Long: `Dials the inviting gateway, checks that its genesis is the one the token names,
and becomes a member. Nothing is written until the other side has agreed, so a
failed join can simply be repeated. Give - to read the token from standard input.`,
		Example: "  joulegate grid join jg1.pWhja... --advertise /ip4/192.168.1.21/tcp/4470",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text := args[0]
			if text == "-" {
				b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 8192))
				if err != nil {
					return err
				}
				text = string(b)
			}
			tok, err := chain.ParseToken(text)
			if err != nil {
				return err
			}
			st := stateOf(cmd)
			if _, _, have, err := consensus.ReadGenesis(st.genesis()); err == nil && have != tok.Genesis {
				return fmt.Errorf("this token is for another microgrid (%s): %s belongs to genesis %s; use an empty state folder", tok.ChainID, st, have)
			} else if err == nil {
				return fmt.Errorf("%s: this gateway is a member of %s already", st.genesis(), tok.ChainID)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			path, _ := cmd.Flags().GetString("config")
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			addrs, err := advertised(cmd, cfg)
			if err != nil {
				return err
			}
			id, err := makeIdentity(st)
			if err != nil {
				return err
			}
			pass, err := passphrase()
			if err != nil {
				return err
			}
			owner, _, err := keys.LoadOrCreateWallet(st.wallets(), "owner", pass)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "asking %s for membership...\n", tok.Addrs[0])
			m := id.member(cfg.Name, owner.Public(), true, maxPower, addrs)
			reply, err := requestJoin(cmd.Context(), id.device, tok, m)
			if err != nil {
				return err
			}
			if err := settleJoin(st, tok, reply); err != nil {
				return err
			}
			v := map[string]any{"chain_id": tok.ChainID, "genesis": tok.Genesis, "device": m.Device, "owner": owner.Account(), "members": len(reply.Members)}
			return emit(cmd, v, func(w io.Writer) error {
				fmt.Fprintf(w, "joined %s, %d members\nnext: joulegate run --config %s --state %s\n", tok.ChainID, len(reply.Members), path, st)
				return nil
			})
		},
	}
	c.Flags().Int64Var(&maxPower, "max-power", 43_000, "`WATTS` at the house connection; bounds plausible energy")
	c.Flags().StringSlice("advertise", nil, "`MULTIADDR` at which neighbours reach this gateway; default: p2p.listen")
	return c
}

// requestJoin sends the join transaction to the inviting gateway.
func requestJoin(ctx context.Context, device ed25519.PrivateKey, tok chain.Token, m chain.Member) (joinReply, error) {
	var reply joinReply
	inviter, err := p2p.AddrInfo(tok.Peer, tok.Addrs)
	if err != nil {
		return reply, fmt.Errorf("the invitation's address: %w", err)
	}
	n, err := p2p.New(p2p.Config{Key: device, PSK: tok.PSK, Allow: func(id peer.ID) bool { return id == inviter.ID }})
	if err != nil {
		return reply, err
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(ctx, joinDialLimit+time.Minute)
	defer cancel()
	if err := n.Connect(ctx, inviter); err != nil {
		return reply, fmt.Errorf("the inviting gateway at %s does not answer: %w", strings.Join(tok.Addrs, ", "), err)
	}
	// The device countersigns what is said of it; the one-time key redeems.
	body := chain.Join{Member: m, Sig: chain.Sign(device, chain.DomainMember, chain.Marshal(m))}
	tx := chain.SignTx(tok.ChainID, 1, chain.TxJoin, body, ed25519.NewKeyFromSeed(tok.Seed))
	b, err := n.Request(ctx, inviter.ID, joinProtocol, tx, maxJoinReply)
	if err != nil {
		return reply, fmt.Errorf("join: %w", err)
	}
	if err := json.Unmarshal(b, &reply); err != nil {
		return reply, fmt.Errorf("join: unreadable answer: %w", err)
	}
	if reply.Code != 0 {
		return reply, fmt.Errorf("the microgrid refused: %s (code %d)", reply.Info, reply.Code)
	}
	if chain.Sum(reply.Genesis) != tok.Genesis {
		return reply, errors.New("the other gateway's genesis is not the one that the token names: do not trust it, ask for a new token")
	}
	return reply, nil
}

// settleJoin writes what a member needs; the genesis last, because its
// presence means membership.
func settleJoin(st state, tok chain.Token, r joinReply) error {
	if _, _, _, err := consensus.ParseGenesis(r.Genesis); err != nil {
		return err
	}
	if err := writePSK(st, tok.PSK); err != nil {
		return err
	}
	if err := writeList(st.book(), r.Members, 0o644); err != nil {
		return err
	}
	if tok.Height > 0 {
		if err := consensus.WriteAnchor(st.consensus(), tok.ChainID, tok.Height, chain.Hash(tok.Block)); err != nil {
			return err
		}
	}
	return writeFile(st.genesis(), r.Genesis, 0o644)
}

// readBook returns the members that were known when this gateway joined.
func readBook(st state) ([]chain.Member, error) {
	b, err := os.ReadFile(st.book())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := readList[chain.Member](st.book(), b, 0o644)
	if errors.Is(err, errNewer) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w); delete it: the ledger knows the members", st.book(), err)
	}
	return m, nil
}

func newGridMembersCmd() *cobra.Command {
	return query(atFlag(&cobra.Command{
		Use:   "members",
		Short: "List the gateways of the microgrid",
		Args:  cobra.NoArgs,
	}), func(cmd *cobra.Command, g *panel.Client, _ []string) ([]panel.Member, error) {
		return g.Members(cmd.Context())
	}, func(w io.Writer, members []panel.Member) error {
		rows := [][]string{{"NAME", "DEVICE", "NODE", "ROLE", "CONNECTED", "BLOCK", "IMPORT", "EXPORT", "SOLD LOCALLY"}}
		for _, m := range members {
			role := "follows"
			switch {
			case !m.Active:
				role = "revoked"
			case m.Power > 0:
				role = "votes"
			}
			conn := map[bool]string{true: "yes", false: "no"}[m.Connected]
			if m.Self {
				conn = "self"
			}
			rows = append(rows, []string{m.Name, m.Device.Short(), m.Node, role, conn, m.Head.Position.String(), kWh(m.Import), kWh(m.Export), kWh(m.SoldLocal)})
		}
		return table(w, rows)
	})
}

func newGridRevokeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "revoke NAME",
		Short:   "End a gateway's membership (operator)",
		Long:    "Takes effect in the next block: its vote and its connections end, its open sessions are closed by rule. Energy already booked stays booked.",
		Example: `  joulegate grid revoke west --reason "sold"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := dial(cmd)
			if err != nil {
				return err
			}
			members, err := cl.Members(cmd.Context())
			if err != nil {
				return err
			}
			for _, m := range members {
				if m.Name != args[0] || !m.Active {
					continue
				}
				reason, _ := cmd.Flags().GetString("reason")
				return agree(cmd, chain.TxRevoke, chain.Revoke{Device: m.Device, Reason: reason})
			}
			return fmt.Errorf("no active member %q; see: joulegate grid members", args[0])
		},
	}
	c.Flags().String("wallet", "operator", "operator's `WALLET`: a file, or a name in the state folder")
	c.Flags().String("reason", "", "a few words, no personal data")
	return agreed(c, "operator")
}
