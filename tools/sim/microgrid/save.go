package microgrid

import (
	"encoding/json"
	"os"
)

// Save writes a violation with what replays it, to be looked at.
func Save(path string, cfg Config, v *Violation) error {
	b, err := json.MarshalIndent(struct {
		Seed     uint64   `json:"seed"`
		Homes    int      `json:"homes"`
		Cars     int      `json:"cars"`
		Faults   float64  `json:"faults"`
		Height   int64    `json:"height"`
		TimeMs   int64    `json:"time_ms"`
		Findings []string `json:"findings"`
		Txs      [][]byte `json:"txs"`
	}{cfg.Seed, cfg.Homes, cfg.Cars, cfg.Faults, v.Block.Height, v.Block.TimeMs, v.Findings, v.Block.Txs}, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}
