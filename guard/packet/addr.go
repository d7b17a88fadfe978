package packet

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
)

// Addr is an IP address, IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2): two
// words, which compare and hash faster than a netip.Addr.
type Addr struct{ hi, lo uint64 }

const mapped = 0xffff << 32

func addr4(b []byte) Addr { return Addr{lo: mapped | uint64(binary.BigEndian.Uint32(b))} }

func addr16(b []byte) Addr {
	return Addr{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// addrOf converts an address; the zone is lost.
func addrOf(a netip.Addr) Addr { b := a.As16(); return addr16(b[:]) }

// Netip converts the address back.
func (a Addr) Netip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b).Unmap()
}

func (a Addr) String() string { return a.Netip().String() }

func (a Addr) isZero() bool { return a == Addr{} || a == Addr{lo: mapped} }

// isV4 returns the address as a number when it is IPv4.
func (a Addr) isV4() (uint32, bool) { return uint32(a.lo), a.hi == 0 && a.lo>>32 == 0xffff }

// private tells whether the address is of this machine or of a local network
// (RFC 1918, 3927, 4193, 4291, 6598).
func (a Addr) private() bool {
	if v, ok := a.isV4(); ok {
		return v>>24 == 10 || v>>24 == 127 || v>>20 == 0xac1 || v>>16 == 0xc0a8 || v>>16 == 0xa9fe || v>>22 == 0x6440>>6
	}
	return a.hi>>57 == 0xfc>>1 || a.hi>>54 == 0xfe80>>6 || a == Addr{lo: 1}
}

// unicast tells whether the address names one host.
func (a Addr) unicast() bool {
	if a.isZero() {
		return false
	}
	if v, ok := a.isV4(); ok {
		return v>>28 != 0xe && v != 0xffffffff
	}
	return a.hi>>56 != 0xff
}

// MAC is a hardware address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

func (m MAC) word() uint64 {
	return uint64(binary.BigEndian.Uint32(m[:4]))<<16 | uint64(binary.BigEndian.Uint16(m[4:]))
}

var broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// unicast tells whether the address names one interface.
func (m MAC) unicast() bool { return m != MAC{} && m[0]&1 == 0 }

// mix is the step of wyhash: cheap, and with a secret seed nobody finds keys
// that share a place.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xe7037ed1a0b428db)
	return hi ^ lo
}

// spread makes a digest of a hash; its low bit keeps it from being zero.
func spread(h, w uint64) digest { return digest{h, mix(h^w, 0x8ebc6af09c88c6e3) | 1} }

func (a Addr) hash(seed uint64) digest { return spread(mix(a.hi^seed, a.lo), a.lo+a.hi) }

func (m MAC) hash(seed uint64) digest { return spread(mix(m.word(), seed), m.word()) }

// pair is two hosts and a port or another number, in that order.
type pair struct {
	a, b Addr
	n    uint16
}

func (p pair) hash(seed uint64) digest {
	a, b := mix(p.a.hi^seed, p.a.lo), mix(p.b.hi^uint64(p.n)^seed>>1, p.b.lo)
	return spread(mix(a, b), a+b<<1)
}

// hostPort is a host and a port.
type hostPort struct {
	addr Addr
	port uint16
}

func (h hostPort) hash(seed uint64) digest { return pair{h.addr, Addr{}, h.port}.hash(seed) }

// digestOf hashes a name with a seed, to 128 bits: two names do not meet.
func digestOf(seed uint64, name []byte) digest {
	d := digest{seed, mix(seed, uint64(len(name)))}
	for len(name) >= 8 {
		d = d.add(binary.LittleEndian.Uint64(name))
		name = name[8:]
	}
	var rest uint64
	for i, c := range name {
		rest |= uint64(c) << (8 * i)
	}
	return d.add(rest)
}

func (d digest) add(w uint64) digest {
	return digest{mix(d.a^w, 0xa0761d6478bd642f), mix(d.b^w, d.a)}
}
