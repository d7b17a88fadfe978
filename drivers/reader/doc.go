// Package reader polls one meter and delivers its readings.
//
//	            interval
//	               v
//	profile -> [ Reader ] -> drivers.Register -> the line
//	               |  ^ registers
//	               v  |
//	         decode, poll.Step -> meter.Reading -> Deliver
//
// A Reader never gives up. It delivers a reading for every answer, and while
// the device is silent a Stale one every interval, so that whoever listens
// need not keep a clock. How often a silent device is asked is the line's
// business (it backs off and keeps the bus free for others); a device that
// answers but refuses, or that is not what its profile says, is asked again
// after 1, 2, 4 .. 60 s.
//
// A poll is all or nothing: its blocks belong together. A block whose answer is
// lost or garbled is read once more if the device has answered in this poll.
//
// A SunSpec device's model chain is walked at the start and again whenever the
// device has been away or its map has moved. Other devices are asked for their
// serial number, where the profile knows it, at the same occasions and once in
// 60 polls. If a device then names another serial number, or none any more, its
// readings are Suspect: somebody has put another device in its place. The same
// holds for transformer ratios and, where the line tells it, for the hardware
// address.
//
// Points that change slowly are read every tenth time, at a class of their
// own, and never hold up the others. A block that the device refuses, answers
// short, or twice garbles, is read in halves; if a register is refused by itself
// the device does not have it, and its points are left out. What explains all
// refusals is the longest read that the device takes: that is learned for good,
// until a person confirms that it is another device.
package reader
