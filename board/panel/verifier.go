package panel

import (
	"bytes"
	"errors"
	"fmt"
	"html"
	"net/http"
	"os"
	"strings"
)

// The page on which anybody checks a bundle is a file of its own beside the
// program (tools/verifypage makes it), so that it can also be handed on and
// opened without a gateway. Its policy names its script by hash, lets it run
// WebAssembly, and allows no connection, not even back to the gateway.

// maxVerifier bounds the page in bytes; a larger file is not served.
const maxVerifier = 32 << 20

const policyTag = `<meta http-equiv="Content-Security-Policy" content="`

// VerifierPolicy returns the security policy that a verifier page states for
// itself.
func VerifierPolicy(page []byte) (string, error) {
	head := page[:min(len(page), 4<<10)]
	_, rest, ok := bytes.Cut(head, []byte(policyTag))
	policy, _, end := strings.Cut(string(rest), `"`)
	policy = html.UnescapeString(policy)
	if !ok || !end || !strings.HasPrefix(policy, "default-src 'none'; script-src 'sha256-") || strings.ContainsAny(policy, "\r\n*") {
		return "", errors.New("it is no page of the verifier: it states no policy")
	}
	return policy, nil
}

func (s *Server) verifier(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Verifier == "" {
		http.Error(w, "The page that checks bundles is not installed on this gateway. Use: joulegate audit verify, or the command joulegate-verify.", http.StatusNotFound)
		return
	}
	f, err := os.Open(s.cfg.Verifier)
	if err != nil {
		s.fail(w, r, false, err)
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() > maxVerifier) {
		err = fmt.Errorf("%s: %d bytes, at most %d", s.cfg.Verifier, fi.Size(), int(maxVerifier))
	}
	var policy string
	if err == nil {
		head := make([]byte, 4<<10)
		n, _ := f.ReadAt(head, 0) // a short page has no policy
		policy, err = VerifierPolicy(head[:n])
	}
	if err != nil {
		s.fail(w, r, false, fmt.Errorf("verifier page: %w", err))
		return
	}
	w.Header().Set("Content-Security-Policy", policy+"; frame-ancestors 'none'")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, "", fi.ModTime(), f)
}
