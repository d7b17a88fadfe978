package live

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/joulegate/joulegate/board"
)

func TestWatcherStartsWithTheLatest(t *testing.T) {
	h := New()
	if _, ok := h.Latest(); ok {
		t.Fatal("a snapshot from nowhere")
	}
	h.Publish(board.Snapshot{Seq: 1})
	h.Publish(board.Snapshot{Seq: 2})
	w, err := h.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s := <-w; s.Seq != 2 {
		t.Fatalf("starts with %d", s.Seq)
	}
	h.Publish(board.Snapshot{Seq: 3})
	if s := <-w; s.Seq != 3 {
		t.Fatalf("then %d", s.Seq)
	}
	if s, ok := h.Latest(); !ok || s.Seq != 3 {
		t.Fatalf("latest %d, %t", s.Seq, ok)
	}
}

func TestSlowWatcherLosesTheOldestAndDelaysNobody(t *testing.T) {
	h := New()
	slow, _ := h.Watch(t.Context())
	fast, _ := h.Watch(t.Context())
	for i := uint64(1); i <= 10; i++ {
		h.Publish(board.Snapshot{Seq: i})
		if s := <-fast; s.Seq != i {
			t.Fatalf("the fast one got %d, want %d", s.Seq, i)
		}
	}
	for i := uint64(10 - QueueLen + 1); i <= 10; i++ {
		if s := <-slow; s.Seq != i {
			t.Fatalf("the slow one got %d, want %d", s.Seq, i)
		}
	}
	if h.Dropped() != 10-QueueLen {
		t.Errorf("%d dropped", h.Dropped())
	}
}

func TestWatchersAreBoundedAndLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		ctx, cancel := context.WithCancel(t.Context())
		var all []<-chan board.Snapshot
		for range MaxWatchers {
			w, err := h.Watch(ctx)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, w)
		}
		if _, err := h.Watch(ctx); !errors.Is(err, ErrTooMany) {
			t.Fatalf("one more: %v", err)
		}
		cancel()
		synctest.Wait()
		for _, w := range all {
			if _, open := <-w; open {
				t.Fatal("a channel stays open")
			}
		}
		h.Publish(board.Snapshot{Seq: 1}) // to nobody
		if _, err := h.Watch(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestPublishWhileWatchersComeAndGo(t *testing.T) {
	h := New()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				ctx, cancel := context.WithCancel(context.Background())
				w, err := h.Watch(ctx)
				for errors.Is(err, ErrTooMany) { // leaving takes a moment
					runtime.Gosched()
					w, err = h.Watch(ctx)
				}
				h.Publish(board.Snapshot{})
				<-w
				cancel()
			}
		})
	}
	wg.Wait()
}
