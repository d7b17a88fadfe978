package station

import (
	"context"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/meter/session"
)

// contactWait is how long after a test a contact that has welded is waited
// for.
const contactWait = session.WeldAfter + 500*time.Millisecond

// relayTest is a person's test of a charger's relay.
type relayTest struct {
	reply    func(error)
	result   *board.RelayTest
	refused  string
	began    time.Duration
	ended    time.Duration
	over     bool
	followed bool // the auxiliary contact closed
}

// TestRelay closes the relay of an idle charger for d, at most
// session.MaxTest, and returns what was seen once it is open again. Nobody
// is asked whether he may: that is for the caller, who has made sure that a
// person stands before the charger. It refuses a charger with a session, a
// vehicle, a fault or anything else that would keep it from charging.
func (s *Station) TestRelay(ctx context.Context, connector uint8, d time.Duration) (board.RelayTest, error) {
	v := &board.RelayTest{}
	if err := s.command(ctx, func(reply func(error)) {
		c, err := s.connector(connector)
		switch {
		case err != nil:
		case c.Relay == nil:
			err = refuse(NoRelay, "charger %d has no relay: its wallbox switches by itself", connector)
		case c.opening || c.test != nil:
			err = refuse(Busy, "charger %d is busy", connector)
		default:
			c.test = &relayTest{reply: reply, result: v, began: s.now}
			if s.step(c, session.Test{For: d}); c.st.Phase != session.Testing {
				err = refuse(NotNow, "charger %d: %s", connector, c.test.refused)
				c.test = nil
			}
		}
		if err != nil {
			reply(err)
		}
	}); err != nil {
		return board.RelayTest{}, err
	}
	return *v, nil
}

// watchTest looks at a test after every turn of the loop.
func (s *Station) watchTest(c *charger, feedback session.Contact) {
	t := c.test
	if t == nil {
		return
	}
	if c.st.Phase == session.Testing {
		t.followed = t.followed || feedback == session.ContactClosed
		return
	}
	if !t.over {
		t.over, t.ended = true, s.now
		t.result.ClosedFor, t.result.Ended = (s.now - t.began).Round(time.Millisecond), c.st.Cause
	}
	if s.now-t.ended < contactWait && c.st.Fault == session.NoFault && !s.draining {
		return
	}
	t.result.Current, t.result.Fault = c.st.Current, c.st.Fault.String()
	switch {
	case c.Feedback == nil:
		t.result.Contact = board.ContactNotFitted
	case t.followed && feedback == session.ContactOpen:
		t.result.Contact = board.ContactFollowed
	default:
		t.result.Contact = board.ContactStayed
	}
	t.result.OK = t.result.Fault == "" && t.result.Contact != board.ContactStayed && t.result.Ended == session.TestOver
	c.test = nil
	t.reply(nil)
}
