package mqtt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	paho "github.com/eclipse/paho.mqtt.golang"
)

const (
	topicUtility = "utility/limit"
	maxOrder     = 1 << 10 // bytes of an order
)

// LimitOrder is an order of the utility to all chargers of a gateway. It has
// to be repeated, as a sign of life, also while there is no limit.
type LimitOrder struct {
	Limit   int64 `json:"limit_w"`         // for each charger; 0: none
	Seconds int64 `json:"for_s,omitempty"` // 0: until the next order
}

// parseOrder reads an order: one JSON document, no unknown keys.
func parseOrder(b []byte) (o LimitOrder, err error) {
	if len(b) > maxOrder {
		return o, fmt.Errorf("order of %d bytes, at most %d", len(b), maxOrder)
	}
	if err := strict(b, &o); err != nil {
		return o, fmt.Errorf("order: %w", err)
	}
	if o.Limit < 0 || o.Limit > 10_000_000 || o.Seconds < 0 || o.Seconds > 7*86_400 {
		return o, fmt.Errorf("order: %d W for %d s: want no negative number, and at most a week", o.Limit, o.Seconds)
	}
	return o, nil
}

// strict reads one JSON document without unknown keys.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.Decode(new(json.RawMessage)) != io.EOF {
		return errors.New("more than one document")
	}
	return nil
}

func (s *Service) utility(m paho.Message, f func(LimitOrder) error) {
	if m.Retained() {
		return
	}
	o, err := parseOrder(m.Payload())
	if err == nil {
		err = f(o)
	}
	if err != nil {
		s.log.Warn("order of the utility refused", "err", err)
	}
}

// UtilityRules lets the utility's box give its orders and see that the gateway
// is there, and nothing else.
func UtilityRules() []Rule {
	return []Rule{{Access: Write, Filter: Root + "/+/" + topicUtility}, {Access: Read, Filter: Root + "/+/" + topicStatus}}
}
