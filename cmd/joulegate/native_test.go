package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/audit"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

const signingMeter = `version: 1
id: test-signing
vendor: Test
model: Signing
kind: meter
serial: {baud: 9600, framing: 8N1, unit: 1}
timing: {max_block: 60}
function: 3
points:
  - {quantity: import, address: 0, type: u32, scale: 1000}
  - {quantity: voltage, phase: 1, address: 2, type: u16, scale: 100}
  - {quantity: frequency, address: 3, type: u16, scale: 10}
detect:
  - {quantity: voltage, phase: 1, min: 207000, max: 253000}
  - {quantity: frequency, min: 47000, max: 53000}
signed: {format: ocmf, address: 1000, length: 900, key: {address: 3000, length: 128}}
sources: [{name: test, confidence: A}]
`

// A meter on a real Modbus line signs its own record: it arrives byte for
// byte, and is judged by the right key.
func TestMeterSignsItself(t *testing.T) {
	p, err := profile.Parse("test", []byte(signingMeter))
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	at := time.Date(2026, 7, 24, 13, 22, 4, 0, time.UTC)
	line, _, err := audit.Receipt{
		Number: 1, Gateway: "the meter", Serial: "220912", Driver: chain.AccountOf(chain.Key{1}),
		Begin: audit.Register{At: at, Synced: true, Wh: 1_200_000, Quality: meter.Good},
		End:   audit.Register{At: at.Add(time.Hour), Synced: true, Wh: 1_207_340, Quality: meter.Good}, Reason: chain.StopDriver,
	}.OCMF(key)
	must(t, err)

	unit, err := slave.NewUnit(p, slave.UnitConfig{})
	must(t, err)
	put := func(addr uint16, text string, n int) {
		b := append([]byte(text), make([]byte, 2*n-len(text))...)
		for i := range n {
			unit.SetRegister(drivers.HoldingRegisters, addr+uint16(i), uint16(b[2*i])<<8|uint16(b[2*i+1]))
		}
	}
	put(1000, line, 900)
	put(3000, hex.EncodeToString(spki), 128)
	bus, err := slave.NewBus(slave.Config{})
	must(t, err)
	must(t, bus.Add(1, unit))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- bus.ServeTCP(ctx, ln) }()
	wire, err := modbus.New(modbus.Config{TCP: ln.Addr().String(), Timeout: 5 * time.Second})
	must(t, err)
	go func() { ended <- wire.Run(ctx) }()
	defer func() { stop(); <-ended; <-ended }()
	reg := wire.Device(modbusDevice(p, 1, "meter", modbus.Slow))

	_, other := newReceiptKey(t)
	for _, c := range []struct {
		configured, from, note string
		good                   bool
	}{
		{"", audit.KeyFromMeter, "compare that key", true},
		{hex.EncodeToString(spki), audit.KeyConfigured, "configured key", true},
		{hex.EncodeToString(other), audit.KeyConfigured, "DOES NOT HOLD", false},
	} {
		n, err := readNative(t.Context(), reg, p, c.configured)
		if err != nil || n.Line != line || n.Good != c.good || n.From != c.from || !strings.Contains(n.Note, c.note) {
			t.Errorf("key %.8q: %+v, %v", c.configured, n, err)
		}
	}

	// As a gateway does when charging ends.
	g := &gateway{
		cfg:     config.Config{Meters: []config.Meter{{ID: "meter", Line: "wire", Unit: 1}}},
		devices: &devices{lines: map[string]*modbus.Line{"wire": wire}, profiles: map[string]*profile.Profile{"meter": p}},
		state:   state(t.TempDir()), log: slog.New(slog.DiscardHandler),
	}
	must(t, os.MkdirAll(g.state.path("receipts"), 0o755))
	id := chain.ID{7}
	got := g.native(id, "meter")
	kept, ok := g.nativeOf(id)
	if len(got) != 1 || !ok || kept != got[0] || kept.Line != line {
		t.Errorf("kept %+v (%t) of %+v", kept, ok, got)
	}
	if n := g.native(chain.ID{8}, "another"); n != nil {
		t.Errorf("a meter that signs nothing gave %+v", n)
	}

	put(1000, "", 900)
	if n, err := readNative(t.Context(), reg, p, ""); err == nil || !strings.Contains(err.Error(), "no text") {
		t.Errorf("an empty block is read as %+v, %v", n, err)
	}
	put(1000, "OCMF|{}", 900)
	if n, err := readNative(t.Context(), reg, p, ""); err == nil {
		t.Errorf("half a record is read as %+v", n)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newReceiptKey(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	return key, spki
}
