package mqtt

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
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
	MaxTopics = 1024 // state topics; a further one is an error to its caller
	MaxEvents = 1024 // events waiting; the oldest goes first
)

// Times of the connection. They bound how long a bad broker can occupy the
// sender; no caller ever waits for any of them.
const (
	connectTimeout   = 10 * time.Second
	retryInterval    = 2 * time.Second
	maxRetryInterval = 30 * time.Second
	writeTimeout     = 10 * time.Second
	ackTimeout       = 10 * time.Second
	keepAlive        = 30 * time.Second
	farewell         = time.Second // for the last status at shutdown
)

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
	TLS      *tls.Config // for ssl://
	Embedded *BrokerConfig

	// Utility takes orders of the utility from the topic utility/limit; nil:
	// nobody listens. It is called by one goroutine at a time or several, and
	// an error is logged. Retained messages are no sign of life and are
	// dropped.
	Utility func(LimitOrder) error

	// Remote is asked about what arrives on config/desired and cmd/#; nil:
	// nobody listens. It is called by one goroutine.
	Remote Remote

	Info    any // payload of the topic info: version, boot id, peer id, ...
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

// Service publishes what one gateway knows. Its Publish methods are safe for
// concurrent use and never block on the network, before, during and after
// Run.
type Service struct {
	log     *slog.Logger
	root    string
	broker  *Broker // nil: elsewhere
	options *paho.ClientOptions

	mu     sync.Mutex
	state  map[string]*state
	dirty  []string // topics to send, oldest change first
	events ring
	seq    uint64

	remote Remote
	inbox  chan inbound
	fresh  chan struct{} // holds a token after a connect: subscribe anew

	wake      chan struct{} // holds a token while there may be something to send
	connected atomic.Bool
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
		log:   cfg.Log,
		root:  Root + "/" + cfg.Gateway + "/",
		state: make(map[string]*state),
		wake:  make(chan struct{}, 1),

		remote: cfg.Remote,
		inbox:  make(chan inbound, MaxInbox),
		fresh:  make(chan struct{}, 1),
	}
	o := paho.NewClientOptions().
		SetClientID("joulegate-"+cfg.Gateway).
		SetProtocolVersion(4).
		SetCleanSession(false). // subscriptions and what waits in them survive a reconnect
		SetStore(forgetful{}).
		SetOrderMatters(false). // else one slow handler stalls the connection
		SetConnectRetry(true).
		SetConnectRetryInterval(retryInterval).
		SetAutoReconnect(true).
		SetMaxReconnectInterval(maxRetryInterval).
		SetConnectTimeout(connectTimeout).
		SetWriteTimeout(writeTimeout).
		SetKeepAlive(keepAlive).
		SetPingTimeout(ackTimeout).
		SetWill(s.root+topicStatus, offline, 1, true).
		SetDefaultPublishHandler(func(paho.Client, paho.Message) {}). // left-overs of an older session
		SetOnConnectHandler(func(c paho.Client) {
			s.online()
			if cfg.Remote != nil {
				select {
				case s.fresh <- struct{}{}:
				default:
				}
			}
			if cfg.Utility != nil {
				c.Subscribe(s.root+topicUtility, 1, func(_ paho.Client, m paho.Message) { s.utility(m, cfg.Utility) })
			}
		}).
		SetConnectionLostHandler(func(_ paho.Client, err error) {
			s.connected.Store(false)
			s.log.Warn("mqtt connection lost", "err", err)
		}).
		SetConnectionNotificationHandler(func(_ paho.Client, n paho.ConnectionNotification) {
			if f, ok := n.(paho.ConnectionNotificationBrokerFailed); ok {
				s.failed.Add(1)
				s.log.Debug("mqtt broker not reached", "err", f.Reason)
			}
		})

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
		o.AddBroker(cfg.URL).SetUsername(cfg.Username).SetPassword(cfg.Password)
		if cfg.TLS != nil {
			o.SetTLSConfig(cfg.TLS)
		}
	default:
		// The gateway itself is an ordinary client of its broker, over a pipe
		// and with a password that exists only in this process, so that the
		// embedded broker and any other see the same protocol.
		secret := rand.Text()
		hash, err := HashPassword(secret)
		if err != nil {
			return nil, err
		}
		bc := *cfg.Embedded
		bc.Users = append([]User{{Name: cfg.Gateway, Hash: hash, Rules: GatewayRules(cfg.Gateway)}}, bc.Users...)
		if bc.Log == nil {
			bc.Log = cfg.Log
		}
		if s.broker, err = NewBroker(bc); err != nil {
			return nil, err
		}
		o.AddBroker("tcp://embedded:1883").SetUsername(cfg.Gateway).SetPassword(secret)
		o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() { _ = s.broker.server.EstablishConnection(listenerID, theirs) }() // our end notices
			return ours, nil
		})
	}
	s.options = o
	if err := s.register(cfg.Metrics); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.put(topicStatus, 1, []byte(online)); err != nil {
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
	Sent      uint64 `json:"sent"`    // messages the broker has taken
	Dropped   uint64 `json:"dropped"` // events lost to a full ring
	Failed    uint64 `json:"failed"`  // connection attempts and sends that failed
	Waiting   int    `json:"waiting"` // messages to be sent
}

// Stats returns the counters.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	waiting := len(s.dirty) + s.events.n
	s.mu.Unlock()
	return Stats{s.connected.Load(), s.sent.Load(), s.dropped.Load(), s.failed.Load(), waiting}
}

func (s *Service) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	counter := func(name, help string, v *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "joulegate_mqtt_" + name, Help: help},
			func() float64 { return float64(v.Load()) })
	}
	for _, c := range []prometheus.Collector{
		counter("sent_total", "Messages the broker has taken.", &s.sent),
		counter("dropped_total", "Events lost because the ring was full.", &s.dropped),
		counter("failed_total", "Connection attempts and sends that failed.", &s.failed),
		counter("refused_total", "Messages that arrived faster than they are answered.", &s.refused),
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
		s.send(ctx)
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
	s.send(clientCtx)
	stop()
	return <-served
}

// send owns the client and is the only publisher.
func (s *Service) send(ctx context.Context) {
	client := paho.NewClient(s.options)
	if s.remote != nil {
		var workers sync.WaitGroup
		defer workers.Wait()
		workers.Go(func() { s.obey(ctx) })
		workers.Go(func() { s.listen(ctx, client) })
	}
	client.Connect() // ConnectRetry: the token means nothing until it succeeds
	defer func() {
		if client.IsConnectionOpen() {
			t := client.Publish(s.root+topicStatus, 1, true, offline)
			t.WaitTimeout(farewell)
		}
		client.Disconnect(uint(farewell / 4 / time.Millisecond))
		s.connected.Store(false)
	}()
	retry := time.NewTimer(0)
	<-retry.C
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-retry.C:
		}
		for ctx.Err() == nil && client.IsConnectionOpen() {
			m, ok := s.next()
			if !ok {
				break
			}
			if err := s.deliver(ctx, client, m); err != nil {
				s.again(m)
				if ctx.Err() == nil {
					s.failed.Add(1)
					s.log.Warn("mqtt publish failed, trying again", "topic", m.topic, "err", err)
					retry.Reset(retryInterval)
				}
				break
			}
			s.sent.Add(1)
		}
	}
}

// deliver hands one message to the broker and waits until it has it.
func (s *Service) deliver(ctx context.Context, client paho.Client, m message) error {
	t := client.Publish(s.root+m.topic, m.qos, m.retain, m.payload)
	timeout := time.NewTimer(ackTimeout)
	defer timeout.Stop()
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return ctx.Err()
	case <-timeout.C:
		return fmt.Errorf("no acknowledgement within %s", ackTimeout)
	}
}

// online runs at every connect: the broker may have forgotten everything.
func (s *Service) online() {
	s.connected.Store(true)
	s.mu.Lock()
	s.dirty = s.dirty[:0]
	s.queue(topicStatus)
	s.queue(topicInfo)
	for topic := range s.state {
		if topic != topicStatus && topic != topicInfo {
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
	topic   string
	qos     byte
	retain  bool
	payload []byte
	event   bool
}

// next takes the oldest event, or else the state that has waited longest.
func (s *Service) next() (message, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.dirty) > 0 && (s.events.n == 0 || s.dirty[0] == topicStatus || s.dirty[0] == topicInfo) {
		topic := s.dirty[0]
		s.dirty = s.dirty[1:]
		st := s.state[topic]
		st.queued = false
		return message{topic: topic, qos: st.qos, retain: true, payload: st.payload}, true
	}
	return s.events.pop()
}

// again puts back what could not be sent, unless something newer took its
// place.
func (s *Service) again(m message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.event {
		if !s.events.unpop(m) {
			s.dropped.Add(1)
		}
		return
	}
	if st := s.state[m.topic]; !st.queued {
		st.queued = true
		s.dirty = append([]string{m.topic}, s.dirty...)
	}
}

// put stores the latest value of a state topic.
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
	return s.put(topic, qos, b)
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
	return s.put("device/"+id+"/availability", 1, []byte(word))
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

// event is the payload of event/<type>.
type event struct {
	Seq      uint64    `json:"seq"` // +1 per event since the boot that info names; a gap is a loss
	Time     time.Time `json:"time"`
	Severity Severity  `json:"severity"`
	Data     any       `json:"data"`
}

// PublishEvent queues an event of a type such as "session.closed".
func (s *Service) PublishEvent(kind string, severity Severity, at time.Time, data any) error {
	if err := CheckLevel(kind); err != nil {
		return fmt.Errorf("mqtt: event: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := json.Marshal(event{s.seq + 1, at.UTC(), severity, data})
	if err != nil {
		return fmt.Errorf("mqtt: event %s: %w", kind, err)
	}
	if len(b) > MaxPayload {
		return fmt.Errorf("mqtt: event %s: payload of %d bytes, at most %d", kind, len(b), MaxPayload)
	}
	s.seq++
	if s.events.push(message{topic: "event/" + kind, qos: 1, payload: b, event: true}) {
		s.dropped.Add(1)
	}
	s.kick()
	return nil
}

// ring holds events until they are sent.
type ring struct {
	buf   [MaxEvents]message
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
