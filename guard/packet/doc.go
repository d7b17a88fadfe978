// Package packet watches what crosses a network interface, live or in a
// capture file.
//
//	ring or file ─► frame ─► decoder ─► Event ─┬─► detectors ─► sink ─► findings
//	                                           │       ▲
//	                                        streams ───┘
//	                        (Modbus requests, hellos, logins)
//
// The decoder turns a frame into an [Event] without allocating. Streams puts
// TCP segments in order, as far as a message needs it, and hands every Modbus
// request, TLS ClientHello, HTTP request, MQTT CONNECT and login on as a
// further event. A detector is a step over events that changes its own state
// and nothing else: it has no clock and no socket, so that a capture gives
// the same findings wherever and whenever it is replayed. The sink counts
// equal findings together: one per rule and subject.
//
//	$ joulegate guard replay capture.pcap
//	{"rule":"modbus.write_unauthorised","severity":"high","subject":{"kind":"host","value":"192.0.2.7"},"count":3,...}
//	{"packets":166,"decode_errors":0}
//
// # What an attacker cannot do
//
// Whoever sends packets chooses what is parsed. All state lies in tables
// ([table]) that never grow: an entry that does not fit takes the place of the
// one in its set that was not touched for longest, and where that is, depends
// on a secret seed. Streams hold back at most [maxBuffers] times [bufferSize]
// bytes; when these are used up, the next one takes over somebody else's. A
// detector that panics is switched off, counted and named in the coverage;
// the others go on.
//
// # What it does not see
//
// Fragments of IP after the first, QUIC's server names, and on a switched
// network the conversations of others. Frames that the kernel had to drop are
// counted in the coverage.
package packet
