package modbus

import (
	"errors"
	"fmt"
	"os"

	gm "github.com/goburrow/modbus"
)

// Reasons a caller may act on. They arrive wrapped in *Error.
var (
	// ErrTimeout: the slave did not answer in time, or not to the end.
	ErrTimeout = errors.New("no answer in time")
	// ErrFrame: what arrived is not a frame (checksum, length, header).
	ErrFrame = errors.New("bad frame")
	// ErrShort: the slave answered with fewer registers than were asked for.
	// Some do so to a read that is too long for them.
	ErrShort = errors.New("short answer")
	// ErrSuspect: an answer arrived that may belong to another request. It
	// was thrown away.
	ErrSuspect = errors.New("answer cannot be attributed")
	// ErrBackoff: the slave has been silent and is not asked at the moment.
	ErrBackoff = errors.New("slave is backed off")
	// ErrQueueFull: MaxQueue more urgent requests are waiting.
	ErrQueueFull = errors.New("line queue is full")
	// ErrLineDown: the adapter is gone or the host refuses; the line keeps
	// trying.
	ErrLineDown = errors.New("line is down")
	// ErrClosed: Run has ended.
	ErrClosed = errors.New("line is closed")
)

// Error is a failed request: which line, which device, which registers.
type Error struct {
	Line     string
	Device   string
	Unit     uint8
	Function uint8 // 1, 3, 4, 5, 6 or 16
	Address  uint16
	Count    uint16
	Err      error
}

func (e *Error) Error() string {
	verb := map[uint8]string{1: "read", 3: "read holding", 4: "read input", 5: "write", 6: "write", 16: "write"}[e.Function]
	name := ""
	if e.Device != "" {
		name = " (" + e.Device + ")"
	}
	what := fmt.Sprintf("registers %d..%d", e.Address, int(e.Address)+int(e.Count)-1)
	if e.Function == fnReadCoils || e.Function == fnWriteCoil {
		what = fmt.Sprintf("coil %d", e.Address)
	}
	return fmt.Sprintf("modbus %s unit %d%s: %s %s: %v", e.Line, e.Unit, name, verb, what, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Timeout reports whether the device was silent.
func (e *Error) Timeout() bool {
	return errors.Is(e.Err, ErrTimeout) || errors.Is(e.Err, os.ErrDeadlineExceeded)
}

// Garbled reports whether something came back that is no answer, or cannot be
// attributed.
func (e *Error) Garbled() bool { return errors.Is(e.Err, ErrFrame) || errors.Is(e.Err, ErrSuspect) }

// Short reports whether the device answered with fewer registers than were
// asked for: fewer should be.
func (e *Error) Short() bool { return errors.Is(e.Err, ErrShort) }

// Down reports whether the adapter is gone or the host unreachable.
func (e *Error) Down() bool { return errors.Is(e.Err, ErrLineDown) }

// Resting reports whether the device was not asked, because it has been
// silent.
func (e *Error) Resting() bool { return errors.Is(e.Err, ErrBackoff) }

// Exception returns the exception code with which the device refused, and
// whether it did (Modbus Application Protocol V1.1b3, 7): 1 illegal function,
// 2 illegal address, 3 illegal value, 4 device failure, 6 busy.
func (e *Error) Exception() (code uint8, ok bool) {
	var x *gm.ModbusError
	if errors.As(e.Err, &x) {
		return x.ExceptionCode, true
	}
	return 0, false
}

// Exception codes that a gateway sends in the name of a slave it cannot reach.
func gatewaySilence(err error) bool {
	var x *gm.ModbusError
	return errors.As(err, &x) && (x.ExceptionCode == gm.ExceptionCodeGatewayPathUnavailable ||
		x.ExceptionCode == gm.ExceptionCodeGatewayTargetDeviceFailedToRespond)
}
