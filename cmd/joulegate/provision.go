package main

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/tools/sim/street"
)

// demoGrid is a microgrid on this machine: what an installer, an operator and
// some drivers would have set up.
type demoGrid struct {
	dir      string
	chainID  string
	gateways []demoGateway
	operator keys.Wallet
	owners   []keys.Wallet
	drivers  []keys.Wallet
	mqttUser string
	mqttPass string
}

type demoGateway struct {
	house  street.House
	state  state
	config string
	device chain.Key
	panel  string // host:port
	broker string // host:port; first gateway only
}

// Demonstration values: everything else is as in the field.
const (
	demoSlot   = 10 * time.Second
	demoGrace  = 4 * time.Second
	demoRetail = chain.NanoPerWh(300_000) // 0.30/kWh
	demoFeedIn = chain.NanoPerWh(80_000)  // 0.08/kWh
)

// provision writes the state folders of all gateways: keys, one genesis that
// names them all as founders, and a configuration each.
func provision(dir string, houses []street.House) (*demoGrid, error) {
	d := &demoGrid{dir: dir, chainID: "demo-" + rand.Text()[:6]}
	wallets := filepath.Join(dir, "wallets")
	if err := os.MkdirAll(wallets, 0o700); err != nil {
		return nil, err
	}
	var err error
	if d.operator, _, err = keys.LoadOrCreateWallet(wallets, "operator", nil); err != nil {
		return nil, err
	}
	for _, name := range []string{"anna", "ben"} {
		w, _, err := keys.LoadOrCreateWallet(wallets, name, nil)
		if err != nil {
			return nil, err
		}
		d.drivers = append(d.drivers, w)
	}
	ports, err := freePorts(2*len(houses) + 1)
	if err != nil {
		return nil, err
	}
	g := chain.Genesis{
		Version: chain.Version, ChainID: d.chainID, SlotSeconds: int64(demoSlot.Seconds()), GraceSeconds: int64(demoGrace.Seconds()),
		Currency: "EUR", MinorDigits: 2, Operators: []chain.Key{d.operator.Public()}, Retail: demoRetail, FeedIn: demoFeedIn,
		Nodes:  []chain.Node{{ID: "root"}, {ID: "feeder1", Parent: "root", Fee: 10_000}, {ID: "feeder2", Parent: "root", Fee: 10_000}},
		Credit: chain.Credit{EarnPPM: 50_000, RedeemPPM: 500_000, ExpirySlots: 360}, StartSeconds: 60, Basis: "simulated",
	}
	psk := make([]byte, 32)
	rand.Read(psk)
	for i, h := range houses {
		gw := demoGateway{house: h, state: state(filepath.Join(dir, h.Name)), panel: fmt.Sprintf("127.0.0.1:%d", ports[2*i])}
		gw.config = gw.state.path("joulegate.yaml")
		if i == 0 {
			gw.broker = fmt.Sprintf("127.0.0.1:%d", ports[2*len(houses)])
		}
		id, err := makeIdentity(gw.state)
		if err != nil {
			return nil, err
		}
		gw.device = keys.Public(id.device)
		owner, _, err := keys.LoadOrCreateWallet(wallets, "owner-"+h.Name, nil)
		if err != nil {
			return nil, err
		}
		d.owners = append(d.owners, owner)
		if err := writePSK(gw.state, psk); err != nil {
			return nil, err
		}
		addr := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", ports[2*i+1])
		g.Members = append(g.Members, chain.Founder{
			Member: id.member(h.Name, owner.Public(), i < 13, 43_000, []string{addr}),
			Node:   fmt.Sprintf("feeder%d", 1+i%2), Fee: 2_000,
		})
		d.gateways = append(d.gateways, gw)
	}
	first := d.gateways[0]
	if err := d.brokerUsers(first.state); err != nil {
		return nil, err
	}
	born := time.Now() // one time for all: the files must be equal to the byte
	for i, gw := range d.gateways {
		c := demoConfig(gw, g.Members[i].Addrs[0], first)
		b := config.Render(c)
		if _, err := config.Parse(b); err != nil {
			return nil, fmt.Errorf("%s: %w", gw.config, err)
		}
		if err := writeFile(gw.config, b, 0o644); err != nil {
			return nil, err
		}
		if _, err := consensus.WriteGenesis(gw.state.genesis(), g, born); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// brokerUsers gives the installer and the other gateways accounts at the
// first gateway's embedded broker.
func (d *demoGrid) brokerUsers(st state) error {
	installer, err := newBrokerUser("installer", "installer", st.installerPassword())
	if err != nil {
		return err
	}
	b, err := os.ReadFile(st.installerPassword())
	if err != nil {
		return err
	}
	d.mqttUser, d.mqttPass = "installer", string(b[:len(b)-1])
	users := []brokerUser{installer}
	for _, gw := range d.gateways[1:] {
		u, err := newBrokerUser(gw.house.Name, "gateway", gw.state.path("keys", "mqtt.password"))
		if err != nil {
			return err
		}
		users = append(users, u)
	}
	return writeList(st.brokerUsers(), users, 0o600)
}

// demoConfig is what an installer would write for one house.
func demoConfig(gw demoGateway, p2pAddr string, first demoGateway) config.Config {
	h := gw.house
	c := config.Default()
	c.Name, c.Board = h.Name, "simulated"
	c.Guard.Mode = "off" // each gateway's would see the same machine
	c.Lines = []config.Line{{ID: "rs485", Device: h.Line, Baud: street.Baud, Framing: "8N1", Timeout: config.Duration(300 * time.Millisecond)}}
	second := config.Duration(time.Second)
	for _, dev := range h.Devices {
		if dev.Role == 0 {
			continue
		}
		c.Meters = append(c.Meters, config.Meter{
			ID: dev.ID, Line: "rs485", Unit: dev.Unit, Profile: dev.Profile, Role: dev.Role.String(), Interval: second, MaxPower: 43_000,
		})
		if dev.Role == chain.RoleCharger {
			c.Chargers = []config.Charger{{
				ID: 1, Meter: dev.ID, Relay: street.Relay, MaxCurrent: 16_000, Phases: h.Phases, Mode: "market", MaxSwitches: 120,
			}}
		}
		if dev.Role == chain.RoleConnection {
			c.Meters[len(c.Meters)-1].MaxPower = 400_000
		}
	}
	for _, dev := range h.Devices {
		if dev.Role == 0 && len(c.Chargers) > 0 {
			c.Chargers[0].EVSE = config.EVSE{Line: "rs485", Unit: dev.Unit, Profile: dev.Profile}
		}
	}
	c.P2P.Listen = []string{p2pAddr}
	c.Panel.Listen = gw.panel
	if gw.broker != "" {
		c.MQTT.Listen = gw.broker
	} else {
		c.MQTT = config.MQTT{Broker: "tcp://" + first.broker, User: h.Name, PasswordFile: gw.state.path("keys", "mqtt.password")}
	}
	if h.Pins != "" {
		c.Pins.Socket = h.Pins
	}
	t := &c.Timing
	t.MinOff, t.HoldLimit, t.StartLimit = config.Duration(2*time.Second), config.Duration(30*time.Second), config.Duration(60*time.Second)
	t.FullAfter, t.ResumeLimit, t.QuoteLife = config.Duration(20*time.Second), config.Duration(60*time.Second), config.Duration(2*time.Minute)
	t.StartSpread = config.Duration(5 * time.Second)
	return c
}

// freePorts returns n TCP ports of the loopback address that nobody uses now.
func freePorts(n int) ([]int, error) {
	var ports []int
	var lns []net.Listener
	defer func() {
		for _, l := range lns {
			l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		lns = append(lns, l)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
