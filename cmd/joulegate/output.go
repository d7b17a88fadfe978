package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// terminal tells whether a file descriptor is a terminal.
func terminal(fd uintptr) bool {
	_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
	return err == nil
}

// emit prints v as one JSON document with --json, and calls human otherwise.
func emit(cmd *cobra.Command, v any, human func(w io.Writer) error) error {
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	return human(cmd.OutOrStdout())
}

// table writes aligned columns. The first row is the heading.
func table(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		if _, err := fmt.Fprintln(tw, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// money prints nano as currency units with at least two and at most nine
// decimals, exactly.
func money(n chain.Nano) string {
	sign, u := "", uint64(n)
	if n < 0 {
		sign, u = "-", -u
	}
	frac := strings.TrimRight(fmt.Sprintf("%09d", u%1e9), "0")
	for len(frac) < 2 {
		frac += "0"
	}
	return sign + strconv.FormatUint(u/1e9, 10) + "." + frac
}

// perKWh prints a price as currency units per kWh.
func perKWh(p chain.NanoPerWh) string { return money(chain.Nano(p)*1000) + "/kWh" }

// kWh prints Wh as kWh, exactly.
func kWh(e meter.WattHour) string {
	sign, u := "", uint64(e)
	if e < 0 {
		sign, u = "-", -u
	}
	return fmt.Sprintf("%s%d.%03d kWh", sign, u/1000, u%1000)
}

// parseMoney reads a decimal amount of currency units ("12.50") into nano.
func parseMoney(s string) (chain.Nano, error) {
	whole, frac, _ := strings.Cut(s, ".")
	if len(frac) > 9 || whole == "" {
		return 0, fmt.Errorf("amount %q: write it like 12.50, at most nine decimals", s)
	}
	n, err := strconv.ParseInt(whole+frac+strings.Repeat("0", 9-len(frac)), 10, 64)
	if err != nil || strings.ContainsAny(s, "+-_") {
		return 0, fmt.Errorf("amount %q: write it like 12.50, positive, at most nine decimals", s)
	}
	return chain.Nano(n), nil
}
