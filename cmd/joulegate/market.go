package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/chain/market"
)

// maxProblem is the most bytes that market clear reads.
const maxProblem = 256 << 20

// newMarketClearCmd clears a problem given on stdin. It prints JSON with and
// without --json: its input is JSON too.
func newMarketClearCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "clear",
		Short: "Clear a problem given as JSON on stdin",
		Long: `clear reads a network, the grid's prices and orders as one JSON document on
stdin and prints who gets what at which price. It needs no gateway: use it to
ask what-if questions or to check a clearing. Energy is in Wh, prices and fees
in nano (1e-9 of the currency unit) per Wh, money in nano. A node's fee is that
of the edge to its parent, in either direction; "grid" may be null. The result
is proven optimal before it is printed.`,
		Example: `  joulegate market clear <<'END'
  {"nodes":[{"id":"root","parent":"","fee":0},
            {"id":"f1","parent":"root","fee":20000},
            {"id":"f2","parent":"root","fee":20000}],
   "grid":{"retail":300000,"feed_in":80000,"fee":0},
   "orders":[{"id":"car","side":"buy","wh":1500,"limit":330000,"node":"f1"},
             {"id":"roof","side":"sell","wh":1000,"limit":80000,"node":"f2"}]}
  END`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return marketClear(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

func marketClear(in io.Reader, out io.Writer) error {
	raw, err := io.ReadAll(io.LimitReader(in, maxProblem+1))
	if err != nil {
		return fmt.Errorf("read the problem: %w", err)
	}
	if len(raw) > maxProblem {
		return fmt.Errorf("read the problem: more than %d bytes", maxProblem)
	}
	problem, err := market.ParseProblem(raw)
	if err != nil {
		return fmt.Errorf("read the problem: %w", err)
	}
	result, err := market.Clear(problem)
	if err != nil {
		return fmt.Errorf("clear: %w", err)
	}
	if err := market.Certify(problem, result); err != nil {
		return fmt.Errorf("clear: the result is not optimal, please report this: %w", err)
	}
	return json.NewEncoder(out).Encode(result)
}
