// Package commission makes the report that an installer hands over: what was
// looked at, wired, tried and read before a gateway went to work, each row
// green or red, and for every red one what to do.
//
//	configuration, board ─┐
//	doctor, meters, guard ├─► Make ─► Report ─► Seal ─► report.json   signed bytes in an envelope
//	Trials (what a person ┘                      └────► report.html   a page around them
//	has tried, and when)
//
// Some things only a person can show: that the emergency stop opens, that a
// relay's contact follows, that a transformer is not reversed. Trials remembers
// what was tried while the gateway was commissioned, with the wiring it was
// tried on: a trial of a relay that has been moved to another pin since counts
// as not done. What was not done is red, too, and names the command.
//
// The report is JSON, and the device's key signs exactly those bytes. The
// envelope is the one that signed configuration has: payload in base64 and a
// list of signatures. The page shows the same in words, embeds the envelope,
// and ends with a signature over all that stands before, so that a changed
// byte anywhere is found by whoever has neither gateway nor network.
//
// Fields of the JSON are added, and never change their meaning, while Format
// is what it is.
package commission
