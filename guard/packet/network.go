package packet

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// Network says what is ordinary on a network.
type Network struct {
	Writers     []netip.Addr  // may write Modbus registers
	ModbusPorts []uint16      // 502
	DHCPServers []netip.Addr  // hand out addresses; none: whoever is seen first
	Resolvers   []netip.Addr  // may be asked for names; none: asking anybody on port 53 is ordinary
	Baseline    []Destination // nil: destinations are not looked at; empty: none is ordinary
	Learn       time.Duration // destinations within this time after the start are added to Baseline
}

func (n *Network) defaults() {
	if len(n.ModbusPorts) == 0 {
		n.ModbusPorts = []uint16{502}
	}
}

// Limits of a policy file.
const (
	MaxPolicy   = 1 << 20 // bytes
	MaxWriters  = 1024
	MaxBaseline = 4096
)

// Destination is where an ordinary conversation leads.
type Destination struct {
	Prefix netip.Prefix // or
	Name   string       // and all names below it, by the DNS answers that are seen
	Port   uint16       // 0: any
}

// ParseDestination reads an address, a prefix or a DNS name, with or without
// a port: 192.0.2.7, 192.0.2.0/24, [2001:db8::1]:443, time.example.org:123.
func ParseDestination(s string) (Destination, error) {
	var d Destination
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap()
		d.Prefix = netip.PrefixFrom(a, a.BitLen())
		return d, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		d.Prefix = p.Masked()
		return d, nil
	}
	what := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		port, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || port == 0 {
			return d, fmt.Errorf("destination %q: want an address, a prefix or a name, with or without :port", s)
		}
		what, d.Port = strings.Trim(s[:i], "[]"), uint16(port)
	}
	if a, err := netip.ParseAddr(what); err == nil {
		a = a.Unmap()
		d.Prefix = netip.PrefixFrom(a, a.BitLen())
		return d, nil
	}
	if p, err := netip.ParsePrefix(what); err == nil {
		d.Prefix = p.Masked()
		return d, nil
	}
	name := strings.TrimPrefix(strings.TrimSuffix(strings.ToLower(what), "."), "*.")
	if name == "" || len(name) > 253 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" || strings.Trim(name, "0123456789.") == "" {
		return d, fmt.Errorf("destination %q: want an address, a prefix or a name, with or without :port", s)
	}
	d.Name = name
	return d, nil
}

// policyFile is the form of a policy.
type policyFile struct {
	Modbus struct {
		Writers []string `yaml:"writers"`
	} `yaml:"modbus"`
	Baseline *[]string `yaml:"baseline"`
}

// ParsePolicy reads a policy file. What it does not know is an error that
// names the line.
//
//	modbus:
//	  writers: [192.0.2.7]
//	baseline: [198.51.100.0/24, time.example.org]
func ParsePolicy(text []byte) (n Network, err error) {
	defer func() {
		if p := recover(); p != nil { // go-yaml on a list that is tagged as something else
			n, err = Network{}, fmt.Errorf("policy: malformed YAML: %v", p)
		}
	}()
	if len(text) > MaxPolicy {
		return n, fmt.Errorf("policy of %d bytes, at most %d", len(text), MaxPolicy)
	}
	var f policyFile
	if len(strings.TrimSpace(string(text))) > 0 {
		if err := yaml.UnmarshalWithOptions(text, &f, yaml.Strict()); err != nil {
			return n, fmt.Errorf("policy: %s", strings.TrimSpace(yaml.FormatError(err, false, false)))
		}
	}
	at := func(path string, i int) string {
		p, err := yaml.PathString(fmt.Sprintf("$.%s[%d]", path, i))
		if err != nil {
			return path
		}
		node, err := p.ReadNode(strings.NewReader(string(text)))
		if err != nil || node == nil {
			return fmt.Sprintf("%s[%d]", path, i)
		}
		return fmt.Sprintf("line %d, %s[%d]", node.GetToken().Position.Line, path, i)
	}
	if len(f.Modbus.Writers) > MaxWriters {
		return n, fmt.Errorf("policy: %d writers, at most %d", len(f.Modbus.Writers), MaxWriters)
	}
	for i, s := range f.Modbus.Writers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return n, fmt.Errorf("policy: %s: %q is no IP address", at("modbus.writers", i), s)
		}
		n.Writers = append(n.Writers, a.Unmap())
	}
	if f.Baseline == nil {
		return n, nil
	}
	if len(*f.Baseline) > MaxBaseline {
		return n, fmt.Errorf("policy: baseline of %d destinations, at most %d", len(*f.Baseline), MaxBaseline)
	}
	n.Baseline = make([]Destination, len(*f.Baseline))
	for i, s := range *f.Baseline {
		d, err := ParseDestination(s)
		if err != nil {
			return n, fmt.Errorf("policy: %s: %w", at("baseline", i), err)
		}
		n.Baseline[i] = d
	}
	return n, nil
}
