package profile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

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
	p.hash, p.source = sha256.Sum256(b), b
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

var (
	framings = []string{"8N1", "8E1", "8N2"}
	kinds    = []Kind{Meter, Inverter, Wallbox, Battery}
)

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
	if !slices.Contains(kinds, p.Kind) {
		return at("kind", "%q: want one of %s", p.Kind, kinds)
	}
	if len(p.Note) > maxTextBytes*4 {
		return at("note", "want at most %d bytes", maxTextBytes*4)
	}
	if err := p.checkDefaults(); err != nil {
		return err
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
		if err := p.checkSunSpec(); err != nil {
			return err
		}
	default:
		if err := p.checkPoints("points", p.Points); err != nil {
			return err
		}
		for _, b := range p.Blocks(0) {
			if b.Count > p.Timing.maxBlock() {
				return at("points", "registers %d..%d belong together but max_block is %d", b.Address, b.Address+b.Count-1, p.Timing.maxBlock())
			}
		}
	}
	if err := p.checkIdentity(); err != nil {
		return err
	}
	if err := p.checkSigned(); err != nil {
		return err
	}
	if err := p.checkRules(); err != nil {
		return err
	}
	for i := range p.Writes {
		if err := p.checkWrite(fmt.Sprintf("writes[%d]", i), i); err != nil {
			return err
		}
	}
	if err := p.checkStates(); err != nil {
		return err
	}
	if err := p.checkWatchdog(); err != nil {
		return err
	}
	if err := p.checkOrders(); err != nil {
		return err
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
	if s.Baud == 0 && s.Port == 0 {
		return at("serial", "want baud and framing, or a port, or both")
	}
	if (s.Unit < 1 || s.Unit > 247) && (s.Unit != 255 || s.Port == 0) {
		return at("serial.unit", "%d: want 1..247, or 255 on a device with a port", s.Unit)
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

// checkDefaults checks what points inherit.
func (p *Profile) checkDefaults() error {
	if p.Function != 0 && !readable(p.Function) {
		return at("function", "%d: want 3 or 4", p.Function)
	}
	if !p.Words.valid() {
		return at("words", "%q: want be or le", p.Words)
	}
	if p.Marks != "" && p.Marks != MarkMin && p.Marks != MarkMax {
		return at("marks", "%q: want min or max", p.Marks)
	}
	if p.SunSpec != nil && (p.Function != 0 || p.Words != "" || p.Marks != "" || p.Fallback != 0 || p.Timing.Alone) {
		return at("sunspec", "function, words, marks and order of reading are SunSpec's own")
	}
	if p.Fallback != 0 {
		if !readable(p.Fallback) || p.Function == 0 || p.Fallback == p.Function {
			return at("fallback", "%d: want the one of 3 and 4 that function is not", p.Fallback)
		}
		if i := slices.IndexFunc(p.Points, func(pt Point) bool { return pt.Function != 0 }); i >= 0 {
			return at(fmt.Sprintf("points[%d].function", i), "a profile with a fallback has one function for all points")
		}
	}
	return nil
}

func readable(f drivers.Function) bool {
	return f == drivers.HoldingRegisters || f == drivers.InputRegisters
}

func (w WordOrder) valid() bool { return w == "" || w == BigEndian || w == LittleEndian }

// span is one register, for finding overlaps.
type span struct {
	fn   drivers.Function
	addr uint16
}

// checkPoints checks and completes the points of one map.
func (p *Profile) checkPoints(path string, points []Point) error {
	if len(points) == 0 || len(points) > MaxPoints {
		return at(path, "%d points: want 1..%d", len(points), MaxPoints)
	}
	seen := map[key]bool{}
	owner := map[span]int{}
	for i := range points {
		pt := &points[i]
		here := fmt.Sprintf("%s[%d]", path, i)
		if err := p.checkPoint(here, pt); err != nil {
			return err
		}
		if k := (key{pt.Quantity, pt.Phase}); seen[k] {
			return at(here, "%s is mapped twice", meter.PointName(pt.Quantity, pt.Phase))
		} else {
			seen[k] = true
		}
		if len(pt.Sum) > 0 {
			continue
		}
		for r := range pt.Registers() {
			k := span{pt.Function, pt.Address + r}
			if j, taken := owner[k]; taken && !points[j].sharesWith(pt) {
				return at(here, "register %d belongs to %s[%d] as well", k.addr, path, j)
			}
			owner[k] = i
		}
	}
	return checkSums(path, points, owner)
}

// sharesWith reports whether two points are different bits of one number.
func (pt *Point) sharesWith(o *Point) bool {
	if pt.Mask == 0 || o.Mask == 0 || pt.Address != o.Address || pt.Type != o.Type || pt.Words != o.Words {
		return false
	}
	return uint64(pt.Mask)<<pt.Shift&(uint64(o.Mask)<<o.Shift) == 0
}

// checkSums checks that every term of a sum is a number of its own or the
// whole number of another point.
func checkSums(path string, points []Point, owner map[span]int) error {
	for i := range points {
		pt := &points[i]
		if len(pt.Sum) == 0 {
			continue
		}
		here := fmt.Sprintf("%s[%d].sum", path, i)
		for _, a := range pt.terms() {
			if j, taken := owner[span{pt.Function, a}]; taken {
				if o := &points[j]; o.Address != a || o.Type != pt.Type || o.Words != pt.Words || o.Mask != 0 {
					return at(here, "register %d belongs to %s[%d], which is another number", a, path, j)
				}
				continue
			}
			for r := range pt.Registers() {
				k := span{pt.Function, a + r}
				if j, taken := owner[k]; taken {
					return at(here, "register %d belongs to %s[%d] as well", k.addr, path, j)
				}
				owner[k] = i
			}
		}
	}
	return nil
}

// checkPoint checks one point and fills in what it inherits.
func (p *Profile) checkPoint(here string, pt *Point) error {
	inModel := p.SunSpec != nil
	q, err := meter.ParseQuantity(pt.QuantityName)
	if err != nil {
		return at(here+".quantity", "%w", err)
	}
	pt.Quantity = q
	if pt.Phase > 3 {
		return at(here+".phase", "%d: want 0 for the total or 1..3", pt.Phase)
	}
	if pt.Type == Text {
		if pt.Length < 1 || pt.Length > maxText {
			return at(here+".length", "%d: want 1..%d registers of text", pt.Length, maxText)
		}
		if q != meter.Status || inModel || pt.Scale != (Scale{}) || pt.Alt != nil || pt.Absent != nil || pt.Sign != "" || len(pt.Ratios) > 0 {
			return at(here+".type", "only a status can be text, without scale, sign and conditions")
		}
	} else if pt.Length != 0 {
		return at(here+".length", "only a text has a length")
	}
	n := pt.Registers()
	if n == 0 {
		return at(here+".type", "%q: want u16, s16, u32, s32, acc32, u64, s64, f32, f64 or text", pt.Type)
	}
	if err := pt.Scale.check(here + ".scale"); err != nil {
		return err
	}
	if !pt.Words.valid() {
		return at(here+".words", "%q: want be or le", pt.Words)
	}
	if pt.Words == "" {
		pt.Words = p.Words
	}
	if pt.Sign != "" && pt.Sign != SignImport && pt.Sign != SignExport {
		return at(here+".sign", "%q: want import or export", pt.Sign)
	}
	switch {
	case inModel && pt.Function != 0:
		return at(here+".function", "SunSpec is read with function 3")
	case inModel:
		pt.Function = drivers.HoldingRegisters
	case pt.Function == 0:
		pt.Function = p.Function
	}
	if !readable(pt.Function) {
		return at(here+".function", "%d: want 3 or 4", pt.Function)
	}
	if err := p.checkTerms(here, pt, inModel); err != nil {
		return err
	}
	for _, a := range pt.terms() {
		if int(a)+int(n) > 1<<16 {
			return at(here+".address", "%d: %d registers do not fit below 65536", a, n)
		}
	}
	if pt.Mask != 0 || pt.Shift != 0 {
		if pt.Type != U16 && pt.Type != U32 || uint(pt.Shift) >= pt.Type.bits() || uint64(pt.Mask)<<pt.Shift >= 1<<pt.Type.bits() || pt.Mask&(pt.Mask+1) != 0 {
			return at(here+".mask", "want adjacent bits of a u16 or u32: shift %d, mask %#x", pt.Shift, pt.Mask)
		}
		if pt.Mask == 0 {
			return at(here+".shift", "needs a mask")
		}
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
		if a.Since != nil && a.Mask == 0 {
			return at(here+".alt.since", "needs a mask")
		}
		if a.Sign != "" && (a.Mask == 0 || a.Sign != SignImport && a.Sign != SignExport) {
			return at(here+".alt.sign", "%q: want import or export, and a mask", a.Sign)
		}
	}
	if len(pt.Ratios) > maxTerms {
		return at(here+".ratios", "%d: want at most %d", len(pt.Ratios), maxTerms)
	}
	for i, r := range pt.Ratios {
		where := fmt.Sprintf("%s.ratios[%d]", here, i)
		if inModel {
			return at(where, "not in a SunSpec model")
		}
		if err := r.Scale.check(where + ".scale"); err != nil {
			return err
		}
		if one := r.one(); one == 0 {
			return at(where+".scale", "%s: no register of 16 bits says a ratio of 1", r.Scale)
		}
	}
	return nil
}

// checkTerms checks sums.
func (p *Profile) checkTerms(here string, pt *Point, inModel bool) error {
	if len(pt.Sum) == 0 {
		if len(pt.Less) > 0 {
			return at(here+".less", "needs a sum to be taken from")
		}
		return nil
	}
	if inModel || pt.Address != 0 || pt.Mask != 0 || pt.Absent != nil || pt.Alt != nil {
		return at(here+".sum", "goes without address, mask, absent and alt, and not into a SunSpec model")
	}
	if t := pt.Type; t != U16 && t != S16 && t != U32 && t != S32 {
		return at(here+".type", "%q: a sum is of integers of 16 or 32 bits", t)
	}
	if len(pt.Sum) > maxTerms || len(pt.Less) > maxTerms {
		return at(here+".sum", "want at most %d registers", maxTerms)
	}
	used := map[uint16]bool{}
	for _, a := range pt.terms() {
		if used[a] {
			return at(here+".sum", "register %d is listed twice", a)
		}
		used[a] = true
	}
	pt.Address = pt.Sum[0]
	return nil
}

// terms returns the addresses of the numbers that make the point.
func (pt *Point) terms() []uint16 {
	if len(pt.Sum) == 0 {
		return []uint16{pt.Address}
	}
	return slices.Concat(pt.Sum, pt.Less)
}

// Registers returns how many registers one number of the point takes.
func (pt *Point) Registers() uint16 {
	if pt.Type == Text {
		return pt.Length
	}
	return pt.Type.Registers()
}

// one returns the register that says a ratio of 1, as nearly as it can; 0 if
// it is out of range.
func (r Ratio) one() uint16 {
	v, err := U16.raw(1, r.Scale, 0)
	if err != nil {
		return 0
	}
	return uint16(v)
}

// Modbus functions that write (application protocol 1.1b3, 6).
const (
	writeCoil     = 5
	writeSingle   = 6
	writeMultiple = 16

	coilOn = 0xFF00
)

// Limits of commands and states.
const (
	maxWrites     = 32
	maxValues     = 32
	maxStates     = 64
	maxWriteEvery = 10 * time.Minute
)

func (p *Profile) checkWrite(here string, i int) error {
	w := &p.Writes[i]
	if len(p.Writes) > maxWrites {
		return at("writes", "%d: want at most %d", len(p.Writes), maxWrites)
	}
	if _, ok := writeUnits[w.Name]; !ok {
		return at(here+".name", "%q: want one of %s", w.Name, slices.Sorted(maps.Keys(writeUnits)))
	}
	if slices.ContainsFunc(p.Writes[:i], func(o Write) bool { return o.Name == w.Name }) {
		return at(here+".name", "%s is there twice", w.Name)
	}
	if w.Type == "" {
		w.Type = U16
	}
	n := w.Type.Registers()
	if n == 0 || w.Type == Acc32 {
		return at(here+".type", "%q: want u16, s16, u32, s32, u64, s64, f32 or f64", w.Type)
	}
	if int(w.Address)+int(n) > 1<<16 {
		return at(here+".address", "%d: %d registers do not fit below 65536", w.Address, n)
	}
	if w.Function == 0 {
		if w.Function = writeSingle; n > 1 {
			w.Function = writeMultiple
		}
	}
	switch {
	case w.Function == writeCoil && w.Type == U16 && w.Values != nil && maps.Equal(w.Values, map[int64]uint32{0: 0, 1: coilOn}):
	case w.Function == writeSingle && n == 1, w.Function == writeMultiple:
	default:
		return at(here+".function", "%d: want 5 with values {0: 0, 1: 0xFF00}, 6 for one register, or 16", w.Function)
	}
	if !w.Words.valid() {
		return at(here+".words", "%q: want be or le", w.Words)
	}
	if w.Words == "" {
		w.Words = p.Words
	}
	if err := w.Scale.check(here + ".scale"); err != nil {
		return err
	}
	if w.Every < 0 || w.Every > maxWriteEvery {
		return at(here+".every", "want 0..10m")
	}
	if a := w.Alt; a != nil {
		if a.Mask == 0 || a.Above != 0 || a.Sign != "" {
			return at(here+".alt", "want address and mask")
		}
		if err := a.Scale.check(here + ".alt.scale"); err != nil {
			return err
		}
	}
	if w.Sign != "" && (w.Sign != SignImport && w.Sign != SignExport || !w.Type.signed()) {
		return at(here+".sign", "%q: want import or export, of a type that has a sign", w.Sign)
	}
	if err := w.checkRead(here + ".read"); err != nil {
		return err
	}
	if err := w.checkRange(here); err != nil {
		return err
	}
	if w.Setup != nil && !w.Takes(*w.Setup) {
		return at(here+".setup", "%d is not a value of the command", *w.Setup)
	}
	return nil
}

// checkRange checks which values there are.
func (w *Write) checkRange(here string) error {
	if w.Values != nil {
		return checkValues(here, w.Values, w.Type, w.Min != 0 || w.Max != 0 || w.Zero != nil || w.Alt != nil || w.Scale != (Scale{}) || w.Sign != "" || w.Nonzero)
	}
	if w.Max <= 0 || w.Max < w.Min {
		return at(here, "want min <= max, or values")
	}
	if w.Min < 0 && !w.Type.signed() && !w.Type.float() {
		return at(here+".min", "%d: the type has no sign", w.Min)
	}
	if w.Zero != nil && (uint64(*w.Zero) > w.Type.most() || w.Nonzero) {
		return at(here+".zero", "%d does not fit into %s, or the command takes no 0", *w.Zero, w.Type)
	}
	for _, v := range []int64{w.Min, w.Max} {
		if _, err := w.Type.raw(v, w.Scale, 0); err != nil {
			return at(here, "%d does not fit into %s with scale %s", v, w.Type, w.Scale)
		}
	}
	return nil
}

func (w *Write) checkRead(here string) error {
	r := w.Read
	if r == nil {
		return nil
	}
	if r.Function == 0 {
		r.Function = drivers.HoldingRegisters
	}
	if r.Type == "" {
		r.Type = w.Type
	}
	n := r.Type.Registers()
	if n == 0 || r.Type == Acc32 || !readable(r.Function) || w.Function == writeCoil || w.Alt != nil {
		return at(here, "want function 3 or 4 and a number, of a command whose scale is fixed and which is no coil")
	}
	if int(r.Address)+int(n) > 1<<16 {
		return at(here+".address", "%d: %d registers do not fit below 65536", r.Address, n)
	}
	if r.Values != nil {
		if err := checkValues(here, r.Values, r.Type, w.Values == nil || r.Scale != (Scale{})); err != nil {
			return err
		}
	}
	return r.Scale.check(here + ".scale")
}

// checkValues checks a list of values; ranged says that there is a range too.
func checkValues(here string, values map[int64]uint32, t Type, ranged bool) error {
	if len(values) == 0 || len(values) > maxValues {
		return at(here+".values", "want 1..%d", maxValues)
	}
	if ranged || t.float() {
		return at(here+".values", "go without min, max, zero, nonzero, scale, sign, alt and floats")
	}
	raws := map[uint32]bool{}
	for v, raw := range values {
		if uint64(raw) > t.most() || raws[raw] {
			return at(here+".values", "%d: %d is used twice or does not fit into %s", v, raw, t)
		}
		raws[raw] = true
	}
	return nil
}

// checkStates turns the codes of states into numbers.
func (p *Profile) checkStates() error {
	if len(p.StateNames) == 0 && len(p.Derated) == 0 {
		return nil
	}
	i := slices.IndexFunc(p.Points, func(pt Point) bool { return pt.Quantity == meter.Status && pt.Phase == 0 })
	if i < 0 || len(p.StateNames) > maxStates {
		return at("states", "want at most %d, and a status", maxStates)
	}
	if len(p.Derated) > maxStates {
		return at("derated", "want at most %d", maxStates)
	}
	p.States = make(map[int64]string, len(p.StateNames))
	for name, s := range p.StateNames {
		if len(s) != 1 || s[0] < 'A' || s[0] > 'F' {
			return at("states", "status %s is %q: want a letter A..F of IEC 61851-1", name, s)
		}
		code, ok := Code(name)
		if p.Points[i].Type != Text {
			v, err := strconv.ParseInt(name, 0, 64)
			code, ok = v, err == nil && v >= 0
		}
		if _, twice := p.States[code]; !ok || twice {
			return at("states", "status %q is no code of the status point, or is there twice", name)
		}
		p.States[code] = s
	}
	for i, code := range p.Derated {
		if _, ok := p.States[code]; !ok {
			return at(fmt.Sprintf("derated[%d]", i), "%d is none of the states", code)
		}
	}
	return nil
}

// StatusText returns the text that a status code stands for, on a device whose
// status is text.
func (p *Profile) StatusText(code int64) (string, bool) {
	if !slices.ContainsFunc(p.Points, func(pt Point) bool { return pt.Quantity == meter.Status && pt.Type == Text }) {
		return "", false
	}
	s, err := textOf(code)
	return s, err == nil
}

// StateCode returns the smallest status code that means the IEC 61851-1
// letter.
func (p *Profile) StateCode(letter string) (int64, bool) {
	for _, code := range slices.Sorted(maps.Keys(p.States)) {
		if p.States[code] == letter {
			return code, true
		}
	}
	return 0, false
}

func (p *Profile) checkSunSpec() error {
	s := p.SunSpec
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
		if err := p.checkPoints(here+".points", m.Points); err != nil {
			return err
		}
		if total += len(m.Points); total > MaxPoints {
			return at(here, "more than %d points", MaxPoints)
		}
		for j := range m.Points {
			pt := &m.Points[j]
			where := fmt.Sprintf("%s.points[%d]", here, j)
			if pt.Address < 2 || int(pt.Address)+int(pt.Registers()) > int(m.Length)+2 {
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
