package process

// maxKnown programs are remembered; then the oldest is forgotten. One that
// still runs is found again in /proc.
const maxKnown = 4096

// maxKnownLine of a remembered command line.
const maxKnownLine = 1024

// known is what is remembered of a program that was started.
type known struct {
	image, line, dir string
}

// table remembers programs, so that a child of one that has ended knows its
// parent.
type table struct {
	by   map[ID]*known
	fifo []ID
	at   int
}

func newTable() *table { return &table{by: map[ID]*known{}} }

func (t *table) put(id ID, k known) {
	k.line = k.line[:min(len(k.line), maxKnownLine)]
	if was, ok := t.by[id]; ok { // it executes again
		*was = k
		return
	}
	t.by[id] = &k
	if len(t.fifo) < maxKnown {
		t.fifo = append(t.fifo, id)
		return
	}
	delete(t.by, t.fifo[t.at])
	t.fifo[t.at] = id
	t.at = (t.at + 1) % maxKnown
}

// parent returns the nearest ancestor that is known, or still runs.
func (t *table) parent(ancestors []ID, p *procFS) (ID, known) {
	for _, id := range ancestors {
		if k, ok := t.by[id]; ok {
			return id, *k
		}
		if k, ok := p.known(id); ok {
			t.put(id, k)
			return id, k
		}
	}
	return ID{}, known{}
}

// known reads what a running process is.
func (p *procFS) known(id ID) (known, bool) {
	if !p.alive(id) {
		return known{}, false
	}
	args := readSome(p.path(id.PID, "cmdline"), maxKnownLine)
	image, _, _ := p.exe(id.PID)
	k := known{image, line(args), p.dir(id.PID)}
	if image == "" && len(args) > 0 {
		if len(readSome(p.path(id.PID, "cmdline"), maxKnownLine)) == 0 {
			return known{}, false // it is ending: its memory went between the two looks
		}
		k.image = text(args) // not allowed to look
	}
	return k, p.alive(id) && (image != "" || len(args) > 0)
}
