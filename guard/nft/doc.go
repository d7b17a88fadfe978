// Package nft keeps a table of the kernel's packet filter: sets of addresses,
// and chains of rules that look into them. What is in a set changes often and
// may expire by itself; the rules stay as they were opened.
//
//	Layout ──Open──► table inet joulegate ──Close──► gone
//	                 ├─ set blocked4 { 192.0.2.7 expires 59m }   ◄─ Add, Remove, Flush, List
//	                 └─ chain in, hook input: from @blocked4 drop ──► Counts
//
// Open replaces whatever an earlier process left under the same name, in one
// transaction: there is no moment without rules, and none with two of them.
// Tables of others are never touched. Every table's name begins with Prefix,
// so that [RemoveAll], which an uninstaller calls, finds them all.
//
// Rules see what this machine receives, sends or forwards. They cannot keep
// two others on the same network from talking to each other.
//
//	t, err := nft.Open(nft.Layout{
//		Table: "joulegate",
//		Sets:  []nft.Set{{Name: "blocked4", Type: nft.IPv4, Timeout: time.Hour, Size: 256}},
//		Chains: []nft.Chain{{Name: "in", Hook: nft.Input, Rules: []nft.Rule{
//			{Match: []nft.Match{nft.From("blocked4")}, Verdict: nft.Drop, Comment: "blocked"},
//		}}},
//	})
//	err = t.Add("blocked4", nft.Element{Prefix: nft.Host(addr)})
//
// It needs CAP_NET_ADMIN; [Probe] says what is missing. The format is that of
// nf_tables over netlink (Linux 4.16 or newer for the inet family's sets).
package nft
