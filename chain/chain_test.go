package chain

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"math"
	"math/big"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

func testKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
}

func testBlock(t testing.TB) *Signed {
	t.Helper()
	s, err := SignBlock(Block{
		Chain: "test", Epoch: 1, Number: 1, Time: 1764000000000,
		Records: []Record{NewRecord(KindMeter, MeterRecord{Slot: 7, Meter: "house", Role: RoleSite, Page: 1, Import: 12, Quality: meter.Good})},
	}, testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBlockRoundTrip(t *testing.T) {
	s := testBlock(t)
	got, err := ParseBlock(s.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if got.Hash != s.Hash || got.Author != s.Author || got.Position() != s.Position() {
		t.Fatalf("parsed %+v, signed %+v", got.Block, s.Block)
	}
	var m MeterRecord
	if err := Unmarshal(got.Records[0].Body, &m); err != nil || m.Import != 12 {
		t.Fatalf("record %+v, %v", m, err)
	}
}

// Any changed byte of a signed block must be noticed.
func TestBlockEveryByteCounts(t *testing.T) {
	raw := testBlock(t).Raw
	for i := range raw {
		for _, flip := range []byte{1, 0x80} {
			bad := bytes.Clone(raw)
			bad[i] ^= flip
			if _, err := ParseBlock(bad); err == nil {
				t.Fatalf("byte %d of %d changed by %#x and nobody noticed", i, len(raw), flip)
			}
		}
	}
	if _, err := ParseBlock(append(bytes.Clone(raw), 0)); err == nil {
		t.Fatal("trailing byte accepted")
	}
}

// A signature for one purpose must not serve another.
func TestDomainsSeparate(t *testing.T) {
	key := testKey(2)
	var pub Key
	copy(pub[:], key.Public().(ed25519.PublicKey))
	body := []byte("the same bytes")
	domains := []string{DomainBlock, DomainTx, DomainQuote, DomainMember, DomainReceipt}
	for _, d := range domains {
		sig := Sign(key, d, body)
		for _, e := range domains {
			if Verify(pub, e, body, sig) != (d == e) {
				t.Errorf("signed under %q, verified under %q", d, e)
			}
		}
	}
}

func TestNonCanonicalRefused(t *testing.T) {
	type pair struct {
		A int64 `cbor:"1,keyasint"`
		B int64 `cbor:"2,keyasint"`
	}
	for name, raw := range map[string][]byte{
		"unsorted keys":    {0xa2, 0x02, 0x01, 0x01, 0x01},
		"long integer":     {0xa2, 0x01, 0x18, 0x01, 0x02, 0x01},
		"duplicate key":    {0xa2, 0x01, 0x01, 0x01, 0x01},
		"unknown key":      {0xa3, 0x01, 0x01, 0x02, 0x01, 0x03, 0x01},
		"indefinite map":   {0xbf, 0x01, 0x01, 0x02, 0x01, 0xff},
		"missing key":      {0xa1, 0x01, 0x01},
		"trailing byte":    {0xa2, 0x01, 0x01, 0x02, 0x01, 0x00},
		"tagged integer":   {0xa2, 0x01, 0xc2, 0x41, 0x01, 0x02, 0x01},
		"float for an int": {0xa2, 0x01, 0xf9, 0x3c, 0x00, 0x02, 0x01},
	} {
		var p pair
		if err := Unmarshal(raw, &p); err == nil {
			t.Errorf("%s accepted as %+v", name, p)
		}
	}
	var p pair
	if err := Unmarshal([]byte{0xa2, 0x01, 0x01, 0x02, 0x01}, &p); err != nil {
		t.Fatalf("canonical refused: %v", err)
	}
}

func TestCheckedArithmeticAgainstBig(t *testing.T) {
	edge := rapid.OneOf(rapid.Int64(), rapid.SampledFrom([]int64{0, 1, -1, math.MaxInt64, math.MinInt64, math.MaxInt32, 1 << 32}))
	rapid.Check(t, func(t *rapid.T) {
		a, b := edge.Draw(t, "a"), edge.Draw(t, "b")
		want := new(big.Int).Mul(big.NewInt(a), big.NewInt(b))
		got, err := Cost(NanoPerWh(a), meter.WattHour(b))
		if want.IsInt64() != (err == nil) || (err == nil && int64(got) != want.Int64()) {
			t.Fatalf("%d*%d = %d, %v; want %s", a, b, got, err, want)
		}
		want.Add(big.NewInt(a), big.NewInt(b))
		sum, err := AddNano(Nano(a), Nano(b))
		if want.IsInt64() != (err == nil) || (err == nil && int64(sum) != want.Int64()) {
			t.Fatalf("%d+%d = %d, %v; want %s", a, b, sum, err, want)
		}
		n, ppm := rapid.Int64Range(0, math.MaxInt64).Draw(t, "n"), rapid.Int64Range(0, 1e6).Draw(t, "ppm")
		want.Mul(big.NewInt(n), big.NewInt(ppm)).Quo(want, big.NewInt(1e6))
		if got := PPM(Nano(n), ppm); int64(got) != want.Int64() {
			t.Fatalf("PPM(%d, %d) = %d, want %s", n, ppm, got, want)
		}
	})
}

func TestMerkleProofs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		leaves := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 8), 1, 70).Draw(t, "leaves")
		i := rapid.IntRange(0, len(leaves)-1).Draw(t, "i")
		root, proof := MerkleRoot(leaves), MerkleProof(leaves, i)
		if err := VerifyMerkle(root, leaves[i], i, len(leaves), proof); err != nil {
			t.Fatalf("leaf %d of %d: %v", i, len(leaves), err)
		}
		if VerifyMerkle(root, append([]byte{0xff}, leaves[i]...), i, len(leaves), proof) == nil {
			t.Fatal("another leaf proven")
		}
		for k := range proof {
			bad := append([]Hash(nil), proof...)
			bad[k][3] ^= 1
			if VerifyMerkle(root, leaves[i], i, len(leaves), bad) == nil {
				t.Fatal("broken path accepted")
			}
		}
		if len(proof) > 0 && VerifyMerkle(root, leaves[i], i, len(leaves), proof[:len(proof)-1]) == nil {
			t.Fatal("shortened path accepted")
		}
		if VerifyMerkle(root, leaves[i], i, len(leaves), append(proof, Hash{})) == nil {
			t.Fatal("lengthened path accepted")
		}
	})
}

func TestQuoteRefusesWrongHold(t *testing.T) {
	key := testKey(3)
	q := Quote{Version: Version, Chain: "test", Created: 1, Expires: 2, MaxWh: 1000, Cap: 300000, Hold: 300000 * 1000}
	copy(q.Driver[:], key.Public().(ed25519.PublicKey))
	sign := func(q Quote) SignedQuote {
		b := Marshal(q)
		return SignedQuote{Quote: b, Sig: Sign(key, DomainQuote, b)}
	}
	if _, err := sign(q).Open(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Quote){
		"hold":    func(q *Quote) { q.Hold++ },
		"energy":  func(q *Quote) { q.MaxWh = -5 },
		"expiry":  func(q *Quote) { q.Expires = q.Created },
		"version": func(q *Quote) { q.Version = 9 },
		"driver":  func(q *Quote) { q.Driver[0] ^= 1 },
		"huge":    func(q *Quote) { q.MaxWh, q.Cap = math.MaxInt64, 3 },
	} {
		bad := q
		change(&bad)
		if _, err := sign(bad).Open(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTokenSurvivesPasteAndRefusesDamage(t *testing.T) {
	tok := Token{ChainID: "test", Genesis: Sum([]byte("g")), PSK: make([]byte, 32), Peer: Key{1}, Addrs: []string{"/ip4/127.0.0.1/tcp/1"}, Seed: make([]byte, 32)}
	got, err := ParseToken("  " + tok.String() + "\n")
	if err != nil || got.Genesis != tok.Genesis || got.Addrs[0] != tok.Addrs[0] {
		t.Fatalf("%+v, %v", got, err)
	}
	s := tok.String()
	for _, bad := range []string{"", "hello", s[:len(s)-5], strings.Replace(s, "jg1.", "jg2.", 1), s + "!"} {
		if _, err := ParseToken(bad); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func TestAccountText(t *testing.T) {
	a := AccountOf(Key{1, 2, 3})
	for _, want := range []Account{a, AccountGrid, AccountReserve} {
		b, _ := want.MarshalText()
		var got Account
		if err := got.UnmarshalText(b); err != nil || got != want {
			t.Errorf("%s -> %v, %v", b, got, err)
		}
	}
	if a.IsSystem() || !AccountGrid.IsSystem() {
		t.Error("person and system accounts are confused")
	}
	var x Account
	for _, bad := range []string{"", "sys:", "sys:nobody", "00", strings.Repeat("0", 40), "sys:gridgridgridgridgridgridgrid"} {
		if err := x.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("account %q accepted", bad)
		}
	}
}

func TestSlots(t *testing.T) {
	for ms, want := range map[int64]Slot{0: 0, 899999: 0, 900000: 1, -1: -1, 1764000000000: 1960000} {
		if got := SlotAt(ms, 900); got != want {
			t.Errorf("SlotAt(%d) = %d, want %d", ms, got, want)
		}
	}
	if s := Slot(3); s.End(10) != (s+1).Start(10) || SlotAt(s.Start(10), 10) != s || SlotAt(s.End(10)-1, 10) != s {
		t.Error("slot edges do not meet")
	}
}

func FuzzParseBlock(f *testing.F) {
	f.Add(testBlock(f).Raw)
	f.Add([]byte{0x83, 1, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := ParseBlock(raw)
		if err != nil {
			return
		}
		again := Marshal(Envelope{Type: EnvelopeBlock, Body: Marshal(s.Block), Sig: mustSig(t, raw)})
		if !bytes.Equal(again, raw) {
			t.Fatalf("two encodings of one block:\n%x\n%x", raw, again)
		}
	})
}

func mustSig(t *testing.T, raw []byte) []byte {
	e, err := OpenEnvelope(raw)
	if err != nil {
		t.Fatal(err)
	}
	return e.Sig
}

func FuzzOpenTx(f *testing.F) {
	f.Add(SignTx("test", 1, TxMint, Mint{To: AccountGrid, Amount: 5, BankRef: "x"}, testKey(1)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := OpenEnvelope(raw)
		if err != nil {
			return
		}
		if tx, err := OpenTx(e); err == nil && !bytes.Equal(Marshal(tx), e.Body) {
			t.Fatal("two encodings of one transaction")
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add(Token{ChainID: "c", PSK: make([]byte, 32), Seed: make([]byte, 32), Addrs: []string{"a"}}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := ParseToken(s); err == nil && tok.String() != strings.TrimSpace(s) {
			t.Fatalf("%q parses and prints as %q", s, tok.String())
		}
	})
}

func TestOversizeRefusedUnread(t *testing.T) {
	if _, err := ParseBlock(make([]byte, MaxBlockBytes+1)); err == nil || errors.Is(err, ErrNotCanonical) {
		t.Fatalf("got %v", err)
	}
}
