package main

import (
	"strconv"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/meter"
	"github.com/prometheus/client_golang/prometheus"
)

// gatewayMetrics tells Prometheus what the page shows: meters, chargers,
// alarms and the ledger. It names no driver and no session.
type gatewayMetrics struct{ g *gateway }

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("joulegate_"+name, help, labels, nil)
}

var (
	mInfo     = metric("info", "1, with the version.", "version")
	mPower    = metric("meter_power_watts", "Power, import positive, by the last reading.", "meter", "role")
	mImport   = metric("meter_import_watthours_total", "Import register of the meter.", "meter", "role")
	mExport   = metric("meter_export_watthours_total", "Export register of the meter.", "meter", "role")
	mAge      = metric("meter_reading_age_seconds", "Since the last reading.", "meter", "role")
	mGood     = metric("meter_good", "1 while the last reading is good.", "meter", "role")
	mCharging = metric("charger_power_watts", "Power at the charger, into the vehicle positive.", "charger")
	mOffer    = metric("charger_offered_amperes", "Current offered per phase.", "charger")
	mClosed   = metric("charger_relay_closed", "1 while the relay is closed, or the wallbox may offer.", "charger")
	mSession  = metric("charger_session_open", "1 while a session is open.", "charger")
	mFault    = metric("charger_fault", "1 while a fault is latched.", "charger")
	mAlarm    = metric("alarms", "What is wrong now.", "code")
	mHeight   = metric("ledger_height", "Newest block.")
	mBlockAge = metric("ledger_block_age_seconds", "Since the newest block; without transactions there are none.")
	mPeers    = metric("peers_connected", "Neighbours that are connected.")
	mLive     = metric("control_loop_live", "1 while the control loop runs.")
)

// Describe implements prometheus.Collector.
func (gatewayMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		mInfo, mPower, mImport, mExport, mAge, mGood, mCharging, mOffer, mClosed, mSession, mFault, mAlarm, mHeight, mBlockAge, mPeers, mLive,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m gatewayMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	now := time.Now()
	gauge(mInfo, 1, version)
	s := m.g.ledger.Status()
	gauge(mHeight, float64(s.Height))
	if !s.BlockTime.IsZero() {
		gauge(mBlockAge, max(0, now.Sub(s.BlockTime).Seconds()))
	}
	gauge(mPeers, float64(len(backend{m.g}.connected())))
	snap, ok := m.g.live.Latest()
	gauge(mLive, is(ok && snap.Live))
	for _, x := range snap.Meters {
		if x.Time.IsZero() {
			continue
		}
		role := x.Role
		gauge(mPower, float64(x.PowerW), x.ID, role)
		ch <- prometheus.MustNewConstMetric(mImport, prometheus.CounterValue, float64(x.Import), x.ID, role)
		ch <- prometheus.MustNewConstMetric(mExport, prometheus.CounterValue, float64(x.Export), x.ID, role)
		gauge(mAge, max(0, now.Sub(x.Time).Seconds()), x.ID, role)
		gauge(mGood, is(x.Quality == meter.Good.String()), x.ID, role)
	}
	for _, c := range snap.Chargers {
		id := strconv.Itoa(int(c.ID))
		gauge(mCharging, float64(c.PowerW), id)
		gauge(mOffer, float64(c.Limit)/1000, id)
		gauge(mClosed, is(c.Relay), id)
		gauge(mSession, is(c.Session != ""), id)
		gauge(mFault, is(c.Fault != ""), id)
	}
	for code, n := range countAlarms(snap.Alarms) {
		gauge(mAlarm, float64(n), code)
	}
}

func countAlarms(all []board.Alarm) map[string]int {
	n := map[string]int{}
	for _, a := range all {
		n[a.Code]++
	}
	return n
}
