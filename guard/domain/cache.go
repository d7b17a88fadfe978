package domain

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Times of the cache, RFC 8767 and RFC 2308.
const (
	maxTTL      = 24 * time.Hour
	minTTL      = time.Second
	negativeTTL = 5 * time.Minute // at most, and when the answer says nothing
	maxStale    = 24 * time.Hour
	staleTTL    = 30 * time.Second // of an answer that is served stale
	staleAfter  = 1800 * time.Millisecond
)

// cache keeps answers. The least recently used goes first.
type cache struct {
	mu   sync.Mutex
	size int
	of   map[string]*list.Element
	use  *list.List // newest first
}

type answer struct {
	key     string
	msg     *dns.Msg // never changed
	at      time.Duration
	expires time.Duration
}

func newCache(size int) *cache {
	return &cache{size: size, of: map[string]*list.Element{}, use: list.New()}
}

// get returns a copy of the answer with what is left of its times to live,
// and whether it is fresh. One that is too old even to be stale is nil.
func (c *cache) get(key string, now time.Duration) (m *dns.Msg, fresh bool) {
	c.mu.Lock()
	e, ok := c.of[key]
	if !ok {
		c.mu.Unlock()
		return nil, false
	}
	a := e.Value.(answer)
	if now > a.expires+maxStale {
		c.use.Remove(e)
		delete(c.of, key)
		c.mu.Unlock()
		return nil, false
	}
	c.use.MoveToFront(e)
	c.mu.Unlock()
	m = a.msg.Copy()
	fresh = now < a.expires
	each(m, func(h *dns.RR_Header) {
		if left := time.Duration(h.Ttl)*time.Second - (now - a.at); fresh && left >= time.Second {
			h.Ttl = uint32(left / time.Second)
		} else if fresh {
			h.Ttl = 1
		} else {
			h.Ttl = uint32(staleTTL / time.Second)
		}
	})
	return m, fresh
}

// put keeps an answer, if it is one that may be kept.
func (c *cache) put(key string, m *dns.Msg, now time.Duration) {
	ttl, ok := lifetime(m)
	if !ok || c.size == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.of[key]; ok {
		c.use.Remove(e)
	} else if len(c.of) >= c.size {
		last := c.use.Back()
		delete(c.of, last.Value.(answer).key)
		c.use.Remove(last)
	}
	c.of[key] = c.use.PushFront(answer{key, m, now, now + ttl})
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.of)
}

// lifetime says how long an answer may be kept: the least of its records, or
// what the zone says about names it does not have.
func lifetime(m *dns.Msg) (time.Duration, bool) {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0, false
	}
	ttl := maxTTL
	if m.Rcode == dns.RcodeNameError || len(m.Answer) == 0 {
		ttl = negativeTTL
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				ttl = min(ttl, time.Duration(soa.Minttl)*time.Second)
			}
		}
	}
	each(m, func(h *dns.RR_Header) { ttl = min(ttl, time.Duration(h.Ttl)*time.Second) })
	return max(ttl, minTTL), true
}

// each calls fn for the records that have a time to live.
func each(m *dns.Msg, fn func(*dns.RR_Header)) {
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				fn(h)
			}
		}
	}
}
