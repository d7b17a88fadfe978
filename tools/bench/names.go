package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/guard/pipe"
)

// names takes a value from a name server that blocks a million names and is
// asked for them over loopback: ours, or one of Debian's with the same list.
type names struct {
	server string // ours, dnsmasq or unbound
	metric func(answering) float64
}

// answering is what was seen of a name server.
type answering struct {
	rss     float64 // bytes, once it answers
	answers float64
	cpu     float64 // seconds of the server
}

func perCore(a answering) float64   { return a.answers / a.cpu }
func serverRSS(a answering) float64 { return a.rss / 1e6 }
func (m *measurer) list() []string {
	if len(m.blocked) == 0 {
		rnd := rand.New(rand.NewPCG(1, 0))
		for range 1_000_000 {
			b := make([]byte, 4+rnd.IntN(12))
			for i := range b {
				b[i] = byte('a' + rnd.IntN(26))
			}
			m.blocked = append(m.blocked, fmt.Sprintf("%s%d.example%d.com", b, rnd.IntN(1000), rnd.IntN(100_000)))
		}
	}
	return m.blocked
}

func (n names) measure(ctx context.Context, m *measurer) (float64, error) {
	if m.servers == nil {
		m.servers, m.serversFailed = map[string]answering{}, map[string]error{}
	}
	if err := m.serversFailed[n.server]; err != nil {
		return 0, err
	}
	a, ok := m.servers[n.server]
	if !ok {
		var err error
		if a, err = m.answers(ctx, n.server); err != nil {
			m.serversFailed[n.server] = err
			return 0, err
		}
		m.servers[n.server] = a
	}
	return n.metric(a), nil
}

// answers starts a server, asks it for a while and ends it.
func (m *measurer) answers(ctx context.Context, server string) (a answering, err error) {
	dir := filepath.Join(m.dir, "names-"+server)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return a, err
	}
	port, err := freePort()
	if err != nil {
		return a, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd, tidy, err := m.nameServer(ctx, server, dir, port)
	if err != nil {
		return a, err
	}
	defer tidy()
	m.say("bench: blocked answers of %s", server)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return a, err
	}
	defer func() { stop(); _ = cmd.Wait() }()

	var questions [][]byte
	for i, name := range m.list() {
		if i%100 == 0 {
			q := new(dns.Msg).SetQuestion(name+".", dns.TypeA)
			q.SetEdns0(1232, false)
			b, err := q.Pack()
			if err != nil {
				return a, err
			}
			questions = append(questions, b)
		}
	}
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return a, err
	}
	defer c.Close()
	buf := make([]byte, 4096)
	err = until(ctx, 2*time.Minute, func() bool { // it has read its list
		_, _ = c.Write(questions[0])
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Read(buf)
		return err == nil && n > 3 && int(buf[3]&15) == dns.RcodeNameError
	})
	if err != nil {
		return a, fmt.Errorf("%s does not block: %w", server, err)
	}
	before, err := readProc(cmd.Process.Pid, "VmRSS:")
	if err != nil {
		return a, err
	}
	window := 5 * time.Second
	if m.quick {
		window = time.Second
	}
	const flight = 64
	next := 0
	for end := time.Now().Add(window); time.Now().Before(end); {
		for range flight {
			if _, err := c.Write(questions[next]); err != nil {
				return a, err
			}
			next = (next + 1) % len(questions)
		}
		for range flight {
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			n, err := c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break // one was lost
			}
			if err != nil || n < 12 || int(buf[3]&15) != dns.RcodeNameError {
				return a, fmt.Errorf("%s answers otherwise: %x, %w", server, buf[:n], err)
			}
			a.answers++
		}
	}
	after, err := readProc(cmd.Process.Pid, "VmRSS:")
	if err != nil {
		return a, err
	}
	a.cpu, a.rss = after.cpu-before.cpu, after.rss
	if a.cpu == 0 || a.answers == 0 {
		return a, fmt.Errorf("%s has answered nothing", server)
	}
	return a, nil
}

// nameServer is the command of a server with the list. Tidy is called when
// it has ended.
func (m *measurer) nameServer(ctx context.Context, server, dir string, port int) (cmd *exec.Cmd, tidy func(), err error) {
	write := func(file, head, before, after string) (string, error) {
		path := filepath.Join(dir, file)
		f, err := os.Create(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		w := bufio.NewWriter(f)
		fmt.Fprint(w, head)
		for _, n := range m.list() {
			fmt.Fprint(w, before, n, after, "\n")
		}
		return path, w.Flush()
	}
	find := func(name string) (string, error) {
		for _, dir := range []string{"/usr/sbin", "/sbin"} {
			if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return p, nil
			}
		}
		p, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("%s is not installed (apt-get install dnsmasq-base unbound)", name)
		}
		return p, nil
	}
	switch server {
	case "ours":
		if m.binary == "" {
			path := filepath.Join(m.dir, "joulegate")
			if err := m.build(ctx, path, runtime.GOARCH, ""); err != nil {
				return nil, nil, err
			}
			m.binary = path
		}
		list, err := write("list", "", "", "")
		if err != nil {
			return nil, nil, err
		}
		// What a gateway tells its sensors' process first; packets are not
		// looked at.
		setup := map[string]any{
			"state": dir, "interface": "none", "memory": uint64(512 << 20),
			"dns": config.DNS{Listen: []string{fmt.Sprintf("127.0.0.1:%d", port)}, Upstreams: []string{"udp://127.0.0.1:9"}, Block: []string{list}},
		}
		cmd = exec.CommandContext(ctx, m.binary, "guard", "sensors")
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, nil, err
		}
		said, says, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		cmd.ExtraFiles = []*os.File{says}
		go func() {
			if pipe.Write(in, setup) == nil {
				_, _ = io.Copy(io.Discard, said)
			}
		}()
		return cmd, func() { says.Close(); said.Close() }, nil
	case "dnsmasq":
		path, err := find(server)
		if err != nil {
			return nil, nil, err
		}
		conf, err := write("conf", fmt.Sprintf("port=%d\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nuser=\n", port), "address=/", "/")
		return exec.CommandContext(ctx, path, "--keep-in-foreground", "--pid-file=", "--conf-file="+conf), func() {}, err
	default:
		path, err := find(server)
		if err != nil {
			return nil, nil, err
		}
		conf, err := write("conf", fmt.Sprintf("server:\n do-daemonize: no\n use-syslog: no\n verbosity: 0\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n directory: %q\n num-threads: 1\n interface: 127.0.0.1\n port: %d\n module-config: \"iterator\"\n", dir, port), " local-zone: \"", "\" always_nxdomain")
		return exec.CommandContext(ctx, path, "-d", "-c", conf), func() {}, err
	}
}
