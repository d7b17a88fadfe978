package profile

import (
	"encoding/hex"
	"errors"
	"strings"

	"github.com/joulegate/joulegate/drivers"
)

// Signed says where a meter keeps a record of a charging session that it has
// signed itself, as text in registers, two bytes in each, zero at its end. It
// is passed on as it is.
type Signed struct {
	Format   string           `yaml:"format"` // ocmf
	Function drivers.Function `yaml:"function,omitempty"`
	Address  uint16           `yaml:"address"`
	Length   uint16           `yaml:"length"`        // registers, the most that it can have
	Key      *KeyText         `yaml:"key,omitempty"` // where its public key is; what is told there is not yet trusted
}

// KeyText is where a meter tells its public key, as SubjectPublicKeyInfo (RFC
// 5480) in hex digits.
type KeyText struct {
	Address uint16 `yaml:"address"`
	Length  uint16 `yaml:"length"` // registers
}

// Limits of what a meter signs, in registers.
const (
	maxSigned    = 2048
	maxSignedKey = 256
)

func (p *Profile) checkSigned() error {
	s := p.Signed
	if s == nil {
		return nil
	}
	if s.Function == 0 {
		s.Function = p.Function
	}
	if s.Function == 0 {
		s.Function = drivers.HoldingRegisters
	}
	switch {
	case s.Format != "ocmf":
		return at("signed.format", "%q: want ocmf", s.Format)
	case !readable(s.Function):
		return at("signed.function", "%d: want 3 or 4", s.Function)
	case s.Length < 1 || s.Length > maxSigned:
		return at("signed.length", "%d: want 1..%d registers", s.Length, maxSigned)
	case int(s.Address)+int(s.Length) > 1<<16:
		return at("signed.address", "%d: %d registers do not fit below 65536", s.Address, s.Length)
	}
	if k := s.Key; k != nil && (k.Length < 1 || k.Length > maxSignedKey || int(k.Address)+int(k.Length) > 1<<16) {
		return at("signed.key", "%d registers at %d: want 1..%d below 65536", k.Length, k.Address, maxSignedKey)
	}
	return nil
}

// SignedBlocks are the reads that fetch n registers of text from addr on.
func (p *Profile) SignedBlocks(addr, n uint16) (out []Block) {
	for n > 0 {
		b := Block{Function: p.Signed.Function, Address: addr, Count: min(n, p.Timing.maxBlock())}
		out = append(out, b)
		addr, n = addr+b.Count, n-b.Count
	}
	return out
}

// SignedText returns the text in registers: up to the first zero, printable.
func SignedText(registers []byte) (string, error) {
	s, _, _ := strings.Cut(string(registers), "\x00")
	if s = strings.TrimSpace(s); s == "" {
		return "", errors.New("it holds no text")
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return "", errors.New("it holds something else than text")
		}
	}
	return s, nil
}

// SignedKey returns the key of a text of registers.
func SignedKey(registers []byte) ([]byte, error) {
	s, err := SignedText(registers)
	if err != nil {
		return nil, err
	}
	return hex.DecodeString(s)
}
