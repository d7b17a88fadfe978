package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// built are the programs for this machine, made as make build makes them.
func built(t *testing.T) Package {
	t.Helper()
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"joulegate":        {"-tags", "grpcnotrace"},
		"joulegate-verify": nil,
	} {
		args = append([]string{"build", "-trimpath", "-ldflags", "-s -w"}, args...)
		c := exec.Command("go", append(args, "-o", filepath.Join(dir, name), "./cmd/"+name)...)
		c.Dir, c.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return Package{
		Arch: runtime.GOARCH, Version: "1.0.0", Time: time.Unix(1_700_000_000, 0).UTC(), Root: root, Compression: "zstd",
		Program: filepath.Join(dir, "joulegate"), Verify: filepath.Join(dir, "joulegate-verify"), Host: filepath.Join(dir, "joulegate"),
	}
}

// TestPackage installs, upgrades, removes and purges the package in a copy of
// this machine's file system that keeps nothing.
func TestPackage(t *testing.T) {
	for _, need := range []string{"dpkg", "unshare", "systemd-sysusers", "systemd-analyze"} {
		if _, err := exec.LookPath(need); err != nil || os.Getuid() != 0 {
			t.Skipf("needs root and %s", need)
		}
	}
	p := built(t)
	dir := t.TempDir()
	write := func(version string) string {
		p.Version = version
		var b bytes.Buffer
		if err := writeDeb(p, &b); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, fmt.Sprintf("joulegate_%s.deb", version))
		if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	one := write("1.0.0")
	first, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(write("1.0.0")); err != nil || !bytes.Equal(first, again) {
		t.Errorf("the same package built twice differs (%v)", err)
	}
	two := write("1.0.1")

	// The script says what it sees; what has to hold is below.
	script := `set -eu
mkdir -p /run/systemd # but no systemd in it
dpkg -i --force-depends ` + one + ` >/dev/null 2>/tmp/err || { cat /tmp/err; exit 1; }
joulegate version
getent passwd joulegate | cut -d: -f1,6,7
id -nG joulegate
stat -c '%a %U %G %n' /etc/joulegate /var/lib/joulegate
systemd-analyze verify /usr/lib/systemd/system/joulegate.service 2>&1 | grep -i joulegate || echo unit is well-formed
systemd-analyze security --offline=true --no-pager /usr/lib/systemd/system/joulegate.service | tail -1
zcat /usr/share/man/man1/joulegate-session-start.1.gz | head -1
cd / && md5sum --quiet -c /var/lib/dpkg/info/joulegate.md5sums && echo files are whole
setpriv --reuid joulegate --regid joulegate --init-groups joulegate init --name mine >/dev/null && echo the user writes its settings
echo 'name: mine' > /etc/joulegate/joulegate.yaml
echo key > /var/lib/joulegate/key
dpkg -i --force-depends ` + two + ` >/dev/null
dpkg-query -W joulegate
cat /etc/joulegate/joulegate.yaml /var/lib/joulegate/key
dpkg -r joulegate >/dev/null
cat /etc/joulegate/joulegate.yaml
test ! -e /usr/bin/joulegate && echo program is gone
dpkg -P joulegate | grep kept
test ! -e /etc/joulegate && echo settings are gone
cat /var/lib/joulegate/key
`
	out := inCopy(t, script)
	for _, want := range []string{
		"joulegate:/var/lib/joulegate:/usr/sbin/nologin\n",
		"770 root joulegate /etc/joulegate\n750 joulegate joulegate /var/lib/joulegate\n",
		"unit is well-formed\n", "the user writes its settings\n", "files are whole\n", "joulegate\t1.0.1\nname: mine\nkey\nname: mine\n",
		"program is gone\n", "joulegate: kept /var/lib/joulegate", "settings are gone\nkey\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q", want)
		}
	}
	for _, group := range []string{"dialout", "gpio"} {
		if !strings.Contains(out, " "+group) {
			t.Errorf("the user is not in the group %s", group)
		}
	}
	if _, rest, ok := strings.Cut(out, "Overall exposure level for joulegate.service: "); !ok {
		t.Error("no exposure level")
	} else if v, err := strconv.ParseFloat(strings.Fields(rest)[0], 64); err != nil || v > 2.5 {
		t.Errorf("exposure level %s (%v), want at most 2.5", strings.Fields(rest)[0], err)
	}
	if t.Failed() {
		t.Log(out)
	}
}

// inCopy runs a script as root of a copy of this machine's file system, in
// namespaces of its own.
func inCopy(t *testing.T, script string) string {
	t.Helper()
	at := t.TempDir()
	for _, d := range []string{"t"} {
		if err := os.Mkdir(filepath.Join(at, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	outer := `set -eu
mount -t tmpfs tmpfs ` + at + `/t
mkdir ` + at + `/t/u ` + at + `/t/w ` + at + `/t/m
mount -t overlay overlay -o lowerdir=/,upperdir=` + at + `/t/u,workdir=` + at + `/t/w ` + at + `/t/m
mount --rbind /proc ` + at + `/t/m/proc
mount --rbind /dev ` + at + `/t/m/dev
mount --bind /tmp ` + at + `/t/m/tmp
mount -t tmpfs tmpfs ` + at + `/t/m/run
exec chroot ` + at + `/t/m /bin/sh -c "$SCRIPT"`
	c := exec.Command("unshare", "--mount", "--net", "--uts", "/bin/sh", "-c", outer)
	c.Env = append(os.Environ(), "SCRIPT="+script, "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return string(out)
}

// TestParts proves that everything linked has a licence that is known, and
// none that forbids what is shipped.
func TestParts(t *testing.T) {
	p := built(t)
	for _, program := range []string{p.Program, p.Verify} {
		b, err := sbomOf(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"pkg:golang/std@", "pkg:golang/github.com/fxamacker/cbor/v2@v2.10.0"} {
			if !strings.Contains(string(b), part) {
				t.Errorf("%s: no %s among the parts", filepath.Base(program), part)
			}
		}
	}
}

// TestVersions orders versions as dpkg does.
func TestVersions(t *testing.T) {
	at := func(tag, since string, day int) string {
		return source{Tag: tag, Since: since, Commit: strings.Repeat("ab", 20), Time: time.Date(2026, 1, day, 0, 0, 0, 0, time.UTC)}.debVersion()
	}
	order := []string{at("", "", 1), at("", "", 2), at("v0.9.0-rc1", "0", 3), at("v0.9.0-rc1", "5", 3), at("v0.9.0", "0", 4), at("v0.9.0", "12", 4), at("v1.0.0", "0", 5)}
	for i := 1; i < len(order); i++ {
		if err := exec.Command("dpkg", "--compare-versions", order[i-1], "lt", order[i]).Run(); err != nil {
			t.Errorf("dpkg does not find %s older than %s", order[i-1], order[i])
		}
	}
}
