// Package panel is the window into one gateway: an HTTP API and the pages
// built on it, compiled into the binary, for a browser without internet.
//
// One set of handlers, two doors:
//
//	browser ──TCP──►  reading, quotes,      ┐
//	                  signed sessions       ├─► handlers ─► Backend (the wiring)
//	commands ─unix─►  everything            ┘
//	         control.sock, 0600
//
// The TCP door changes nothing without a signature: a session starts with a
// quote that the driver's key signed and stops with an order that the same
// key signed. Invitations, transactions made elsewhere and re-verification
// pass only through the Unix socket, whose file permission is the
// authorisation. Client speaks to either door and implements Backend, so that
// a command line does not care whether it talks to a running gateway or has
// opened the store itself.
//
// # Against the browser's neighbours
//
// A page of another site must not use the panel through its visitor. Hosts
// other than IP addresses, localhost and the configured names are refused,
// which ends DNS rebinding; requests that change something must come from the
// panel's own origin; bodies must say that they are JSON; no CORS header is
// ever sent; and the pages load nothing that is not in the binary.
//
// # Example
//
//	srv, err := panel.New(panel.Config{Listen: "127.0.0.1:0", Socket: dir + "/control.sock", Backend: b})
//	go srv.Run(ctx)
//	status, err := panel.Dial(dir + "/control.sock").Status(ctx)
package panel
