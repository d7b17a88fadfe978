package consensus

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// SyncProtocol names the requests that Engine.Serve answers: one request, one
// reply, at most MaxSyncRequest and MaxSyncReply bytes. Who carries them, and
// between whom, is the caller's affair.
//
//	what have you?   newest block, oldest block, snapshot that can be asked for
//	manifest h       of the snapshot of height h
//	chunk h i        its i-th piece
//	votes h          checkpoint of block h, a step on the way to trust
const (
	SyncProtocol   = "/joulegate/ledger-sync/1"
	MaxSyncRequest = 64
	MaxSyncReply   = maxManifestBytes + 1
)

const (
	askLedger uint8 = 1 + iota
	askManifest
	askChunk
	askVotes
)

type syncRequest struct {
	Kind   uint8 `cbor:"1,keyasint"`
	Height int64 `cbor:"2,keyasint,omitempty"`
	Index  int64 `cbor:"3,keyasint,omitempty"`
}

// peerLedger is what a neighbour says it has. Nothing in it is proven.
type peerLedger struct {
	Height   int64 `cbor:"1,keyasint"`
	Base     int64 `cbor:"2,keyasint"` // oldest block that it can give
	Snapshot int64 `cbor:"3,keyasint"` // height of the snapshot that it can give; 0: none
}

// Neighbour is somebody who can be asked.
type Neighbour struct {
	Name string
	Ask  func(ctx context.Context, req []byte) ([]byte, error)
}

// ErrSnapshot is what Run returns when a verified snapshot of the ledger waits
// on the disk: Open puts it in the place of the stores. It is an ErrReopen.
var ErrSnapshot = fmt.Errorf("a newer state of the ledger has been fetched: %w", ErrReopen)

// Times and limits of catching up.
const (
	// SnapshotBehind is the default of Config.SnapshotBehind: so many blocks
	// are executed within minutes.
	SnapshotBehind = 2_000

	snapshotEvery = 32               // snapshots are of heights that this divides, so that neighbours have the same
	snapshotFor   = 10 * time.Minute // a snapshot is offered for so long before a newer one is made
	lookEvery     = 3 * time.Second  // between looks at the neighbours while catching up
	lookIdle      = time.Minute      // and otherwise
	asideFor      = time.Hour        // a neighbour that gave what is wrong is not asked for
	askFor        = 30 * time.Second // one reply
	maxAsked      = 8                // neighbours looked at; the others are not asked
	maxSteps      = 64               // checkpoints fetched between what is trusted and a snapshot
	chunkTries    = 20               // of a chunk, with all who have it
)

// SyncStatus tells about a snapshot being fetched. It is empty when there is
// nothing to tell.
type SyncStatus struct {
	Phase  string `json:"phase,omitempty"`  // fetch, check, build, ready; or waits: Why says for what
	Height int64  `json:"height,omitempty"` // of the snapshot
	Bytes  int64  `json:"bytes,omitempty"`  // that are here
	Of     int64  `json:"of,omitempty"`
	Why    string `json:"why,omitempty"`
}

func (s SyncStatus) String() string {
	switch s.Phase {
	case "":
		return ""
	case "waits":
		return s.Why
	case "fetch":
		return fmt.Sprintf("fetching the state after block %d, %d of %d bytes: %s", s.Height, s.Bytes, s.Of, s.Why)
	}
	return fmt.Sprintf("%s of the state after block %d: %s", s.Phase, s.Height, s.Why)
}

// syncer fetches a snapshot when blocks alone would not do.
//
//	look ──far behind, or nobody has the next block──► fetch ──► check ──► build ──► ErrSnapshot
//	  ▲                                                  │ manifest against what is trusted, each chunk
//	  └── wrong or lost: nothing has changed ◄───────────┘ against the manifest, the tree against the root
//
// Until the end it writes only into a folder of its own; blocks go on coming
// in meanwhile, and win if they are quicker. The validator's key and its
// memory of what it signed are in another folder, and never touched.
type syncer struct {
	e      *Engine
	log    *slog.Logger
	dir    string
	aside  map[string]time.Time // neighbours not to be fetched from, until then
	status atomic.Pointer[SyncStatus]
}

func newSyncer(e *Engine) *syncer {
	s := &syncer{e: e, log: e.log, dir: incomingDir(e.cfg.Home), aside: map[string]time.Time{}}
	s.status.Store(&SyncStatus{})
	return s
}

func (s *syncer) tell(st SyncStatus) { s.status.Store(&st) }

// run returns nil when ctx ends, ErrSnapshot when one is ready.
func (s *syncer) run(ctx context.Context) error {
	if s.e.cfg.Neighbours == nil {
		<-ctx.Done()
		return nil
	}
	said := ""
	for {
		wait := lookIdle
		if s.e.consR.WaitSync() {
			wait = lookEvery
		}
		if s.e.cfg.lookEvery > 0 {
			wait = s.e.cfg.lookEvery
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		ready, err := s.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case ready:
			if s.e.cfg.Pause != nil {
				s.e.cfg.Pause(ctx)
			}
			return ErrSnapshot
		case err == nil:
			said = ""
			s.tell(SyncStatus{})
		default:
			s.tell(SyncStatus{Phase: "waits", Why: err.Error()})
			if said != err.Error() {
				said = err.Error()
				s.log.Warn("the ledger cannot be caught up from a snapshot yet", "why", err)
			}
		}
	}
}

// offer is a neighbour and what it says it has.
type offer struct {
	who  Neighbour
	have peerLedger
}

// look asks the neighbours and fetches a snapshot if that is the way.
func (s *syncer) look(ctx context.Context) (ready bool, err error) {
	offers := s.offers(ctx)
	own := s.e.app.height()
	target, why := choose(own, s.e.cfg.SnapshotBehind, offers)
	if target == 0 {
		return false, nil
	}
	if room, err := freeBytes(s.e.cfg.Home); err == nil && room < 64<<20 {
		return false, fmt.Errorf("%d MB free at %s: too little for a snapshot", room>>20, s.e.cfg.Home)
	}
	var have []Neighbour
	for _, o := range offers {
		if o.have.Snapshot == target {
			have = append(have, o.who)
		}
	}
	m, have, err := s.manifest(ctx, target, have)
	if err != nil {
		return false, err
	}
	s.log.Info("catching up from a snapshot", "height", target, "own", own, "why", why, "bytes", m.Size, "chunks", len(m.Chunks), "neighbours", len(have))
	if err := s.fetch(ctx, m, have, why); err != nil {
		return false, err
	}
	s.tell(SyncStatus{Phase: "check", Height: target, Bytes: m.Size, Of: m.Size, Why: why})
	if err := s.checkTree(m); err != nil {
		s.putAside(have, err)
		return false, err
	}
	if now := s.e.app.height(); now >= target {
		s.log.Info("blocks were quicker than the snapshot", "height", now, "snapshot", target)
		return false, s.clean()
	}
	s.tell(SyncStatus{Phase: "build", Height: target, Bytes: m.Size, Of: m.Size, Why: why})
	if err := s.build(ctx, m); err != nil {
		return false, err
	}
	s.tell(SyncStatus{Phase: "ready", Height: target, Bytes: m.Size, Of: m.Size, Why: why})
	s.log.Info("snapshot is ready", "height", target, "root", m.Next.StateRoot())
	return true, nil
}

// choose decides whether a snapshot is the way, and of which height. A
// neighbour that lies can waste a manifest's worth of everybody's time.
func choose(own, behind int64, offers []offer) (target int64, why string) {
	top, blocks := int64(0), false
	for _, o := range offers {
		top = max(top, o.have.Height)
		target = max(target, o.have.Snapshot)
		blocks = blocks || o.have.Height > own && o.have.Base <= own+1
	}
	switch {
	case target <= own:
		return 0, ""
	case target-own >= behind:
		return target, fmt.Sprintf("%d blocks behind", top-own)
	case !blocks:
		return target, fmt.Sprintf("no neighbour has block %d any more", own+1)
	}
	return 0, ""
}

// offers asks some neighbours what they have.
func (s *syncer) offers(ctx context.Context) (out []offer) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	asked := 0
	for _, n := range s.e.cfg.Neighbours() {
		if time.Now().Before(s.aside[n.Name]) {
			continue
		}
		if asked++; asked > maxAsked {
			break
		}
		wg.Go(func() {
			var p peerLedger
			b, err := s.ask(ctx, n, syncRequest{Kind: askLedger})
			if err == nil {
				err = chain.Unmarshal(b, &p)
			}
			if err != nil || p.Height < 0 || p.Snapshot < 0 || p.Snapshot > p.Height {
				s.log.Debug("neighbour's ledger", "peer", n.Name, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, offer{n, p})
		})
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b offer) int { return cmp.Compare(a.who.Name, b.who.Name) })
	return out
}

func (s *syncer) ask(ctx context.Context, n Neighbour, r syncRequest) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	b, err := n.Ask(ctx, append([]byte{SnapshotVersion}, chain.Marshal(r)...))
	if err == nil && len(b) > MaxSyncReply {
		err = fmt.Errorf("reply of %d bytes, at most %d", len(b), MaxSyncReply)
	}
	return b, err
}

// manifest returns the manifest that most of the neighbours give, once it is
// proven, and those who have it.
func (s *syncer) manifest(ctx context.Context, height int64, from []Neighbour) (*snapshotManifest, []Neighbour, error) {
	type group struct {
		raw []byte
		who []Neighbour
	}
	var groups []group
	var errs []error
	for _, n := range from {
		raw, err := s.ask(ctx, n, syncRequest{Kind: askManifest, Height: height})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.Name, err))
			continue
		}
		i := slices.IndexFunc(groups, func(g group) bool { return bytes.Equal(g.raw, raw) })
		if i < 0 {
			i = len(groups)
			groups = append(groups, group{raw: raw})
		}
		groups[i].who = append(groups[i].who, n)
	}
	slices.SortStableFunc(groups, func(a, b group) int { return len(b.who) - len(a.who) })
	for _, g := range groups {
		m, err := parseManifest(g.raw)
		if err == nil && m.height() != height {
			err = fmt.Errorf("snapshot of height %d, asked for %d", m.height(), height)
		}
		if err == nil {
			_, err = m.state(s.e.doc)
		}
		if err == nil {
			if err = s.proven(ctx, &m.Next, g.who); err == nil {
				return m, g.who, nil
			}
		}
		if errors.Is(err, chain.ErrExpired) || errors.Is(err, errNoTrust) {
			return nil, nil, err // nobody's fault
		}
		s.putAside(g.who, err)
		errs = append(errs, err)
	}
	return nil, nil, fmt.Errorf("no usable snapshot of height %d: %w", height, errors.Join(errs...))
}

func (s *syncer) putAside(who []Neighbour, why error) {
	for _, n := range who {
		s.aside[n.Name] = time.Now().Add(asideFor)
		s.log.Warn("snapshot refused; this neighbour is not asked for a while", "peer", n.Name, "why", why)
	}
}

// proven checks that a block follows from what this gateway trusts, as a light
// client does, over blocks in between if the validators have changed much.
func (s *syncer) proven(ctx context.Context, c *chain.Checkpoint, from []Neighbour) error {
	t, err := s.e.trusted(ctx, s, from)
	if err != nil {
		return err
	}
	now := time.Now()
	goals := []*chain.Checkpoint{c} // the nearest last
	for steps := 0; len(goals) > 0; steps++ {
		next := goals[len(goals)-1]
		err := t.VerifyAt(next, now)
		if err == nil {
			t, goals = next.Trust(), goals[:len(goals)-1]
			continue
		}
		if errors.Is(err, chain.ErrExpired) {
			return fmt.Errorf("%w: this gateway was away for too long to tell a true ledger from a forged one; "+
				"ask a person at a neighbour for 'joulegate ledger checkpoint' and tell it here with 'joulegate ledger trust HEIGHT HASH'", err)
		}
		between := t.Height + (next.Header.Height-t.Height)/2
		if !errors.Is(err, chain.ErrNotTrusted) || between <= t.Height || steps >= maxSteps {
			return err
		}
		mid, ferr := s.votes(ctx, between, from)
		if ferr != nil {
			return errors.Join(err, ferr)
		}
		goals = append(goals, mid)
	}
	return nil
}

// votes fetches the checkpoint of a block.
func (s *syncer) votes(ctx context.Context, height int64, from []Neighbour) (*chain.Checkpoint, error) {
	err := fmt.Errorf("nobody to ask for block %d", height)
	for _, n := range from {
		var b []byte
		if b, err = s.ask(ctx, n, syncRequest{Kind: askVotes, Height: height}); err != nil {
			continue
		}
		var c *chain.Checkpoint
		if c, err = chain.ParseCheckpoint(b); err == nil && c.Header.Height == height {
			return c, nil
		}
	}
	return nil, fmt.Errorf("votes of block %d: %w", height, err)
}

// fetch brings the tree into a file, each chunk from whoever gives the right
// one first.
func (s *syncer) fetch(ctx context.Context, m *snapshotManifest, from []Neighbour, why string) error {
	if err := s.clean(); err != nil {
		return err
	}
	if room, err := freeBytes(s.e.cfg.Home); err == nil && room < 4*m.Size {
		return fmt.Errorf("a snapshot of %d MB needs four times its size, %s has %d MB free", m.Size>>20, s.e.cfg.Home, room>>20)
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, treeFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	at, done := int64(0), time.Now()
	for i := range m.Chunks {
		s.tell(SyncStatus{Phase: "fetch", Height: m.height(), Bytes: at, Of: m.Size, Why: why})
		b, err := s.chunk(ctx, m, i, &from)
		if err != nil {
			return err
		}
		if _, err := f.Write(b); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		at += int64(len(b))
		if time.Since(done) > 10*time.Second {
			done = time.Now()
			s.log.Info("snapshot", "height", m.height(), "bytes", at, "of", m.Size)
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return writeFile(filepath.Join(s.dir, manifestFile), m.encode())
}

func (s *syncer) chunk(ctx context.Context, m *snapshotManifest, i int, from *[]Neighbour) ([]byte, error) {
	var err error
	for try := 0; try < chunkTries && len(*from) > 0; try++ {
		n := (*from)[(i+try)%len(*from)]
		var b []byte
		if b, err = s.ask(ctx, n, syncRequest{Kind: askChunk, Height: m.height(), Index: int64(i)}); err == nil {
			if int64(len(b)) == m.chunkSize(i) && chain.Sum(b) == m.Chunks[i] {
				return b, nil
			}
			err = fmt.Errorf("chunk %d of %s is not what its manifest says", i, n.Name)
			s.putAside([]Neighbour{n}, err)
			*from = slices.DeleteFunc(slices.Clone(*from), func(o Neighbour) bool { return o.Name == n.Name })
			continue
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Duration(try) * 100 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("chunk %d of the snapshot of height %d: %w", i, m.height(), errors.Join(err))
}

func (s *syncer) checkTree(m *snapshotManifest) error {
	f, err := os.Open(filepath.Join(s.dir, treeFile))
	if err != nil {
		return err
	}
	defer f.Close()
	return m.verifyTree(f)
}

func (s *syncer) clean() error { return os.RemoveAll(s.dir) }

// build makes stores from the fetched snapshot, beside those in use.
func (s *syncer) build(ctx context.Context, m *snapshotManifest) error {
	home := s.e.cfg.Home
	if err := errors.Join(os.RemoveAll(buildDir(home)), os.RemoveAll(readyDir(home))); err != nil {
		return err
	}
	if err := buildStores(ctx, s.e, m, s.dir, buildDir(home)); err != nil {
		return errors.Join(fmt.Errorf("build stores from the snapshot of height %d: %w", m.height(), err), os.RemoveAll(buildDir(home)))
	}
	if err := os.WriteFile(filepath.Join(buildDir(home), snapshotMark), []byte(strconv.FormatInt(m.height(), 10)+"\n"), 0o600); err != nil {
		return err
	}
	if err := errors.Join(syncDir(buildDir(home)), os.Rename(buildDir(home), readyDir(home)), syncDir(home)); err != nil {
		return err
	}
	return s.clean()
}

func buildStores(ctx context.Context, e *Engine, m *snapshotManifest, from, dir string) (err error) {
	s, err := openStoresIn(dir, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	f, err := os.Open(filepath.Join(from, treeFile))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := m.importTree(s.ledger, f); err != nil {
		return err
	}
	// What executes blocks again will begin there.
	if err := milestonesOf(e.cfg.Home).adopt(ctx, m, f.Name()); err != nil {
		return err
	}
	return m.bootstrap(e.doc, s.blocks, s.state)
}

// Folders under Home while a snapshot comes in. The stores are replaced by
// two renames, of which Open finishes the second if a power cut came between:
//
//	data.new ──built──► data.ready ──Open: data ► data.old, data.ready ► data──► data
func incomingDir(home string) string { return filepath.Join(home, "incoming") }
func buildDir(home string) string    { return dataDir(home) + ".new" }
func readyDir(home string) string    { return dataDir(home) + ".ready" }
func oldDir(home string) string      { return dataDir(home) + ".old" }
func outgoingDir(home string) string { return filepath.Join(home, "outgoing") }

// snapshotMark is in a folder of stores that began with a snapshot: its
// height.
const snapshotMark = "snapshot"

// adoptSnapshot puts stores that were built from a snapshot in their place. A
// power cut at any point leaves either the old stores or the new.
func adoptSnapshot(home string, log *slog.Logger) error {
	data, ready, old := dataDir(home), readyDir(home), oldDir(home)
	if err := errors.Join(os.RemoveAll(buildDir(home)), os.RemoveAll(incomingDir(home)), os.RemoveAll(outgoingDir(home))); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(ready, snapshotMark))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.RemoveAll(old)
	case err != nil:
		return err
	}
	height, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return fmt.Errorf("%s: %w", ready, err)
	}
	// A validator never comes to a state before what it has signed.
	pv, err := loadValidator(home)
	if err != nil {
		return err
	}
	if pv.LastSignState.Height > height+1 {
		log.Error("snapshot dropped: this validator has signed a later block", "height", height, "signed", pv.LastSignState.Height)
		return os.RemoveAll(ready)
	}
	if _, err := os.Stat(data); err == nil {
		if err := errors.Join(os.RemoveAll(old), os.Rename(data, old)); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Rename(ready, data), syncDir(home)); err != nil {
		return err
	}
	log.Info("the ledger goes on from a snapshot", "height", height)
	return os.RemoveAll(old)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func freeBytes(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // 32 bits on arm
}

// server answers neighbours. It keeps one snapshot on the disk, made when
// somebody asks for it.
type server struct {
	e      *Engine
	dir    string
	making sync.Mutex // held while one is made

	mu    sync.Mutex
	have  *snapshotManifest
	raw   []byte
	made  time.Time
	limit time.Duration // how long it is offered
}

var errMaking = errors.New("a snapshot is being made, ask again")

// Serve answers one request of SyncProtocol. The text of an error may be sent.
func (e *Engine) Serve(_ context.Context, req []byte) (reply []byte, err error) {
	defer recovered(&err)
	var r syncRequest
	if len(req) == 0 || len(req) > MaxSyncRequest || req[0] != SnapshotVersion {
		return nil, fmt.Errorf("request of %d bytes in another format than %d", len(req), SnapshotVersion)
	}
	if err := chain.Unmarshal(req[1:], &r); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	switch r.Kind {
	case askLedger:
		p := peerLedger{Height: e.app.height(), Base: e.blocks.Base(), Snapshot: e.server.offered()}
		if p.Base == 0 {
			p.Base = p.Height + 1 // none yet
		}
		return chain.Marshal(p), nil
	case askManifest:
		return e.server.manifest(r.Height)
	case askChunk:
		return e.server.chunk(r.Height, r.Index)
	case askVotes:
		c, err := e.Checkpoint(max(r.Height, 1))
		if err != nil {
			return nil, err
		}
		return c.Encode(), nil
	}
	return nil, fmt.Errorf("request of kind %d", r.Kind)
}

// newest is the height of the newest snapshot that could be made. Two blocks
// after it must be there: one signs the state, the other the votes on that.
func (s *server) newest() int64 {
	h := min(s.e.app.height(), s.e.blocks.Height()-2) / snapshotEvery * snapshotEvery
	if h < max(s.e.blocks.Base(), 1) {
		return 0
	}
	return h
}

func (s *server) offered() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have != nil && time.Since(s.made) < s.limit {
		return s.have.height()
	}
	return s.newest()
}

func (s *server) folder(height int64) string {
	return filepath.Join(s.dir, strconv.FormatInt(height, 10))
}

func (s *server) manifest(height int64) ([]byte, error) {
	s.mu.Lock()
	raw, ok := s.raw, s.have != nil && s.have.height() == height
	s.mu.Unlock()
	if ok {
		return raw, nil
	}
	if height < 1 || height != s.offered() {
		return nil, fmt.Errorf("no snapshot of height %d here", height)
	}
	if !s.making.TryLock() {
		return nil, errMaking
	}
	defer s.making.Unlock()
	dir := s.folder(height)
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	start := time.Now()
	m, err := makeSnapshot(s.e.app, s.e.blocks, s.e.states, height, dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s.e.log.Info("snapshot made for a neighbour", "height", height, "bytes", m.Size, "took", time.Since(start).Round(time.Millisecond))
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.have
	s.have, s.raw, s.made = m, m.encode(), time.Now()
	if old != nil && old.height() != height {
		if err := os.RemoveAll(s.folder(old.height())); err != nil {
			s.e.log.Warn("old snapshot not removed", "err", err)
		}
	}
	return s.raw, nil
}

func (s *server) chunk(height, i int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have == nil || s.have.height() != height || i < 0 || i >= int64(len(s.have.Chunks)) {
		return nil, fmt.Errorf("no chunk %d of height %d here", i, height)
	}
	f, err := os.Open(filepath.Join(s.folder(height), treeFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, s.have.chunkSize(int(i)))
	_, err = io.ReadFull(io.NewSectionReader(f, i*ChunkBytes, int64(len(b))), b)
	return b, err
}
