package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/packet"
)

// newGuardCmd gathers what the guard can do by hand. Each subcommand lives in
// a file of its own.
func newGuardCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "Watch names, packets and programs",
		Long: `The guard watches what this gateway asks for, talks to and runs. status, release,
answer, code and report talk to a running gateway; replay and domain try its parts on files
and names, need no privilege and change nothing.`,
	}
	cmd.AddCommand(newGuardReplayCmd(), newGuardExecCmd(), newGuardRulesCmd(), newGuardDomainCmd(), newGuardStatusCmd(), newGuardReleaseCmd(), newGuardAnswerCmd(), newGuardCodeCmd(), newGuardReportCmd(), newGuardSensorsCmd())
	return cmd
}

func newGuardReplayCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay FILE",
		Short: "Run the packet detectors on a capture",
		Long: `replay reads a capture (pcap or pcapng, "-" for stdin), prints a finding per
line as JSON, and a last line of counts. Times are those of the capture.

Without a policy nobody may write Modbus registers, and destinations are not
judged. A policy is YAML; what it does not know is an error:

  modbus:
    writers: [192.0.2.7]                            # may write registers
  baseline: [198.51.100.0/24, time.example.org:123] # ordinary destinations`,
		Example: `  joulegate guard replay capture.pcap
  tcpdump -i eth0 -w - | joulegate guard replay - --policy policy.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, _ := cmd.Flags().GetString("policy")
			return guardReplay(cmd, args[0], path)
		},
	}
	cmd.Flags().String("policy", "", "what is ordinary, from a YAML `FILE`")
	return cmd
}

func guardReplay(cmd *cobra.Command, path, policyPath string) error {
	log, err := newLogger(cmd)
	if err != nil {
		return err
	}
	var rules packet.Rules
	if policyPath != "" {
		text, err := os.ReadFile(policyPath)
		if err != nil {
			return fmt.Errorf("read the policy: %w", err)
		}
		if rules.Network, err = packet.ParsePolicy(text); err != nil {
			return fmt.Errorf("%s: %w", policyPath, err)
		}
	}
	in, size := cmd.InOrStdin(), int64(0)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("read the capture: %w", err)
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
		in = f
	}
	read := &counted{Reader: in}
	stop := sayProgress(cmd.Context(), cmd.ErrOrStderr(), path, read, size)
	defer stop()

	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetEscapeHTML(false)
	var failed error
	counts, err := packet.Replay(cmd.Context(), read, rules, log, func(f guard.Finding) {
		if failed == nil {
			failed = enc.Encode(f)
		}
	}, nil)
	if failed == nil {
		failed = enc.Encode(counts)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return failed
}

// counted counts what is read through it.
type counted struct {
	io.Reader
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// sayProgress tells every few seconds how much was read, until the function
// it returns is called. What is quick says nothing.
func sayProgress(ctx context.Context, w io.Writer, path string, read *counted, size int64) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(3 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			n := read.n.Load()
			if size > 0 {
				fmt.Fprintf(w, "%s: %d of %d MB, %d %%\n", path, n/1e6, size/1e6, 100*n/size)
			} else {
				fmt.Fprintf(w, "%s: %d MB\n", path, n/1e6)
			}
		}
	}()
	return func() { cancel(); <-done }
}
