package profile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Parse reads a profile file. name is used in errors only, which read
// "name:line: what is wrong".
func Parse(name string, b []byte) (*Profile, error) {
	if len(b) > MaxFileSize {
		return nil, fmt.Errorf("%s: profile is %d bytes long, at most %d", name, len(b), MaxFileSize)
	}
	if err := plain(name, string(b)); err != nil {
		return nil, err
	}
	p := new(Profile)
	if err := yaml.UnmarshalWithOptions(b, p, yaml.Strict()); err != nil {
		var ye yaml.Error
		if errors.As(err, &ye) && ye.GetToken() != nil {
			return nil, fmt.Errorf("%s:%d: %s", name, ye.GetToken().Position.Line, ye.GetMessage())
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := p.check(); err != nil {
		var at *fieldError
		if errors.As(err, &at) {
			return nil, fmt.Errorf("%s:%d: %s: %w", name, lineOf(b, at.path), strings.TrimPrefix(at.path, "$."), at.err)
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	p.hash = sha256.Sum256(b)
	return p, nil
}

// maxNesting bounds brackets and braces within one another.
const maxNesting = 8

// plain refuses what a profile never needs and a small file can abuse: aliases
// multiply when they are decoded, and deep nesting takes the parser's stack.
func plain(name, text string) error {
	depth := 0
	for _, tk := range lexer.Tokenize(text) {
		switch tk.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType, token.TagType, token.DirectiveType, token.DocumentHeaderType:
			return fmt.Errorf("%s:%d: %q: anchors, aliases, tags and further documents are not used in profiles", name, tk.Position.Line, tk.Value)
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		// Block sequences have no brackets; there the column tells.
		deep := tk.Type == token.SequenceEntryType && tk.Position.Column > 8*maxNesting
		if depth > maxNesting || deep {
			return fmt.Errorf("%s:%d: nested more than %d deep", name, tk.Position.Line, maxNesting)
		}
	}
	return nil
}

// Reversed returns the variant of p in which power flows the other way.
func (p *Profile) Reversed() *Profile {
	if p.reversed {
		return p
	}
	q := *p
	q.reversed = true
	q.ID += reversedSuffix
	q.hash = sha256.Sum256(append(p.hash[:], reversedSuffix...))
	return &q
}

// Swapped returns the variant for current transformers that are mounted the
// wrong way round: such a meter counts what is imported in its export register
// and shows power with the opposite sign. Unlike Reversed, which corrects a
// convention about the sign of power only, it exchanges the registers too.
func (p *Profile) Swapped() *Profile {
	if p.swapped {
		return p
	}
	q := *p
	q.swapped = true
	q.ID += swappedSuffix
	q.hash = sha256.Sum256(append(p.hash[:], swappedSuffix...))
	turn := func(points []Point) []Point {
		points = slices.Clone(points)
		for i := range points {
			pt := &points[i]
			switch pt.Quantity {
			case meter.Import:
				pt.Quantity = meter.Export
			case meter.Export:
				pt.Quantity = meter.Import
			case meter.Power, meter.ReactivePower:
				pt.Sign = map[Sign]Sign{SignExport: SignImport}[pt.Sign]
				if pt.Sign == "" {
					pt.Sign = SignExport
				}
			}
		}
		return points
	}
	q.Points = turn(p.Points)
	if p.SunSpec != nil {
		s := *p.SunSpec
		s.Models = slices.Clone(s.Models)
		for i := range s.Models {
			s.Models[i].Points = turn(s.Models[i].Points)
		}
		q.SunSpec = &s
	}
	return &q
}

// fieldError is a complaint about one field.
type fieldError struct {
	path string // YAML path
	err  error
}

func (e *fieldError) Error() string { return e.path + ": " + e.err.Error() }

func at(path, format string, args ...any) error {
	return &fieldError{"$." + path, fmt.Errorf(format, args...)}
}

// lineOf returns the line of the field at path, or of its nearest parent that
// is written down.
func lineOf(src []byte, path string) int {
	for {
		if yp, err := yaml.PathString(path); err == nil {
			if node, err := yp.ReadNode(strings.NewReader(string(src))); err == nil && node != nil && node.GetToken() != nil {
				return node.GetToken().Position.Line
			}
		}
		i := strings.LastIndexAny(path, ".[")
		if i <= 0 {
			return 1
		}
		path = path[:i]
	}
}

func validID(s string) bool {
	ok := len(s) > 0 && len(s) <= 64 && s[0] != '-' && s[len(s)-1] != '-'
	for _, c := range s {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	return ok
}

var framings = []string{"8N1", "8E1", "8N2"}

func (p *Profile) check() error {
	if p.Version != 1 {
		return at("version", "is %d, this program reads version 1", p.Version)
	}
	if !validID(p.ID) {
		return at("id", "%q: want lower-case letters, digits and inner hyphens", p.ID)
	}
	for _, f := range []struct{ path, text string }{{"vendor", p.Vendor}, {"model", p.Model}} {
		if f.text == "" || len(f.text) > maxTextBytes {
			return at(f.path, "want 1..%d bytes", maxTextBytes)
		}
	}
	if p.Kind != Meter && p.Kind != Inverter && p.Kind != Wallbox {
		return at("kind", "%q: want meter, inverter or wallbox", p.Kind)
	}
	if err := p.Serial.check(); err != nil {
		return err
	}
	if err := p.Timing.check(); err != nil {
		return err
	}
	switch {
	case p.SunSpec == nil && len(p.Points) == 0:
		return at("points", "missing")
	case p.SunSpec != nil && len(p.Points) != 0:
		return at("points", "a sunspec profile has its points in its models")
	case p.SunSpec != nil:
		if err := p.SunSpec.check(); err != nil {
			return err
		}
	default:
		if err := checkPoints("points", p.Points, false); err != nil {
			return err
		}
		for _, b := range p.Blocks(0) {
			if b.Count > p.Timing.maxBlock() {
				return at("points", "registers %d..%d belong together but max_block is %d", b.Address, b.Address+b.Count-1, p.Timing.maxBlock())
			}
		}
	}
	if err := p.checkRules(); err != nil {
		return err
	}
	for i, w := range p.Writes {
		if w.Name == "" || w.Min < 0 || w.Max < w.Min {
			return at(fmt.Sprintf("writes[%d]", i), "want a name and 0 <= min <= max")
		}
		if err := w.Scale.check(fmt.Sprintf("writes[%d].scale", i)); err != nil {
			return err
		}
		if w.Alt != nil {
			if err := w.Alt.Scale.check(fmt.Sprintf("writes[%d].alt.scale", i)); err != nil {
				return err
			}
		}
	}
	for code, s := range p.States {
		if len(s) != 1 || s[0] < 'A' || s[0] > 'F' {
			return at("states", "status %d is %q: want a letter A..F of IEC 61851-1", code, s)
		}
	}
	if len(p.Sources) == 0 {
		return at("sources", "missing: say where the facts come from")
	}
	for i, s := range p.Sources {
		if s.Name == "" || len(s.Name) > maxTextBytes {
			return at(fmt.Sprintf("sources[%d].name", i), "want 1..%d bytes", maxTextBytes)
		}
		if s.Confidence != ConfidenceA && s.Confidence != ConfidenceB && s.Confidence != ConfidenceC {
			return at(fmt.Sprintf("sources[%d].confidence", i), "%q: want A, B or C", s.Confidence)
		}
	}
	if p.Confidence() == ConfidenceC && !p.Experimental {
		return at("sources", "nothing better than confidence C: mark the profile experimental")
	}
	return nil
}

func (s *Serial) check() error {
	if s.Baud != 0 || s.Framing != "" {
		if s.Baud < 300 || s.Baud > 1_000_000 {
			return at("serial.baud", "%d: want 300..1000000", s.Baud)
		}
		if !slices.Contains(framings, s.Framing) {
			return at("serial.framing", "%q: want one of %s", s.Framing, strings.Join(framings, ", "))
		}
		if len(s.Bauds) > 0 && !slices.Contains(s.Bauds, s.Baud) {
			return at("serial.bauds", "the default %d is not among them", s.Baud)
		}
	}
	if s.Unit < 1 || s.Unit > 247 {
		return at("serial.unit", "%d: want 1..247", s.Unit)
	}
	return nil
}

func (t *Timing) check() error {
	for _, d := range []struct {
		path string
		ns   int64
	}{{"connect_delay", int64(t.ConnectDelay)}, {"gap", int64(t.Gap)}, {"slave_change_gap", int64(t.SlaveChangeGap)}, {"timeout", int64(t.Timeout)}} {
		if d.ns < 0 || d.ns > int64(maxTiming) {
			return at("timing."+d.path, "want 0..%s", maxTiming)
		}
	}
	if t.MaxBlock > MaxBlock {
		return at("timing.max_block", "%d: Modbus allows %d", t.MaxBlock, MaxBlock)
	}
	if t.Bridge > MaxBlock {
		return at("timing.bridge", "%d: at most %d", t.Bridge, MaxBlock)
	}
	return nil
}

func (t *Timing) maxBlock() uint16 {
	if t.MaxBlock == 0 {
		return MaxBlock
	}
	return t.MaxBlock
}

type key struct {
	q     meter.Quantity
	phase uint8
}

// checkPoints checks and completes the points of one map.
func checkPoints(path string, points []Point, inModel bool) error {
	if len(points) == 0 || len(points) > MaxPoints {
		return at(path, "%d points: want 1..%d", len(points), MaxPoints)
	}
	seen := map[key]bool{}
	type span struct {
		fn   drivers.Function
		addr uint16
	}
	owner := map[span]int{}
	for i := range points {
		pt := &points[i]
		here := fmt.Sprintf("%s[%d]", path, i)
		q, err := meter.ParseQuantity(pt.QuantityName)
		if err != nil {
			return at(here+".quantity", "%w", err)
		}
		pt.Quantity = q
		if pt.Phase > 3 {
			return at(here+".phase", "%d: want 0 for the total or 1..3", pt.Phase)
		}
		if k := (key{q, pt.Phase}); seen[k] {
			return at(here, "%s is mapped twice", meter.PointName(q, pt.Phase))
		} else {
			seen[k] = true
		}
		n := pt.Type.Registers()
		if n == 0 {
			return at(here+".type", "%q: want u16, s16, u32, s32, acc32, u64, s64, f32 or f64", pt.Type)
		}
		if err := pt.Scale.check(here + ".scale"); err != nil {
			return err
		}
		if pt.Words != "" && pt.Words != BigEndian && pt.Words != LittleEndian {
			return at(here+".words", "%q: want be or le", pt.Words)
		}
		if pt.Sign != "" && pt.Sign != SignImport && pt.Sign != SignExport {
			return at(here+".sign", "%q: want import or export", pt.Sign)
		}
		switch {
		case inModel && pt.Function != 0:
			return at(here+".function", "SunSpec is read with function 3")
		case inModel:
			pt.Function = drivers.HoldingRegisters
		case pt.Function != drivers.HoldingRegisters && pt.Function != drivers.InputRegisters:
			return at(here+".function", "%d: want 3 or 4", pt.Function)
		}
		if int(pt.Address)+int(n) > 1<<16 {
			return at(here+".address", "%d: %d registers do not fit below 65536", pt.Address, n)
		}
		if pt.Factor != nil && !inModel {
			return at(here+".factor", "only SunSpec models have scale factors")
		}
		if a := pt.Alt; a != nil && (a.Mask == 0) == (a.Above == 0) {
			return at(here+".alt", "want either address and mask, or above")
		} else if a != nil {
			if err := a.Scale.check(here + ".alt.scale"); err != nil {
				return err
			}
		}
		for r := range n {
			k := span{pt.Function, pt.Address + r}
			if j, taken := owner[k]; taken {
				return at(here, "register %d belongs to %s[%d] as well", k.addr, path, j)
			}
			owner[k] = i
		}
	}
	return nil
}

func (s *SunSpec) check() error {
	if len(s.Bases) == 0 || len(s.Bases) > 8 {
		return at("sunspec.bases", "want 1..8 addresses")
	}
	if len(s.Models) == 0 {
		return at("sunspec.models", "missing")
	}
	ids := map[uint16]bool{}
	total := 0
	for i := range s.Models {
		m := &s.Models[i]
		here := fmt.Sprintf("sunspec.models[%d]", i)
		if len(m.IDs) == 0 {
			return at(here+".ids", "missing")
		}
		for _, id := range m.IDs {
			if id == 0 || id == 1 || id == sunspecEnd || ids[id] {
				return at(here+".ids", "%d is reserved or listed twice", id)
			}
			ids[id] = true
		}
		if err := checkPoints(here+".points", m.Points, true); err != nil {
			return err
		}
		if total += len(m.Points); total > MaxPoints {
			return at(here, "more than %d points", MaxPoints)
		}
		for j := range m.Points {
			pt := &m.Points[j]
			where := fmt.Sprintf("%s.points[%d]", here, j)
			if pt.Address < 2 || int(pt.Address)+int(pt.Type.Registers()) > int(m.Length)+2 {
				return at(where+".address", "%d is outside the model of length %d", pt.Address, m.Length)
			}
			if f := pt.Factor; f != nil && (*f < 2 || *f >= m.Length+2) {
				return at(where+".factor", "%d is outside the model of length %d", *f, m.Length)
			}
		}
		for a, e := range m.Factors {
			if a < 2 || a >= m.Length+2 || e < -maxExponent || e > maxExponent {
				return at(here+".factors", "%d: %d: want an offset in the model and an exponent of at most %d", a, e, maxExponent)
			}
		}
	}
	return nil
}

func (p *Profile) checkRules() error {
	// The marker "SunS" and a model id are already two proofs.
	if least := 2; p.SunSpec == nil && len(p.Detect) < least {
		return at("detect", "%d rules: one plausible value is chance, want at least %d", len(p.Detect), least)
	}
	for i := range p.Detect {
		r := &p.Detect[i]
		here := fmt.Sprintf("detect[%d]", i)
		q, err := meter.ParseQuantity(r.QuantityName)
		if err != nil {
			return at(here+".quantity", "%w", err)
		}
		r.Quantity = q
		if !p.Has(q, r.Phase) {
			return at(here, "%s is not mapped", meter.PointName(q, r.Phase))
		}
		if r.Min > r.Max {
			return at(here, "min %d is above max %d", r.Min, r.Max)
		}
	}
	return nil
}

// maps calls f with every point list of the profile.
func (p *Profile) maps() [][]Point {
	if p.SunSpec == nil {
		return [][]Point{p.Points}
	}
	var out [][]Point
	for i := range p.SunSpec.Models {
		out = append(out, p.SunSpec.Models[i].Points)
	}
	return out
}

// Has reports whether the profile maps quantity q on phase, in any of its
// models.
func (p *Profile) Has(q meter.Quantity, phase uint8) bool {
	return slices.ContainsFunc(p.maps(), func(m []Point) bool {
		return slices.ContainsFunc(m, func(pt Point) bool { return pt.Quantity == q && pt.Phase == phase })
	})
}

// Match reports whether points look like this device: every detection rule
// holds. evidence says per rule what was found, for people.
func (p *Profile) Match(points []meter.Point) (evidence []string, ok bool) {
	ok = true
	for _, r := range p.Detect {
		name := meter.PointName(r.Quantity, r.Phase)
		i := slices.IndexFunc(points, func(pt meter.Point) bool { return pt.Quantity == r.Quantity && pt.Phase == r.Phase })
		if i < 0 {
			ok = false
			evidence = append(evidence, name+" is missing")
			continue
		}
		v := points[i].Value
		in := v >= r.Min && v <= r.Max
		ok = ok && in
		evidence = append(evidence, fmt.Sprintf("%s = %d %s %d..%d", name, v, map[bool]string{true: "within", false: "outside"}[in], r.Min, r.Max))
	}
	return evidence, ok
}
