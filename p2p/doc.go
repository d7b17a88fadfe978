// Package p2p carries bytes between the gateways of one microgrid: gossip,
// requests with one reply, and a libp2p host on which the consensus engine
// opens streams of its own. It knows nothing of blocks or ledgers.
//
//	      private network key (PSK)     strangers end here, before any handshake
//	                │
//	       Noise: who is it?            a peer's id is its Ed25519 device key
//	                │
//	   gate: Allow(id)? Guest(id)?      membership, asked again on every Recheck
//	                │
//	    ┌───────────┼─────────────┐
//	 topics      requests      Host()
//	(gossip)   (one reply)   (consensus)
//
// # Members and guests
//
// A member may use everything. A guest holds the private network key, is not
// a member, and reaches only the protocols registered with HandleGuest: that
// is how a new gateway redeems its invitation. Every other protocol on the
// host, those of the consensus engine included, resets a guest's stream.
// Guests are few (MaxGuests) and short (GuestLifetime).
//
// # Healing
//
// Multicast discovery alone does not mend a cut network. The address book,
// which comes from the ledger, is redialled every RedialEvery with the dial
// back-off cleared, and a silent connection is given up after two keep-alive
// periods. The peer with the lower id dials at once, the other only when it has
// waited, so that two peers do not end up with two connections.
//
// # Example
//
//	n, err := p2p.New(p2p.Config{Key: key, PSK: psk, Listen: addrs, Allow: ledger.IsMember, Book: ledger.Book, Log: log})
//	n.Subscribe("joulegate/blocks", func(ctx context.Context, from peer.ID, data []byte) p2p.Verdict { ... })
//	n.Handle("/joulegate/journal/1", 64<<10, journal.Serve)
//	err = n.Run(ctx) // connects, redials, returns when all is closed
package p2p
