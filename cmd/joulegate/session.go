package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/access"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/audit"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
	"github.com/spf13/cobra"
)

func newSessionCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "session",
		Short: "Charge a car: quote, start, stop",
		Long: `A session begins with a price. The driver's key signs the quote; that signature
is the authorisation. The ledger holds the money, each slot's energy is captured
from the hold, and what is left returns in the same block as the settlement.`,
	}
	c.AddCommand(newSessionQuoteCmd(), newSessionStartCmd(), newSessionStopCmd(), newSessionPlanCmd(), newSessionLsCmd(), newSessionShowCmd())
	return c
}

func quoteFlags(c *cobra.Command) {
	f := c.Flags()
	f.String("wallet", "", "driver's `WALLET`: a file, or a name in the state folder")
	f.String("code", "", "instead: a printed `CODE`, whose maker pays")
	f.Uint8("connector", 1, "charging point")
	f.String("kwh", "10", "most `ENERGY` to pay for, in kWh")
	planFlags(c)
	f.String("sell-kwh", "", "most `ENERGY` that the car gives, in kWh; the charger must be able to discharge; with it --kwh may be 0")
	f.String("sell-price", "", "give no kWh for less than this `PRICE`, for example 0.15")
	f.Bool("redeem", false, "spend saved discount credit on this bill; default: what the account's profile says")
	c.MarkFlagsOneRequired("wallet", "code")
	c.MarkFlagsMutuallyExclusive("wallet", "code")
	atFlag(c)
}

// askQuote reads the flags, opens the driver's wallet and fetches a quote.
func askQuote(cmd *cobra.Command, g *panel.Client) (keys.Wallet, panel.Quote, error) {
	w, err := payer(cmd)
	if err != nil {
		return w, panel.Quote{}, err
	}
	s, _ := cmd.Flags().GetString("kwh")
	n, err := parseMoney(s) // three decimals of a kWh are Wh
	sale, bad := sellOrder(cmd)
	if bad != nil {
		return w, panel.Quote{}, usageError{bad}
	}
	if err != nil || n < 0 || n == 0 && sale.SellWh == 0 || n%1e6 != 0 {
		return w, panel.Quote{}, usageError{fmt.Errorf("--kwh %q: write it like 7.5, at most three decimals", s)}
	}
	o, err := planOrder(cmd, time.Now())
	if err != nil {
		return w, panel.Quote{}, err
	}
	connector, _ := cmd.Flags().GetUint8("connector")
	redeem, _ := cmd.Flags().GetBool("redeem")
	if !cmd.Flags().Changed("redeem") {
		a, err := g.Account(cmd.Context(), w.Account())
		if err != nil {
			return w, panel.Quote{}, err
		}
		redeem = a.Profile.Redeem
	}
	sale.Connector, sale.Driver, sale.MaxWh, sale.Redeem, sale.PlanOrder = connector, w.Public(), meter.WattHour(n/1e6), redeem, o
	q, err := g.Quote(cmd.Context(), sale)
	return w, q, err
}

// sellOrder reads what the car gives.
func sellOrder(cmd *cobra.Command) (r panel.QuoteRequest, err error) {
	wh, _ := cmd.Flags().GetString("sell-kwh")
	price, _ := cmd.Flags().GetString("sell-price")
	switch {
	case wh == "" && price == "":
		return r, nil
	case wh == "":
		return r, errors.New("--sell-price needs --sell-kwh")
	}
	n, err := parseMoney(wh) // three decimals of a kWh are Wh
	if err != nil || n <= 0 || n%1e6 != 0 {
		return r, fmt.Errorf("--sell-kwh %q: write it like 7.5, at most three decimals", wh)
	}
	r.SellWh = meter.WattHour(n / 1e6)
	if price != "" {
		n, err := parseMoney(price)
		if err != nil || n < 0 || n%1000 != 0 {
			return r, fmt.Errorf("--sell-price %q: write a price per kWh like 0.15, at most six decimals", price)
		}
		r.SellLimit = chain.NanoPerWh(n / 1000)
	}
	return r, nil
}

// payer is the wallet or the printed code that pays.
func payer(cmd *cobra.Command) (keys.Wallet, error) {
	if code, _ := cmd.Flags().GetString("code"); code != "" {
		key, err := access.ParseCode(code)
		return keys.Wallet{Name: "code", Key: key}, err
	}
	name, _ := cmd.Flags().GetString("wallet")
	return wallet(cmd, name)
}

func printQuote(w io.Writer, q panel.Quote) error {
	_, err := fmt.Fprintln(w, strings.Join(q.Words, "\n"))
	return err
}

func newSessionQuoteCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "quote",
		Short:   "Ask what charging costs; nothing is held",
		Example: "  joulegate session quote --wallet anna --kwh 8\n  joulegate session quote --wallet anna --kwh 20 --by 07:00 --max-price 0.25\n  joulegate session quote --wallet anna --kwh 0 --sell-kwh 12 --sell-price 0.15\n  joulegate session quote --wallet anna.key --at http://192.0.2.7:8080",
		Args:    cobra.NoArgs,
	}
	quoteFlags(c)
	return query(c, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Quote, error) {
		_, q, err := askQuote(cmd, g)
		return q, err
	}, printQuote)
}

func newSessionStartCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "start",
		Short:   "Accept a price and start charging",
		Long:    "Shows the price first, then signs the quote with the driver's key and starts. --yes skips the question.",
		Example: "  joulegate session start --wallet anna --kwh 8 --redeem",
		Args:    cobra.NoArgs,
	}
	quoteFlags(c)
	c.Flags().Bool("yes", false, "accept the price without being asked")
	return query(c, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Session, error) {
		w, q, err := askQuote(cmd, g)
		if err != nil {
			return panel.Session{}, err
		}
		if yes, _ := cmd.Flags().GetBool("yes"); !yes {
			if err := printQuote(cmd.ErrOrStderr(), q); err != nil {
				return panel.Session{}, err
			}
			fmt.Fprint(cmd.ErrOrStderr(), "Start? [y/N] ")
			var answer string
			_, _ = fmt.Fscanln(cmd.InOrStdin(), &answer) // no answer is no
			if answer != "y" && answer != "Y" && answer != "yes" {
				return panel.Session{}, errors.New("not started: the quote was not accepted")
			}
		}
		return g.StartSession(cmd.Context(), q.Sign(w.Key))
	}, printSession)
}

func newSessionStopCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "stop ID",
		Short:   "Stop charging",
		Long:    "Stops a session. On the gateway itself no key is needed; from elsewhere (--at) the driver's wallet signs the order.",
		Example: "  joulegate session stop 6f1c...\n  joulegate session stop 6f1c... --wallet anna --at http://192.0.2.7:8080",
		Args:    cobra.ExactArgs(1),
	}
	c.Flags().String("wallet", "", "driver's `WALLET`")
	return query(atFlag(c), func(cmd *cobra.Command, g *panel.Client, args []string) (panel.Session, error) {
		id, err := sessionID(args[0])
		if err != nil {
			return panel.Session{}, err
		}
		var order panel.StopOrder
		if name, _ := cmd.Flags().GetString("wallet"); name != "" {
			w, err := wallet(cmd, name)
			if err != nil {
				return panel.Session{}, err
			}
			order = panel.SignStop(id, w.Key)
		}
		return g.StopSession(cmd.Context(), id, order)
	}, printSession)
}

func newSessionLsCmd() *cobra.Command {
	return ledgerQuery(atFlag(&cobra.Command{
		Use:   "ls",
		Short: "List sessions of the microgrid",
		Args:  cobra.NoArgs,
	}), func(cmd *cobra.Command, g *panel.Client, _ []string) ([]panel.Session, error) {
		return g.Sessions(cmd.Context())
	}, func(l stoppedLedger, _ []string) ([]panel.Session, error) { return sessionsOf(l), nil }, func(w io.Writer, sessions []panel.Session) error {
		rows := [][]string{{"SESSION", "GATEWAY", "STATE", "ENERGY", "LOCAL", "PAID", "EARNED", "REDEEMED", "OPENED"}}
		for _, s := range sessions {
			rows = append(rows, []string{
				s.ID.String(), s.GatewayName, s.State.String(), kWh(s.Wh), kWh(s.LocalWh), money(s.Paid),
				money(s.CreditEarned), money(s.CreditRedeemed), time.UnixMilli(s.OpenedMs).Format(time.DateTime),
			})
		}
		return table(w, rows)
	})
}

func newSessionShowCmd() *cobra.Command {
	return ledgerQuery(atFlag(&cobra.Command{
		Use:   "show ID",
		Short: "Show one session",
		Args:  cobra.ExactArgs(1),
	}), func(cmd *cobra.Command, g *panel.Client, args []string) (panel.Session, error) {
		id, err := sessionID(args[0])
		if err != nil {
			return panel.Session{}, err
		}
		return g.Session(cmd.Context(), id)
	}, func(l stoppedLedger, args []string) (panel.Session, error) {
		id, err := sessionID(args[0])
		if err != nil {
			return panel.Session{}, err
		}
		return sessionOf(l, id)
	}, printSession)
}

func sessionID(s string) (chain.ID, error) {
	var id chain.ID
	if err := id.UnmarshalText([]byte(s)); err != nil {
		return id, usageError{fmt.Errorf("session %q: 32 hex digits, as in: joulegate session ls", s)}
	}
	return id, nil
}

func printSession(w io.Writer, s panel.Session) error {
	rows := [][]string{
		{"session", s.ID.String()},
		{"state", s.State.String()},
		{"gateway", fmt.Sprintf("%s, connector %d", s.GatewayName, s.Connector)},
		{"energy", fmt.Sprintf("%s of at most %s, %s from neighbours", kWh(s.Wh), kWh(s.MaxWh), kWh(s.LocalWh))},
		{"held", fmt.Sprintf("%s, captured %s, released %s", money(s.Hold), money(s.Captured), money(s.Released))},
	}
	rows = append(rows, saleRows(s)...)
	rows = append(rows, planRows(s.Plan)...)
	if !s.State.Open() {
		rows = append(rows,
			[]string{"paid", money(s.Paid)},
			[]string{"discount credit", fmt.Sprintf("%s redeemed, %s earned", money(s.CreditRedeemed), money(s.CreditEarned))},
			[]string{"ended", s.Reason.String()})
	}
	return table(w, rows)
}

// saleRows tell what a car has given, and what it has taken under promises.
func saleRows(s panel.Session) (rows [][]string) {
	if s.SellWh > 0 {
		rows = append(rows,
			[]string{"given", fmt.Sprintf("%s of at most %s, neighbours pay %s or more", kWh(s.Sold), kWh(s.SellWh), perKWh(s.SellLimit))},
			[]string{"received", money(s.Earned)})
	}
	if s.FirmWh > 0 || s.FirmPaid != 0 {
		rows = append(rows, []string{"promised to it", fmt.Sprintf("%s, paid with %s beside the hold", kWh(s.FirmWh), money(s.FirmPaid))})
	}
	return rows
}

// receiptRows is what the ledger says of a session, for its driver.
func receiptRows(s panel.Session, currency string) [][]string {
	sum := func(n chain.Nano) string { return strings.TrimSpace(money(n) + " " + currency) }
	rows := [][]string{
		{"session", s.ID.String()},
		{"at", fmt.Sprintf("%s, connector %d", s.GatewayName, s.Connector)},
		{"from", time.UnixMilli(s.OpenedMs).Format(time.DateTime)},
		{"to", time.UnixMilli(max(s.RegisterMs, s.OpenedMs)).Format(time.DateTime)},
		{"energy", fmt.Sprintf("%s, register %d to %d Wh", kWh(s.Wh), s.Begin, s.Register)},
		{"from neighbours", kWh(s.LocalWh)},
		{"price", sum(s.Captured) + ", tax included"},
		{"discount credit", sum(s.CreditRedeemed) + " spent on it"},
		{"paid", sum(s.Paid) + " from your balance"},
		{"discount credit", sum(s.CreditEarned) + " earned for next time"},
	}
	rows = append(rows, saleRows(s)...)
	if s.Refunded > 0 {
		rows = append(rows, []string{"refunded", sum(s.Refunded)})
	}
	if s.Invoice != "" {
		rows = append(rows, []string{"invoice", s.Invoice})
	}
	return rows
}

// printReceipt is the receipt that a driver reads.
func printReceipt(w io.Writer, s panel.Session, attested []ledger.AttestationView) error {
	if s.State.Open() {
		fmt.Fprintln(w, "still open: this is not the final bill")
	}
	rows := receiptRows(s, "")
	if s.NotBillable != "" {
		rows = append(rows, []string{"NOT FOR BILLING", s.NotBillable})
	}
	return table(w, append(rows,
		[]string{"measurement", "tamper-evident, not a certified (MID, Eichrecht) measurement"},
		[]string{"attested", attestedBy(attested)[0]},
		[]string{"questions", "whom to call stands on the signed receipt; to contest the bill: joulegate dispute open"}))
}

// receiptDoc is a receipt in JSON.
type receiptDoc struct {
	Session chain.ID `json:"session"`
	Format  string   `json:"format"`
	Receipt string   `json:"receipt"`
	// Block is the ledger's newest when charging ended, AppHash its app hash
	// or the first digits of it: a checkpoint of that height says the same, or
	// comes from another history.
	Block   int64  `json:"ledger_block,omitempty"`
	AppHash string `json:"ledger_app_hash,omitempty"`
}

func newReceiptCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "receipt ID",
		Short: "Print a session's receipt",
		Long: `Prints a signed receipt in the Open Charge Metering Format. The receipt is
tamper-evident; it is not a certified (MID or Eichrecht) measurement.`,
		Example: "  joulegate receipt 6f1c... --ocmf\n  joulegate receipt 6f1c... --xml > receipt.xml\n  joulegate receipt 6f1c... --html receipt.html",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sessionID(args[0])
			if err != nil {
				return err
			}
			format := "ocmf"
			if x, _ := cmd.Flags().GetBool("xml"); x {
				format = "xml"
			}
			native, _ := cmd.Flags().GetBool("native")
			if native {
				format = "native"
			}
			file, _ := cmd.Flags().GetString("html")
			if file != "" {
				format = "html"
			}
			cl, err := dial(cmd)
			if err != nil {
				return err
			}
			s, err := cl.Session(cmd.Context(), id)
			if err != nil {
				return err
			}
			if text, _ := cmd.Flags().GetBool("text"); text {
				l, err := cl.LedgerStatus(cmd.Context())
				if err != nil {
					return err
				}
				return emit(cmd, s, func(w io.Writer) error { return printReceipt(w, s, l.Attestations) })
			}
			if s.NotBillable != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "not for billing:", s.NotBillable)
			}
			b, err := cl.Receipt(cmd.Context(), id, format)
			if err != nil {
				return err
			}
			if file != "" {
				if err := writeFile(file, b, 0o644); err != nil {
					return err
				}
				return emit(cmd, map[string]string{"session": id.String(), "format": format, "file": file}, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, file)
					return err
				})
			}
			if native {
				var n audit.Native
				if err := json.Unmarshal(b, &n); err != nil {
					return err
				}
				fmt.Fprintln(cmd.ErrOrStderr(), n.Note)
				return emit(cmd, n, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, n.Line)
					return err
				})
			}
			if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
				doc := receiptDoc{Session: id, Format: format, Receipt: string(b)}
				if format == "ocmf" {
					doc.Block, doc.AppHash = audit.Anchor(doc.Receipt)
				}
				return emit(cmd, doc, nil)
			}
			_, err = cmd.OutOrStdout().Write(append(b, '\n'))
			return err
		},
	}
	c.Flags().Bool("ocmf", true, "one OCMF line")
	c.Flags().Bool("xml", false, "the XML container that transparency software reads")
	c.Flags().Bool("native", false, "the record that the meter has signed itself, as it is")
	c.Flags().Bool("text", false, "in words: energy, price, discount credit spent and earned")
	c.Flags().String("html", "", "`FILE` for a page to print, with a QR code that holds the signed receipt")
	c.MarkFlagsMutuallyExclusive("ocmf", "xml", "native", "text", "html")
	atFlag(c)
	return c
}
