// Package tree proves parts of a state. The state of a ledger is an IAVL tree
// whose root the validators sign. A pruned tree is that tree in which whatever
// is not told is only its hash:
//
//	    root                 a, c: told, with key and value
//	   /    \               #: only a hash
//	  o      #
//	 / \
//	a   o                    Between a and c nothing is left out:
//	   / \                   they are neighbours.
//	  c   #
//
// Written in pre-order, node by node:
//
//	0  hash (32 bytes)                              something that is not told
//	1  version, key, value                          an entry
//	2  height (1 byte), size, version, left, right  an inner node
//
// Numbers are unsigned LEB128 and shortest, keys and values have their length
// in front.
//
// The package is pure and shares no line with IAVL: it is read where a bundle
// is judged, in a browser too, and by the ledger where it believes another
// microgrid's.
package tree
