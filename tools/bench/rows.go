package main

import (
	"fmt"
	"math"
)

// row is one line of the budget table.
type row struct {
	id     string // key in the committed table; never changes meaning
	what   string
	op     string  // "<=" or ">="
	limit  float64 // none: told for information
	unit   string
	digits int
	source source
}

// none marks a row without a budget.
const none = -1

func (r row) format(v float64) string { return fmt.Sprintf("%.*f %s", r.digits, v, r.unit) }

// holds compares what the table would print, so that a row never says
// "0 bytes" and "over".
func (r row) holds(v float64) bool {
	scale := math.Pow10(r.digits)
	v = math.Round(v*scale) / scale
	if r.op == ">=" {
		return v >= r.limit
	}
	return v <= r.limit
}

const (
	market    = "./chain/market"
	consensus = "./chain/consensus"
	bundles   = "./chain/proof"
	modbus    = "./drivers/modbus"
	fault     = "./tools/bench/fault"
	domains   = "./guard/domain"
	packets   = "./guard/packet"
	programs  = "./guard/sigma"
)

// rows are the budgets of the design, in its order.
var rows = []row{
	{"relay.p999", "fault input to relay off, p99.9, full load", "<=", 50, "ms", 1, bench{pkg: fault, name: "BenchmarkFaultToRelayOff/load", metric: "p99.9-ms", time: "100000x"}},
	{"relay.worst", "fault input to relay off, worst of 100,000", "<=", 100, "ms", 1, bench{pkg: fault, name: "BenchmarkFaultToRelayOff/load", metric: "worst-ms", time: "100000x"}},

	{"rtu.9600", "RTU polls against the wire limit, 9600 baud", ">=", 90, "%", 1, bench{pkg: modbus, name: "BenchmarkRTUPaced9600", metric: "%wire", of: "/line", worst: lowest}},
	{"rtu.19200", "RTU polls against the wire limit, 19200 baud", ">=", 90, "%", 1, bench{pkg: modbus, name: "BenchmarkRTUPaced19200", metric: "%wire", of: "/line", worst: lowest}},
	{"rtu.115200", "RTU polls against the wire limit, 115200 baud", ">=", 90, "%", 1, bench{pkg: modbus, name: "BenchmarkRTUPaced115200", metric: "%wire", of: "/line", worst: lowest}},
	{"rtu.three", "three SDM630 snapshots on one 9600 bus", ">=", 1.4, "Hz", 2, bench{pkg: modbus, name: "BenchmarkSnapshots", metric: "Hz", of: "all/line", worst: lowest}},
	{"rtu.dead", "what a dead slave costs the others", "<=", 5, "%", 1, bench{pkg: modbus, name: "BenchmarkDeadSlave", metric: "%lost", of: "/line", worst: highest}},

	{"clear.10k", "clearing 10,000 orders on 1,000 nodes", "<=", 4, "ms", 2, bench{pkg: market, name: "BenchmarkClear/10k", metric: "ns/op", scale: 1e-6}},
	{"clear.100k", "clearing 100,000 orders", "<=", 40, "ms", 1, bench{pkg: market, name: "BenchmarkClear/100k", metric: "ns/op", scale: 1e-6}},
	{"clear.1M", "clearing 1,000,000 orders", "<=", 400, "ms", 0, bench{pkg: market, name: "BenchmarkClear/1M", metric: "ns/op", scale: 1e-6}},

	{"final.p50", "four gateways, 20 tx/s: finality p50", "<=", none, "ms", 0, bench{pkg: consensus, name: "BenchmarkFinality4", metric: "p50-ms", time: "400x"}},
	{"final.p95", "four gateways, 20 tx/s: finality p95", "<=", 1500, "ms", 0, bench{pkg: consensus, name: "BenchmarkFinality4", metric: "p95-ms", time: "400x"}},
	{"burst", "four gateways, burst", ">=", 800, "tx/s", 0, bench{pkg: consensus, name: "BenchmarkBurst4", metric: "tx/s", time: "1x"}},
	{"cut.block", "link cut 180 s and healed: first new block", "<=", 15, "s", 2, test{"./tools/e2e/microgrid", "TestCutInNamespaces", `first new block (\S+) after the heal`}},

	{"catchup.replay", "1,000 blocks behind: executed one by one", "<=", none, "s", 1, bench{pkg: consensus, name: "BenchmarkCatchUp/replay", metric: "s", time: "1x"}},
	{"catchup.snapshot", "1,000 blocks behind: fetched as a state", "<=", 30, "s", 1, bench{pkg: consensus, name: "BenchmarkCatchUp/snapshot", metric: "s", time: "1x"}},
	{"years.ten", "ten years of 60 gateways on disk, all blocks kept", "<=", 32, "GB", 1, bench{pkg: consensus, name: "BenchmarkTenYears", metric: "ten-years-GB", time: "1x"}},
	{"years.pruned", "the same, blocks kept for 400 to 600 days", "<=", 32, "GB", 1, bench{pkg: consensus, name: "BenchmarkTenYears", metric: "pruned-GB", time: "1x"}},
	{"years.ever", "60 gateways: what stays in the ledger's state for ever, per year", "<=", none, "MB", 1, bench{pkg: consensus, name: "BenchmarkTenYears", metric: "ever-MB/year", time: "1x"}},
	{"years.blocks", "60 gateways, 96 slots a day: blocks per day", "<=", none, "MB", 2, bench{pkg: consensus, name: "BenchmarkTenYears", metric: "blocks-MB/day", time: "1x"}},
	{"years.state", "60 gateways: ledger state, 400 days kept", "<=", none, "GB", 2, bench{pkg: consensus, name: "BenchmarkTenYears", metric: "ledger-GB", time: "1x"}},

	{"proof.year", "a year of one household verified offline", "<=", 10, "s", 1, bench{pkg: bundles, name: "BenchmarkVerifyYear", metric: "s", time: "1x"}},
	{"proof.memory", "the same: heap", "<=", 200, "MB", 0, bench{pkg: bundles, name: "BenchmarkVerifyYear", metric: "MB", time: "1x"}},

	{"size.arm64", "binary, arm64", "<=", 45, "MB", 1, size{"arm64", ""}},
	{"size.amd64", "binary, amd64", "<=", none, "MB", 1, size{"amd64", ""}},
	{"size.armv7", "binary, armv7", "<=", none, "MB", 1, size{"arm", "7"}},
	{"size.armv6", "binary, armv6", "<=", none, "MB", 1, size{"arm", "6"}},

	{"idle.rss", "gateway alone, idle: memory", "<=", 80, "MB", 1, agent{idle, rss}},
	{"idle.cpu", "gateway alone, idle: one core", "<=", 2, "%", 2, agent{idle, cpu}},
	{"idle.written", "gateway alone, idle: written per minute", "<=", 0, "kB", 1, agent{idle, written}},
	{"meter.first", "start to first reading", "<=", 2, "s", 2, agent{metered, firstReading}},
	{"meter.rss", "gateway with a meter read each second: memory", "<=", none, "MB", 1, agent{metered, rss}},
	{"meter.cpu", "gateway with a meter read each second: one core", "<=", none, "%", 2, agent{metered, cpu}},
	{"meter.written", "gateway with a meter, 900 s slots: written per day", "<=", 100, "MB", 1, agent{metered, perDay}},
	{"demo.rss", "demo, per gateway: memory", "<=", none, "MB", 1, agent{demo, rss}},
	{"demo.cpu", "demo, per gateway: one core", "<=", none, "%", 1, agent{demo, cpu}},
	{"demo.written", "demo, 10 s slots, per gateway: written per minute", "<=", none, "kB", 0, agent{demo, written}},

	{"guard.rss", "idle with guard: memory", "<=", 115, "MB", 1, agent{guarded, rss}},
	{"guard.cpu", "idle with guard: one core", "<=", none, "%", 2, agent{guarded, cpu}},
	{"guard.sensors.cpu", "the guard's sensors when idle: one core", "<=", 1, "%", 2, agent{guarded, sensors}},
	{"guard.sensors.rss", "the guard's sensors when idle: memory of their own", "<=", 40, "MB", 1, agent{guarded, sensorsRSS}},
	{"guard.name", "guard, per blocked name", "<=", 6, "bytes", 1, bench{pkg: domains, name: "BenchmarkLookup/bytes", metric: "bytes/name"}},
	{"guard.lookup", "guard, lookup of a name among a million", "<=", 300, "ns", 0, bench{pkg: domains, name: "BenchmarkLookup", metric: "cpu-ns", time: "1000000x", worst: highest}},
	{"guard.answers", "guard, blocked answers per second of a core, a million names", ">=", 100_000, "/s", 0, names{"ours", perCore}},
	{"guard.answers.dnsmasq", "the same of dnsmasq", ">=", none, "/s", 0, names{"dnsmasq", perCore}},
	{"guard.answers.unbound", "the same of unbound", ">=", none, "/s", 0, names{"unbound", perCore}},
	{"guard.names.rss", "guard, the sensors' process with a million names: memory", "<=", none, "MB", 0, names{"ours", serverRSS}},
	{"guard.names.rss.dnsmasq", "dnsmasq with them", "<=", none, "MB", 0, names{"dnsmasq", serverRSS}},
	{"guard.names.rss.unbound", "unbound with them", "<=", none, "MB", 0, names{"unbound", serverRSS}},
	{"guard.packet", "guard, per packet at 100,000 packets/s", "<=", 350, "ns", 0, bench{pkg: packets, name: "BenchmarkRing", metric: "cpu-ns", time: "500000x"}},
	{"guard.packet.lost", "guard, packets lost at 100,000 packets/s", "<=", 0, "%", 3, bench{pkg: packets, name: "BenchmarkRing", metric: "%lost", time: "500000x"}},
	{"guard.frame", "guard, public captures: a frame with decoding", "<=", none, "ns", 0, bench{pkg: packets, name: "BenchmarkCaptures", metric: "frame-ns"}},
	{"guard.detect", "guard, public captures: all detectors, per packet", "<=", 80, "ns", 0, bench{pkg: packets, name: "BenchmarkCaptures", metric: "detect-ns"}},
	{"guard.exec", "guard, execs caught of 1000", ">=", 1000, "execs", 0, test{"./guard/process", "TestEveryExecIsSeen", `ebpf: (\d+) of 1000 seen`}},
	{"guard.event", "guard, per process event against all rules", "<=", 15, "us", 1, bench{pkg: programs, name: "BenchmarkMatchAll", metric: "ns/op", scale: 1e-3}},
}
