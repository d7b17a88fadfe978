package guard

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEveryRuleIsKnownOnce(t *testing.T) {
	if !slices.IsSortedFunc(Rules, func(a, b Rule) int { return strings.Compare(a.ID, b.ID) }) {
		t.Error("Rules are not sorted by id")
	}
	seen := map[string]bool{}
	for _, r := range Rules {
		if seen[r.ID] || r.Title == "" || r.Severity == 0 || r.Sensor == 0 {
			t.Errorf("rule %+v is incomplete or listed twice", r)
		}
		seen[r.ID] = true
		if r.Action == SafeStop && !r.Sensor.Local() {
			t.Errorf("rule %s: a packet could stop charging", r.ID)
		}
	}
	if r, ok := RuleOf("process.proc_creation_lnx_base64_decode"); !ok || r.Action != Kill {
		t.Errorf("a Sigma rule is %+v, %t", r, ok)
	}
	if _, ok := RuleOf("nonsense"); ok {
		t.Error("nonsense is a rule")
	}
}

func TestRedact(t *testing.T) {
	secret := []string{
		"mosquitto_pub -h broker -u joule -P hunter2 -t a",
		"mysql --password=hunter2 db",
		"mysql --password hunter2 db",
		"curl -H Authorization: hunter2 https://example.org",
		"curl -H 'Authorization: Bearer hunter2'",
		"curl https://joe:hunter2@example.org/x",
		"DB_PASSWORD=hunter2 run",
		"run --api-key hunter2",
		"sshpass -p hunter2 ssh host",
		"wpa_passphrase home psk=hunter2",
	}
	for _, line := range secret {
		if got := Redact(line); strings.Contains(got, "hunter2") {
			t.Errorf("Redact(%q) = %q", line, got)
		}
	}
	if got := Redact("run AKIA4Z7Q9X2K8M1P0L3V5 x"); strings.Contains(got, "AKIA") {
		t.Errorf("a key stands in %q", got)
	}
	for _, line := range []string{
		"/usr/bin/apt-get -y install joulegate",
		"/usr/lib/systemd/systemd-networkd-wait-online --interface eth0",
		"tar -xzf /var/backups/joulegate-2026-11-23.tar.gz -C /var/lib/joulegate",
	} {
		if got := Redact(line); got != line {
			t.Errorf("Redact(%q) = %q, nothing there is secret", line, got)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("a --password x")
	f.Add("://@")
	f.Fuzz(func(t *testing.T, s string) {
		once := Redact("--password " + strings.Join(strings.Fields(s), ""))
		if fields := strings.Fields(once); len(fields) > 1 && !strings.HasPrefix(fields[1], "-") && fields[1] != hidden {
			t.Errorf("a password shows: %q", once)
		}
	})
}

func TestFindingJSONIsTheContract(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := Finding{Rule: ARPSpoof, Severity: High, Subject: Subject{Host, "192.0.2.7"}, Count: 3, First: at, Last: at}
	f.Cut()
	got, err := json.Marshal(f)
	want := `{"rule":"arp.spoof","severity":"high","subject":{"kind":"host","value":"192.0.2.7"},"count":3,"first":"2026-01-02T03:04:05Z","last":"2026-01-02T03:04:05Z","evidence":{}}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
}

func TestSealedHidesAndProves(t *testing.T) {
	f := Finding{Rule: ARPSpoof, Severity: High, Subject: Subject{Host, "192.0.2.7"}, Count: 3, First: time.Now(), Last: time.Now(), Evidence: map[string]string{"a": "b", "c": "d"}}
	a, b := Sealed{Salt: [16]byte{1}, Finding: f}, Sealed{Salt: [16]byte{2}, Finding: f}
	if a.Hash() == b.Hash() {
		t.Error("the salt does not count: findings can be guessed from their hash")
	}
	g := a
	g.Finding.First = f.First.In(time.FixedZone("x", 3600))
	if a.Hash() != g.Hash() {
		t.Error("the hash depends on the time zone")
	}
	g.Finding.Count++
	if a.Hash() == g.Hash() {
		t.Error("the hash does not depend on the finding")
	}
}

func TestCutBoundsWhatOthersWrite(t *testing.T) {
	f := Finding{Subject: Subject{Name, strings.Repeat("ä", 300)}, Evidence: map[string]string{}}
	for i := range 100 {
		f.Evidence[strings.Repeat("k", i+1)] = strings.Repeat("v", 10_000)
	}
	f.Cut()
	if len(f.Subject.Value) > MaxSubject || !strings.HasSuffix(f.Subject.Value, "ä") || len(f.Evidence) > MaxEvidence {
		t.Errorf("%d bytes of subject, %d entries", len(f.Subject.Value), len(f.Evidence))
	}
	for _, v := range f.Evidence {
		if len(v) > MaxValue {
			t.Errorf("a value of %d bytes", len(v))
		}
	}
}
