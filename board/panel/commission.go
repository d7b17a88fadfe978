package panel

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/commission"
)

// CommissionBackend is what a gateway does while it is commissioned.
type CommissionBackend interface {
	// Commissioning begins or ends the mode in which relays may be tested,
	// or tells about it. TestRelay closes one for a moment.
	Commissioning(ctx context.Context, o CommissioningOrder) (Commissioning, error)
	TestRelay(ctx context.Context, o RelayOrder) (board.RelayTest, error)
	// ScanLine says what answers on a configured line, as `bus scan --json`
	// does. It needs commissioning mode.
	ScanLine(ctx context.Context, o ScanOrder) (json.RawMessage, error)
	// Directions keeps what a person has found out by switching a load.
	Directions(ctx context.Context, o DirectionOrder) error
	// CommissionReport makes the report, signed: a page, or JSON.
	CommissionReport(ctx context.Context, o ReportOrder) ([]byte, error)
	// LastReport returns the page that was made last.
	LastReport(ctx context.Context) ([]byte, error)
}

// ScanOrder asks what answers on a line; Units "" are all.
type ScanOrder struct {
	Line  string `json:"line"`
	Units string `json:"units"`
}

// DirectionOrder says how the transformers of meters are mounted.
type DirectionOrder struct {
	How    string                       `json:"how"` // in words
	Meters map[string][]commission.Line `json:"meters"`
}

// ReportOrder asks for a commissioning report.
type ReportOrder struct {
	Installer string // who has done it; "": not named
	Page      bool   // HTML instead of JSON
}

// scanLimit bounds a scan of all units of a slow line.
const scanLimit = 4 * time.Minute

func (s *Server) commissionRoutes(handle func(string, func(*http.Request) (any, error)), raw func(string, func(http.ResponseWriter, *http.Request) error), control bool) {
	b := s.cfg.Backend
	if !control {
		// A report is made by who is at the gateway; others may read it.
		raw("/commissioning/report", func(w http.ResponseWriter, r *http.Request) error {
			p, err := b.LastReport(r.Context())
			if err != nil {
				return err
			}
			w.Header().Set("Content-Disposition", `attachment; filename="commissioning.html"`)
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = w.Write(p)
			return nil
		})
		return
	}
	handle("POST /commissioning", func(r *http.Request) (any, error) {
		var o CommissioningOrder
		if err := body(r, &o); err != nil {
			return nil, err
		}
		return b.Commissioning(r.Context(), o)
	})
	handle("POST /relay/test", func(r *http.Request) (any, error) {
		var o RelayOrder
		if err := body(r, &o); err != nil {
			return nil, err
		}
		return b.TestRelay(r.Context(), o)
	})
	handle("POST /commissioning/directions", func(r *http.Request) (any, error) {
		var o DirectionOrder
		if err := body(r, &o); err != nil {
			return nil, err
		}
		return struct{}{}, b.Directions(r.Context(), o)
	})
	raw("/commissioning/scan", func(w http.ResponseWriter, r *http.Request) error {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(scanLimit + writeTimeout))
		ctx, cancel := context.WithTimeout(r.Context(), scanLimit)
		defer cancel()
		v, err := b.ScanLine(ctx, ScanOrder{Line: r.URL.Query().Get("line"), Units: r.URL.Query().Get("units")})
		if err == nil {
			reply(w, http.StatusOK, v)
		}
		return err
	})
	raw("/commissioning/report", func(w http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		o := ReportOrder{Installer: r.URL.Query().Get("by"), Page: r.URL.Query().Get("format") == "html"}
		p, err := b.CommissionReport(ctx, o)
		if err == nil {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(p)
		}
		return err
	})
}

// Commissioning implements Backend.
func (c *Client) Commissioning(ctx context.Context, o CommissioningOrder) (Commissioning, error) {
	return call[Commissioning](ctx, c, http.MethodPost, "/commissioning", o)
}

// TestRelay implements Backend.
func (c *Client) TestRelay(ctx context.Context, o RelayOrder) (board.RelayTest, error) {
	return call[board.RelayTest](ctx, c, http.MethodPost, "/relay/test", o)
}

// ScanLine implements Backend. Only the control socket offers it.
func (c *Client) ScanLine(ctx context.Context, o ScanOrder) (json.RawMessage, error) {
	return c.raw(ctx, "/commissioning/scan?"+url.Values{"line": {o.Line}, "units": {o.Units}}.Encode())
}

// Directions implements Backend. Only the control socket offers it.
func (c *Client) Directions(ctx context.Context, o DirectionOrder) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/commissioning/directions", o)
	return err
}

// CommissionReport implements Backend. Only the control socket offers it.
func (c *Client) CommissionReport(ctx context.Context, o ReportOrder) ([]byte, error) {
	format := "json"
	if o.Page {
		format = "html"
	}
	return c.raw(ctx, "/commissioning/report?"+url.Values{"by": {o.Installer}, "format": {format}}.Encode())
}

// LastReport implements Backend.
func (c *Client) LastReport(ctx context.Context) ([]byte, error) {
	return c.raw(ctx, "/commissioning/report")
}
