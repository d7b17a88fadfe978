package domain

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/idna"
)

// Limits of a name, RFC 1035 section 2.3.4.
const (
	maxName  = 253
	maxLabel = 63
)

var errEmpty = errors.New("empty name")

// Canonical returns a name as it is compared: lower case, without the final
// dot, Unicode as Punycode (RFC 5891). Underscores are allowed, as services
// use them.
func Canonical(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	if name == "" {
		return "", errEmpty
	}
	plain := true
	for i := range len(name) {
		if c := name[i]; c >= 0x80 {
			ascii, err := idna.Punycode.ToASCII(strings.ToLower(name))
			if err != nil {
				return "", fmt.Errorf("name %q: %w", clip(name), err)
			}
			name, plain = ascii, false
			break
		} else if c >= 'A' && c <= 'Z' {
			plain = false
		}
	}
	if !plain {
		name = strings.ToLower(name)
	}
	return name, check(name)
}

func check(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("name %q has %d characters, at most %d", clip(name), len(name), maxName)
	}
	label := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			if label == 0 {
				return fmt.Errorf("name %q has an empty label", clip(name))
			}
			label = 0
			continue
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return fmt.Errorf("name %q: character %q", clip(name), c)
		}
		if label++; label > maxLabel {
			return fmt.Errorf("name %q: a label of more than %d characters", clip(name), maxLabel)
		}
	}
	if label == 0 {
		return fmt.Errorf("name %q has an empty label", clip(name))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
