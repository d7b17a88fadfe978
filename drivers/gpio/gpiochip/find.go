package gpiochip

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"unsafe"

	"github.com/joulegate/joulegate/board"
	"golang.org/x/sys/unix"
)

// Line is one line of a chip, as the kernel describes it.
type Line struct {
	Chip     string // gpiochip0
	Label    string // of the chip: pinctrl-bcm2835
	Offset   int
	Name     string // given by the kernel, may be empty
	Used     bool
	Consumer string // who holds it, if it is used
	Output   bool
}

func (l Line) String() string {
	name := ""
	if l.Name != "" {
		name = " (" + l.Name + ")"
	}
	return fmt.Sprintf("line %d%s of %s [%s]", l.Offset, name, l.Chip, l.Label)
}

// chip is an open chip.
type chip struct {
	fd    int
	name  string
	label string
	lines int
}

// chips opens every chip once. Some systems have a second name for a chip, as
// a link for programs that count on an old number.
func (c *Chips) chips() (found []chip, err error) {
	defer func() {
		if err != nil {
			c.release(found)
		}
	}()
	paths, err := c.k.Chips()
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, errors.New("there is no /dev/gpiochip*: this kernel offers no GPIO character device (CONFIG_GPIO_CDEV), or no driver has one")
	}
	slices.Sort(paths)
	var refused error
	for _, p := range paths {
		fd, err := c.k.Open(p)
		if err != nil {
			refused = errors.Join(refused, fmt.Errorf("open %s: %w%s", p, err, remedy(err)))
			continue
		}
		var info unix.GPIOChipInfo
		if err := c.k.Ioctl(fd, unix.GPIO_GET_CHIPINFO_IOCTL, unsafe.Pointer(&info)); err != nil {
			_ = c.k.Close(fd) // nothing was asked of it
			refused = errors.Join(refused, fmt.Errorf("%s: %w", p, err))
			continue
		}
		n := chip{fd, text(info.Name), text(info.Label), int(info.Lines)}
		if slices.ContainsFunc(found, func(o chip) bool { return o.name == n.name }) {
			_ = c.k.Close(fd) // the same chip by another name
			continue
		}
		found = append(found, n)
	}
	if len(found) == 0 {
		return nil, refused
	}
	return found, nil
}

func remedy(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return " (add the user to the group that owns the device, usually gpio)"
	}
	return ""
}

func (c *Chips) release(list []chip) {
	for _, n := range list {
		_ = c.k.Close(n.fd) // lines that were asked for live on
	}
}

func (c *Chips) line(n chip, offset int) (Line, error) {
	info := unix.GPIOV2LineInfo{Offset: uint32(offset)}
	if err := c.k.Ioctl(n.fd, unix.GPIO_V2_GET_LINEINFO_IOCTL, unsafe.Pointer(&info)); err != nil {
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
			return Line{}, fmt.Errorf("line %d of %s: %w (Linux 5.10 or newer is needed)", offset, n.name, err)
		}
		return Line{}, fmt.Errorf("line %d of %s: %w", offset, n.name, err)
	}
	return Line{
		Chip: n.name, Label: n.label, Offset: offset, Name: text(info.Name),
		Used: info.Flags&flagUsed != 0, Consumer: text(info.Consumer), Output: info.Flags&flagOutput != 0,
	}, nil
}

// Lines lists every line of every chip. It changes nothing.
func (c *Chips) Lines() ([]Line, error) {
	found, err := c.chips()
	if err != nil {
		return nil, err
	}
	defer c.release(found)
	var out []Line
	for _, n := range found {
		for i := range n.lines {
			l, err := c.line(n, i)
			if err != nil {
				return nil, err
			}
			out = append(out, l)
		}
	}
	return out, nil
}

// Find returns the line that a board means, and changes nothing.
func (c *Chips) Find(p board.Pin) (Line, error) {
	found, err := c.chips()
	if err != nil {
		return Line{}, err
	}
	defer c.release(found)
	_, l, err := c.find(found, p)
	return l, err
}

// find returns the chip and line that a board means: by the line's name among
// the chips with the pin's label, and where that kernel has no such name by
// the offset, if exactly one chip has the label. Anything that could be two
// lines is an error: a wrong relay is worse than none.
func (c *Chips) find(found []chip, p board.Pin) (chip, Line, error) {
	var candidates []chip
	var labels []string
	for _, n := range found {
		labels = append(labels, n.label)
		if p.Chip == "" || n.label == p.Chip {
			candidates = append(candidates, n)
		}
	}
	if len(candidates) == 0 {
		return chip{}, Line{}, fmt.Errorf("no chip is labelled %q, there is %s: is this the board that is configured?", p.Chip, strings.Join(labels, ", "))
	}
	if p.Label != "" {
		var on []chip
		var at []Line
		for _, n := range candidates {
			for i := range n.lines {
				l, err := c.line(n, i)
				if err != nil {
					return chip{}, Line{}, err
				}
				if l.Name == p.Label {
					on, at = append(on, n), append(at, l)
				}
			}
		}
		switch {
		case len(at) == 1:
			return on[0], at[0], nil
		case len(at) > 1:
			return chip{}, Line{}, fmt.Errorf("the name %s means %s and %s", p.Label, at[0], at[1])
		case p.Chip == "":
			return chip{}, Line{}, fmt.Errorf("no line is named %s", p.Label)
		}
	}
	if p.Chip == "" {
		return chip{}, Line{}, errors.New("neither chip nor label says which line it is")
	}
	if len(candidates) > 1 {
		return chip{}, Line{}, fmt.Errorf("%d chips are labelled %q and none has a line named %q: which one is meant cannot be known", len(candidates), p.Chip, p.Label)
	}
	n := candidates[0]
	if p.Line < 0 || p.Line >= n.lines {
		return chip{}, Line{}, fmt.Errorf("%s [%s] has lines 0 to %d, not %d", n.name, n.label, n.lines-1, p.Line)
	}
	l, err := c.line(n, p.Line)
	return n, l, err
}
