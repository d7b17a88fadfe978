package sigma

import (
	"embed"
	"io/fs"
)

//go:embed rules/*.yml
var gateway embed.FS

// Gateway returns the rules that come with this program, written for energy
// gateways: machines on which few programs ever start, and nobody works.
func Gateway() fs.FS {
	sub, err := fs.Sub(gateway, "rules")
	if err != nil {
		panic(err) // the folder is embedded
	}
	return sub
}
