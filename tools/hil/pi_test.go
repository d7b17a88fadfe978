//go:build hil

package hil

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
)

// card returns a card as it is shipped, on a larger one: the data partition
// has to grow.
func (l *lab) card(t *testing.T) string {
	t.Helper()
	agent := l.program(t, ARM64, "github.com/joulegate/joulegate/cmd/joulegate")
	made := l.once(t, "sd.img", func(path string) error {
		dist := t.TempDir()
		if err := os.Symlink(agent, filepath.Join(dist, "joulegate-linux-arm64")); err != nil {
			return err
		}
		for _, c := range []struct {
			env  []string
			args []string
		}{
			{[]string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64"}, []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dist, "joulegate-init-linux-arm64"), "./init"}},
			{nil, []string{"run", ".", "-root", "../..", "-dist", dist, "-card", "only"}},
		} {
			cmd := exec.Command("go", c.args...)
			cmd.Dir, cmd.Env = "../image", append(os.Environ(), c.env...)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("go %s: %w: %s", strings.Join(c.args, " "), err, out)
			}
		}
		found, err := filepath.Glob(filepath.Join(dist, "*-sd.img"))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%d images, %w", len(found), err)
		}
		return exec.Command("cp", "--sparse=always", found[0], path).Run()
	})
	card := filepath.Join(t.TempDir(), "sd.img")
	if out, err := exec.Command("cp", "--sparse=always", made, card).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Truncate(card, 1<<30); err != nil {
		t.Fatal(err)
	}
	return card
}

// onSetup writes files to the first partition of a card, as a person does on
// another computer.
func onSetup(t *testing.T, card string, files map[string]string) {
	t.Helper()
	at, err := onCard(card, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		cmd := exec.Command("mcopy", "-n", "-o", "-i", at, "-", "::"+name)
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mcopy: %v: %s", err, out)
		}
	}
}

// partition copies a partition out of a card.
func partition(t *testing.T, card string, n int) string {
	t.Helper()
	all, err := Partitions(card)
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(card)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint("p", n)))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, io.NewSectionReader(in, all[n-1].Start, all[n-1].Size)); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

// timeServer answers SNTP (RFC 5905) with this machine's time, and returns
// its port.
func timeServer(t *testing.T) int {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		stamp := func(b []byte) {
			const since1900 = 2_208_988_800
			now := time.Now()
			binary.BigEndian.PutUint32(b, uint32(now.Unix()+since1900))
			binary.BigEndian.PutUint32(b[4:], uint32(uint64(now.Nanosecond())<<32/1e9))
		}
		for q := make([]byte, 512); ; {
			n, from, err := c.ReadFromUDP(q)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			a := make([]byte, 48)
			a[0], a[1], a[2], a[3] = 0x24, 1, 6, 0xec // version 4, a server, stratum 1
			copy(a[24:32], q[40:48])
			stamp(a[16:])
			stamp(a[32:])
			stamp(a[40:])
			_, _ = c.WriteToUDP(a, from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).Port
}
