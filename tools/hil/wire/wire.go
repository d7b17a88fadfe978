// Package wire is what host and guest of tools/hil say to each other: JSON,
// one document a line, over a port that only they have.
package wire

// Requests of the host.
const (
	Run     = "run"     // Args with Env, Data as input, for at most Number ns; answers Out, Err, Code
	Start   = "start"   // Args as Name in the background; Post is run when it has ended
	Signal  = "signal"  // sends signal Number to Name
	Put     = "put"     // writes Data to file Name with mode Number
	Get     = "get"     // answers file Name in Out
	Talk    = "talk"    // says Data to Unix socket Name and answers in Out all it says until it hangs up, for at most Number ns
	Address = "address" // gives interface Name the address Args[0] with prefix Number
	Clock   = "clock"   // sets the clock to Number, ns since 1970
	Fill    = "fill"    // makes file Name as large as its file system permits
	Remove  = "remove"  // removes file Name
)

// Request is what the host asks for.
type Request struct {
	ID     int      `json:"id"`
	Op     string   `json:"op"`
	Name   string   `json:"name,omitempty"`
	Args   []string `json:"args,omitempty"`
	Env    []string `json:"env,omitempty"`
	Post   []string `json:"post,omitempty"`
	Data   []byte   `json:"data,omitempty"`
	Number int64    `json:"number,omitempty"`
}

// Events of the guest.
const (
	Ready  = "ready"  // it takes requests
	Notify = "notify" // Name has told systemd Out
	Exit   = "exit"   // Name has ended with Code, and its Post too
)

// Message is an answer, or an event if it has a name.
type Message struct {
	ID    int    `json:"id,omitempty"`
	Event string `json:"event,omitempty"`
	Name  string `json:"name,omitempty"`
	Out   []byte `json:"out,omitempty"`
	Err   []byte `json:"err,omitempty"`
	Code  int    `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}
