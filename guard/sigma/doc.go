// Package sigma judges started programs by Sigma rules of the category
// process_creation (https://sigmahq.io, specification 2.1). It is pure: rules
// come as files, events as values, and a match is a function of both.
//
//	rule files ──parse──► conditions over atoms ──compile──► Set
//	                                                          │
//	Event ── one pass per field ──► atoms that hold ──► rules that may hold ──► matches
//
// An atom is one question about one field: does the command line contain
// "--interactive"? Many rules ask the same; each is asked once. All literals
// of a field are searched in a single pass (Aho and Corasick 1975), and only
// rules of which an atom was found are looked at, so that a thousand rules
// cost little more than ten. Matching allocates nothing.
//
//	set, err := sigma.Load(os.DirFS("/etc/joulegate/rules"))
//	m := set.Matcher()
//	for _, r := range m.Match(&event) { ... }
//
// # What is exact
//
// Wildcards and their escapes, lists, null, keywords, and the modifiers
// contains, startswith, endswith, all, re with i, m and s, cased, cidr,
// exists, lt, lte, gt, gte, neq, fieldref, windash, base64, base64offset,
// wide, utf16le, utf16be and utf16. Strings are compared without regard to
// case, regular expressions (RE2) with it. An empty field is an absent one. What is not
// understood, a misspelt field included, makes the rule refused with its file
// and line: a rule that silently never matches is worse than none.
package sigma
