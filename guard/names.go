package guard

import "time"

// Names is what the name server of a running gateway says of itself. It
// counts and names files; what was asked stands nowhere in it.
type Names struct {
	Listen []string   `json:"listen"`
	Only   bool       `json:"only"`  // what is not allowed is blocked
	Rules  int        `json:"rules"` // that block
	Lists  []NameList `json:"lists"`
	NameCounts
	Reload NameReload `json:"reload"`
	Bypass NameBypass `json:"bypass"`
}

// NameList is one list in force.
type NameList struct {
	File    string `json:"file"`
	Allow   bool   `json:"allow"` // every rule of it allows
	Rules   int    `json:"rules"`
	Skipped int    `json:"skipped"` // lines that are not about names
}

// NameCounts counts questions since the sensors' process started.
type NameCounts struct {
	Questions uint64 `json:"questions"`
	Blocked   uint64 `json:"blocked"`
	Cloaked   uint64 `json:"cloaked"` // of the blocked: by a name that they lead to
	Cached    uint64 `json:"cached"`
	Stale     uint64 `json:"stale"` // answered past their time, because nobody else did
	Failed    uint64 `json:"failed"`
	Rebound   uint64 `json:"rebound"` // public names that lead into the local network
	Refused   uint64 `json:"refused"` // of strangers
	Dropped   uint64 `json:"dropped"` // too many at a time, or malformed
	Entries   int    `json:"cache_entries"`
}

// NameReload tells how the last reading of the lists went, or goes.
type NameReload struct {
	Order   uint64    `json:"order"`          // how often it was asked for; 0: the lists of the start
	Running bool      `json:"running"`        //
	File    string    `json:"file,omitempty"` // that is being read
	Read    int       `json:"read,omitempty"` // rules so far
	At      time.Time `json:"at,omitzero"`    // when it ended
	Error   string    `json:"error,omitempty"`
}

// NameBypass counts what this gateway sent past its name server, and what it
// passed on for those who may ask there.
type NameBypass struct {
	State   string `json:"state"`   // off, observe, enforce, or why it cannot be seen
	DNS     uint64 `json:"dns"`     // packets to other name servers, ports 53 and 853
	DoH     uint64 `json:"doh"`     // to public resolvers over HTTPS
	Unasked uint64 `json:"unasked"` // to addresses that were no answer

	LANDNS     uint64 `json:"lan_dns"` // the same of guard.dns.clients
	LANDoH     uint64 `json:"lan_doh"`
	LANUnasked uint64 `json:"lan_unasked"`
}

// Sum is all of them.
func (b NameBypass) Sum() uint64 {
	return b.DNS + b.DoH + b.Unasked + b.LANDNS + b.LANDoH + b.LANUnasked
}
