package mqtt

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestCommandsAreCarriedOutOnce: a command that was carried out is refused
// when it comes again after a crash, until it has expired. One that cannot be
// remembered is not carried out.
func TestCommandsAreCarriedOutOnce(t *testing.T) {
	store := &memory{}
	now := time.Unix(1_800_000_000, 0)
	command := func(txn string, valid time.Duration) inbound {
		return inbound{payload: fmt.Appendf(nil, `{"txn":%q,"exp":%d}`, txn, now.Add(valid).Unix())}
	}
	begin := func() *Service { // what a start does
		t.Helper()
		once, err := OpenOnce(store)
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(Config{Gateway: "house1", URL: "tcp://127.0.0.1:1", Once: once})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	wants := func(s *Service, what, client string, in inbound, code string) {
		t.Helper()
		if _, r := s.admit(client, in, now); r.Code != code || (r.Status == "") != (code == "") {
			t.Errorf("%s: %+v, want %q", what, r, code)
		}
	}
	s := begin()
	wants(s, "new", "anna", command("a", time.Minute), "")
	s = begin()
	wants(s, "again after a crash", "anna", command("a", time.Minute), "replayed")
	wants(s, "again, with more time", "anna", command("a", time.Hour), "replayed")
	wants(s, "another's", "bert", command("a", time.Minute), "")

	half := inbound{payload: fmt.Appendf(nil, `{"txn":"half","exp":%q}`, now.Add(1500*time.Millisecond).UTC().Format(time.RFC3339Nano))}
	wants(s, "until half a second", "anna", half, "")
	s, now = begin(), now.Add(1200*time.Millisecond)
	wants(s, "in its last moment, after a crash", "anna", half, "replayed")

	store.fail = errors.New("no space left on device")
	wants(s, "on a full disk", "anna", command("b", time.Minute), "unavailable")
	store.fail = nil
	wants(s, "with space again", "anna", command("b", time.Minute), "")

	now = now.Add(2 * time.Minute)
	s = begin()
	wants(s, "a new one with a used name", "anna", command("a", time.Minute), "")
	if len(store.m) != 1 {
		t.Errorf("%d commands are remembered, one has not expired", len(store.m))
	}
	for i := range maxRemembered - 1 {
		wants(s, "many", "anna", command(fmt.Sprint("m", i), time.Minute), "")
	}
	wants(s, "too many", "anna", command("z", time.Minute), "busy")
	now = now.Add(time.Minute)
	wants(s, "later", "anna", command("z", time.Minute), "")
	if len(store.m) != 1 {
		t.Errorf("%d commands are remembered, one has not expired", len(store.m))
	}

	store.m[onceKey+"x"] = []byte("short")
	if _, err := OpenOnce(store); err == nil {
		t.Error("a damaged memory was taken")
	}
}
