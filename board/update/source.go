package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Source is where manifest and artifacts lie. Nothing that it says is
// believed: only signatures and hashes are.
type Source interface {
	// Open returns a file by its plain name; it may hold more than limit
	// bytes only if its length cannot be told before.
	Open(ctx context.Context, name string, limit int64) (io.ReadCloser, error)
}

// NewSource reads update.source: an https address or an absolute folder.
func NewSource(where string) (Source, error) {
	if filepath.IsAbs(where) {
		return folder(where), nil
	}
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("%q is neither an absolute folder nor an https address", where)
	}
	return Web{Base: strings.TrimRight(where, "/"), Client: &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: headerWait, ResponseHeaderTimeout: headerWait, DisableKeepAlives: true,
	}}}, nil
}

const (
	headerWait   = 30 * time.Second
	maxRedirects = 5
)

// folder is a Source on a stick, or anywhere on this machine.
type folder string

func (d folder) Open(_ context.Context, name string, limit int64) (io.ReadCloser, error) {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// Looked at before it is opened: opening a pipe would wait.
	fi, err := root.Stat(name)
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() > limit) {
		err = fmt.Errorf("%s: %d bytes, at most %d of an ordinary file", name, fi.Size(), limit)
	}
	if err != nil {
		return nil, err
	}
	return root.Open(name)
}

// Web is a Source behind https. Redirects may lead elsewhere, but not away
// from https: releases often lie on another host.
type Web struct {
	Base   string
	Client *http.Client
}

// Open implements Source.
func (w Web) Open(ctx context.Context, name string, limit int64) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.Base+"/"+url.PathEscape(name), nil)
	if err != nil {
		return nil, err
	}
	c := *w.Client
	c.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if r.URL.Scheme != "https" || len(via) > maxRedirects {
			return errors.New("redirected too often, or away from https")
		}
		return nil
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK || res.ContentLength > limit {
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s: %s", req.URL, res.Status)
		}
		return nil, fmt.Errorf("%s: %d bytes, at most %d", req.URL, res.ContentLength, limit)
	}
	return res.Body, nil
}

// exactly passes size bytes on and then wants the end, and says how far it is.
type exactly struct {
	r    io.Reader
	left int64
	told func(left int64)
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		var one [1]byte
		switch n, err := io.ReadFull(e.r, one[:]); {
		case n > 0:
			return 0, errors.New("it is longer than the manifest says")
		case errors.Is(err, io.EOF):
			return 0, io.EOF
		default:
			return 0, err
		}
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if e.told != nil {
		e.told(e.left)
	}
	if errors.Is(err, io.EOF) {
		if err = nil; e.left > 0 {
			err = fmt.Errorf("it ends %d bytes before the manifest says", e.left)
		}
	}
	return n, err
}
