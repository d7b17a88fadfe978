package process

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// The programs below run in the kernel. They are written as instructions, so
// that neither a compiler nor kernel headers are needed anywhere, and are the
// same on every processor: they use helpers only, and no register of a CPU.
//
// R7 is always the record that is being written, one per CPU.

// ptr is how many bytes a pointer has.
const ptr = int32(unsafe.Sizeof(uintptr(0)))

var ptrSize = map[int32]asm.Size{4: asm.Word, 8: asm.DWord}[ptr]

// scratch is where on the stack a pointer is read to.
const scratch = -16

// writer makes instructions.
type writer struct{ asm.Instructions }

func (w *writer) add(ins ...asm.Instruction) { w.Instructions = append(w.Instructions, ins...) }

// begin fetches this CPU's record and fills in what every kind has.
func (w *writer) begin(records int, kind int64) {
	w.add(
		asm.StoreImm(asm.R10, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, records),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.StoreImm(asm.R7, offKind, kind, asm.Word),
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.StoreMem(asm.R7, offTGID, asm.R0, asm.Word),
		asm.FnGetCurrentUidGid.Call(),
		asm.StoreMem(asm.R7, offUID, asm.R0, asm.Word),
	)
}

// read copies size bytes at base+at of the kernel to off of the record. What
// cannot be read is zero.
func (w *writer) read(off, size int32, base asm.Register, at uint32) {
	w.add(
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Add.Imm(asm.R1, off),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Reg(asm.R3, base),
		asm.Add.Imm(asm.R3, int32(at)),
		asm.FnProbeReadKernel.Call(),
	)
}

// follow sets dst to the pointer at base+at.
func (w *writer) follow(dst, base asm.Register, at uint32) {
	w.add(
		asm.Mov.Imm(asm.R2, 0),
		asm.StoreMem(asm.R10, scratch, asm.R2, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R10),
		asm.Add.Imm(asm.R1, scratch),
		asm.Mov.Imm(asm.R2, ptr),
		asm.Mov.Reg(asm.R3, base),
		asm.Add.Imm(asm.R3, int32(at)),
		asm.FnProbeReadKernel.Call(),
		asm.LoadMem(dst, asm.R10, scratch, ptrSize),
	)
}

// str copies a text of the kernel, or of the calling process.
func (w *writer) str(off, size int32, from asm.Register, how asm.BuiltinFunc) {
	w.add(
		asm.StoreImm(asm.R7, int16(off), 0, asm.Byte),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Add.Imm(asm.R1, off),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Reg(asm.R3, from),
		how.Call(),
	)
}

// send puts the first R3 bytes of the record into the ring. When it is full,
// the record is lost and counted.
func (w *writer) send(ring, lost int) {
	w.add(
		asm.LoadMapPtr(asm.R1, ring),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.StoreImm(asm.R10, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, lost),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	)
}

// onExec is for the raw tracepoint sched_process_exec, called with the task,
// its former number and what was loaded. The new program's arguments are in
// its memory already, and nobody else can write there yet.
func onExec(o offsets, records, ring, lost int) asm.Instructions {
	var w writer
	w.add(asm.LoadMem(asm.R8, asm.R1, 0, asm.DWord))  // task_struct
	w.add(asm.LoadMem(asm.R9, asm.R1, 16, asm.DWord)) // linux_binprm
	w.begin(records, kindExec)
	w.read(offStart, 8, asm.R8, o.start)

	w.follow(asm.R6, asm.R9, o.filename)
	w.str(offFilename, MaxPath, asm.R6, asm.FnProbeReadKernelStr)
	w.follow(asm.R6, asm.R9, o.interp)
	w.str(offInterp, MaxPath, asm.R6, asm.FnProbeReadKernelStr)
	w.follow(asm.R9, asm.R9, o.file)
	w.follow(asm.R6, asm.R9, o.inode)
	w.read(offLinks, 4, asm.R6, o.links)
	w.follow(asm.R6, asm.R9, o.dentry)
	w.follow(asm.R6, asm.R6, o.name)
	w.str(offName, sizeName, asm.R6, asm.FnProbeReadKernelStr)

	w.follow(asm.R6, asm.R8, o.mm)
	w.follow(asm.R9, asm.R6, o.argEnd)
	w.follow(asm.R6, asm.R6, o.argStart)

	for i := range int32(MaxAncestors) { // while R8 goes up, R6 and R9 stay
		w.follow(asm.R8, asm.R8, o.parent)
		w.follow(asm.R8, asm.R8, o.leader)
		w.read(offAncestors+16*i, 4, asm.R8, o.tgid)
		w.read(offAncestors+16*i+8, 8, asm.R8, o.start)
	}

	w.add(
		asm.Sub.Reg(asm.R9, asm.R6),
		asm.StoreMem(asm.R7, offTotal, asm.R9, asm.Word),
		asm.JLE.Imm(asm.R9, MaxArgs, "fits"),
		asm.Mov.Imm(asm.R9, MaxArgs),
		asm.Mov.Reg(asm.R1, asm.R7).WithSymbol("fits"),
		asm.Add.Imm(asm.R1, offArgs),
		asm.Mov.Reg(asm.R2, asm.R9),
		asm.Mov.Reg(asm.R3, asm.R6),
		asm.FnProbeReadUser.Call(),
		asm.JEq.Imm(asm.R0, 0, "copied"),
		asm.Mov.Imm(asm.R9, 0),
		asm.StoreMem(asm.R7, offCopied, asm.R9, asm.Word).WithSymbol("copied"),
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.Add.Imm(asm.R3, offArgs),
	)
	w.send(ring, lost)
	return w.Instructions
}

// Arguments that are read one by one when execve is called. More, and longer
// ones, are cut; what lives long enough is read again from /proc.
const (
	callArgs = 40
	callArg  = 512 // bytes of one
)

// onCall is for the tracepoints sys_enter_execve and sys_enter_execveat.
// First is the place of the file's name among the call's arguments.
func onCall(first int32, records, ring, lost int) asm.Instructions {
	var w writer
	arg := func(i int32) int16 { return int16(8 + ptr*(1+first+i)) } // 8 bytes of entry, the call's number
	w.add(asm.LoadMem(asm.R6, asm.R1, arg(0), ptrSize))
	w.add(asm.LoadMem(asm.R8, asm.R1, arg(1), ptrSize))
	w.begin(records, kindCall)
	w.call(ring, lost)
	return w.Instructions
}

// abi is where a processor's registers of a system call lie in pt_regs, and
// the numbers of the calls. Both belong to the interface with user space and
// never change (arch/*/include/uapi/asm/ptrace.h, unistd.h).
type abi struct {
	execve, execveat int32
	args             [3]uint32
}

var abis = map[string]abi{
	"amd64": {59, 322, [3]uint32{112, 104, 96}}, // rdi, rsi, rdx
	"arm64": {221, 281, [3]uint32{0, 8, 16}},
	"arm":   {11, 387, [3]uint32{0, 4, 8}},
}

// onEnter is for the raw tracepoint sys_enter, which every system call passes
// with its registers and its number. It needs no tracefs.
func onEnter(a abi, records, ring, lost int) asm.Instructions {
	var w writer
	w.add(
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord), // pt_regs
		asm.LoadMem(asm.R9, asm.R1, 8, asm.DWord), // number
		asm.JEq.Imm(asm.R9, a.execve, "exec"),
		asm.JEq.Imm(asm.R9, a.execveat, "exec"),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("exec"),
	)
	w.begin(records, kindCall)
	w.add(asm.JEq.Imm(asm.R9, a.execveat, "at"))
	w.follow(asm.R8, asm.R6, a.args[1])
	w.follow(asm.R6, asm.R6, a.args[0])
	w.add(asm.Ja.Label("call"))
	at := len(w.Instructions)
	w.follow(asm.R8, asm.R6, a.args[2])
	w.Instructions[at] = w.Instructions[at].WithSymbol("at")
	w.follow(asm.R6, asm.R6, a.args[1])
	w.add(asm.Mov.Imm(asm.R0, 0).WithSymbol("call"))
	w.call(ring, lost)
	return w.Instructions
}

// call reads the file's name at R6 and the arguments at R8, and sends them.
func (w *writer) call(ring, lost int) {
	w.str(offFilename, MaxPath, asm.R6, asm.FnProbeReadUserStr)
	w.add(
		asm.Mov.Imm(asm.R9, 0), // bytes so far
		asm.StoreMem(asm.R7, offStart, asm.R9, asm.DWord),
		asm.Mov.Imm(asm.R6, 1), // whether they are cut
	)
	for i := range int32(callArgs) {
		w.add(
			asm.Mov.Imm(asm.R2, 0),
			asm.StoreMem(asm.R10, scratch, asm.R2, asm.DWord),
			asm.Mov.Reg(asm.R1, asm.R10),
			asm.Add.Imm(asm.R1, scratch),
			asm.Mov.Imm(asm.R2, ptr),
			asm.Mov.Reg(asm.R3, asm.R8),
			asm.Add.Imm(asm.R3, ptr*i),
			asm.FnProbeReadUser.Call(),
			asm.JNE.Imm(asm.R0, 0, "end"),
			asm.LoadMem(asm.R3, asm.R10, scratch, ptrSize),
			asm.JEq.Imm(asm.R3, 0, "whole"),
			asm.JGT.Imm(asm.R9, MaxArgs-callArg, "end"),
			asm.Mov.Reg(asm.R1, asm.R7),
			asm.Add.Imm(asm.R1, offArgs),
			asm.Add.Reg(asm.R1, asm.R9),
			asm.Mov.Imm(asm.R2, callArg),
			asm.FnProbeReadUserStr.Call(),
			asm.JSLE.Imm(asm.R0, 0, "end"),
			asm.Add.Reg(asm.R9, asm.R0),
		)
	}
	w.add(
		asm.Ja.Label("end"),
		asm.Mov.Imm(asm.R6, 0).WithSymbol("whole"),
		asm.StoreMem(asm.R7, offCopied, asm.R9, asm.Word).WithSymbol("end"),
		asm.Add.Reg(asm.R6, asm.R9),
		asm.StoreMem(asm.R7, offTotal, asm.R6, asm.Word),
		asm.JGT.Imm(asm.R9, MaxArgs, "out"), // never; the verifier wants to know
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.Add.Imm(asm.R3, offArgs),
	)
	w.send(ring, lost)
}

// onDone is for sched_process_exec where the layout of the kernel's types is
// not known.
func onDone(records, ring, lost int) asm.Instructions {
	var w writer
	w.begin(records, kindDone)
	w.add(
		asm.Mov.Imm(asm.R3, 0),
		asm.StoreMem(asm.R7, offStart, asm.R3, asm.DWord),
		asm.Mov.Imm(asm.R3, offAncestors),
	)
	w.send(ring, lost)
	return w.Instructions
}

// offsets are where in the kernel's types things lie, in bytes.
type offsets struct {
	mm, tgid, start, parent, leader uint32 // of task_struct
	argStart, argEnd                uint32 // of mm_struct
	file, filename, interp          uint32 // of linux_binprm
	inode, dentry                   uint32 // of file
	links                           uint32 // of inode
	name                            uint32 // of dentry
}

// kernelOffsets reads them from what the running kernel says of itself.
func kernelOffsets() (offsets, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return offsets{}, fmt.Errorf("the kernel does not describe its types (BTF): %w", err)
	}
	var o offsets
	var errs []error
	for _, f := range []struct {
		to   *uint32
		in   string
		path []string
	}{
		{&o.mm, "task_struct", []string{"mm"}},
		{&o.tgid, "task_struct", []string{"tgid"}},
		{&o.start, "task_struct", []string{"start_boottime|real_start_time"}},
		{&o.parent, "task_struct", []string{"real_parent"}},
		{&o.leader, "task_struct", []string{"group_leader"}},
		{&o.argStart, "mm_struct", []string{"arg_start"}},
		{&o.argEnd, "mm_struct", []string{"arg_end"}},
		{&o.file, "linux_binprm", []string{"file"}},
		{&o.filename, "linux_binprm", []string{"filename"}},
		{&o.interp, "linux_binprm", []string{"interp"}},
		{&o.inode, "file", []string{"f_inode"}},
		{&o.dentry, "file", []string{"f_path", "dentry"}},
		{&o.links, "inode", []string{"i_nlink|__i_nlink"}},
		{&o.name, "dentry", []string{"d_name|__d_name", "name"}},
	} {
		var s *btf.Struct
		if err := spec.TypeByName(f.in, &s); err != nil {
			errs = append(errs, fmt.Errorf("struct %s: %w", f.in, err))
			continue
		}
		at, err := offsetOf(s, f.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("struct %s: %w", f.in, err))
		}
		*f.to = at
	}
	return o, errors.Join(errs...)
}

// offsetOf follows a path of members, which may lie in members without a name.
func offsetOf(t btf.Type, path []string) (uint32, error) {
	at := uint32(0)
	for _, name := range path {
		m, off, ok := member(t, name, 0)
		if !ok {
			return 0, fmt.Errorf("has no member %s", name)
		}
		at += off
		t = m
	}
	return at, nil
}

// member finds a member by one of its names, separated by "|".
func member(t btf.Type, names string, depth int) (btf.Type, uint32, bool) {
	var all []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		all = t.Members
	case *btf.Union:
		all = t.Members
	}
	if depth > 8 {
		return nil, 0, false
	}
	for _, m := range all {
		switch {
		case m.Name != "" && oneOf(m.Name, names):
			return m.Type, m.Offset.Bytes(), true
		case m.Name == "":
			if found, at, ok := member(m.Type, names, depth+1); ok {
				return found, m.Offset.Bytes() + at, true
			}
		}
	}
	return nil, 0, false
}
