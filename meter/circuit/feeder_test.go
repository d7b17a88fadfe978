package circuit

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/meter"
)

func feederRules() FeederRules { return FeederRules{Rules: DefaultRules(), Lease: 30 * time.Second} }

func member(name string, failsafe meter.MilliAmpere, chargers int) Member {
	m := Member{Name: name, Failsafe: failsafe}
	for i := range chargers {
		m.Chargers = append(m.Chargers, Charger{ID: uint8(i + 1), Wiring: Straight(3), MaxCurrent: 32_000})
	}
	return m
}

func TestFeederRefuses(t *testing.T) {
	for _, c := range []struct {
		want    string
		members []Member
	}{
		{"failsafe shares of 70000", []Member{member("a", 40_000, 1), member("b", 30_000, 1)}},
		{"is there twice", []Member{member("a", 0, 1), member("a", 0, 1)}},
		{"want 1 to", nil},
	} {
		if _, err := NewFeeder(feederRules(), 63_000, 0, false, c.members); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	f, err := NewFeeder(feederRules(), 63_000, 0, false, []Member{member("a", 6_000, 1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []Ask{{ID: 9}, {ID: 1, Want: -1}, {ID: 1, Phases: 4}, {ID: 1, Age: -1}} {
		if _, _, ok, err := f.Answer(FeederState{}, 0, Request{Seq: 1, Asks: []Ask{a}}, Reading{}, time.Hour); ok || err == nil {
			t.Errorf("%+v is answered", a)
		}
	}
}

// TestFeederNeverExceeded lets three gateways share 50 A over a network that
// delays and loses messages, partitions for minutes and restarts the leader
// and members at random. What may be drawn never exceeds the rating.
func TestFeederNeverExceeded(t *testing.T) {
	const rating = meter.MilliAmpere(50_000)
	r := feederRules()
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 7))
		members := []Member{member("a", 12_000, 2), member("b", 12_000, 1), member("c", 20_000, 3)}
		f, err := NewFeeder(r, rating, 0, false, members)
		if err != nil {
			t.Fatal(err)
		}
		type gateway struct {
			lease LeaseState
			share State
			tree  *Tree
			want  []meter.MilliAmpere
			cars  []car
			// A gateway's own clock differs from the leader's.
			skew time.Duration
		}
		type message struct {
			at      time.Duration
			member  int
			request *Request
			lease   *Lease
		}
		leader := NewLeader(1)
		leaderUp := time.Duration(0)
		var net []message
		gs := make([]gateway, len(members))
		start := func(i int) {
			g := &gs[i]
			m := members[i]
			for k := range m.Chargers {
				m.Chargers[k].Circuit = "share"
			}
			tr, err := New(r.Rules, []Circuit{{ID: "share", Rating: m.Failsafe}}, m.Chargers)
			if err != nil {
				t.Fatal(err)
			}
			cars := g.cars
			*g = gateway{lease: NewLease(rng.Uint64()), tree: tr, want: make([]meter.MilliAmpere, len(m.Chargers)), cars: cars, skew: time.Duration(rng.IntN(1e6)) * time.Millisecond}
			if g.cars == nil {
				g.cars = make([]car, len(m.Chargers))
				for k := range g.cars {
					g.cars[k] = car{lag: time.Duration(rng.IntN(5000)) * time.Millisecond, takes: 32_000, phases: 3}
				}
			}
			for k := range g.cars {
				g.cars[k].offers, g.cars[k].draw = nil, 0 // relays are open after a start
			}
		}
		for i := range gs {
			start(i)
		}
		cut := make([]time.Duration, len(gs)) // until when a gateway is unreachable
		const tick = 250 * time.Millisecond
		var served, failsafe time.Duration
		var most meter.MilliAmpere
		for now := time.Duration(0); now < 40*time.Minute; now += tick {
			i := rng.IntN(len(gs))
			switch rng.IntN(2000) {
			case 0:
				cut[i] = now + time.Duration(rng.IntN(180))*time.Second
			case 1:
				start(i)
			case 2:
				leader, leaderUp = NewLeader(rng.Uint64()), now
			}
			if rng.IntN(100) == 0 {
				gs[i].want[rng.IntN(len(gs[i].want))] = meter.MilliAmpere(rng.IntN(3)) * 16_000
			}
			send := func(m message) {
				if now >= cut[m.member] && rng.IntN(10) > 0 {
					m.at = now + time.Duration(rng.IntN(4000))*time.Millisecond
					net = append(net, m)
				}
			}
			arrived := net
			net = nil
			for _, m := range arrived {
				g := &gs[m.member]
				switch {
				case m.at > now:
					net = append(net, m)
				case m.request != nil:
					var l Lease
					var ok bool
					leader, l, ok, err = f.Answer(leader, m.member, *m.request, Reading{}, now-leaderUp)
					if err != nil {
						t.Fatal(err)
					}
					if ok {
						send(message{member: m.member, lease: &l})
					}
				default:
					g.lease = Leased(g.lease, *m.lease, now+g.skew)
				}
			}
			leader = f.Tick(leader, Reading{}, now-leaderUp)
			var total meter.MilliAmpere
			for i := range gs {
				g := &gs[i]
				ids := make([]uint8, len(g.want))
				for k := range ids {
					ids[k] = members[i].Chargers[k].ID
				}
				var caps []meter.MilliAmpere
				var leased bool
				g.lease, caps, leased = Caps(r, g.lease, ids, now+g.skew)
				in := Input{Meters: make([]Reading, 1), Leased: []bool{leased}}
				for k := range ids {
					d := want(g.want[k])
					if leased {
						d.Cap = caps[k]
					}
					in.Demands = append(in.Demands, d)
				}
				var grants []Grant
				g.share, grants = Step(g.tree, g.share, in, now+g.skew)
				for k := range g.cars {
					c := &g.cars[k]
					if n := len(c.offers); n == 0 || c.offers[n-1].limit != grants[k].Limit {
						c.offers = append(c.offers, offer{now, grants[k].Limit})
					}
					c.step(now, tick)
					total += c.draw
					if c.draw > 0 {
						served += tick
						if !leased {
							failsafe += tick
						}
					}
				}
				if now%(4*time.Second) == 0 {
					var q Request
					g.lease, q = Asked(g.lease, now+g.skew)
					for k, id := range ids {
						q.Asks = append(q.Asks, Ask{ID: id, Want: g.want[k], Draw: All(g.cars[k].draw)})
					}
					send(message{member: i, request: &q})
				}
			}
			if most = max(most, total); total > rating {
				t.Fatalf("seed %d, %s: %d mA through a feeder of %d", seed, now, total, rating)
			}
		}
		if served < 20*time.Minute || failsafe == 0 || most < rating*8/10 {
			t.Errorf("seed %d: served for %s, of it %s by failsafe, at most %d mA: too careful to be of use", seed, served, failsafe, most)
		}
	}
}

func TestLeaseOfAnotherRequestIsIgnored(t *testing.T) {
	s, first := Asked(NewLease(7), 0)
	s, second := Asked(s, 10*time.Second)
	late := Lease{Seq: first.Seq, For: 15 * time.Second, Limits: []Allotment{{1, 32_000}}}
	s = Leased(s, late, 11*time.Second)
	if _, caps, leased := Caps(feederRules(), s, []uint8{1}, 11*time.Second); !leased || caps[0] != 0 {
		t.Fatalf("a late answer counts: %v %t", caps, leased)
	}
	s = Leased(s, Lease{Seq: second.Seq, For: 15 * time.Second, Limits: []Allotment{{1, 10_000}}}, 12*time.Second)
	if _, caps, _ := Caps(feederRules(), s, []uint8{1, 2}, 12*time.Second); caps[0] != 10_000 || caps[1] != 0 {
		t.Fatalf("%v", caps)
	}
	// It counts from the moment of the question.
	if _, _, leased := Caps(feederRules(), s, []uint8{1}, 10*time.Second+15*time.Second+feederRules().grace()); leased {
		t.Fatal("holds for longer than lease and grace")
	}
}
