package access

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// UID is a card's number. It prints as nothing, so that it cannot end up in a
// log by accident.
type UID []byte

// String hides the number.
func (UID) String() string { return "(card)" }

// GoString hides the number.
func (UID) GoString() string { return "(card)" }

// Format hides the number from every verb.
func (UID) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte("(card)")) }

// ParseUID reads the hex digits of a card's number: 4, 7, 8 or 10 bytes (ISO
// 14443-3, ISO 15693), perhaps with colons, blanks or hyphens between.
func ParseUID(line string) (UID, bool) {
	b, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "", "-", "").Replace(strings.TrimSpace(line)))
	if err != nil {
		return nil, false
	}
	switch len(b) {
	case 4, 7, 8, 10:
		return b, true
	}
	return nil, false
}

// Card is a card as its book knows it.
type Card struct {
	Token   chain.Key `json:"token"`
	Label   string    `json:"label,omitempty"` // for people: no name, no number
	Added   time.Time `json:"added"`
	Revoked time.Time `json:"revoked,omitzero"`
}

// entry is a card in the file.
type entry struct {
	Card
	Tag  chain.Hash `json:"tag"`  // HMAC of the card's number
	Seed []byte     `json:"seed"` // of the token's key, sealed
}

// Book maps cards to tokens. It is a file, which may be copied to the
// operator's other gateways together with the key. Its methods are safe for
// concurrent use, also by several programs as long as one writes.
type Book struct {
	path   string
	secret [32]byte

	mu     sync.Mutex
	read   os.FileInfo // of what cards was read from
	cards  []entry
	byTag  map[chain.Hash]int
	sealer cipher.AEAD
}

// Errors on which a caller decides.
var (
	ErrUnknown = errors.New("nobody knows this card or code")
	ErrRevoked = errors.New("the card was revoked")
)

// OpenBook returns the book at path under the operator's secret. There need
// not be a file yet.
func OpenBook(path string, secret [32]byte) (*Book, error) {
	b := &Book{path: path, secret: secret}
	key := b.mac("joulegate/cards/seal/1", nil)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	if b.sealer, err = cipher.NewGCM(block); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b, b.load()
}

func (b *Book) mac(purpose string, msg []byte) chain.Hash {
	h := hmac.New(sha256.New, b.secret[:])
	h.Write([]byte(purpose + "\x00"))
	h.Write(msg)
	return chain.Hash(h.Sum(nil))
}

func (b *Book) tag(u UID) chain.Hash { return b.mac("joulegate/cards/uid/1", u) }

// load reads the file unless it is the one that was read before. mu is held.
func (b *Book) load() error {
	info, err := os.Stat(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		b.read, b.cards, b.byTag = nil, nil, nil
		return nil
	}
	if err != nil {
		return err
	}
	if b.read != nil && os.SameFile(info, b.read) && info.ModTime().Equal(b.read.ModTime()) && info.Size() == b.read.Size() {
		return nil
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s has mode %#o and can be read by others: chmod 600 %s", b.path, info.Mode().Perm(), b.path)
	}
	raw, err := os.ReadFile(b.path)
	if err != nil {
		return err
	}
	var file struct {
		Version int     `json:"version"`
		Cards   []entry `json:"cards"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return fmt.Errorf("%s: damaged: %w; restore it from the backup", b.path, err)
	}
	if file.Version != 1 || len(file.Cards) > MaxCards {
		return fmt.Errorf("%s: version %d with %d cards: this program reads version 1 and at most %d", b.path, file.Version, len(file.Cards), MaxCards)
	}
	byTag := make(map[chain.Hash]int, len(file.Cards))
	for i, c := range file.Cards {
		byTag[c.Tag] = i
	}
	b.read, b.cards, b.byTag = info, file.Cards, byTag
	return nil
}

// save writes cards beside their place, synced, and renames. mu is held.
func (b *Book) save(cards []entry) error {
	raw, err := json.MarshalIndent(map[string]any{"version": 1, "cards": cards}, "", " ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(b.path), ".cards-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after the rename
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", b.path, err)
	}
	if err := os.Rename(f.Name(), b.path); err != nil {
		return err
	}
	b.read = nil
	return b.load()
}

// Add gives a card a new token. A card that is there already keeps its token,
// unless it was revoked: then it gets another one, and the old one stays
// revoked.
func (b *Book) Add(u UID, label string, now time.Time) (Card, error) {
	if len(label) > MaxLabel {
		return Card{}, fmt.Errorf("label of %d bytes, at most %d", len(label), MaxLabel)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.load(); err != nil {
		return Card{}, err
	}
	tag := b.tag(u)
	if i, ok := b.byTag[tag]; ok && b.cards[i].Revoked.IsZero() {
		return b.cards[i].Card, fmt.Errorf("the card has token %s already: revoke it first", b.cards[i].Token)
	}
	if len(b.cards) >= MaxCards {
		return Card{}, fmt.Errorf("the book has %d cards, its limit", len(b.cards))
	}
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	nonce := make([]byte, b.sealer.NonceSize())
	rand.Read(nonce)
	e := entry{
		Card: Card{Token: public(ed25519.NewKeyFromSeed(seed)), Label: label, Added: now.UTC().Truncate(time.Second)},
		Tag:  tag, Seed: b.sealer.Seal(nonce, nonce, seed, tag[:]),
	}
	return e.Card, b.save(append(b.cards[:len(b.cards):len(b.cards)], e))
}

// Revoke makes this gateway forget which card has a token. The payer's mandate
// is another matter: it ends on the ledger.
func (b *Book) Revoke(token chain.Key, now time.Time) (Card, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.load(); err != nil {
		return Card{}, err
	}
	cards := append([]entry(nil), b.cards...)
	for i := range cards {
		if c := &cards[i]; c.Token == token {
			if !c.Revoked.IsZero() {
				return c.Card, nil
			}
			c.Revoked, c.Seed = now.UTC().Truncate(time.Second), nil
			return c.Card, b.save(cards)
		}
	}
	return Card{}, fmt.Errorf("token %s: %w", token, ErrUnknown)
}

// Cards returns all cards, the oldest first.
func (b *Book) Cards() ([]Card, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.load(); err != nil {
		return nil, err
	}
	out := make([]Card, len(b.cards))
	for i, c := range b.cards {
		out[i] = c.Card
	}
	return out, nil
}

// Find returns the token's key of a card. The error is ErrUnknown or
// ErrRevoked, or the book's own trouble.
func (b *Book) Find(u UID) (ed25519.PrivateKey, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.load(); err != nil {
		return nil, err
	}
	i, ok := b.byTag[b.tag(u)]
	if !ok {
		return nil, ErrUnknown
	}
	return b.open(&b.cards[i])
}

// Consent is the signature of a token's key that lets payer pay for it in the
// microgrid chainID.
func (b *Book) Consent(token chain.Key, chainID string, payer chain.Key) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.load(); err != nil {
		return nil, err
	}
	for i := range b.cards {
		if c := &b.cards[i]; c.Token == token {
			key, err := b.open(c)
			if err != nil {
				return nil, err
			}
			return chain.Sign(key, chain.DomainMandate, chain.ConsentBytes(chainID, payer)), nil
		}
	}
	return nil, fmt.Errorf("token %s: %w", token, ErrUnknown)
}

// open unseals a token's key. mu is held.
func (b *Book) open(e *entry) (ed25519.PrivateKey, error) {
	if !e.Revoked.IsZero() {
		return nil, ErrRevoked
	}
	n := b.sealer.NonceSize()
	if len(e.Seed) < n {
		return nil, fmt.Errorf("%s: token %s is damaged; restore the file from the backup", b.path, e.Token.Short())
	}
	seed, err := b.sealer.Open(nil, e.Seed[:n], e.Seed[n:], e.Tag[:])
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%s: token %s does not open: the book belongs to another key; restore both from the backup", b.path, e.Token.Short())
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func public(key ed25519.PrivateKey) chain.Key { return chain.Key(key.Public().(ed25519.PublicKey)) }
