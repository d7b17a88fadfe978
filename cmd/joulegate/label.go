package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/joulegate/joulegate/board/announce"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/label"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/spf13/cobra"
)

// hostOf is the name of a gateway on its local network, without .local.
func hostOf(device chain.Key) string { return "joulegate-" + device.Short() }

func (s state) label(ext string) string { return s.path("label." + ext) }

// labelOf gathers what stands on a gateway's label.
func labelOf(st state, c *config.Config, device chain.Key) (l label.Label, err error) {
	l = label.Label{Name: c.Name, Device: device.String(), Host: hostOf(device) + ".local", Broker: c.MQTT.Broker}
	if port, open := beyond(c.Panel.Listen); open {
		l.Page = "http://" + net.JoinHostPort(l.Host, port)
	}
	if c.MQTT.Broker != "" {
		return l, nil
	}
	l.Broker = c.MQTT.Listen
	if port, open := beyond(c.MQTT.Listen); open {
		l.Broker = net.JoinHostPort(l.Host, port)
	}
	b, err := os.ReadFile(st.installerPassword())
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil // taken away, as it may be
	}
	l.User, l.Password = "installer", strings.TrimSpace(string(b))
	return l, err
}

// beyond returns the port of an address, and whether others than this machine
// reach it.
func beyond(listen string) (port string, open bool) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", false
	}
	ip := net.ParseIP(host)
	return port, host != "localhost" && (ip == nil || !ip.IsLoopback())
}

// writeLabel writes the label's files, which its owner alone may read, when
// they do not say what is so; and shows the label once, at the first start, on
// the console: a log would keep the secret.
func (g *gateway) writeLabel() error {
	l, err := labelOf(g.state, &g.cfg, g.self)
	if err != nil {
		return err
	}
	text, err := l.Text()
	if err != nil {
		return err
	}
	was, err := os.ReadFile(g.state.label("txt"))
	if err == nil && string(was) == text {
		return nil
	}
	page, err := l.HTML()
	if err != nil {
		return err
	}
	if err := errors.Join(writeFile(g.state.label("html"), page, 0o600), writeFile(g.state.label("txt"), []byte(text), 0o600)); err != nil {
		return err
	}
	if was == nil {
		showLabel(text)
	}
	return nil
}

// consoles are shown the label at the first start. None is a log.
var consoles = []string{"/dev/console", "/dev/tty1"}

func showLabel(text string) {
	if terminal(os.Stderr.Fd()) {
		fmt.Fprint(os.Stderr, text)
		return
	}
	for _, name := range consoles {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			continue // most users may not
		}
		_, err = io.WriteString(f, strings.ReplaceAll("\n"+text, "\n", "\r\n"))
		f.Close()
		if err == nil {
			return
		}
	}
}

func newLabelCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "label",
		Short: "Show this gateway's label: address, device key, the installer's password",
		Long: `The password is this device's alone, made at its first start; there is no default.
The same is in label.txt and label.html (to print) of the state folder, which
their owner alone may read. Whoever holds the label may configure the gateway.`,
		Example: "  sudo -u joulegate joulegate label\n  sudo -u joulegate joulegate label --html label.html",
		Args:    cobra.NoArgs,
	}
	out := c.Flags().String("html", "", "`FILE` for a page to print")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := inForce(cmd)
		if err != nil {
			return err
		}
		st := stateOf(cmd)
		id, err := loadIdentity(st)
		if err != nil {
			return err
		}
		l, err := labelOf(st, &cfg, keys.Public(id.device))
		if err != nil {
			return err
		}
		if *out != "" {
			b, err := l.HTML()
			if err != nil {
				return err
			}
			return writeFile(*out, b, 0o600)
		}
		return emit(cmd, l, func(w io.Writer) error {
			text, err := l.Text()
			if err == nil {
				_, err = io.WriteString(w, text)
			}
			return err
		})
	}
	return c
}

// announce makes the page findable, where others reach it, until ctx ends. A
// gateway that cannot is reached by its address.
func (g *gateway) announce(ctx context.Context) error {
	if _, open := beyond(g.cfg.Panel.Listen); !open {
		return nil
	}
	_, at, err := net.SplitHostPort(g.panel.Addr())
	if err != nil {
		return nil
	}
	port, err := net.LookupPort("tcp", at)
	if err != nil {
		return nil
	}
	log := g.log.With("part", "announce")
	r, err := announce.New(announce.Config{
		Host: hostOf(g.self), Port: uint16(port), Log: log,
		Text: []string{"name=" + g.cfg.Name, "device=" + g.self.String(), "version=" + version, "path=/"},
	})
	if err != nil {
		log.Warn("the page is reached by address only", "err", err)
		return nil
	}
	log.Info("the page is announced", "address", "http://"+net.JoinHostPort(hostOf(g.self)+".local", at))
	return r.Run(ctx)
}
