// Package config is the typed configuration of a gateway: one YAML document,
// read strictly, with errors that say where they are.
//
//	bytes ──Parse──► Config + defaults ──Validate──► Config
//	                    │                     └────► Errors{path, line, message}
//	                    ├──Diff(other)──► []Change
//	                    └──Render──► commented YAML that Parse reads
//
// An unknown key is an error, because a misspelt limit that is ignored is a
// limit that does not exist. Validate is Go rather than a schema: what it
// refuses it explains. A board's rating may be lowered here and never raised;
// safety times may be shortened and never stretched.
//
// The package opens no files. A configuration looks like this:
//
//	version: 1
//	name: north
//	board: simulated
//	lines:
//	- {id: rs485, device: /dev/ttyUSB0, baud: 9600}
//	meters:
//	- {id: house, line: rs485, unit: 1, profile: eastron-sdm630, role: site}
package config
