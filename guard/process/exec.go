package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// ID names a process for as long as the machine runs.
type ID struct {
	PID   int
	Start uint64 // clock ticks after boot, as in /proc/PID/stat
}

func (id ID) String() string { return fmt.Sprintf("%d@%d", id.PID, id.Start) }

// Body is where a program's code came from.
type Body byte

// Bodies.
const (
	File    Body = iota // a file that has a name
	Memory              // memfd_create: it never was a file
	Deleted             // a file that had lost its name when it was started
)

// Limits of what is taken of an exec. What is longer is cut.
const (
	MaxArgs      = 4096 // bytes of all arguments
	MaxPath      = 256
	MaxAncestors = 6
)

// Exec is a program that was started, as a source tells it. What a source does
// not know is zero.
type Exec struct {
	ID        ID
	UID       uint32
	HasUID    bool
	Path      string // of its file
	Called    string // as it was called; of a script, its interpreter
	Script    string // what was called, if it is not Called
	Name      string // of the file, without its folder
	Body      Body
	Args      []byte // separated by NUL; valid until the next one
	Cut       bool   // there were more
	Ancestors []ID   // the nearest first; valid until the next one
}

// tick is how many nanoseconds one tick of USER_HZ has.
const tick = 1e9 / 100

// Layout of a record that the programs in the kernel write, in the machine's
// byte order. Texts end with NUL and are followed by what was there before.
const (
	offKind      = 0  // uint32
	offTGID      = 4  // uint32
	offUID       = 8  // uint32
	offLinks     = 12 // uint32: names that the file has
	offStart     = 16 // uint64: ns after boot
	offCopied    = 24 // uint32: bytes of arguments that follow
	offTotal     = 28 // uint32: bytes of arguments that there are
	offAncestors = 32 // MaxAncestors times uint32 process, uint32 unused, uint64 start
	offName      = offAncestors + 16*MaxAncestors
	sizeName     = 64
	offFilename  = offName + sizeName
	offInterp    = offFilename + MaxPath
	offArgs      = offInterp + MaxPath
	sizeRecord   = offArgs + MaxArgs
)

// Kinds of records.
const (
	kindExec  = 1 // a program was started
	kindCall  = 2 // a process calls execve; it may fail
	kindDone  = 3 // it did not; nothing after offAncestors
	lastKinds = kindDone
)

var order = binary.NativeEndian

// record is one of the kernel's, read.
type record struct {
	kind uint32
	Exec
}

var errRecord = errors.New("malformed record")

// decode reads a record. What it returns points into b. Ancestors go to the
// given slice.
func decode(b []byte, ancestors []ID) (record, error) {
	if len(b) < offAncestors {
		return record{}, fmt.Errorf("%w: %d bytes", errRecord, len(b))
	}
	r := record{kind: order.Uint32(b[offKind:])}
	pid := order.Uint32(b[offTGID:])
	if r.kind < kindExec || r.kind > lastKinds || pid == 0 || pid > 1<<30 {
		return record{}, fmt.Errorf("%w: kind %d of process %d", errRecord, r.kind, pid)
	}
	r.ID = ID{int(pid), order.Uint64(b[offStart:]) / tick}
	r.UID, r.HasUID = order.Uint32(b[offUID:]), true
	if r.kind == kindDone {
		return r, nil
	}
	copied, total := order.Uint32(b[offCopied:]), order.Uint32(b[offTotal:])
	if len(b) < offArgs || copied > MaxArgs || len(b) < offArgs+int(copied) {
		return record{}, fmt.Errorf("%w: %d bytes with %d of arguments", errRecord, len(b), copied)
	}
	r.Args, r.Cut = b[offArgs:offArgs+copied], total > copied
	r.Called = text(b[offFilename : offFilename+MaxPath])
	if r.kind == kindCall {
		return r, nil
	}
	if interp := text(b[offInterp : offInterp+MaxPath]); interp != "" && interp != r.Called {
		r.Called, r.Script = interp, r.Called
	}
	r.Name = text(b[offName : offName+sizeName])
	if order.Uint32(b[offLinks:]) == 0 && r.Name != "" {
		if r.Body = Deleted; strings.HasPrefix(r.Name, "memfd:") {
			r.Body = Memory
		}
	}
	ancestors = ancestors[:0]
	for i := range MaxAncestors {
		a := b[offAncestors+16*i:]
		id := ID{int(order.Uint32(a)), order.Uint64(a[8:]) / tick}
		if id.PID == 0 || id.PID > 1<<30 {
			break
		}
		ancestors = append(ancestors, id)
	}
	r.Ancestors = ancestors
	return r, nil
}

// text is what stands before NUL.
func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// line is a command line of arguments separated by NUL.
func line(args []byte) string {
	for len(args) > 0 && args[len(args)-1] == 0 {
		args = args[:len(args)-1]
	}
	b := make([]byte, len(args))
	for i, c := range args {
		if b[i] = c; c == 0 {
			b[i] = ' '
		}
	}
	return string(b)
}
