package board

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
)

func statementKey(name string) (ed25519.PrivateKey, chain.Key) {
	seed := chain.Sum([]byte(name))
	k := ed25519.NewKeyFromSeed(seed[:])
	return k, chain.Key(k.Public().(ed25519.PublicKey))
}

func vouch() Statement {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return Statement{
		Gateway: chain.Key{1}, Charger: 1, PhaseSwitch: true, Discharge: true, MaxPower: 7_000,
		GridProtection: "VDE-AR-N 4105 certificate 12-345", Approval: "network operator, file 2026-0815",
		Issued: at, Expires: at.AddDate(1, 0, 0),
	}
}

func TestStatement(t *testing.T) {
	key, pub := statementKey("installer")
	file, err := SignStatement(vouch(), key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenStatement(file)
	if err != nil || s.Installer != pub || s.MaxPower != 7_000 {
		t.Fatalf("%+v, %v", s, err)
	}
	in := s.Issued.Add(time.Hour)
	if err := s.Allows(chain.Key{1}, 1, []chain.Key{{9}, pub}, in); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		want string
		err  error
	}{
		{"not among", s.Allows(chain.Key{1}, 1, []chain.Key{{9}}, in)},
		{"is for charger 1", s.Allows(chain.Key{2}, 1, []chain.Key{pub}, in)},
		{"is for charger 1", s.Allows(chain.Key{1}, 2, []chain.Key{pub}, in)},
		{"expired on 2027-03-01", s.Allows(chain.Key{1}, 1, []chain.Key{pub}, s.Expires)},
		{"valid from", s.Allows(chain.Key{1}, 1, []chain.Key{pub}, s.Issued.Add(-time.Second))},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%v, want %q", c.err, c.want)
		}
	}
	// Nothing in it can be changed.
	for _, c := range [][2]string{
		{`"max_power_w": 7000`, `"max_power_w": 11000`},
		{`"charger": 1`, `"charger": 2`},
		{"2027-", "2028-"},
		{"12-345", "12-346"},
		{"2026-0815", "2026-0816"},
		{`"phase_switch": true`, `"phase_switch": false`},
	} {
		forged := strings.Replace(string(file), c[0], c[1], 1)
		if forged == string(file) {
			t.Fatalf("%s is not in the file:\n%s", c[0], file)
		}
		if _, err := OpenStatement([]byte(forged)); !errors.Is(err, chain.ErrSignature) {
			t.Errorf("%s: %v", c[1], err)
		}
	}
}

func TestStatementIsComplete(t *testing.T) {
	key, _ := statementKey("installer")
	for _, f := range []func(*Statement){
		func(s *Statement) { s.GridProtection = " " }, func(s *Statement) { s.Approval = "" }, func(s *Statement) { s.MaxPower = 0 },
		func(s *Statement) { s.Charger = 0 }, func(s *Statement) { s.Gateway = chain.Key{} }, func(s *Statement) { s.Expires = s.Issued },
		func(s *Statement) { s.Expires = s.Issued.AddDate(6, 0, 0) }, func(s *Statement) { s.PhaseSwitch, s.Discharge = false, false },
		func(s *Statement) { s.Discharge = false },
	} {
		s := vouch()
		f(&s)
		if _, err := SignStatement(s, key); err == nil {
			t.Errorf("signed: %+v", s)
		}
	}
}

func FuzzOpenStatement(f *testing.F) {
	key, _ := statementKey("installer")
	file, err := SignStatement(vouch(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte(`{"statement":{},"signature":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := OpenStatement(b); err == nil {
			if err := s.Check(); err != nil {
				t.Error(err)
			}
		}
	})
}
