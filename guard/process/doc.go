// Package process sees every program that is started, with its command line,
// and judges it by Sigma rules, by a list of known executables and by where
// its code came from.
//
// What a kernel tells about started programs differs, so there is a ladder.
// It is climbed at start as far as the kernel and the privileges allow, and
// [Sensor.Coverage] names the rung in force, why it is not a higher one, and
// what was lost:
//
//	ebpf          the kernel hands over every exec with its arguments, read at
//	              mm->arg_start; offsets come from the kernel's own BTF
//	ebpf-syscall  the same without BTF: arguments are read when execve is
//	              called, by its tracepoint or that of all system calls, and
//	              told once sched_process_exec says it worked
//	connector     the kernel names the process, arguments come from /proc:
//	              what ends at once is known to have run, and counted as lost
//	polling       /proc is gone through four times a second: what ends between
//	              two looks is not known at all
//	none          with the reason
//
// An exec then goes this way:
//
//	source ── Exec ──► complete: path, folder, user, parent ──► sigma.Event ──► rules ─┐
//	                      ▲         │                                                  ├─► findings
//	               table of what    └──► memfd? deleted? listed, and unchanged? ───────┘
//	               was started
//
// # Ancestry
//
// A process is named by its number and when it started, so that a number used
// again is not taken for the one before. The kernel tells with every exec the
// six nearest ancestors; the first that is known is the parent. A shell that
// forks for a pipe is the same program as before: it is found one step up.
//
// # Two names
//
// Debian's nc is a link to a link to nc.openbsd. Rules name programs as people
// call them, and an attacker's link may have any name. A program is judged by
// the path of its file and, where that differs, by the one it was called.
//
// # What leaves this package
//
// Command lines in findings are redacted. Programs started again and again are
// told four times an hour, then each time their number has doubled.
package process
