package microgrid

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// A checkpoint is everything that the rest of a walk depends on:
//
//	magic │ length, memory (gob): people, homes, books, the random source │ entries of the state │ SHA-256
//
// It is read by the program that wrote it, or one whose walk is the same.
const (
	checkpointMagic = "joulegate walk 1\n"
	maxPart         = 1 << 30 // bytes of one part
)

// checkpoint is the part of it that is not the ledger's state.
type checkpoint struct {
	Seed        uint64
	Homes, Cars int
	Faults      float64
	Full        int
	Random      []byte
	Memory      memory
}

// Checkpoint writes down a walk between two slots, so that [Resume] goes on as
// if it had not been interrupted.
func (w *Walk) Checkpoint(to io.Writer) error {
	for _, c := range w.Cars {
		if c.AtID = (chain.ID{}); c.at != nil {
			c.AtID = c.at.ID
		}
	}
	number := map[*home]int{}
	for i, h := range w.Homes {
		number[h] = i
	}
	mark := func(s *charging) { s.HomeAt, s.CarAt = number[s.home], s.by.i }
	for _, s := range w.Ended {
		mark(s)
	}
	for _, s := range w.Open {
		mark(s)
	}
	for _, s := range w.Unheard {
		mark(s)
	}
	random, err := w.pcg.MarshalBinary()
	if err != nil {
		return err
	}

	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(to, sum), 1<<20)
	part := func(b []byte) {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(b)))
		_, _ = out.Write(n[:]) // a bufio.Writer keeps its first error for Flush
		_, _ = out.Write(b)
	}
	_, _ = out.WriteString(checkpointMagic)
	var memory bytes.Buffer
	cp := checkpoint{Seed: w.cfg.Seed, Homes: w.cfg.Homes, Cars: w.cfg.Cars, Faults: w.cfg.Faults, Full: w.cfg.Full, Random: random, Memory: w.memory}
	if err := gob.NewEncoder(&memory).Encode(&cp); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	part(memory.Bytes())
	w.st.Iterate(nil, func(k, v []byte) bool {
		part(k)
		part(v)
		return true
	})
	part(nil)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if _, err := to.Write(sum.Sum(nil)); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// Resume goes on from a checkpoint, which says what walk it is: of cfg only
// State and Twin, which are empty or nil, and Tell are used.
func Resume(cfg Config, from io.Reader) (*Walk, error) {
	w := blank(cfg)
	sum := sha256.New()
	raw := bufio.NewReaderSize(from, 1<<20)
	in := io.TeeReader(raw, sum)
	head := make([]byte, len(checkpointMagic))
	if _, err := io.ReadFull(in, head); err != nil || string(head) != checkpointMagic {
		return nil, errors.New("checkpoint: not a walk's, or of another version")
	}
	part := func() ([]byte, error) {
		var n [4]byte
		if _, err := io.ReadFull(in, n[:]); err != nil {
			return nil, fmt.Errorf("checkpoint: %w", err)
		}
		size := binary.BigEndian.Uint32(n[:])
		if size > maxPart {
			return nil, fmt.Errorf("checkpoint: a part of %d bytes, at most %d", size, maxPart)
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(in, b); err != nil {
			return nil, fmt.Errorf("checkpoint: %w", err)
		}
		return b, nil
	}
	b, err := part()
	if err != nil {
		return nil, err
	}
	cp := checkpoint{Memory: w.memory}
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&cp); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	for {
		k, err := part()
		if err != nil {
			return nil, err
		}
		if len(k) == 0 {
			break
		}
		v, err := part()
		if err != nil {
			return nil, err
		}
		for _, st := range []ledger.State{w.st, cfg.Twin} {
			if st != nil {
				st.Set(k, v)
			}
		}
	}
	want := make([]byte, sha256.Size)
	got := sum.Sum(nil)
	if _, err := io.ReadFull(raw, want); err != nil || string(want) != string(got) {
		return nil, errors.New("checkpoint: damaged, or written only in part")
	}
	w.cfg.Seed, w.cfg.Homes, w.cfg.Cars, w.cfg.Faults, w.cfg.Full = cp.Seed, cp.Homes, cp.Cars, cp.Faults, cp.Full
	if err := w.pcg.UnmarshalBinary(cp.Random); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	w.memory = cp.Memory
	w.relate()
	return w, nil
}

// relate restores what follows from the rest: keys, and who is where.
func (w *Walk) relate() {
	persons := append([]*person{w.Operator, w.Auditor, w.Heir}, w.Retired...)
	for _, i := range w.Invited {
		persons = append(persons, i.Once)
	}
	for _, h := range w.Homes {
		h.identify()
		persons = append(persons, h.Owner)
	}
	for i, c := range w.Cars {
		fresh := newCar(i, w.cfg.Homes)
		c.i, c.home = i, fresh.home
		persons = append(persons, c.Driver, c.Card, c.Lost)
	}
	for _, p := range persons {
		if p != nil {
			p.priv, p.key = keyOf("person " + p.Name)
		}
	}
	place := func(s *charging) { s.home, s.by = w.Homes[s.HomeAt], w.Cars[s.CarAt] }
	for _, s := range w.Ended {
		place(s)
	}
	for _, all := range []map[chain.ID]*charging{w.Open, w.Unheard} {
		for id, s := range all {
			place(s)
			if s.by.AtID == id {
				s.by.at = s
			}
		}
	}
}
