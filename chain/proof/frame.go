package proof

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/tree"
)

// Magic opens every bundle.
const Magic = "joulegate bundle 1\n"

// Version is the format version of bundles.
const Version = 1

// A frame is a kind (1 byte), the payload's length (4 bytes, big-endian) and
// the payload. Kinds come in ascending order, but for blocks and checkpoints,
// which mix.
const (
	frameClaim      = 1 // Claim: once
	frameCheckpoint = 2 // chain.Checkpoint: on the way to the first block, at each change of validators, under the last block
	frameBlock      = 3 // Block: one per height, from the first to the last
	frameState      = 4 // nodes of the pruned tree
	frameProfile    = 5 // Profile: by which readings were decoded
	frameReadings   = 6 // Readings of one record, in the order of records
	frameEnd        = 7 // SHA-256 of all before it: once
)

// Limits of what is read. Whatever is larger is refused unread.
const (
	MaxFrame   = 4 << 20  // bytes of a payload
	MaxBundle  = 16 << 30 // bytes of a bundle
	stateFrame = 256 << 10
	maxEntries = 8_000_000 // of the state
	maxBlocks  = 8_000_000
	maxRecords = 16_000_000 // of meters
)

// Claim says what the bundle is complete about.
type Claim struct {
	Version  uint8      `cbor:"1,keyasint" json:"version"`
	Chain    string     `cbor:"2,keyasint" json:"chain_id"`
	Genesis  chain.Hash `cbor:"3,keyasint" json:"genesis"`           // SHA-256 of the genesis file
	All      bool       `cbor:"4,keyasint" json:"all"`               // the whole state is told
	Session  chain.ID   `cbor:"5,keyasint" json:"session"`           // that it was made for; zero: none
	FromSlot chain.Slot `cbor:"6,keyasint" json:"from_slot"`         // slots that are told, inclusive
	ToSlot   chain.Slot `cbor:"7,keyasint" json:"to_slot"`           //
	First    int64      `cbor:"8,keyasint" json:"first_height"`      // blocks First..Tip are here
	To       int64      `cbor:"9,keyasint" json:"data_until_height"` // and First..To with all transactions
	Tip      int64      `cbor:"10,keyasint" json:"tip_height"`       // signs the state of Tip-1
}

func (c *Claim) check() error {
	switch {
	case c.Version != Version:
		return fmt.Errorf("bundle version %d, this program knows %d", c.Version, Version)
	case c.Chain == "" || len(c.Chain) > chain.MaxName:
		return fmt.Errorf("chain id of %d bytes", len(c.Chain))
	case c.First < 1 || c.To < c.First || c.Tip <= c.To || c.Tip-c.First >= maxBlocks:
		return fmt.Errorf("blocks %d to %d, transactions up to %d", c.First, c.Tip, c.To)
	case c.FromSlot < 0 || c.ToSlot < c.FromSlot || c.ToSlot > AllSlots:
		return fmt.Errorf("slots %d to %d", c.FromSlot, c.ToSlot)
	case c.All && (c.To != c.Tip-1 || c.FromSlot != 0 || c.ToSlot != AllSlots || c.Session != (chain.ID{})):
		return errors.New("everything is claimed, and a part")
	case !c.All && c.ToSlot == AllSlots:
		return errors.New("all slots are claimed, and not everything")
	}
	return nil
}

// AllSlots is the last slot of a claim of everything.
const AllSlots = 1 << 40

// Block is a block's header and, up to Claim.To, its transactions.
type Block struct {
	_      struct{} `cbor:",toarray"`
	Header chain.LedgerHeader
	Txs    []byte // see Pack
}

// Profile is the file by which registers were decoded.
type Profile struct {
	_        struct{} `cbor:",toarray"`
	Source   []byte
	Reversed bool
	Swapped  bool
}

// Hash returns the hash by which readings name the profile.
func (p Profile) Hash() chain.Hash {
	h := chain.Sum(p.Source)
	for _, v := range []struct {
		on     bool
		suffix string
	}{{p.Reversed, "+reversed"}, {p.Swapped, "+swapped"}} {
		if v.on {
			h = chain.Sum(append(h[:], v.suffix...))
		}
	}
	return h
}

// Readings are all readings under one meter record.
type Readings struct {
	_      struct{} `cbor:",toarray"`
	Root   chain.Hash
	Leaves [][]byte // canonical encodings of meter.Reading
}

// Writer writes a bundle. The caller keeps the order of frames.
type Writer struct {
	w    io.Writer
	sum  hash.Hash
	size int64
}

// NewWriter starts a bundle.
func NewWriter(w io.Writer, c Claim) (*Writer, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	b := &Writer{w: w, sum: newSum()}
	if err := b.write([]byte(Magic)); err != nil {
		return nil, err
	}
	return b, b.frame(frameClaim, chain.Marshal(c))
}

func (b *Writer) write(p []byte) error {
	b.sum.Write(p)
	n, err := b.w.Write(p)
	b.size += int64(n)
	return err
}

func (b *Writer) frame(kind byte, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("bundle: frame of kind %d with %d bytes, at most %d", kind, len(payload), MaxFrame)
	}
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(payload)))
	return errors.Join(b.write(head), b.write(payload))
}

// Checkpoint writes a block's votes.
func (b *Writer) Checkpoint(c *chain.Checkpoint) error { return b.frame(frameCheckpoint, c.Encode()) }

// Block writes a block.
func (b *Writer) Block(v Block) error { return b.frame(frameBlock, chain.Marshal(v)) }

// State writes the pruned tree.
func (b *Writer) State(t *tree.Tree) error {
	return t.Frames(stateFrame, func(p []byte) error { return b.frame(frameState, p) })
}

// Profile writes a profile.
func (b *Writer) Profile(p Profile) error { return b.frame(frameProfile, chain.Marshal(p)) }

// Readings writes the readings of a record.
func (b *Writer) Readings(r Readings) error { return b.frame(frameReadings, chain.Marshal(r)) }

// Close ends the bundle and returns its size. It does not close the file.
func (b *Writer) Close() (int64, error) {
	err := b.frame(frameEnd, b.sum.Sum(nil))
	return b.size, err
}

// reader reads frames.
type reader struct {
	r    io.Reader
	sum  hash.Hash
	size int64
	last byte
}

func newReader(r io.Reader) (*reader, error) {
	f := &reader{r: r, sum: newSum()}
	m := make([]byte, len(Magic))
	if err := f.read(m); err != nil || string(m) != Magic {
		return nil, errors.New("this is not a bundle")
	}
	return f, nil
}

func (f *reader) read(p []byte) error {
	if f.size += int64(len(p)); f.size > MaxBundle {
		return fmt.Errorf("larger than %d bytes", int64(MaxBundle))
	}
	if _, err := io.ReadFull(f.r, p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return tree.ErrShort
		}
		return err
	}
	f.sum.Write(p)
	return nil
}

// next returns the next frame. It allocates as the bytes come, so that a
// length that lies costs nothing.
func (f *reader) next() (kind byte, payload []byte, err error) {
	before := f.sum.Sum(nil)
	var head [5]byte
	if err := f.read(head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	kind = head[0]
	group := func(k byte) byte {
		if k == frameCheckpoint {
			return frameBlock
		}
		return k
	}
	switch {
	case kind < frameClaim || kind > frameEnd:
		return 0, nil, fmt.Errorf("a frame of kind %d", kind)
	case f.last == 0 && kind != frameClaim, f.last != 0 && kind == frameClaim, group(kind) < group(f.last):
		return 0, nil, fmt.Errorf("a frame of kind %d after one of kind %d", kind, f.last)
	case n > MaxFrame:
		return 0, nil, fmt.Errorf("a frame of %d bytes, at most %d", n, MaxFrame)
	}
	for have := uint32(0); have < n; have = uint32(len(payload)) {
		step := min(n-have, max(64<<10, have))
		payload = append(payload, make([]byte, step)...)
		if err := f.read(payload[have:]); err != nil {
			return 0, nil, err
		}
	}
	f.last = kind
	if kind == frameEnd {
		if !bytes.Equal(payload, before) {
			return 0, nil, errors.New("the digest at its end is of another file: it was damaged or cut")
		}
		if _, err := io.ReadFull(f.r, head[:1]); !errors.Is(err, io.EOF) {
			return 0, nil, errors.New("something follows its end")
		}
	}
	return kind, payload, nil
}

func newSum() hash.Hash { return sha256.New() }
