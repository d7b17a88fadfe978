package update

import (
	"strconv"
	"strings"
)

// parsed is a version: release numbers, what comes before a release (rc.1),
// and how many commits come after its tag, as git describe says it.
type parsed struct {
	nums   [3]int
	pre    string
	behind int
}

// parse reads 1.2.3, v1.2.3, 1.2.3-rc.1, v1.2.3-14-gabcdef0 and either with
// -dirty. Everything else, a bare commit above all, has no place in the order.
func parse(s string) (p parsed, ok bool) {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "v"), "-dirty")
	if len(s) > 64 {
		return p, false
	}
	s, _, _ = strings.Cut(s, "+")
	core, rest, _ := strings.Cut(s, "-")
	f := strings.Split(core, ".")
	if len(f) != 3 {
		return p, false
	}
	for i, x := range f {
		n, err := strconv.ParseUint(x, 10, 31)
		if err != nil {
			return p, false
		}
		p.nums[i] = int(n)
	}
	if i := strings.LastIndex(rest, "-g"); i >= 0 {
		count := rest[:i]
		if j := strings.LastIndexByte(count, '-'); j >= 0 {
			rest, count = count[:j], count[j+1:]
		} else {
			rest = ""
		}
		n, err := strconv.ParseUint(count, 10, 31)
		if err != nil {
			return p, false
		}
		p.behind = int(n)
	}
	p.pre = rest
	return p, true
}

// Compare orders two versions as semver.org does, and a build some commits
// after a tag above it. A version that says nothing about its order is below
// every other one, so that whoever runs one may go to any release.
func Compare(a, b string) int {
	x, okX := parse(a)
	y, okY := parse(b)
	switch {
	case !okX && !okY:
		return 0
	case !okX:
		return -1
	case !okY:
		return 1
	}
	for i := range x.nums {
		if x.nums[i] != y.nums[i] {
			return x.nums[i] - y.nums[i]
		}
	}
	if x.pre != y.pre {
		return comparePre(x.pre, y.pre)
	}
	return x.behind - y.behind
}

// comparePre is rule 11 of semver.org: none is above any, numbers are below
// words, and the longer list wins.
func comparePre(a, b string) int {
	if a == "" {
		return 1
	}
	if b == "" {
		return -1
	}
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; i < len(x) && i < len(y); i++ {
		m, errM := strconv.ParseUint(x[i], 10, 31)
		n, errN := strconv.ParseUint(y[i], 10, 31)
		switch {
		case errM == nil && errN == nil && m != n:
			return int(m) - int(n)
		case errM == nil && errN != nil:
			return -1
		case errM != nil && errN == nil:
			return 1
		case errM != nil && errN != nil && x[i] != y[i]:
			return strings.Compare(x[i], y[i])
		}
	}
	return len(x) - len(y)
}
