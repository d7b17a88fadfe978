package market

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

type (
	problemJSON struct {
		Nodes  []nodeJSON  `json:"nodes"`
		Grid   *gridJSON   `json:"grid"`
		Orders []orderJSON `json:"orders"`
	}
	nodeJSON struct {
		ID     string          `json:"id"`
		Parent string          `json:"parent"`
		Fee    chain.NanoPerWh `json:"fee"`
	}
	gridJSON struct {
		Retail chain.NanoPerWh `json:"retail"`
		FeedIn chain.NanoPerWh `json:"feed_in"`
		Fee    chain.NanoPerWh `json:"fee"`
	}
	orderJSON struct {
		ID    string          `json:"id"`
		Side  string          `json:"side"`
		Wh    meter.WattHour  `json:"wh"`
		Limit chain.NanoPerWh `json:"limit"`
		Node  string          `json:"node"`
	}
)

// ParseProblem reads one JSON document of the form
//
//	{"nodes":[{"id":"root","parent":"","fee":0},{"id":"f1","parent":"root","fee":20000}],
//	 "grid":{"retail":300000,"feed_in":80000,"fee":0},
//	 "orders":[{"id":"b1","side":"buy","wh":500,"limit":210000,"node":"f1"}]}
//
// where "grid" may be null. Unknown fields, fractions and numbers beyond 64
// bits are errors; that the nodes are a tree is for [Clear] to check.
func ParseProblem(b []byte) (Problem, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var in problemJSON
	if err := dec.Decode(&in); err != nil {
		return Problem{}, located(b, dec.InputOffset(), err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Problem{}, located(b, dec.InputOffset(), errors.New("more than one JSON document"))
	}
	out := Problem{}
	for _, n := range in.Nodes {
		out.Nodes = append(out.Nodes, Node(n))
	}
	if in.Grid != nil {
		g := Grid(*in.Grid)
		out.Grid = &g
	}
	for _, o := range in.Orders {
		side, err := parseSide(o.Side)
		if err != nil {
			return Problem{}, fmt.Errorf("order %q: %w", o.ID, err)
		}
		out.Orders = append(out.Orders, Order{ID: o.ID, Side: side, Wh: o.Wh, Limit: o.Limit, Node: o.Node})
	}
	return out, nil
}

func parseSide(s string) (chain.Side, error) {
	for _, side := range []chain.Side{chain.Buy, chain.Sell} {
		if s == side.String() {
			return side, nil
		}
	}
	return 0, fmt.Errorf("unknown side %q (buy, sell)", s)
}

// located adds the line of the error. Decoding errors carry their own offset;
// for others it is where the decoder stopped.
func located(b []byte, offset int64, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	case errors.Is(err, io.EOF):
		return errors.New("empty input, want a JSON object with nodes, grid and orders")
	}
	offset = min(max(offset, 0), int64(len(b)))
	return fmt.Errorf("line %d: %w", 1+bytes.Count(b[:offset], []byte{'\n'}), err)
}

// MarshalJSON writes
//
//	{"welfare":0,"fills":{"b1":500},"prices":{"f1":0},"fees":0,"paid":0,"received":0,
//	 "grid":{"import_wh":0,"export_wh":0}}
//
// with every order's fill and every node's price, sorted by id.
func (r Result) MarshalJSON() ([]byte, error) {
	type grid struct {
		Import meter.WattHour `json:"import_wh"`
		Export meter.WattHour `json:"export_wh"`
	}
	return json.Marshal(struct {
		Welfare  chain.Nano                 `json:"welfare"`
		Fills    map[string]meter.WattHour  `json:"fills"`
		Prices   map[string]chain.NanoPerWh `json:"prices"`
		Fees     chain.Nano                 `json:"fees"`
		Paid     chain.Nano                 `json:"paid"`
		Received chain.Nano                 `json:"received"`
		Grid     grid                       `json:"grid"`
	}{r.Welfare, r.Fills, r.Prices, r.Fees, r.Paid, r.Received, grid{r.GridImport, r.GridExport}})
}

// MarshalJSON writes what [ParseProblem] reads.
func (p Problem) MarshalJSON() ([]byte, error) {
	out := problemJSON{Nodes: []nodeJSON{}, Orders: []orderJSON{}}
	for _, n := range p.Nodes {
		out.Nodes = append(out.Nodes, nodeJSON(n))
	}
	if p.Grid != nil {
		g := gridJSON(*p.Grid)
		out.Grid = &g
	}
	for _, o := range p.Orders {
		out.Orders = append(out.Orders, orderJSON{ID: o.ID, Side: o.Side.String(), Wh: o.Wh, Limit: o.Limit, Node: o.Node})
	}
	return json.Marshal(out)
}
