package sunspec

import (
	"encoding/json"
	"fmt"
)

// official is a model file of the SunSpec Alliance, as far as it matters here.
// Descriptions are skipped.
type official struct {
	ID    int           `json:"id"`
	Group officialGroup `json:"group"`
}

type officialGroup struct {
	Name   string          `json:"name"`
	Count  json.RawMessage `json:"count"` // absent: once; 0: to the end; a number, or the name of a point
	Points []officialPoint `json:"points"`
	Groups []officialGroup `json:"groups"`
}

type officialPoint struct {
	Name    string          `json:"name"`
	Type    string          `json:"type"`
	Size    int             `json:"size"`
	SF      json.RawMessage `json:"sf"` // an exponent, or the name of a point
	Units   string          `json:"units"`
	Symbols []struct {
		Name  string `json:"name"`
		Value int64  `json:"value"`
	} `json:"symbols"`
}

// ParseJSON reads an official model file. name is used in errors only.
func ParseJSON(name string, b []byte) (*Model, error) {
	if len(b) > MaxFileSize {
		return nil, fmt.Errorf("%s: %d bytes, at most %d", name, len(b), MaxFileSize)
	}
	var doc official
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if doc.ID < 1 || doc.ID > 0xFFFE {
		return nil, fmt.Errorf("%s: model id %d: want 1..65534", name, doc.ID)
	}
	m := &Model{ID: uint16(doc.ID)}
	var err error
	if m.Group, err = doc.Group.convert(1); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

func (o *officialGroup) convert(depth int) (Group, error) {
	g := Group{Name: o.Name}
	if depth > MaxDepth {
		return g, fmt.Errorf("groups more than %d deep", MaxDepth)
	}
	if len(o.Count) > 0 {
		if json.Unmarshal(o.Count, &g.CountBy) != nil {
			if err := json.Unmarshal(o.Count, &g.Count); err != nil {
				return g, fmt.Errorf("group %s: count: %w", o.Name, err)
			}
			g.Rest = g.Count == 0
		}
	}
	for i := range o.Points {
		p, err := o.Points[i].convert()
		if err != nil {
			return g, err
		}
		g.Points = append(g.Points, p)
	}
	for i := range o.Groups {
		s, err := o.Groups[i].convert(depth + 1)
		if err != nil {
			return g, err
		}
		g.Groups = append(g.Groups, s)
	}
	return g, nil
}

func (o *officialPoint) convert() (Point, error) {
	p := Point{Name: o.Name, Type: Type(o.Type), Size: o.Size, Unit: o.Units}
	for t, d := range types {
		if d.official == o.Type {
			p.Type = t
		}
	}
	if len(o.SF) > 0 && json.Unmarshal(o.SF, &p.Factor) != nil {
		if err := json.Unmarshal(o.SF, &p.Exp); err != nil {
			return p, fmt.Errorf("point %s: sf: %w", o.Name, err)
		}
	}
	for _, s := range o.Symbols {
		p.Symbols = append(p.Symbols, Symbol{s.Name, s.Value})
	}
	return p, nil
}
