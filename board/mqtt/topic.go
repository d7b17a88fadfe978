package mqtt

import (
	"fmt"
	"strings"
)

// Root is the first two levels of every topic: product and version of the
// topic layout.
const Root = "joulegate/1"

// Limits of names and topics.
const (
	MaxPayload = 256 << 10 // bytes of one message, in either direction
	MaxTopic   = 256       // bytes of one topic
	maxLevel   = 64        // bytes of one name used as a topic level
)

// CheckLevel reports whether name can be one level of a topic: 1..64 of
// A-Z a-z 0-9 _ . -
func CheckLevel(name string) error {
	if name == "" || len(name) > maxLevel {
		return fmt.Errorf("name %q has %d bytes, 1..%d", name, len(name), maxLevel)
	}
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '.', r == '-':
		default:
			return fmt.Errorf("name %q: %q is not of A-Z a-z 0-9 _ . -", name, r)
		}
	}
	return nil
}

// matches reports whether filter selects topic (MQTT 5.0 section 4.7).
func matches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && !strings.HasPrefix(filter, "$") {
		return false // section 4.7.2
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !fmore && !tmore {
			return true
		}
		if fmore && !tmore {
			return frest == "#" // "a/#" selects "a"
		}
		if !fmore {
			return false
		}
		filter, topic = frest, trest
	}
}

// overlaps reports whether some topic is selected by both filters.
func overlaps(a, b string) bool {
	if strings.HasPrefix(a, "$") != strings.HasPrefix(b, "$") {
		return false
	}
	for {
		x, xrest, xmore := strings.Cut(a, "/")
		y, yrest, ymore := strings.Cut(b, "/")
		if x == "#" || y == "#" {
			return true
		}
		if x != "+" && y != "+" && x != y {
			return false
		}
		switch {
		case !xmore && !ymore:
			return true
		case !xmore:
			return yrest == "#"
		case !ymore:
			return xrest == "#"
		}
		a, b = xrest, yrest
	}
}

// Access says what a rule speaks about.
type Access uint8

// Accesses.
const (
	Read      Access = 1 << iota // subscribe and receive
	Write                        // publish
	ReadWrite = Read | Write
)

// Rule allows or denies an access to the topics a filter selects. The first
// rule of a user that matches decides.
type Rule struct {
	Access Access
	Filter string // MQTT topic filter
	Begins string // the topic must also begin so, which may end within a level; "": it need not
	Deny   bool
}

func (r Rule) selects(access Access, topic string) bool {
	return r.Access&access != 0 && matches(r.Filter, topic) && strings.HasPrefix(topic, r.Begins)
}

// allowed decides about one topic.
func allowed(rules []Rule, access Access, topic string) bool {
	for _, r := range rules {
		if r.selects(access, topic) {
			return !r.Deny
		}
	}
	return false
}

// subscribable decides about a subscription. With wildcards it may select
// more than the user may read: what is delivered is decided per topic, so it
// is enough that there is something to read.
func subscribable(rules []Rule, filter string) bool {
	if !strings.ContainsAny(filter, "+#") {
		return allowed(rules, Read, filter)
	}
	for _, r := range rules {
		if r.Access&Read != 0 && !r.Deny && overlaps(r.Filter, filter) {
			return true
		}
	}
	return false
}

// GatewayRules lets a gateway use its own subtree, and below the prefix of
// Home Assistant tell its own devices and hear when that has begun.
func GatewayRules(gateway, prefix string) []Rule {
	return []Rule{
		{Access: ReadWrite, Filter: Root + "/" + gateway + "/#"},
		{Access: Write, Filter: prefix + "/device/+/config", Begins: prefix + "/device/joulegate_" + gateway + "_"},
		{Access: Read, Filter: prefix + "/status"},
	}
}

// InstallerRules lets an installer read everything, propose a configuration,
// and send commands and receive replies under his own name only.
func InstallerRules(user string) []Rule {
	return []Rule{
		{Access: Write, Filter: Root + "/+/config/desired"},
		{Access: Write, Filter: Root + "/+/cmd/" + user + "/+"},
		{Access: Read, Filter: Root + "/+/rsp/" + user + "/+"},
		{Access: Read, Filter: Root + "/+/rsp/#", Deny: true},
		{Access: Read, Filter: Root + "/+/cmd/#", Deny: true},
		{Access: Read, Filter: Root + "/#"},
	}
}

// ObserverRules lets a dashboard read states and events, neither
// configurations nor commands.
func ObserverRules() []Rule {
	return []Rule{
		{Access: Read, Filter: Root + "/+/rsp/#", Deny: true},
		{Access: Read, Filter: Root + "/+/cmd/#", Deny: true},
		{Access: Read, Filter: Root + "/+/config/#", Deny: true},
		{Access: Read, Filter: Root + "/#"},
	}
}
