package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/access"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

func (b backend) Mandates(_ context.Context, payer chain.Account) (panel.Mandates, error) {
	return view(b, func(st ledger.State) panel.Mandates {
		m := panel.Mandates{Mandates: ledger.Mandates(st, payer), Reserves: ledger.Reserves(st, payer)}
		if m.Mandates == nil {
			m.Mandates = []ledger.MandateView{}
		}
		if m.Reserves == nil {
			m.Reserves = []ledger.ReserveView{}
		}
		return m
	})
}

// cardBook opens the cards of this state folder.
func cardBook(cmd *cobra.Command, create bool) (*access.Book, error) {
	st := stateOf(cmd)
	secret, err := cardsSecret(st, create)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no card has been added on this gateway: joulegate card add (%w)", err)
	}
	if err != nil {
		return nil, err
	}
	return access.OpenBook(st.cards(), secret)
}

func newCardCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "card",
		Short: "Let drivers charge with a card",
		Long: `A card's number is never stored: the gateway keeps its keyed hash (HMAC-SHA-256)
under a key of the operator, and a random token beside it. A card can be copied by
anybody who holds a reader to it, so the payer's mandate bounds what a card can
cost per tap and per day.

The key and the book are keys/cards.key and keys/cards.json in the state folder.
Copy both to the operator's other gateways that have a reader.`,
	}
	add := &cobra.Command{
		Use:   "add",
		Short: "Give a card a token",
		Long: `Reads the card's number (hex digits) from standard input, so that it is in no
list of commands, and prints the token with its consent. The payer signs that into
a mandate: joulegate mandate sign --token ...`,
		Example: "  joulegate card add --payer anna --label \"blue fob\"\n  head -n 1 /dev/ttyACM0 | joulegate card add --payer 9f3c...",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			label, _ := cmd.Flags().GetString("label")
			arg, _ := cmd.Flags().GetString("payer")
			payer, err := publicKey(cmd, arg)
			if err != nil {
				return err
			}
			id, err := chainOf(cmd)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "Card number (hex), or hold the card to the reader:")
			line, _ := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 128)).ReadString('\n')
			uid, ok := access.ParseUID(line)
			if !ok {
				return errors.New("that is no card's number: 8, 14, 16 or 20 hex digits")
			}
			b, err := cardBook(cmd, true)
			if err != nil {
				return err
			}
			card, err := b.Add(uid, label, time.Now())
			if err != nil {
				return err
			}
			sig, err := b.Consent(card.Token, id, payer)
			if err != nil {
				return err
			}
			v := map[string]any{"token": card.Token, "consent": hex.EncodeToString(sig), "label": card.Label}
			return emit(cmd, v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "token    %s\nconsent  %x\n\nthe payer signs:\n  joulegate mandate sign --wallet WALLET --token %s.%x --per-tap 10 --per-day 30\n", card.Token, sig, card.Token, sig)
				return err
			})
		},
	}
	add.Flags().String("payer", "", "who will pay: public `KEY` or wallet")
	add.Flags().String("label", "", "`TEXT` for people; no name, no number")
	_ = add.MarkFlagRequired("payer")
	c.AddCommand(add,
		&cobra.Command{
			Use: "ls", Short: "List cards by token", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				b, err := cardBook(cmd, false)
				if err != nil {
					return err
				}
				cards, err := b.Cards()
				if err != nil {
					return err
				}
				return emit(cmd, cards, func(w io.Writer) error {
					rows := [][]string{{"TOKEN", "LABEL", "ADDED", "REVOKED"}}
					for _, c := range cards {
						revoked := ""
						if !c.Revoked.IsZero() {
							revoked = c.Revoked.Format(time.DateOnly)
						}
						rows = append(rows, []string{c.Token.String(), c.Label, c.Added.Format(time.DateOnly), revoked})
					}
					return table(w, rows)
				})
			},
		},
		&cobra.Command{
			Use: "revoke TOKEN", Short: "Take a card's token away on this gateway; at once, without the ledger",
			Long: `The reader refuses the card from now on. The payer's mandate ends by itself or with
"joulegate mandate revoke".`, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				var token chain.Key
				if err := token.UnmarshalText([]byte(args[0])); err != nil {
					return usageError{err}
				}
				b, err := cardBook(cmd, false)
				if err != nil {
					return err
				}
				card, err := b.Revoke(token, time.Now())
				if err != nil {
					return err
				}
				return emit(cmd, card, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, "revoked", card.Token)
					return err
				})
			},
		})
	return c
}

// chainOf returns the id of this state folder's microgrid.
func chainOf(cmd *cobra.Command) (string, error) {
	_, g, _, err := consensus.ReadGenesis(stateOf(cmd).genesis())
	return g.ChainID, err
}

// publicKey reads a public key or the name of a wallet.
func publicKey(cmd *cobra.Command, arg string) (k chain.Key, err error) {
	if k.UnmarshalText([]byte(arg)) == nil {
		return k, nil
	}
	w, err := wallet(cmd, arg)
	if err != nil {
		return k, fmt.Errorf("%q is neither a public key nor a wallet: %w", arg, err)
	}
	return w.Public(), nil
}

// mandateFlags are the terms of a mandate.
func mandateFlags(c *cobra.Command, uses uint32) {
	f := c.Flags()
	f.String("wallet", "", "`WALLET` of who pays: a file, or a name in the state folder")
	f.String("per-tap", "", "most `AMOUNT` that one session may cost")
	f.String("per-day", "", "most `AMOUNT` within a day (UTC); default: as per tap")
	f.String("price", "1.00", "no session at a higher `PRICE` per kWh")
	f.Int("days", 365, "how many days it holds")
	f.Uint32("uses", uses, "sessions in all; 0: any number")
	f.String("gateway", "", "only at the gateway of this `NAME`")
	_ = c.MarkFlagRequired("wallet")
	_ = c.MarkFlagRequired("per-tap")
}

// mandateTerms reads the flags.
func mandateTerms(cmd *cobra.Command, g *panel.Client) (m chain.Mandate, err error) {
	f := cmd.Flags()
	tap, _ := f.GetString("per-tap")
	day, _ := f.GetString("per-day")
	if day == "" {
		day = tap
	}
	for _, a := range []struct {
		name, value string
		to          *chain.Nano
	}{{"per-tap", tap, &m.PerTap}, {"per-day", day, &m.PerDay}} {
		if *a.to, err = parseMoney(a.value); err != nil || *a.to <= 0 {
			return m, usageError{fmt.Errorf("--%s %q: an amount like 12.50", a.name, a.value)}
		}
	}
	price, _ := f.GetString("price")
	if m.Cap, err = parsePrice(price); err != nil || m.Cap <= 0 {
		return m, usageError{fmt.Errorf("--price %q: a price per kWh like 0.45", price)}
	}
	days, _ := f.GetInt("days")
	if days < 1 || days > 3650 {
		return m, usageError{fmt.Errorf("--days %d: 1 to 3650", days)}
	}
	m.Expires = time.Now().Add(time.Duration(days) * 24 * time.Hour).UnixMilli()
	m.Uses, _ = f.GetUint32("uses")
	if name, _ := f.GetString("gateway"); name != "" {
		m.Gateway, err = gatewayKey(cmd.Context(), g, name)
	}
	return m, err
}

func gatewayKey(ctx context.Context, g *panel.Client, name string) (chain.Key, error) {
	members, err := g.Members(ctx)
	if err != nil {
		return chain.Key{}, err
	}
	i := slices.IndexFunc(members, func(m panel.Member) bool { return m.Active && m.Name == name })
	if i < 0 {
		return chain.Key{}, fmt.Errorf("there is no gateway %q: joulegate grid members", name)
	}
	return members[i].Device, nil
}

func printMandates(w io.Writer, m panel.Mandates, kinds ...chain.MandateKind) error {
	rows := [][]string{{"TOKEN", "KIND", "PER TAP", "PER DAY", "PRICE", "USED", "TODAY", "UNTIL"}}
	for _, v := range m.Mandates {
		if len(kinds) > 0 && !slices.Contains(kinds, v.Mandate.Kind) {
			continue
		}
		used := strconv.Itoa(int(v.Used))
		if v.Mandate.Uses > 0 {
			used += " of " + strconv.Itoa(int(v.Mandate.Uses))
		}
		until := time.UnixMilli(v.Mandate.Expires).Format(time.DateOnly)
		if v.RevokedMs != 0 {
			until = "revoked"
		}
		rows = append(rows, []string{
			v.Mandate.Token.String(), v.Mandate.Kind.String(), money(v.Mandate.PerTap), money(v.Mandate.PerDay),
			money(chain.Nano(v.Mandate.Cap) * 1000), used, money(v.Spent), until,
		})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if len(m.Reserves) == 0 || len(kinds) > 0 {
		return nil
	}
	rows = [][]string{{"", ""}, {"RESERVE AT GATEWAY", "AMOUNT", "ASKED BACK"}}
	for _, r := range m.Reserves {
		back := ""
		if r.Leaving > 0 {
			back = money(r.Leaving) + " on " + time.UnixMilli(r.DueMs).Format(time.DateOnly)
		}
		rows = append(rows, []string{r.Gateway.String(), money(r.Amount), back})
	}
	return table(w, rows)
}

func printTx(w io.Writer, r panel.TxResult) error {
	_, err := fmt.Fprintf(w, "done in block %d\n", r.Height)
	return err
}

func newMandateCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "mandate",
		Short: "Pay for cards, codes and an owner's cars, within limits",
		Long: `A mandate lets the holder of a token charge at the signer's cost: at most so much
per tap and per day, never above a price, until a date or its revocation. A
session that it opens needs no phone.

A reserve is money set apart for one gateway, so that a tap works there while the
ledger cannot be reached. It is nobody else's to spend; asked back, it returns
after seven days.`,
	}
	sign := &cobra.Command{
		Use:   "sign",
		Short: "Sign a mandate for a token, or change its terms",
		Long: `The token and its consent come from "joulegate card add". --kind owner puts a card
or car on the owner's free list: its driver pays nothing, the owner does.`,
		Example: "  joulegate mandate sign --wallet anna --token TOKEN.CONSENT --per-tap 10 --per-day 30 --price 0.45\n  joulegate mandate sign --wallet owner --token TOKEN.CONSENT --kind owner --gateway house1 --per-tap 20",
		Args:    cobra.NoArgs,
	}
	mandateFlags(sign, 0)
	sign.Flags().String("token", "", "`TOKEN.CONSENT` as card add prints it")
	sign.Flags().String("kind", "card", "card, or owner for an owner's free list")
	_ = sign.MarkFlagRequired("token")
	query(sign, func(cmd *cobra.Command, g *panel.Client, _ []string) (r panel.TxResult, err error) {
		m, err := mandateTerms(cmd, g)
		if err != nil {
			return r, err
		}
		arg, _ := cmd.Flags().GetString("token")
		token, consent, _ := strings.Cut(arg, ".")
		if err := m.Token.UnmarshalText([]byte(token)); err != nil {
			return r, usageError{fmt.Errorf("--token: %w", err)}
		}
		if m.Consent, err = hex.DecodeString(consent); err != nil || len(m.Consent) == 0 {
			return r, usageError{errors.New("--token: the consent is missing: TOKEN.CONSENT as card add prints it")}
		}
		kind, _ := cmd.Flags().GetString("kind")
		if err := m.Kind.UnmarshalText([]byte(kind)); err != nil {
			return r, usageError{err}
		}
		return signed(cmd, g, chain.TxMandate, m)
	}, printTx)

	revoke := &cobra.Command{Use: "revoke TOKEN", Short: "End a mandate; sessions that are open go on", Example: "  joulegate mandate revoke --wallet anna 4be1...", Args: cobra.ExactArgs(1)}
	revoke.Flags().String("wallet", "", "`WALLET` that signed it")
	_ = revoke.MarkFlagRequired("wallet")
	query(revoke, func(cmd *cobra.Command, g *panel.Client, args []string) (r panel.TxResult, err error) {
		var b chain.MandateRevoke
		if err := b.Token.UnmarshalText([]byte(args[0])); err != nil {
			return r, usageError{err}
		}
		return signed(cmd, g, chain.TxMandateRevoke, b)
	}, printTx)

	ls := &cobra.Command{Use: "ls ACCOUNT", Short: "List what an account pays for, and its reserves", Example: "  joulegate mandate ls anna", Args: cobra.ExactArgs(1)}
	query(atFlag(ls), func(cmd *cobra.Command, g *panel.Client, args []string) (m panel.Mandates, err error) {
		a, err := account(cmd, args[0])
		if err != nil {
			return m, err
		}
		return g.Mandates(cmd.Context(), a)
	}, func(w io.Writer, m panel.Mandates) error { return printMandates(w, m) })

	reserve := &cobra.Command{
		Use: "reserve AMOUNT", Short: "Set money apart for taps at a gateway without the ledger; --back asks it back",
		Example: "  joulegate mandate reserve 20 --wallet anna --gateway house1\n  joulegate mandate reserve 20 --wallet anna --gateway house1 --back", Args: cobra.ExactArgs(1),
	}
	reserve.Flags().String("wallet", "", "`WALLET` of who pays")
	reserve.Flags().String("gateway", "", "gateway's `NAME`")
	reserve.Flags().Bool("back", false, "ask it back; it returns after seven days")
	_ = reserve.MarkFlagRequired("wallet")
	_ = reserve.MarkFlagRequired("gateway")
	query(reserve, func(cmd *cobra.Command, g *panel.Client, args []string) (r panel.TxResult, err error) {
		amount, err := parseMoney(args[0])
		if err != nil || amount <= 0 {
			return r, usageError{fmt.Errorf("amount %q: write it like 12.50, more than zero", args[0])}
		}
		if back, _ := cmd.Flags().GetBool("back"); back {
			amount = -amount
		}
		name, _ := cmd.Flags().GetString("gateway")
		b := chain.Offline{Amount: amount}
		if b.Gateway, err = gatewayKey(cmd.Context(), g, name); err != nil {
			return r, err
		}
		return signed(cmd, g, chain.TxOffline, b)
	}, printTx)
	c.AddCommand(sign, revoke, ls, reserve)
	return c
}

// signed submits a statement of the wallet that --wallet names.
func signed(cmd *cobra.Command, g *panel.Client, kind chain.TxKind, body any) (panel.TxResult, error) {
	name, _ := cmd.Flags().GetString("wallet")
	w, err := wallet(cmd, name)
	if err != nil {
		return panel.TxResult{}, err
	}
	return submit(cmd, g, w, kind, body)
}

// newCode is a printed code with its mandate.
type newCode struct {
	Code  string    `json:"code"`
	Token chain.Key `json:"token"`
}

func newCodeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "code",
		Short: "Print codes that pay for charging",
		Long: `A code is a key on paper. Whoever has it charges at the signer's cost, once or as
often as --uses says: shown to a reader as a QR code or typed, or from elsewhere
with "joulegate session start --code". It is printed once and kept nowhere.`,
	}
	mk := &cobra.Command{
		Use: "new", Short: "Make codes and sign their mandates",
		Example: "  joulegate code new --wallet host --per-tap 5 --days 30\n  joulegate code new --wallet host --per-tap 5 --uses 10 --count 3", Args: cobra.NoArgs,
	}
	mandateFlags(mk, 1)
	mk.Flags().Int("count", 1, "how many codes")
	query(mk, func(cmd *cobra.Command, g *panel.Client, _ []string) (out []newCode, err error) {
		count, _ := cmd.Flags().GetInt("count")
		if count < 1 || count > 100 {
			return nil, usageError{fmt.Errorf("--count %d: 1 to 100", count)}
		}
		m, err := mandateTerms(cmd, g)
		if err != nil {
			return nil, err
		}
		if f := cmd.Flags(); m.Uses > 1 && !f.Changed("per-day") {
			m.PerDay = m.PerTap * chain.Nano(m.Uses)
		}
		m.Kind = chain.MandateCode
		name, _ := cmd.Flags().GetString("wallet")
		w, err := wallet(cmd, name)
		if err != nil {
			return nil, err
		}
		s, err := g.Status(cmd.Context())
		if err != nil {
			return nil, err
		}
		for range count {
			code, key, err := access.NewCode(rand.Reader)
			if err != nil {
				return out, err
			}
			copy(m.Token[:], key[32:])
			m.Consent = chain.Sign(key, chain.DomainMandate, chain.ConsentBytes(s.Chain, w.Public()))
			if _, err := submit(cmd, g, w, chain.TxMandate, m); err != nil {
				return out, err
			}
			out = append(out, newCode{code, m.Token})
		}
		return out, nil
	}, func(w io.Writer, codes []newCode) error {
		for _, c := range codes {
			if _, err := fmt.Fprintf(w, "%s   (token %s)\n", c.Code, c.Token.Short()); err != nil {
				return err
			}
		}
		return nil
	})
	ls := &cobra.Command{Use: "ls ACCOUNT", Short: "List an account's codes by token, and how often they were used", Args: cobra.ExactArgs(1)}
	query(atFlag(ls), func(cmd *cobra.Command, g *panel.Client, args []string) (m panel.Mandates, err error) {
		a, err := account(cmd, args[0])
		if err != nil {
			return m, err
		}
		if m, err = g.Mandates(cmd.Context(), a); err != nil {
			return m, err
		}
		m.Mandates = slices.DeleteFunc(m.Mandates, func(v ledger.MandateView) bool { return v.Mandate.Kind != chain.MandateCode })
		return m, nil
	}, func(w io.Writer, m panel.Mandates) error { return printMandates(w, m, chain.MandateCode) })
	c.AddCommand(mk, ls)
	return c
}
