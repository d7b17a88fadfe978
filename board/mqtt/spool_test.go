package mqtt

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var spoolTime = time.Unix(1_800_000_000, 0)

func openSpool(t interface{ Fatal(...any) }, m Store, mark string) *Spool {
	s, err := OpenSpool(m, mark, spoolTime)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSpoolSurvives: after a crash at any write, whoever reads a source again
// from where the spool says loses no event of it and adds none twice, and an
// event keeps its number.
func TestSpoolSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &memory{}
		s := openSpool(t, m, "")
		const last = 30
		told := map[uint64]string{} // what a consumer has, by seq
		order := []uint64{}
		read := func() (n int) {
			upTo, _ := s.Read("src")
			fmt.Sscan(upTo, &n)
			return n
		}
		for steps := 0; read() < last || len(s.waiting) > 0; steps++ {
			if steps > 10_000 {
				t.Fatal("does not end")
			}
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0, 1: // the source goes on
				if n := read() + 1; n <= last {
					m.fail, m.land = nil, rapid.Bool().Draw(t, "lands")
					if rapid.IntRange(0, 3).Draw(t, "power fails") == 0 {
						m.fail = errors.New("power")
					}
					err := s.Add("src", fmt.Sprint(n), Event{Kind: "x", Severity: Info, Time: spoolTime, Data: n})
					if m.fail != nil { // what is in memory is gone
						if err == nil {
							t.Fatal("a failed write is not told")
						}
						m.fail = nil
						s = openSpool(t, m, "")
					}
				}
			case 2, 3: // the broker takes one
				if e, ok := s.oldest(); ok {
					if was, again := told[e.seq]; again && was != string(e.Payload) {
						t.Fatalf("seq %d is %s and was %s", e.seq, e.Payload, was)
					} else if !again {
						order = append(order, e.seq)
					}
					told[e.seq] = string(e.Payload)
					s.taken(e.seq)
				}
			case 4:
				s.flush(slog.New(slog.DiscardHandler))
			case 5: // a restart, without a word
				s = openSpool(t, m, "")
			}
		}
		if len(order) != last {
			t.Fatalf("%d events told, want %d", len(order), last)
		}
		for i, seq := range order {
			if seq != order[0]+uint64(i) || !strings.Contains(told[seq], fmt.Sprintf(`"data":%d}`, i+1)) {
				t.Fatalf("event %d has seq %d after %d: %s", i, seq, order[0], told[seq])
			}
		}
	})
}

// TestSpoolNeverGoesBack: a new card, or one restored from a backup, does not
// use a number again.
func TestSpoolNeverGoesBack(t *testing.T) {
	m := &memory{}
	s := openSpool(t, m, "0")
	for range 3 {
		if err := s.Add("", "", Event{Kind: "x", Severity: Info, Time: spoolTime}); err != nil {
			t.Fatal(err)
		}
	}
	next := s.head.Next
	if again := openSpool(t, m, "0"); again.head.Next != next || len(again.waiting) != 3 {
		t.Errorf("the next is %d with %d waiting, want %d with 3", again.head.Next, len(again.waiting), next)
	}
	for what, store := range map[string]Store{"restored": m, "new": &memory{}} {
		later, err := OpenSpool(store, "1800000009", spoolTime.Add(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if later.head.Next <= next+5*seqJump || later.head.Next > 1<<53 {
			t.Errorf("%s: the next is %d after %d", what, later.head.Next, next)
		}
	}
	if err := m.Update(map[string][]byte{spoolHeadKey: []byte(`{"version":99}`)}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSpool(m, "0", spoolTime); err == nil || !strings.Contains(err.Error(), "update joulegate") {
		t.Errorf("a newer format: %v", err)
	}
}

// TestSpoolWithoutDiskStillTells: a full disk keeps events from surviving, not
// from being sent.
func TestSpoolWithoutDiskStillTells(t *testing.T) {
	m := &memory{}
	s := openSpool(t, m, "")
	m.fail = errors.New("no space left on device")
	if err := s.Add("", "", Event{Kind: "x", Severity: Alarm, Time: spoolTime}); err == nil {
		t.Error("not told")
	}
	if _, ok := s.oldest(); !ok {
		t.Error("not sent")
	}
	if err := s.Add("", "", Event{Kind: "a/b"}); err == nil || len(s.waiting) != 1 {
		t.Errorf("an event of two levels: %v", err)
	}
}

// TestSpoolIsBounded: also in bytes, in memory and on disk.
func TestSpoolIsBounded(t *testing.T) {
	m := &memory{}
	s := openSpool(t, m, "")
	big := strings.Repeat("x", MaxPayload/2)
	for range 3 * maxEventBytes / (MaxPayload / 2) {
		if err := s.Add("", "", Event{Kind: "x", Severity: Info, Time: spoolTime, Data: big}); err != nil {
			t.Fatal(err)
		}
	}
	size := 0
	for _, v := range m.m {
		size += len(v)
	}
	if s.bytes > maxEventBytes || size > maxEventBytes+64<<10 || s.dropped == 0 {
		t.Errorf("%d bytes in memory, %d on disk, %d dropped", s.bytes, size, s.dropped)
	}
}

func FuzzSpool(f *testing.F) {
	f.Add([]byte(`{"version":1,"next":7,"read":{"own":"1.2"}}`), []byte(`{"topic":"event/x","payload":{"seq":1}}`))
	f.Add([]byte(`{`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, head, entry []byte) {
		m := &memory{m: map[string][]byte{spoolHeadKey: head, (&spooled{seq: 3}).key(): entry}}
		s, err := OpenSpool(m, "", spoolTime)
		if err != nil {
			return
		}
		if s.head.Next <= 3 {
			t.Fatalf("the next event would have the number of one that waits: %d", s.head.Next)
		}
	})
}
