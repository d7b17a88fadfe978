package packet

import (
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Bytes of a frame that are copied out of the kernel.
const (
	snapARP    = 64
	snapBulk   = 2304    // UDP, and whatever is not TCP
	snapTCP    = 4096    // a ClientHello that the network card has joined
	snapModbus = 1 << 16 // many requests may be joined, and all count
)

// filter lets the kernel drop what no detector looks at and cut what is long:
// the bodies of video and downloads are never copied. Of segments that it
// cuts, the length is known all the same.
func filter(raw bool, modbusPorts []uint16) ([]unix.SockFilter, error) {
	link := uint32(14)
	if raw {
		link = 0
	}
	type label string
	// A jump names where it goes; numbers are filled in afterwards, because
	// a classic BPF jump counts instructions.
	type step struct {
		at     label
		ins    bpf.Instruction
		yes    label // of a conditional jump, "": the next
		no     label
		target label // of an unconditional one
	}
	var prog []step
	do := func(ins bpf.Instruction) { prog = append(prog, step{ins: ins}) }
	test := func(v uint32, yes, no label) {
		prog = append(prog, step{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: v}, yes: yes, no: no})
	}
	mark := func(l label, ins bpf.Instruction) { prog = append(prog, step{at: l, ins: ins}) }

	if raw {
		do(bpf.LoadAbsolute{Off: 0, Size: 1})
		do(bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4})
		test(4, "ip4", "")
		test(6, "ip6", "drop")
	} else {
		do(bpf.LoadAbsolute{Off: 12, Size: 2})
		test(0x0800, "ip4", "")
		test(0x86dd, "ip6", "")
		test(0x0806, "arp", "")
		test(0x8100, "bulk", "") // a tag that the card has left in
		test(0x88a8, "bulk", "drop")
	}
	ports := func(load func(off uint32) bpf.Instruction) {
		for _, off := range []uint32{0, 2} {
			do(load(off))
			for _, p := range modbusPorts {
				test(uint32(p), "modbus", "")
			}
		}
		prog = append(prog, step{ins: bpf.Jump{}, target: "tcp"})
	}
	mark("ip4", bpf.LoadAbsolute{Off: link + 9, Size: 1})
	test(unix.IPPROTO_TCP, "", "bulk")
	do(bpf.LoadMemShift{Off: link})
	ports(func(off uint32) bpf.Instruction { return bpf.LoadIndirect{Off: link + off, Size: 2} })
	mark("ip6", bpf.LoadAbsolute{Off: link + 6, Size: 1})
	test(unix.IPPROTO_TCP, "", "bulk")
	ports(func(off uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: link + 40 + off, Size: 2} })
	mark("arp", bpf.RetConstant{Val: snapARP})
	mark("bulk", bpf.RetConstant{Val: snapBulk})
	mark("tcp", bpf.RetConstant{Val: snapTCP})
	mark("modbus", bpf.RetConstant{Val: snapModbus})
	mark("drop", bpf.RetConstant{Val: 0})

	where := map[label]int{}
	for i, s := range prog {
		if s.at != "" {
			where[s.at] = i
		}
	}
	skip := func(i int, l label) int {
		if l == "" {
			return 0
		}
		return where[l] - i - 1
	}
	out := make([]bpf.Instruction, len(prog))
	for i, s := range prog {
		switch ins := s.ins.(type) {
		case bpf.JumpIf:
			yes, no := skip(i, s.yes), skip(i, s.no)
			if yes > 255 || no > 255 {
				return nil, fmt.Errorf("%d Modbus ports: too many for a filter in the kernel", len(modbusPorts))
			}
			ins.SkipTrue, ins.SkipFalse = uint8(yes), uint8(no)
			out[i] = ins
		case bpf.Jump:
			ins.Skip = uint32(skip(i, s.target))
			out[i] = ins
		default:
			out[i] = ins
		}
	}
	assembled, err := bpf.Assemble(out)
	if err != nil {
		return nil, fmt.Errorf("assemble the filter: %w", err)
	}
	program := make([]unix.SockFilter, len(assembled))
	for i, ins := range assembled {
		program[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	return program, nil
}
