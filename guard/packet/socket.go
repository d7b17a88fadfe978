package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
)

// Size of the ring: at 100,000 small packets per second it holds a third of
// a second.
const (
	ringBlock   = 1 << 18
	ringBlocks  = 16
	ringTimeout = 20 // ms after which the kernel hands over a block that is not full
)

// wait is how long reading blocks at most, so that it can be ended.
const wait = 100 * time.Millisecond

// frames takes what a socket delivers; at is when it was captured.
type frames func(data []byte, wall int64, size int)

// socket is a packet socket on one interface.
type socket struct {
	fd    int
	ring  []byte // nil: frames are read one by one
	block int    // of the ring, to be read next
	link  layers.LinkType
	seen  uint64
	lost  uint64
	buf   []byte
}

// openSocket opens a ring on an interface, or without memory for one or
// support in the kernel a plain socket. It needs CAP_NET_RAW.
//
// pcapgo.EthernetHandle is not used as the fallback: closing it does not wake
// a read, so that nothing could end it.
func openSocket(name string, modbusPorts []uint16, plain bool) (_ *socket, why error, err error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("interface %s: %w", name, err)
	}
	// Protocol 0: nothing arrives before the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a packet socket: %w", err)
	}
	s := &socket{fd: fd}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.link, err = linkOf(fd, ifi.Index); err != nil {
		return nil, nil, fmt.Errorf("interface %s: %w", name, err)
	}
	program, err := filter(s.link == layers.LinkTypeRaw, modbusPorts)
	if err != nil {
		return nil, nil, err
	}
	if err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return nil, nil, fmt.Errorf("interface %s: attach the filter: %w", name, err)
	}
	why = errors.New("asked for")
	if !plain {
		why = s.mapRing()
	}
	if s.ring == nil {
		s.buf = make([]byte, snapModbus)
		// What the kernel grants is enough; root may have more.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
		if err = unix.SetNonblock(fd, true); err != nil {
			return nil, nil, fmt.Errorf("interface %s: %w", name, err)
		}
	}
	if err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index, Protocol: htons(unix.ETH_P_ALL)}); err != nil {
		return nil, nil, fmt.Errorf("interface %s: bind: %w", name, err)
	}
	return s, why, nil
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }

// linkOf tells what frames of an interface begin with.
func linkOf(fd, index int) (layers.LinkType, error) {
	// Bound to no protocol, nothing is received yet, but the kernel tells the
	// hardware type.
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		return 0, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	ll, ok := sa.(*unix.SockaddrLinklayer)
	if !ok {
		return 0, fmt.Errorf("address of type %T", sa)
	}
	switch ll.Hatype {
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		return layers.LinkTypeEthernet, nil
	case unix.ARPHRD_NONE, unix.ARPHRD_PPP, unix.ARPHRD_RAWIP:
		return layers.LinkTypeRaw, nil
	}
	return 0, fmt.Errorf("hardware type %d is not looked at: Ethernet, Wi-Fi, PPP and tunnels are", ll.Hatype)
}

// mapRing shares a ring of blocks with the kernel (TPACKET_V3).
func (s *socket) mapRing() error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("the kernel has no TPACKET_V3: %w", err)
	}
	const frame = 2048 // only a divisor: frames of any size share a block
	req := unix.TpacketReq3{Block_size: ringBlock, Block_nr: ringBlocks, Frame_size: frame, Frame_nr: ringBlock / frame * ringBlocks, Retire_blk_tov: ringTimeout}
	if err := unix.SetsockoptTpacketReq3(s.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("no memory for a ring: %w", err)
	}
	ring, err := unix.Mmap(s.fd, 0, ringBlock*ringBlocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	s.ring = ring
	return nil
}

func (s *socket) close() {
	if s.ring != nil {
		_ = unix.Munmap(s.ring)
		s.ring = nil
	}
	_ = unix.Close(s.fd)
}

// read hands on what has arrived, or waits for it a moment.
func (s *socket) read(take frames) error {
	if s.ring != nil {
		return s.readRing(take)
	}
	return s.readOne(take)
}

// poll waits until something arrived. It reports whether that is so.
func (s *socket) poll() (bool, error) {
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN | unix.POLLERR}}
	n, err := unix.Poll(fds, int(wait/time.Millisecond))
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("poll: %w", err)
	}
	if n > 0 && fds[0].Revents&unix.POLLERR != 0 {
		if code, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
			return false, unix.Errno(code)
		}
	}
	return n > 0, nil
}

// Offsets in the headers of TPACKET_V3 (linux/if_packet.h, struct
// tpacket3_hdr): next, sec, nsec, snaplen, len, status, mac.
const (
	hdrNext  = 0
	hdrSec   = 4
	hdrNsec  = 8
	hdrSnap  = 12
	hdrLen   = 16
	hdrMAC   = 24
	hdrBytes = 28
)

func (s *socket) readRing(take frames) error {
	b := s.ring[s.block*ringBlock : (s.block+1)*ringBlock]
	head := (*unix.TpacketHdrV1)(unsafe.Pointer(&b[8])) // after version and offset_to_priv
	// The kernel writes the status last, with a barrier; so do we.
	status := (*uint32)(unsafe.Pointer(&head.Block_status))
	if atomic.LoadUint32(status)&unix.TP_STATUS_USER == 0 {
		_, err := s.poll()
		return err
	}
	off := uint64(head.Offset_to_first_pkt)
	for range head.Num_pkts {
		if off+hdrBytes > ringBlock {
			return fmt.Errorf("a header at %d of a block of %d bytes", off, ringBlock)
		}
		p := b[off:]
		snap, mac := uint64(binary.NativeEndian.Uint32(p[hdrSnap:])), uint64(binary.NativeEndian.Uint16(p[hdrMAC:]))
		if mac+snap > uint64(len(p)) {
			return fmt.Errorf("a frame of %d bytes at %d of a block of %d", snap, off+mac, ringBlock)
		}
		wall := int64(binary.NativeEndian.Uint32(p[hdrSec:]))*1e9 + int64(binary.NativeEndian.Uint32(p[hdrNsec:]))
		s.seen++
		take(p[mac:mac+snap:mac+snap], wall, int(binary.NativeEndian.Uint32(p[hdrLen:])))
		off += uint64(binary.NativeEndian.Uint32(p[hdrNext:]))
	}
	atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
	s.block = (s.block + 1) % ringBlocks
	return nil
}

// readOne reads frames until there are none, but not for ever. How long a
// frame was that the filter cut, its IP header tells.
func (s *socket) readOne(take frames) error {
	if ready, err := s.poll(); !ready || err != nil {
		return err
	}
	for range 1024 {
		n, err := unix.Read(s.fd, s.buf)
		switch {
		case err == nil:
			s.seen++
			take(s.buf[:n:n], time.Now().UnixNano(), n)
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		default:
			return fmt.Errorf("read: %w", err)
		}
	}
	return nil
}

// count adds up what the kernel dropped since it was asked last.
func (s *socket) count() {
	if s.ring != nil {
		if st, err := unix.GetsockoptTpacketStatsV3(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			s.lost += uint64(st.Drops)
		}
		return
	}
	if st, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		s.lost += uint64(st.Drops)
	}
}
