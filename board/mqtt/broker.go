package mqtt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"sync"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Limits of the embedded broker. A client beyond them is refused or
// disconnected; nobody else notices.
const (
	MaxClients     = 64
	MaxRetained    = 4096 // retained topics; further new ones are not accepted
	maxInflight    = 256  // unacknowledged messages per client
	maxPending     = 512  // messages waiting for a slow client; more are dropped
	maxSession     = 3600 // seconds a disconnected client's session is kept
	packetOverhead = 1024 // topic and properties on top of MaxPayload
)

// User may connect to the embedded broker.
type User struct {
	Name  string // one topic level, see CheckLevel
	Hash  string // of the password, see HashPassword
	Rules []Rule
}

// BrokerConfig describes the embedded broker.
type BrokerConfig struct {
	Listen string      // host:port; default 127.0.0.1:1883; port 0 takes any free one
	TLS    *tls.Config // nil: plain, which only a loopback address may be; with ClientCAs, a client's certificate is a login for the user of its common name
	Plain  bool        // allow passwords in the clear beyond loopback, on a network the installer answers for
	Users  []User
	Log    *slog.Logger
}

// Broker is the embedded broker. It holds its address from New on and serves
// in Run.
type Broker struct {
	log    *slog.Logger
	ln     net.Listener
	server *mochi.Server
}

const listenerID = "line"

// NewBroker checks the users and takes the address.
func NewBroker(cfg BrokerConfig) (*Broker, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:1883"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	g := &guard{users: make(map[string]account, len(cfg.Users)), log: cfg.Log}
	for _, u := range cfg.Users {
		if err := CheckLevel(u.Name); err != nil {
			return nil, fmt.Errorf("mqtt user: %w", err)
		}
		s, err := parseSecret(u.Hash)
		if err != nil {
			return nil, fmt.Errorf("mqtt user %s: %w", u.Name, err)
		}
		if _, dup := g.users[u.Name]; dup {
			return nil, fmt.Errorf("mqtt user %s is listed twice", u.Name)
		}
		for _, r := range u.Rules {
			if !mochi.IsValidFilter(r.Filter, false) {
				return nil, fmt.Errorf("mqtt user %s: %q is not a topic filter", u.Name, r.Filter)
			}
		}
		g.users[u.Name] = account{secret: s, rules: u.Rules}
	}
	// A user nobody is, so that an unknown name costs as much time as a
	// wrong password.
	decoy, err := HashPassword(rand.Text())
	if err != nil {
		return nil, err
	}
	if g.decoy, err = parseSecret(decoy); err != nil {
		return nil, err
	}

	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("mqtt broker: %w", err)
	}
	if ip := ln.Addr().(*net.TCPAddr).IP; cfg.TLS == nil && !cfg.Plain && !ip.IsLoopback() {
		ln.Close()
		return nil, fmt.Errorf("mqtt broker on %s without TLS would send passwords in the clear: listen on 127.0.0.1 or give it a certificate", cfg.Listen)
	}
	if cfg.TLS != nil {
		ln = tls.NewListener(ln, cfg.TLS)
	}
	caps := mochi.NewDefaultServerCapabilities()
	caps.MaximumClients = MaxClients
	caps.MaximumMessageExpiryInterval = 0 // else retained messages vanish after a day
	caps.MaximumClientWritesPending = maxPending
	caps.MaximumSessionExpiryInterval = maxSession
	caps.MaximumPacketSize = MaxPayload + packetOverhead
	caps.MaximumInflight = maxInflight
	caps.ReceiveMaximum = maxInflight
	caps.TopicAliasMaximum = 0  // the access check sees the topic before the alias is resolved
	caps.SharedSubAvailable = 0 // "$share/..." would need its own rules
	server := mochi.New(&mochi.Options{
		Capabilities:           caps,
		Logger:                 slog.New(quiet{cfg.Log.Handler()}),
		SysTopicResendInterval: 60,
	})
	g.server = server
	if err := server.AddHook(g, nil); err != nil {
		ln.Close()
		return nil, fmt.Errorf("mqtt broker: %w", err)
	}
	if err := server.AddListener(listeners.NewNet(listenerID, ln)); err != nil {
		ln.Close()
		return nil, fmt.Errorf("mqtt broker: %w", err)
	}
	return &Broker{log: cfg.Log, ln: ln, server: server}, nil
}

// Addr returns the address on which the broker listens.
func (b *Broker) Addr() string { return b.ln.Addr().String() }

// Run serves until ctx ends, then disconnects everybody and returns when all
// connections are gone.
func (b *Broker) Run(ctx context.Context) error {
	if err := b.server.Serve(); err != nil {
		b.ln.Close()
		return fmt.Errorf("mqtt broker: %w", err)
	}
	b.log.Info("mqtt broker serves", "address", b.Addr())
	<-ctx.Done()
	if err := b.server.Close(); err != nil {
		return fmt.Errorf("close mqtt broker: %w", err)
	}
	return nil
}

// Close gives the address back without having run.
func (b *Broker) Close() error { return b.ln.Close() }

// guard is the broker's hook for authentication and access: deny by default,
// first match decides.
type guard struct {
	mochi.HookBase
	server *mochi.Server
	users  map[string]account // constant after NewBroker
	decoy  secret
	log    *slog.Logger
	one    sync.Mutex // hashing is deliberately expensive: one at a time, so that a flood of logins takes one core at most
}

type account struct {
	secret secret
	rules  []Rule
}

// ID implements mochi.Hook.
func (g *guard) ID() string { return "joulegate-access" }

// Provides implements mochi.Hook.
func (g *guard) Provides(b byte) bool {
	return bytes.IndexByte([]byte{mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnPublish}, b) >= 0
}

// OnConnectAuthenticate checks name and password, that the client id is not
// another user's session, and that the will is something the user may say.
func (g *guard) OnConnectAuthenticate(cl *mochi.Client, pk packets.Packet) bool {
	name := string(pk.Connect.Username)
	if cert := certifiedName(cl.Net.Conn); cert != "" && (name == "" || name == cert) && len(pk.Connect.Password) == 0 {
		if _, known := g.users[cert]; !known {
			g.log.Warn("mqtt login refused: no user has the name of the certificate", "remote", cl.Net.Remote, "user", printable(cert))
			return false
		}
		cl.Properties.Username, pk.Connect.Username = []byte(cert), []byte(cert)
		return g.mayConnect(cl, pk, cert)
	}
	acc, known := g.users[name]
	sec := acc.secret
	if !known {
		sec = g.decoy
	}
	g.one.Lock()
	ok := sec.check(pk.Connect.Password)
	g.one.Unlock()
	if !ok || !known {
		g.log.Warn("mqtt login refused", "remote", cl.Net.Remote, "user", printable(name))
		return false
	}
	return g.mayConnect(cl, pk, name)
}

// certifiedName is the common name of a client's certificate that was
// verified.
func certifiedName(c net.Conn) string {
	t, ok := c.(*tls.Conn)
	if !ok {
		return ""
	}
	if chains := t.ConnectionState().VerifiedChains; len(chains) > 0 {
		return chains[0][0].Subject.CommonName
	}
	return ""
}

// mayConnect judges what a user who has proven his name asks for.
func (g *guard) mayConnect(cl *mochi.Client, pk packets.Packet, name string) bool {
	if old, exists := g.server.Clients.Get(cl.ID); exists && !bytes.Equal(old.Properties.Username, pk.Connect.Username) {
		g.log.Warn("mqtt login refused: the client id belongs to another user", "remote", cl.Net.Remote, "user", name)
		return false
	}
	if pk.Connect.WillFlag && !allowed(g.users[name].rules, Write, pk.Connect.WillTopic) {
		g.log.Warn("mqtt login refused: its will is on a topic it may not write", "remote", cl.Net.Remote, "user", name)
		return false
	}
	return true
}

// OnACLCheck decides about a publish, a subscription and every delivery.
func (g *guard) OnACLCheck(cl *mochi.Client, topic string, write bool) bool {
	acc, known := g.users[string(cl.Properties.Username)]
	if !known {
		return false
	}
	if write {
		return allowed(acc.rules, Write, topic)
	}
	return subscribable(acc.rules, topic)
}

// OnPublish bounds what a client can make the broker remember.
func (g *guard) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	_, known := g.server.Topics.Retained.Get(pk.TopicName)
	switch {
	case len(pk.Payload) > MaxPayload || len(pk.TopicName) > MaxTopic:
	case pk.FixedHeader.Retain && len(pk.Payload) > 0 && !known && g.server.Topics.Retained.Len() >= MaxRetained:
	default:
		return pk, nil
	}
	g.log.Warn("mqtt message over a limit dropped", "user", string(cl.Properties.Username), "bytes", len(pk.Payload))
	if cl.Properties.ProtocolVersion == 5 && pk.FixedHeader.Qos > 0 {
		return pk, packets.ErrQuotaExceeded
	}
	// MQTT 3.1.1 has no word for a refusal; any other error than this one
	// would let the library publish all the same.
	return pk, packets.CodeSuccessIgnore
}

// printable shortens what a stranger sent to something fit for a log.
func printable(s string) string {
	if CheckLevel(s) != nil {
		return "(unprintable)"
	}
	return s
}

// quiet passes only the library's errors on: a stranger's malformed packet is
// a warning per connection there, which would let him fill the log.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError && q.Handler.Enabled(ctx, l)
}
