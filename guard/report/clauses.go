package report

import "github.com/joulegate/joulegate/guard"

// clause is a requirement that the guard answers, or helps to. Requirements
// that other parts of the product answer are not here.
type clause struct {
	standard, number, about, how string
	rules                        []string // none: by how records are kept
}

const (
	iec     = "IEC 62443-4-2:2019"
	etsi    = "ETSI EN 303 645 V3.1.3"
	en1     = "EN 18031-1:2024"
	en2     = "EN 18031-2:2024"
	en3     = "EN 18031-3:2024"
	nist    = "NISTIR 8259A"
	cra     = "Regulation (EU) 2024/2847 (Cyber Resilience Act)"
	signed  = "Records are signed by the device's key, linked by hashes in the order they were made, and copied by the neighbours."
	stamped = "Every record carries time, rule, severity, sensor, count, what the sensor saw and missed, and the hash of the rules in force."
)

var (
	network  = []string{guard.TCPPortScan, guard.TCPSYNFlood, guard.ARPSpoof, guard.DHCPRogueServer, guard.DHCPFlood}
	strange  = []string{guard.NetNewDestination, guard.NetBeacon, guard.NetExfiltration, guard.DNSTunnel, guard.DNSDoHBypass, guard.TLSSNIMismatch}
	fieldbus = []string{guard.ModbusWriteUnauthorised, guard.ModbusIllegalFunction, guard.ModbusFunctionScan, guard.ModbusProtocolViolation, guard.ModbusExceptionStorm}
	programs = []string{guard.ProcessUnlisted, guard.ProcessMemfd, guard.ProcessDeleted, guard.LoadMiner}
	machine  = []string{guard.LoadCPU, guard.LoadMemory, guard.LoadDisk, guard.LoadHeat, guard.LoadThrottled, guard.LoadWear}
	alive    = []string{guard.GuardHeartbeat, guard.GuardCoverage, guard.GuardSilent}
	intact   = []string{guard.LoadBinary}
)

func all(lists ...[]string) (out []string) {
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

// clauses, in the order of the standards.
var clauses = []clause{
	{iec, "CR 1.11", "Failed logins", "Many failed logins from one host are found on the wire, whatever service they were for.", []string{guard.AuthBruteForce}},
	{iec, "CR 2.8", "Auditable events", stamped, nil},
	{iec, "CR 2.9", "Room for the audit log", "The newest 2048 findings are kept whole; records on the ledger have a daily limit, and what is held back is counted. A disk that fills up is found.", []string{guard.LoadDisk, guard.LoadWear}},
	{iec, "CR 2.10", "Failure of the audit log", "What cannot be put on record is counted and said; a reaction that cannot be put on record is not begun. Charging goes on.", []string{guard.LoadDisk, guard.GuardCoverage}},
	{iec, "CR 2.11", "Timestamps", "Jumps of the clock are found; the order of records does not depend on it.", []string{guard.LoadClock}},
	{iec, "CR 2.12", "Non-repudiation", signed, nil},
	{iec, "CR 3.4", "Integrity of software", "The running program's file is compared with what was started.", intact},
	{iec, "CR 3.9", "Protection of audit information", signed, nil},
	{iec, "CR 6.1", "Access to the audit log", "'joulegate audit bundle' hands it over whole; it is checked offline, without this gateway.", nil},
	{iec, "CR 6.2", "Continuous monitoring", "Sensors look without pause and say so at intervals that they promise; neighbours notice when they do not.", alive},
	{iec, "CR 7.1", "Denial of service", "Floods and scans are found; the sensors run in a process of their own, which is ended before it takes memory from the station.", all(network, []string{guard.LoadCPU, guard.LoadMemory})},
	{iec, "CR 7.2", "Management of resources", "Work, memory, disk, heat and wear are measured, and changes told.", machine},
	{iec, "EDR 3.2", "Protection from malicious code", "Programs that are on no list, run from memory or without a file, or compute without pause are found.", programs},

	{etsi, "5.1", "Brute force against logins", "Many failed logins from one host are found.", []string{guard.AuthBruteForce}},
	{etsi, "5.5", "Secure communication", "Passwords that cross the network in the clear, and names looked up past the filter, are found.", []string{guard.MQTTCleartext, guard.DNSDoHBypass}},
	{etsi, "5.6", "Small attack surface", "Attempts to find open ports and functions are found.", []string{guard.TCPPortScan, guard.ModbusFunctionScan}},
	{etsi, "5.7", "Integrity of software", "A changed program is found and told.", intact},
	{etsi, "5.9", "Resilience to outages", "The guard cannot stop the station: it shares no memory with it, and nothing that packets cause ends charging.", nil},
	{etsi, "5.10", "Examining telemetry", "Network, programs and machine are examined on the device itself.", all(network, strange, machine)},
	{etsi, "5.13", "Validating input", "Frames that are not the protocol of their port, and functions that no device needs, are found.", fieldbus},

	{en1, "RLM", "Resilience against denial of service", "Floods are found; limits are stated for every queue and table.", []string{guard.TCPSYNFlood, guard.DHCPFlood, guard.LoadCPU, guard.LoadMemory}},
	{en1, "NMM", "Monitoring the network", "Traffic of the interface is examined for attacks.", all(network, fieldbus, strange)},
	{en1, "TCM", "Controlling traffic", "Blocks of single hosts, by rules that the owner has switched on after seven days of learning; all expire.", []string{guard.GuardReaction}},
	{en1, "AUM", "Brute force against authentication", "Many failed logins from one host are found.", []string{guard.AuthBruteForce}},

	{en2, "LGM", "Logging of internal activity", stamped + " " + signed, all(alive, programs, intact)},
	{en2, "UNM", "Notifying the user", "Findings are told on the page, over MQTT and by 'joulegate guard status'; neighbours are told when they stop.", alive},
	{en2, "DLM", "Deleting personal data", "Names, addresses and programs stay on the device, the newest 2048 findings; the ledger holds salted hashes.", nil},

	{en3, "LGM", "Logging for the prevention of fraud", "Findings stand in the same signed chain as readings and sessions, in their order.", all(alive, fieldbus, intact)},
	{en3, "SUM", "Authentic software", "The running program's file is compared with what was started.", intact},

	{nist, "Cybersecurity state awareness", "Knowing and telling the state", "Coverage, losses and findings are told at all times, and heartbeats make silence visible.", alive},
	{nist, "Device identification", "A unique identity", "Every record is signed by the device's own key.", nil},
	{nist, "Data protection", "Data that leaves", "Unusual destinations and amounts are found.", strange},
	{nist, "Logical access to interfaces", "Access by strangers", "Writes of devices' registers by strangers, scans and failed logins are found.", all(fieldbus, []string{guard.AuthBruteForce, guard.TCPPortScan})},

	{cra, "Annex I, Part I (2)(d)", "Reporting unauthorised access", "Access by strangers is found and on record.", all(fieldbus, []string{guard.AuthBruteForce})},
	{cra, "Annex I, Part I (2)(f)", "Reporting corrupted programs and data", "A changed program is found; a changed record is found by whoever verifies.", intact},
	{cra, "Annex I, Part I (2)(h)", "Availability of essential functions", "Floods and exhausted resources are found; reactions never end charging because of packets.", all(network, machine)},
	{cra, "Annex I, Part I (2)(l)", "Recording internal activity, with a way to opt out", "Recorded as above; 'guard.mode: off' opts out.", all(alive, programs)},
	{cra, "Article 14", "Reporting within 24 hours, 72 hours and one month", "Records say when something was found first and last, and by which version; the notification itself is the manufacturer's.", nil},
}
