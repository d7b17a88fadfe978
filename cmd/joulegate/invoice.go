package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

func newInvoiceCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "invoice",
		Short: "Invoices, self-billed invoices and credit notes",
		Long: `Documents have numbers without gaps on the ledger, which knows accounts and never
people. Names, addresses and VAT ids come from the operator's parties file when a
document is exported. While nobody has recorded a legal basis for selling energy,
documents are simulated and not for billing.`,
	}
	c.AddCommand(newInvoiceLsCmd(), newInvoiceShowCmd(), newInvoiceIssueCmd(), newInvoiceExportCmd(), newInvoiceMeterCmd(), newInvoicePeriodsCmd())
	return c
}

func newInvoiceLsCmd() *cobra.Command {
	c := &cobra.Command{Use: "ls [ACCOUNT]", Short: "List documents, newest last", Args: cobra.MaximumNArgs(1)}
	of := func(cmd *cobra.Command, args []string) (a chain.Account, err error) {
		if len(args) > 0 {
			a, err = account(cmd, args[0])
		}
		return a, err
	}
	return ledgerQuery(c, func(cmd *cobra.Command, g *panel.Client, args []string) ([]panel.Invoice, error) {
		a, err := of(cmd, args)
		if err != nil {
			return nil, err
		}
		return g.Invoices(cmd.Context(), a)
	}, func(l stoppedLedger, args []string) ([]panel.Invoice, error) {
		a, err := of(c, args)
		return invoicesOf(l, a), err
	}, func(w io.Writer, all []panel.Invoice) error {
		rows := [][]string{{"DOCUMENT", "KIND", "ISSUED", "ACCOUNT", "LINES", "TOTAL", "REMARK"}}
		for _, v := range all {
			rows = append(rows, []string{v.ID, v.Kind.String(), date(v.IssuedMs), v.Account.String(), fmt.Sprint(len(v.Items)), money(v.Total), remark(v)})
		}
		return table(w, rows)
	})
}

func remark(v panel.Invoice) string {
	switch {
	case v.Simulated:
		return "simulated, not for billing"
	case !v.Billable:
		return "meter not approved, not for billing"
	}
	return ""
}

func newInvoiceShowCmd() *cobra.Command {
	return ledgerQuery(&cobra.Command{Use: "show DOCUMENT", Short: "Show one document as the ledger has it", Args: cobra.ExactArgs(1)},
		func(cmd *cobra.Command, g *panel.Client, args []string) (panel.Invoice, error) {
			return g.Invoice(cmd.Context(), args[0])
		}, func(l stoppedLedger, args []string) (panel.Invoice, error) { return invoiceOf(l, args[0]) }, func(w io.Writer, v panel.Invoice) error {
			fmt.Fprintf(w, "%s  %s  %s\naccount %s (%s)\nsupplies from %s to %s\n", v.ID, v.Kind, date(v.IssuedMs), v.Account, v.Tax, date(v.FromMs), date(v.ToMs))
			if r := remark(v); r != "" {
				fmt.Fprintln(w, strings.ToUpper(r))
			}
			if v.Reason != "" {
				fmt.Fprintf(w, "reason: %s\n", v.Reason)
			}
			rows := [][]string{{"ITEM", "SESSION", "ENERGY", "GROSS", "DISCOUNT CREDIT", "TAX"}}
			for _, i := range v.Items {
				tax := "none"
				if i.Taxed {
					tax = percent(i.TaxPPM)
				}
				session := ""
				if i.Session != (chain.ID{}) {
					session = i.Session.String()
				}
				rows = append(rows, []string{i.Kind.String(), session, kWh(i.Wh), money(i.Amount), money(i.Credit), tax})
			}
			if err := table(w, rows); err != nil {
				return err
			}
			_, err := fmt.Fprintf(w, "exact %s, rounded to %s; the difference is on %s\n", money(v.Exact), money(v.Total), chain.AccountRounding)
			return err
		})
}

func newInvoiceIssueCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "issue [ACCOUNT]...",
		Short: "Bill what has not been billed (operator)",
		Long: `Makes an invoice of an account's settled sessions and bought energy, and a
self-billed invoice of what it sold. With --all it does so for every account.`,
		Example: "  joulegate invoice issue --all\n  joulegate invoice issue anna",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, _ := cmd.Flags().GetBool("all")
			if all == (len(args) > 0) {
				return usageError{errors.New("name accounts, or give --all")}
			}
			cl, err := dial(cmd)
			if err != nil {
				return err
			}
			var accounts []chain.Account
			if all {
				if accounts, err = cl.Unbilled(cmd.Context()); err != nil {
					return err
				}
			}
			for _, s := range args {
				a, err := account(cmd, s)
				if err != nil {
					return err
				}
				accounts = append(accounts, a)
			}
			name, _ := cmd.Flags().GetString("wallet")
			w, err := wallet(cmd, name)
			if err != nil {
				return err
			}
			before, err := cl.Invoices(cmd.Context(), chain.Account{})
			if err != nil {
				return err
			}
			for _, a := range accounts {
				for more := true; more; { // as many documents as it takes
					if _, err := submit(cmd, cl, w, chain.TxInvoice, chain.IssueInvoice{Account: a}); err != nil {
						return fmt.Errorf("account %s: %w", a, err)
					}
					docs, err := cl.Invoices(cmd.Context(), a)
					if err != nil {
						return err
					}
					more = len(docs) > 0 && slices.ContainsFunc(docs[max(0, len(docs)-2):], func(v panel.Invoice) bool { return len(v.Items) >= ledger.MaxInvoiceItems })
					if more {
						left, err := cl.Unbilled(cmd.Context())
						if err != nil {
							return err
						}
						more = slices.Contains(left, a)
					}
				}
			}
			after, err := cl.Invoices(cmd.Context(), chain.Account{})
			if err != nil {
				return err
			}
			fresh := after[min(len(before), len(after)):]
			return emit(cmd, fresh, func(out io.Writer) error {
				for _, v := range fresh {
					fmt.Fprintf(out, "%s  %s  %s\n", v.ID, money(v.Total), remark(v))
				}
				return nil
			})
		},
	}
	c.Flags().Bool("all", false, "every account that has something to bill")
	c.Flags().String("wallet", "operator", "operator's `WALLET`: a file, or a name in the state folder")
	return c
}

func newInvoiceExportCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "export DOCUMENT...",
		Short: "Export documents as EN 16931 (UBL) XML, CSV or OCPI charge detail records",
		Long: `Takes names and addresses from the parties file, parties.yaml in the state folder:

  zone: Europe/Berlin # of the dates on documents; without it UTC
  issuer: {name: Nordstadt Strom eG, street: Hafenstr. 1, city: Hamburg, post_code: "20457", country: DE, vat_id: DE123456789}
  ocpi: {country_code: DE, party_id: NSE}
  parties:
    <account>: {name: Anna, street: Weg 2, city: Hamburg, post_code: "20099", country: DE}
  sites:
    west: {street: Weg 4, city: Hamburg, country: DEU, latitude: "53.5506", longitude: "9.9933"}

Every UBL document is checked against the standard's rules before it is written.
What is not for billing is exported with --not-for-billing only, and says so.`,
		Example: "  joulegate invoice export INV-000001 --format ubl > inv-1.xml\n  joulegate invoice export --all --format csv > books.csv",
		RunE:    exportInvoices,
	}
	f := c.Flags()
	f.String("format", "ubl", "ubl, csv or cdr")
	f.String("parties", "", "`FILE` with names and addresses; default: parties.yaml in the state folder")
	f.Bool("all", false, "every document (csv and cdr)")
	f.Bool("not-for-billing", false, "export simulated documents, and those of meters that are not approved")
	return c
}

func exportInvoices(cmd *cobra.Command, args []string) error {
	format, _ := cmd.Flags().GetString("format")
	all, _ := cmd.Flags().GetBool("all")
	switch {
	case format != "ubl" && format != "csv" && format != "cdr":
		return usageError{fmt.Errorf("--format %q is not ubl, csv or cdr", format)}
	case all == (len(args) > 0):
		return usageError{errors.New("name documents, or give --all")}
	case format == "ubl" && len(args) != 1:
		return usageError{errors.New("a UBL file holds one document: name one")}
	}
	book, err := readParties(cmd)
	if err != nil {
		return err
	}
	cl, err := dial(cmd)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	var docs []panel.Invoice
	if all {
		if docs, err = cl.Invoices(ctx, chain.Account{}); err != nil {
			return err
		}
	}
	for _, id := range args {
		v, err := cl.Invoice(ctx, id)
		if err != nil {
			return err
		}
		docs = append(docs, v)
	}
	rules, err := cl.Rules(ctx)
	if err != nil {
		return err
	}
	members, err := cl.Members(ctx)
	if err != nil {
		return err
	}
	names := map[chain.Key]string{}
	for _, m := range members {
		names[m.Device] = m.Name
	}
	sessions := map[chain.ID]ledger.SessionView{}
	for _, v := range docs {
		for _, i := range v.Items {
			if i.Session == (chain.ID{}) {
				continue
			}
			s, err := cl.Session(ctx, i.Session)
			if e := (*panel.Error)(nil); errors.As(err, &e) && e.Code == "not_found" {
				continue // long ago: the state has let it go, the document has what it needs
			}
			if err != nil {
				return err
			}
			sessions[i.Session] = s.SessionView
		}
	}
	mark, _ := cmd.Flags().GetBool("not-for-billing")
	var out []*invoice.Document
	cdrs := []invoice.CDR{}
	for _, v := range docs {
		if !v.Billable && !mark {
			return fmt.Errorf("%s is %s: export it with --not-for-billing if that is what you want", v.ID, remark(v))
		}
		if format == "cdr" {
			c, err := invoice.CDRs(v.InvoiceView, rules.Rules, &book, func(id chain.ID) (ledger.SessionView, bool) { s, ok := sessions[id]; return s, ok }, func(k chain.Key) string { return names[k] })
			if err != nil {
				return fmt.Errorf("%s: %w", v.ID, err)
			}
			cdrs = append(cdrs, c...)
			continue
		}
		d, err := invoice.New(v.InvoiceView, rules.Rules, &book, func(id chain.ID) string {
			s, known := sessions[id]
			if !known {
				return id.String()
			}
			return fmt.Sprintf("at %s, connector %d, %s", names[s.Gateway], s.Connector, time.UnixMilli(s.OpenedMs).UTC().Format(time.DateTime+" UTC"))
		})
		if err != nil {
			return fmt.Errorf("%s: %w", v.ID, err)
		}
		out = append(out, d)
	}
	switch format {
	case "csv":
		_, err = cmd.OutOrStdout().Write(invoice.CSV(out))
	case "cdr":
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		err = enc.Encode(cdrs)
	default:
		x := out[0].UBL()
		if bad := invoice.Validate(x); len(bad) > 0 {
			return fmt.Errorf("%s breaks EN 16931: %s", docs[0].ID, strings.Join(bad, "; "))
		}
		_, err = cmd.OutOrStdout().Write(x)
	}
	return err
}

// readParties reads the operator's file.
func readParties(cmd *cobra.Command) (invoice.Book, error) {
	path, _ := cmd.Flags().GetString("parties")
	if path == "" {
		path = stateOf(cmd).path("parties.yaml")
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return invoice.Book{}, fmt.Errorf("%s does not exist: it holds names and addresses; see: joulegate invoice export --help", path)
	}
	if err != nil {
		return invoice.Book{}, err
	}
	k, err := invoice.ParseBook(b)
	if err == nil && k.Zone != "" {
		k.Location, err = time.LoadLocation(k.Zone)
	}
	if err != nil {
		return k, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func newInvoiceMeterCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "approve-meter MEMBER",
		Short: "Record that a meter may be billed by the kilowatt-hour (operator)",
		Long: `States on the ledger under which type approval and verification mark a charging
point's meter (connector 0: the house's) may be used for billing, and until when.
Without it, and without a legal basis in the rules, documents are not for billing.`,
		Example: `  joulegate invoice approve-meter west --connector 1 --approval "DE-MTP 24 B 001" --until 2034-12-31`,
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
			connector, _ := cmd.Flags().GetUint8("connector")
			approval, _ := cmd.Flags().GetString("approval")
			until, _ := cmd.Flags().GetString("until")
			t := time.Now()
			if approval != "" {
				if t, err = time.ParseInLocation(time.DateOnly, until, time.Local); err != nil {
					return usageError{fmt.Errorf("--until %q: write it like 2034-12-31", until)}
				}
			}
			for _, m := range members {
				if m.Name == args[0] {
					return agree(cmd, chain.TxMeterApproval, chain.MeterApproval{Device: m.Device, Connector: connector, Approval: approval, Until: t.AddDate(0, 0, 1).UnixMilli() - 1})
				}
			}
			return fmt.Errorf("no member %q; see: joulegate grid members", args[0])
		},
	}
	c.Flags().Uint8("connector", 0, "charging point; 0: the house's meter")
	c.Flags().String("approval", "", "type approval and verification `MARK`; empty withdraws")
	c.Flags().String("until", "", "last `DAY` of the verification period")
	return agreed(c, "operator")
}
