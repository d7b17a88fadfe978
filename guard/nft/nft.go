package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Prefix begins the name of every table of this program.
const Prefix = "joulegate"

// Limits.
const (
	MaxSets     = 32     // of a table
	MaxChains   = 8      //
	MaxRules    = 64     // of a chain
	MaxElements = 65_536 // of a set without a size of its own; then Add returns ErrFull

	batch      = 512     // elements of one message, which the kernel takes up to 64 kB of
	sendBuffer = 8 << 20 // bytes of one transaction: 3 messages of each of MaxElements
)

// Errors that a caller acts upon.
var (
	ErrFull      = errors.New("the set is full")
	ErrForbidden = errors.New("the packet filter may not be changed: grant CAP_NET_ADMIN")
)

// Type is what a set holds.
type Type uint8

// Types of sets.
const (
	IPv4 Type = 1 + iota
	IPv6
)

// Set is a set of addresses.
type Set struct {
	Name    string
	Type    Type
	Nets    bool          // prefixes and not only addresses; they must not overlap
	Timeout time.Duration // how long an element stays unless it says otherwise; 0: until it is removed
	Expires bool          // elements may have a timeout of their own; implied by Timeout
	Size    int           // most elements; 0: MaxElements
	// Elements that it has from the first moment on, before any packet is
	// looked at.
	Elements []Element
}

// Hook is where a chain looks at packets.
type Hook uint8

// Hooks.
const (
	Input   Hook = 1 + iota // received by this machine
	Forward                 // passed on by it
	Output                  // sent by it
)

// Verdict is what becomes of a packet. Accepted packets are seen by the
// chains of other tables still.
type Verdict uint8

// Verdicts. The zero value accepts.
const (
	Accept Verdict = iota
	Drop
	Reject // tell the sender; not as a chain's default
)

// Chain is a list of rules; the first that matches decides.
type Chain struct {
	Name     string
	Hook     Hook
	Priority int32   // 0 is the usual filter; lower ones look first
	Default  Verdict // of what no rule matches
	Rules    []Rule
}

// Rule decides about packets that meet all its conditions. It counts them.
type Rule struct {
	Match   []Match
	Verdict Verdict
	Comment string // shown by `nft list ruleset`, and the key of Counts; <= 64 bytes
}

// Layout is a table's sets and chains.
type Layout struct {
	Table  string // begins with Prefix
	Sets   []Set
	Chains []Chain
}

// Element is an entry of a set.
type Element struct {
	Prefix  netip.Prefix
	Timeout time.Duration // of a set with Expires: 0 means the set's own. From List: what is left
}

// Host is the prefix of one address.
func Host(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen())
}

// Count is what a rule has matched since the table was opened.
type Count struct {
	Packets, Bytes uint64
}

// Table is an open table. Methods are safe for concurrent use.
type Table struct {
	mu     sync.Mutex
	conn   *nftables.Conn
	table  *nftables.Table
	sets   map[string]*set
	chains []*nftables.Chain
}

type set struct {
	Set
	nft *nftables.Set
}

// Probe says why tables cannot be opened here; nil: they can.
func Probe() error {
	t, err := Open(Layout{Table: Prefix + "_probe"})
	if err != nil {
		return err
	}
	return t.Close()
}

// Open makes the table and what is in it, in place of what was there under
// its name.
func Open(l Layout) (*Table, error) {
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("table %q: %w", l.Table, err)
	}
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(sendBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", l.Table, explain(err))
	}
	t := &Table{conn: conn, table: &nftables.Table{Name: l.Table, Family: nftables.TableFamilyINet}, sets: map[string]*set{}}
	conn.AddTable(t.table) // so that there is one to delete
	conn.DelTable(t.table)
	conn.AddTable(t.table)
	for i, s := range l.Sets {
		if err := t.addSet(s, uint32(i+1)); err != nil {
			return nil, fmt.Errorf("table %s: set %s: %w", l.Table, s.Name, err)
		}
	}
	for _, c := range l.Chains {
		if err := t.addChain(c); err != nil {
			return nil, fmt.Errorf("table %s: chain %s: %w", l.Table, c.Name, err)
		}
	}
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("table %s: %w", l.Table, explain(err))
	}
	return t, nil
}

// check refuses what the kernel would refuse without saying why.
func (l Layout) check() error {
	switch {
	case !strings.HasPrefix(l.Table, Prefix) || !isName(l.Table):
		return fmt.Errorf("its name must begin with %q and be of letters, digits and _", Prefix)
	case len(l.Sets) > MaxSets:
		return fmt.Errorf("%d sets, at most %d", len(l.Sets), MaxSets)
	case len(l.Chains) > MaxChains:
		return fmt.Errorf("%d chains, at most %d", len(l.Chains), MaxChains)
	}
	names := map[string]bool{}
	for _, s := range l.Sets {
		if !isName(s.Name) || names[s.Name] || s.Type != IPv4 && s.Type != IPv6 || s.Size < 0 || s.Size > MaxElements {
			return fmt.Errorf("set %+v is named twice, or is none", s)
		}
		names[s.Name] = true
	}
	for _, c := range l.Chains {
		if !isName(c.Name) || names[c.Name] || c.Hook < Input || c.Hook > Output || c.Default > Drop || len(c.Rules) > MaxRules {
			return fmt.Errorf("chain %q is named twice, or is none", c.Name)
		}
		names[c.Name] = true
	}
	return nil
}

func isName(s string) bool {
	return s != "" && len(s) <= 31 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

func (t *Table) addSet(s Set, id uint32) error {
	s.Expires = s.Expires || s.Timeout > 0
	if s.Size == 0 {
		s.Size = MaxElements
	}
	n := &nftables.Set{Table: t.table, ID: id, Name: s.Name, KeyType: nftables.TypeIPAddr, KeyByteOrder: binaryutil.BigEndian, Interval: s.Nets, HasTimeout: s.Expires, Timeout: s.Timeout, Size: uint32(s.Size)}
	if s.Type == IPv6 {
		n.KeyType = nftables.TypeIP6Addr
	}
	if s.Nets { // a prefix has a beginning and an end
		n.Size = min(2*n.Size, math.MaxUint16*2)
	}
	all := s.Elements
	s.Elements = nil
	t.sets[s.Name] = &set{s, n}
	batches, err := t.sets[s.Name].encodeAll(all)
	if err != nil {
		return err
	}
	if err := t.conn.AddSet(n, nil); err != nil {
		return err
	}
	for _, raw := range batches {
		if err := t.conn.SetAddElements(n, raw); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) addChain(c Chain) error {
	hook := map[Hook]*nftables.ChainHook{Input: nftables.ChainHookInput, Forward: nftables.ChainHookForward, Output: nftables.ChainHookOutput}[c.Hook]
	policy := nftables.ChainPolicyAccept
	if c.Default == Drop {
		policy = nftables.ChainPolicyDrop
	}
	n := t.conn.AddChain(&nftables.Chain{Name: c.Name, Table: t.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority)), Policy: &policy})
	t.chains = append(t.chains, n)
	for _, r := range c.Rules {
		var out []expr.Any
		for _, m := range r.Match {
			e, err := m(t)
			if err != nil {
				return fmt.Errorf("rule %q: %w", r.Comment, err)
			}
			out = append(out, e...)
		}
		out = append(out, &expr.Counter{})
		switch r.Verdict {
		case Accept:
			out = append(out, &expr.Verdict{Kind: expr.VerdictAccept})
		case Drop:
			out = append(out, &expr.Verdict{Kind: expr.VerdictDrop})
		case Reject:
			out = append(out, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
		default:
			return fmt.Errorf("rule %q: no verdict %d", r.Comment, r.Verdict)
		}
		rule := &nftables.Rule{Table: t.table, Chain: n, Exprs: out}
		if len(r.Comment) > 64 {
			return fmt.Errorf("comment %q is longer than 64 bytes", r.Comment)
		}
		if r.Comment != "" {
			rule.UserData = userdata.AppendString(nil, userdata.TypeComment, r.Comment)
		}
		t.conn.AddRule(rule)
	}
	return nil
}

// Match is one condition of a rule.
type Match func(t *Table) ([]expr.Any, error)

// From matches packets whose source is in the set.
func From(set string) Match { return inSet(set, 12, 8, false) }

// NotFrom matches packets of the set's version whose source is not in it.
func NotFrom(set string) Match { return inSet(set, 12, 8, true) }

// To matches packets whose destination is in the set.
func To(set string) Match { return inSet(set, 16, 24, false) }

// inSet looks an address up that stands at an offset of either version's
// header (RFC 791, RFC 8200).
func inSet(name string, at4, at6 uint32, not bool) Match {
	return func(t *Table) ([]expr.Any, error) {
		s := t.sets[name]
		if s == nil {
			return nil, fmt.Errorf("no set %q", name)
		}
		version, at, size := byte(unix.NFPROTO_IPV4), at4, uint32(4)
		if s.Type == IPv6 {
			version, at, size = unix.NFPROTO_IPV6, at6, 16
		}
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{version}),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size},
			&expr.Lookup{SourceRegister: 1, SetName: name, SetID: s.nft.ID, Invert: not},
		}, nil
	}
}

// UDP and TCP match the protocol.
func UDP() Match { return protocol(unix.IPPROTO_UDP) }

// TCP matches the protocol.
func TCP() Match { return protocol(unix.IPPROTO_TCP) }

func protocol(p byte) Match {
	return plain(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{p}))
}

// FromPort matches the source's port; put UDP or TCP before it.
func FromPort(p uint16) Match { return port(0, p) }

// ToPort matches the destination's port; put UDP or TCP before it.
func ToPort(p uint16) Match { return port(2, p) }

func port(at uint32, p uint16) Match {
	return plain(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: at, Len: 2}, equal(binary.BigEndian.AppendUint16(nil, p)))
}

// In matches packets received on an interface, which need not exist yet.
func In(name string) Match { return iface(expr.MetaKeyIIFNAME, name) }

// Out matches packets sent on an interface.
func Out(name string) Match { return iface(expr.MetaKeyOIFNAME, name) }

func iface(key expr.MetaKey, name string) Match {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b[:unix.IFNAMSIZ-1], name)
	return plain(&expr.Meta{Key: key, Register: 1}, equal(b))
}

// Known matches packets of connections that were let through before, and
// errors about them.
func Known() Match {
	return plain(
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	)
}

// Mark matches packets of sockets with SO_MARK.
func Mark(v uint32) Match {
	return plain(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, equal(binaryutil.NativeEndian.PutUint32(v)))
}

func plain(e ...expr.Any) Match {
	return func(*Table) ([]expr.Any, error) { return e, nil }
}

func equal(b []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }

// Add puts elements into a set. All are added, or none and an error: ErrFull
// when there is no room. One that is there already may keep the timeout it
// has (before Linux 6.13 it does): see Renew. One element takes a fraction of a
// millisecond.
func (t *Table) Add(name string, all ...Element) error {
	return t.change(name, all, func(s *set, e []nftables.SetElement) error { return t.conn.SetAddElements(s.nft, e) })
}

// Renew is Add, and gives those that are there the timeout of now. It takes
// milliseconds, whatever the number, because the kernel waits until nobody
// looks at the old ones.
func (t *Table) Renew(name string, all ...Element) error {
	return t.change(name, all, func(s *set, e []nftables.SetElement) error {
		return errors.Join(t.conn.SetAddElements(s.nft, e), t.conn.SetDeleteElements(s.nft, e), t.conn.SetAddElements(s.nft, e))
	})
}

// Remove takes elements out of a set. What is not there is no error.
func (t *Table) Remove(name string, all ...Element) error {
	return t.change(name, all, func(s *set, e []nftables.SetElement) error {
		return errors.Join(t.conn.SetAddElements(s.nft, e), t.conn.SetDeleteElements(s.nft, e))
	})
}

// change sends what f makes of the elements, in one transaction.
func (t *Table) change(name string, all []Element, f func(*set, []nftables.SetElement) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sets[name]
	if s == nil {
		return fmt.Errorf("table %s: no set %q", t.table.Name, name)
	}
	batches, err := s.encodeAll(all) // all of them before the first is queued
	if err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	for _, raw := range batches {
		if err := f(s, raw); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("set %s: %w", name, explain(err))
	}
	return nil
}

// encodeAll makes messages of elements.
func (s *set) encodeAll(all []Element) (batches [][]nftables.SetElement, err error) {
	if len(all) > MaxElements {
		return nil, fmt.Errorf("%d elements at once, at most %d", len(all), MaxElements)
	}
	for part := range slices.Chunk(all, batch) {
		raw := make([]nftables.SetElement, 0, 2*len(part))
		for _, e := range part {
			k, err := s.encode(e)
			if err != nil {
				return nil, err
			}
			raw = append(raw, k...)
		}
		batches = append(batches, raw)
	}
	return batches, nil
}

// encode makes one element of an address and two of a prefix: its first
// address, and the first one behind it.
func (s *set) encode(e Element) ([]nftables.SetElement, error) {
	p := e.Prefix
	switch {
	case !p.IsValid() || p.Addr().Is4In6() || p.Addr().Is4() != (s.Type == IPv4):
		return nil, fmt.Errorf("%s is not of its type", p)
	case !s.Nets && !p.IsSingleIP():
		return nil, fmt.Errorf("%s is more than one address", p)
	case e.Timeout < 0 || e.Timeout > 0 && !s.Expires:
		return nil, fmt.Errorf("%s: a timeout of %s", p, e.Timeout)
	}
	timeout := e.Timeout
	if timeout > 0 {
		timeout = max(timeout, time.Millisecond) // 0 would be the set's own
	}
	first := nftables.SetElement{Key: p.Masked().Addr().AsSlice(), Timeout: timeout}
	if !s.Nets {
		return []nftables.SetElement{first}, nil
	}
	end := behind(p)
	if !slices.ContainsFunc(end, func(b byte) bool { return b != 0 }) {
		return []nftables.SetElement{first}, nil // up to the last address there is
	}
	return []nftables.SetElement{first, {Key: end, IntervalEnd: true}}, nil
}

// behind is the first address that is not in p; zeroes when p holds the last.
func behind(p netip.Prefix) []byte {
	b := p.Masked().Addr().AsSlice()
	bit := p.Bits()
	for i := bit - 1; i >= 0; i-- {
		b[i/8] ^= 0x80 >> (i % 8)
		if b[i/8]&(0x80>>(i%8)) != 0 {
			break
		}
	}
	return b
}

// List returns what is in a set that holds addresses, and how long each stays.
func (t *Table) List(name string) ([]Element, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sets[name]
	if s == nil || s.Nets {
		return nil, fmt.Errorf("table %s: no set %q of addresses", t.table.Name, name)
	}
	raw, err := t.conn.GetSetElements(s.nft)
	if err != nil {
		return nil, fmt.Errorf("set %s: %w", name, explain(err))
	}
	out := make([]Element, 0, len(raw))
	for _, e := range raw {
		if a, ok := netip.AddrFromSlice(e.Key); ok {
			out = append(out, Element{Host(a), e.Expires})
		}
	}
	return out, nil
}

// Flush empties a set.
func (t *Table) Flush(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sets[name]
	if s == nil {
		return fmt.Errorf("table %s: no set %q", t.table.Name, name)
	}
	t.conn.FlushSet(s.nft)
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("set %s: %w", name, explain(err))
	}
	return nil
}

// Counts returns what the rules have matched, by their comments; rules with
// the same one are counted together.
func (t *Table) Counts() (map[string]Count, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]Count{}
	for _, c := range t.chains {
		rules, err := t.conn.GetRules(t.table, c)
		if err != nil {
			return nil, fmt.Errorf("chain %s: %w", c.Name, explain(err))
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			for _, e := range r.Exprs {
				if n, ok := e.(*expr.Counter); ok {
					sum := out[comment]
					sum.Packets += n.Packets
					sum.Bytes += n.Bytes
					out[comment] = sum
				}
			}
		}
	}
	return out, nil
}

// Close removes the table and everything in it.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return remove(t.conn, t.table)
}

func remove(conn *nftables.Conn, table *nftables.Table) error {
	conn.AddTable(table) // it may be gone already
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("table %s: %w", table.Name, explain(err))
	}
	return nil
}

// RemoveAll removes every table of this program, also of one that was killed.
func RemoveAll() error {
	conn, err := nftables.New()
	if err != nil {
		return explain(err)
	}
	all, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list the tables of the packet filter: %w", explain(err))
	}
	for _, t := range all {
		if strings.HasPrefix(t.Name, Prefix) {
			err = errors.Join(err, remove(conn, t))
		}
	}
	return err
}

// explain says what to do about the kernel's answers that have a remedy.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (%w)", ErrForbidden, err)
	case errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w (%w)", ErrFull, err)
	case errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EAFNOSUPPORT):
		return fmt.Errorf("this kernel has no nf_tables: %w", err)
	}
	return err
}
