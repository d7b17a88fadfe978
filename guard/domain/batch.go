package domain

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many datagrams one call to the kernel takes in or sends.
// Its way in and out costs more than to look a name up.
const batchSize = 32

// batch reads questions from a socket and sends answers back, many at a time
// (recvmmsg and sendmmsg). It is not safe for concurrent use; two of them may
// share a socket.
type batch struct {
	conn    syscall.RawConn
	in, out [batchSize]message
	iov     [batchSize]unix.Iovec
	from    [batchSize]unix.RawSockaddrInet6 // also holds the shorter one of IPv4
	buf     [batchSize][udpBuffer]byte
	answers int // in out

	read, write func(fd uintptr) bool // for conn, made once
	n           int                   // that read took in
	err         error                 // of read
}

// message is the kernel's struct mmsghdr.
type message struct {
	unix.Msghdr
	n uint32
}

func newBatch(u *net.UDPConn) (*batch, error) {
	conn, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &batch{conn: conn, n: batchSize}
	b.read, b.write = b.recv, b.send
	return b, nil
}

// questions waits for datagrams and returns how many there are.
func (b *batch) questions() (int, error) {
	for i := range b.n { // as far as it was used
		b.iov[i].Base = &b.buf[i][0]
		b.iov[i].SetLen(udpBuffer - answerRoom)
		m := &b.in[i].Msghdr
		m.Name, m.Namelen, m.Iov = (*byte)(unsafe.Pointer(&b.from[i])), uint32(unsafe.Sizeof(b.from[i])), &b.iov[i]
		m.SetIovlen(1)
	}
	b.answers = 0
	if err := b.conn.Read(b.read); err != nil {
		return 0, err
	}
	return b.n, b.err
}

// recv is called by the runtime whenever there may be something to read.
func (b *batch) recv(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.n, b.err = int(n), nil
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			b.n, b.err = 0, os.NewSyscallError("recvmmsg", errno)
			return true
		}
	}
}

// question returns the i-th datagram and who sent it. There is room for
// answerRoom bytes behind it.
func (b *batch) question(i int) ([]byte, netip.AddrPort) {
	return b.buf[i][:b.in[i].n], addrPortOf(&b.from[i])
}

// answer has the sender of the i-th datagram get what now stands in its place.
func (b *batch) answer(i int, text []byte) {
	b.iov[i].Base = &text[0]
	b.iov[i].SetLen(len(text))
	b.out[b.answers].Msghdr = b.in[i].Msghdr
	b.answers++
}

// flush sends the answers. What the kernel does not take is lost, as datagrams
// are.
func (b *batch) flush() error {
	if b.answers == 0 {
		return nil
	}
	return b.conn.Write(b.write)
}

func (b *batch) send(fd uintptr) bool {
	for sent := 0; sent < b.answers; {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out[sent])), uintptr(b.answers-sent), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errors.Is(errno, unix.EINTR):
		case errno != 0:
			sent++ // this one cannot be sent; the next may go elsewhere
		default:
			sent += int(n)
		}
	}
	return true
}

// addrPortOf reads a socket address (man 7 ip, man 7 ipv6).
func addrPortOf(a *unix.RawSockaddrInet6) netip.AddrPort {
	if a.Family == unix.AF_INET {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), portOf(four.Port))
	}
	addr := netip.AddrFrom16(a.Addr)
	if a.Scope_id != 0 {
		addr = addr.WithZone(strconv.FormatUint(uint64(a.Scope_id), 10))
	}
	return netip.AddrPortFrom(addr, portOf(a.Port))
}

// portOf reads a port in the network's order.
func portOf(p uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return uint16(b[0])<<8 | uint16(b[1])
}
