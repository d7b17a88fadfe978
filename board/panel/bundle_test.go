package panel

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// TestBundleIsWholeOrNotThere: a bundle that cannot be finished must not look
// like one that is, and neighbours cannot ask for any.
func TestBundleIsWholeOrNotThere(t *testing.T) {
	var got BundleQuery
	parts, failure := []string{"one ", "two"}, error(nil)
	tcp, control, _, _ := serve(t, &fake{bundle: func(q BundleQuery, w io.Writer) error {
		got = q
		for _, p := range parts {
			if _, err := io.WriteString(w, p); err != nil {
				return err
			}
		}
		return failure
	}})
	var out bytes.Buffer
	q := BundleQuery{Session: chain.ID{7}, From: time.UnixMilli(1000).UTC(), To: time.UnixMilli(2000).UTC()}
	if err := control.Bundle(t.Context(), q, &out); err != nil || out.String() != "one two" || got != q {
		t.Errorf("%q for %+v, %v", out.String(), got, err)
	}
	failure = errors.New("the disk failed")
	if err := control.Bundle(t.Context(), BundleQuery{}, io.Discard); err == nil {
		t.Error("half a bundle was taken for a whole one")
	}
	parts, failure = nil, NotFound("no such session")
	if err := control.Bundle(t.Context(), BundleQuery{}, io.Discard); err == nil || !strings.Contains(err.Error(), "no such session") {
		t.Errorf("before the first byte: %v", err)
	}
	if err := tcp.Stores(t.Context(), io.Discard); err == nil {
		t.Error("the stores came over TCP")
	}
	if err := tcp.Bundle(t.Context(), BundleQuery{}, io.Discard); err == nil {
		t.Error("served over the network")
	}
}
