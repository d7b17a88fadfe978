package microgrid

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/commission"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/tools/sim/house"
)

// TestCommissioningReport is an installer's last hour: the report names what is
// left, he does it, and the report is complete, signed, and anybody can check
// it.
func TestCommissioningReport(t *testing.T) {
	t.Parallel()
	grid := newStreet(t, house.HouseConfig{Name: "house1", Phases: 3, Charger: true})
	g := grid.gateways[0]
	g.install()
	g.configure(func(c *config.Config) {
		c.Chargers[0].EStop, c.Chargers[0].Feedback, c.Button = "IN1", "IN2", "IN3"
		c.Site.Fuse = 63_000
		for i := range c.Meters {
			c.Meters[i].Interval = config.Duration(400 * time.Millisecond)
		}
		c.Meters = slices.DeleteFunc(c.Meters, func(m config.Meter) bool { return m.Role == chain.RoleConnection.String() })
	})
	g.create()
	// The auxiliary contact follows the contactor.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for was := false; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			if is := grid.street.State(g.index).Relay; is != was {
				if err := grid.street.SetInput(g.index, "IN2", is); err != nil {
					t.Error(err)
					return
				}
				was = is
			}
		}
	}()
	g.start()

	page := filepath.Join(t.TempDir(), "report.html")
	report := func() commission.Report { // complete or not
		t.Helper()
		out, errOut, code := g.try("commission", "--report", page, "--by", "A. Installer & Sons")
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatalf("%v: %s%s", err, out, errOut)
		}
		o, err := commission.Open(b)
		if err != nil {
			t.Fatal(err)
		}
		if (code == 0) != o.Complete {
			t.Errorf("exit code %d, complete %t", code, o.Complete)
		}
		return o.Report
	}
	left := func() (ids []string) {
		t.Helper()
		r := report()
		for _, row := range r.Red() {
			ids = append(ids, row.ID)
		}
		return ids
	}
	first := left()
	for _, want := range []string{"charger.1.relay", "charger.1.feedback", "charger.1.estop", "meter.house.identity", "meter.house.direction", "meter.car.identity", "meter.car.direction", "operation.backup"} {
		if !slices.Contains(first, want) {
			t.Errorf("nothing was tried, and %s is not red: %q", want, first)
		}
	}

	// Nothing moves and nothing is asked before somebody is there.
	for _, args := range [][]string{{"relay", "test", "1"}, {"bus", "scan", "--line", "rs485", "--units", "1-4"}} {
		if _, errOut, code := g.try(args...); code != 1 || !strings.Contains(errOut, "joulegate commission start") {
			t.Errorf("%q outside commissioning mode: exit %d, %s", args, code, errOut)
		}
	}
	press := func(high bool) {
		t.Helper()
		if err := grid.street.SetInput(g.index, "IN1", high); err != nil {
			t.Fatal(err)
		}
		g.wait(patience, "the contact", func(ctx context.Context) (bool, any) {
			all, err := g.client.Chargers(ctx)
			ok := err == nil && len(all) == 1 && slices.ContainsFunc(all[0].Contacts, func(c board.ContactState) bool { return c.Name == "estop" && c.Active == high })
			return ok, all
		})
	}
	press(true)
	press(false)
	if ids := left(); !slices.Contains(ids, "charger.1.estop") {
		t.Error("the emergency stop was tried while nobody was commissioning, and counts")
	}

	// Whoever holds the button is there.
	if err := grid.street.SetInput(g.index, "IN3", true); err != nil {
		t.Fatal(err)
	}
	g.wait(patience, "commissioning mode by the button", func(ctx context.Context) (bool, any) {
		c, err := g.client.Commissioning(ctx, panel.CommissioningOrder{})
		return err == nil && c.On, err
	})
	if err := grid.street.SetInput(g.index, "IN3", false); err != nil {
		t.Fatal(err)
	}
	g.run("bus", "scan", "--line", "rs485", "--units", "1-4")
	press(true)
	press(false)
	g.wait(patience, "a test of the relay", func(context.Context) (bool, any) { // a turn off keeps it off for a while
		out, errOut, code := g.try("relay", "test", "1", "--seconds", "1")
		return code == 0, out + errOut
	})
	g.run("backup", filepath.Join(t.TempDir(), "backup"))
	g.run("commission", "stop")

	// The first vehicle shows which way round the meters are.
	anna := g.wallet("anna", "50")
	grid.charge(g, anna, 5000)
	g.wait(2*patience, "a complete report", func(context.Context) (bool, any) { // the line has to be read a hundred times
		ids := left()
		return len(ids) == 0, ids
	})

	r := report()
	for _, s := range r.Steps {
		for _, row := range s.Rows {
			if (row.ID == "charger.1.relay" || row.ID == "charger.1.estop" || row.ID == "meter.car.identity") && (row.State != commission.OK || row.At.IsZero()) {
				t.Errorf("%+v cites no trial", row)
			}
		}
	}

	// Anybody checks it, and finds a changed byte.
	v := ask[commission.Report](g, "commission", "verify", page, "--device", r.Gateway.Device.String())
	if !v.Complete || v.Installer != "A. Installer & Sons" || v.Gateway.Name != g.name {
		t.Errorf("%+v", v)
	}
	if _, errOut, code := g.try("commission", "verify", page, "--device", strings.Repeat("00", 32)); code != 1 || !strings.Contains(errOut, "signed by") {
		t.Errorf("another device: exit %d, %s", code, errOut)
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := getPage("http://" + g.addr + ":8080/api/v1/commissioning/report"); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the panel hands out another page: %v", err)
	}
	i := bytes.Index(b, []byte("nothing is left to do"))
	b[i] = 'N'
	if err := os.WriteFile(page, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := g.try("commission", "verify", page); code != 1 || !strings.Contains(errOut, "not as the gateway has signed it") {
		t.Errorf("a changed page: exit %d, %s", code, errOut)
	}
	if doc := ask[commission.Report](g, "commission", "--json"); !doc.Complete {
		t.Errorf("%+v", doc)
	}

	// What was tried outlives a restart; what is to be seen now is seen anew.
	g.stop()
	g.start()
	for _, id := range left() {
		if !strings.HasSuffix(id, ".reading") && !strings.HasSuffix(id, ".errors") && !strings.HasSuffix(id, ".interlocks") && !strings.HasPrefix(id, "operation.") {
			t.Errorf("after a restart %s is red", id)
		}
	}
}

func getPage(url string) ([]byte, error) {
	r, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	return io.ReadAll(r.Body)
}
