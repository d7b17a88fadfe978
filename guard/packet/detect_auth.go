package packet

import (
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Thresholds of failed logins from one host to one server within the span.
// SSH's are guessed from their shape, and need more.
const (
	guesses    = 8
	guessesSSH = 20
	guessSpan  = 5 * time.Minute
)

// authDetector counts failed logins.
type authDetector struct {
	failed *table[window]
}

func newAuth(r Rules) *authDetector {
	return &authDetector{newTable[window](1024>>r.shrink, r.Seed)}
}

func (*authDetector) name() string { return "auth" }
func (*authDetector) wants() kind  { return isLogin }

func (d *authDetector) step(e *Event, out *sink) {
	if e.login.ok {
		return
	}
	w, fresh := d.failed.at(pair{e.client(), e.server(), e.serverPort()}.hash(d.failed.seed), e.At)
	if fresh {
		*w = window{}
	}
	limit := uint32(guesses)
	if e.login.protocol == "ssh" {
		limit = guessesSSH
	}
	n, _ := w.add(e.At, guessSpan)
	count := uint64(1)
	switch {
	case n < limit:
		return
	case n == limit:
		count = uint64(limit)
	}
	out.find(e, guard.AuthBruteForce, guard.Medium, host(e.client()), count).
		text("protocol", e.login.protocol).addr("server", e.server()).num("port", uint64(e.serverPort()))
}
