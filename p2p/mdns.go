package p2p

import (
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
)

// runMDNS announces this node on its links and collects hints. The service
// cannot start while there is no address and does not notice new ones, so it
// is restarted whenever the addresses change.
func (n *Node) runMDNS(ctx context.Context) {
	tick := time.NewTicker(RedialEvery)
	defer tick.Stop()
	var service mdns.Service
	stop := func() {
		if service != nil {
			_ = service.Close()
			service = nil
		}
	}
	defer stop()
	announced := ""
	for {
		if now := fmt.Sprint(n.inner.Addrs()); now != announced || service == nil {
			stop()
			s := mdns.NewMdnsService(n.inner, n.cfg.MDNS, hinter{n})
			if err := s.Start(); err != nil {
				n.log.Debug("mdns not started", "err", err)
				_ = s.Close()
			} else {
				service, announced = s, now
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

type hinter struct{ n *Node }

// HandlePeerFound keeps the newest hint of each member; anybody can send one.
func (h hinter) HandlePeerFound(info peer.AddrInfo) {
	if !h.n.member(info.ID) || len(info.Addrs) > 16 {
		return
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if _, known := h.n.hints[info.ID]; known || len(h.n.hints) < MaxBook {
		h.n.hints[info.ID] = info
	}
}
