package ledger

import (
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// lateStory is what the meters of a small microgrid say about a few slots, and
// when it gets to the ledger.
type lateStory struct {
	slots   int
	wh      map[string][][2]meter.WattHour // by meter, per slot: import and export
	car     []meter.WattHour               // into the car at b, per slot; nil: there is none
	late    func(meter string, slot int) bool
	pick    func(n int) int // which queue is served next
	someNow func() bool     // serve a queue now rather than at the end
}

var lateMeters = []struct {
	name  string
	house string
	role  chain.Role
}{
	{"site-a", "a", chain.RoleSite},
	{"pv-a", "a", chain.RoleProduction},
	{"battery-a", "a", chain.RoleStorage},
	{"site-b", "b", chain.RoleSite},
	{"site-c", "c", chain.RoleSite},
	{"battery-c", "c", chain.RoleStorage},
	{"grid-a", "a", chain.RoleConnection},
}

// tell plays a story. Without late energy it is what everything would be if
// nothing had ever been cut off.
func (x *lateStory) tell(t testing.TB, connection, lateness bool) *world {
	w := newWorld(t)
	houses := map[string]*house{"a": w.a, "b": w.b, "c": w.c}
	w.ok(w.mint(w.b.owner.account(), 1e9))
	type item struct {
		house *house
		rec   chain.Record
	}
	queues := map[string][]item{}
	serve := func(name string) {
		q := queues[name]
		w.ok(q[0].house.sign(q[0].rec))
		if queues[name] = q[1:]; len(q) == 1 {
			delete(queues, name)
		}
	}
	waiting := func() (names []string) {
		for _, m := range lateMeters {
			if len(queues[m.name]) > 0 {
				names = append(names, m.name)
			}
		}
		if len(queues["car"]) > 0 {
			names = append(names, "car")
		}
		return names
	}
	// The meters' bases, and a slot in which all is well.
	for s := firstSl - 1; s <= firstSl; s++ {
		w.at(s)
		for _, m := range lateMeters {
			if h := houses[m.house]; (m.role != chain.RoleSite || s == firstSl) && (connection || m.role != chain.RoleConnection) {
				id := m.name[:4]
				if m.role != chain.RoleSite {
					id = m.name
				}
				w.ok(h.sign(h.measure(id, m.role, s, 0, 0)))
			}
		}
	}
	reg := meter.WattHour(0)
	if x.car != nil {
		w.ok(w.b.sign(signQuote(w.quote(w.b, w.driver, 1, 1, 9000), w.driver), sessionMeter(1, 1, firstSl+1, 0, w.now)))
	}
	for i := range x.slots {
		s := firstSl + 1 + chain.Slot(i)
		w.at(s)
		hand := func(name string, h *house, rec chain.Record) {
			if lateness && (len(queues[name]) > 0 || x.late(name, i)) {
				queues[name] = append(queues[name], item{h, rec})
				return
			}
			w.ok(h.sign(rec))
		}
		if x.car != nil {
			reg += x.car[i]
			hand("car", w.b, sessionMeter(1, uint32(2+i), s, reg, w.now))
		}
		for _, m := range lateMeters {
			if m.role == chain.RoleConnection && !connection {
				continue
			}
			id := m.name[:4]
			if m.role != chain.RoleSite {
				id = m.name
			}
			h := houses[m.house]
			hand(m.name, h, h.measure(id, m.role, s, x.wh[m.name][i][0], x.wh[m.name][i][1]))
		}
		for n := waiting(); len(n) > 0 && x.someNow(); n = waiting() {
			serve(n[x.pick(len(n))])
		}
		w.now = max(w.now, s.End(900)+61_000) // the grace is over
		w.block()
	}
	for n := waiting(); len(n) > 0; n = waiting() {
		serve(n[x.pick(len(n))])
	}
	w.now += 61_000
	w.ok(w.mint(w.driver.account(), 1)) // so that there is a block to clear in
	return w
}

// Whatever comes late, and in whatever order: the flows of every slot add up
// to what the meters have counted in it, the energy went the way that it would
// have been told to go in time, every Wh produced has exactly one certificate,
// and the trades of a slot stay what they were.
func TestLateEnergyIsInBothMatrices(t *testing.T) {
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		bit := func(what string) bool { return rapid.IntRange(0, 1).Draw(rt, what) == 1 }
		x := lateStory{slots: 3, wh: map[string][][2]meter.WattHour{}}
		for _, m := range lateMeters {
			for range x.slots {
				e := [2]meter.WattHour{meter.WattHour(rapid.IntRange(0, 900).Draw(rt, m.name)), meter.WattHour(rapid.IntRange(0, 900).Draw(rt, m.name))}
				if m.role == chain.RoleProduction {
					e[0] = 0
				}
				x.wh[m.name] = append(x.wh[m.name], e)
			}
		}
		if bit("a car") {
			for range x.slots {
				x.car = append(x.car, meter.WattHour(rapid.IntRange(0, 900).Draw(rt, "car")))
			}
		}
		connection := bit("connection")
		x.late = func(name string, slot int) bool { return bit(fmt.Sprintf("late: %s in %d", name, slot)) }
		x.pick = func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "next") }
		x.someNow = func() bool { return bit("now") }
		late, inTime := x.tell(t, connection, true), x.tell(t, connection, false)

		totals := EnergyOf(late.st)
		want := EnergyOf(inTime.st)
		if totals.Produced != want.Produced || totals.Consumed != want.Consumed || totals.Loss != want.Loss || totals.GridImport-totals.GridExport != want.GridImport-want.GridExport {
			rt.Fatalf("the totals are %+v, in time %+v", totals, want)
		}
		last := firstSl + chain.Slot(x.slots)
		if got, want := AllocationOf(late.st, firstSl, last), AllocationOf(inTime.st, firstSl, last); got.Mismatch+got.Late != want.Mismatch || want.Late != 0 {
			rt.Fatalf("mismatch %d and late %d, in time %d and %d", got.Mismatch, got.Late, want.Mismatch, want.Late)
		}
		for _, h := range []*house{late.a, late.b, late.c} {
			m, _ := MemberOf(late.st, h.key)
			other, _ := MemberOf(inTime.st, h.key)
			c := m.Certificates
			if m.Produced != other.Produced || m.Import != h.imp["site"] || m.Export != h.exp["site"] {
				rt.Fatalf("%s: produced %d, in time %d; took %d of %d and gave %d of %d", m.Name, m.Produced, other.Produced, m.Import, h.imp["site"], m.Export, h.exp["site"])
			}
			if c.Issued-c.Owed != m.Produced || c.Sold+c.Exported+c.Own != c.Issued+c.Stored {
				rt.Fatalf("%s: certificates %+v for %d Wh", m.Name, c, m.Produced)
			}
		}
		for i := range x.slots {
			s := firstSl + 1 + chain.Slot(i)
			f, ok, err := flowOf(late.st, s)
			if err != nil {
				rt.Fatal(err)
			}
			whole, err := FlowOf(inTime.st, s)
			if err != nil {
				rt.Fatal(err)
			}
			if !ok && len(whole.Contractual) > 0 {
				rt.Fatalf("slot %d has no flow", s)
			}
			v, _ := SlotOf(late.st, s)
			checkFlow(rt, late.st, &v, &f)
			if !reflect.DeepEqual(f.Physical, whole.Physical) {
				rt.Fatalf("slot %d: energy went\n%+v, in time\n%+v", s, f.Physical, whole.Physical)
			}
			net := map[string]meter.WattHour{}
			for _, p := range f.Contractual {
				net[p.From] -= p.Wh
				net[p.To] += p.Wh
				seen[p.Kind]++
			}
			car := net["car/"+chain.ID{1}.String()]
			if x.car != nil {
				equal(rt, "the car's energy", car, x.car[i])
			}
			for name, e := range map[string][2]meter.WattHour{"a": x.wh["site-a"][i], "b": x.wh["site-b"][i], "c": x.wh["site-c"][i]} {
				got := net["buy/"+name] + net["sell/"+name]
				if name == "b" {
					got += car
				}
				if got != e[0]-e[1] {
					rt.Fatalf("slot %d: %s metered %v, its flows are %d net: %+v", s, name, e, got, f.Contractual)
				}
			}
			for _, l := range f.Late {
				if l.Issued != l.Withdrawn+l.Own {
					rt.Fatalf("slot %d: %+v", s, l)
				}
				if l.Withdrawn > 0 {
					seen["withdrawn"]++
				}
				if l.Own > 0 {
					seen["own"]++
				}
			}
		}
		if x.car != nil && late.session(1).State == SessionInterrupted {
			rt.Fatal("the session was interrupted")
		}
	})
	for _, kind := range []string{FlowLocal, FlowLate, FlowGrid, "withdrawn", "own"} {
		if seen[kind] == 0 {
			t.Errorf("nothing %s was ever seen: %v", kind, seen)
		}
	}
}
