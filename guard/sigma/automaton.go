package sigma

import "fmt"

// place says where in a value a literal must lie.
type place uint8

const (
	atStart place = 1 << iota
	atEnd
	unsure       // the atom must be looked at again
	inside place = 0
)

// word is a literal that an atom needs.
type word struct {
	text string // folded
	atom int32
	at   place
}

// automaton finds all its words in one pass (Aho, Corasick: Efficient string
// matching, CACM 18, 1975). Upper and lower case of ASCII share a column.
type automaton struct {
	class   [256]uint8
	classes int
	next    []uint16 // by state and class
	first   []uint16 // by state: 1 + index in finds of what ends there
	finds   []find
}

// find is a word that ends in a state, and the next one that does.
type find struct {
	atom int32
	len  int32
	at   place
	more uint16 // 1 + index in finds
}

// maxStates keeps a state within 16 bits, and the table of a field below a
// few megabytes.
const maxStates = 1<<16 - 1

func newAutomaton(words []word) (automaton, error) {
	var a automaton
	if len(words) == 0 {
		return a, nil
	}
	a.classes = 1 // 0: bytes that no word has
	for _, w := range words {
		for i := range len(w.text) {
			if a.class[w.text[i]] == 0 {
				a.class[w.text[i]] = uint8(a.classes)
				a.classes++
			}
		}
	}
	for c := 'A'; c <= 'Z'; c++ {
		a.class[c] = a.class[c+'a'-'A']
	}
	grow := func() { a.next = append(a.next, make([]uint16, a.classes)...); a.first = append(a.first, 0) }
	grow()
	for _, w := range words {
		s := 0
		for i := range len(w.text) {
			e := s*a.classes + int(a.class[w.text[i]])
			if a.next[e] == 0 {
				if len(a.first) >= maxStates {
					return a, fmt.Errorf("more than %d characters to search for", maxStates)
				}
				a.next[e] = uint16(len(a.first))
				grow()
			}
			s = int(a.next[e])
		}
		if len(a.finds) >= maxStates {
			return a, fmt.Errorf("more than %d words to search for", maxStates)
		}
		a.finds = append(a.finds, find{w.atom, int32(len(w.text)), w.at, a.first[s]})
		a.first[s] = uint16(len(a.finds))
	}
	a.link()
	return a, nil
}

// link completes the trie breadth first: where a word cannot go on, the
// longest end of it that begins a word does.
func (a *automaton) link() {
	fail := make([]int, len(a.first))
	var queue []int
	for c := range a.classes {
		if s := int(a.next[c]); s != 0 {
			queue = append(queue, s)
		}
	}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		f := fail[s]
		// What ends at f ends here too. Own finds come first; the last of them
		// goes on with f's.
		if a.first[s] == 0 {
			a.first[s] = a.first[f]
		} else {
			last := a.first[s]
			for a.finds[last-1].more != 0 {
				last = a.finds[last-1].more
			}
			a.finds[last-1].more = a.first[f]
		}
		for c := range a.classes {
			e := s*a.classes + c
			if t := int(a.next[e]); t != 0 {
				fail[t] = int(a.next[f*a.classes+c])
				queue = append(queue, t)
			} else {
				a.next[e] = a.next[f*a.classes+c]
			}
		}
	}
}
