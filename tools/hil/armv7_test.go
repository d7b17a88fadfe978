//go:build hil

package hil

import "testing"

// TestARMv7: the program for 32-bit processors boots, joins the microgrid of a
// 64-bit neighbour over the LAN, reads its meters, and switches its relay for
// somebody who has paid there. Both ledgers are the same.
func TestARMv7(t *testing.T) {
	t.Parallel()
	all, _ := microgrid(t, ARM64, ARMv7)
	north, east := all[0], all[1]
	east.reads()
	id := east.charge(north.driver("anna", 50))
	east.delivers()
	east.stop()
	if v := east.settled(id); v.Wh == 0 || v.Paid == 0 {
		t.Errorf("nothing was billed: %+v", v)
	}
	agree(all)
}
