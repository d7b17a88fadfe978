// Package domain answers DNS questions for the gateway, and with its consent
// for the household's network, and filters them.
//
//	question ──► Filter: allow-lists, exact ──► block-lists, 5 bytes a name
//	                        │ allowed                    │ blocked
//	                        ▼                            ▼
//	              cache ──► upstreams          NXDOMAIN or 0.0.0.0
//
// # Lists
//
// Hosts files, plain names, wildcards, Adblock Plus's ||name^ and response
// policy zones are read as each says it means: a hosts file names the name
// itself, the others name the tree below it too. A list with one malformed
// name is refused whole, with file and line, and the filter in force stays.
//
// A set keeps 40 bits for each name, so that a million names fit where a
// gateway has memory for them. Blocking by such a fingerprint may hit an
// innocent name once in 10^10 questions; allow-lists are therefore exact.
package domain
