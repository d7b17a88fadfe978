package gpiochip

import (
	"fmt"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fakeKernel behaves as drivers/gpio/gpiolib-cdev.c does: it judges a request
// as strictly, holds lines for one consumer, and frees them when their file is
// closed. It writes down every call that reaches a line and every level that
// the world sees.
type fakeKernel struct {
	t       *testing.T
	persist bool // a freed output keeps its level, as Raspberry Pi kernels have it
	noIRQ   bool // lines have no interrupts
	deny    error

	mu    sync.Mutex
	chip  []*fakeChip
	files map[int]any // *fakeChip or *fakeLine
	next  int
	calls []string
}

type fakeChip struct {
	path, name, label string
	lines             []*fakeLine
}

type fakeLine struct {
	name, consumer string
	output         bool
	level          bool // driven, if it is an output
	outside        bool // what drives an input whose bias is off
	flags          uint64
	debounce       uint64
	edges          int    // not read yet
	wave           string // every level the line has had: "01" is a rise
}

func newFake(t *testing.T, chips ...*fakeChip) *fakeKernel {
	return &fakeKernel{t: t, chip: chips, files: map[int]any{}, next: 3}
}

// newChip makes a chip whose lines float as inputs.
func newChip(n int, label string, names ...string) *fakeChip {
	c := &fakeChip{path: fmt.Sprintf("/dev/gpiochip%d", n), name: fmt.Sprintf("gpiochip%d", n), label: label}
	for _, name := range names {
		c.lines = append(c.lines, &fakeLine{name: name, wave: "0"})
	}
	return c
}

func (l *fakeLine) shows() bool {
	switch {
	case l.output:
		return l.level
	case l.flags&flagPullUp != 0:
		return true
	case l.flags&flagPullDown != 0:
		return false
	}
	return l.outside
}

// see adds a changed level to the wave.
func (l *fakeLine) see() {
	now := "0"
	if l.shows() {
		now = "1"
	}
	if l.wave[len(l.wave)-1:] != now {
		l.wave += now
	}
}

func (k *fakeKernel) Chips() ([]string, error) {
	var out []string
	for _, c := range k.chip {
		out = append(out, c.path)
	}
	return out, nil
}

func (k *fakeKernel) file(f any) int {
	k.next++
	k.files[k.next] = f
	return k.next
}

func (k *fakeKernel) Open(path string) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.deny != nil {
		return -1, k.deny
	}
	for _, c := range k.chip {
		if c.path == path {
			return k.file(c), nil
		}
	}
	return -1, unix.ENOENT
}

func (k *fakeKernel) Close(fd int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, ok := k.files[fd]
	if !ok {
		return unix.EBADF
	}
	delete(k.files, fd)
	if l, ok := f.(*fakeLine); ok {
		k.calls = append(k.calls, "free")
		l.consumer = ""
		if !k.persist {
			l.output = false // the bias stays
			l.see()
		}
	}
	return nil
}

// kill closes every file, as the end of a process does.
func (k *fakeKernel) kill() {
	for fd := range k.files {
		k.Close(fd)
	}
}

func (k *fakeKernel) Ioctl(fd int, request uint, arg unsafe.Pointer) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch f := k.files[fd].(type) {
	case *fakeChip:
		return k.onChip(f, request, arg)
	case *fakeLine:
		return k.onLine(f, request, arg)
	}
	return unix.EBADF
}

func (k *fakeKernel) onChip(c *fakeChip, request uint, arg unsafe.Pointer) error {
	switch request {
	case unix.GPIO_GET_CHIPINFO_IOCTL:
		i := (*unix.GPIOChipInfo)(arg)
		copy(i.Name[:], c.name)
		copy(i.Label[:], c.label)
		i.Lines = uint32(len(c.lines))
	case unix.GPIO_V2_GET_LINEINFO_IOCTL:
		i := (*unix.GPIOV2LineInfo)(arg)
		if int(i.Offset) >= len(c.lines) {
			return unix.EINVAL
		}
		l := c.lines[i.Offset]
		copy(i.Name[:], l.name)
		copy(i.Consumer[:], l.consumer)
		if i.Flags = l.flags; l.consumer != "" {
			i.Flags |= flagUsed
		}
		if l.output {
			i.Flags |= flagOutput
		}
	case unix.GPIO_V2_GET_LINE_IOCTL:
		r := (*unix.GPIOV2LineRequest)(arg)
		if r.Num_lines != 1 || int(r.Offsets[0]) >= len(c.lines) {
			return unix.EINVAL
		}
		l := c.lines[r.Offsets[0]]
		if l.consumer != "" {
			return unix.EBUSY
		}
		k.calls = append(k.calls, fmt.Sprintf("line %d %s", r.Offsets[0], describe(r.Config)))
		if err := k.configure(l, r.Config); err != nil {
			return err
		}
		l.consumer = text(r.Consumer)
		r.Fd = int32(k.file(l))
	default:
		return unix.ENOTTY
	}
	return nil
}

// configure does what linereq_create and linereq_set_config do: judge the
// flags, then bias, level and direction together.
func (k *fakeKernel) configure(l *fakeLine, c unix.GPIOV2LineConfig) error {
	const known = 1<<13 - 2
	in, out := c.Flags&flagInput != 0, c.Flags&flagOutput != 0
	bias := 0
	for _, f := range []uint64{flagPullUp, flagPullDown, flagBiasDisabled} {
		if c.Flags&f != 0 {
			bias++
		}
	}
	edge := c.Flags&(flagRising|flagFalling) != 0
	level, debounce := false, uint64(0)
	for _, a := range c.Attrs[:c.Num_attrs] {
		switch a.Attr.Id {
		case unix.GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES:
			level = a.Attr.Flags&a.Mask&1 != 0
		case unix.GPIO_V2_LINE_ATTR_ID_DEBOUNCE:
			debounce = a.Attr.Flags
		default:
			return unix.EINVAL
		}
	}
	switch {
	case c.Flags&^known != 0, in && out, bias > 1, bias == 1 && !in && !out, edge && !in, debounce > 0 && !in:
		return unix.EINVAL
	case k.noIRQ && (edge || debounce > 0):
		return unix.ENXIO
	}
	l.flags, l.debounce = c.Flags, debounce
	if out {
		l.output, l.level = true, level
	} else if in {
		l.output = false
	}
	l.see()
	return nil
}

func (k *fakeKernel) onLine(l *fakeLine, request uint, arg unsafe.Pointer) error {
	switch request {
	case unix.GPIO_V2_LINE_GET_VALUES_IOCTL:
		v := (*unix.GPIOV2LineValues)(arg)
		if v.Mask == 0 {
			return unix.EINVAL
		}
		k.calls = append(k.calls, "get")
		v.Bits = bit(l.shows()) & v.Mask
	case unix.GPIO_V2_LINE_SET_VALUES_IOCTL:
		v := (*unix.GPIOV2LineValues)(arg)
		if !l.output {
			return unix.EPERM
		}
		if v.Mask == 0 {
			return unix.EINVAL
		}
		k.calls = append(k.calls, fmt.Sprintf("set %d", v.Bits&v.Mask))
		l.level = v.Bits&v.Mask != 0
		l.see()
	case setConfig:
		c := (*unix.GPIOV2LineConfig)(arg)
		k.calls = append(k.calls, "config "+describe(*c))
		return k.configure(l, *c)
	default:
		return unix.ENOTTY
	}
	return nil
}

// describe writes a configuration as gpioinfo would.
func describe(c unix.GPIOV2LineConfig) string {
	s := ""
	for _, f := range []struct {
		flag uint64
		name string
	}{
		{flagInput, "input"},
		{flagOutput, "output"},
		{flagActiveLow, "active-low"},
		{flagPullUp, "pull-up"},
		{flagPullDown, "pull-down"},
		{flagBiasDisabled, "bias-off"},
		{flagRising, "rising"},
		{flagFalling, "falling"},
	} {
		if c.Flags&f.flag != 0 {
			s += " " + f.name
		}
	}
	for _, a := range c.Attrs[:c.Num_attrs] {
		switch a.Attr.Id {
		case unix.GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES:
			s += fmt.Sprintf(" =%d", a.Attr.Flags&a.Mask)
		case unix.GPIO_V2_LINE_ATTR_ID_DEBOUNCE:
			s += fmt.Sprintf(" debounce=%dus", uint32(a.Attr.Flags))
		}
	}
	return s[1:]
}

// put moves an input from outside.
func (k *fakeKernel) put(l *fakeLine, high bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.outside != high && (high && l.flags&flagRising != 0 || !high && l.flags&flagFalling != 0) {
		l.edges++
	}
	l.outside = high
	l.see()
}

func (k *fakeKernel) Poll(fd int, d time.Duration) (bool, error) {
	for end := time.Now().Add(d); ; time.Sleep(time.Millisecond) {
		k.mu.Lock()
		l, ok := k.files[fd].(*fakeLine)
		ready := ok && l.edges > 0
		k.mu.Unlock()
		if !ok {
			return false, unix.EBADF
		}
		if ready || !time.Now().Before(end) {
			return ready, nil
		}
	}
}

func (k *fakeKernel) Read(fd int, b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l, ok := k.files[fd].(*fakeLine)
	if !ok || len(b) < eventSize {
		return 0, unix.EINVAL
	}
	n := min(l.edges, len(b)/eventSize)
	l.edges -= n
	return n * eventSize, nil
}
