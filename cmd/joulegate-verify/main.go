// Command joulegate-verify checks a bundle and does nothing else: no network,
// no gateway, no cgo, small enough to read. It says the same as
//
//	joulegate audit verify FILE --trust GENESIS.json
//
// and is built from the same package, chain/proof.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/proof"
)

const usage = `joulegate-verify checks a bundle of a joulegate microgrid, offline.

  joulegate-verify --trust GENESIS.json [--checkpoint FILE] [--execute] [--json] FILE

Exits 0 if every check holds, 1 if not, 2 for wrong usage.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, out, errOut io.Writer) int {
	f := flag.NewFlagSet("joulegate-verify", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	trust := f.String("trust", "", "")
	checkpoint := f.String("checkpoint", "", "")
	execute := f.Bool("execute", false, "")
	asJSON := f.Bool("json", false, "")
	var files []string
	for len(args) > 0 { // flags may stand before and after the file
		err := f.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(out, usage)
			return 0
		}
		if err != nil {
			fmt.Fprintf(errOut, "joulegate-verify: %v\n", err)
			return 2
		}
		if args = f.Args(); len(args) > 0 {
			files, args = append(files, args[0]), args[1:]
		}
	}
	if len(files) != 1 || *trust == "" {
		fmt.Fprint(errOut, usage)
		return 2
	}
	r, err := verify(files[0], *trust, *checkpoint, *execute)
	if err == nil && *asJSON {
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		err = enc.Encode(r)
	} else if err == nil {
		err = r.WriteText(out)
	}
	if err != nil {
		fmt.Fprintf(errOut, "joulegate-verify: %v\n", err)
		return 1
	}
	if !r.OK {
		return 1
	}
	return 0
}

func verify(file, trust, checkpoint string, execute bool) (r proof.Report, err error) {
	opt := proof.Options{Now: time.Now(), Execute: execute}
	b, err := os.ReadFile(trust)
	if err != nil {
		return r, err
	}
	if opt.Genesis, err = proof.ParseGenesis(b); err != nil {
		return r, fmt.Errorf("%s: %w", trust, err)
	}
	if checkpoint != "" {
		if b, err = os.ReadFile(checkpoint); err != nil {
			return r, err
		}
		if opt.Checkpoint, err = chain.ParseCheckpoint(b); err != nil {
			return r, fmt.Errorf("%s: %w", checkpoint, err)
		}
	}
	in, err := os.Open(file)
	if err != nil {
		return r, err
	}
	defer in.Close()
	return proof.Verify(bufio.NewReaderSize(in, 1<<20), opt), nil
}
