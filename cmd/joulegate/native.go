package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/audit"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/meter/profile"
)

// nativeTimeout bounds how long the record of a stop waits for what the meter
// has signed: 2048 registers take 5 s at 9600 baud.
const nativeTimeout = 8 * time.Second

// native reads what a session's meter has signed itself, if its profile says
// that it does, and keeps it beside the receipt. The receipt does not depend
// on it: a meter that does not answer costs its record, which is on the log.
func (g *gateway) native(id chain.ID, meterID string) []audit.Native {
	p := g.devices.profiles[meterID]
	if p == nil || p.Signed == nil {
		return nil
	}
	log := g.log.With("session", id, "device", meterID)
	for _, m := range g.cfg.Meters {
		if m.ID != meterID {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), nativeTimeout)
		defer cancel()
		n, err := readNative(ctx, g.devices.register(m.Line, m.Unit, m.ID, p, modbus.Slow), p, m.Key)
		if err != nil {
			log.Warn("the meter's own signed record could not be read", "err", err)
			return nil
		}
		doc, err := json.MarshalIndent(n, "", "  ")
		if err == nil {
			err = writeFile(g.receiptPath(id, "native"), append(doc, '\n'), 0o644)
		}
		if err != nil {
			log.Error("the meter's own signed record could not be kept", "err", err)
			return nil
		}
		log.Info("the meter's own signed record is kept", "verified", n.Good, "note", n.Note)
		return []audit.Native{n}
	}
	return nil
}

// nativeOf returns what the meter of an ended session has signed itself.
func (g *gateway) nativeOf(id chain.ID) (n audit.Native, ok bool) {
	b, err := os.ReadFile(g.receiptPath(id, "native"))
	return n, err == nil && json.Unmarshal(b, &n) == nil
}

// readNative fetches a meter's signed record and judges it by the configured
// key (hex), or by the one that the meter tells.
func readNative(ctx context.Context, reg drivers.Register, p *profile.Profile, configured string) (audit.Native, error) {
	text := func(addr, n uint16) (b []byte, err error) {
		for _, block := range p.SignedBlocks(addr, n) {
			part, err := reg.ReadRegisters(ctx, block.Function, block.Address, block.Count)
			if err != nil {
				return nil, fmt.Errorf("registers %d..%d: %w", block.Address, block.Address+block.Count-1, err)
			}
			if b = append(b, part...); part[len(part)-1] == 0 {
				break // the text has ended
			}
		}
		return b, nil
	}
	b, err := text(p.Signed.Address, p.Signed.Length)
	if err != nil {
		return audit.Native{}, err
	}
	line, err := profile.SignedText(b)
	if err != nil {
		return audit.Native{}, err
	}
	key, from := []byte(nil), audit.KeyConfigured
	if configured != "" {
		if key, err = hex.DecodeString(configured); err != nil {
			return audit.Native{}, fmt.Errorf("public_key: %w", err)
		}
	} else if k := p.Signed.Key; k != nil {
		if b, err = text(k.Address, k.Length); err != nil {
			return audit.Native{}, err
		}
		if key, err = profile.SignedKey(b); err != nil {
			return audit.Native{}, fmt.Errorf("the key that the meter tells: %w", err)
		}
		from = audit.KeyFromMeter
	}
	return audit.NewNative(line, key, from)
}
