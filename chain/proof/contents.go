package proof

import (
	"fmt"
	"io"
	"strings"

	"github.com/joulegate/joulegate/chain"
)

// Contents is what a bundle holds, by its own words: nothing of it is checked.
type Contents struct {
	Claim    Claim `json:"claim"`
	Blocks   int64 `json:"blocks"`
	Txs      int   `json:"transactions"`
	Records  int   `json:"meter_records"`
	Readings int   `json:"meter_records_with_readings"`
	Profiles int   `json:"profiles"`
	Events   int   `json:"device_events"`
	Findings int   `json:"guard_findings"`
}

// Inspect reads a whole bundle and tells what is in it.
func Inspect(r io.Reader) (c Contents, err error) {
	f, err := newReader(r)
	if err != nil {
		return c, err
	}
	var b books
	b.init(chain.Genesis{})
	for {
		kind, payload, err := f.next()
		if err != nil {
			return c, fmt.Errorf("bundle: at byte %d: %w", f.size, err)
		}
		switch kind {
		case frameClaim:
			err = chain.Unmarshal(payload, &c.Claim)
		case frameBlock:
			var v Block
			if err = chain.Unmarshal(payload, &v); err != nil {
				break
			}
			c.Blocks++
			var txs [][]byte
			if txs, err = unpack(v.Txs); err != nil {
				break
			}
			c.Txs += len(txs)
			for _, tx := range txs {
				s, err := chain.ParseBlock(tx)
				if err != nil {
					continue
				}
				for _, r := range s.Records {
					_ = b.record(&v.Header, s, r)
				}
			}
		case frameProfile:
			c.Profiles++
		case frameReadings:
			c.Readings++
		case frameEnd:
			c.Records, c.Events, c.Findings = len(b.meters), b.evidence[chain.KindEvent], b.evidence[chain.KindGuard]
			return c, nil
		}
		if err != nil {
			return c, fmt.Errorf("bundle: at byte %d: %w", f.size, err)
		}
	}
}

// String tells in words what is in the bundle and, plainly, what is not.
func (c *Contents) String() string {
	var b strings.Builder
	what := "everything that the ledger holds"
	if !c.Claim.All {
		what = "a part of what the ledger holds; rules, members, meters and attestations whole"
	}
	fmt.Fprintf(&b, "%d blocks with %d transactions; %s\n", c.Blocks, c.Txs, what)
	fmt.Fprintf(&b, "raw readings of %d of %d meter records, %d profiles to decode them\n", c.Readings, c.Records, c.Profiles)
	if n := c.Records - c.Readings; n > 0 {
		fmt.Fprintf(&b, "ABSENT: the raw readings of %d records; each gateway keeps only its own, as long as its disk allows\n", n)
	}
	fmt.Fprintf(&b, "%d device events, %d findings of the guard; clearing certificates are in the slots\n", c.Events, c.Findings)
	if c.Claim.First > 1 {
		fmt.Fprintf(&b, "ABSENT: blocks before %d\n", c.Claim.First)
	}
	return b.String()
}
