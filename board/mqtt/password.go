package mqtt

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Cost of a password hash. Checking one takes about 10 ms on a Raspberry Pi 3
// and happens once per connection; passwords that joulegate makes itself have
// 128 random bits, for which one iteration would do.
const (
	hashIterations    = 10_000
	maxHashIterations = 1_000_000 // an entry that costs more is refused
	hashBytes         = sha512.Size
	saltBytes         = 16
)

// HashPassword returns the entry to store for a password, in the format of
// mosquitto_passwd: "$7$" iterations "$" salt "$" hash, PBKDF2 (RFC 8018
// section 5.2) with HMAC-SHA-512.
func HashPassword(password string) (string, error) {
	if password == "" {
		return "", errors.New("an empty password is not a password")
	}
	salt := make([]byte, saltBytes)
	rand.Read(salt)
	sum, err := pbkdf2.Key(sha512.New, password, salt, hashIterations, hashBytes)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	return fmt.Sprintf("$7$%d$%s$%s", hashIterations,
		base64.StdEncoding.EncodeToString(salt), base64.StdEncoding.EncodeToString(sum)), nil
}

// secret is a parsed entry.
type secret struct {
	iterations int
	salt, sum  []byte
}

func parseSecret(entry string) (secret, error) {
	f := strings.Split(entry, "$")
	if len(f) != 5 || f[0] != "" || f[1] != "7" {
		return secret{}, errors.New(`password hash is not of the form $7$iterations$salt$hash (as mosquitto_passwd writes it)`)
	}
	n, err := strconv.Atoi(f[2])
	if err != nil || n < 1 || n > maxHashIterations {
		return secret{}, fmt.Errorf("password hash: %q iterations, 1..%d", f[2], maxHashIterations)
	}
	salt, err := base64.StdEncoding.DecodeString(f[3])
	if err != nil || len(salt) == 0 || len(salt) > 256 {
		return secret{}, errors.New("password hash: damaged salt")
	}
	sum, err := base64.StdEncoding.DecodeString(f[4])
	if err != nil || len(sum) != hashBytes {
		return secret{}, errors.New("password hash: damaged hash")
	}
	return secret{n, salt, sum}, nil
}

func (s secret) check(password []byte) bool {
	sum, err := pbkdf2.Key(sha512.New, string(password), s.salt, s.iterations, hashBytes)
	return err == nil && subtle.ConstantTimeCompare(sum, s.sum) == 1
}
