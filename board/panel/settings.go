package panel

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/joulegate/joulegate/board/config"
)

// Settings is the configuration as commands change it. Methods are safe for
// concurrent use; a refusal is a *config.Denial or config.Errors.
type Settings interface {
	ConfigView(ctx context.Context) (ConfigView, error)
	// ConfigChange stores a change, by name of whoever makes it; it is applied
	// right after. With mode dry_run it only tells what would change.
	ConfigChange(ctx context.Context, d config.Desired, by string) (ConfigResult, error)
	ConfigConfirm(ctx context.Context, txn string) (ConfigResult, error)
	// ConfigRollback ends the change under way, or proposes the revision
	// before the one in force.
	ConfigRollback(ctx context.Context, txn string) (ConfigResult, error)
}

// ConfigView is the configuration in force.
type ConfigView struct {
	Rev     uint64          `json:"rev"`
	Text    string          `json:"text"`
	By      string          `json:"by"`
	Pending *config.Pending `json:"pending,omitempty"`
	Outcome *config.Outcome `json:"outcome,omitempty"`
}

// ConfigResult is what became of a change: the payload of config/result.
type ConfigResult struct {
	Txn     string          `json:"txn"`
	State   string          `json:"state"` // valid (dry run), stored, applying, pending_confirm, confirmed, rolled_back, rejected
	Rev     uint64          `json:"rev,omitempty"`
	Code    string          `json:"code,omitempty"`
	Error   string          `json:"error,omitempty"`
	Errors  []config.Error  `json:"errors,omitempty"`
	Changes []config.Change `json:"changes,omitempty"`
	Until   string          `json:"confirm_until,omitempty"`
}

// Rejected tells of a change that is refused.
func Rejected(txn string, err error) ConfigResult {
	r := ConfigResult{Txn: txn, State: "rejected", Code: config.BadRequest, Error: err.Error()}
	var d *config.Denial
	var list config.Errors
	switch {
	case errors.As(err, &d):
		r.Code, r.Errors = d.Code, []config.Error{{Path: d.Path, Message: d.Text}}
	case errors.As(err, &list):
		r.Errors = list
	}
	return r
}

// door is one of the two ways to the configuration.
type door struct {
	by string // who changes it
	// refuse makes an answer of a change that is refused.
	refuse func(txn string, err error) (any, error)
	// permit says whether anything may be changed here; nil: it may.
	permit func(context.Context) error
}

// byCommand is for those who have the control socket.
var byCommand = door{by: "command line", refuse: func(_ string, err error) (any, error) {
	var d *config.Denial
	var list config.Errors
	switch {
	case errors.As(err, &d):
		msg := d.Text
		if d.Path != "" {
			msg = d.Path + ": " + msg
		}
		return nil, &Error{http.StatusConflict, d.Code, msg}
	case errors.As(err, &list):
		return nil, &Error{http.StatusBadRequest, config.BadRequest, list.Error()}
	}
	return nil, err
}}

// settingsRoutes offers the configuration and its changes.
func settingsRoutes(handle func(string, func(*http.Request) (any, error)), s Settings, by door) {
	change := func(ctx context.Context, txn string, dry bool, f func() (ConfigResult, error)) (any, error) {
		if by.permit != nil && !dry {
			if err := by.permit(ctx); err != nil {
				return by.refuse(txn, err)
			}
		}
		v, err := f()
		if err != nil {
			return by.refuse(txn, err)
		}
		return v, nil
	}
	handle("GET /config", func(r *http.Request) (any, error) { return s.ConfigView(r.Context()) })
	handle("POST /config", func(r *http.Request) (any, error) {
		var raw json.RawMessage
		if err := body(r, &raw); err != nil {
			return nil, err
		}
		d, err := config.ParseDesired(raw)
		if err != nil {
			return by.refuse(d.Txn, err)
		}
		return change(r.Context(), d.Txn, d.Mode == config.DryRun, func() (ConfigResult, error) { return s.ConfigChange(r.Context(), d, by.by) })
	})
	for path, f := range map[string]func(context.Context, string) (ConfigResult, error){"confirm": s.ConfigConfirm, "rollback": s.ConfigRollback} {
		handle("POST /config/"+path, func(r *http.Request) (any, error) {
			var o struct {
				Txn string `json:"txn"`
			}
			if err := body(r, &o); err != nil {
				return nil, err
			}
			return change(r.Context(), o.Txn, false, func() (ConfigResult, error) { return f(r.Context(), o.Txn) })
		})
	}
}

// ConfigView implements Settings.
func (c *Client) ConfigView(ctx context.Context) (ConfigView, error) {
	return get[ConfigView](ctx, c, "/config")
}

// ConfigChange implements Settings.
func (c *Client) ConfigChange(ctx context.Context, d config.Desired, _ string) (ConfigResult, error) {
	return call[ConfigResult](ctx, c, http.MethodPost, "/config", d)
}

// ConfigConfirm implements Settings.
func (c *Client) ConfigConfirm(ctx context.Context, txn string) (ConfigResult, error) {
	return call[ConfigResult](ctx, c, http.MethodPost, "/config/confirm", map[string]string{"txn": txn})
}

// ConfigRollback implements Settings.
func (c *Client) ConfigRollback(ctx context.Context, txn string) (ConfigResult, error) {
	return call[ConfigResult](ctx, c, http.MethodPost, "/config/rollback", map[string]string{"txn": txn})
}

var _ Settings = (*Client)(nil)
