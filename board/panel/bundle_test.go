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
	broken, missing := chain.ID{8}, chain.ID{9}
	asked := make(chan BundleQuery, 1)
	tcp, control, _, _ := serve(t, &fake{bundle: func(q BundleQuery, w io.Writer) error {
		if q.Session == missing {
			return NotFound("no such session")
		}
		for _, p := range []string{"one ", "two"} {
			if _, err := io.WriteString(w, p); err != nil {
				return err
			}
		}
		if q.Session == broken {
			return errors.New("the disk failed")
		}
		asked <- q
		return nil
	}})
	var out bytes.Buffer
	q := BundleQuery{Session: chain.ID{7}, From: time.UnixMilli(1000).UTC(), To: time.UnixMilli(2000).UTC()}
	if err := control.Bundle(t.Context(), q, &out); err != nil || out.String() != "one two" {
		t.Fatalf("%q, %v", out.String(), err)
	}
	if got := <-asked; got != q {
		t.Errorf("%+v, asked for was %+v", got, q)
	}
	if err := control.Bundle(t.Context(), BundleQuery{Session: broken}, io.Discard); err == nil {
		t.Error("half a bundle was taken for a whole one")
	}
	if err := control.Bundle(t.Context(), BundleQuery{Session: missing}, io.Discard); err == nil || !strings.Contains(err.Error(), "no such session") {
		t.Errorf("before the first byte: %v", err)
	}
	if err := tcp.Stores(t.Context(), io.Discard); err == nil {
		t.Error("the stores came over TCP")
	}
	if err := tcp.Bundle(t.Context(), BundleQuery{}, io.Discard); err == nil {
		t.Error("served over the network")
	}
}
