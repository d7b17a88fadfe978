package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/cometbft/cometbft/libs/log"
)

// cometLog passes CometBFT's log lines to slog. CometBFT tells every step of
// every round at Info and every failed send at Error; both are Debug here. What
// a person should see of a block is logged by this package itself.
type cometLog struct {
	to      *slog.Logger
	quiet   bool // a network module: its errors are ordinary life
	failure func(reason string)
}

// newCometLog returns the adapter. failure is called, once per line, when
// consensus stopped because of an unexpected state.
func newCometLog(to *slog.Logger, failure func(reason string)) log.Logger {
	return &cometLog{to: to, failure: failure}
}

const consensusFailure = "CONSENSUS FAILURE!!!"

func (l *cometLog) Debug(string, ...any)       {} // thousands of lines a second
func (l *cometLog) Info(msg string, kv ...any) { l.write(slog.LevelDebug, msg, kv) }
func (l *cometLog) Warn(msg string, kv ...any) { l.write(slog.LevelInfo, msg, kv) }
func (l *cometLog) With(kv ...any) log.Logger  { return l.with(kv) }
func (l *cometLog) Error(msg string, kv ...any) {
	if msg == consensusFailure {
		l.write(slog.LevelError, "consensus stopped", kv)
		l.failure(reasonOf(kv))
		return
	}
	lv := slog.LevelWarn
	if l.quiet || benign[msg] || strings.HasPrefix(msg, notStarted) {
		lv = slog.LevelDebug
	}
	l.write(lv, msg, kv)
}

// benign are errors that mean nothing went wrong here.
var benign = map[string]bool{
	"Error stopping consensus state": true, // stopped while still in block sync
	"Error stopping pool":            true, // block sync had finished
}

const notStarted = "Not stopping " // so begins the warning of a service that never ran

func reasonOf(kv []any) string {
	for i := 0; i+1 < len(kv); i += 2 {
		if kv[i] == "err" {
			return fmt.Sprint(kv[i+1])
		}
	}
	return "unknown reason"
}

func (l *cometLog) with(kv []any) log.Logger {
	c := *l
	for i := 0; i+1 < len(kv); i += 2 {
		if kv[i] == "module" && (kv[i+1] == "p2p" || kv[i+1] == "mempool" || kv[i+1] == "blocksync") {
			c.quiet = true
		}
	}
	c.to = l.to.With(attrs(kv)...)
	return &c
}

func (l *cometLog) write(level slog.Level, msg string, kv []any) {
	if ctx := context.Background(); l.to.Enabled(ctx, level) {
		l.to.Log(ctx, level, msg, attrs(kv)...)
	}
}

// attrs gives attributes this project's names. Values that format themselves
// lazily are formatted here.
func attrs(kv []any) []any {
	out := make([]any, 0, len(kv)+1)
	for i := 0; i+1 < len(kv); i += 2 {
		k, v := fmt.Sprint(kv[i]), kv[i+1]
		if k == "peer_id" {
			k = "peer"
		}
		if s, ok := v.(fmt.Stringer); ok {
			v = s.String()
		}
		out = append(out, k, v)
	}
	return out
}
