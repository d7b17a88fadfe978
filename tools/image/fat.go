package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// FAT is a FAT32 file system that is written once: every file lies in one
// piece, and the same input gives the same bytes. A library that can also
// change file systems would take its clusters one by one and its times from
// the clock.
//
// Structures and names of fields: Microsoft Extensible Firmware Initiative,
// FAT32 File System Specification, version 1.03.
type FAT struct {
	Size   int64 // bytes, a multiple of a sector
	Serial uint32
	Label  string // at most eleven characters
	Time   time.Time
	Files  map[string][]byte // by path; folders end in "/" and come by themselves otherwise
}

const (
	sector       = 512
	fatReserved  = 32 // sectors before the first table
	fatEnd       = 0x0fffffff
	fatMinimum   = 65525 // clusters below which it would be FAT16
	attrArchive  = 0x20
	attrFolder   = 0x10
	attrLabel    = 0x08
	attrLongName = 0x0f
)

// fatNode is a file or a folder.
type fatNode struct {
	name   string // as a person wrote it
	body   []byte // of a file
	folder bool
	inside []*fatNode // sorted by name
	first  uint32     // cluster
}

func (n *fatNode) child(name string, folder bool) (*fatNode, error) {
	at, ok := slices.BinarySearchFunc(n.inside, name, func(c *fatNode, name string) int { return strings.Compare(c.name, name) })
	if ok {
		if !folder || !n.inside[at].folder {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		return n.inside[at], nil
	}
	c := &fatNode{name: name, folder: folder}
	n.inside = slices.Insert(n.inside, at, c)
	return c, nil
}

// Image returns the file system's bytes.
func (f FAT) Image() ([]byte, error) {
	root := &fatNode{folder: true}
	for name, body := range f.Files {
		at, folder := root, strings.HasSuffix(name, "/")
		parts := strings.Split(strings.Trim(path.Clean(name), "/"), "/")
		for i, part := range parts {
			last := i == len(parts)-1
			next, err := at.child(part, !last || folder)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if at = next; last {
				at.body = body
			}
		}
	}

	// As few sectors a cluster as the table stays small with: a firmware reads
	// the table again and again.
	sectors := f.Size / sector
	per := int64(1)
	for sectors/per > 4*fatMinimum {
		per *= 2
	}
	table := (sectors/per + 2) * 4 / sector // sectors, a little more than needed
	table++
	clusters := (sectors - fatReserved - 2*table) / per
	if clusters < fatMinimum || f.Size%sector != 0 || len(f.Label) > 11 {
		return nil, fmt.Errorf("%s of %d bytes: FAT32 has at least %d clusters", f.Label, f.Size, fatMinimum)
	}
	size := int(per * sector)

	fat := []uint32{0x0ffffff8, fatEnd}
	take := func(n *fatNode, length int) {
		count := (length + size - 1) / size
		if count == 0 {
			return // an empty file has no cluster
		}
		n.first = uint32(len(fat))
		for i := range count {
			next := uint32(len(fat) + 1)
			if i == count-1 {
				next = fatEnd
			}
			fat = append(fat, next)
		}
	}
	// Clusters are given out folder by folder, the root first: it lies in
	// cluster 2.
	var place func(n *fatNode)
	place = func(n *fatNode) {
		for _, c := range n.inside {
			if c.folder {
				take(c, (c.entries()+2)*32)
			} else {
				take(c, len(c.body))
			}
		}
		for _, c := range n.inside {
			if c.folder {
				place(c)
			}
		}
	}
	take(root, (root.entries()+1)*32)
	place(root)
	if int64(len(fat)) > clusters+2 {
		return nil, fmt.Errorf("%s: its files need %d bytes, it has %d", f.Label, len(fat)*size, clusters*int64(size))
	}

	out := make([]byte, f.Size)
	data := int((fatReserved + 2*table) * sector)
	put := func(n *fatNode, b []byte) {
		if n.first != 0 {
			copy(out[data+int(n.first-2)*size:], b)
		}
	}
	var write func(n *fatNode, parent uint32)
	write = func(n *fatNode, parent uint32) {
		if !n.folder {
			put(n, n.body)
			return
		}
		var b bytes.Buffer
		if n == root {
			b.Write(f.entry(fmt.Sprintf("%-11s", f.Label), attrLabel, 0, 0, 0))
		} else {
			b.Write(f.entry(".          ", attrFolder, 0, n.first, 0))
			b.Write(f.entry("..         ", attrFolder, 0, parent, 0))
		}
		for i, c := range n.inside {
			short, flags, long := shortName(c.name, i)
			if long {
				b.Write(longName(c.name, short))
			}
			attr := byte(attrArchive)
			if c.folder {
				attr = attrFolder
			}
			b.Write(f.entry(short, attr, flags, c.first, len(c.body)))
			up := n.first
			if n == root {
				up = 0 // the root has no number in its folders' ".."
			}
			write(c, up)
		}
		put(n, b.Bytes())
	}
	write(root, 0)

	boot := f.bootSector(uint32(sectors), uint32(table), byte(per))
	info := make([]byte, sector) // FSInfo
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	binary.LittleEndian.PutUint32(info[488:], uint32(clusters+2-int64(len(fat))))
	binary.LittleEndian.PutUint32(info[492:], uint32(len(fat)-1))
	info[510], info[511] = 0x55, 0xaa
	for _, at := range []int{0, 6 * sector} { // and a copy of both
		copy(out[at:], boot)
		copy(out[at+sector:], info)
	}
	for i := range 2 {
		at := (fatReserved + i*int(table)) * sector
		for j, v := range fat {
			binary.LittleEndian.PutUint32(out[at+4*j:], v)
		}
	}
	return out, nil
}

func (f FAT) bootSector(sectors, table uint32, per byte) []byte {
	b := make([]byte, sector)
	copy(b, []byte{0xeb, 0x58, 0x90})
	copy(b[3:], "MSWIN4.1") // what the specification recommends for compatibility
	le := binary.LittleEndian
	le.PutUint16(b[11:], sector)
	b[13] = per
	le.PutUint16(b[14:], fatReserved)
	b[16] = 2    // tables
	b[21] = 0xf8 // a fixed disk
	le.PutUint16(b[24:], 63)
	le.PutUint16(b[26:], 255)
	le.PutUint32(b[32:], sectors)
	le.PutUint32(b[36:], table)
	le.PutUint32(b[44:], 2) // cluster of the root
	le.PutUint16(b[48:], 1) // FSInfo
	le.PutUint16(b[50:], 6) // copy of this sector
	b[64], b[66] = 0x80, 0x29
	le.PutUint32(b[67:], f.Serial)
	copy(b[71:], fmt.Sprintf("%-11s", f.Label))
	copy(b[82:], "FAT32   ")
	b[510], b[511] = 0x55, 0xaa
	return b
}

// entries is how many directory entries what is inside needs.
func (n *fatNode) entries() int {
	count := 0
	for i, c := range n.inside {
		count++
		if short, _, long := shortName(c.name, i); long {
			count += len(longName(c.name, short)) / 32
		}
	}
	return count
}

// entry is a directory entry; cluster 0 and size 0 are an empty file.
func (f FAT) entry(short string, attr, flags byte, cluster uint32, size int) []byte {
	b := make([]byte, 32)
	copy(b, short)
	b[11], b[12] = attr, flags
	le, t := binary.LittleEndian, f.Time.UTC()
	day := uint16((t.Year()-1980)<<9 | int(t.Month())<<5 | t.Day())
	clock := uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2)
	le.PutUint16(b[14:], clock)
	le.PutUint16(b[16:], day)
	le.PutUint16(b[18:], day)
	le.PutUint16(b[20:], uint16(cluster>>16))
	le.PutUint16(b[22:], clock)
	le.PutUint16(b[24:], day)
	le.PutUint16(b[26:], uint16(cluster))
	le.PutUint32(b[28:], uint32(size))
	return b
}

// shortName is the 8.3 name of the i-th file of a folder, its flags for lower
// case, and whether it needs a long name beside.
func shortName(name string, i int) (short string, flags byte, long bool) {
	base, ext, _ := strings.Cut(name, ".")
	plain := func(s string, most int) bool {
		return len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
		})
	}
	if base != "" && plain(base, 8) && plain(ext, 3) {
		return fmt.Sprintf("%-8s%-3s", strings.ToUpper(base), strings.ToUpper(ext)), 0x18, false // base and extension in lower case
	}
	// Everybody reads the long name; the short one has to be unique.
	letters := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, base)
	tail := fmt.Sprintf("~%d", i+1)
	letters = letters[:min(len(letters), 8-len(tail))]
	ext = path.Ext(name)
	ext = strings.TrimPrefix(ext[:min(len(ext), 4)], ".")
	return fmt.Sprintf("%-8s%-3s", strings.ToUpper(letters)+tail, strings.ToUpper(ext)), 0, true
}

// longName is the entries that precede a short name, the last part first.
func longName(name, short string) []byte {
	const each = 13 // characters of an entry
	var sum byte
	for _, c := range []byte(short) {
		sum = sum<<7 | sum>>1
		sum += c
	}
	chars := utf16.Encode([]rune(name))
	parts := (len(chars) + each - 1) / each
	if len(chars)%each != 0 {
		chars = append(chars, 0)
	}
	for len(chars) < parts*each {
		chars = append(chars, 0xffff)
	}
	var out []byte
	for p := parts; p > 0; p-- {
		b := make([]byte, 32)
		b[0] = byte(p)
		if p == parts {
			b[0] |= 0x40
		}
		b[11], b[13] = attrLongName, sum
		at := append(append([]int{1, 3, 5, 7, 9}, 14, 16, 18, 20, 22, 24), 28, 30)
		for i, o := range at {
			binary.LittleEndian.PutUint16(b[o:], chars[(p-1)*each+i])
		}
		out = append(out, b...)
	}
	return out
}
