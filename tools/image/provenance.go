package main

import (
	"encoding/json"
	"runtime"
)

// provenance says what was built from what, as an in-toto statement (v1) with
// a SLSA provenance predicate (v1). It is a statement, not a proof: the proof
// is to build the commit again and get the same bytes.
func provenance(src source, made []digest) ([]byte, error) {
	type hash map[string]string
	type subject struct {
		Name   string `json:"name"`
		Digest hash   `json:"digest"`
	}
	var subjects []subject
	for _, m := range made {
		subjects = append(subjects, subject{m.Name, hash{"sha256": m.SHA256}})
	}
	const repo = "https://github.com/joulegate/joulegate"
	return json.MarshalIndent(map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       subjects,
		"predicateType": "https://slsa.dev/provenance/v1",
		"predicate": map[string]any{
			"buildDefinition": map[string]any{
				"buildType":            repo + "/blob/main/Makefile",
				"externalParameters":   map[string]any{"target": "packages"},
				"internalParameters":   map[string]any{"go": runtime.Version(), "modified": src.Dirty},
				"resolvedDependencies": []any{map[string]any{"uri": "git+" + repo, "digest": hash{"gitCommit": src.Commit}}},
			},
			"runDetails": map[string]any{"builder": map[string]any{"id": repo + "/tools/image"}},
		},
	}, "", "  ")
}
