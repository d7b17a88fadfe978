package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// Limits of what arrives.
const (
	MaxInbox      = 16        // messages waiting to be answered; further ones are dropped and counted
	maxCommand    = 64 << 10  // bytes of a command
	maxAhead      = time.Hour // a command that is valid for longer is refused: it is remembered that long
	maxRemembered = 1024      // transactions remembered; when full, commands are refused
	subscribeWait = 10 * time.Second
)

// Remote is what people may do over MQTT.
type Remote interface {
	// Desired takes the bytes of config/desired. A retained one may have been
	// here before.
	Desired(ctx context.Context, payload []byte, retained bool)
	// Command carries out a command that is valid, not expired and new. The
	// client is the level of the topic that the broker let him write.
	Command(ctx context.Context, client, name string, args json.RawMessage) (data any, err error)
	// Slow tells that a command may take longer than others can wait: it is
	// carried out beside them, one such at a time.
	Slow(name string) bool
}

// CommandError is an error with a code for the reply.
type CommandError struct{ Code, Text string }

func (e *CommandError) Error() string { return e.Text }

// Reply is the payload of rsp/<client>/<name>.
type Reply struct {
	Txn    string `json:"txn"`
	Status string `json:"status"` // ok or error
	Code   string `json:"code,omitempty"`
	Error  string `json:"error,omitempty"`
	Data   any    `json:"data,omitempty"`
}

// request is the payload of cmd/<client>/<name>.
type request struct {
	Txn  string          `json:"txn"`
	Exp  any             `json:"exp"` // Unix seconds, or RFC 3339
	Args json.RawMessage `json:"args"`
}

type inbound struct {
	topic    string // below the root
	payload  []byte
	retained bool
}

// subscription is something that this gateway listens to.
type subscription struct {
	filter string
	take   paho.MessageHandler
}

// subscribe lists what to listen to.
func (s *Service) subscribe(cfg Config) {
	if cfg.Remote != nil {
		take := func(_ paho.Client, m paho.Message) {
			select {
			case s.inbox <- inbound{strings.TrimPrefix(m.Topic(), s.root), m.Payload(), m.Retained()}:
			default:
				s.refused.Add(1)
			}
		}
		s.subs = append(s.subs, subscription{s.root + topicDesired, take}, subscription{s.root + "cmd/+/+", take})
	}
	if cfg.Utility != nil {
		s.subs = append(s.subs, subscription{s.root + topicUtility, func(_ paho.Client, m paho.Message) { s.utility(m, cfg.Utility) }})
	}
	if d := cfg.Discovery; d != nil && d.Prefix != "" {
		s.subs = append(s.subs, subscription{d.Prefix + "/status", func(_ paho.Client, m paho.Message) { d.heard(m) }})
	}
}

// listen subscribes, and again until the broker grants it: a denied
// subscription looks like a granted one but for its code.
func (s *Service) listen(ctx context.Context, c paho.Client) {
	wanted := s.subs
	for wait := retryInterval; ; wait = min(2*wait, s.backoff.Most) {
		var denied []subscription
		for _, sub := range wanted {
			t, err := s.hand(ctx, func() paho.Token { return c.Subscribe(sub.filter, 1, sub.take) })
			if err != nil || !granted(ctx, t) {
				denied = append(denied, sub)
			}
		}
		if wanted = denied; len(wanted) == 0 || ctx.Err() != nil {
			return
		}
		for _, sub := range wanted {
			s.log.Warn("mqtt broker does not let this gateway hear a topic, trying again: check its access list", "topic", sub.filter, "again_in", wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func granted(ctx context.Context, t paho.Token) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(subscribeWait):
		return false
	case <-t.Done():
	}
	sub, ok := t.(*paho.SubscribeToken)
	if !ok || t.Error() != nil {
		return false
	}
	for _, code := range sub.Result() {
		if code >= 0x80 {
			return false
		}
	}
	return true
}

// obey answers one message after another until ctx ends.
func (s *Service) obey(ctx context.Context) {
	var beside sync.WaitGroup
	defer beside.Wait()
	slow := make(chan struct{}, 1)
	for {
		select {
		case <-ctx.Done():
			return
		case in := <-s.inbox:
			if in.topic == topicDesired {
				s.remote.Desired(ctx, in.payload, in.retained)
				continue
			}
			level := strings.Split(in.topic, "/")
			if len(level) != 3 || CheckLevel(level[1]) != nil || CheckLevel(level[2]) != nil {
				continue
			}
			client, name := level[1], level[2]
			args, r := s.admit(client, in, time.Now())
			switch {
			case r.Code == "retained":
				s.log.Warn("retained command refused", "topic", in.topic)
				s.reply(client, name, r)
			case r.Status != "":
				s.reply(client, name, r)
			case !s.remote.Slow(name):
				s.reply(client, name, s.execute(ctx, client, name, r.Txn, args))
			default:
				select {
				case slow <- struct{}{}:
				default:
					s.reply(client, name, Reply{Txn: r.Txn, Status: "error", Code: "busy", Error: "another command that takes long is being carried out"})
					continue
				}
				beside.Go(func() {
					defer func() { <-slow }()
					s.reply(client, name, s.execute(ctx, client, name, r.Txn, args))
				})
			}
		}
	}
}

// admit judges a command. The reply has a status if it is refused.
func (s *Service) admit(client string, in inbound, now time.Time) (json.RawMessage, Reply) {
	r, exp, err := parseRequest(in.payload)
	fail := func(code, format string, a ...any) (json.RawMessage, Reply) {
		return nil, Reply{Txn: r.Txn, Status: "error", Code: code, Error: fmt.Sprintf(format, a...)}
	}
	switch {
	case err != nil:
		return fail("invalid", "%v", err)
	case in.retained:
		return fail("retained", "a command must not be retained: it would be carried out again at every connect")
	case !exp.After(now):
		return fail("expired", "exp: the command was valid until %s, it is %s", exp.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case exp.Sub(now) > maxAhead:
		return fail("invalid", "exp: more than %s ahead", maxAhead)
	}
	switch err := s.once.take(client, r.Txn, exp, now); {
	case errors.Is(err, errReplayed):
		return fail("replayed", "txn: %q %v", r.Txn, err)
	case errors.Is(err, errFull):
		return fail("busy", "%v", err)
	case err != nil:
		return fail("unavailable", "not carried out, because it could not be remembered: %v", err)
	}
	return r.Args, Reply{Txn: r.Txn}
}

// execute carries a command out.
func (s *Service) execute(ctx context.Context, client, name, txn string, args json.RawMessage) Reply {
	data, err := s.remote.Command(ctx, client, name, args)
	if err != nil {
		code := "failed"
		if c, ok := err.(*CommandError); ok { //nolint:errorlint // made by the wiring as it is
			code = c.Code
		}
		return Reply{Txn: txn, Status: "error", Code: code, Error: err.Error()}
	}
	return Reply{Txn: txn, Status: "ok", Data: data}
}

// parseRequest reads a command: one JSON document, no unknown keys.
func parseRequest(b []byte) (r request, exp time.Time, err error) {
	if len(b) > maxCommand {
		return r, exp, fmt.Errorf("command of %d bytes, at most %d", len(b), maxCommand)
	}
	if err := strict(b, &r); err != nil {
		return r, exp, fmt.Errorf("command: %w", err)
	}
	if r.Txn == "" || len(r.Txn) > maxLevel {
		return request{}, exp, fmt.Errorf("txn: a name of 1 to %d bytes is required", maxLevel)
	}
	switch v := r.Exp.(type) {
	case float64:
		if v < 0 || v > 1e11 {
			return r, exp, fmt.Errorf("exp: %v is no time in seconds since 1970", v)
		}
		exp = time.Unix(int64(v), 0)
	case string:
		if exp, err = time.Parse(time.RFC3339, v); err != nil {
			return r, exp, fmt.Errorf("exp: %w", err)
		}
	default:
		return r, exp, fmt.Errorf("exp is required: Unix seconds, or a time such as 2026-05-01T14:03:00Z")
	}
	return r, exp, nil
}

// reply queues an answer.
func (s *Service) reply(client, name string, r Reply) {
	b, err := json.Marshal(r)
	if err != nil || len(b) > MaxPayload {
		b, _ = json.Marshal(Reply{Txn: r.Txn, Status: "error", Code: "too_large", Error: "the answer does not fit into a message"})
	}
	s.mu.Lock()
	if s.replies.push(message{topic: s.root + "rsp/" + client + "/" + name, qos: 1, payload: b}) {
		s.dropped.Add(1)
	}
	s.mu.Unlock()
	s.kick()
}

const (
	topicDesired  = "config/desired"
	topicResult   = "config/result"
	topicReported = "config/reported"
	topicSchema   = "schema/config"
)

// PublishConfig publishes the configuration in force; PublishResult what
// became of the last change; PublishSchema what a configuration may hold.
func (s *Service) PublishConfig(v any) error { return s.publish(topicReported, 1, v) }

// PublishResult publishes what became of a change.
func (s *Service) PublishResult(v any) error { return s.publish(topicResult, 1, v) }

// PublishCommand publishes the schema of a command's args.
func (s *Service) PublishCommand(name string, schema any) error {
	if err := CheckLevel(name); err != nil {
		return fmt.Errorf("mqtt: command: %w", err)
	}
	return s.publish("schema/cmd/"+name, 1, schema)
}

// PublishSchema publishes the schema of the configuration.
func (s *Service) PublishSchema(v any) error { return s.publish(topicSchema, 1, v) }
