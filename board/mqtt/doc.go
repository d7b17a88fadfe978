// Package mqtt is the installer's line: what this gateway knows is published
// on an MQTT broker, under one root per gateway.
//
//	joulegate/1/<gateway>/
//	    status                       online | offline (last will)   retained, QoS 1
//	    info                         version, boot id, peer id       retained, QoS 1
//	    device/<id>/availability     online | offline                retained, QoS 1
//	    device/<id>/state            power, registers, quality       retained, QoS 0
//	    charger/<n>/session          the session at connector n      retained, QoS 0
//	    market/state  ledger/state   summaries                       retained, QoS 0
//	    event/<type>                 {"seq","time","severity","data"}          QoS 1
//	    config/...  cmd/<client>/... rsp/<client>/...   remote configuration
//
// Two parts, which meet only through the protocol:
//
//	Publish... ──► latest value per topic ─┐              ┌─ Broker (embedded,
//	Event      ──► Spool, on disk ─────────┴─► paho ──────┤  loopback, deny by default)
//	   never blocks                           one sender  └─ or any broker by URL
//
// # What is lost, and what is not
//
// State topics hold the latest value: a newer value replaces an older one
// that was not sent yet, and after every reconnect all of them are sent again,
// so that a broker that forgot its retained messages is whole within a second.
// Events wait on disk until the broker has them; of more than MaxEvents the
// oldest goes, the loss is counted, and the gap shows in seq. A broker that is slow, full,
// absent or hostile never delays the caller.
//
// # Who may do what
//
// The embedded broker knows named users with hashed passwords and an ordered
// list of rules each. The first rule that matches a topic decides; no match
// denies. Rules are checked on publish, on subscribe and on every delivery,
// so that a subscription to "#" yields exactly what its user may read.
package mqtt
