package process

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/sigma"
)

// marked is a rule set for programs with a mark.
func marked(t testing.TB) *sigma.Set {
	t.Helper()
	s, err := sigma.Load(fstest.MapFS{"marked.yml": {Data: []byte("title: marked\nlevel: high\nlogsource: {category: process_creation, product: linux}\ndetection: {s: {CommandLine|contains: ' marked-'}, condition: s}\n")}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// watcher gathers what a sensor sees of this test.
type watcher struct {
	mu    sync.Mutex
	seen  map[string]Seen // by command line
	found []guard.Finding
}

func (w *watcher) get(line string) (Seen, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.seen[line]
	return s, ok
}

// watch runs a sensor on one rung, or skips the test where the kernel or the
// privileges do not carry it.
func watch(t *testing.T, rung string, programs *Programs) (*watcher, *Sensor) {
	t.Helper()
	w := &watcher{seen: map[string]Seen{}}
	s, err := New(Config{
		Set: marked(t), Programs: programs, Rung: rung, Log: slog.New(slog.DiscardHandler),
		Report: func(f guard.Finding) { w.mu.Lock(); w.found = append(w.found, f); w.mu.Unlock() },
		Watch: func(s Seen) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if _, ok := w.seen[s.CommandLine]; !ok || len(w.seen) < 100_000 {
				w.seen[s.CommandLine] = s
			}
		},
	})
	if err != nil {
		t.Skipf("this machine does not carry %s: %v", rung, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if c := s.Coverage(); c.Level != rung || c.Since.IsZero() {
		t.Fatalf("coverage %+v on the rung %s", c, rung)
	}
	return w, s
}

// flush waits until a program that was started last has been seen, so that
// everything before it has been, too.
func (w *watcher) flush(t *testing.T, s *Sensor) {
	t.Helper()
	for i := range 600 {
		line := fmt.Sprintf("/bin/sleep 0.0%d", i%10)
		exec.Command("/bin/sh", "-c", "exec "+line+" # "+t.Name()).Run()
		if _, ok := w.get(line); ok {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("nothing is seen any more: %+v", s.Coverage())
}

// burst starts n short-lived programs from a few shells at once, and returns
// their command lines.
func burst(t *testing.T, n int) []string {
	t.Helper()
	const shells = 4
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf("/bin/true marked-%d", i))
	}
	var wg sync.WaitGroup
	for i := range shells {
		wg.Go(func() {
			var script strings.Builder
			for j := i; j < n; j += shells {
				script.WriteString(lines[j] + " &\n")
				if j%40 == i {
					script.WriteString("wait\n")
				}
			}
			cmd := exec.Command("/bin/sh")
			cmd.Stdin = strings.NewReader(script.String() + "wait\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	return lines
}

func (w *watcher) count(lines []string) int {
	n := 0
	for _, l := range lines {
		if _, ok := w.get(l); ok {
			n++
		}
	}
	return n
}

// A thousand programs that end at once, many at a time: all are seen, with
// their arguments, their parent and their user.
func TestEveryExecIsSeen(t *testing.T) {
	for _, name := range []string{Kernel, Calls, Calls + " with tracefs"} {
		t.Run(name, func(t *testing.T) {
			rung, tracefs, _ := strings.Cut(name, " ")
			if tracefs != "" {
				needTracefs(t)
			}
			w, s := watch(t, rung, nil)
			lines := burst(t, 1000)
			w.flush(t, s)
			n := w.count(lines)
			t.Logf("%s: %d of 1000 seen", name, n)
			if n != 1000 {
				t.Fatalf("coverage %+v", s.Coverage())
			}
			me, ok := s.proc.uid(os.Getpid())
			if !ok {
				t.Fatal("own user is not known")
			}
			for _, l := range lines {
				e, _ := w.get(l)
				if path, _ := filepath.EvalSymlinks("/bin/true"); e.Image != path {
					t.Fatalf("%s: image %q, want %q", l, e.Image, path)
				}
				if rung == Calls { // there only /proc knows the parent, and when a process started
					if e.User != s.user(me) || len(e.Matches) != 1 {
						t.Fatalf("%s: %+v", l, e)
					}
					continue
				}
				if !strings.HasSuffix(e.ParentImage, "sh") || e.ParentCommandLine != "/bin/sh" {
					t.Fatalf("%s: parent %q %q", l, e.ParentImage, e.ParentCommandLine)
				}
				if e.User != s.user(me) || len(e.Matches) != 1 || e.ID.Start == 0 || e.Body != File {
					t.Fatalf("%s: %+v", l, e)
				}
			}
			if c := s.Coverage(); c.Lost > 0 || c.Seen < 1000 {
				t.Errorf("coverage %+v", c)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			var told uint64
			for _, f := range w.found {
				told += f.Count
			}
			if len(w.found) > 12 || told < 512 {
				t.Errorf("a thousand equal findings are told in %d, of %d", len(w.found), told)
			}
		})
	}
}

// On the lower rungs some of a burst is missed, and the connector says how
// many. What lives for a while is seen on all of them.
func TestLowerRungs(t *testing.T) {
	for _, rung := range []string{Connector, Polling} {
		t.Run(rung, func(t *testing.T) {
			w, s := watch(t, rung, nil)
			lines := burst(t, 1000)
			slow := exec.Command("/bin/sleep", "60.125")
			if err := slow.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { slow.Process.Kill(); slow.Wait() }()
			until := time.Now().Add(time.Minute)
			for {
				if e, ok := w.get("/bin/sleep 60.125"); ok {
					if exe, _ := os.Readlink("/proc/self/exe"); e.ParentImage != exe || e.ID.PID != slow.Process.Pid {
						t.Errorf("%+v", e)
					}
					break
				}
				if time.Now().After(until) {
					t.Fatalf("a program that runs on is not seen: %+v", s.Coverage())
				}
				time.Sleep(5 * time.Millisecond)
			}
			n, c := w.count(lines), s.Coverage()
			t.Logf("%s: %d of 1000 seen, %d counted as lost", rung, n, c.Lost)
			if rung == Connector && n+int(c.Lost) < 1000 {
				t.Errorf("%d seen and %d lost of 1000: some are not accounted for", n, c.Lost)
			}
		})
	}
}

// needTracefs makes tracepoints visible where nobody has mounted them, in a
// mount namespace of this thread's own.
func needTracefs(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/sys/kernel/tracing/events"); err == nil {
		return
	}
	runtime.LockOSThread() // the thread is thrown away with the test
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Skipf("tracefs is not mounted and cannot be: unshare: %v", err)
	}
	unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err := unix.Mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, ""); err != nil {
		t.Skipf("tracefs is not mounted and cannot be: %v", err)
	}
}

// Where the code came from, how it was called, who started it: with programs
// that end at once and with ones that go on.
func TestWhatIsKnownOfAnExec(t *testing.T) {
	w, s := watch(t, Kernel, nil)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	truth, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "some tool")
	if err := os.WriteFile(file, truth, 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(script string) {
		t.Helper()
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", script, err, out)
		}
	}
	os.Symlink(file, filepath.Join(dir, "nc"))
	os.WriteFile(filepath.Join(dir, "script"), []byte("#!/bin/sh\n./nc in-a-script\n:\n"), 0o755)
	run("'./some tool' relative; ./nc a-link; ./script its-argument; (true; ./nc forked; true) | cat >/dev/null")
	run("./nc " + strings.Repeat("long ", 2000))

	memory, err := unix.MemfdCreate("worm", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(memory), "worm")
	defer f.Close()
	if _, err := f.Write(truth); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), memory), "from-memory").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	gone, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	os.Remove(file)
	if out, err := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), gone.Fd()), "from-nowhere").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	w.flush(t, s)

	sh, _ := filepath.EvalSymlinks("/bin/sh")
	for line, want := range map[string]Seen{
		"./some tool relative":          {Event: sigma.Event{Image: file, ParentImage: sh}},
		"./nc a-link":                   {Event: sigma.Event{Image: file, ParentImage: sh}, Called: filepath.Join(dir, "nc")},
		"/bin/sh ./script its-argument": {Event: sigma.Event{Image: sh, ParentImage: sh}, Called: "/bin/sh"},
		"./nc in-a-script":              {Event: sigma.Event{Image: file, ParentImage: sh, ParentCommandLine: "/bin/sh ./script its-argument"}, Called: filepath.Join(dir, "nc")},
		"./nc forked":                   {Event: sigma.Event{Image: file, ParentImage: sh}, Called: filepath.Join(dir, "nc")},
	} {
		e, ok := w.get(line)
		if want.ParentCommandLine == "" {
			want.ParentCommandLine = e.ParentCommandLine
		}
		if !ok || e.Image != want.Image || e.ParentImage != want.ParentImage || e.ParentCommandLine != want.ParentCommandLine || e.Called != want.Called || e.CurrentDirectory != dir || e.Body != File {
			t.Errorf("%s: %t %+v, want %+v", line, ok, e, want)
		}
	}
	found := 0
	w.mu.Lock()
	defer w.mu.Unlock()
	for line, e := range w.seen {
		switch {
		case strings.HasSuffix(line, " from-memory"):
			found++
			if e.Body != Memory {
				t.Errorf("%+v", e)
			}
		case strings.HasSuffix(line, " from-nowhere"):
			found++
			if e.Body != Deleted {
				t.Errorf("%+v", e)
			}
		case strings.HasPrefix(line, "./nc long"):
			found++
			if !e.Cut || len(line) != MaxArgs {
				t.Errorf("%d bytes, cut %t", len(line), e.Cut)
			}
		}
	}
	var rules []string
	for _, f := range w.found {
		if strings.Contains(f.Evidence["command_line"], " from-") {
			rules = append(rules, f.Rule+" "+f.Severity.String())
		}
	}
	slices.Sort(rules)
	if want := []string{"process.deleted_executable high", "process.memfd high"}; found != 3 || !slices.Equal(rules, want) {
		t.Errorf("%d found, rules %v, want %v", found, rules, want)
	}
}

// A list of programs: a listed one, one with another content and one that is
// not listed.
func TestPrograms(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	truth, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	for _, name := range []string{"good", "other", "unlisted"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, truth, 0o755); err != nil {
			t.Fatal(err)
		}
		if name != "unlisted" {
			fmt.Fprintf(&list, "%x  %s\n", sha256.Sum256(truth), file)
		}
	}
	os.WriteFile(filepath.Join(dir, "other"), append(truth, 0), 0o755)
	programs, err := ReadPrograms("list", strings.NewReader(list.String()))
	if err != nil {
		t.Fatal(err)
	}
	w, s := watch(t, Kernel, programs)
	for _, name := range []string{"good", "other", "unlisted", "good"} {
		if err := exec.Command(filepath.Join(dir, name)).Run(); err != nil {
			t.Fatal(err)
		}
	}
	w.flush(t, s)
	w.mu.Lock()
	defer w.mu.Unlock()
	why := map[string]string{}
	for _, f := range w.found {
		if f.Rule == guard.ProcessUnlisted && filepath.Dir(f.Evidence["image"]) == dir {
			why[filepath.Base(f.Evidence["image"])] = f.Evidence["why"]
		}
	}
	if len(why) != 2 || !strings.HasPrefix(why["other"], "its content is another") || why["unlisted"] != "its path is not listed" {
		t.Errorf("%v", why)
	}
}

// What is started without the privileges says so.
func TestWithoutPrivileges(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give it up")
	}
	runtime.LockOSThread() // and never unlocked: the thread is thrown away
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capset(&h, &d[0]); err != nil {
		t.Skipf("cannot give up privileges: %v", err)
	}
	s, err := New(Config{Set: marked(t), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.src.close()
	c := s.Coverage()
	for _, want := range []string{"CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"} {
		if !strings.Contains(c.Reason, want) {
			t.Errorf("the reason does not speak of %s: %s", want, c.Reason)
		}
	}
	if c.Level == Kernel || c.Level == Calls { // new kernels let everybody use the connector
		t.Errorf("level %s", c.Level)
	}
	if _, err := New(Config{Set: marked(t), Proc: t.TempDir(), Rung: Polling, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "no process is visible") {
		t.Errorf("without /proc: %v", err)
	}
}
