package chain

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"
	"time"
)

// notary signs headers as validators do.
type notary struct {
	last LedgerHeader
	keys map[Key]ed25519.PrivateKey
}

func set(seeds ...byte) Validators {
	var g Genesis
	for _, s := range seeds {
		g.Members = append(g.Members, Founder{Member: Member{Validator: Key(testKey(s).Public().(ed25519.PublicKey))}})
	}
	return FoundingValidators(g)
}

func newNotary() *notary {
	n := &notary{keys: map[Key]ed25519.PrivateKey{}}
	for s := range byte(20) {
		k := testKey(s)
		n.keys[Key(k.Public().(ed25519.PublicKey))] = k
	}
	return n
}

// at makes a checkpoint of a height with these sets, signed by those who.
func (n *notary) at(height int64, now, next Validators, who ...int) *Checkpoint {
	c := &Checkpoint{
		Version: CheckpointVersion,
		Header: LedgerHeader{
			Protocol: 11, App: 1, Chain: "test", Height: height, Time: 1_764_000_000_000_000_123 + height*int64(time.Minute),
			Validators: now.Hash(), Next: next.Hash(), AppHash: Sum([]byte{byte(height)}), Data: Sum(nil),
		},
		Commit: Commit{Parts: 1, Root: Sum([]byte("parts"))},
		Set:    now,
	}
	if height == n.last.Height+1 && height > 1 {
		c.Header.Last = BlockRef{Hash: n.last.Hash(), Parts: 1, Root: Sum(nil)}
	}
	if now.Hash() != next.Hash() {
		c.Next = next
	}
	n.sign(c, who...)
	n.last = c.Header
	return c
}

func (n *notary) sign(c *Checkpoint, who ...int) {
	c.Commit.Votes = nil
	for _, i := range who {
		v := Vote{Index: uint16(i), Time: c.Header.Time + int64(i)}
		v.Sig = Sign(n.keys[c.Set[i].Key], "", c.Commit.SignBytes(&c.Header, v))
		c.Commit.Votes = append(c.Commit.Votes, v)
	}
}

func TestCheckpointTrust(t *testing.T) {
	n := newNotary()
	four, mixed, others := set(1, 2, 3, 4), set(3, 4, 5), set(6, 7, 8)
	start := time.Unix(1_764_000_000, 0)
	genesis := Trust{Chain: "test", Time: start.UnixNano(), Next: four}

	first := n.at(1, four, four, 0, 1, 2)
	second := n.at(2, four, mixed, 1, 2, 3)
	third := n.at(3, mixed, mixed, 0, 1, 2)
	later := n.at(100, mixed, mixed, 0, 1, 2)
	strangers := n.at(200, others, others, 0, 1, 2)
	fork := n.at(100, mixed, mixed, 0, 1)
	fork.Header.AppHash = Sum([]byte("other"))
	n.sign(fork, 0, 1, 2)
	gap := n.at(2, mixed, mixed, 0, 1, 2)

	for _, c := range []struct {
		name  string
		trust Trust
		c     *Checkpoint
		want  error // nil: fine; errAny: any
	}{
		{"the first block by the founders", genesis, first, nil},
		{"the next block, a new set to come", first.Trust(), second, nil},
		{"the next block by the new set", second.Trust(), third, nil},
		{"a later block by the same set", third.Trust(), later, nil},
		{"a later block by half of the old set", genesis, later, nil},
		{"itself", later.Trust(), later, nil},
		{"a later block by strangers", later.Trust(), strangers, ErrNotTrusted},
		{"another block at the trusted height", later.Trust(), fork, errAny},
		{"a block before the trusted one", later.Trust(), third, errAny},
		{"the next height by a set that was not named", first.Trust(), gap, ErrNotTrusted},
		{"another chain", Trust{Chain: "other", Next: four}, first, errAny},
	} {
		err := c.trust.Verify(c.c)
		if c.want == nil && err != nil || c.want != nil && (err == nil || !errors.Is(c.want, errAny) && !errors.Is(err, c.want)) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}

	// With a clock: old trust is no trust.
	if err := later.Trust().VerifyAt(later, later.Time().Add(TrustingPeriod-time.Second)); err != nil {
		t.Error(err)
	}
	if err := later.Trust().VerifyAt(later, later.Time().Add(TrustingPeriod)); !errors.Is(err, ErrExpired) {
		t.Errorf("trust of %s: %v", TrustingPeriod, err)
	}
	if err := genesis.VerifyAt(later, start.Add(time.Minute)); err == nil {
		t.Error("a checkpoint from the future is trusted")
	}
}

var errAny = errors.New("any")

// What has too few votes, or votes that were not cast so, is refused.
func TestCheckpointVotes(t *testing.T) {
	n := newNotary()
	four := set(1, 2, 3, 4)
	good := n.at(5, four, four, 0, 1, 2)
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(c *Checkpoint){
		"two of four":                func(c *Checkpoint) { n.sign(c, 0, 1) },
		"nobody":                     func(c *Checkpoint) { n.sign(c) },
		"one vote counted twice":     func(c *Checkpoint) { c.Commit.Votes[2] = c.Commit.Votes[1] },
		"votes out of order":         func(c *Checkpoint) { slices.Reverse(c.Commit.Votes) },
		"another round":              func(c *Checkpoint) { c.Commit.Round = 1 },
		"a vote of another's":        func(c *Checkpoint) { c.Commit.Votes[2].Index = 3 },
		"an index outside":           func(c *Checkpoint) { c.Commit.Votes[2].Index = 4 },
		"a validator more":           func(c *Checkpoint) { c.Set = set(1, 2, 3, 4, 5) },
		"a validator twice":          func(c *Checkpoint) { c.Set = append(slices.Clone(c.Set), c.Set[0]) },
		"power from nowhere":         func(c *Checkpoint) { c.Set = slices.Clone(c.Set); c.Set[0].Power = 1000 },
		"negative power":             func(c *Checkpoint) { c.Set = slices.Clone(c.Set); c.Set[3].Power = -10 },
		"power beyond all":           func(c *Checkpoint) { c.Set = slices.Clone(c.Set); c.Set[3].Power = 1 << 62 },
		"a next set nobody named":    func(c *Checkpoint) { c.Next = set(9) },
		"the same next set repeated": func(c *Checkpoint) { c.Next = c.Set },
		"a newer format":             func(c *Checkpoint) { c.Version++ },
		"height zero":                func(c *Checkpoint) { c.Header.Height = 0; n.sign(c, 0, 1, 2) },
	} {
		c, err := ParseCheckpoint(good.Encode())
		if err != nil {
			t.Fatal(err)
		}
		spoil(c)
		if err := c.Check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Any changed byte of a checkpoint is noticed.
func TestCheckpointEveryByteCounts(t *testing.T) {
	n := newNotary()
	raw := n.at(5, set(1, 2, 3), set(1, 2, 3, 4), 0, 1, 2).Encode()
	if _, err := ParseCheckpoint(raw); err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for _, flip := range []byte{1, 0x80} {
			bad := bytes.Clone(raw)
			bad[i] ^= flip
			if _, err := ParseCheckpoint(bad); err == nil {
				t.Fatalf("byte %d of %d changed by %#x and nobody noticed", i, len(raw), flip)
			}
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	n := newNotary()
	f.Add(n.at(1, set(1), set(1), 0).Encode())
	f.Add(n.at(7, set(1, 2, 3), set(2, 3, 4), 0, 1, 2).Encode())
	f.Add([]byte{0xa5, 1, 1, 2, 0xa0})
	f.Add(bytes.Repeat([]byte{0x9f}, 100))
	trust := Trust{Chain: "test", Next: set(1, 2, 3)}
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseCheckpoint(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(c.Encode(), raw) {
			t.Fatalf("accepted %x, which encodes as %x", raw, c.Encode())
		}
		_ = trust.Verify(c)
	})
}
