package profile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// What the status of every wallbox means, with what its cable says (-1: not
// read), written down a second time.
func TestVehicleState(t *testing.T) {
	for id, want := range map[string]string{
		"keba-p30":                  "0:5=B 1:0=A 1:7=B 2:7=B 2:3=A 3:7=C 3:-1=C 4:0=F 5:7=B 5:1=A 9:7=? 2:9=B",
		"heidelberg-energy-control": "2:-1=A 3:-1=A 4:-1=B 5:-1=B 6:-1=C 7:-1=C 8:-1=C 9:-1=E 10:-1=F 11:-1=F 1:-1=?",
		"amperfied-connect":         "2:-1=A 5:-1=B 7:-1=C 9:-1=E 10:-1=F",
		"abb-terra-ac":              "0:0=A 1:257=B 2:273=B 3:257=B 4:257=C 5:0=A 5:257=B 4:0=C",
		"mennekes-compact":          "1:-1=A 2:-1=B 3:-1=B 4:-1=B 5:-1=C 6:-1=F",
		"webasto-next":              "0:0=A 1:0=B 4:0=B 3:0=C 7:0=F 2:0=?",
		"vestel-evc04":              "0:0=A 1:0=B 4:0=B 3:0=C 7:0=F",
		"bender-cc613":              "1:-1=A 2:-1=B 3:-1=C 4:-1=C 5:-1=E",
		"simpleevse":                "1:-1=A 2:-1=B 3:-1=C 4:-1=D 5:-1=F",
		"abl-emh1":                  "161:-1=A 177:-1=B 178:-1=B 194:-1=C 195:-1=C 196:-1=C 224:-1=B 241:-1=F 249:-1=F",
		"victron-evcs":              "0:-1=A 1:-1=B 2:-1=C 3:-1=D 5:-1=B 6:-1=B 21:-1=B",
		"victron-evcs-gx":           "0:-1=A 1:-1=B 2:-1=C 21:-1=B",
		"smartevse":                 "0:-1=A 1:-1=A 2:-1=B 3:-1=C",
		"schneider-evlink-v3":       "0:-1=A 6:-1=A 3:-1=B 7:-1=B 8:-1=C 9:-1=C",
		"alfen-eve":                 "A:-1=A B1:-1=B B2:-1=B C1:-1=B C2:-1=C D1:-1=B D2:-1=D E:-1=E F:-1=F",
		"peblar":                    "A:-1=A B:-1=B C:-1=C F:-1=F",
		"phoenix-charx":             "A:-1=A C:-1=C E:-1=E",
		"phoenix-em-cp-pp-eth":      "A:-1=A D:-1=D",
		"phoenix-ev-cc":             "B:-1=B F:-1=F",
	} {
		p := get(t, id)
		for _, c := range strings.Fields(want) {
			status, rest, _ := strings.Cut(c, ":")
			cable, letter, _ := strings.Cut(rest, "=")
			code, isText := profile.Code(status)
			if _, text := p.StatusText(code); !text || !isText {
				_, _ = fmt.Sscan(status, &code)
			}
			points := []meter.Point{{Quantity: meter.Status, Value: code}}
			if cable != "-1" {
				var v int64
				_, _ = fmt.Sscan(cable, &v)
				points = append(points, meter.Point{Quantity: meter.Cable, Value: v})
			}
			got, ok := p.VehicleState(points)
			if ok != (letter != "?") || ok && got.String() != letter {
				t.Errorf("%s: status %s, cable %s is %s, %v; want %s", id, status, cable, got, ok, letter)
			}
		}
		if got, ok := p.VehicleState(nil); ok || got != drivers.StateUnknown {
			t.Errorf("%s: nothing read is %s", id, got)
		}
	}
}

// How every wallbox is paused, taken over and kept alive.
func TestLeadingWallboxes(t *testing.T) {
	for id, want := range map[string]struct{ pause, setup, watchdog string }{
		"keba-p30":                  {"current_limit enable?", "", "write 0s 0"},
		"heidelberg-energy-control": {"current_limit", "standby=0 lock=0", "request 15s 0"},
		"amperfied-connect":         {"current_limit", "standby=0 lock=0", "request 15s 0"},
		"alfen-eve":                 {"current_limit", "", "current_limit 0s 0"},
		"abb-terra-ac":              {"current_limit", "", "request 30s 0"},
		"mennekes-compact":          {"current_limit enable", "", "heartbeat 10s 0"},
		"webasto-next":              {"current_limit", "", "heartbeat 0s 0"},
		"vestel-evc04":              {"current_limit", "", "heartbeat 0s 0"},
		"bender-cc613":              {"current_limit", "", ""},
		"phoenix-charx":             {"enable", "", ""},
		"phoenix-em-cp-pp-eth":      {"enable", "", ""},
		"phoenix-ev-cc":             {"enable", "", ""},
		"simpleevse":                {"current_limit", "", ""},
		"abl-emh1":                  {"current_limit enable", "", ""},
		"victron-evcs":              {"enable", "mode=0", ""},
		"victron-evcs-gx":           {"enable", "mode=0", ""},
		"smartevse":                 {"current_limit", "", ""},
		"schneider-evlink-v3":       {"current_limit", "", "heartbeat 0s 0"},
		"peblar":                    {"current_limit", "", ""},
	} {
		p := get(t, id)
		var pause, setup []string
		for _, s := range p.Pause() {
			pause = append(pause, s.Write.Name+map[bool]string{true: "?"}[s.Write.Optional])
			if _, err := s.Write.Encode(s.Value, []meter.RawBlock{{Function: 3, Address: 2005, Data: []byte{0, 0}}, {Function: 3, Address: 1005, Data: []byte{0, 17}}}); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		for _, s := range p.Setup() {
			setup = append(setup, fmt.Sprintf("%s=%d", s.Write.Name, s.Value))
		}
		watchdog := ""
		if w := p.Watchdog; w != nil {
			watchdog = fmt.Sprintf("%s %s %d", w.FedBy, w.Timeout, w.Current)
		}
		if got := (struct{ pause, setup, watchdog string }{strings.Join(pause, " "), strings.Join(setup, " "), watchdog}); got != want {
			t.Errorf("%s: %+v, want %+v", id, got, want)
		}
	}
	for _, p := range profile.All() {
		if len(p.Pause()) == 0 && p.Kind == profile.Wallbox {
			t.Errorf("%s cannot be paused", p.ID)
		}
	}
}

// A watchdog is fed by what its profile says and by nothing else.
func TestFeeds(t *testing.T) {
	for _, c := range []struct {
		profile string
		fn      uint8
		addr    uint16
		values  []uint16
		want    bool
	}{
		{"heidelberg-energy-control", 4, 5, nil, true},
		{"keba-p30", 3, 1000, nil, false},
		{"keba-p30", 6, 5004, []uint16{6000}, true},
		{"mennekes-compact", 6, 0xD00, []uint16{0x55AA}, true},
		{"mennekes-compact", 6, 0xD00, []uint16{1}, false},
		{"mennekes-compact", 3, 0xD00, nil, false},
		{"alfen-eve", 16, 1210, []uint16{16768, 0}, true},
		{"alfen-eve", 6, 1215, []uint16{3}, false},
	} {
		p := get(t, c.profile)
		if got := p.Watchdog.Feeds(p, c.fn, c.addr, c.values); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// A battery is told the mode, the direction and the power in the order and
// with the sign that it wants, and what it is told can be read back.
func TestOrders(t *testing.T) {
	for _, c := range []struct {
		profile, order string
		power          int64
		want           string
	}{
		{"sungrow-sh", "charge", 2_500_000, "[{6 13051 [2500]} {6 13050 [170]} {6 13049 [2]}]"},
		{"sungrow-sh", "release", 0, "[{6 13050 [204]} {6 13049 [0]}]"},
		{"sungrow-sh", "discharge", 1_000_000, ""},
		{"sungrow-sh", "charge", -1, ""},
		{"goodwe-et", "charge", 3_000_000, "[{6 47512 [3000]} {6 47511 [2]}]"},
		{"goodwe-et", "release", 0, "[{6 47511 [1]} {6 47512 [0]}]"},
		{"goodwe-et", "charge", 30_000_000, ""},
		{"foxess-h3", "charge", 1_000_000, "[{16 44002 [65535 64536]} {6 44000 [1]}]"}, // -1000 W
		{"foxess-h3", "discharge", 1_000_000, "[{16 44002 [0 1000]} {6 44000 [1]}]"},
		{"foxess-h3", "release", 0, "[{16 44002 [0 0]} {6 44000 [0]}]"},
		{"solis-rhi", "charge", 0, ""},
	} {
		p := get(t, c.profile)
		writes, err := p.Order(c.order, c.power)
		if (err != nil) != (c.want == "") || err == nil && fmt.Sprint(writes) != c.want {
			t.Errorf("%s %s %d: %v, %v; want %s", c.profile, c.order, c.power, writes, err, c.want)
		}
		if err != nil {
			continue
		}
		values := map[string]int64{}
		for _, x := range writes {
			for i := range p.Writes {
				if v, ok := p.Writes[i].Decode(x.Address, x.Values, nil); ok {
					values[p.Writes[i].Name] = v
				}
			}
		}
		want := c.power
		if c.order == profile.OrderDischarge {
			want = -want
		}
		if _, power := p.Ordered(values); power != want {
			t.Errorf("%s %s %d is taken for %d", c.profile, c.order, c.power, power)
		}
	}
}
