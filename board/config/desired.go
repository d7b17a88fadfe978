package config

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/joulegate/joulegate/chain"
)

// Ways to state a change.
const (
	Merge   = "merge"   // JSON merge patch (RFC 7396); a list of things with an id may be patched by an object of ids
	Replace = "replace" // the whole configuration
	DryRun  = "dry_run" // as merge, and nothing is changed
)

// Desired is the payload of config/desired.
type Desired struct {
	Txn      string          `json:"txn"`
	Base     uint64          `json:"base_rev"`
	Mode     string          `json:"mode"`
	ConfirmS int64           `json:"confirm_s"`
	Config   json.RawMessage `json:"config"`
}

// More codes of denials.
const (
	Unsigned     = "unsigned"
	BadSignature = "signature"
)

const maxSigs = 8

// Unwrap returns the payload of a message that may be wrapped with
// signatures. With keys, one of them must have signed it.
func Unwrap(b []byte, keys []chain.Key) ([]byte, error) {
	if len(b) > MaxBytes {
		return nil, deny(BadRequest, "", "%d bytes, at most %d", len(b), MaxBytes)
	}
	var w struct {
		Payload string `json:"payload"`
		Sigs    []struct {
			Kid chain.Key `json:"kid"`
			Alg string    `json:"alg"`
			Sig string    `json:"sig"`
		} `json:"sigs"`
	}
	var probe map[string]json.RawMessage
	if err := json.Unmarshal(b, &probe); err != nil {
		return nil, deny(BadRequest, "", "%v", err)
	}
	if _, wrapped := probe["payload"]; !wrapped {
		if len(keys) > 0 {
			return nil, deny(Unsigned, "sigs", "this gateway has installers: a change must be signed by one of them")
		}
		return b, nil
	}
	if err := strictJSON(b, &w); err != nil {
		return nil, deny(BadRequest, "sigs", "%v", err)
	}
	payload, err := base64.StdEncoding.DecodeString(w.Payload)
	if err != nil {
		return nil, deny(BadRequest, "payload", "%v", err)
	}
	if len(w.Sigs) == 0 || len(w.Sigs) > maxSigs {
		return nil, deny(Unsigned, "sigs", "%d signatures, want 1..%d", len(w.Sigs), maxSigs)
	}
	for i, s := range w.Sigs {
		path := fmt.Sprintf("sigs[%d]", i)
		sig, err := base64.StdEncoding.DecodeString(s.Sig)
		if s.Alg != "Ed25519" || err != nil || !chain.Verify(s.Kid, "", payload, sig) {
			return nil, deny(BadSignature, path, "is not the Ed25519 signature of kid over the payload")
		}
		for _, k := range keys {
			if k == s.Kid {
				return payload, nil
			}
		}
	}
	if len(keys) > 0 {
		return nil, deny(BadSignature, "sigs", "none is by an installer of this gateway")
	}
	return payload, nil
}

// ParseDesired reads the payload of config/desired.
func ParseDesired(b []byte) (d Desired, err error) {
	if err := strictJSON(b, &d); err != nil {
		return d, deny(BadRequest, "", "%v", err)
	}
	if d.Mode == "" {
		d.Mode = Merge
	}
	if d.ConfirmS == 0 {
		d.ConfirmS = int64(DefaultConfirm / time.Second)
	}
	switch {
	case d.Txn == "" || len(d.Txn) > MaxTxn:
		return Desired{}, deny(BadRequest, "txn", "a name of 1 to %d bytes is required", MaxTxn)
	case d.Mode != Merge && d.Mode != Replace && d.Mode != DryRun:
		return d, deny(BadRequest, "mode", "%q is not one of merge, replace, dry_run", d.Mode)
	case d.ConfirmS < int64(MinConfirm/time.Second) || d.ConfirmS > int64(MaxConfirm/time.Second):
		return d, deny(BadRequest, "confirm_s", "%d is outside %d..%d", d.ConfirmS, int64(MinConfirm/time.Second), int64(MaxConfirm/time.Second))
	case len(d.Config) == 0 || d.Config[0] != '{':
		return d, deny(BadRequest, "config", "a group of settings is required")
	}
	return d, nil
}

func strictJSON(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if dec.Decode(new(json.RawMessage)) != io.EOF {
		return fmt.Errorf("more than one document")
	}
	return nil
}

// Patch returns the configuration that d makes of cur. The error is Errors or
// a Denial.
func (d *Desired) Patch(cur Config) (Config, error) {
	doc := []byte(d.Config)
	patch, err := plainJSON(doc)
	if err == nil {
		if err := noSecrets(patch, "config"); err != nil {
			return Config{}, err
		}
		if err := unveil(patch, cur); err != nil {
			return Config{}, err
		}
	}
	switch {
	case err != nil && d.Mode != Replace:
		return Config{}, deny(BadRequest, "config", "%v", err)
	case err == nil && d.Mode == Replace:
		if doc, err = yaml.Marshal(patch); err != nil {
			return Config{}, deny(BadRequest, "config", "%v", err)
		}
	case err == nil:
		merged, err := merge(any(Document(cur)), patch, "")
		if err != nil {
			return Config{}, err
		}
		if doc, err = yaml.Marshal(merged); err != nil {
			return Config{}, deny(BadRequest, "config", "%v", err)
		}
	}
	c, err := Parse(doc)
	if list, ok := err.(Errors); ok { //nolint:errorlint // Parse wraps nothing
		for i := range list {
			list[i].Line, list[i].Column = 0, 0 // of a document that nobody has seen
		}
	}
	return c, err
}

// plainJSON reads a JSON document, whole numbers as such. A configuration that
// is replaced may be YAML instead, and is not JSON then.
func plainJSON(b []byte) (v any, err error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	return whole(v), nil
}

func whole(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		return v.String() // no setting is a fraction: it is refused with its path
	case map[string]any:
		for k := range v {
			v[k] = whole(v[k])
		}
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	}
	return v
}

// merge is RFC 7396, section 2, and for lists of things with an id an object
// whose keys are those ids.
func merge(base any, patch any, path string) (any, error) {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch, nil
	}
	if list, isList := base.([]any); isList {
		for id, change := range p {
			at := -1
			for i, e := range list {
				if m, ok := e.(map[string]any); ok && fmt.Sprint(m["id"]) == id {
					at = i
				}
			}
			if at < 0 {
				return nil, deny(BadRequest, fmt.Sprintf("config%s[%s]", path, id), "there is none of that id; give the whole list to add one")
			}
			if change == nil {
				list = append(list[:at:at], list[at+1:]...)
				continue
			}
			v, err := merge(list[at], change, fmt.Sprintf("%s[%s]", path, id))
			if err != nil {
				return nil, err
			}
			list[at] = v
		}
		return list, nil
	}
	m, ok := base.(map[string]any)
	if !ok {
		m = map[string]any{}
	}
	for k, v := range p {
		if v == nil {
			delete(m, k)
			continue
		}
		next, err := merge(m[k], v, path+"."+k)
		if err != nil {
			return nil, err
		}
		m[k] = next
	}
	return m, nil
}

// Document returns c as a value for JSON, with the keys of the file.
func Document(c Config) map[string]any {
	var m map[string]any
	if err := yaml.Unmarshal(Render(c), &m); err != nil {
		panic(fmt.Sprintf("config: what was rendered does not load: %v", err))
	}
	return m
}
