// Package sunspec knows the information models of the SunSpec Alliance and
// reads a device's model blocks with them.
//
// A device chains model blocks together (package meter/profile walks the
// chain). Each says which model it is and how long it is itself; the model
// says what the registers mean:
//
//	ID  L   A    AphA  ..  A_SF  ..            103, inverter
//	103 50  1234 411       -2            ->    A = 12.34 A, AphA = 4.11 A
//
// # Words
//
//   - A point is a number or a text at the next registers of its group.
//   - A scale factor is a point that holds an exponent of ten for others. A
//     device may change it at any time, so it is read with the block.
//   - A group is a list of points and of further groups. It may be repeated: a
//     number of times that a point of an outer group says, or until the block
//     ends.
//   - Not implemented is a value that every type keeps for itself (0x8000,
//     0xFFFF, NaN, for accumulators 0). Such a point is left out.
//
// The device's own length is believed, not the model's: what lies beyond it is
// left out. A model that nobody knows is not an error.
//
// # Tables
//
// The models that gateways meet are built in as a compact table (models.txt):
//
//	model 103 101 102 inverter
//	A u16 A_SF A
//	...
//	group module *
//	  DCA u16 DCA_SF A
//	end
//
// Every other model of the Alliance, and a vendor's own, can be read from the
// official JSON files: see Load and ParseJSON. A file takes the place of the
// built-in model.
//
//	c, err := sunspec.Load(os.DirFS("/etc/joulegate/sunspec"))
//	m, ok := c.Model(103)
//	values, err := m.Decode(block)
//
// Sources: SunSpec Device Information Model Specification 1.1, and the models
// at github.com/sunspec/models. Everything here is pure.
package sunspec
