package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestDashboard: every series that the dashboard asks for is one that a
// gateway has.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "grafana.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	var have strings.Builder
	descs := make(chan *prometheus.Desc, 256)
	gatewayMetrics{}.Describe(descs)
	guardMetrics{}.Describe(descs)
	close(descs)
	for d := range descs {
		have.WriteString(d.String())
	}
	names := regexp.MustCompile(`joulegate_\w+`)
	asked := 0
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			for _, name := range names.FindAllString(q.Expr, -1) {
				asked++
				if !strings.Contains(have.String(), `"`+name+`"`) {
					t.Errorf("%s: no gateway has %s", p.Title, name)
				}
			}
		}
	}
	if asked < 10 {
		t.Errorf("the dashboard asks for %d series", asked)
	}
}
