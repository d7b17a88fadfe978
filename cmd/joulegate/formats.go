package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
)

// Every store of a gateway carries the version of its format: one that is
// newer than the program is refused, since what it says is not for this
// program, and an older one is brought up to date when it is opened.
//
//	journal/blocks.db      entry "m"                     chain/journal
//	consensus/data         file format                   chain/consensus
//	statements             entry of its head              chain/passbook
//	snapshots              first byte of the manifest    chain/consensus
//	consensus/trust.json, settings/revisions.json, keys/cards.json,
//	genesis.json, backups  field version (genesis: consensus_params.version.app)
//	peers.json, broker.json  field version               here
//	keys/*.key, wallets    the PEM block's type          chain/keys
//	station, meters and trials in the journal  a version each  board/station, here
//
// Blocks, transactions and records have versions of their own (chain).

// errNewer is wrapped by the refusal of a file that a newer program wrote.
var errNewer = errors.New("written by a newer joulegate")

func newer(path string, have, known int) error {
	return fmt.Errorf("%w: %s is of format %d, this program knows %d: update joulegate, or go back to the program that wrote it", errNewer, path, have, known)
}

// listVersion is the format of the state folder's lists.
//
//	0   the bare list
//	1   the list beside its version
const listVersion = 1

type list[T any] struct {
	Version int `json:"version"`
	List    []T `json:"list"`
}

func encodeList[T any](l []T) ([]byte, error) {
	b, err := json.MarshalIndent(list[T]{listVersion, l}, "", "  ")
	return append(b, '\n'), err
}

func writeList[T any](path string, l []T, mode fs.FileMode) error {
	b, err := encodeList(l)
	if err != nil {
		return err
	}
	return writeFile(path, b, mode)
}

// readList decodes what writeList wrote, and brings an older file up to date.
func readList[T any](path string, b []byte, mode fs.FileMode) ([]T, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if t := bytes.TrimSpace(b); len(t) > 0 && t[0] == '[' {
		var l []T
		if err := d.Decode(&l); err != nil {
			return nil, err
		}
		return l, writeList(path, l, mode)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	if v.Version > listVersion {
		return nil, newer(path, v.Version, listVersion)
	}
	var l list[T]
	if err := d.Decode(&l); err != nil {
		return nil, err
	}
	if l.Version < 1 {
		return nil, errors.New("no version")
	}
	return l.List, nil
}
