package packet

import "github.com/joulegate/joulegate/guard"

// mqttDetector finds passwords that everybody on the way can read. Nothing of
// what the client sent is kept: user names are often tokens, too.
type mqttDetector struct{}

func (mqttDetector) name() string { return "mqtt" }
func (mqttDetector) wants() kind  { return isMQTT }

func (mqttDetector) step(e *Event, out *sink) {
	if e.mqtt.user || e.mqtt.password {
		out.find(e, guard.MQTTCleartext, guard.Medium, host(e.client()), 1).
			addr("broker", e.server()).num("port", uint64(e.serverPort()))
	}
}
