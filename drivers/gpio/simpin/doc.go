// Package simpin is a simulated pin: a gateway's GPIO lines over a Unix
// socket, so that the physics on the other side can see a relay close and can
// press a stop button.
//
// The Client is the gateway's side; its pins are periph gpio.PinIO. The
// Server is the hardware's side and holds the levels. When the gateway's
// connection ends, for whatever reason, the server takes every output to its
// safe level: it plays the external pull resistor that a real relay needs,
// because a process that was killed pulls nothing.
//
// # Protocol
//
// Lines of text, at most MaxLine bytes, "0" for low and "1" for high.
//
//	client                server
//	                      in IN1 0        every input, then
//	                      ready
//	out RELAY1 1
//	                      ok RELAY1 1     after the change took effect
//	get RELAY1
//	                      ok RELAY1 1
//	out NOSUCH 1
//	                      err no output "NOSUCH"
//	                      in IN1 1        whenever an input changes
//
// A client has one request outstanding. One client drives the board: a new
// connection ends the old one, and the outputs go through their safe level.
package simpin

// MaxLine bounds a line of the protocol; a longer one ends the connection.
const MaxLine = 128
