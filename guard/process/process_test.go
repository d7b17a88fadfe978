package process

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// rawExec is a record as the kernel's program writes it.
func rawExec(kind, pid uint32, args string) []byte {
	b := make([]byte, offArgs+len(args))
	order.PutUint32(b[offKind:], kind)
	order.PutUint32(b[offTGID:], pid)
	order.PutUint32(b[offUID:], 33)
	order.PutUint32(b[offLinks:], 1)
	order.PutUint64(b[offStart:], 7_123_456_789)
	order.PutUint32(b[offCopied:], uint32(len(args)))
	order.PutUint32(b[offTotal:], uint32(len(args)))
	for i, pid := range []uint32{100, 1} {
		order.PutUint32(b[offAncestors+16*i:], pid)
		order.PutUint64(b[offAncestors+16*i+8:], uint64(i)*tick)
	}
	copy(b[offName:], "dash\x00rubbish")
	copy(b[offFilename:], "/usr/bin/backup\x00")
	copy(b[offInterp:], "/bin/sh\x00")
	copy(b[offArgs:], args)
	return b
}

func TestDecode(t *testing.T) {
	args := "/bin/sh\x00/usr/bin/backup\x00a b\x00"
	r, err := decode(rawExec(kindExec, 4711, args), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Exec{ID: ID{4711, 712}, UID: 33, HasUID: true, Called: "/bin/sh", Script: "/usr/bin/backup", Name: "dash", Args: []byte(args), Ancestors: []ID{{100, 0}, {1, 1}}}
	if fmt.Sprintf("%+v", r.Exec) != fmt.Sprintf("%+v", want) || line(r.Args) != "/bin/sh /usr/bin/backup a b" {
		t.Errorf("%+v, want %+v", r.Exec, want)
	}
	for links, name := range map[string]Body{"dash": Deleted, "memfd:x": Memory} {
		b := rawExec(kindExec, 4711, args)
		order.PutUint32(b[offLinks:], 0)
		copy(b[offName:], links+"\x00")
		if r, err := decode(b, nil); err != nil || r.Body != name {
			t.Errorf("%s without a name: %v, %v", links, r.Body, err)
		}
	}
	long := rawExec(kindExec, 1, args)
	order.PutUint32(long[offTotal:], 1<<20)
	if r, err := decode(long, nil); err != nil || !r.Cut {
		t.Errorf("cut %t, %v", r.Cut, err)
	}
	if r, err := decode(rawExec(kindDone, 1, "")[:offAncestors], nil); err != nil || r.kind != kindDone {
		t.Errorf("%+v, %v", r, err)
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "a head": make([]byte, offAncestors), "no process": rawExec(kindExec, 0, ""), "kind": rawExec(9, 1, ""),
		"short": rawExec(kindExec, 1, "")[:offArgs-1], "arguments": rawExec(kindCall, 1, "abc")[:offArgs+2],
	} {
		if _, err := decode(b, nil); err == nil {
			t.Errorf("%s is read", name)
		}
	}
}

// A call that fails is followed by another; calls that nobody hears of again
// are forgotten.
func TestCallsWaitForTheirEnd(t *testing.T) {
	p := pending{by: map[int]call{}}
	p.put(&Exec{ID: ID{PID: 7}, Called: "/usr/local/bin/x", Args: []byte("x")})
	p.put(&Exec{ID: ID{PID: 7}, Called: "/usr/bin/x", Args: []byte("x\x00y")})
	e := Exec{ID: ID{PID: 7}}
	if p.take(&e); e.Called != "/usr/bin/x" || string(e.Args) != "x\x00y" || len(p.by) != 0 {
		t.Errorf("%+v", e)
	}
	if e = (Exec{ID: ID{PID: 7}}); true {
		if p.take(&e); e.Called != "" {
			t.Errorf("%+v", e)
		}
	}
	for pid := range 10 * maxPending {
		p.put(&Exec{ID: ID{PID: pid % (3 * maxPending)}, Called: "x"})
		if len(p.by) > maxPending || len(p.fifo) > 2*maxPending {
			t.Fatalf("%d calls, %d in line", len(p.by), len(p.fifo))
		}
	}
	if len(p.by) != maxPending {
		t.Errorf("%d calls are remembered", len(p.by))
	}
}

// The table is bounded, forgets the oldest and does not take a number that is
// used again for the process before.
func TestTable(t *testing.T) {
	nowhere := &procFS{t.TempDir()}
	tab := newTable()
	tab.put(ID{5, 1}, known{image: "old"})
	tab.put(ID{5, 2}, known{image: "new"})
	if id, k := tab.parent([]ID{{9, 9}, {5, 1}}, nowhere); id != (ID{5, 1}) || k.image != "old" {
		t.Errorf("%+v", k)
	}
	if _, k := tab.parent([]ID{{5, 3}}, nowhere); k.image != "" {
		t.Errorf("a number that is used again is taken for %+v", k)
	}
	for i := range 3 * maxKnown {
		tab.put(ID{i, 7}, known{line: strings.Repeat("x", 5000)})
		tab.put(ID{i, 7}, known{line: "again"})
	}
	if len(tab.by) != maxKnown || len(tab.fifo) != maxKnown {
		t.Errorf("%d remembered", len(tab.by))
	}
	if id, _ := tab.parent([]ID{{5, 2}}, nowhere); id != (ID{}) {
		t.Errorf("%s is still remembered", id)
	}
	if _, k := tab.parent([]ID{{3*maxKnown - 1, 7}}, nowhere); k.line != "again" {
		t.Errorf("%+v", k)
	}
}

// What is started all the time is told seldom, and nothing is forgotten in the
// counts.
func TestTellsSeldom(t *testing.T) {
	var told []guard.Finding
	s := &Sensor{c: Config{Report: func(f guard.Finding) { told = append(told, f) }}, told: map[tellKey]*telling{}}
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	seen := func(image string, after time.Duration) Seen {
		s := Seen{Time: at.Add(after)}
		s.Image, s.CommandLine = image, image+" --password=hunter2"
		return s
	}
	var n uint64
	for i := range 1000 {
		s.tell("process.x", guard.High, seen("/a", time.Duration(i)*time.Second), nil)
	}
	for _, f := range told {
		n += f.Count
		if strings.Contains(f.Evidence["command_line"], "hunter2") || f.Subject.Kind != guard.PID {
			t.Errorf("%+v", f)
		}
	}
	if len(told) != 11 || n != 512 {
		t.Errorf("told %d times, of %d", len(told), n)
	}
	told = nil
	s.tell("process.x", guard.High, seen("/b", 0), nil)
	s.tell("process.x", guard.High, seen("/a", 2*time.Hour), nil)
	if len(told) != 2 {
		t.Errorf("%+v", told)
	}
	for i := range 3 * maxTold {
		s.tell("process.x", guard.High, seen(fmt.Sprint(i), 0), nil)
	}
	if len(s.told) > maxTold || len(s.toldFIFO) > maxTold {
		t.Errorf("%d counters", len(s.told))
	}
}

func TestReadPrograms(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	p, err := ReadPrograms("l", strings.NewReader("# mine\n\n"+sum+"  /usr/bin/a b\n"+sum+" */usr/bin/c\r\n"))
	if err != nil || len(p.by) != 2 || len(p.by["/usr/bin/a b"]) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{"", "# nothing", sum, sum + " /usr/bin/a", sum + "  a", sum[2:] + "  /a", "xy" + sum[2:] + "  /a", sum + "  /a/../b", "ok\n"} {
		if _, err := ReadPrograms("l", strings.NewReader(bad)); err == nil || !strings.HasPrefix(err.Error(), "l:") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	start, parent, ok := parseStat([]byte("77 (a (b) c) d) S 12 77 77 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 4242 1000"))
	if !ok || start != 4242 || parent != 12 {
		t.Error(start, parent, ok)
	}
	if _, _, ok := parseStat([]byte("77 (a) S 1")); ok {
		t.Error("half a line is read")
	}
}

// A judgement that panics is counted; the next exec is judged.
func TestAPanicEndsNothing(t *testing.T) {
	s := &Sensor{c: Config{Set: marked(t), Log: slog.New(slog.DiscardHandler), Watch: func(s Seen) {
		if s.ID.PID == 1 {
			panic("x")
		}
	}}, proc: &procFS{t.TempDir()}, table: newTable(), users: map[uint32]string{}, links: map[string]string{}}
	s.rules.Store(s.c.Set)
	s.safely(&Exec{ID: ID{1, 1}, Called: "/x"})
	s.safely(&Exec{ID: ID{2, 1}, Called: "/x"})
	if c := s.Coverage(); c.Seen != 2 || c.Lost != 1 {
		t.Errorf("%+v", c)
	}
}

// FuzzRecord decodes any bytes as a record of the ring, and judges them.
func FuzzRecord(f *testing.F) {
	f.Add(rawExec(kindExec, 4711, "a\x00b\x00"))
	f.Add(rawExec(kindCall, 1, "a"))
	f.Add(rawExec(kindDone, 1, "")[:offAncestors])
	s := &Sensor{c: Config{Set: marked(f), Report: func(guard.Finding) {}}, proc: &procFS{f.TempDir()}, table: newTable(), users: map[uint32]string{}, links: map[string]string{}, told: map[tellKey]*telling{}}
	s.rules.Store(s.c.Set)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		r, err := decode(b, nil)
		if err != nil {
			return
		}
		if len(r.Args) > MaxArgs || len(r.Called) > MaxPath || len(r.Script) > MaxPath || len(r.Name) > sizeName || len(r.Ancestors) > MaxAncestors || r.ID.PID <= 0 {
			t.Errorf("%+v", r)
		}
		r.HasUID = false // names of users are the system's business
		s.take(&r.Exec, time.Unix(0, 0))
		if !bytes.Equal(b, before) {
			t.Error("the record was changed")
		}
	})
}

// message is a datagram of the connector.
func message(what, cpu, seq, pid uint32) []byte {
	b := make([]byte, sizeHeader+sizeConnector+sizeEvent+24)
	order.PutUint32(b, uint32(len(b)))
	c := b[sizeHeader:]
	order.PutUint32(c, connectorProc)
	order.PutUint32(c[4:], connectorProc)
	order.PutUint32(c[8:], seq)
	e := c[sizeConnector:]
	order.PutUint32(e, what)
	order.PutUint32(e[4:], cpu)
	order.PutUint32(e[sizeEvent:], pid)
	order.PutUint32(e[sizeEvent+4:], pid+1)
	return b
}

func TestConnectorMessages(t *testing.T) {
	var got []event
	take := func(e event) { got = append(got, e) }
	two := append(message(eventExec, 3, 9, 70), message(eventAck, 0, 10, 1)...)
	if err := decodeConnector(two, take); err != nil || len(got) != 2 || got[0] != (event{eventExec, 3, 9, 71}) || got[1].pid != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range len(two) - 1 {
		if i+1 == len(two)/2 {
			continue
		}
		if err := decodeConnector(two[:i+1], func(event) {}); err == nil {
			t.Errorf("%d bytes of %d are read", i+1, len(two))
		}
	}
	s := &connectorSource{seqs: map[uint32]uint32{}}
	for _, e := range []event{{cpu: 0, what: 1, seq: 5}, {cpu: 1, what: 1, seq: 90}, {cpu: 0, what: 1, seq: 6}, {cpu: 1, what: 1, seq: 94}, {cpu: 5000, what: 1, seq: 1}} {
		s.count(e)
	}
	if s.lost() != 3 || len(s.seqs) != 2 {
		t.Errorf("%d lost, %d CPUs", s.lost(), len(s.seqs))
	}
}

// FuzzConnector decodes any datagram.
func FuzzConnector(f *testing.F) {
	f.Add(message(eventExec, 1, 2, 3))
	f.Add(append(message(eventAck, 0, 0, 0), message(1, 2, 3, 4)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		if err := decodeConnector(b, func(event) { n++ }); err == nil && n > len(b)/sizeHeader {
			t.Errorf("%d events in %d bytes", n, len(b))
		}
	})
}

// FuzzPrograms reads any text as a list.
func FuzzPrograms(f *testing.F) {
	f.Add([]byte(strings.Repeat("ab", 32) + "  /usr/bin/a\n# x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ReadPrograms("l", bytes.NewReader(b)); (err == nil) == (p == nil) {
			t.Errorf("%v, %v", p, err)
		}
	})
}
