package packet

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/policy"
)

// maxOpen is how many findings are counted together at a time. Beyond it,
// further subjects of a rule are counted as one, policy.Others.
const maxOpen = 1024

// subject is what a finding is about, as a key.
type subject struct {
	kind   byte
	hi, lo uint64
}

// Kinds of subjects.
const (
	aHost byte = 'h'
	aLink byte = 'l'
	aName byte = 'n'
	other byte = 'o'
)

func host(a Addr) subject       { return subject{aHost, a.hi, a.lo} }
func link(m MAC) subject        { return subject{aLink, 0, m.word()} }
func named(name []byte) subject { d := digestOf(0, name); return subject{aName, d.a, d.b} }

type noteKey struct {
	rule string
	subject
}

// note is a finding that is being counted.
type note struct {
	f      guard.Finding // Count: what was not told yet
	told   time.Duration // when it was told last
	gone   bool          // told and forgotten
	evince bool          // evidence is wanted
	nums   [maxNumbers]number
}

// maxNumbers is how many numbers a note has: they change often and become
// text when the finding is told.
const maxNumbers = 6

type number struct {
	key string
	n   uint64
}

// sink counts equal findings together and tells them: at once and then at
// most once per window, or without a window all together at the end.
type sink struct {
	window time.Duration // 0: only flush tells
	tell   func(guard.Finding)
	open   map[noteKey]*note
	fresh  []*note // to be told when their evidence is complete
	swept  time.Duration
	none   note // takes what nobody will read
}

func newSink(window time.Duration, tell func(guard.Finding)) *sink {
	return &sink{window: window, tell: tell, open: map[noteKey]*note{}}
}

// find counts n occurrences. The note it returns takes evidence, which it
// keeps when the finding is new or graver than before.
func (s *sink) find(e *Event, rule string, v guard.Severity, sub subject, n uint64) *note {
	k := noteKey{rule, sub}
	x := s.open[k]
	if x == nil && len(s.open) >= maxOpen {
		k.subject = subject{kind: other}
		x = s.open[k]
	}
	if x == nil {
		x = &note{}
		x.f = guard.Finding{Rule: rule, Subject: k.words(), First: time.Unix(0, e.Wall).UTC(), Evidence: map[string]string{}}
		s.open[k] = x
		s.fresh = append(s.fresh, x)
	}
	x.evince = x.f.Count == 0 || v > x.f.Severity
	if x.f.Count == 0 {
		x.f.First, x.f.Severity = time.Unix(0, e.Wall).UTC(), v
	}
	x.f.Count += n
	x.f.Severity = max(x.f.Severity, v)
	x.f.Last = time.Unix(0, e.Wall).UTC()
	return x
}

// again returns a note that find returned before, to take newer numbers; when
// it was told and forgotten meanwhile, they go nowhere.
func (s *sink) again(e *Event, x *note) *note {
	if x == nil || x.gone {
		return &s.none
	}
	x.evince = true
	x.f.Last = time.Unix(0, e.Wall).UTC()
	return x
}

// words says a subject in words. A name is added by its note.
func (k noteKey) words() guard.Subject {
	switch k.kind {
	case aHost:
		return guard.Subject{Kind: guard.Host, Value: Addr{k.hi, k.lo}.String()}
	case aLink:
		var m MAC
		for i := range m {
			m[i] = byte(k.lo >> (40 - 8*i))
		}
		return guard.Subject{Kind: guard.Link, Value: m.String()}
	case aName:
		return guard.Subject{Kind: guard.Name}
	}
	return guard.Subject{Kind: guard.Host, Value: policy.Others}
}

// named says the name of a subject that is one.
func (x *note) named(name []byte) *note {
	if x.f.Subject.Value == "" {
		x.f.Subject.Value = printable(name)
	}
	return x
}

func (x *note) text(key, value string) *note {
	if x.evince {
		x.f.Evidence[key] = value
	}
	return x
}

func (x *note) bytes(key string, value []byte) *note {
	if x.evince {
		x.f.Evidence[key] = printable(value)
	}
	return x
}

func (x *note) addr(key string, a Addr) *note {
	if x.evince {
		x.f.Evidence[key] = a.String()
	}
	return x
}

func (x *note) mac(key string, m MAC) *note {
	if x.evince {
		x.f.Evidence[key] = m.String()
	}
	return x
}

func (x *note) num(key string, n uint64) *note {
	if x.evince {
		for i := range x.nums {
			if v := &x.nums[i]; v.key == key || v.key == "" {
				*v = number{key, n}
				break
			}
		}
	}
	return x
}

// latest makes the note take numbers that replace those it has.
func (x *note) latest() *note { x.evince = true; return x }

// printable makes a name from the network fit for a terminal and a log.
func printable(b []byte) string {
	out := make([]byte, 0, min(len(b), guard.MaxValue))
	for _, c := range b[:min(len(b), guard.MaxValue)] {
		if c <= ' ' || c >= 0x7f {
			c = '?'
		}
		out = append(out, c)
	}
	return string(out)
}

// step tells what is new, and once a second what a window has counted.
func (s *sink) step(now time.Duration) {
	if s.window == 0 {
		s.fresh = s.fresh[:0]
		return
	}
	for _, x := range s.fresh {
		s.say(x, now)
	}
	s.fresh = s.fresh[:0]
	if now-s.swept < time.Second {
		return
	}
	s.swept = now
	for k, x := range s.open {
		switch {
		case now-x.told < s.window:
		case x.f.Count > 0:
			s.say(x, now)
		default:
			x.gone = true
			delete(s.open, k)
		}
	}
}

func (s *sink) say(x *note, now time.Duration) {
	f := x.f
	f.Evidence = make(map[string]string, len(x.f.Evidence))
	for k, v := range x.f.Evidence {
		f.Evidence[k] = v
	}
	for _, v := range x.nums {
		if v.key != "" {
			f.Evidence[v.key] = strconv.FormatUint(v.n, 10)
		}
	}
	f.Cut()
	s.tell(f)
	x.told, x.f.Count = now, 0
}

// flush tells everything that was counted and not told, in order of time.
func (s *sink) flush(now time.Duration) {
	var all []*note
	for _, x := range s.open {
		if x.f.Count > 0 {
			all = append(all, x)
		}
	}
	slices.SortFunc(all, func(a, b *note) int {
		return cmp.Or(a.f.First.Compare(b.f.First), cmp.Compare(a.f.Rule, b.f.Rule), cmp.Compare(a.f.Subject.Value, b.f.Subject.Value))
	})
	for _, x := range all {
		s.say(x, now)
	}
	for _, x := range s.open {
		x.gone = true
	}
	clear(s.open)
	s.fresh = s.fresh[:0]
}
