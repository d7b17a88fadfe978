package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// setupFiles are where a setup may lie: on the boot partition, which every
// computer can write. JOULEGATE_SETUP names another place.
func setupFiles() []string {
	if f := os.Getenv("JOULEGATE_SETUP"); f != "" {
		return []string{f}
	}
	return []string{"/boot/firmware/joulegate-setup.yaml", "/boot/joulegate-setup.yaml"}
}

// setupMark remembers how far a setup is, so that none is applied twice and
// none is lost, wherever the power fails.
//
//	no mark, or of another setup ─► apply ─► cleaning ─► secrets leave the boot partition ─► done
//
// Applying is repeated from its beginning when it was cut; it comes to the same
// each time. From the mark on it is not.
type setupMark struct {
	Version int        `json:"version"`
	Sum     chain.Hash `json:"sum"` // of the setup that was applied
	Phase   string     `json:"phase"`
	Public  []byte     `json:"public"` // what is left of it
	Key     string     `json:"key,omitempty"`
}

const (
	setupVersion = 1
	setupClean   = "cleaning"
	setupDone    = "done"
)

// setupDisk is what a setup does to disks, so that a test can fail each of it.
type setupDisk interface {
	replace(path string, b []byte, mode fs.FileMode) error // whole and synced, or not at all
	blank(path string) error                               // overwrite with zeros in place, synced
	remove(path string) error
}

// applier applies one setup.
type applier struct {
	file   string // joulegate-setup.yaml
	config string // joulegate.yaml
	state  state
	disk   setupDisk
	member func(ctx context.Context, s *config.Setup, c *config.Config) error // become one
	now    func() time.Time
	log    *slog.Logger
}

func (s state) setupMark() string      { return s.path("setup.json") }
func (s state) brokerPassword() string { return s.path("keys", "broker.password") }

func newApplier(file, cfg string, st state, log *slog.Logger) *applier {
	a := &applier{file: file, config: cfg, state: st, disk: realDisk{}, now: time.Now, log: log}
	a.member = a.join
	return a
}

// errorFile stands beside a setup that could not be applied.
func (a *applier) errorFile() string {
	return strings.TrimSuffix(a.file, filepath.Ext(a.file)) + ".error.txt"
}

// apply applies the setup if there is one that has not been applied. An error
// leaves the setup where it is and says why beside it.
func (a *applier) apply(ctx context.Context) (done bool, err error) {
	mark, err := a.mark()
	if err != nil {
		return false, err
	}
	b, err := readAtMost(a.file, config.MaxSetup)
	if errors.Is(err, fs.ErrNotExist) {
		if mark.Phase == setupClean { // the power failed between two names
			return true, a.clean(mark)
		}
		return false, nil
	} else if err != nil {
		return false, a.fail(err)
	}
	sum := chain.Sum(b)
	s, err := config.ParseSetup(b)
	switch {
	case sum == mark.Sum, err != nil && mark.Phase == setupClean: // applied, or what the overwriting left of it
		return true, a.clean(mark)
	case err != nil:
		return false, a.fail(err)
	case s.Applied != "":
		if mark.Phase == setupClean {
			return true, a.clean(mark)
		}
		return false, nil
	}
	if err := a.carryOut(ctx, &s); err != nil {
		return false, a.fail(err)
	}
	what := a.summary(&s)
	mark = setupMark{Version: setupVersion, Sum: sum, Phase: setupClean, Public: s.Public(what), Key: s.Broker.KeyFile}
	if err := a.setMark(mark); err != nil {
		return false, a.fail(err)
	}
	a.log.Info("setup applied", "file", a.file, "what", what)
	return true, a.clean(mark)
}

// summary says what a setup has done, for people.
func (a *applier) summary(s *config.Setup) string {
	done := []string{a.now().UTC().Format(time.RFC3339)}
	for _, p := range []struct {
		is   bool
		what string
	}{
		{s.Name != "", "name"},
		{s.Board != "", "board"},
		{s.Broker.URL != "", "broker"},
		{s.Grid.Token != "", "member of its microgrid"},
		{s.Grid.Create != nil, "microgrid founded"},
		{len(s.Installers) > 0, "installers"},
		{s.Network.Address+s.Network.Gateway != "" || len(s.Network.DNS)+len(s.Network.NTP) > 0, networkBy()},
	} {
		if p.is {
			done = append(done, p.what)
		}
	}
	return strings.Join(done, ", ")
}

// networkBy says who sees to the network.
func networkBy() string {
	if _, err := os.Stat("/run/joulegate/slot"); err == nil {
		return "network (by the card's first process)"
	}
	return "network LEFT TO THE SYSTEM: set it there, for example with nmcli"
}

// carryOut does what a setup says. Each step may find that it was done before.
func (a *applier) carryOut(ctx context.Context, s *config.Setup) error {
	var token *chain.Token
	if s.Grid.Token != "" {
		t, err := chain.ParseToken(s.Grid.Token)
		if err != nil {
			return err // the parser has seen it
		}
		token = &t
	}
	_, _, have, err := consensus.ReadGenesis(a.state.genesis())
	is := err == nil
	if is && token != nil && have != token.Genesis {
		return fmt.Errorf("grid.token is for another microgrid (%s) than the one that this gateway belongs to", token.ChainID)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var cur *config.Config
	old, err := os.ReadFile(a.config)
	if err == nil {
		c, err := config.Parse(old)
		if err != nil {
			return fmt.Errorf("%s: %w", a.config, err)
		}
		cur = &c
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	detected, _ := detectedBoard()
	next := s.Apply(cur, detected)
	files, err := a.secrets(s, &next)
	if err != nil {
		return err
	}
	text := config.Render(next)
	if next, err = config.Parse(text); err != nil {
		return fmt.Errorf("with it the configuration would be wrong: %w", err)
	}
	for _, dir := range []string{a.state.keys(), filepath.Dir(a.config)} {
		mode := fs.FileMode(0o700)
		if dir != a.state.keys() {
			mode = 0o755
		}
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := a.disk.replace(f.path, f.data, 0o600); err != nil {
			return err
		}
	}
	if !bytes.Equal(old, text) {
		if err := a.disk.replace(a.config, text, 0o644); err != nil {
			return err
		}
	}
	if !is && (token != nil || s.Grid.Create != nil) {
		return a.member(ctx, s, &next)
	}
	return nil
}

// brokerFile is a file of a setup and the setting that names it.
type brokerFile struct {
	what, name string
	setting    *string
}

func brokerFiles(s *config.Setup, c *config.Config) []brokerFile {
	b := &s.Broker
	return []brokerFile{{"ca", b.CAFile, &c.MQTT.CAFile}, {"cert", b.CertFile, &c.MQTT.CertFile}, {"key", b.KeyFile, &c.MQTT.KeyFile}}
}

type secretFile struct {
	path string
	data []byte
}

// secrets returns the files that take what must not lie on the boot partition,
// and names them in the configuration.
func (a *applier) secrets(s *config.Setup, c *config.Config) (files []secretFile, err error) {
	if s.Broker.Password != "" {
		c.MQTT.PasswordFile = a.state.brokerPassword()
		files = append(files, secretFile{c.MQTT.PasswordFile, []byte(s.Broker.Password + "\n")})
	}
	for _, f := range brokerFiles(s, c) {
		if f.name == "" {
			continue
		}
		to := a.state.path("keys", "broker-"+f.what+".pem")
		*f.setting = to
		b, err := readAtMost(filepath.Join(filepath.Dir(a.file), f.name), config.MaxSetup)
		if errors.Is(err, fs.ErrNotExist) { // a try before has taken it
			if _, have := os.Stat(to); have == nil {
				continue
			}
		}
		if err != nil {
			return nil, fmt.Errorf("broker.%s_file: %w", f.what, err)
		}
		files = append(files, secretFile{to, b})
	}
	return files, nil
}

// clean takes the secrets off the boot partition. It is repeated until it has
// been done to the end.
func (a *applier) clean(mark setupMark) error {
	for _, f := range []string{mark.Key, filepath.Base(a.file)} {
		if f == "" {
			continue
		}
		path := filepath.Join(filepath.Dir(a.file), f)
		if err := a.disk.blank(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the setup is applied, its secrets are still in %s: %w", path, err)
		}
		if f == mark.Key {
			if err := a.disk.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := a.disk.replace(a.file, mark.Public, 0o600); err != nil {
		return fmt.Errorf("the setup is applied, its file could not be written: %w", err)
	}
	if err := a.disk.remove(a.errorFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mark.Phase = setupDone
	return a.setMark(mark)
}

// fail says beside the setup why it was not applied.
func (a *applier) fail(err error) error {
	var all config.Errors
	text := fmt.Sprintf("%s was not applied. The gateway goes on without it, and tries again at every start; correct what is wrong here.\n\n", filepath.Base(a.file))
	if errors.As(err, &all) {
		for _, e := range all {
			text += filepath.Base(a.file) + ": " + e.Error() + "\n"
		}
	} else {
		text += err.Error() + "\n"
	}
	if old, e := os.ReadFile(a.errorFile()); e != nil || string(old) != text {
		if e := a.disk.replace(a.errorFile(), []byte(text), 0o600); e != nil {
			a.log.Warn("why the setup was not applied could not be written beside it", "err", e)
		}
	}
	return fmt.Errorf("%s: %w", a.file, err)
}

func (a *applier) mark() (m setupMark, err error) {
	b, err := os.ReadFile(a.state.setupMark())
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err == nil && m.Version > setupVersion {
		err = newer(a.state.setupMark(), m.Version, setupVersion)
	}
	if err != nil {
		return m, fmt.Errorf("%s: %w; delete it to have the setup applied again", a.state.setupMark(), err)
	}
	return m, nil
}

func (a *applier) setMark(m setupMark) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return a.disk.replace(a.state.setupMark(), append(b, '\n'), 0o600)
}

// join makes this gateway a member the way a person would.
func (a *applier) join(ctx context.Context, s *config.Setup, c *config.Config) error {
	addrs := s.Grid.Advertise
	if len(addrs) == 0 {
		at, err := reachable(s, c)
		if err != nil {
			return err
		}
		addrs = []string{at}
	}
	args := []string{"grid", "join", "-"}
	if g := s.Grid.Create; g != nil {
		args = []string{"grid", "create", "--currency", cmp.Or(g.Currency, "EUR"), "--retail", cmp.Or(g.Retail, "0.30"), "--feed-in", cmp.Or(g.FeedIn, "0.08")}
	}
	if s.Grid.MaxPower > 0 {
		args = append(args, "--max-power", strconv.FormatInt(s.Grid.MaxPower, 10))
	}
	args = append(args, "--advertise", strings.Join(addrs, ","), "--config", a.config, "--state", string(a.state))
	root := newRootCmd()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(s.Grid.Token))
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	if err := root.ExecuteContext(ctx); err != nil {
		return fmt.Errorf("grid: %w", err)
	}
	return nil
}

// reachable guesses the address at which neighbours reach this gateway: the one
// that it was given, or the one from which it reaches others.
func reachable(s *config.Setup, c *config.Config) (string, error) {
	port := "4470"
	if len(c.P2P.Listen) > 0 {
		if m, err := ma.NewMultiaddr(c.P2P.Listen[0]); err == nil {
			port, _ = m.ValueForProtocol(ma.P_TCP)
			if ip, err := m.ValueForProtocol(ma.P_IP4); err == nil && ip != "0.0.0.0" {
				return c.P2P.Listen[0], nil
			}
		}
	}
	if ip, _, found := strings.Cut(s.Network.Address, "/"); found {
		return "/ip4/" + ip + "/tcp/" + port, nil
	}
	to := "192.0.2.1:9" // nobody: only the route is asked for
	if t, err := chain.ParseToken(s.Grid.Token); err == nil {
		for _, a := range t.Addrs {
			if m, err := ma.NewMultiaddr(a); err == nil {
				if ip, err := m.ValueForProtocol(ma.P_IP4); err == nil {
					to = net.JoinHostPort(ip, "9")
				}
			}
		}
	}
	conn, err := net.Dial("udp4", to) // sends nothing
	if err != nil {
		return "", fmt.Errorf("there is no network yet: %w", err)
	}
	defer conn.Close()
	return "/ip4/" + conn.LocalAddr().(*net.UDPAddr).IP.String() + "/tcp/" + port, nil
}

// applySetup applies the first setup that there is.
func applySetup(ctx context.Context, files []string, cfg string, st state, log *slog.Logger) (done bool, err error) {
	for _, f := range files {
		a := newApplier(f, cfg, st, log)
		if _, err := os.Stat(f); err != nil {
			if m, merr := a.mark(); merr != nil || m.Phase != setupClean || !errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		if done, err = a.apply(ctx); done || err != nil {
			return done, errors.Join(err, own(st, cfg))
		}
	}
	return false, nil
}

// own gives what root has made to the gateway's user, who owns the state
// folder.
func own(st state, cfg string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var fi unix.Stat_t
	if err := unix.Stat(string(st), &fi); err != nil || fi.Uid == 0 {
		return nil // nobody else is there
	}
	give := func(path string) error { return os.Lchown(path, int(fi.Uid), int(fi.Gid)) }
	err := filepath.WalkDir(string(st), func(path string, _ fs.DirEntry, err error) error { return errors.Join(err, give(path)) })
	if _, e := os.Stat(cfg); e == nil {
		err = errors.Join(err, give(cfg))
	}
	return err
}

// realDisk writes files. A boot partition is FAT and knows no modes.
type realDisk struct{}

func (realDisk) replace(path string, b []byte, mode fs.FileMode) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	_ = os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func (realDisk) blank(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, fi.Size()), 0)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func (realDisk) remove(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func readAtMost(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("%s: more than %d bytes", path, most)
	}
	return b, err
}

const setupSample = `# Put this file on the boot partition of a gateway's card and start it. The
# gateway applies it once and takes the secrets out of it.
version: 1
name: north                      # in the microgrid: a-z, 0-9 and -, no person's name
#board: raspberrypi-4            # left out: what the computer says that it is
#network:                        # left out: DHCP
#  address: 192.168.1.20/24
#  gateway: 192.168.1.1
#  dns: [192.168.1.1]
#broker:                         # left out: the gateway has one of its own
#  url: tls://broker.example:8883
#  user: north
#  password: "secret"
#  ca_file: ca.pem               # files beside this one; the key is taken away
#  cert_file: north.pem
#  key_file: north.key
grid:
  token: jg1...                  # from 'joulegate grid invite'
#  create: {currency: EUR, retail: "0.30", feed_in: "0.08"}   # instead: found a microgrid
#installers: [6ebf...c1]         # public keys of those who may change it
#panel: {listen: 0.0.0.0:8080}
`

func newSetupCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "setup",
		Short: "Set a new gateway up from a file on its boot partition",
		Long: `joulegate-setup.yaml on the boot partition (/boot/firmware or /boot) names the
gateway, its network, broker, microgrid and installers. 'run' applies it at its
start, once, and takes the secrets out of the file; what is wrong with it stands
in joulegate-setup.error.txt beside it.`,
	}
	c.AddCommand(
		&cobra.Command{
			Use:   "sample",
			Short: "Print a commented setup to start from",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := io.WriteString(cmd.OutOrStdout(), setupSample)
				return err
			},
		},
		&cobra.Command{
			Use:     "check FILE",
			Short:   "Say what is wrong with a setup, on any computer",
			Example: "  joulegate setup check /media/me/JG-SETUP/joulegate-setup.yaml",
			Args:    cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				b, err := readAtMost(args[0], config.MaxSetup)
				if err == nil {
					_, err = config.ParseSetup(b)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", args[0])
				return err
			},
		},
	)
	apply := &cobra.Command{
		Use:   "apply",
		Short: "Apply the setup now, as the start of the gateway does",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd)
			if err != nil {
				return err
			}
			files := setupFiles()
			if f, _ := cmd.Flags().GetString("file"); f != "" {
				files = []string{f}
			}
			cfg, _ := cmd.Flags().GetString("config")
			done, err := applySetup(cmd.Context(), files, cfg, stateOf(cmd), log)
			if err != nil {
				return err
			}
			return emit(cmd, map[string]bool{"applied": done}, func(w io.Writer) error {
				text := "the setup is applied"
				if !done {
					text = "there is no setup to apply"
				}
				_, err := fmt.Fprintln(w, text)
				return err
			})
		},
	}
	apply.Flags().String("file", "", "`FILE` instead of the one on the boot partition")
	c.AddCommand(apply)
	return c
}
