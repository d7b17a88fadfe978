package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The process connector is a multicast group of netlink (linux/cn_proc.h,
// linux/connector.h). A message is a netlink header, a connector header and an
// event:
//
//	nlmsghdr 16 │ idx val seq ack 16, len flags 4 │ what cpu 8, time 8, data
const (
	connectorProc = 1          // CN_IDX_PROC and CN_VAL_PROC
	listen        = 1          // PROC_CN_MCAST_LISTEN
	eventAck      = 0          // PROC_EVENT_NONE
	eventExec     = 0x00000002 // PROC_EVENT_EXEC

	sizeHeader    = unix.SizeofNlMsghdr
	sizeConnector = 20
	sizeEvent     = 16
)

// event is one of the connector's.
type event struct {
	what uint32
	cpu  uint32
	seq  uint32 // per CPU
	pid  uint32 // of the process; of eventAck, an errno
}

var errConnector = errors.New("malformed message of the process connector")

// decodeConnector reads the messages of a datagram and gives each to take.
func decodeConnector(b []byte, take func(event)) error {
	for len(b) > 0 {
		if len(b) < sizeHeader {
			return fmt.Errorf("%w: %d bytes", errConnector, len(b))
		}
		n := int(order.Uint32(b))
		if n < sizeHeader || n > len(b) {
			return fmt.Errorf("%w: %d bytes of %d", errConnector, n, len(b))
		}
		kind, body := order.Uint16(b[4:]), b[sizeHeader:n]
		b = b[min(len(b), (n+3)&^3):]
		if kind == unix.NLMSG_NOOP || kind == unix.NLMSG_ERROR {
			continue
		}
		if len(body) < sizeConnector+sizeEvent+8 {
			return fmt.Errorf("%w: an event of %d bytes", errConnector, len(body))
		}
		if order.Uint32(body) != connectorProc || order.Uint32(body[4:]) != connectorProc {
			continue
		}
		e := event{seq: order.Uint32(body[8:])}
		body = body[sizeConnector:]
		e.what, e.cpu = order.Uint32(body), order.Uint32(body[4:])
		switch body = body[sizeEvent:]; e.what {
		case eventExec:
			e.pid = order.Uint32(body[4:]) // tgid
		case eventAck:
			e.pid = order.Uint32(body)
		}
		take(e)
	}
	return nil
}

// maxCPUs whose messages are counted to notice gaps.
const maxCPUs = 1024

type connectorSource struct {
	fd     int
	proc   *procFS
	missed atomic.Uint64
	seqs   map[uint32]uint32 // by CPU
}

func newConnectorSource(p *procFS) (source, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_CONNECTOR)
	if err != nil {
		return nil, fmt.Errorf("the kernel has no connector: %w", err)
	}
	s := &connectorSource{fd: fd, proc: p, seqs: map[uint32]uint32{}}
	if err := s.subscribe(); err != nil {
		unix.Close(fd)
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w: needs CAP_NET_ADMIN in the first namespaces", err)
		}
		return nil, fmt.Errorf("process connector: %w", err)
	}
	return s, nil
}

// subscribe joins the group and waits until the kernel says that it tells.
func (s *connectorSource) subscribe() error {
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: connectorProc}); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	m := make([]byte, sizeHeader+sizeConnector+4)
	order.PutUint32(m, uint32(len(m)))
	order.PutUint16(m[4:], unix.NLMSG_DONE)
	c := m[sizeHeader:]
	order.PutUint32(c, connectorProc)
	order.PutUint32(c[4:], connectorProc)
	order.PutUint16(c[16:], 4)
	order.PutUint32(c[sizeConnector:], listen)
	if err := unix.Sendto(s.fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	answer := errors.New("no answer; the kernel was built without CONFIG_PROC_EVENTS, or this is a container")
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until); {
		ready, err := s.wait(200 * time.Millisecond)
		if err != nil {
			return err
		}
		if !ready {
			continue
		}
		done := false
		if err := s.receive(make([]byte, 16<<10), func(e event) {
			if e.what == eventAck {
				if done, answer = true, nil; e.pid != 0 {
					answer = unix.Errno(e.pid)
				}
			}
		}); err != nil {
			return err
		}
		if done {
			break
		}
	}
	return answer
}

func (s *connectorSource) wait(d time.Duration) (bool, error) {
	p := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, int(d.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return n > 0, err
}

// receive reads a datagram. One that did not fit is noticed as a gap.
func (s *connectorSource) receive(buf []byte, take func(event)) error {
	n, from, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.ENOBUFS):
		s.missed.Add(1) // at least; the gap is counted when it is known
		return nil
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return os.NewSyscallError("recvfrom", err)
	}
	if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 { // only the kernel is believed
		return nil
	}
	if err := decodeConnector(buf[:n], take); err != nil {
		s.missed.Add(1)
	}
	return nil
}

// maxFilled execs wait to be judged; then they are lost and counted.
const maxFilled = 1024

// run reads what /proc knows at once, before it is gone, and judges later.
func (s *connectorSource) run(ctx context.Context, take func(*Exec)) error {
	filled := make(chan *Exec, maxFilled)
	var judge sync.WaitGroup
	judge.Go(func() {
		for x := range filled {
			take(x)
		}
	})
	defer judge.Wait()
	defer close(filled)
	buf := make([]byte, 16<<10)
	for ctx.Err() == nil {
		ready, err := s.wait(100 * time.Millisecond)
		if err != nil {
			return err
		}
		if !ready {
			continue
		}
		if err := s.receive(buf, func(e event) {
			s.count(e)
			if e.what != eventExec {
				return
			}
			x := &Exec{ID: ID{PID: int(e.pid)}}
			if !s.proc.fill(x) {
				s.missed.Add(1) // it ran, and nobody knows what
				return
			}
			select {
			case filled <- x:
			default:
				s.missed.Add(1)
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// count notices what the kernel could not deliver: every CPU counts its own
// messages. Not all of these were execs.
func (s *connectorSource) count(e event) {
	if e.cpu >= maxCPUs || e.what == eventAck {
		return
	}
	if last, ok := s.seqs[e.cpu]; ok && e.seq != last+1 {
		if gap := e.seq - last - 1; gap < 1<<31 {
			s.missed.Add(uint64(gap))
		}
	}
	s.seqs[e.cpu] = e.seq
}

func (s *connectorSource) lost() uint64 { return s.missed.Load() }
func (s *connectorSource) close()       { unix.Close(s.fd) }
