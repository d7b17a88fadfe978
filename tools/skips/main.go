// Command skips reads the output of `go test -json`, prints it as `go test`
// would, and judges skipped tests: in CI a skip is a failure unless the README
// lists the test under "Tests that need hardware or data".
//
//	go test -json ./... | skips -readme README.md
//
// A skipped test looks like a passed one in a green run. The list keeps the
// promise that what is not tested is said where users read it.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	readme := flag.String("readme", "README.md", "file whose list allows skips")
	strict := flag.Bool("strict", os.Getenv("CI") != "", "fail on a skip that is not listed (default in CI)")
	flag.Parse()
	text, err := os.ReadFile(*readme)
	if err != nil {
		fmt.Fprintln(os.Stderr, "skips:", err)
		os.Exit(2)
	}
	ok, err := judge(os.Stdin, os.Stdout, allowed(string(text)), *strict)
	if err != nil {
		fmt.Fprintln(os.Stderr, "skips:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// heading is the README's section with the list.
const heading = "tests that need hardware or data"

var quoted = regexp.MustCompile("`([\\w./-]*?\\.)?(Test\\w+)`")

// allowed returns the tests that the README lists: `TestName`, or
// `some/package.TestName`, in the list items of that section.
func allowed(readme string) []string {
	var out []string
	in := false
	for line := range strings.Lines(readme) {
		if strings.HasPrefix(line, "#") {
			in = strings.Contains(strings.ToLower(line), heading)
			continue
		}
		if trimmed := strings.TrimSpace(line); in && (strings.HasPrefix(trimmed, "- ") || strings.HasPrefix(trimmed, "* ") || strings.HasPrefix(trimmed, "|")) {
			for _, m := range quoted.FindAllStringSubmatch(line, -1) {
				out = append(out, m[1]+m[2])
			}
		}
	}
	return out
}

// listed reports whether a test or one of its parents is allowed to skip.
func listed(list []string, pkg, test string) bool {
	top, _, _ := strings.Cut(test, "/")
	return slices.ContainsFunc(list, func(entry string) bool {
		if dot := strings.LastIndexByte(entry, '.'); dot >= 0 {
			return entry[dot+1:] == top && strings.HasSuffix("/"+pkg, "/"+entry[:dot])
		}
		return entry == top
	})
}

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, Test, Output, ImportPath string
}

// judge copies the readable output and reports whether the run is good.
func judge(in io.Reader, out io.Writer, list []string, strict bool) (bool, error) {
	type key struct{ pkg, test string }
	text := map[key]*strings.Builder{}
	var passed, failed, skipped int
	var unlisted []string
	failedPackages := 0
	r := bufio.NewReaderSize(in, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(out, "%s", line) // the go command's own complaint
			} else {
				k := key{e.Package, e.Test}
				switch e.Action {
				case "output":
					if e.Test == "" {
						if e.Output != "PASS\n" && e.Output != "FAIL\n" {
							fmt.Fprint(out, e.Output)
						}
						break
					}
					if text[k] == nil {
						text[k] = &strings.Builder{}
					}
					text[k].WriteString(e.Output)
				case "build-output":
					fmt.Fprint(out, e.Output)
				case "pass":
					if e.Test != "" {
						passed++
						delete(text, k)
					}
				case "fail":
					if e.Test == "" {
						failedPackages++
						break
					}
					failed++
					if b := text[k]; b != nil {
						fmt.Fprint(out, b.String())
					}
					delete(text, k)
				case "skip":
					if e.Test == "" {
						break // a package without tests
					}
					skipped++
					if !listed(list, e.Package, e.Test) {
						reason := ""
						if b := text[k]; b != nil {
							reason = because(b.String())
						}
						unlisted = append(unlisted, fmt.Sprintf("%s.%s: %s", e.Package, e.Test, reason))
					}
					delete(text, k)
				}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, err
		}
	}
	// A test that neither passed nor failed was cut off by a crash or a
	// time-out: what it printed is what explains it.
	for k, b := range text {
		fmt.Fprintf(out, "--- UNFINISHED: %s.%s\n%s", k.pkg, k.test, b)
		failed++
	}
	for _, u := range unlisted {
		fmt.Fprintf(out, "skipped, not listed in the README: %s\n", u)
	}
	if passed+failed+skipped == 0 {
		fmt.Fprintln(out, "no test was run")
		return false, nil
	}
	if strict {
		failed, skipped = failed+len(unlisted), skipped-len(unlisted)
	}
	if failed == 0 {
		failed = failedPackages // they failed to build, or outside any test
	}
	good := failed == 0
	if !good {
		fmt.Fprintln(out, "FAIL")
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return good, nil
}

// because finds the reason that t.Skip gave.
func because(output string) string {
	for line := range strings.Lines(output) {
		if s := strings.TrimSpace(line); s != "" && !strings.HasPrefix(s, "===") && !strings.HasPrefix(s, "---") {
			return s
		}
	}
	return "no reason given"
}
