package update

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// Card is what Partitions need of a card with an image. What was written is on
// the card when a method, or File.Sync, has returned.
type Card interface {
	// Boot reads autoboot.txt, WriteBoot overwrites it in place with as many
	// bytes: it is within one sector, which is written whole or not at all,
	// while a rename on FAT touches several.
	Boot() ([]byte, error)
	WriteBoot(b []byte) error
	// Slot reads a partition, WriteSlot opens it to be written from its
	// beginning.
	Slot(name string) (io.ReadCloser, error)
	WriteSlot(name string) (File, error)
	// Tryboot has the next reset start the other partition, once.
	Tryboot() error
}

// Partitions are two boot partitions of a Raspberry Pi. Its firmware starts
// boot_partition of autoboot.txt, and with the reboot argument "0 tryboot"
// once the one of the section tryboot (config.txt, autoboot.txt:
// tryboot_a_b). A reset of any cause starts the former one again.
type Partitions struct {
	Card  Card
	Slots [2]string // numbers of the partitions, for example 2 and 3
}

var _ Slots = Partitions{}

// Autoboot is autoboot.txt with these partitions as the lasting and the tried
// one.
func Autoboot(lasting, tried string) string {
	return fmt.Sprintf("[all]\ntryboot_a_b=1\nboot_partition=%s\n[tryboot]\nboot_partition=%s\n", lasting, tried)
}

const sector = 512

// Kind implements Slots.
func (Partitions) Kind() string { return KindPartition }

// Names implements Slots.
func (p Partitions) Names() []string { return p.Slots[:] }

// Write implements Slots.
func (p Partitions) Write(slot string, body io.Reader) error {
	lasting, err := p.lasting()
	if err != nil {
		return err
	}
	if slot == lasting || !slices.Contains(p.Slots[:], slot) {
		return fmt.Errorf("partition %s is the one that starts: it is not written to", slot)
	}
	f, err := p.Card.WriteSlot(slot)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, body, make([]byte, 1<<20))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write partition %s: %w", slot, err)
	}
	return nil
}

// Verify implements Slots. What follows the image in its partition does not
// count.
func (p Partitions) Verify(slot string, want Program) error {
	f, err := p.Card.Slot(slot)
	if err != nil {
		return err
	}
	sum, err := hash(io.LimitReader(f, want.Size), want.Size)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if sum != want.SHA256 {
		return fmt.Errorf("SHA-256 of partition %s is %s, the record says %s", slot, sum, want.SHA256)
	}
	return nil
}

// Arm implements Slots.
func (p Partitions) Arm(slot string) error {
	lasting, err := p.lasting()
	if err != nil {
		return err
	}
	if slot == lasting {
		return nil // it starts anyway
	}
	return p.Card.Tryboot()
}

// Keep implements Slots.
func (p Partitions) Keep(slot string) error {
	b, err := p.Card.Boot()
	if err != nil {
		return err
	}
	other := p.Slots[0]
	if slot == other {
		other = p.Slots[1]
	}
	text := Autoboot(slot, other)
	pad := len(b) - len(text)
	if pad < 0 || len(b) > sector {
		return fmt.Errorf("autoboot.txt has %d bytes, %d to %d can be overwritten in one piece: write it anew from the image", len(b), len(text), sector)
	}
	want := []byte(text + strings.Repeat("\n", pad))
	if bytes.Equal(b, want) {
		return nil
	}
	if err := p.Card.WriteBoot(want); err != nil {
		return err
	}
	if got, err := p.Card.Boot(); err != nil || !bytes.Equal(got, want) {
		return errors.Join(errors.New("autoboot.txt reads differently from what was written"), err)
	}
	return nil
}

// lasting is the partition that a reset starts.
func (p Partitions) lasting() (string, error) {
	b, err := p.Card.Boot()
	if err != nil {
		return "", err
	}
	section := "[all]"
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		if n, ok := strings.CutPrefix(line, "boot_partition="); ok && section == "[all]" && slices.Contains(p.Slots[:], n) {
			return n, nil
		}
	}
	return "", fmt.Errorf("autoboot.txt names none of the partitions %s and %s", p.Slots[0], p.Slots[1])
}

// Booted is Choose where the firmware has chosen: it tells what the running
// partition is, and counts a start on trial. A trial that is not what runs has
// ended in a reset.
func Booted(s Store, running string, now time.Time) (c Choice) {
	c.Place = running
	r, err := Load(s)
	if err != nil {
		c.Told = append(c.Told, err.Error())
	}
	if r.Trial == nil {
		return c
	}
	if r.Trial.Place == running {
		t := *r.Trial
		t.Attempts++
		r.Trial, c.Trial = &t, &t
	} else {
		r = r.Fail("the board was reset before it was confirmed", now)
	}
	if err := save(s, r); err != nil {
		c.Told = append(c.Told, err.Error())
	}
	return c
}

// Files is a Card of files and block devices.
type Files struct {
	Autoboot string            // autoboot.txt on the first partition
	Devices  map[string]string // of the slots, for example 2: /dev/mmcblk0p2
	// Flag is made to say that the next reset shall carry "0 tryboot"; who
	// resets the board looks for it, and for nothing else.
	Flag string
}

var _ Card = Files{}

// Boot implements Card.
func (f Files) Boot() ([]byte, error) {
	b, err := os.ReadFile(f.Autoboot)
	if err == nil && len(b) > sector {
		err = fmt.Errorf("%s has %d bytes, at most %d", f.Autoboot, len(b), sector)
	}
	return b, err
}

// WriteBoot implements Card.
func (f Files) WriteBoot(b []byte) error {
	w, err := os.OpenFile(f.Autoboot, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = w.WriteAt(b, 0)
	return errors.Join(err, w.Sync(), w.Close())
}

// Slot implements Card.
func (f Files) Slot(name string) (io.ReadCloser, error) {
	path, ok := f.Devices[name]
	if !ok {
		return nil, fmt.Errorf("partition %s: %w", name, fs.ErrNotExist)
	}
	return Dir("/").Open(path)
}

// WriteSlot implements Card.
func (f Files) WriteSlot(name string) (File, error) {
	path, ok := f.Devices[name]
	if !ok {
		return nil, fmt.Errorf("partition %s: %w", name, fs.ErrNotExist)
	}
	return os.OpenFile(path, os.O_WRONLY, 0)
}

// Tryboot implements Card.
func (f Files) Tryboot() error {
	w, err := os.OpenFile(f.Flag, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, "0 tryboot\n")
	return errors.Join(err, w.Sync(), w.Close())
}
