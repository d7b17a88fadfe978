package main

import (
	"bytes"
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/licensecheck"
)

// sbomOf lists what a program contains, as CycloneDX, from what the linker
// has written into it, with the licence that each module's own files state.
func sbomOf(program string) ([]byte, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("parts of %s: %w", program, err)
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &cdx.Component{
		BOMRef: info.Main.Path, Type: cdx.ComponentTypeApplication, Name: "joulegate", Version: info.Main.Version,
		Licenses: licences([]string{"Apache-2.0"}),
	}}
	parts := []cdx.Component{{
		BOMRef: "std", Type: cdx.ComponentTypeLibrary, Name: "std", Version: strings.TrimPrefix(info.GoVersion, "go"),
		PackageURL: "pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go"), Licenses: licences([]string{"BSD-3-Clause"}),
	}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		ids, err := licenceOf(m)
		if err != nil {
			return nil, err
		}
		purl := "pkg:golang/" + m.Path + "@" + m.Version
		parts = append(parts, cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: purl, Licenses: licences(ids)})
	}
	slices.SortFunc(parts, func(a, b cdx.Component) int { return cmp.Compare(a.Name, b.Name) })
	bom.Components = &parts
	return encoded(bom)
}

func encoded(bom *cdx.BOM) ([]byte, error) {
	var b bytes.Buffer
	enc := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON)
	enc.SetPretty(true)
	err := enc.Encode(bom)
	return b.Bytes(), err
}

// cardParts lists what an SD card contains: our two programs, whose own parts
// are in their lists, and what lies beside them without being linked.
func cardParts(c Card) ([]byte, error) {
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &cdx.Component{
		BOMRef: "card", Type: cdx.ComponentTypeOS, Name: "joulegate-sd", Version: c.Version, Licenses: licences([]string{"Apache-2.0"}),
	}}
	upstream, err := c.upstream()
	if err != nil {
		return nil, err
	}
	carries := func(kind cdx.ComponentType, name, module, dir, source string, l *cdx.Licenses) cdx.Component {
		purl := "pkg:golang/" + module + "@" + moduleVersion(dir)
		return cdx.Component{
			BOMRef: purl, Type: kind, Name: name, Version: moduleVersion(dir), PackageURL: purl, Licenses: l,
			ExternalReferences: &[]cdx.ExternalReference{{Type: cdx.ERTypeDistribution, URL: "https://" + module}, {Type: cdx.ERTypeVCS, URL: source, Comment: "source"}},
		}
	}
	broadcom := &cdx.Licenses{{License: &cdx.License{Name: "Broadcom and Raspberry Pi firmware licence (LICENCE.broadcom): unmodified, for Raspberry Pi devices only", URL: "https://github.com/raspberrypi/firmware/blob/master/boot/LICENCE.broadcom"}}}
	bom.Components = &[]cdx.Component{
		{BOMRef: "joulegate", Type: cdx.ComponentTypeApplication, Name: "joulegate", Version: c.Version, Licenses: licences([]string{"Apache-2.0"})},
		{BOMRef: "joulegate-init", Type: cdx.ComponentTypeApplication, Name: "joulegate-init", Version: c.Version, Licenses: licences([]string{"Apache-2.0"})},
		carries(cdx.ComponentTypeOS, "linux", kernelModule, c.Kernel, upstream, licences([]string{"GPL-2.0-only"})),
		carries(cdx.ComponentTypeFirmware, "raspberrypi-firmware", firmwareModule, c.Firmware, "https://github.com/raspberrypi/firmware", broadcom),
	}
	return encoded(bom)
}

func licences(ids []string) *cdx.Licenses {
	var l cdx.Licenses
	for _, id := range ids {
		l = append(l, cdx.LicenseChoice{License: &cdx.License{ID: id}})
	}
	return &l
}

// minCover is how much of a file must be the text of a known licence, in
// percent, before the file counts as that licence.
const minCover = 75

// licenceOf reads the licence of a module from its files. A module without a
// recognised one is an error: what is shipped must be known.
func licenceOf(m *debug.Module) ([]string, error) {
	dir, err := moduleDir(m)
	if err != nil {
		return nil, err
	}
	var ids []string
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range list {
		name := strings.ToUpper(f.Name())
		if f.IsDir() || !strings.HasPrefix(name, "LICEN") && !strings.HasPrefix(name, "COPYING") && !strings.HasPrefix(name, "UNLICENSE") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		cover := licensecheck.Scan(b)
		if cover.Percent < minCover && !strings.Contains(name, "LICEN") {
			continue
		}
		// A file may name a licence by its address alone.
		text := slices.ContainsFunc(cover.Match, func(m licensecheck.Match) bool { return !m.IsURL })
		for _, match := range cover.Match {
			if match.IsURL == text || slices.Contains(ids, match.ID) {
				continue
			}
			if strings.Contains(match.ID, "GPL") {
				return nil, fmt.Errorf("%s %s is under %s: nothing under that licence is linked", m.Path, m.Version, match.ID)
			}
			ids = append(ids, match.ID)
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%s %s: no licence recognised in %s", m.Path, m.Version, dir)
	}
	slices.Sort(ids)
	return ids, nil
}

// moduleDir is where a module's files lie.
func moduleDir(m *debug.Module) (string, error) {
	b, err := exec.Command("go", "mod", "download", "-json", m.Path+"@"+m.Version).Output()
	var got struct{ Dir, Error string }
	if e := json.Unmarshal(b, &got); e != nil {
		return "", errors.Join(fmt.Errorf("files of %s %s", m.Path, m.Version), err, e)
	}
	if got.Error != "" || got.Dir == "" {
		return "", fmt.Errorf("files of %s %s: %s", m.Path, m.Version, got.Error)
	}
	if _, err := os.Stat(got.Dir); errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return got.Dir, nil
}
