package main

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// erased is what erase tells.
type erased struct {
	State       string   `json:"state"`
	Device      string   `json:"device,omitempty"` // key of the gateway that is no more
	Overwritten int      `json:"overwritten"`      // files with secrets, before they were removed
	Removed     int      `json:"removed"`          // all files
	Trimmed     bool     `json:"trimmed"`          // the card was told that the space is free
	TrimError   string   `json:"trim_error,omitempty"`
	Left        []string `json:"left,omitempty"` // what could not be removed
	Notes       []string `json:"notes"`
}

func newEraseCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "erase --all",
		Short: "Destroy this gateway's keys, records and settings for good",
		Long: `For a gateway that is given away or thrown away. Files with secrets are
overwritten and removed first, then all others below the state folder, then the
configuration. There is no way back: what is worth money or is evidence must be
in a backup (joulegate backup) or with the neighbours.

It asks for the gateway's name. It refuses while a gateway runs.

Flash memory moves what is written: an overwritten file may remain in cells that
nobody can address, and telling the card that space is free (which needs root)
erases it sooner or later, on most cards. Whoever has to be sure erases the
whole card (blkdiscard --secure, where it can), or destroys it. A passphrase on
the keys, from the beginning, is the better protection.`,
		Example: "  joulegate erase --all\n  joulegate erase --all --confirm north --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all, _ := cmd.Flags().GetBool("all"); !all {
				return usageError{errors.New("erase destroys everything there is of this gateway: say --all if that is meant")}
			}
			st, path := stateOf(cmd), ""
			if path, _ = cmd.Flags().GetString("config"); path != "" {
				if _, err := os.Stat(path); err != nil {
					path = ""
				}
			}
			if g, err := dial(cmd); err == nil {
				g.Close()
				return errors.New("a gateway runs with this state folder: stop it first (sudo systemctl disable --now joulegate)")
			}
			if _, errKeys := os.Stat(st.keys()); errKeys != nil {
				return fmt.Errorf("%s is no state folder of a gateway: it has no keys; nothing was touched", st)
			}
			name := "everything"
			if cfg, err := loadConfig(path); err == nil && path != "" {
				name = cfg.Name
			}
			lock, err := journal.LockDir(string(st))
			if err != nil {
				return err
			}
			defer func() { _ = lock.Unlock() }()
			said, _ := cmd.Flags().GetString("confirm")
			if said == "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "This destroys keys, wallets, records and settings in %s for good.\nType %q to go on: ", st, name)
				line, _ := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 256)).ReadString('\n')
				said = strings.TrimSpace(line)
			}
			if said != name {
				return fmt.Errorf("%q is not %q: nothing was touched", said, name)
			}
			progress := progressLine(cmd)
			v, err := erase(st, path, func(n int) { progress(fmt.Sprintf("%d files removed", n)) })
			progress("")
			if err != nil {
				return err
			}
			if err := emit(cmd, v, func(w io.Writer) error {
				fmt.Fprintf(w, "%d files with secrets were overwritten, %d files removed from %s\n", v.Overwritten, v.Removed, v.State)
				for _, l := range v.Left {
					fmt.Fprintln(w, "LEFT  ", l)
				}
				for _, n := range v.Notes {
					fmt.Fprintln(w, n)
				}
				return nil
			}); err != nil {
				return err
			}
			if len(v.Left) > 0 {
				return errSilent
			}
			return nil
		},
	}
	c.Flags().Bool("all", false, "everything: keys, wallets, records, settings")
	c.Flags().String("confirm", "", "the gateway's `NAME`, instead of typing it")
	return c
}

// secrets are what is overwritten, and goes first: whoever cuts the power has
// got nothing of worth.
var secrets = []string{"keys", "wallets", "psk", "consensus/config", "consensus/data/priv_validator_state.json", "parties.yaml", "settings", "broker.json", "label.html", "label.txt"}

// erase removes what is below the state folder, and the configuration. It
// follows no link out of it.
func erase(st state, config string, told func(int)) (v erased, err error) {
	v.State = string(st)
	if id, err := loadIdentity(st); err == nil {
		v.Device = keys.Public(id.device).String()
	}
	root, err := os.OpenRoot(string(st))
	if err != nil {
		return v, err
	}
	defer root.Close()
	gone := func(name string, err error) {
		if err != nil {
			v.Left = append(v.Left, fmt.Sprintf("%s: %v", name, err))
			return
		}
		v.Removed++
		told(v.Removed)
	}
	isSecret := func(name string) bool {
		return slices.ContainsFunc(secrets, func(s string) bool { return name == s || strings.HasPrefix(name, s+"/") })
	}
	for _, secret := range []bool{true, false} {
		var dirs []string
		err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				v.Left = append(v.Left, fmt.Sprintf("%s: %v", name, err))
				return nil
			case d.IsDir():
				if name != "." {
					dirs = append(dirs, name)
				}
				return nil
			case name == "LOCK": // ours, to the end
				return nil
			case !secret:
				gone(name, root.Remove(name))
			case isSecret(name):
				if d.Type().IsRegular() {
					if err := overwrite(root, name); err != nil {
						v.Left = append(v.Left, fmt.Sprintf("%s was not overwritten: %v", name, err))
					} else {
						v.Overwritten++
					}
				}
				gone(name, root.Remove(name))
			}
			return nil
		})
		if err != nil {
			return v, err
		}
		if !secret {
			slices.Reverse(dirs) // the inner ones first
			for _, d := range dirs {
				if err := root.Remove(d); err != nil {
					v.Left = append(v.Left, fmt.Sprintf("%s: %v", d, err))
				}
			}
		}
		if err := syncFolder(string(st)); err != nil {
			return v, err
		}
	}
	if config != "" {
		gone(config, os.Remove(config))
	}
	_ = root.Remove("LOCK") // this process holds it still
	if v.TrimError = trim(string(st)); v.TrimError == "" {
		v.Trimmed = true
		v.Notes = append(v.Notes, "the card was told that the space is free")
	} else {
		v.Notes = append(v.Notes, "the card was not told that the space is free: "+v.TrimError+"; sudo fstrim does it")
	}
	v.Notes = append(v.Notes, "flash moves what is written: copies may remain in cells that nobody can address; to be sure, erase the whole card (blkdiscard --secure) or destroy it")
	if v.Device != "" {
		v.Notes = append(v.Notes, "let an operator revoke this gateway: joulegate grid revoke "+v.Device)
	}
	return v, nil
}

func syncFolder(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// overwrite replaces a file's bytes in place by random ones.
func overwrite(root *os.Root, name string) error {
	f, err := root.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err == nil {
		_, err = io.CopyN(f, rand.Reader, fi.Size())
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// fitrim is FITRIM (linux/fs.h): _IOWR('X', 121, struct fstrim_range).
const fitrim = 3<<30 | 24<<16 | 'X'<<8 | 121

// trim tells the disk below a folder which space is free, and returns why not.
func trim(dir string) string {
	f, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	all := struct{ start, length, least uint64 }{length: ^uint64(0)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fitrim, uintptr(unsafe.Pointer(&all))); errno != 0 {
		return errno.Error()
	}
	return ""
}
