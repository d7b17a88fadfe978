package sigma

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// answer is what is known of an atom.
type answer uint8

const (
	holdsNot answer = iota
	holds
	open // not looked at yet
)

// Matcher matches events one after the other, with memory of its own. It is
// not safe for concurrent use.
type Matcher struct {
	set     *Set
	answers []answer // by atom
	fresh   []answer // of an event in which nothing was found
	found   []int32  // atoms whose answer differs from fresh
	marks   []uint32 // by rule: the event in which it was touched
	event   uint32
	out     []*Rule
	e       *Event
	folded  []byte // a value without case, where it has more than ASCII
}

// Matcher returns a new one.
func (s *Set) Matcher() *Matcher {
	m := &Matcher{set: s, marks: make([]uint32, len(s.Rules)), fresh: make([]answer, len(s.atoms))}
	for i, p := range s.atoms {
		switch {
		case p.field == missing:
			m.fresh[i] = p.ofNothing()
		case len(p.lits) == 0:
			m.fresh[i] = open
		}
	}
	m.answers = append(m.answers, m.fresh...)
	return m
}

// Match returns the rules that hold, by name. The slice is valid until the
// next call.
func (m *Matcher) Match(e *Event) []*Rule {
	s := m.set
	m.e, m.out = e, m.out[:0]
	if m.event++; m.event == 0 { // after four billion events
		clear(m.marks)
		m.event = 1
	}
	for f := range numFields {
		a := &s.search[f]
		switch v := e.get(f); {
		case len(a.next) == 0 || v == "":
		case ascii(v):
			search(m, a, v)
		default:
			m.folded = appendFold(m.folded[:0], v)
			search(m, a, m.folded)
		}
	}
	for _, r := range s.eager {
		m.marks[r] = m.event
	}
	for _, a := range m.found {
		for _, r := range s.touched[a] {
			m.marks[r] = m.event
		}
	}
	for r, at := range m.marks {
		if at == m.event && m.gate(s.when[r]) {
			m.out = append(m.out, &s.Rules[r])
		}
	}
	for _, a := range m.found {
		m.answers[a] = m.fresh[a]
	}
	m.found, m.e = m.found[:0], nil
	return m.out
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// search runs a field's automaton over its value.
func search[T string | []byte](m *Matcher, a *automaton, v T) {
	s := 0
	for i := 0; i < len(v); i++ {
		s = int(a.next[s*a.classes+int(a.class[v[i]])])
		for n := a.first[s]; n != 0; {
			w := &a.finds[n-1]
			n = w.more
			if w.at&atStart != 0 && i+1 != int(w.len) || w.at&atEnd != 0 && i+1 != len(v) {
				continue
			}
			if m.answers[w.atom] == holdsNot {
				m.found = append(m.found, w.atom)
				m.answers[w.atom] = holds
				if w.at&unsure != 0 {
					m.answers[w.atom] = open
				}
			}
		}
	}
}

// gate evaluates an expression.
func (m *Matcher) gate(g int32) bool {
	l := &m.set.logic[g]
	kids := m.set.kids[l.from : l.from+l.n]
	switch l.op {
	case ask:
		return m.ask(l.atom)
	case and:
		for _, k := range kids {
			if !m.gate(k) {
				return false
			}
		}
		return true
	case or:
		for _, k := range kids {
			if m.gate(k) {
				return true
			}
		}
		return false
	}
	return !m.gate(kids[0])
}

// ask returns an atom's answer, looking when it is not known yet.
func (m *Matcher) ask(i int32) bool {
	if m.answers[i] != open {
		return m.answers[i] == holds
	}
	p := m.set.atoms[i]
	if m.fresh[i] == open { // those that were found are in the list
		m.found = append(m.found, i)
	}
	m.answers[i] = holdsNot
	if m.holds(p) {
		m.answers[i] = holds
	}
	return m.answers[i] == holds
}

// holds looks at a field.
func (m *Matcher) holds(p *probe) bool {
	v := m.e.get(p.field)
	if v == "" { // what is absent is like nothing
		return p.is == absent
	}
	switch p.is {
	case absent:
		return false
	case present:
		return true
	case matches:
		return p.re.MatchString(v)
	case within:
		a, err := netip.ParseAddr(v)
		return err == nil && p.net.Contains(a.Unmap())
	case compare:
		n, err := strconv.ParseFloat(v, 64)
		return err == nil && (p.cmp == "lt" && n < p.num || p.cmp == "lte" && n <= p.num || p.cmp == "gt" && n > p.num || p.cmp == "gte" && n >= p.num)
	case same:
		return strings.EqualFold(v, m.e.get(p.other))
	}
	return p.glob.match(v, p.cased)
}
