package domain

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Limits of a list.
const (
	MaxListBytes = 512 << 20
	maxLine      = 4096 // bytes; longer ones are no rules about names
)

// Rule is one rule of a list.
type Rule struct {
	Name  string // canonical
	Scope Scope
	Allow bool
	Text  string // as the list says it, of a hosts file the name
	Line  int
}

// Rules reads a list and calls fn for every rule. It takes the formats that
// lists come in, line by line, so that they may be mixed:
//
//	0.0.0.0 ads.example.com          hosts(5): the name itself
//	ads.example.com                  the name and all below it
//	*.ads.example.com                all below it
//	||ads.example.com^               the name and all below it (Adblock Plus)
//	@@||ads.example.com^             allowed, although another rule blocks it
//
// A file that begins like a zone is a response policy zone
// (draft-vixie-dnsop-dns-rpz): "name CNAME ." and "*.name CNAME ." block,
// "CNAME rpz-passthru." allows.
//
// Rules that are not about names (paths, cosmetic rules, regular expressions,
// answers by address) are counted in skipped. A malformed name is an error
// that names file and line, and then no rule counts: a list that is half
// understood is worse than the one before.
func Rules(file string, r io.Reader, fn func(Rule)) (skipped int, err error) {
	in := bufio.NewReaderSize(io.LimitReader(r, MaxListBytes+1), 64<<10)
	if zone, err := looksLikeZone(in); err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	} else if zone {
		return zoneRules(file, in, fn)
	}
	var read int64
	for line := 1; ; line++ {
		text, err := in.ReadSlice('\n')
		long := false
		for errors.Is(err, bufio.ErrBufferFull) {
			long = true
			read += int64(len(text))
			text, err = in.ReadSlice('\n')
		}
		if read += int64(len(text)); read > MaxListBytes {
			return skipped, fmt.Errorf("%s: longer than %d MB", file, MaxListBytes>>20)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return skipped, fmt.Errorf("%s:%d: %w", file, line, err)
		}
		switch {
		case long || len(text) > maxLine:
			skipped++
		default:
			n, bad := lineRules(text, line, fn)
			if bad != nil {
				return skipped, fmt.Errorf("%s:%d: %w", file, line, bad)
			}
			skipped += n
		}
		if err != nil {
			return skipped, nil
		}
	}
}

// lineRules reads one line.
func lineRules(raw []byte, line int, fn func(Rule)) (skipped int, err error) {
	text := bytes.TrimSpace(raw)
	if len(text) == 0 || text[0] == '#' || text[0] == '!' || text[0] == '[' || text[0] == ';' {
		return 0, nil
	}
	if line == 1 {
		text = bytes.TrimPrefix(text, []byte("\ufeff"))
	}
	if allow := bytes.HasPrefix(text, []byte("@@")); allow || bytes.HasPrefix(text, []byte("||")) {
		return adblock(string(text), line, fn)
	}
	if notNames(text) {
		return 1, nil
	}
	if i := bytes.IndexByte(text, '#'); i >= 0 {
		text = bytes.TrimSpace(text[:i])
	}
	first, rest, more := bytes.Cut(text, space)
	if !more {
		first, rest, more = bytes.Cut(text, tab)
	}
	if more {
		return 0, hosts(string(first), rest, line, fn)
	}
	scope, name := Tree, first
	if below, ok := bytes.CutPrefix(name, []byte("*.")); ok {
		scope, name = Subs, below
	}
	c, err := Canonical(string(name))
	if err != nil {
		return 0, err
	}
	fn(Rule{Name: c, Scope: scope, Text: string(first), Line: line})
	return 0, nil
}

var space, tab = []byte(" "), []byte("\t")

// hosts reads the names behind an address.
func hosts(address string, names []byte, line int, fn func(Rule)) error {
	if i := strings.IndexByte(address, '\t'); i >= 0 { // address, tab, name, space, name
		names = append([]byte(address[i:]+" "), names...)
		address = address[:i]
	}
	if _, err := netip.ParseAddr(address); err != nil {
		return fmt.Errorf("%q is not an address, as a line of a hosts file begins", clip(address))
	}
	for w := range bytes.FieldsSeq(names) {
		word := string(w)
		if local(word) {
			continue
		}
		name, err := Canonical(word)
		if err != nil {
			return err
		}
		fn(Rule{Name: name, Scope: Self, Text: word, Line: line})
	}
	return nil
}

// local are the names that a hosts file gives to the machine itself.
func local(name string) bool {
	if last := name[len(name)-1]; last >= '0' && last <= '9' || last == ':' {
		_, err := netip.ParseAddr(name) // "0.0.0.0 0.0.0.0"
		return err == nil
	}
	switch name {
	case "localhost", "localhost.localdomain", "local", "broadcasthost", "ip6-localhost", "ip6-loopback", "ip6-localnet", "ip6-mcastprefix", "ip6-allnodes", "ip6-allrouters", "ip6-allhosts":
		return true
	}
	return false
}

// notNames tells whether a line of an Adblock list is about something else
// than a name: elements of a page, paths, regular expressions.
func notNames(text []byte) bool {
	return bytes.Contains(text, []byte("##")) || bytes.Contains(text, []byte("#@#")) || bytes.Contains(text, []byte("#?#")) || bytes.Contains(text, []byte("#$#")) ||
		bytes.ContainsAny(text, "/$|^=&?")
}

// adblock reads ||name^ and @@||name^. Options that change nothing for a name
// are accepted; a rule with others is about something else.
func adblock(text string, line int, fn func(Rule)) (skipped int, err error) {
	rest, allow := strings.CutPrefix(text, "@@")
	rest, ok := strings.CutPrefix(rest, "||")
	if !ok {
		return 1, nil
	}
	rest, options, _ := strings.Cut(rest, "$")
	for _, o := range strings.Split(options, ",") {
		switch o {
		case "", "important", "all", "document", "third-party", "3p":
		default:
			return 1, nil
		}
	}
	rest, after, _ := strings.Cut(rest, "^")
	if after != "" && after != "|" || strings.ContainsAny(rest, "/*?=:|") {
		star, wild := strings.CutPrefix(rest, "*.")
		if !wild || strings.ContainsAny(star, "/*?=:|") {
			return 1, nil
		}
		rest = star
	}
	name, err := Canonical(rest)
	if err != nil {
		return 0, err
	}
	fn(Rule{Name: name, Scope: Tree, Allow: allow, Text: text, Line: line})
	return 0, nil
}

// looksLikeZone looks at the first lines that are not comments.
func looksLikeZone(in *bufio.Reader) (bool, error) {
	head, err := in.Peek(4096)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		return false, err
	}
	for line := range bytes.Lines(head) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == ';' || line[0] == '#' {
			continue
		}
		upper := strings.ToUpper(string(line))
		words := strings.Fields(upper)
		return strings.HasPrefix(upper, "$TTL") || strings.HasPrefix(upper, "$ORIGIN") || len(words) > 2 && (contains(words, "SOA") || contains(words[:len(words)-1], "CNAME")), nil
	}
	return false, nil
}

func contains(words []string, w string) bool {
	for _, x := range words {
		if x == w {
			return true
		}
	}
	return false
}

// zoneRules reads a response policy zone.
func zoneRules(file string, in io.Reader, fn func(Rule)) (skipped int, err error) {
	counted := &counting{in: in}
	p := dns.NewZoneParser(counted, "rpz.invalid.", file)
	origin := "rpz.invalid."
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		owner := rr.Header().Name
		if _, soa := rr.(*dns.SOA); soa {
			origin = strings.ToLower(owner)
			continue
		}
		c, ok := rr.(*dns.CNAME)
		if !ok {
			skipped++ // local data, NS
			continue
		}
		name := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(owner), origin), ".")
		rule := Rule{Scope: Self, Text: owner + " CNAME " + c.Target, Line: counted.lines}
		if rest, ok := strings.CutPrefix(name, "*."); ok {
			rule.Scope, name = Subs, rest
		}
		switch target := strings.ToLower(c.Target); {
		case strings.HasSuffix(name, ".rpz-ip") || strings.HasSuffix(name, ".rpz-client-ip") || strings.HasSuffix(name, ".rpz-nsip") || strings.HasSuffix(name, ".rpz-nsdname"):
			skipped++
			continue
		case target == "rpz-passthru.":
			rule.Allow = true
		case target == ".", target == "*.", target == "rpz-drop.", target == "rpz-tcp-only.":
		default:
			skipped++ // rewrites to another name
			continue
		}
		if rule.Name, err = Canonical(name); err != nil {
			return skipped, fmt.Errorf("%s: near line %d: %w", file, counted.lines, err)
		}
		fn(rule)
	}
	if err := p.Err(); err != nil {
		return skipped, err // names file and line
	}
	return skipped, nil
}

type counting struct {
	in    io.Reader
	lines int
	bytes int
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	c.lines += bytes.Count(b[:n], []byte{'\n'})
	if c.bytes += n; c.bytes > MaxListBytes {
		return n, fmt.Errorf("longer than %d MB", MaxListBytes>>20)
	}
	return n, err
}
