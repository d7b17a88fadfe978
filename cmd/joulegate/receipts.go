package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/audit"
	"github.com/joulegate/joulegate/chain/ledger"
	"golang.org/x/sys/unix"
)

func (g *gateway) receiptPath(id chain.ID, format string) string {
	return g.state.path("receipts", id.String()+"."+format)
}

// receipt makes the receipt of an ended session and returns the hash that
// goes into the SessionStop record. A second call for the same session, after
// a crash, returns the first receipt: there is one per session.
func (g *gateway) receipt(r station.Receipt) (chain.Hash, error) {
	path := g.receiptPath(r.Session, "ocmf")
	line, err := os.ReadFile(path)
	if err == nil {
		_, hash, err := audit.VerifyOCMF(string(line), g.id.receipt.Public())
		if err != nil {
			return hash, fmt.Errorf("%s: %w", path, err)
		}
		return hash, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return chain.Hash{}, err
	}
	number, err := g.nextReceipt()
	if err != nil {
		return chain.Hash{}, err
	}
	p := g.devices.profiles[r.Meter]
	rec := audit.Receipt{
		Number: number, Session: r.Session, Gateway: g.self.String(), Version: version,
		Vendor: p.Vendor, Model: p.Model, Serial: serial(g.cfg, g.self, r.Meter),
		Driver: chain.AccountOf(r.Quote.Driver),
		Tariff: fmt.Sprintf("at most %s %s/kWh", money(chain.Nano(r.Quote.Cap)*1000), g.genesis.Currency),
		Begin:  receiptRegister(r.Begin), End: receiptRegister(r.End), Reason: r.Reason, Contact: g.contact(),
	}
	if err := g.ledger.View(func(st ledger.State) {
		if m, ok := ledger.MandateOf(st, r.Quote.Driver); ok {
			rec.Shown, rec.Driver = m.Mandate.Kind, m.Payer
		}
	}); err != nil {
		return chain.Hash{}, err
	}
	if newest, err := g.ledger.Checkpoint(0); err == nil { // before the first block there is none
		rec.Height, rec.State = newest.Header.Height, newest.Header.AppHash
	}
	text, hash, err := rec.OCMF(g.id.receipt.Key)
	if err != nil {
		return chain.Hash{}, err
	}
	xml, err := audit.XML(number, text, g.id.receipt.Public(), g.native(r.Session, r.Meter)...)
	if err != nil {
		return chain.Hash{}, err
	}
	if err := writeFile(g.receiptPath(r.Session, "xml"), xml, 0o644); err != nil {
		return chain.Hash{}, err
	}
	return hash, writeFile(path, []byte(text), 0o644)
}

// nextReceipt counts receipts: each gets a number of its own, and a crash
// leaves at worst a gap.
func (g *gateway) nextReceipt() (uint64, error) {
	const name = "receipts/last"
	b, err := g.journal.Load(name)
	if err != nil {
		return 0, err
	}
	var n uint64
	if len(b) == 8 {
		n = binary.BigEndian.Uint64(b)
	}
	n++
	return n, g.journal.Save(name, binary.BigEndian.AppendUint64(nil, n))
}

func receiptRegister(r station.Register) audit.Register {
	return audit.Register{At: time.UnixMilli(r.At), Synced: clockSynchronised(), Wh: r.Value, Quality: r.Quality}
}

// clockSynchronised reports whether the kernel's clock is disciplined by a
// time service.
func clockSynchronised() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR
}

// contact is whom a driver calls about a receipt.
func (g *gateway) contact() string {
	return cmp.Or(g.cfg.Contact, "the operator of this microgrid")
}

// slip returns a receipt as a page to print. The signed record is of the time
// when charging ended; what the ledger says beside it is of now.
func (b backend) slip(ctx context.Context, id chain.ID) ([]byte, error) {
	line, err := b.Receipt(ctx, id, "ocmf")
	if err != nil {
		return nil, err
	}
	s, err := b.Session(ctx, id)
	if err != nil {
		return nil, err
	}
	newest, err := b.ledger.Checkpoint(0)
	if err != nil {
		return nil, err
	}
	status, err := view(b, ledger.StatusOf)
	if err != nil {
		return nil, err
	}
	text, err := audit.Slip{
		Chain: b.genesis.ChainID, Line: string(line), Key: b.id.receipt.Public(), Height: newest.Header.Height, State: newest.Header.AppHash,
	}.Sign(b.id.device)
	if err != nil {
		return nil, err
	}
	p := audit.Page{Energy: kWh(s.Wh), Attested: attestedBy(status.Attestations), Contact: b.contact()}
	if s.State.Open() {
		p.Notes = append(p.Notes, "Not settled yet: this is not the final bill.")
	}
	if s.NotBillable != "" {
		p.Notes = append(p.Notes, "Not for billing: "+s.NotBillable)
	}
	if n, ok := b.nativeOf(id); ok {
		p.Rows = append(p.Rows, [2]string{"meter's own record", n.Note})
	}
	for _, row := range receiptRows(s, b.genesis.Currency) {
		if row[0] == "from" || row[0] == "to" || row[0] == "energy" {
			continue // stands above, as it was signed
		}
		p.Rows = append(p.Rows, [2]string(row))
	}
	return p.HTML(text)
}
