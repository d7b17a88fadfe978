package p2p

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// PeerInfo is one peer: connected, or in the address book and missed.
type PeerInfo struct {
	ID        peer.ID   `json:"id"`
	Key       [32]byte  `json:"-"` // device key
	Addrs     []string  `json:"addrs"`
	Connected bool      `json:"connected"`
	Guest     bool      `json:"guest,omitempty"`
	Since     time.Time `json:"since"`               // connected or missed since
	Direction string    `json:"direction,omitempty"` // "in" (it dialled) or "out"
}

// Peers lists connected peers and those of the book that are missed, by id.
func (n *Node) Peers() []PeerInfo {
	var out []PeerInfo
	seen := map[peer.ID]bool{}
	for _, c := range n.inner.Network().Conns() {
		id := c.RemotePeer()
		if seen[id] {
			continue
		}
		seen[id] = true
		_, guest := n.gate.guestSince(id)
		p := PeerInfo{ID: id, Addrs: []string{c.RemoteMultiaddr().String()}, Connected: true, Guest: guest, Since: c.Stat().Opened, Direction: "out"}
		p.Key, _ = KeyOf(id)
		if c.Stat().Direction == network.DirInbound {
			p.Direction = "in"
		}
		out = append(out, p)
	}
	book := n.book()
	n.mu.Lock()
	for id, info := range book {
		if seen[id] {
			continue
		}
		p := PeerInfo{ID: id, Since: n.missed[id].since}
		p.Key, _ = KeyOf(id)
		for _, a := range info.Addrs {
			p.Addrs = append(p.Addrs, a.String())
		}
		out = append(out, p)
	}
	n.mu.Unlock()
	slices.SortFunc(out, func(a, b PeerInfo) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// KeyOf returns the Ed25519 device key that a peer id carries.
func KeyOf(id peer.ID) ([32]byte, error) {
	pub, err := id.ExtractPublicKey()
	if err != nil {
		return [32]byte{}, fmt.Errorf("p2p: peer id %s: %w", id, err)
	}
	raw, err := pub.Raw()
	if err != nil || pub.Type() != crypto.Ed25519 || len(raw) != ed25519.PublicKeySize {
		return [32]byte{}, fmt.Errorf("p2p: peer id %s does not carry an Ed25519 key", id)
	}
	return [32]byte(raw), nil
}

// PeerIDOf returns the peer id of a device key.
func PeerIDOf(key [32]byte) (peer.ID, error) {
	pub, err := crypto.UnmarshalEd25519PublicKey(key[:])
	if err != nil {
		return "", fmt.Errorf("p2p: device key %x: %w", key[:4], err)
	}
	return peer.IDFromPublicKey(pub)
}

// AddrInfo makes an address book entry. A trailing /p2p/ID must name the same
// peer.
func AddrInfo(key [32]byte, addrs []string) (peer.AddrInfo, error) {
	id, err := PeerIDOf(key)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	info := peer.AddrInfo{ID: id}
	for _, s := range addrs {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return peer.AddrInfo{}, fmt.Errorf("p2p: address %q of %s: %w", s, id, err)
		}
		a, last := peer.SplitAddr(a)
		if last != "" && last != id {
			return peer.AddrInfo{}, fmt.Errorf("p2p: address %q belongs to another peer than %s", s, id)
		}
		if a != nil {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info, nil
}
