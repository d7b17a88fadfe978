package consensus

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

const crashHome, crashGenesis, crashKeep = "JOULEGATE_CRASH_HOME", "JOULEGATE_CRASH_GENESIS", "JOULEGATE_CRASH_KEEP"

// TestMain runs the tests or, as a child of TestCrash, a gateway that commits
// until it dies.
func TestMain(m *testing.M) {
	if home := os.Getenv(crashHome); home != "" {
		crashChild(home, os.Getenv(crashGenesis))
	}
	os.Exit(m.Run())
}

func crashChild(home, genesis string) {
	die := func(err error) { fmt.Println("error:", err); os.Exit(3) }
	h := newHost(keyFrom("device house1"), "/ip4/127.0.0.1/tcp/0")
	keep, _ := time.ParseDuration(os.Getenv(crashKeep)) // unset: for ever
	eng, err := Open(context.Background(), Config{Home: home, GenesisFile: genesis, Host: h, KeepBlocks: keep, Timing: Timing{Commit: time.Millisecond}})
	if err != nil {
		die(err)
	}
	go eng.Run(context.Background())
	fmt.Println("height", eng.Status().Height)
	for {
		nonce := nextNonce(eng)
		r, err := eng.Submit(context.Background(), crashTx(nonce))
		if err != nil || r.Code != ledger.CodeOK {
			die(fmt.Errorf("%+v, %w", r, err))
		}
		fmt.Println("committed", nonce)
	}
}

func crashTx(nonce uint64) []byte {
	return chain.SignTx("test-grid", nonce, chain.TxMint, chain.Mint{To: account("driver"), Amount: 1, BankRef: fmt.Sprint(nonce)}, operator(0))
}

func nextNonce(e *Engine) (n uint64) {
	if err := e.View(func(st ledger.State) { n = ledger.NextNonce(st, public(operator(0))) }); err != nil {
		panic(err)
	}
	return n
}

// TestCrash ends a gateway at each of CometBFT's fail points around a block
// (before and after the block is stored, executed, committed, its state
// saved), and with kill -9 at any time. Whatever was reported as committed
// must be there after the next start, once.
func TestCrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0]
	committed := uint64(0)
	check := func(how string) {
		t.Helper()
		n.open()
		defer func() { n.run().stop() }()
		next := nextNonce(n.eng)
		if next <= committed {
			t.Fatalf("%s: %d transactions were committed, %d are there", how, committed, next-1)
		}
		if got := n.balance("driver"); got != chain.Nano(next-1) {
			t.Fatalf("%s: balance %d after %d transactions of 1", how, got, next-1)
		}
		committed = next - 1
	}
	// A block of a lone gateway passes 13 of them; the first are at start.
	for point := 2; point < 30; point += 2 {
		child(t, n.home, w.genesis, point, 0, &committed)
		check(fmt.Sprintf("fail point %d", point))
	}
	for point := 15; point < 28; point += 2 {
		child(t, n.home, w.genesis, point, 0, &committed)
	}
	check("fail points without a pause")
	for i := range 3 {
		child(t, n.home, w.genesis, -1, 5+3*i, &committed)
		check(fmt.Sprintf("kill %d", i))
	}
	if committed < 20 {
		t.Errorf("only %d transactions were committed: the test shows little", committed)
	}
	rep, err := VerifyHome(t.Context(), n.home, w.genesis, nil)
	if err != nil || len(rep.Violations) > 0 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

// child runs a gateway until it reaches the fail point or, without one, until
// it has committed kill transactions and is killed in whatever it is doing.
func child(t *testing.T, home, genesis string, point, kill int, committed *uint64, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(append(os.Environ(), env...), crashHome+"="+home, crashGenesis+"="+genesis)
	if point >= 0 {
		cmd.Env = append(cmd.Env, "FAIL_TEST_INDEX="+strconv.Itoa(point))
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	failed := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		if n, ok := strings.CutPrefix(line, "committed "); ok {
			if *committed, err = strconv.ParseUint(n, 10, 64); err != nil {
				t.Fatal(err)
			}
			if kill--; kill == 0 {
				_ = cmd.Process.Kill()
			}
		}
		failed = failed || strings.Contains(line, "fail-test")
		if strings.HasPrefix(line, "error:") {
			t.Errorf("child with fail point %d: %s", point, line)
		}
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait() // it died, as it should
	if point >= 0 && !failed {
		t.Fatalf("the child did not reach fail point %d", point)
	}
}

// TestReplayBehind takes the last state away, as an old copy of it would: the
// stored blocks are applied again.
func TestReplayBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	for range 4 {
		n.submit(w.mint(0, "driver", 10))
	}
	want := n.eng.Status()
	n.stop()
	for _, back := range []int64{1, 3} {
		s, err := openStores(n.home, false)
		if err != nil {
			t.Fatal(err)
		}
		tree, err := openTree(s.ledger)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.LoadVersionForOverwriting(tree.Version() - back); err != nil {
			t.Fatal(err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		n.open()
		if got := n.eng.Status(); got.Height < want.Height || n.balance("driver") != 40 {
			t.Errorf("%d states back: height %d, want %d; balance %d", back, got.Height, want.Height, n.balance("driver"))
		}
		n.run().stop()
	}
}
