package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
)

// Records of what a charger did say by which configuration and program it was
// done. Each carries the short form; gateway.started, which comes before them
// in the gateway's own chain, carries the whole.

// revision names a configuration: the hash of its canonical text.
func revision(c config.Config) chain.Hash { return chain.Sum(config.Render(c)) }

func actor(c config.Config) string {
	return fmt.Sprintf("config %s, joulegate %s", revision(c).String()[:8], version)
}

// provenance takes a while: it reads the whole program.
func provenance(c config.Config) string {
	return fmt.Sprintf("started: joulegate %s for %s/%s, program %s, config %s, board %s", version, runtime.GOOS, runtime.GOARCH, programHash(), revision(c), c.Board)
}

// programHash is the SHA-256 of the file that this program runs from.
func programHash() string {
	sum, err := fileHash("/proc/self/exe")
	if err != nil {
		return "unknown: " + err.Error()
	}
	return sum
}

// fileHash is a file's SHA-256.
func fileHash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

const (
	// powerRecent is how long after the kernel's start a starting gateway
	// takes it that the power has just returned.
	powerRecent = 5 * time.Minute
	// clockLeeway is how far a clock may be behind the microgrid's founding
	// without counting as not set.
	clockLeeway = 24 * time.Hour
)

// powerReturned reports whether the board has just got power. What cannot be
// told counts as yes: a start that is spread without need is late, not wrong.
func powerReturned() bool {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return true
	}
	up, _, _ := strings.Cut(string(b), " ")
	s, err := strconv.ParseFloat(up, 64)
	return err != nil || s < powerRecent.Seconds()
}
