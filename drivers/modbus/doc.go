// Package modbus is the line between this gateway and its meters, inverters
// and wallboxes: Modbus RTU on a serial device, Modbus TCP, and RTU frames
// through a serial-to-Ethernet bridge.
//
//	caller ──┐                         ┌─ unit 1
//	caller ──┼─ queue ─ owner ─ line ──┼─ unit 2
//	caller ──┘                         └─ unit 3
//
// A line carries one request at a time. One goroutine owns it (Line.Run); it
// takes the most urgent request, by class and then by deadline, keeps the
// silences that the standard and the slaves want, and hands the answer back.
// goburrow/modbus makes and reads the protocol data units; the transporter
// below it is this package's.
//
//	line, err := modbus.New(modbus.Config{Device: "/dev/ttyUSB0", Baud: 9600})
//	...
//	go line.Run(ctx)
//	grid := line.Device(modbus.DeviceConfig{Unit: 1, Name: "grid", Class: modbus.Fast})
//	data, err := grid.ReadRegisters(ctx, drivers.InputRegisters, 0x34, 2)
//
// # An answer belongs to its question
//
// An RTU answer to a read carries unit, function, length and checksum, but
// not the address that was asked. A client that gives up on request A and
// then sends B of the same length takes A's late answer for B's, without any
// error, and stays one behind for ever after: import is billed as export.
//
// This package returns a value only if it is the answer to its request. It
// relies on two properties of what is at the other end, and on the checksum:
//
//  1. Order. A unit, or the bridge before it, answers each request at most
//     once and in the order of the requests, however late.
//  2. Copies. Something on the way may repeat a frame, byte for byte, within
//     one time-out after the original.
//
// Both are kept by a guard per unit, which remembers what may still arrive:
//
//   - Requests without a trusted answer are open. While any is, nothing else
//     is asked of the unit but a fence: first silence for the learned longest
//     time to an answer, then a read of a length (or function) that no open
//     request and no recent frame has. Only the slave's answer to the fence
//     can fit it. When it comes, property 1 says that whatever was asked
//     before has been answered by then, and thrown away, or never will be. If
//     it does not come the fence is open itself, and the next one differs from
//     it too or, where the device is known to answer few reads, is the same
//     again: its answer settles what came before the first of them, and one
//     more fence settles the others. So a late answer never meets a request
//     that it fits, whatever the delay; the silence only spares collisions.
//   - An answer that fits is compared with all frames of the last time-out.
//     New bytes cannot be a copy, so they are the answer; and, by property 1,
//     nothing older can follow. If a frame for another request had the same
//     bytes, by chance or because this is a copy of it, the answer is not
//     used: a longer read of the same registers, which is a fence as well,
//     takes its place, or the request is sent again when no copy can come any
//     more. If a frame for the very same read had the same bytes, the value
//     is right either way, but an answer may still be under way: the request
//     is in doubt, and a fence precedes the next one that could be mistaken
//     for it. A write is not confirmed by bytes that confirmed one before.
//   - An exception names only its function. It is believed only if no other
//     request of that function is open or in doubt, else its request is made
//     again behind a fence; and it puts its request in doubt if another one
//     drew the same a moment ago. A scan, which is
//     refused time and again, also takes a refusal that may have been meant
//     for a request in doubt.
//   - Frames of other units, of other lengths, bytes after an answer and our
//     own echo are recognised as what they are. Before function 6 is used,
//     whose answer equals its own echo, a read finds out whether there is one.
//
// A regular answer with too few registers, while nothing else can be under way,
// is reported as ErrShort once the time for the right one has passed: the
// device cannot answer so many. Its registers are never used.
//
// Writes have a second way. If a confirmation is damaged, or a caller wants to
// be sure, the registers are read back: behind the fence, and by an answer that
// is no copy of one from before the write.
//
// Any error opens the request it happened to, so truncated and garbled
// answers take the same way. Open requests outlive the loss of the adapter.
// After opening a line it is first listened to until silent, because an
// earlier process may have asked. What remains is what the checksum cannot
// see: one in 65536 of the garbled frames whose unit, function and length
// happen to fit.
//
// Modbus TCP needs none of this: answers carry a transaction id, which this
// package numbers per line and compares. Foreign ids are dropped.
//
// # Silent slaves
//
// How long a slave takes is learned. One that is known to be quick is given
// four times its longest time to an answer, at least two fifths of its
// time-out; after a failure, and for Safety, the whole.
//
// After three failures in a row a slave is silent: requests to it fail at
// once with ErrBackoff, and it is asked again after 1, 2, 4 .. 60 s, with
// jitter. All silent slaves together are given at most one probe at a time
// and a thirtieth of the line's time.
package modbus
