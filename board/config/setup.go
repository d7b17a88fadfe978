package config

import (
	"bytes"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/joulegate/joulegate/board/boards"
	"github.com/joulegate/joulegate/chain"
)

// MaxSetup bounds a setup, in bytes.
const MaxSetup = 64 << 10

// Setup is joulegate-setup.yaml: what an installer writes on the boot partition
// of a new gateway, on his own computer, before the first start. The gateway
// applies it once, through its ordinary configuration, and takes the secrets
// out of it.
//
//	version: 1
//	name: north
//	network: {address: 192.168.1.20/24, gateway: 192.168.1.1}
//	broker: {url: "tls://broker.example:8883", user: north, password: ...}
//	grid: {token: jg1...}
//	installers: [6ebf...c1]
type Setup struct {
	Version    int          `yaml:"version"`
	Applied    string       `yaml:"applied,omitempty"` // written by the gateway: when, and that nothing is left to do
	Name       string       `yaml:"name,omitempty"`
	Board      string       `yaml:"board,omitempty"`
	Network    SetupNetwork `yaml:"network,omitempty"`
	Broker     SetupBroker  `yaml:"broker,omitempty"`
	Grid       SetupGrid    `yaml:"grid,omitempty"`
	Panel      SetupPanel   `yaml:"panel,omitempty"`
	Installers []string     `yaml:"installers,omitempty"`
}

// SetupNetwork is the wired network. The first process of a joulegate card
// sees to it; elsewhere it is the system's.
type SetupNetwork struct {
	Address string   `yaml:"address,omitempty"` // with its prefix; empty: DHCP
	Gateway string   `yaml:"gateway,omitempty"`
	DNS     []string `yaml:"dns,omitempty"`
	NTP     []string `yaml:"ntp,omitempty"`
}

// SetupBroker is the MQTT broker; files lie beside the setup.
type SetupBroker struct {
	URL      string `yaml:"url,omitempty"`
	User     string `yaml:"user,omitempty"`
	Password string `yaml:"password,omitempty"` // secret
	CAFile   string `yaml:"ca_file,omitempty"`
	CertFile string `yaml:"cert_file,omitempty"`
	KeyFile  string `yaml:"key_file,omitempty"` // secret
}

// SetupGrid is how it becomes a member: by a token, or by founding a microgrid.
type SetupGrid struct {
	Token     string       `yaml:"token,omitempty"` // secret
	Advertise []string     `yaml:"advertise,omitempty"`
	MaxPower  int64        `yaml:"max_power_w,omitempty"`
	Create    *SetupCreate `yaml:"create,omitempty"`
}

// SetupCreate is a microgrid to be founded, as `grid create` does: prices are per
// kWh.
type SetupCreate struct {
	Currency string `yaml:"currency,omitempty"`
	Retail   string `yaml:"retail,omitempty"`
	FeedIn   string `yaml:"feed_in,omitempty"`
}

// SetupPanel is the page.
type SetupPanel struct {
	Listen string `yaml:"listen,omitempty"` // left out: every address, port 8080
}

// ParseSetup reads a setup strictly. The error is Errors, each with its line;
// no value of the file stands in it, for it may be a secret.
func ParseSetup(b []byte) (s Setup, err error) {
	if len(b) > MaxSetup {
		return s, Errors{{Message: fmt.Sprintf("%d bytes, at most %d", len(b), MaxSetup)}}
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return s, Errors{{Message: "it is not a text: write it in UTF-8"}}
	}
	if e, bad := screen(b); bad {
		e.Message = "anchors, aliases, tags, directives and deep nesting are not used here"
		return s, Errors{e}
	}
	file, err := parser.ParseBytes(b, 0)
	if err != nil {
		return s, Errors{quiet(located(err, nil))}
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return s, Errors{{Message: "one YAML document is wanted"}}
	}
	if err := yaml.UnmarshalWithOptions(b, &s, yaml.Strict()); err != nil {
		return Setup{}, Errors{quiet(located(err, file))}
	}
	if errs := s.check(file); len(errs) > 0 {
		return Setup{}, errs
	}
	return s, nil
}

// quiet keeps what the parser quotes out of an error: a password with a colon
// in it is quoted as a mistake.
func quiet(e Error) Error {
	switch {
	case strings.HasPrefix(e.Message, "unknown field "), strings.HasPrefix(e.Message, "a "), strings.HasPrefix(e.Message, "duplicate key"):
		if i := strings.IndexByte(e.Message, '"'); i >= 0 && !strings.HasPrefix(e.Message, "unknown field ") {
			e.Message = strings.TrimSpace(e.Message[:i])
		}
	default:
		e.Message = "this is not YAML; quote texts that hold a colon, # or quotation marks"
	}
	return e
}

func (s *Setup) check(file *ast.File) Errors {
	k := &checker{}
	if s.Version != Version {
		k.add("version", "%d, this program reads %d", s.Version, Version)
	}
	if s.Applied != "" {
		return k.errs // it has been done: the rest is for people
	}
	if s.Name != "" && !word(s.Name) {
		k.add("name", "a-z, 0-9 and -, at most %d", chain.MaxName)
	}
	if s.Board != "" {
		if _, err := boards.Get(s.Board); err != nil {
			k.add("board", "not a board that this program knows; joulegate board ls lists them")
		}
	}
	s.network(k)
	s.broker(k)
	s.grid(k)
	if l := s.Panel.Listen; l != "" && !hostPort(l) {
		k.add("panel.listen", "want host:port")
	}
	if len(s.Installers) > MaxInstallers {
		k.add("installers", "%d, at most %d", len(s.Installers), MaxInstallers)
	}
	for i, v := range s.Installers {
		var key chain.Key
		if key.UnmarshalText([]byte(v)) != nil {
			k.add(fmt.Sprintf("installers[%d]", i), "a public key is 64 hexadecimal digits")
		}
	}
	for i := range k.errs {
		k.errs[i].Line, k.errs[i].Column = position(file, k.errs[i].Path)
	}
	return k.errs
}

func (s *Setup) network(k *checker) {
	n := s.Network
	if n.Address == "" {
		if n.Gateway != "" {
			k.add("network.gateway", "goes with network.address")
		}
	} else if p, err := netip.ParsePrefix(n.Address); err != nil || !p.Addr().Is4() {
		k.add("network.address", "an IPv4 address with its prefix, such as 192.168.1.20/24")
	} else if g, err := netip.ParseAddr(n.Gateway); n.Gateway != "" && (err != nil || !p.Contains(g)) {
		k.add("network.gateway", "is no address of %s", p.Masked())
	}
	if len(n.DNS) > 3 || len(n.NTP) > 8 {
		k.add("network", "at most 3 name servers and 8 time servers")
	}
	for i, d := range n.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			k.add(fmt.Sprintf("network.dns[%d]", i), "is no address")
		}
	}
}

func (s *Setup) broker(k *checker) {
	b := s.Broker
	if b.URL == "" {
		if b != (SetupBroker{}) {
			k.add("broker.url", "missing: tcp://host:1883 or tls://host:8883")
		}
		return
	}
	u, err := url.Parse(b.URL)
	if err != nil || u.Scheme != "tcp" && u.Scheme != "tls" || !hostPort(u.Host) || u.User != nil {
		k.add("broker.url", "want tcp://host:1883 or tls://host:8883; user and password have keys of their own")
	}
	if b.Password != "" && b.User == "" {
		k.add("broker.user", "missing: there is a password")
	}
	for _, f := range []struct{ key, name string }{{"ca_file", b.CAFile}, {"cert_file", b.CertFile}, {"key_file", b.KeyFile}} {
		if f.name != "" && (len(f.name) > 64 || strings.ContainsAny(f.name, "/\\\x00") || strings.HasPrefix(f.name, ".")) {
			k.add("broker."+f.key, "the name of a file that lies beside this one")
		}
	}
}

func (s *Setup) grid(k *checker) {
	g := s.Grid
	if g.Token != "" {
		if g.Create != nil {
			k.add("grid.create", "either token or create")
		}
		if _, err := chain.ParseToken(g.Token); err != nil {
			k.add("grid.token", "%v", err)
		}
	}
	if len(g.Advertise) > MaxListen {
		k.add("grid.advertise", "%d, at most %d", len(g.Advertise), MaxListen)
	}
	if g.MaxPower < 0 || g.MaxPower > 10_000_000 {
		k.add("grid.max_power_w", "outside 1..10000000")
	}
}

// Public returns the setup as a file that may lie about: when it was applied,
// and no secret.
func (s Setup) Public(applied string) []byte {
	s.Applied, s.Broker.Password, s.Broker.KeyFile, s.Grid.Token = applied, "", "", ""
	b, err := yaml.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("config: setup: %v", err)) // every field type is ours
	}
	return append([]byte("# The gateway has applied this setup and taken the secrets out of it. To set it\n# up anew, put another joulegate-setup.yaml in its place.\n"), b...)
}

// Apply returns c with what the setup says, and the secrets left out: names of
// files that hold them are the caller's. A nil c is a new gateway's.
func (s *Setup) Apply(c *Config, detected string) Config {
	var next Config
	if c == nil {
		next = Sample("gateway")
		// Nobody has said yet what is wired, and a guess would be a meter that
		// does not answer.
		next.Lines, next.Meters = nil, nil
		if detected != "" {
			next.Board = detected
		}
		next.Panel.Listen = "0.0.0.0:8080" // whoever installs it has no screen there
	} else {
		next = *c
	}
	set := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	set(&next.Name, s.Name)
	set(&next.Board, s.Board)
	set(&next.Panel.Listen, s.Panel.Listen)
	if s.Broker.URL != "" {
		next.MQTT.Broker, next.MQTT.User, next.MQTT.PasswordFile = s.Broker.URL, s.Broker.User, ""
	}
	if len(s.Installers) > 0 {
		next.Installers = s.Installers
	}
	return next
}
