package modbus

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// pending is one request between its caller and the owner goroutine.
type pending struct {
	ctx      context.Context
	dev      *device
	key      key
	values   []uint16 // of a write
	strict   bool     // must not be answered by a copy of an earlier answer
	class    Class
	deadline time.Time
	seq      uint64 // first come, first served among equals
	waits    int    // times it was put off
	done     chan result
}

type result struct {
	data []byte
	err  error
}

func (p *pending) finish(data []byte, err error) { p.done <- result{data, err} } // has room for one

func (p *pending) compare(o *pending) int {
	return cmp.Or(cmp.Compare(p.class, o.class), p.deadline.Compare(o.deadline), cmp.Compare(p.seq, o.seq))
}

// queue holds waiting requests, most urgent first: by class, then by
// deadline. It is not safe for concurrent use.
type queue struct {
	items []*pending
	seq   uint64
}

// push adds p. If that exceeds MaxQueue, the least urgent request leaves and
// is returned.
func (q *queue) push(p *pending) (evicted *pending) {
	if p.seq == 0 {
		q.seq++
		p.seq = q.seq
	}
	i, _ := slices.BinarySearchFunc(q.items, p, (*pending).compare)
	q.items = slices.Insert(q.items, i, p)
	if n := len(q.items); n > MaxQueue {
		evicted = q.items[n-1]
		q.items = q.items[:n-1]
	}
	return evicted
}

// remove takes the request at i out of the queue.
func (q *queue) remove(i int) { q.items = slices.Delete(q.items, i, i+1) }
