package driverstest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/joulegate/joulegate/drivers"
)

// Op is one recorded operation, as one line of JSON in a fixture.
type Op struct {
	Write  bool             `json:"write,omitempty"`
	Verify bool             `json:"verify,omitempty"`
	Fn     drivers.Function `json:"fn,omitempty"`
	Addr   uint16           `json:"addr"`
	Count  uint16           `json:"count,omitempty"`
	Values []uint16         `json:"values,omitempty"` // of a write
	Data   string           `json:"data,omitempty"`   // of a read, hexadecimal
	Err    string           `json:"err,omitempty"`
}

func (o Op) String() string {
	if o.Write {
		return fmt.Sprintf("write %v at %d with function %d (0: any)", o.Values, o.Addr, o.Fn)
	}
	return fmt.Sprintf("read %d registers at %d with function %d", o.Count, o.Addr, o.Fn)
}

// Recorder passes operations to a device and writes them to a fixture.
type Recorder struct {
	device drivers.Writer
	mu     sync.Mutex
	enc    *json.Encoder
}

// NewRecorder records what happens to device on w, one JSON line each.
func NewRecorder(device drivers.Writer, w io.Writer) *Recorder {
	return &Recorder{device: device, enc: json.NewEncoder(w)}
}

// ReadRegisters implements drivers.Register. It fails if the fixture cannot be
// written.
func (r *Recorder) ReadRegisters(ctx context.Context, fn drivers.Function, addr, count uint16) ([]byte, error) {
	data, err := r.device.ReadRegisters(ctx, fn, addr, count)
	if werr := r.write(Op{Fn: fn, Addr: addr, Count: count, Data: hex.EncodeToString(data)}, err); werr != nil {
		return nil, werr
	}
	return data, err
}

// WriteRegisters implements drivers.Register.
func (r *Recorder) WriteRegisters(ctx context.Context, addr uint16, values []uint16) error {
	return r.Write(ctx, drivers.Write{Address: addr, Values: values})
}

// Write implements drivers.Writer.
func (r *Recorder) Write(ctx context.Context, w drivers.Write) error {
	err := r.device.Write(ctx, w)
	if werr := r.write(opOf(w), err); werr != nil {
		return werr
	}
	return err
}

func opOf(w drivers.Write) Op {
	return Op{Write: true, Verify: w.Verify, Fn: w.Function, Addr: w.Address, Values: w.Values}
}

func (r *Recorder) write(op Op, err error) error {
	if err != nil {
		op.Err = err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.enc.Encode(op); err != nil {
		return fmt.Errorf("record %v: %w", op, err)
	}
	return nil
}

// Playback is a device that answers from a fixture. It expects the recorded
// operations in their order.
type Playback struct {
	mu   sync.Mutex
	ops  []Op
	next int
}

// NewPlayback reads a fixture to its end.
func NewPlayback(r io.Reader) (*Playback, error) {
	p := &Playback{}
	for dec := json.NewDecoder(r); ; {
		var op Op
		switch err := dec.Decode(&op); err {
		case nil:
			p.ops = append(p.ops, op)
		case io.EOF:
			return p, nil
		default:
			return nil, fmt.Errorf("fixture operation %d: %w", len(p.ops)+1, err)
		}
	}
}

// Left returns how many operations have not been asked for.
func (p *Playback) Left() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ops) - p.next
}

// ReadRegisters implements drivers.Register.
func (p *Playback) ReadRegisters(ctx context.Context, fn drivers.Function, addr, count uint16) ([]byte, error) {
	op, err := p.take(ctx, Op{Fn: fn, Addr: addr, Count: count})
	if err != nil {
		return nil, err
	}
	return hex.DecodeString(op.Data)
}

// WriteRegisters implements drivers.Register.
func (p *Playback) WriteRegisters(ctx context.Context, addr uint16, values []uint16) error {
	return p.Write(ctx, drivers.Write{Address: addr, Values: values})
}

// Write implements drivers.Writer.
func (p *Playback) Write(ctx context.Context, w drivers.Write) error {
	_, err := p.take(ctx, opOf(w))
	return err
}

func (p *Playback) take(ctx context.Context, want Op) (Op, error) {
	if err := ctx.Err(); err != nil {
		return Op{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == len(p.ops) {
		return Op{}, fmt.Errorf("%v: the fixture has ended after %d operations", want, p.next)
	}
	op := p.ops[p.next]
	if op.Write != want.Write || op.Verify != want.Verify || op.Fn != want.Fn || op.Addr != want.Addr || op.Count != want.Count || !slices.Equal(op.Values, want.Values) {
		return Op{}, fmt.Errorf("%v: the fixture has %v as operation %d", want, op, p.next+1)
	}
	p.next++
	if op.Err != "" {
		return Op{}, fmt.Errorf("recorded: %s", op.Err)
	}
	return op, nil
}

var (
	_ drivers.Relay   = (*Relay)(nil)
	_ drivers.Input   = (*Input)(nil)
	_ drivers.Limiter = (*Limiter)(nil)
	_ drivers.Writer  = (*Register)(nil)
	_ drivers.Writer  = (*Recorder)(nil)
	_ drivers.Writer  = (*Playback)(nil)
)
