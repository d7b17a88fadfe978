package guard

// Rule is what the guard knows how to find. The severity is the usual one: a
// sensor may judge a finding graver, for example while a car is charging.
type Rule struct {
	ID       string   `json:"id"`
	Sensor   Sensor   `json:"sensor"`
	Severity Severity `json:"severity"`
	Action   Action   `json:"action"` // at most, and only when enforced
	Title    string   `json:"title"`
}

// Rules of the guard's own sensors. Rules about processes that come from
// Sigma files are named "process." and the rule's file name, and react with
// Kill.
const (
	ModbusWriteUnauthorised = "modbus.write_unauthorised"
	ModbusIllegalFunction   = "modbus.illegal_function"
	ModbusExceptionStorm    = "modbus.exception_storm"
	ModbusFunctionScan      = "modbus.function_scan"
	ModbusProtocolViolation = "modbus.protocol_violation"
	ARPSpoof                = "arp.spoof"
	DHCPRogueServer         = "dhcp.rogue_server"
	DHCPFlood               = "dhcp.flood"
	TCPPortScan             = "tcp.port_scan"
	TCPSYNFlood             = "tcp.syn_flood"
	DNSTunnel               = "dns.tunnel"
	DNSSuspiciousType       = "dns.suspicious_type"
	DNSRebind               = "dns.rebind"
	DNSDoHBypass            = "dns.doh_bypass"
	TLSSNIMismatch          = "tls.sni_mismatch"
	MQTTCleartext           = "mqtt.cleartext_credentials"
	AuthBruteForce          = "auth.brute_force"
	NetNewDestination       = "net.new_destination"
	NetBeacon               = "net.beacon"
	NetExfiltration         = "net.exfiltration"

	DomainBlocked = "domain.blocked"
	DomainCloaked = "domain.cname_cloaking"
	DomainBypass  = "domain.bypass"

	PeerInvalid = "peer.invalid_blocks"

	ProcessUnlisted = "process.unlisted"
	ProcessMemfd    = "process.memfd"
	ProcessDeleted  = "process.deleted_executable"

	LoadMiner      = "load.miner"
	LoadCPU        = "load.cpu_change"
	LoadMemory     = "load.memory_pressure"
	LoadHeat       = "load.temperature"
	LoadThrottled  = "load.throttled"
	LoadDisk       = "load.disk_space"
	LoadWear       = "load.disk_wear"
	LoadClock      = "load.clock_jump"
	LoadBinary     = "load.binary_changed"
	GuardCoverage  = "guard.coverage"  // a sensor's level changed
	GuardHeartbeat = "guard.heartbeat" // the guard lives; neighbours notice gaps
	GuardReaction  = "guard.reaction"  // something was done, or undone
	GuardSilent    = "guard.silent"    // a neighbour's guard has stopped saying that it lives
)

// Rules lists them, by name.
var Rules = []Rule{
	{ARPSpoof, Packet, High, Block, "an address answers from a hardware address that is not its own"},
	{AuthBruteForce, Packet, Medium, Block, "many logins fail from one host"},
	{DHCPFlood, Packet, Medium, Nothing, "address requests come faster than a network of this size makes them"},
	{DHCPRogueServer, Packet, High, Nothing, "a second DHCP server hands out addresses"},
	{DNSDoHBypass, Packet, Low, Block, "names are looked up past the filter"},
	{DNSRebind, Packet, High, Block, "a public name points into the local network"},
	{DNSSuspiciousType, Packet, Low, Nothing, "a question for a record type that devices have no use for"},
	{DNSTunnel, Packet, High, Block, "data leaves in DNS questions"},
	{DomainBlocked, Domain, Info, Nothing, "a listed name was asked for"},
	{DomainBypass, Domain, Low, Refuse, "something went past the name server"},
	{DomainCloaked, Domain, Low, Nothing, "an innocent name leads to a listed one"},
	{GuardCoverage, Load, Low, Nothing, "a sensor sees more or less than before"},
	{GuardHeartbeat, Load, Info, Nothing, "the guard is at work"},
	{GuardReaction, Load, Low, Nothing, "the guard acted, or took back what it did"},
	{GuardSilent, Load, Medium, Nothing, "a neighbour's guard has not been heard when it should"},
	{LoadBinary, Load, Critical, SafeStop, "the running program is not the one that was started"},
	{LoadClock, Load, Low, Nothing, "the wall clock jumped"},
	{LoadCPU, Load, Low, Nothing, "the machine works more than it is used to"},
	{LoadDisk, Load, Medium, Nothing, "the disk is nearly full"},
	{LoadWear, Load, Low, Nothing, "more is written to the card than it can bear for years"},
	{LoadMemory, Load, Medium, Nothing, "programs wait for memory"},
	{LoadMiner, Load, High, Kill, "an unknown program computes without pause and talks to the network"},
	{LoadHeat, Load, Medium, Nothing, "the processor is too hot"},
	{LoadThrottled, Load, Low, Nothing, "the processor is slowed down, by heat or a weak supply"},
	{ModbusExceptionStorm, Packet, Medium, Nothing, "a device refuses many requests"},
	{ModbusFunctionScan, Packet, High, Block, "somebody tries which functions a device has"},
	{ModbusIllegalFunction, Packet, Medium, Block, "a function that no meter or inverter needs"},
	{ModbusProtocolViolation, Packet, Medium, Block, "frames that are not Modbus on its port"},
	{ModbusWriteUnauthorised, Packet, High, Block, "somebody who is not an allowed writer writes registers"},
	{MQTTCleartext, Packet, Medium, Nothing, "a password crosses the network in the clear"},
	{NetBeacon, Packet, Low, Block, "a host is called at regular intervals"},
	{NetExfiltration, Packet, High, Block, "far more leaves than a gateway has to say"},
	{NetNewDestination, Packet, Info, Nothing, "a destination that was never seen while learning"},
	{PeerInvalid, Packet, High, Quarantine, "a neighbour hands on blocks that no honest gateway makes"},
	{ProcessDeleted, Process, High, Kill, "a program runs whose file is gone"},
	{ProcessMemfd, Process, High, Kill, "a program runs from memory, without a file"},
	{ProcessUnlisted, Process, Low, Kill, "a program that is not on the list was started"},
	{TCPPortScan, Packet, Medium, Block, "one host tries many ports"},
	{TCPSYNFlood, Packet, Medium, Nothing, "connections are opened and never finished"},
	{TLSSNIMismatch, Packet, Low, Block, "a connection names a server that nobody looked up"},
}

// RuleOf returns the rule of that name. A name that starts with "process."
// and is not in Rules belongs to a rule file: Sigma's own level is its
// severity.
func RuleOf(id string) (Rule, bool) {
	for _, r := range Rules {
		if r.ID == id {
			return r, true
		}
	}
	if len(id) > len("process.") && id[:len("process.")] == "process." {
		return Rule{ID: id, Sensor: Process, Severity: Medium, Action: Kill, Title: id[len("process."):]}, true
	}
	return Rule{}, false
}
