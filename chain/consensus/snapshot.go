package consensus

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtversion "github.com/cometbft/cometbft/proto/tendermint/version"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	cmt "github.com/cometbft/cometbft/types"
	"github.com/cometbft/cometbft/version"
	"github.com/cosmos/iavl"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// A snapshot is the ledger's state after one block, and the proof that the
// validators agreed on it: what a gateway needs to go on from there without
// the blocks before.
//
//	manifest                                         tree
//	 At    checkpoint of block H, whose state it is   the nodes of the state's
//	 Next  checkpoint of block H+1: its header        tree, children before
//	       names the root of the state after H        parents, without the keys
//	 Turns whose turn it is to propose                of inner nodes
//	 Chunks SHA-256 of each piece of the tree ──────► chunk 0 │ chunk 1 │ ...
//
// Whoever trusts checkpoint Next (see [chain.Trust]) needs to trust nobody
// for the tree: its root is computed from what has arrived, before anything is
// built from it. All gateways write a state of one height in the same bytes,
// so that the chunks can come from several neighbours.
//
// Everything that the ledger's rules remember (nonces, positions of journals,
// open slots, certificates) is in that tree. Beside it CometBFT keeps the sets
// of validators, which are in the checkpoints.
//
// A manifest is encoded as its format version, one byte, and CBOR.
type snapshotManifest struct {
	At     chain.Checkpoint `cbor:"1,keyasint"`
	Next   chain.Checkpoint `cbor:"2,keyasint"`
	Turns  []turn           `cbor:"3,keyasint"` // of blocks H, H+1 and H+2
	Nodes  int64            `cbor:"4,keyasint"` // of the tree
	Size   int64            `cbor:"5,keyasint"` // bytes of the tree
	Chunks []chain.Hash     `cbor:"6,keyasint"` // of ChunkBytes each, the last of what remains
}

// turn is CometBFT's memory of whose turn it is to propose. No header carries
// it, but each header names who did propose.
type turn struct {
	Priorities []int64 `cbor:"1,keyasint"` // of the validators in their order
	Proposer   uint16  `cbor:"2,keyasint"`
}

// Limits of snapshots. Larger ones are neither made nor taken.
const (
	SnapshotVersion   = 1
	ChunkBytes        = 256 << 10 // of a chunk: some seconds on a slow line
	MaxSnapshotBytes  = 1 << 30   // of a tree
	maxManifestBytes  = 512 << 10
	maxSnapshotKey    = 4 << 10
	maxSnapshotValue  = 16 << 20
	maxSnapshotHeight = 60 // of the tree; it is balanced
)

func (m *snapshotManifest) height() int64 { return m.At.Header.Height }

// parseManifest decodes and checks a manifest against itself. It does not tell
// whether the validators that it names deserve trust.
func parseManifest(b []byte) (*snapshotManifest, error) {
	if len(b) > maxManifestBytes {
		return nil, fmt.Errorf("snapshot: manifest of %d bytes, at most %d", len(b), maxManifestBytes)
	}
	if len(b) == 0 || b[0] != SnapshotVersion {
		return nil, fmt.Errorf("snapshot of format %d, this program knows %d: update joulegate", b[:min(len(b), 1)], SnapshotVersion)
	}
	m := &snapshotManifest{}
	if err := chain.Unmarshal(b[1:], m); err != nil {
		return nil, fmt.Errorf("snapshot: manifest: %w", err)
	}
	return m, m.check()
}

func (m *snapshotManifest) encode() []byte {
	return append([]byte{SnapshotVersion}, chain.Marshal(m)...)
}

func (m *snapshotManifest) check() error {
	if err := errors.Join(m.At.Check(), m.Next.Check()); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	at, next := &m.At.Header, &m.Next.Header
	switch {
	case next.Chain != at.Chain || next.Height != at.Height+1 || next.Last.Hash != at.Hash() || next.Validators != at.Next:
		return fmt.Errorf("snapshot: block %d of %q does not follow block %d of %q", next.Height, next.Chain, at.Height, at.Chain)
	case next.Last.Parts != m.At.Commit.Parts || next.Last.Root != m.At.Commit.Root:
		return fmt.Errorf("snapshot: the votes on block %d are for other parts than block %d names", at.Height, next.Height)
	case m.Size < 1 || m.Size > MaxSnapshotBytes:
		return fmt.Errorf("snapshot: tree of %d bytes, 1..%d", m.Size, int64(MaxSnapshotBytes))
	case int64(len(m.Chunks)) != (m.Size+ChunkBytes-1)/ChunkBytes:
		return fmt.Errorf("snapshot: %d chunks for %d bytes", len(m.Chunks), m.Size)
	case m.Nodes < 1 || m.Nodes > m.Size/2:
		return fmt.Errorf("snapshot: %d nodes in %d bytes", m.Nodes, m.Size)
	case len(m.Turns) != 3:
		return fmt.Errorf("snapshot: turns of %d blocks, want 3", len(m.Turns))
	}
	_, err := m.sets()
	return err
}

// chunkSize returns the bytes of chunk i.
func (m *snapshotManifest) chunkSize(i int) int64 { return min(ChunkBytes, m.Size-int64(i)*ChunkBytes) }

// sets returns the validators of blocks H, H+1 and H+2 with their turns, which
// must explain who proposed the blocks that are signed.
func (m *snapshotManifest) sets() (sets [3]*cmt.ValidatorSet, err error) {
	for i, s := range []chain.Validators{m.At.Set, m.Next.Set, m.Next.NextSet()} {
		if sets[i], err = m.Turns[i].set(s); err != nil {
			return sets, fmt.Errorf("snapshot: turns of block %d: %w", m.height()+int64(i), err)
		}
	}
	for i, c := range []*chain.Checkpoint{&m.At, &m.Next} {
		p := sets[i].GetProposer().Address
		if r := c.Commit.Round; r > 0 { // turns go by height; further rounds are counted from there
			if r > maxRounds {
				continue
			}
			p = sets[i].CopyIncrementProposerPriority(int32(r)).GetProposer().Address
		}
		if chain.Address(p) != c.Header.Proposer {
			return sets, fmt.Errorf("snapshot: block %d was not proposed by whose turn it was", c.Header.Height)
		}
		if sameSet(sets[i], sets[i+1]) && turnOf(sets[i].CopyIncrementProposerPriority(1)).differs(m.Turns[i+1]) {
			return sets, fmt.Errorf("snapshot: the turns of block %d do not follow from those of block %d", c.Header.Height+1, c.Header.Height)
		}
	}
	return sets, nil
}

// maxRounds bounds the work on turns: CometBFT counts rounds one by one.
const maxRounds = 10_000

func sameSet(a, b *cmt.ValidatorSet) bool { return bytes.Equal(a.Hash(), b.Hash()) }

func turnOf(s *cmt.ValidatorSet) (t turn) {
	p := s.GetProposer()
	for i, v := range s.Validators {
		t.Priorities = append(t.Priorities, v.ProposerPriority)
		if bytes.Equal(v.Address, p.Address) {
			t.Proposer = uint16(i)
		}
	}
	return t
}

func (t turn) differs(o turn) bool {
	if t.Proposer != o.Proposer || len(t.Priorities) != len(o.Priorities) {
		return true
	}
	for i, p := range t.Priorities {
		if p != o.Priorities[i] {
			return true
		}
	}
	return false
}

// set returns CometBFT's form of s, which has been checked.
func (t turn) set(s chain.Validators) (*cmt.ValidatorSet, error) {
	if len(t.Priorities) != len(s) || int(t.Proposer) >= len(s) {
		return nil, fmt.Errorf("%d priorities and proposer %d of %d validators", len(t.Priorities), t.Proposer, len(s))
	}
	bound := cmt.PriorityWindowSizeFactor * s.Power()
	set := &cmt.ValidatorSet{}
	for i, v := range s {
		if p := t.Priorities[i]; p < -bound || p > bound {
			return nil, fmt.Errorf("priority %d, within %d", p, bound)
		}
		val := cmt.NewValidator(ed25519.PubKey(v.Key[:]), v.Power)
		val.ProposerPriority = t.Priorities[i]
		set.Validators = append(set.Validators, val)
	}
	set.Proposer = set.Validators[t.Proposer].Copy()
	p, err := set.ToProto() // and back: it fills what cannot be reached from here
	if err != nil {
		return nil, err
	}
	return cmt.ValidatorSetFromProto(p)
}

// state returns what CometBFT starts from after the snapshot's block.
func (m *snapshotManifest) state(doc *cmt.GenesisDoc) (s sm.State, err error) {
	next := &m.Next.Header
	if next.Chain != doc.ChainID {
		return s, fmt.Errorf("snapshot of chain %q, this is %q", next.Chain, doc.ChainID)
	}
	if h := doc.ConsensusParams.Hash(); !bytes.Equal(h, next.Params[:]) {
		return s, fmt.Errorf("snapshot: consensus parameters %s, the genesis says %x", next.Params, h)
	}
	sets, err := m.sets()
	if err != nil {
		return s, err
	}
	s = sm.State{
		ChainID: doc.ChainID, InitialHeight: doc.InitialHeight,
		LastBlockHeight: m.height(), LastBlockID: blockID(next.Last), LastBlockTime: m.At.Time(),
		LastValidators: sets[0], Validators: sets[1], NextValidators: sets[2], LastHeightValidatorsChanged: m.height() + 2,
		ConsensusParams: *doc.ConsensusParams, LastHeightConsensusParamsChanged: m.height() + 1,
		LastResultsHash: bytes.Clone(next.Results[:]), AppHash: bytes.Clone(next.AppHash[:]),
	}
	s.Version.Consensus = cmtversion.Consensus{Block: next.Protocol, App: next.App}
	s.Version.Software = version.TMCoreSemVer
	return s, nil
}

func blockID(r chain.BlockRef) cmt.BlockID {
	return cmt.BlockID{Hash: bytes.Clone(r.Hash[:]), PartSetHeader: cmt.PartSetHeader{Total: r.Parts, Hash: bytes.Clone(r.Root[:])}}
}

// commit returns CometBFT's form of the votes on the snapshot's block.
func (m *snapshotManifest) commit() *cmt.Commit {
	c := &cmt.Commit{Height: m.height(), Round: int32(m.At.Commit.Round), BlockID: blockID(m.Next.Header.Last)}
	for range m.At.Set {
		c.Signatures = append(c.Signatures, cmt.NewCommitSigAbsent())
	}
	for _, v := range m.At.Commit.Votes {
		a := m.At.Set[v.Index].Address()
		c.Signatures[v.Index] = cmt.CommitSig{BlockIDFlag: cmt.BlockIDFlagCommit, ValidatorAddress: a[:], Timestamp: time.Unix(0, v.Time).UTC(), Signature: v.Sig}
	}
	return c
}

// writeTree writes the nodes of a tree.
func writeTree(w io.Writer, t *iavl.ImmutableTree) (nodes int64, err error) {
	defer recovered(&err)
	x, err := t.Export()
	if err != nil {
		return 0, fmt.Errorf("snapshot: %w", err)
	}
	defer x.Close()
	var b []byte
	for {
		n, err := x.Next()
		if errors.Is(err, iavl.ErrorExportDone) {
			return nodes, nil
		}
		if err != nil {
			return nodes, fmt.Errorf("snapshot: %w", err)
		}
		nodes++
		b = append(b[:0], byte(n.Height))
		b = binary.AppendUvarint(b, uint64(n.Version))
		if n.Height == 0 {
			b = append(binary.AppendUvarint(b, uint64(len(n.Key))), n.Key...)
			b = append(binary.AppendUvarint(b, uint64(len(n.Value))), n.Value...)
		}
		if _, err := w.Write(b); err != nil {
			return nodes, fmt.Errorf("snapshot: %w", err)
		}
	}
}

// treeReader reads nodes and computes the tree's root, as iavl does. Its
// memory is that of one entry and one branch.
//
// The keys of inner nodes, which no hash covers, are not read but found: each
// is the first key of the right half below.
type treeReader struct {
	r     *bufio.Reader
	most  int64 // version that no node exceeds
	nodes int64
	last  []byte
	stack []subtree
}

type subtree struct {
	height int8
	size   int64
	hash   chain.Hash
	first  []byte // key
}

func newTreeReader(r io.Reader, height int64) *treeReader {
	return &treeReader{r: bufio.NewReaderSize(r, 64<<10), most: height}
}

// next returns the next node, or io.EOF after the last.
func (t *treeReader) next() (*iavl.ExportNode, error) {
	n, err := t.node()
	switch {
	case err == nil:
		t.nodes++
	case errors.Is(err, io.EOF) && t.nodes > 0:
	default:
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		err = fmt.Errorf("snapshot: node %d: %w", t.nodes, err)
	}
	return n, err
}

func (t *treeReader) node() (*iavl.ExportNode, error) {
	height, err := t.r.ReadByte()
	if err != nil {
		return nil, err
	}
	v, err := binary.ReadUvarint(t.r)
	if err != nil {
		return nil, unexpected(err)
	}
	if height > maxSnapshotHeight || v < 1 || v > uint64(t.most) {
		return nil, fmt.Errorf("height %d, version %d of %d", height, v, t.most)
	}
	n := &iavl.ExportNode{Height: int8(height), Version: int64(v)}
	if height > 0 {
		return n, t.inner(n)
	}
	if n.Key, err = t.bytes(maxSnapshotKey); err != nil {
		return nil, err
	}
	if n.Value, err = t.bytes(maxSnapshotValue); err != nil {
		return nil, err
	}
	if t.last != nil && bytes.Compare(n.Key, t.last) <= 0 {
		return nil, fmt.Errorf("key %x after %x", n.Key, t.last)
	}
	if len(t.stack) > 2*maxSnapshotHeight {
		return nil, errors.New("a tree without a trunk")
	}
	t.last = n.Key
	value := sha256.Sum256(n.Value)
	b := nodeHead(0, 1, n.Version)
	b = append(binary.AppendUvarint(b, uint64(len(n.Key))), n.Key...)
	b = append(append(b, sha256.Size), value[:]...)
	t.stack = append(t.stack, subtree{0, 1, chain.Sum(b), n.Key})
	return n, nil
}

func (t *treeReader) inner(n *iavl.ExportNode) error {
	top := len(t.stack) - 2
	if top < 0 {
		return errors.New("a node without children")
	}
	l, r := t.stack[top], t.stack[top+1]
	if n.Height != max(l.height, r.height)+1 || l.height-r.height > 1 || r.height-l.height > 1 {
		return fmt.Errorf("height %d above %d and %d", n.Height, l.height, r.height)
	}
	n.Key = r.first
	b := nodeHead(n.Height, l.size+r.size, n.Version)
	b = append(append(b, sha256.Size), l.hash[:]...)
	b = append(append(b, sha256.Size), r.hash[:]...)
	t.stack = append(t.stack[:top], subtree{n.Height, l.size + r.size, chain.Sum(b), l.first})
	return nil
}

func nodeHead(height int8, size, version int64) []byte {
	b := binary.AppendVarint(make([]byte, 0, 128), int64(height))
	return binary.AppendVarint(binary.AppendVarint(b, size), version)
}

// bytes reads a length and that many bytes. Memory grows with what arrives.
func (t *treeReader) bytes(most uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(t.r)
	if err != nil {
		return nil, unexpected(err)
	}
	if n > most {
		return nil, fmt.Errorf("%d bytes, at most %d", n, most)
	}
	b := bytes.NewBuffer(make([]byte, 0, min(n, 4096)))
	if _, err := io.CopyN(b, t.r, int64(n)); err != nil {
		return nil, unexpected(err)
	}
	return b.Bytes(), nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// root returns the root when all has been read.
func (t *treeReader) root() (chain.Hash, error) {
	if len(t.stack) != 1 {
		return chain.Hash{}, fmt.Errorf("snapshot: %d trees, want one", len(t.stack))
	}
	return t.stack[0].hash, nil
}

// verifyTree reads a whole tree and compares it with its manifest.
func (m *snapshotManifest) verifyTree(r io.Reader) error {
	t := newTreeReader(r, m.height())
	for {
		_, err := t.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	root, err := t.root()
	if err != nil {
		return err
	}
	if t.nodes != m.Nodes || root != m.Next.StateRoot() {
		return fmt.Errorf("snapshot: %d nodes with root %s; the validators signed %s for the state after block %d", t.nodes, root, m.Next.StateRoot(), m.height())
	}
	return nil
}

// importTree builds the state of a verified tree in an empty database.
func (m *snapshotManifest) importTree(db *treeDB, r io.Reader) (err error) {
	defer recovered(&err)
	tree := newTree(db)
	x, err := tree.Import(m.height())
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer x.Close()
	t := newTreeReader(r, m.height())
	for {
		n, err := t.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := x.Add(n); err != nil {
			return fmt.Errorf("snapshot: node %d: %w", t.nodes, err)
		}
	}
	if err := x.Commit(); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if got := chain.Hash(tree.Hash()); got != m.Next.StateRoot() {
		return fmt.Errorf("snapshot: the built state has root %s, the validators signed %s", got, m.Next.StateRoot())
	}
	return db.check()
}

// bootstrap fills empty stores of CometBFT.
func (m *snapshotManifest) bootstrap(doc *cmt.GenesisDoc, blocks, state dbm.DB) (err error) {
	defer recovered(&err)
	s, err := m.state(doc)
	if err != nil {
		return err
	}
	if err := store.NewBlockStore(blocks).SaveSeenCommit(m.height(), m.commit()); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return sm.NewStore(state, sm.StoreOptions{DiscardABCIResponses: true}).Bootstrap(s)
}

// A snapshot on disk is a folder of two files.
const (
	manifestFile = "manifest"
	treeFile     = "tree"
)

// readSnapshot reads the manifest of a snapshot's folder.
func readSnapshot(dir string) (*snapshotManifest, error) {
	b, err := readSome(filepath.Join(dir, manifestFile), maxManifestBytes)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return m, nil
}

func readSome(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return b, err
}

// makeSnapshot writes the state after block height into dir, which is new.
func makeSnapshot(a *app, blocks *store.BlockStore, states sm.Store, height int64, dir string) (m *snapshotManifest, err error) {
	defer recovered(&err)
	err = a.view(func(committed, ledger.State) error {
		t, err := a.version(height)
		if err != nil {
			return err
		}
		m, err = snapshotOf(t, blocks, states, height, dir)
		return err
	})
	return m, err
}

// signedState returns the manifest of the state after a block, without a tree.
func signedState(blocks *store.BlockStore, states sm.Store, height int64) (*snapshotManifest, error) {
	m := &snapshotManifest{}
	for i, c := range []*chain.Checkpoint{&m.At, &m.Next} {
		p, err := checkpointAt(blocks, states, height+int64(i))
		if err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
		*c = *p
	}
	for h := height; h <= height+2; h++ {
		s, err := states.LoadValidators(h)
		if err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
		m.Turns = append(m.Turns, turnOf(s))
	}
	return m, nil
}

// fill writes the tree and notes what it is.
func (m *snapshotManifest) fill(w io.Writer, t *iavl.ImmutableTree) (err error) {
	c := &chunker{out: bufio.NewWriterSize(w, 64<<10)}
	if m.Nodes, err = writeTree(c, t); err != nil {
		return err
	}
	if want := 2*t.Size() - 1; m.Nodes != want { // the library ends early where it cannot read
		return fmt.Errorf("snapshot: %d of %d nodes could be read", m.Nodes, want)
	}
	if err := c.end(); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	m.Size, m.Chunks = c.size, c.sums
	return m.check()
}

func snapshotOf(t *iavl.ImmutableTree, blocks *store.BlockStore, states sm.Store, height int64, dir string) (*snapshotManifest, error) {
	m, err := signedState(blocks, states, height)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, treeFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	defer f.Close()
	if err := m.fill(f, t); err != nil {
		return nil, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return m, writeFile(filepath.Join(dir, manifestFile), m.encode())
}

// chunker hashes what it writes, piece by piece.
type chunker struct {
	out  *bufio.Writer
	size int64
	sums []chain.Hash
	part bytes.Buffer
}

func (c *chunker) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k := min(len(b), ChunkBytes-c.part.Len())
		c.part.Write(b[:k])
		b, n = b[k:], n+k
		if c.part.Len() == ChunkBytes {
			if err := c.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (c *chunker) flush() error {
	if c.size += int64(c.part.Len()); c.size > MaxSnapshotBytes {
		return fmt.Errorf("state of more than %d bytes", int64(MaxSnapshotBytes))
	}
	c.sums = append(c.sums, chain.Sum(c.part.Bytes()))
	_, err := c.out.Write(c.part.Bytes())
	c.part.Reset()
	return err
}

func (c *chunker) end() error {
	if c.part.Len() > 0 {
		if err := c.flush(); err != nil {
			return err
		}
	}
	return c.out.Flush()
}
