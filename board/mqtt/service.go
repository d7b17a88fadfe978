package mqtt

import (
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/prometheus/client_golang/prometheus"
)

// Limits of the publisher.
const (
	MaxTopics  = 1024 // retained topics; a further one is an error to its caller
	MaxReplies = 256  // answers waiting; the oldest goes first
)

// Times of the connection. They bound how long a bad broker can occupy the
// sender; no caller ever waits for any of them.
const (
	connectTimeout = 10 * time.Second
	retryInterval  = 2 * time.Second
	writeTimeout   = 5 * time.Second
	ackTimeout     = 10 * time.Second
	keepAlive      = 30 * time.Second
	farewell       = time.Second // for the last status at shutdown
)

// Backoff is how long the line waits before it connects again: First after a
// connection that has lasted for Most, twice as long after each that has not,
// Most at last. What is waited in fact is a random part of it, from a half to
// the whole, so that gateways do not come back to a broker all at once.
type Backoff struct{ First, Most time.Duration }

// DefaultBackoff begins with a second and ends with one.
var DefaultBackoff = Backoff{time.Second, time.Minute}

// Severity of an event.
type Severity uint8

// Severities, as in chain.Event.
const (
	Info    Severity = 1
	Warning Severity = 2
	Alarm   Severity = 3
)

func (s Severity) String() string {
	switch s {
	case Info:
		return "info"
	case Warning:
		return "warning"
	case Alarm:
		return "alarm"
	}
	return fmt.Sprintf("severity(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Config describes the line of one gateway.
type Config struct {
	Gateway string // this gateway's topic level; also the user name at the embedded broker

	// Either a broker elsewhere, or an embedded one that this gateway hosts.
	URL      string // tcp://host:port or ssl://host:port; empty: embedded
	Username string
	Password string
	TLS      *tls.Config // for tls://
	Embedded *BrokerConfig
	Backoff  Backoff // zero: DefaultBackoff

	// Spool holds events until the broker has them; nil: one that forgets them
	// with the process.
	Spool *Spool

	// Discovery says what Home Assistant is told; nil: nothing.
	Discovery *Discovery

	// Utility takes orders of the utility from the topic utility/limit; nil:
	// nobody listens. It is called by one goroutine at a time or several, and
	// an error is logged. Retained messages are no sign of life and are
	// dropped.
	Utility func(LimitOrder) error

	// Remote is asked about what arrives on config/desired and cmd/#; nil:
	// nobody listens. It is called by one goroutine.
	Remote Remote
	// Once remembers commands across restarts; nil: one that forgets them with
	// the process.
	Once *Once

	Info    any // payload of the topic info: version, boot id, peer id, ...
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

// Service publishes what one gateway knows. Its Publish methods are safe for
// concurrent use and never wait for the network, before, during and after Run.
type Service struct {
	log     *slog.Logger
	gateway string
	root    string
	broker  *Broker // nil: elsewhere
	options func() *paho.ClientOptions
	open    func(ctx context.Context) (net.Conn, error)
	backoff Backoff

	mu      sync.Mutex
	state   map[string]*state
	dirty   []string // topics to send, oldest change first
	replies ring
	spool   *Spool

	remote    Remote
	once      *Once
	inbox     chan inbound
	subs      []subscription
	discovery *Discovery

	handing   sync.WaitGroup // see hand
	wake      chan struct{}  // holds a token while there may be something to send
	connected atomic.Bool
	connects  atomic.Uint64
	sent      atomic.Uint64
	dropped   atomic.Uint64
	failed    atomic.Uint64
	refused   atomic.Uint64 // messages that arrived faster than they are answered
}

// state is the latest value of a retained topic.
type state struct {
	qos     byte
	payload []byte
	queued  bool
}

// New checks cfg and, with an embedded broker, takes its address.
func New(cfg Config) (*Service, error) {
	if err := CheckLevel(cfg.Gateway); err != nil {
		return nil, fmt.Errorf("mqtt: gateway: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		log:     cfg.Log,
		gateway: cfg.Gateway,
		root:    Root + "/" + cfg.Gateway + "/",
		backoff: cfg.Backoff,
		state:   make(map[string]*state),
		spool:   cfg.Spool,
		wake:    make(chan struct{}, 1),

		remote:    cfg.Remote,
		once:      cfg.Once,
		inbox:     make(chan inbound, MaxInbox),
		discovery: cfg.Discovery,
	}
	if s.backoff == (Backoff{}) {
		s.backoff = DefaultBackoff
	}
	if s.spool == nil {
		s.spool = newSpool()
	}
	if s.once == nil {
		s.once = &Once{seen: map[string]time.Time{}}
	}
	s.spool.mu.Lock()
	s.spool.added = s.kick
	s.spool.mu.Unlock()
	s.subscribe(cfg)
	broker, user, password := cfg.URL, cfg.Username, cfg.Password

	switch {
	case cfg.URL == "" && cfg.Embedded == nil:
		return nil, errors.New("mqtt: neither a broker's URL nor an embedded broker")
	case cfg.URL != "" && cfg.Embedded != nil:
		return nil, errors.New("mqtt: a broker's URL and an embedded broker: choose one")
	case cfg.URL != "":
		u, err := url.Parse(cfg.URL)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("mqtt: broker %q is not tcp://host:port or ssl://host:port", cfg.URL)
		}
		switch u.Scheme {
		case "tcp", "mqtt", "ssl", "tls", "mqtts":
		default:
			return nil, fmt.Errorf("mqtt: broker %q: scheme %q is not tcp or ssl", cfg.URL, u.Scheme)
		}
		s.open = func(ctx context.Context) (net.Conn, error) { return dialBroker(ctx, u, cfg.TLS) }
	default:
		// The gateway itself is an ordinary client of its broker, over a pipe
		// and with a password that exists only in this process, so that the
		// embedded broker and any other see the same protocol.
		secret := crand.Text()
		hash, err := HashPassword(secret)
		if err != nil {
			return nil, err
		}
		bc := *cfg.Embedded
		prefix := DefaultPrefix
		if cfg.Discovery != nil && cfg.Discovery.Prefix != "" {
			prefix = cfg.Discovery.Prefix
		}
		bc.Users = append([]User{{Name: cfg.Gateway, Hash: hash, Rules: GatewayRules(cfg.Gateway, prefix)}}, bc.Users...)
		if bc.Log == nil {
			bc.Log = cfg.Log
		}
		if s.broker, err = NewBroker(bc); err != nil {
			return nil, err
		}
		broker, user, password = "tcp://embedded:1883", cfg.Gateway, secret
		s.open = func(context.Context) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() { _ = s.broker.server.EstablishConnection(listenerID, theirs) }() // our end notices
			return ours, nil
		}
	}
	s.options = func() *paho.ClientOptions {
		return paho.NewClientOptions().
			AddBroker(broker).SetUsername(user).SetPassword(password).
			SetClientID("joulegate-"+cfg.Gateway).
			SetProtocolVersion(4).
			SetCleanSession(false). // commands sent while this gateway is away wait at the broker
			SetStore(forgetful{}).
			SetOrderMatters(false).                         // else one slow handler stalls the connection
			SetConnectRetry(false).SetAutoReconnect(false). // keep does it
			SetConnectTimeout(connectTimeout).
			SetWriteTimeout(writeTimeout).
			SetKeepAlive(keepAlive).
			SetPingTimeout(ackTimeout).
			SetWill(s.root+topicStatus, offline, 1, true).
			SetDefaultPublishHandler(func(paho.Client, paho.Message) {}) // left-overs of an older session
	}
	if err := s.register(cfg.Metrics); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.put(s.root+topicStatus, 1, []byte(online)); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.announce(); err != nil {
		s.Close()
		return nil, err
	}
	if cfg.Info != nil {
		if err := s.publish(topicInfo, 1, cfg.Info); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// Addr returns the embedded broker's address, or "" when the broker is
// elsewhere.
func (s *Service) Addr() string {
	if s.broker == nil {
		return ""
	}
	return s.broker.Addr()
}

// Close gives back what New took, when Run is not going to be called.
func (s *Service) Close() {
	if s.broker != nil {
		s.broker.Close()
	}
}

// Stats counts what happened since New.
type Stats struct {
	Connected bool   `json:"connected"`
	Connects  uint64 `json:"connects"`
	Sent      uint64 `json:"sent"`    // messages the broker has taken
	Dropped   uint64 `json:"dropped"` // events and answers lost to a full queue
	Failed    uint64 `json:"failed"`  // connection attempts and sends that failed
	Waiting   int    `json:"waiting"` // messages to be sent
}

// Stats returns the counters.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	waiting := len(s.dirty) + s.replies.n
	s.mu.Unlock()
	events, dropped := s.spool.stats()
	return Stats{s.connected.Load(), s.connects.Load(), s.sent.Load(), s.dropped.Load() + dropped, s.failed.Load(), waiting + events}
}

func (s *Service) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	counter := func(name, help string, v func() uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "joulegate_mqtt_" + name, Help: help},
			func() float64 { return float64(v()) })
	}
	for _, c := range []prometheus.Collector{
		counter("sent_total", "Messages the broker has taken.", s.sent.Load),
		counter("dropped_total", "Events and answers lost because the queue was full.", func() uint64 { return s.Stats().Dropped }),
		counter("failed_total", "Connection attempts and sends that failed.", s.failed.Load),
		counter("refused_total", "Messages that arrived faster than they are answered.", s.refused.Load),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "joulegate_mqtt_connected", Help: "1 while connected to the broker."},
			func() float64 {
				if s.connected.Load() {
					return 1
				}
				return 0
			}),
	} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("mqtt metrics: %w", err)
		}
	}
	return nil
}

// Run connects, and reconnects for as long as ctx lives; it says offline,
// disconnects and returns when its goroutines have ended. A broker that cannot
// be reached is not an error.
func (s *Service) Run(ctx context.Context) error {
	if s.broker == nil {
		s.keep(ctx)
		return nil
	}
	// The broker outlives the client, so that "offline" still reaches whoever
	// watches.
	brokerCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	clientCtx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	served := make(chan error, 1)
	go func() {
		err := s.broker.Run(brokerCtx)
		giveUp()
		served <- err
	}()
	s.keep(clientCtx)
	stop()
	return <-served
}

// keep connects again and again until ctx ends. Every connection is a client
// of its own: one that has lost its connection holds message ids of what was
// under way, and would run out of them some day.
func (s *Service) keep(ctx context.Context) {
	var workers sync.WaitGroup
	defer s.handing.Wait()
	defer workers.Wait()
	defer s.spool.flush(s.log)
	if s.remote != nil {
		workers.Go(func() { s.obey(ctx) })
	}
	if s.discovery != nil {
		workers.Go(func() { s.welcome(ctx) })
	}
	told := map[string]bool{} // a broker that stays away is told of once, for each reason
	for wait := s.backoff.First; ; wait = min(2*wait, s.backoff.Most) {
		since := time.Now()
		err := s.connection(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(since) >= s.backoff.Most {
			wait = s.backoff.First
			clear(told)
		}
		level := slog.LevelDebug
		if text := ownPort.ReplaceAllString(err.Error(), "->"); !told[text] {
			if len(told) >= maxTold {
				clear(told)
			}
			told[text], level = true, slog.LevelWarn
		}
		s.log.Log(ctx, level, "mqtt broker not connected", "err", err, "again_within", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
	}
}

// ownPort is this end's port in an error of the network, which is another one
// each time.
var ownPort = regexp.MustCompile(`:\d+->`)

// maxTold bounds what is remembered of a broker's faults.
const maxTold = 16

// connection is one connection, from its dialling until it is lost or ctx
// ends. It returns when nothing of it is left.
func (s *Service) connection(ctx context.Context) error {
	link, cut := context.WithCancelCause(context.WithoutCancel(ctx)) // outlives ctx for the farewell
	defer cut(nil)
	dialled := context.AfterFunc(ctx, func() { cut(ctx.Err()) })
	o := s.options()
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		within, done := context.WithTimeout(link, connectTimeout)
		defer done()
		c, err := s.open(within)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(link, func() { c.Close() })
		return c, nil
	})
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { cut(fmt.Errorf("connection lost: %w", err)) })
	client := paho.NewClient(o)
	for _, sub := range s.subs {
		client.AddRoute(sub.filter, sub.take) // for what has waited at the broker: it comes at once
	}
	connect := client.Connect()
	<-connect.Done() // dialling ends by itself, and with ctx
	if err := connect.Error(); err != nil {
		s.failed.Add(1)
		return explain(err)
	}
	if !dialled() {
		client.Disconnect(0)
		return ctx.Err()
	}
	s.connects.Add(1)
	s.online()
	var listening sync.WaitGroup
	hearing, deaf := context.WithCancel(link)
	stopHearing := context.AfterFunc(ctx, deaf)
	listening.Go(func() { s.listen(hearing, client) })
	defer func() {
		s.connected.Store(false)
		stopHearing()
		deaf()
		var quiet uint // milliseconds
		if link.Err() == nil {
			said, enough := context.WithTimeout(link, farewell)
			_ = s.deliver(said, said, client, message{topic: s.root + topicStatus, qos: 1, retain: true, payload: []byte(offline)})
			enough()
			quiet = uint(farewell / 4 / time.Millisecond)
		}
		client.Disconnect(quiet)
		cut(nil)
		listening.Wait()
	}()
	s.send(ctx, link, client)
	if err := context.Cause(link); err != nil {
		return err
	}
	return ctx.Err()
}

// send is the only publisher.
func (s *Service) send(ctx, link context.Context, client paho.Client) {
	retry := time.NewTimer(0)
	<-retry.C
	for {
		select {
		case <-ctx.Done():
			return
		case <-link.Done():
			return
		case <-s.wake:
		case <-retry.C:
		}
		for ctx.Err() == nil && link.Err() == nil {
			m, ok := s.next()
			if !ok {
				break
			}
			if err := s.deliver(ctx, link, client, m); err != nil {
				s.again(m)
				if ctx.Err() == nil && link.Err() == nil {
					s.failed.Add(1)
					s.log.Warn("mqtt publish failed, trying again", "topic", m.topic, "err", err)
					retry.Reset(retryInterval)
				}
				break
			}
			s.delivered(m)
		}
		s.spool.flush(s.log)
	}
}

// deliver hands one message to the broker and waits until it has it.
func (s *Service) deliver(ctx, link context.Context, client paho.Client, m message) error {
	t, err := s.hand(link, func() paho.Token { return client.Publish(m.topic, m.qos, m.retain, m.payload) })
	if err != nil {
		return err
	}
	timeout := time.NewTimer(ackTimeout)
	defer timeout.Stop()
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return ctx.Err()
	case <-link.Done():
		return context.Cause(link)
	case <-timeout.C:
		return fmt.Errorf("no acknowledgement within %s", ackTimeout)
	}
}

// hand gives a packet to the library. If the connection is lost meanwhile, the
// library waits until writeTimeout for a writer that is gone; nobody waits
// with it.
func (s *Service) hand(link context.Context, f func() paho.Token) (paho.Token, error) {
	c := make(chan paho.Token, 1)
	s.handing.Go(func() { c <- f() })
	select {
	case t := <-c:
		return t, nil
	case <-link.Done():
		return nil, context.Cause(link)
	}
}

// online runs at every connect: the broker may have forgotten everything.
func (s *Service) online() {
	s.connected.Store(true)
	s.mu.Lock()
	s.dirty = s.dirty[:0]
	s.queue(s.root + topicStatus)
	s.queue(s.root + topicInfo)
	for topic := range s.state {
		if topic != s.root+topicStatus && topic != s.root+topicInfo {
			s.queue(topic)
		}
	}
	s.mu.Unlock()
	s.log.Info("mqtt connected", "topics", s.root+"#")
	s.kick()
}

// queue marks topic as to be sent. The caller holds mu.
func (s *Service) queue(topic string) {
	if st, ok := s.state[topic]; ok {
		st.queued = true
		s.dirty = append(s.dirty, topic)
	}
}

func (s *Service) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// forgetful is a paho store that keeps nothing. What must be sent again waits
// in this package, with a limit; the library's own memory has none, and its
// resumption after a connect races with the first publish.
type forgetful struct{}

func (forgetful) Open()                             {}
func (forgetful) Put(string, packets.ControlPacket) {}
func (forgetful) Get(string) packets.ControlPacket  { return nil }
func (forgetful) All() []string                     { return nil }
func (forgetful) Del(string)                        {}
func (forgetful) Close()                            {}
func (forgetful) Reset()                            {}

// message is one thing to send.
type message struct {
	topic   string // in full
	qos     byte
	retain  bool
	payload []byte
	seq     uint64 // of an event
}

// next takes who we are, then the oldest answer, because somebody waits for
// it, then the oldest event, or else the state that has waited longest.
func (s *Service) next() (message, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.dirty) == 0 || s.dirty[0] != s.root+topicStatus && s.dirty[0] != s.root+topicInfo {
		if m, ok := s.replies.pop(); ok {
			return m, true
		}
		if e, ok := s.spool.oldest(); ok {
			return message{topic: s.root + e.Topic, qos: 1, payload: e.Payload, seq: e.seq}, true
		}
	}
	if len(s.dirty) == 0 {
		return message{}, false
	}
	topic := s.dirty[0]
	s.dirty = s.dirty[1:]
	st := s.state[topic]
	st.queued = false
	return message{topic: topic, qos: st.qos, retain: true, payload: st.payload}, true
}

// again puts back what could not be sent, unless something newer took its
// place. An event is still in the spool.
func (s *Service) again(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.seq > 0 {
		return
	}
	if !m.retain {
		if !s.replies.unpop(m) {
			s.dropped.Add(1)
		}
		return
	}
	if st := s.state[m.topic]; !st.queued {
		st.queued = true
		s.dirty = append([]string{m.topic}, s.dirty...)
	}
}

// delivered notes that the broker has m.
func (s *Service) delivered(m message) {
	s.sent.Add(1)
	if m.seq > 0 {
		s.spool.taken(m.seq)
	}
	if m.retain && len(m.payload) == 0 { // it is gone
		s.mu.Lock()
		if st := s.state[m.topic]; !st.queued && len(st.payload) == 0 {
			delete(s.state, m.topic)
		}
		s.mu.Unlock()
		s.cleared(m.topic)
	}
}

// put stores the latest value of a retained topic; no bytes remove it.
func (s *Service) put(topic string, qos byte, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("mqtt: %s: payload of %d bytes, at most %d", topic, len(payload), MaxPayload)
	}
	s.mu.Lock()
	st, ok := s.state[topic]
	if !ok {
		if len(s.state) >= MaxTopics {
			s.mu.Unlock()
			return fmt.Errorf("mqtt: %s: more than %d state topics", topic, MaxTopics)
		}
		st = &state{}
		s.state[topic] = st
	}
	st.qos, st.payload = qos, payload
	if !st.queued {
		s.queue(topic)
	}
	s.mu.Unlock()
	s.kick()
	return nil
}

func (s *Service) publish(topic string, qos byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("mqtt: %s: %w", topic, err)
	}
	return s.put(s.root+topic, qos, b)
}

// Topics below the gateway's root, and the words of presence.
const (
	topicStatus = "status"
	topicInfo   = "info"
	topicMarket = "market/state"
	topicLedger = "ledger/state"
	topicGuard  = "guard/state"
	online      = "online"
	offline     = "offline"
)

// DeviceState is the payload of device/<id>/state.
type DeviceState struct {
	Time     time.Time `json:"time"`
	PowerW   *int64    `json:"power_w,omitempty"`   // import positive; nil: the device does not say
	ImportWh *int64    `json:"import_wh,omitempty"` // register
	ExportWh *int64    `json:"export_wh,omitempty"` // register
	Quality  string    `json:"quality"`
}

// PublishDevice publishes the last reading of a device.
func (s *Service) PublishDevice(id string, st DeviceState) error {
	if err := CheckLevel(id); err != nil {
		return fmt.Errorf("mqtt: device: %w", err)
	}
	return s.publish("device/"+id+"/state", 0, st)
}

// PublishAvailability publishes whether a device answers.
func (s *Service) PublishAvailability(id string, available bool) error {
	if err := CheckLevel(id); err != nil {
		return fmt.Errorf("mqtt: device: %w", err)
	}
	word := offline
	if available {
		word = online
	}
	return s.put(s.root+"device/"+id+"/availability", 1, []byte(word))
}

// PublishSession publishes the session at a charger's connector, from 1.
func (s *Service) PublishSession(connector int, session any) error {
	if connector < 1 || connector > 255 {
		return fmt.Errorf("mqtt: connector %d, 1..255", connector)
	}
	return s.publish(fmt.Sprintf("charger/%d/session", connector), 0, session)
}

// PublishMarket publishes the market's summary.
func (s *Service) PublishMarket(v any) error { return s.publish(topicMarket, 0, v) }

// PublishLedger publishes the ledger's summary.
func (s *Service) PublishLedger(v any) error { return s.publish(topicLedger, 0, v) }

// PublishGuard publishes the guard's summary.
func (s *Service) PublishGuard(v any) error { return s.publish(topicGuard, 0, v) }

// PublishEvent puts an event of a type such as "guard.question" on the disk and
// into the queue. What has a source that can be read again belongs into
// Spool.Add.
func (s *Service) PublishEvent(kind string, severity Severity, at time.Time, data any) error {
	return s.spool.Add("", "", Event{kind, severity, at, data})
}

// ring holds answers until they are sent.
type ring struct {
	buf   [MaxReplies]message
	first int
	n     int
}

// push appends m and reports whether that cost the oldest.
func (r *ring) push(m message) (lost bool) {
	if r.n == len(r.buf) {
		r.pop()
		lost = true
	}
	r.buf[(r.first+r.n)%len(r.buf)] = m
	r.n++
	return lost
}

func (r *ring) pop() (message, bool) {
	if r.n == 0 {
		return message{}, false
	}
	m := r.buf[r.first]
	r.buf[r.first] = message{}
	r.first = (r.first + 1) % len(r.buf)
	r.n--
	return m, true
}

// unpop puts the oldest back, if there is room.
func (r *ring) unpop(m message) bool {
	if r.n == len(r.buf) {
		return false
	}
	r.first = (r.first + len(r.buf) - 1) % len(r.buf)
	r.buf[r.first] = m
	r.n++
	return true
}

// Topic returns the full topic of a name below a gateway's root.
func Topic(gateway, name string) string { return strings.Join([]string{Root, gateway, name}, "/") }
