package update

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// Slots are the places that are written in turn. Programs and Partitions
// implement it; one goroutine at a time calls it.
type Slots interface {
	// Kind is the kind of artifact that fits.
	Kind() string
	// Names are the two slots.
	Names() []string
	// Write fills a slot that does not run, and returns when its bytes are on
	// the disk. body ends with an error if it is not the artifact.
	Write(slot string, body io.Reader) error
	// Verify reads a slot back and compares.
	Verify(slot string, p Program) error
	// Arm makes the next start run the slot, once. It is called after the
	// record of the trial has been stored.
	Arm(slot string) error
	// Keep makes every start run the slot. It is called before the record
	// says so, and again if the program ended in between.
	Keep(slot string) error
}

// Programs are two folders with an executable each, and the packaged one. The
// record alone says which one starts (Choose), so there is nothing to arm.
type Programs struct{ Store Store }

var _ Slots = Programs{}

// Kind implements Slots.
func (Programs) Kind() string { return KindProgram }

// Names implements Slots.
func (Programs) Names() []string { return []string{"a", "b"} }

// Write implements Slots.
func (p Programs) Write(slot string, body io.Reader) error {
	return replace(p.Store, slot, programFile, func(w io.Writer) error {
		_, err := io.Copy(w, body)
		return err
	})
}

// Verify implements Slots.
func (p Programs) Verify(slot string, want Program) error {
	f, err := p.Store.Open(slot + "/" + programFile)
	if err != nil {
		return err
	}
	sum, err := hash(f, want.Size)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if sum != want.SHA256 {
		return fmt.Errorf("SHA-256 is %s, the record says %s", sum, want.SHA256)
	}
	return nil
}

// Arm implements Slots.
func (Programs) Arm(string) error { return nil }

// Keep implements Slots.
func (Programs) Keep(string) error { return nil }

// Choice is the program that a start runs.
type Choice struct {
	Place string // Packaged: the one that asks
	File  string // in the store; "": it is the one that asks
	Trial *Trial
	Told  []string // what was found wrong, in words
}

// Choose returns which program runs now, and counts the start if it is on
// trial. It never fails: what cannot be read, hashed or counted is not
// started, and the packaged program is always there.
func Choose(s Store, packaged Program, now time.Time) (c Choice) {
	r, err := Load(s)
	if err != nil {
		c.Told = append(c.Told, err.Error())
	}
	if err == nil && r.Places == nil {
		return Choice{Place: Packaged} // never updated: an idle gateway writes nothing
	}
	was, slots := r, Programs{s}
	for {
		next, place := r.Start(packaged, now)
		if place != Packaged {
			if err := slots.Verify(place, next.Places[place]); err != nil {
				why := fmt.Sprintf("the program in slot %s is damaged: %v", place, err)
				c.Told = append(c.Told, why)
				r = r.Broken(place, why, now)
				continue
			}
		}
		if same(next, was) {
			return chosen(c, next, place)
		}
		if errors.Is(err, errNewer) {
			return chosen(c, next, place) // not ours to replace
		}
		if err := save(s, next); err != nil {
			// A trial whose starts are not counted might never end.
			c.Told = append(c.Told, err.Error())
			if next.Trial != nil {
				next = next.Fail("", now)
				if place = next.Current; place != Packaged && slots.Verify(place, next.Places[place]) != nil {
					place = Packaged
				}
			}
		}
		return chosen(c, next, place)
	}
}

func chosen(c Choice, r Record, place string) Choice {
	c.Place = place
	if place != Packaged {
		c.File = place + "/" + programFile
	}
	if r.Trial != nil && r.Trial.Place == place {
		c.Trial = r.Trial
	}
	return c
}

func same(a, b Record) bool {
	x, errA := a.encode()
	y, errB := b.encode()
	return errA == nil && errB == nil && string(x) == string(y)
}
