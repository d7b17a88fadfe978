package panel

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/guard"
)

// maxAnswer bounds what a client reads: 1,000 members with all their sessions
// fit.
const maxAnswer = 64 << 20

// Client is the gateway behind a door. It implements Backend. Its methods are
// safe for concurrent use; contexts bound them.
type Client struct {
	base string
	http *http.Client
}

var _ Backend = (*Client)(nil)

// Dial returns a client of the control socket at path. Nothing is opened
// until the first call.
func Dial(path string) *Client {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	return &Client{"http://localhost" + Prefix, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) },
	}}}
}

// NewClient returns a client of a panel's TCP address: host:port, or as it
// stands in a browser.
func NewClient(addr string) *Client {
	return &Client{"http://" + strings.TrimRight(strings.TrimPrefix(addr, "http://"), "/") + Prefix, &http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// open makes a request and returns the body of a success.
func (c *Client) open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var rd io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, rd)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		if ue := new(url.Error); errors.As(err, &ue) {
			err = ue.Err // the address is in there already
		}
		return nil, fmt.Errorf("ask the gateway: %w", err)
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	e := &Error{Status: res.StatusCode}
	if json.NewDecoder(io.LimitReader(res.Body, 1<<16)).Decode(e) != nil || e.Message == "" {
		e.Code, e.Message = "http", "the gateway answered "+res.Status
	}
	return nil, e
}

// call makes a request and decodes its answer.
func call[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	body, err := c.open(ctx, method, path, in)
	if err != nil {
		return out, err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&out); err != nil {
		return out, fmt.Errorf("answer to %s %s: %w", method, path, err)
	}
	return out, nil
}

// raw fetches exact bytes.
func (c *Client) raw(ctx context.Context, path string) ([]byte, error) {
	body, err := c.open(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, maxAnswer))
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	return call[T](ctx, c, http.MethodGet, path, nil)
}

// Status implements Backend.
func (c *Client) Status(ctx context.Context) (Status, error) { return get[Status](ctx, c, "/status") }

// Guard implements Backend. Only the control socket offers it.
func (c *Client) Guard(ctx context.Context) (guard.Status, error) {
	return get[guard.Status](ctx, c, "/guard")
}

// ReloadNames implements Backend. Only the control socket offers it.
func (c *Client) ReloadNames(ctx context.Context) (uint64, error) {
	return call[uint64](ctx, c, http.MethodPost, "/guard/names/reload", nil)
}

// LedgerStatus implements Backend.
func (c *Client) LedgerStatus(ctx context.Context) (LedgerStatus, error) {
	return get[LedgerStatus](ctx, c, "/ledger/status")
}

// StateHash implements Backend.
func (c *Client) StateHash(ctx context.Context, height int64) (StateHash, error) {
	return get[StateHash](ctx, c, "/ledger/hash?height="+strconv.FormatInt(height, 10))
}

// Checkpoint implements Backend. The answer has been checked against itself.
func (c *Client) Checkpoint(ctx context.Context, height int64) (chain.Checkpoint, error) {
	p, err := get[chain.Checkpoint](ctx, c, "/ledger/checkpoint?height="+strconv.FormatInt(height, 10))
	if err == nil {
		err = p.Check()
	}
	return p, err
}

// Claim implements Backend.
func (c *Client) Claim(ctx context.Context, key []byte) ([]byte, error) {
	return c.raw(ctx, "/ledger/claim?key="+hex.EncodeToString(key))
}

// Genesis implements Backend.
func (c *Client) Genesis(ctx context.Context) ([]byte, error) { return c.raw(ctx, "/genesis") }

// Submit implements Backend. Only the control socket offers it.
func (c *Client) Submit(ctx context.Context, raw []byte) (TxResult, error) {
	return call[TxResult](ctx, c, http.MethodPost, "/tx", envelope{raw})
}

// Nonce implements Backend.
func (c *Client) Nonce(ctx context.Context, signer chain.Key) (uint64, error) {
	n, err := get[nonce](ctx, c, "/nonce?key="+signer.String())
	return n.Nonce, err
}

// Accounts implements Backend.
func (c *Client) Accounts(ctx context.Context) ([]Account, error) {
	return get[[]Account](ctx, c, "/accounts")
}

// Account implements Backend.
func (c *Client) Account(ctx context.Context, id chain.Account) (Account, error) {
	return get[Account](ctx, c, "/accounts/"+url.PathEscape(id.String()))
}

// Members implements Backend.
func (c *Client) Members(ctx context.Context) ([]Member, error) {
	return get[[]Member](ctx, c, "/members")
}

// Peers implements Backend.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) { return get[[]Peer](ctx, c, "/peers") }

// Meters implements Backend.
func (c *Client) Meters(ctx context.Context) ([]board.Meter, error) {
	return get[[]board.Meter](ctx, c, "/meters")
}

// ConfirmMeter implements Backend.
func (c *Client) ConfirmMeter(ctx context.Context, id string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/meters/"+url.PathEscape(id)+"/confirm", struct{}{})
	return err
}

// Chargers implements Backend.
func (c *Client) Chargers(ctx context.Context) ([]board.Charger, error) {
	return get[[]board.Charger](ctx, c, "/chargers")
}

// Update implements Backend. Only the control socket offers it.
func (c *Client) Update(ctx context.Context, o UpdateOrder) (board.Update, error) {
	return call[board.Update](ctx, c, http.MethodPost, "/update", o)
}

// OrderCharger implements Backend.
func (c *Client) OrderCharger(ctx context.Context, id uint8, o ChargerOrder) (board.Charger, error) {
	return call[board.Charger](ctx, c, http.MethodPost, "/chargers/"+strconv.Itoa(int(id)), o)
}

// SetPlan implements Backend.
func (c *Client) SetPlan(ctx context.Context, id chain.ID, o PlanOrder) (Session, error) {
	return call[Session](ctx, c, http.MethodPost, "/sessions/"+id.String()+"/plan", o)
}

// Dim implements Backend.
func (c *Client) Dim(ctx context.Context, o DimOrder) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/utility", o)
	return err
}

// Mandates implements Backend.
func (c *Client) Mandates(ctx context.Context, payer chain.Account) (Mandates, error) {
	return get[Mandates](ctx, c, "/accounts/"+url.PathEscape(payer.String())+"/mandates")
}

// Bundle implements Backend. Only the control socket offers it.
func (c *Client) Bundle(ctx context.Context, q BundleQuery, w io.Writer) error {
	v := url.Values{}
	if q.Session != (chain.ID{}) {
		v.Set("session", q.Session.String())
	}
	for key, t := range map[string]time.Time{"from": q.From, "to": q.To} {
		if !t.IsZero() {
			v.Set(key, t.Format(time.RFC3339Nano))
		}
	}
	return c.download(ctx, "/audit/bundle?"+v.Encode(), w)
}

// Stores implements Backend. Only the control socket offers it.
func (c *Client) Stores(ctx context.Context, w io.Writer) error { return c.download(ctx, "/stores", w) }

func (c *Client) download(ctx context.Context, path string, w io.Writer) error {
	body, err := c.open(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	return err
}

// Failsafe implements Backend.
func (c *Client) Failsafe(ctx context.Context, charger uint8, set *Failsafe) (Failsafe, error) {
	path := "/chargers/" + strconv.Itoa(int(charger)) + "/failsafe"
	if set == nil {
		return get[Failsafe](ctx, c, path)
	}
	return call[Failsafe](ctx, c, http.MethodPost, path, set)
}

// Events implements Backend.
func (c *Client) Events(ctx context.Context, from, to time.Time) ([]Event, error) {
	q := url.Values{}
	for key, t := range map[string]time.Time{"from": from, "to": to} {
		if !t.IsZero() {
			q.Set(key, t.Format(time.RFC3339Nano))
		}
	}
	return get[[]Event](ctx, c, "/events?"+q.Encode())
}

// Market implements Backend.
func (c *Client) Market(ctx context.Context) (Market, error) {
	return get[Market](ctx, c, "/market/status")
}

// Energy implements Backend.
func (c *Client) Energy(ctx context.Context) (ledger.Energy, error) {
	return get[ledger.Energy](ctx, c, "/energy")
}

// Sessions implements Backend.
func (c *Client) Sessions(ctx context.Context) ([]Session, error) {
	return get[[]Session](ctx, c, "/sessions")
}

// Session implements Backend.
func (c *Client) Session(ctx context.Context, id chain.ID) (Session, error) {
	return get[Session](ctx, c, "/sessions/"+id.String())
}

// Quote implements Backend.
func (c *Client) Quote(ctx context.Context, req QuoteRequest) (Quote, error) {
	return call[Quote](ctx, c, http.MethodPost, "/sessions/quote", req)
}

// StartSession implements Backend.
func (c *Client) StartSession(ctx context.Context, q chain.SignedQuote) (Session, error) {
	return call[Session](ctx, c, http.MethodPost, "/sessions", signedQuote(q))
}

// StopSession implements Backend.
func (c *Client) StopSession(ctx context.Context, id chain.ID, order StopOrder) (Session, error) {
	return call[Session](ctx, c, http.MethodPost, "/sessions/"+id.String()+"/stop", order)
}

// Receipt implements Backend.
func (c *Client) Receipt(ctx context.Context, id chain.ID, format string) ([]byte, error) {
	return c.raw(ctx, "/receipts/"+id.String()+"?format="+url.QueryEscape(format))
}

// Invite implements Backend. Only the control socket offers it.
func (c *Client) Invite(ctx context.Context, req InviteRequest) (Invitation, error) {
	return call[Invitation](ctx, c, http.MethodPost, "/grid/invite", req)
}

// LedgerVerify implements Backend. Only the control socket offers it.
func (c *Client) LedgerVerify(ctx context.Context, progress func(VerifyProgress)) (VerifyReport, error) {
	body, err := c.open(ctx, http.MethodGet, "/ledger/verify", nil)
	if err != nil {
		return VerifyReport{}, err
	}
	defer body.Close()
	d := json.NewDecoder(body)
	for {
		var l verifyLine
		if err := d.Decode(&l); err != nil {
			return VerifyReport{}, fmt.Errorf("verification ended without a report: %w", err)
		}
		switch {
		case l.Report != nil:
			return *l.Report, nil
		case l.Error != nil:
			return VerifyReport{}, l.Error
		case l.Progress != nil && progress != nil:
			progress(*l.Progress)
		}
	}
}

// Watch implements Backend; Data is a json.RawMessage. The channel closes when
// ctx ends or the connection breaks.
func (c *Client) Watch(ctx context.Context) (<-chan Update, error) {
	body, err := c.open(ctx, http.MethodGet, "/live", nil)
	if err != nil {
		return nil, err
	}
	out := make(chan Update)
	go func() {
		defer close(out)
		defer body.Close()
		lines := bufio.NewScanner(body)
		lines.Buffer(nil, 1<<20)
		var u Update
		for lines.Scan() {
			switch line := lines.Text(); {
			case strings.HasPrefix(line, "event: "):
				u.Event = line[len("event: "):]
			case strings.HasPrefix(line, "data: "):
				u.Data = json.RawMessage(line[len("data: "):])
			case line == "" && u.Data != nil:
				select {
				case out <- u:
				case <-ctx.Done():
					return
				}
				u = Update{}
			}
		}
	}()
	return out, nil
}
