package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestMarketClear(t *testing.T) {
	clear := func(in string) (string, error) {
		var out bytes.Buffer
		cmd := newMarketClearCmd()
		cmd.SetArgs(nil)
		cmd.SetIn(strings.NewReader(in))
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		err := cmd.Execute()
		return out.String(), err
	}

	const problem = `{"nodes":[{"id":"root","parent":"","fee":0},{"id":"f1","parent":"root","fee":20000},{"id":"f2","parent":"root","fee":20000}],
	 "grid":{"retail":300000,"feed_in":80000,"fee":0},
	 "orders":[{"id":"car","side":"buy","wh":1500,"limit":330000,"node":"f1"},{"id":"roof","side":"sell","wh":1000,"limit":80000,"node":"f2"},
	           {"id":"late","side":"buy","wh":10,"limit":1,"node":"f1"}]}`
	got, err := clear(problem)
	want := `{"welfare":215000000,"fills":{"car":1500,"late":0,"roof":1000},"prices":{"f1":320000,"f2":280000,"root":300000},` +
		`"fees":50000000,"paid":480000000,"received":430000000,"grid":{"import_wh":500,"export_wh":0}}` + "\n"
	if err != nil || got != want {
		t.Errorf("%v\ngot  %swant %s", err, got, want)
	}

	for name, tt := range map[string]struct{ old, new, want string }{
		"unknown field":       {`"fee":0}`, `"fee":0,"colour":1}`, "colour"},
		"duplicate id":        {`"late"`, `"car"`, `duplicate order id "car"`},
		"cycle":               {`"parent":""`, `"parent":"f1"`, "cycle"},
		"negative energy":     {`"wh":10`, `"wh":-10`, "negative energy"},
		"retail < feed-in":    {`"retail":300000`, `"retail":3`, "below feed-in"},
		"two documents":       {`"node":"f1"}]}`, `"node":"f1"}]}{}`, "more than one"},
		"not JSON":            {`{"nodes"`, `nodes`, "line 1"},
		"fraction of a Wh":    {`"wh":10`, `"wh":10.5`, "10.5"},
		"money beyond 64 bit": {`"limit":330000`, `"limit":70000000000000000`, "overflow"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := clear(strings.Replace(problem, tt.old, tt.new, 1))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if out != "" {
				t.Errorf("printed %q", out)
			}
		})
	}
}
