package proof

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/tree"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// gateways compares gateways' own chains with where the ledger stands.
func (v *verifier) gateways() error {
	whole := v.claim.To == v.claim.Tip-1
	count := 0
	for _, author := range v.books.order {
		p := v.books.chains[author]
		count += p.count
		if v.claim.First == 1 && p.first.Number != 1 {
			return fmt.Errorf("%s begins with block %s", author.Short(), p.first)
		}
		head, ok := ledger.HeadOf(v.state, author)
		if !ok && !p.sure {
			continue // no member: the ledger has refused it
		}
		switch {
		case !ok, head.Position.Less(p.at), head.Position == p.at && head.Hash != p.hash, whole && head.Position != p.at:
			return fmt.Errorf("%s ends with block %s, the signed state says %s", author.Short(), p.at, head.Position)
		}
	}
	if whole { // nobody with newer blocks is left out
		for _, m := range ledger.Members(v.state) {
			if m.Head.Height >= v.claim.First && v.books.chains[m.Member.Device] == nil {
				return fmt.Errorf("the blocks of %s are missing, the signed state is at %s", m.Member.Name, m.Head.Position)
			}
		}
	}
	v.held(checkGateways, "%d blocks of %d gateways with %d records, in order and without a gap", count, len(v.books.order), v.books.records)
	return nil
}

// rules compares the signed rules with the genesis.
func (v *verifier) rules() error {
	since, ok := v.state.Version(ledger.RulesKey())
	if !ok {
		return fmt.Errorf("the state has no rules")
	}
	r, g := ledger.RulesOf(v.state), v.opt.Genesis
	if r.ChainID != g.State.ChainID || r.SlotSeconds != g.State.SlotSeconds || r.Currency != g.State.Currency || r.MinorDigits != g.State.MinorDigits || r.GenesisMs != g.Time.UnixMilli() {
		return fmt.Errorf("they are of another microgrid than the genesis: chain %q, slots of %d s, %s", r.ChainID, r.SlotSeconds, r.Currency)
	}
	when := fmt.Sprintf("since block %d", since)
	if since <= 1 {
		when = "since the genesis"
	}
	attested := "no third party has attested this microgrid"
	if all := ledger.InForce(ledger.Attestations(v.state)); len(all) > 0 {
		attested = fmt.Sprintf("attested by auditors, in force: %d, the newest %q", len(all), all[0].Scope)
	}
	v.held(checkRules, "unchanged %s: retail %s and feed-in %s per kWh, discount credit %d ppm, basis %q; %s", when,
		v.money(chain.Nano(r.Retail)*1000), v.money(chain.Nano(r.FeedIn)*1000), r.EarnPPM, r.Basis, attested)
	return nil
}

// slots certifies the clearing of every slot and adds its sums up again.
func (v *verifier) slots() error {
	ranges := ledger.SlotRanges(v.claim.FromSlot, v.claim.ToSlot)
	slots := v.state.Span(ranges[0][0], ranges[0][1])
	var traded, energy meter.WattHour
	last := chain.Slot(-1)
	for _, e := range slots {
		s := chain.Slot(binary.BigEndian.Uint64(e.Key[1:]))
		view, ok := ledger.SlotOf(v.state, s)
		if !ok || view.Slot != s {
			return fmt.Errorf("slot %d is filed under %d", view.Slot, s)
		}
		if last >= 0 && view.Previous != last {
			return fmt.Errorf("slot %d follows slot %d, the one before it here is %d", s, view.Previous, last)
		}
		last = s
		if err := ledger.CertifySlot(v.state, s); err != nil {
			return fmt.Errorf("slot %d: %w", s, err)
		}
		if err := v.slot(&view); err != nil {
			return fmt.Errorf("slot %d: %w", s, err)
		}
		traded += view.Energy.Traded
		energy += view.Energy.Consumed
	}
	v.held(checkSlots, "%d slots, %d Wh used, %d Wh of them between neighbours", len(slots), energy, traded)
	return nil
}

func (v *verifier) slot(view *ledger.SlotView) error {
	var bought, sold meter.WattHour
	for i := range view.Fills {
		f := &view.Fills[i]
		local, err := chain.Cost(f.Price, f.Local)
		if err != nil {
			return err
		}
		grid, err := chain.Cost(f.GridAt, f.Grid)
		if err != nil {
			return err
		}
		if sum, err := chain.AddNano(local, grid); err != nil || sum != f.Amount {
			return fmt.Errorf("%s: %d Wh at %d and %d Wh at %d nano/Wh are not %d nano", f.ID, f.Local, f.Price, f.Grid, f.GridAt, f.Amount)
		}
		if f.Side == chain.Buy {
			bought += f.Local
		} else {
			sold += f.Local
		}
	}
	e := view.Energy
	switch {
	case bought != sold:
		return fmt.Errorf("%d Wh bought from neighbours, %d Wh sold to them", bought, sold)
	case bought+view.FirmWh != e.Traded:
		return fmt.Errorf("%d Wh traded and %d Wh under contracts, the sum says %d Wh", bought, view.FirmWh, e.Traded)
	case e.Produced+e.GridImport != e.Consumed+e.GridExport+e.Loss:
		return fmt.Errorf("energy does not balance: %+v", e)
	}
	return nil
}

// meters adds registers up: pages count, registers rise, and what a slot says
// of a house is what its meter counted.
func (v *verifier) meters() error {
	type key struct {
		author chain.Key
		meter  string
	}
	type run struct {
		last    *meterRecord // as it came
		base    *meterRecord // last whose registers count; nil: not known
		imp     meter.WattHour
		exp     meter.WattHour
		records int
	}
	members := map[chain.Key]ledger.MemberView{}
	for _, m := range ledger.Members(v.state) {
		members[m.Member.Device] = m
	}
	runs := map[key]*run{}
	var order []key
	compared := 0
	for i := range v.books.meters {
		r := &v.books.meters[i]
		k := key{r.author, r.meter}
		m := runs[k]
		if m == nil {
			m = &run{}
			runs[k] = m
			order = append(order, k)
		}
		what := func() string { return fmt.Sprintf("meter %q of %s, page %d", r.meter, r.author.Short(), r.page) }
		if m.last != nil {
			if r.epoch == m.last.epoch && r.page != m.last.page+1 {
				if r.page <= m.last.page {
					continue // said again after a restart, and refused
				}
				return fmt.Errorf("%s follows page %d", what(), m.last.page)
			}
			if r.segment < m.last.segment {
				return fmt.Errorf("%s is of segment %d after %d", what(), r.segment, m.last.segment)
			}
		}
		before := m.base
		m.last = r
		m.records++
		member := members[r.author]
		good := r.quality == meter.Good && r.slot.Start(v.books.slotSeconds) <= r.time
		switch {
		case !good:
			continue
		case before == nil || r.segment != before.segment || r.epoch != before.epoch:
			m.base = r
			continue
		}
		imp, exp := r.imp-before.imp, r.exp-before.exp
		most := meter.WattHour(member.MaxPower*min(max((r.at-before.at+999)/1000, 0), 1e8)/3600) + 1
		if imp < 0 || exp < 0 || imp > most || exp > most {
			m.base = nil // the ledger doubts it, and so what follows
			continue
		}
		m.base = r
		m.imp += imp
		m.exp += exp
		if r.role != chain.RoleSite || r.slot < v.claim.FromSlot || r.slot > v.claim.ToSlot || r.slot != before.slot+1 || before.slot < 0 {
			continue
		}
		view, ok := ledger.SlotOf(v.state, r.slot)
		if !ok || r.height > view.Height { // archived, or late
			continue
		}
		for _, p := range view.Prices {
			if p.Node != member.Name || p.Import == 0 && p.Export == 0 {
				continue // late with what came before
			}
			if p.Import != imp || p.Export != exp {
				return fmt.Errorf("%s: its registers moved by %d and %d Wh in slot %d, the slot says %d and %d Wh", what(), imp, exp, r.slot, p.Import, p.Export)
			}
			compared++
		}
	}
	// The last page of each meter is the one that the state names.
	if v.claim.To == v.claim.Tip-1 {
		for _, k := range order {
			m, ok := ledger.MeterOf(v.state, k.author, k.meter)
			if r := runs[k].last; ok && m.Epoch == r.epoch && m.Page > r.page {
				return fmt.Errorf("meter %q of %s ends with page %d, the signed state says %d", k.meter, k.author.Short(), r.page, m.Page)
			}
		}
	}
	var imp, exp meter.WattHour
	for _, k := range order {
		imp += runs[k].imp
		exp += runs[k].exp
	}
	v.held(checkMeters, "%d records of %d meters: %d Wh in, %d Wh out; %d slots compared with their house", len(v.books.meters), len(order), imp, exp, compared)
	return nil
}

// sessions adds up what each session captured, and checks the driver's
// signature under its price.
func (v *verifier) sessions() error {
	type sum struct {
		wh, firm meter.WattHour
		amount   chain.Nano
	}
	sums := map[chain.ID]*sum{}
	ranges := ledger.SlotRanges(v.claim.FromSlot, v.claim.ToSlot)
	for _, e := range v.state.Span(ranges[0][0], ranges[0][1]) {
		view, _ := ledger.SlotOf(v.state, chain.Slot(binary.BigEndian.Uint64(e.Key[1:])))
		for _, f := range view.Fills {
			if f.Session == (chain.ID{}) || f.Side != chain.Buy {
				continue
			}
			s := sums[f.Session]
			if s == nil {
				s = &sum{}
				sums[f.Session] = s
			}
			s.wh += f.Wh
			s.firm += f.Firm
			s.amount += f.Amount
		}
	}
	seen := map[chain.ID]bool{}
	checked, captured := 0, chain.Nano(0)
	check := func(s ledger.SessionView) error {
		if seen[s.ID] {
			return nil
		}
		seen[s.ID] = true
		checked++
		captured += s.Captured
		f := sums[s.ID]
		if f == nil {
			f = &sum{}
		}
		switch {
		case s.Wh < 0 || s.Captured < 0 || s.Captured > s.Hold:
			return fmt.Errorf("session %s captured %d of a hold of %d", s.ID, s.Captured, s.Hold)
		case !s.State.Open() && s.Captured+s.Released != s.Hold:
			return fmt.Errorf("session %s: %d captured and %d released are not the %d held", s.ID, s.Captured, s.Released, s.Hold)
		case (s.State == ledger.SessionClosed || s.State == ledger.SessionInterrupted) && s.Paid != s.Captured-s.CreditRedeemed:
			return fmt.Errorf("session %s: paid %d is not %d captured less %d redeemed", s.ID, s.Paid, s.Captured, s.CreditRedeemed)
		case s.Based && s.SellWh == 0 && s.Wh+s.ExcessWh > s.Register-s.Begin:
			return fmt.Errorf("session %s: %d Wh billed, its registers moved by %d Wh", s.ID, s.Wh, s.Register-s.Begin)
		case f.amount > s.Captured || f.wh > s.Wh:
			return fmt.Errorf("session %s: its slots took %d nano for %d Wh, it says %d for %d", s.ID, f.amount, f.wh, s.Captured, s.Wh)
		case f.firm == 0 && f.wh == s.Wh-s.PendingWh && f.amount != s.Captured:
			return fmt.Errorf("session %s: its slots captured %d, it says %d", s.ID, f.amount, s.Captured)
		case f.firm == 0 && f.wh < s.Wh-s.PendingWh && v.toldAll(&s):
			// The rest was billed outside the market, at the cap at most.
			if most, err := chain.Cost(s.Cap, s.Wh-s.PendingWh-f.wh); err != nil || s.Captured-f.amount > most {
				return fmt.Errorf("session %s: %d captured outside the market for %d Wh", s.ID, s.Captured-f.amount, s.Wh-s.PendingWh-f.wh)
			}
		}
		return nil
	}
	for _, o := range v.books.opens {
		q, err := o.quote.Open()
		if err != nil {
			continue // the ledger refuses it too, or pays it by mandate
		}
		s, ok := ledger.SessionOf(v.state, q.ID)
		if !ok || s.QuoteHash != chain.Sum(o.quote.Quote) {
			continue // refused, or archived
		}
		if s.Hold != q.Hold || s.Cap != q.Cap || s.MaxWh != q.MaxWh || s.DriverKey != q.Driver || s.Gateway != o.gateway {
			return fmt.Errorf("session %s is not the one whose price its driver signed", q.ID)
		}
		if err := check(s); err != nil {
			return err
		}
	}
	p := ledger.SessionPrefix()
	for _, e := range v.state.Span(p, tree.After(p)) {
		s, err := ledger.ParseSession(e.Value)
		if err != nil {
			return err
		}
		if !bytes.Equal(e.Key, ledger.SessionKey(s.ID)) {
			return fmt.Errorf("session %s is filed under %x", s.ID, e.Key)
		}
		if stop, ok := v.books.stops[s.ID]; ok && s.Receipt != (chain.Hash{}) && stop.gateway == s.Gateway && stop.receipt != s.Receipt {
			return fmt.Errorf("session %s has another receipt than its gateway stated", s.ID)
		}
		if err := check(s); err != nil {
			return err
		}
	}
	if id := v.claim.Session; id != (chain.ID{}) && !seen[id] {
		return fmt.Errorf("session %s, for which it was made, is not in the state", id)
	}
	v.held(checkSessions, "sessions: %d; captured %s", checked, v.money(captured))
	return nil
}

// toldAll reports whether all slots of a session are told.
func (v *verifier) toldAll(s *ledger.SessionView) bool {
	first := chain.SlotAt(s.OpenedMs, v.books.slotSeconds) - 1
	return first >= v.claim.FromSlot && s.Reported <= v.claim.ToSlot
}

// reads counts readings.
type reads struct {
	last    int // index of the record before
	records int
	count   int
	decoded int
}

func (v *verifier) profile(b []byte) error {
	var p Profile
	if err := chain.Unmarshal(b, &p); err != nil {
		return fail(checkReadings, "a profile cannot be read: %w", err)
	}
	if len(v.profiles) >= 512 || len(p.Source) > profile.MaxFileSize {
		return fail(checkReadings, "profile %d with %d bytes", len(v.profiles)+1, len(p.Source))
	}
	parsed, err := profile.Parse("profile", p.Source)
	if err != nil {
		return fail(checkReadings, "profile: %w", err)
	}
	if p.Reversed {
		parsed = parsed.Reversed()
	}
	if p.Swapped {
		parsed = parsed.Swapped()
	}
	h := chain.Hash(parsed.Hash())
	if v.profiles[h] != nil {
		return fail(checkReadings, "profile %s is there twice", parsed.ID)
	}
	v.profiles[h] = parsed
	return nil
}

// readings checks all readings of a record: their Merkle root, their raw
// registers, and that the last one is what the record states.
func (v *verifier) readings(b []byte) error {
	var rs Readings
	if err := chain.Unmarshal(b, &rs); err != nil {
		return fail(checkReadings, "readings cannot be read: %w", err)
	}
	i, ok := v.books.byRoot[rs.Root]
	if !ok || v.reads.records > 0 && i <= v.reads.last {
		return fail(checkReadings, "readings %s belong to no record, or to one before", rs.Root)
	}
	v.reads.last = i
	v.reads.records++
	rec := &v.books.meters[i]
	what := fmt.Sprintf("meter %q of %s, page %d", rec.meter, rec.author.Short(), rec.page)
	if chain.MerkleRoot(rs.Leaves) != rs.Root || int(rec.count) != len(rs.Leaves) || len(rs.Leaves) == 0 {
		return fail(checkReadings, "%s: %d readings do not lead to the record's root", what, len(rs.Leaves))
	}
	var last meter.Reading
	for n, leaf := range rs.Leaves {
		var r meter.Reading
		if err := chain.Unmarshal(leaf, &r); err != nil {
			return fail(checkReadings, "%s, reading %d: %w", what, n+1, err)
		}
		v.reads.count++
		if err := v.decode(&r); err != nil {
			return fail(checkReadings, "%s, reading %d: %w", what, n+1, err)
		}
		last = r
	}
	imp, _ := last.Import()
	exp, _ := last.Export()
	if last.Wall != rec.at || last.Device != rec.meter || chain.Hash(last.ProfileHash) != rec.profile || rec.quality == meter.Good && (imp.WattHours() != rec.imp || exp.WattHours() != rec.exp) {
		return fail(checkReadings, "%s states %d and %d Wh, its last reading %d and %d", what, rec.imp, rec.exp, imp.WattHours(), exp.WattHours())
	}
	return nil
}

// decode reads the raw registers again and compares.
func (v *verifier) decode(r *meter.Reading) error {
	p := v.profiles[r.ProfileHash]
	if p == nil || len(r.Raw) == 0 {
		return nil // told as it is
	}
	v.used[r.ProfileHash] = true
	points, err := p.Decode(r.Raw)
	if err != nil {
		if r.Quality == meter.Good {
			return fmt.Errorf("its raw registers cannot be decoded: %w", err)
		}
		return nil
	}
	for _, pt := range r.Points {
		i := slices.IndexFunc(points, func(o meter.Point) bool { return o.Quantity == pt.Quantity && o.Phase == pt.Phase })
		if i < 0 {
			continue // read more rarely than the others, and kept
		}
		if points[i].Value != pt.Value && r.Quality == meter.Good {
			return fmt.Errorf("%s is %d, its raw registers say %d", pt.Name(), pt.Value, points[i].Value)
		}
	}
	v.reads.decoded++
	return nil
}

func (v *verifier) readingsEnd() error {
	for h, p := range v.profiles {
		if !v.used[h] {
			return fmt.Errorf("profile %s is there and decodes nothing", p.ID)
		}
	}
	words := fmt.Sprintf("%d readings under %d of %d meter records", v.reads.count, v.reads.records, len(v.books.meters))
	if n := len(v.books.meters) - v.reads.records; n > 0 {
		words += fmt.Sprintf("; of %d records the raw readings are ABSENT: each gateway keeps only its own, as long as its disk allows, and these records stand on their signature alone", n)
	}
	words += fmt.Sprintf("; %d decoded again from raw registers with %d profiles", v.reads.decoded, len(v.profiles))
	if n := v.reads.count - v.reads.decoded; n > 0 {
		words += fmt.Sprintf("; %d not, because raw registers or the profile are ABSENT", n)
	}
	v.held(checkReadings, "%s", words)
	return nil
}

func (v *verifier) evidence() error {
	guard, other := v.books.evidence[chain.KindGuard], 0
	for k, n := range v.books.evidence {
		if k != chain.KindEvent && k != chain.KindGuard {
			other += n
		}
	}
	v.held(checkEvidence, "%d device events, %d guard findings, %d of other kinds, each in its gateway's signed chain", v.books.evidence[chain.KindEvent], guard, other)
	return nil
}

// money writes an amount in currency units, exactly.
func (v *verifier) money(n chain.Nano) string {
	s := fmt.Sprintf("%d.%09d", n/1e9, n%1e9)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".") + " " + v.opt.Genesis.State.Currency
}

// sums adds the whole ledger up, where the whole state is told.
func (v *verifier) sums() error {
	if !v.claim.All {
		return nil
	}
	if bad := ledger.CheckInvariants(v.state); len(bad) > 0 {
		return fmt.Errorf("%s", bad[0])
	}
	s := ledger.StatusOf(v.state)
	v.held(checkSums, "%s paid in, %s paid out, discount credit of %s outstanding and backed", v.money(s.Minted), v.money(s.Burned), v.money(s.Credits))
	return nil
}

// executed executes every block again and compares entry by entry.
func (v *verifier) executed() error {
	if !v.execute {
		if v.opt.Execute {
			return fmt.Errorf("only a bundle of everything since the genesis can be executed again")
		}
		return nil
	}
	st := ledger.NewMapState()
	if _, err := ledger.InitGenesis(st, v.opt.Genesis.State, v.opt.Genesis.Time.UnixMilli()); err != nil {
		return err
	}
	for _, b := range v.blocks {
		if _, err := ledger.Apply(st, b); err != nil {
			return err
		}
		if v.opt.Progress != nil && b.Height%64 == 0 {
			v.opt.Progress(b.Height, v.claim.Tip)
		}
	}
	i := 0
	told := v.state.Span(nil, nil)
	var bad error
	st.Iterate(nil, func(k, value []byte) bool {
		if i == len(told) || !bytes.Equal(told[i].Key, k) || !bytes.Equal(told[i].Value, value) {
			bad = fmt.Errorf("entry %x is not what the blocks lead to", k)
			return false
		}
		i++
		return true
	})
	if bad == nil && i < len(told) {
		bad = fmt.Errorf("entry %x is not what the blocks lead to", told[i].Key)
	}
	if bad == nil {
		v.held(checkExecution, "%d blocks, %d entries", len(v.blocks), i)
	}
	return bad
}
