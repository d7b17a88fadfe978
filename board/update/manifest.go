package update

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/joulegate/joulegate/chain"
)

// Limits of what comes from outside; more is refused unread.
const (
	MaxManifest  = 64 << 10
	MaxProgram   = 128 << 20
	MaxPartition = 2 << 30
	maxArtifacts = 32
	maxSigs      = 16
)

// ManifestFile is a manifest's name at its source.
const ManifestFile = "update.json"

// Kinds of artifacts.
const (
	KindProgram   = "program"   // the executable
	KindPartition = "partition" // a slot of the card image, with kernel and program
)

// Arches are the processors that programs are built for.
var Arches = []string{"amd64", "arm64", "armv6", "armv7"}

// Manifest is what is signed. Its encoding is json.Marshal of this struct:
// fields in this order, artifacts by kind and arch, no spaces. A manifest that
// is written in any other way is refused, so that one content has one
// signature.
type Manifest struct {
	Format    int        `json:"format"` // 1
	Version   string     `json:"version"`
	Channel   string     `json:"channel"`
	Security  bool       `json:"security"`
	RulesFrom uint32     `json:"rules_from"` // oldest version of the ledger's rules that it can execute
	Rules     uint32     `json:"rules"`      // newest one
	NotBefore int64      `json:"not_before"` // Unix seconds
	Expires   int64      `json:"expires"`    // Unix seconds; after it nobody takes this version by this manifest
	Share     int        `json:"share"`      // percent of gateways that take it by themselves
	Notes     string     `json:"notes"`      // https address for people, or empty
	Artifacts []Artifact `json:"artifacts"`
}

const manifestFormat = 1

// Artifact is one file beside the manifest.
type Artifact struct {
	Kind   string     `json:"kind"`
	Arch   string     `json:"arch"`
	File   string     `json:"file"` // name without a folder
	Size   int64      `json:"size"` // bytes
	SHA256 chain.Hash `json:"sha256"`
}

// manifestDomain keeps a signature of a manifest from being one of anything
// else.
const manifestDomain = "joulegate update manifest 1\n"

// signed is the file: the exact bytes and who signed them.
type signed struct {
	Payload []byte      `json:"payload"`
	Sigs    []signature `json:"sigs"`
}

type signature struct {
	Kid chain.Key `json:"kid"`
	Alg string    `json:"alg"`
	Sig []byte    `json:"sig"`
}

// Sentinels of Open, for those who tell people what to do.
var (
	ErrUnsigned = errors.New("not signed by enough of the trusted keys")
	ErrExpired  = errors.New("the manifest has expired")
	ErrTooEarly = errors.New("the manifest is not valid yet")
)

// Encode returns the bytes that are signed, or what is wrong with m. It sorts
// the artifacts.
func (m Manifest) Encode() ([]byte, error) {
	m.Artifacts = slices.Clone(m.Artifacts)
	slices.SortFunc(m.Artifacts, func(a, b Artifact) int {
		if c := strings.Compare(a.Kind, b.Kind); c != 0 {
			return c
		}
		return strings.Compare(a.Arch, b.Arch)
	})
	if err := m.check(); err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

func (m Manifest) check() error {
	if m.Format != manifestFormat {
		return fmt.Errorf("manifest of format %d, this program knows %d", m.Format, manifestFormat)
	}
	if _, ok := parse(m.Version); !ok {
		return fmt.Errorf("version %.70q is not like 1.2.3", m.Version)
	}
	if !plainWord(m.Channel) {
		return fmt.Errorf("channel %.40q is not a word of a-z, 0-9 and -", m.Channel)
	}
	switch {
	case m.RulesFrom < 1 || m.Rules < m.RulesFrom:
		return fmt.Errorf("ledger rules %d to %d", m.RulesFrom, m.Rules)
	case m.NotBefore < 0 || m.Expires <= m.NotBefore || m.Expires > 1<<40:
		return fmt.Errorf("valid from %d to %d", m.NotBefore, m.Expires)
	case m.Share < 0 || m.Share > 100:
		return fmt.Errorf("share %d %%", m.Share)
	case len(m.Artifacts) == 0 || len(m.Artifacts) > maxArtifacts:
		return fmt.Errorf("%d artifacts, 1 to %d", len(m.Artifacts), maxArtifacts)
	}
	if u, err := url.Parse(m.Notes); m.Notes != "" && (err != nil || u.Scheme != "https" || len(m.Notes) > 512 || strings.ContainsFunc(m.Notes, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' })) {
		return errors.New("notes is not an https address")
	}
	for i, a := range m.Artifacts {
		if err := a.check(); err != nil {
			return fmt.Errorf("artifacts[%d]: %w", i, err)
		}
		if i > 0 && (a.Kind < m.Artifacts[i-1].Kind || a.Kind == m.Artifacts[i-1].Kind && a.Arch <= m.Artifacts[i-1].Arch) {
			return fmt.Errorf("artifacts[%d]: out of order, or there twice", i)
		}
	}
	return nil
}

func (a Artifact) check() error {
	limit := int64(MaxProgram)
	switch a.Kind {
	case KindProgram:
	case KindPartition:
		limit = MaxPartition
	default:
		return fmt.Errorf("kind %.40q", a.Kind)
	}
	switch {
	case !slices.Contains(Arches, a.Arch):
		return fmt.Errorf("arch %.40q", a.Arch)
	case a.Size < 1 || a.Size > limit:
		return fmt.Errorf("%d bytes, 1 to %d", a.Size, limit)
	case !fileName(a.File):
		return fmt.Errorf("%.80q is no plain file name", a.File)
	}
	return nil
}

// fileName reports whether s names a file in a folder and nothing else,
// neither for a path nor for an address.
func fileName(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' || s == ManifestFile {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-~+", r))
	})
}

func plainWord(s string) bool {
	return s != "" && len(s) <= 32 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	})
}

// decodeManifest reads the bytes that are signed.
func decodeManifest(b []byte) (m Manifest, err error) {
	if err := strict(b, &m); err != nil {
		return m, err
	}
	again, err := m.Encode()
	if err != nil {
		return m, err
	}
	if !bytes.Equal(again, b) {
		return m, errors.New("not in its one encoding")
	}
	return m, nil
}

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("something follows the document")
	}
	return nil
}

// Sign adds key's signature to a manifest file, or to the bare bytes of
// Encode. A signature that is there already is replaced.
func Sign(file []byte, key ed25519.PrivateKey) ([]byte, error) {
	s, m, err := read(file)
	if err != nil {
		if m, errBare := decodeManifest(bytes.TrimSpace(file)); errBare == nil {
			s.Payload, err = m.Encode()
			s.Sigs = nil
		}
		if err != nil {
			return nil, err
		}
	} else if _, err := m.Encode(); err != nil {
		return nil, err
	}
	kid := chain.Key(key.Public().(ed25519.PublicKey))
	s.Sigs = slices.DeleteFunc(s.Sigs, func(g signature) bool { return g.Kid == kid })
	if len(s.Sigs) >= maxSigs {
		return nil, fmt.Errorf("%d signatures, at most %d", len(s.Sigs), maxSigs)
	}
	s.Sigs = append(s.Sigs, signature{kid, "Ed25519", chain.Sign(key, manifestDomain, s.Payload)})
	slices.SortFunc(s.Sigs, func(a, b signature) int { return bytes.Compare(a.Kid[:], b.Kid[:]) })
	out, err := json.MarshalIndent(s, "", " ")
	return append(out, '\n'), err
}

func read(file []byte) (s signed, m Manifest, err error) {
	if len(file) > MaxManifest {
		return s, m, fmt.Errorf("manifest of %d bytes, at most %d", len(file), MaxManifest)
	}
	if err := strict(file, &s); err != nil {
		return s, m, fmt.Errorf("manifest: %w", err)
	}
	if len(s.Sigs) > maxSigs {
		return s, m, fmt.Errorf("manifest: %d signatures, at most %d", len(s.Sigs), maxSigs)
	}
	if m, err = decodeManifest(s.Payload); err != nil {
		return s, m, fmt.Errorf("manifest: %w", err)
	}
	return s, m, nil
}

// Open reads a manifest file and checks its signatures and its time: threshold
// of the keys must have signed. Signatures of other keys do not count, because
// the keys of those who sign change; a wrong one of a trusted key is refused.
func Open(file []byte, keys []chain.Key, threshold int, now time.Time) (Manifest, error) {
	s, m, err := read(file)
	if err != nil {
		return m, err
	}
	if len(keys) == 0 || threshold < 1 {
		return m, fmt.Errorf("%w: no keys are configured", ErrUnsigned)
	}
	good := map[chain.Key]bool{}
	for i, g := range s.Sigs {
		if !slices.Contains(keys, g.Kid) {
			continue
		}
		if g.Alg != "Ed25519" || !chain.Verify(g.Kid, manifestDomain, s.Payload, g.Sig) {
			return m, fmt.Errorf("%w: sigs[%d] is not the signature of %s", ErrUnsigned, i, g.Kid)
		}
		good[g.Kid] = true
	}
	if len(good) < threshold {
		return m, fmt.Errorf("%w: %d, wanted %d", ErrUnsigned, len(good), threshold)
	}
	switch t := now.Unix(); {
	case t < m.NotBefore:
		return m, fmt.Errorf("%w: from %s on", ErrTooEarly, time.Unix(m.NotBefore, 0).UTC().Format(time.RFC3339))
	case t >= m.Expires:
		return m, fmt.Errorf("%w: on %s", ErrExpired, time.Unix(m.Expires, 0).UTC().Format(time.RFC3339))
	}
	return m, nil
}

// Signers returns whose signatures a file carries and which hold.
func Signers(file []byte) (m Manifest, good, bad []chain.Key, err error) {
	s, m, err := read(file)
	for _, g := range s.Sigs {
		if g.Alg == "Ed25519" && chain.Verify(g.Kid, manifestDomain, s.Payload, g.Sig) {
			good = append(good, g.Kid)
		} else {
			bad = append(bad, g.Kid)
		}
	}
	return m, good, bad, err
}

// Artifact returns the one for the first of the arches that has one.
func (m Manifest) Artifact(kind string, arches []string) (Artifact, error) {
	for _, arch := range arches {
		for _, a := range m.Artifacts {
			if a.Kind == kind && a.Arch == arch {
				return a, nil
			}
		}
	}
	return Artifact{}, fmt.Errorf("version %s has no %s for %s", m.Version, kind, strings.Join(arches, ", "))
}

// Staged reports whether device is among the share of gateways that take a
// version by themselves. Who is among 10 % is among 20 %: to go on, the
// manifest is signed again with a larger share.
func Staged(version string, device chain.Key, share int) bool {
	h := chain.Sum(append([]byte("joulegate update share 1\n"+version+"\n"), device[:]...))
	return binary.BigEndian.Uint64(h[:])%100 < uint64(max(share, 0))
}
