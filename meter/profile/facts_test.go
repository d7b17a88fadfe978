package profile_test

import (
	"math"
	"testing"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

func f32(v float32) []uint16 {
	b := math.Float32bits(v)
	return []uint16{uint16(b >> 16), uint16(b)}
}

func f32le(v float32) []uint16 { w := f32(v); return []uint16{w[1], w[0]} }

func f64(v float64) []uint16 {
	b := math.Float64bits(v)
	return []uint16{uint16(b >> 48), uint16(b >> 32), uint16(b >> 16), uint16(b)}
}

func reg(v ...int) []uint16 {
	var w []uint16
	for _, x := range v {
		w = append(w, uint16(x))
	}
	return w
}

// Registers of every device as its sources describe them, written down a
// second time: what is read must be what the device meant.
func TestRegistersOfEveryDevice(t *testing.T) {
	type block struct {
		fn   uint8
		addr uint16
		w    []uint16
		name string
		want int64
	}
	cases := map[string][]block{
		"abb-a-b-series":       {{3, 0x5B14, reg(0xFFFF, 0xFFFE), "power_mw", -20}, {3, 0x5000, reg(0, 0, 0, 1234), "import_mwh", 12_340_000}, {3, 0x546C, reg(0, 0, 0, 7), "export_l1_mwh", 70_000}, {3, 0x5B2C, reg(4998), "frequency_mhz", 49_980}},
		"bernecker-mpm3pm":     {{3, 0x26, reg(0xFFFF, 0xC568), "power_mw", -150_000}, {3, 2, reg(0, 1234), "import_mwh", 12_340_000}, {3, 8, reg(0, 2305), "voltage_l1_mv", 230_500}},
		"bgetech-ds100":        {{3, 0x420, reg(0xFFFF, 0xFFFE), "power_mw", -2000}, {3, 0x10E, reg(0, 1234), "import_mwh", 12_340_000}, {3, 0x118, reg(0, 5), "export_mwh", 50_000}, {3, 0x400, reg(3, 0x8464), "voltage_l1_mv", 230_500}},
		"bgetech-ws100":        {{3, 0x104, reg(0, 1500), "power_mw", 1_500_000}, {3, 0x122, reg(0, 1234), "energy_mwh", 12_340_000}},
		"carlogavazzi-em24":    {{4, 0x28, reg(15005, 0), "power_mw", 1_500_500}, {4, 0x42, reg(1234, 0), "import_mwh", 123_400_000}, {4, 0x5C, reg(7, 0), "export_mwh", 700_000}, {4, 0x37, reg(499), "frequency_mhz", 49_900}, {4, 0x35, reg(0xFC7C), "power_factor_permille", -900}},
		"carlogavazzi-em340":   {{4, 0x28, reg(0xC563, 0xFFFF), "power_mw", -1_500_500}, {4, 0x34, reg(1234, 0), "import_mwh", 123_400_000}, {4, 0x4E, reg(7, 0), "export_mwh", 700_000}, {4, 0x33, reg(499), "frequency_mhz", 49_900}, {4, 0x33, reg(4990), "frequency_mhz", 49_900}},
		"chint-dtsu666":        {{3, 0x2006, f32(2305), "voltage_l1_mv", 230_500}, {3, 0x2012, f32(-15005), "power_mw", -1_500_500}, {3, 0x101E, f32(12.5), "import_mwh", 12_500_000}, {3, 0x200C, f32(1250), "current_l1_ma", 1250}, {3, 0x2044, f32(4998), "frequency_mhz", 49_980}},
		"deye-sg01hp3":         {{3, 672, reg(10, 20, 0, 0), "power_mw", -300_000}, {3, 590, reg(0xFFF6), "battery_power_mw", 100_000}},
		"deye-sg04lp3":         {{3, 672, reg(100, 200, 0, 5), "power_mw", -305_000}, {3, 590, reg(100), "battery_power_mw", -100_000}, {3, 588, reg(64), "state_of_charge_permille", 640}, {3, 534, reg(1234, 0), "export_mwh", 123_400_000}},
		"deye-sg04lp3-meter":   {{3, 625, reg(0xFA24), "power_mw", -1_500_000}, {3, 522, reg(1234, 1), "import_mwh", 6_677_000_000}, {3, 598, reg(2305), "voltage_l1_mv", 230_500}, {3, 609, reg(4998), "frequency_mhz", 49_980}},
		"eastron-sdm72d-v1":    {{4, 0x34, f32(1500.5), "power_mw", 1_500_500}, {4, 0x156, f32(2.5), "energy_mwh", 2_500_000}},
		"eastron-sdm72d-v2":    {{4, 0x48, f32(1.5), "import_mwh", 1_500_000}, {4, 0x3E, f32(0.5), "power_factor_permille", 500}},
		"eltako-dsz16":         {{4, 0, reg(0, 23050), "voltage_l1_mv", 230_500}, {4, 0x34, reg(0xFFFF, 0xFA24), "power_mw", -1_500_000}, {4, 0x48, reg(0, 1234), "import_mwh", 12_340_000}},
		"finder-7m38":          {{4, 2536, f32(1500.5), "power_mw", 1_500_500}, {4, 2752, f32(1234), "import_mwh", 1_234_000}, {4, 2584, f32(50), "frequency_mhz", 50_000}},
		"foxess-h3":            {{3, 31036, reg(100), "battery_power_mw", -100_000}, {3, 31038, reg(64), "state_of_charge_permille", 640}},
		"foxess-h3-meter":      {{3, 31026, reg(100, 200, 300), "power_mw", -600_000}, {3, 32012, reg(0, 1234), "import_mwh", 123_400_000}},
		"goodwe-et":            {{3, 35182, reg(0, 100), "battery_power_mw", -100_000}, {3, 35191, reg(0, 1234), "export_mwh", 123_400_000}},
		"goodwe-et-meter":      {{3, 36025, reg(0, 1500), "power_mw", -1_500_000}, {3, 36017, f32(1234), "import_mwh", 1_234_000}, {3, 36055, reg(52), "current_l1_ma", 5200}},
		"growatt-sph":          {{4, 1, reg(0, 15005), "power_mw", -1_500_500}, {4, 1009, reg(0, 500, 0, 0), "battery_power_mw", -50_000}, {4, 1009, reg(0, 0, 0, 500), "battery_power_mw", 50_000}},
		"growatt-sph-meter":    {{4, 1046, reg(0, 1234), "import_mwh", 123_400_000}, {4, 1050, reg(0, 7), "export_mwh", 700_000}, {4, 1021, reg(0, 0, 0, 0, 0, 0, 0, 0, 0, 500), "power_mw", -50_000}},
		"growatt-tl-x":         {{4, 35, reg(0, 15005), "power_mw", -1_500_500}, {4, 55, reg(0, 7), "export_mwh", 700_000}},
		"growatt-tl-xh":        {{4, 3001, reg(0, 15005), "power_mw", -1_500_500}, {4, 3053, reg(0, 7), "export_mwh", 700_000}},
		"growatt-tl-xh-meter":  {{4, 3041, reg(0, 500, 0, 0), "power_mw", 50_000}, {4, 3073, reg(0, 7), "export_mwh", 700_000}},
		"huawei-sun2000":       {{3, 32064, reg(0, 1500), "power_mw", -1_500_000}, {3, 37765, reg(0xFFFF, 0xFFFF), "battery_power_mw", -1000}, {3, 37760, reg(645), "state_of_charge_permille", 645}},
		"huawei-sun2000-meter": {{3, 37113, reg(0, 1500), "power_mw", -1_500_000}, {3, 37121, reg(0, 1234), "import_mwh", 12_340_000}, {3, 37119, reg(0, 7), "export_mwh", 70_000}, {3, 37107, reg(0, 100), "current_l1_ma", -1000}},
		"inepro-pro1":          {{3, 0x5012, f32(1.5), "power_mw", 1_500_000}},
		"inepro-pro380":        {{3, 0x5012, f32(1.5), "power_mw", 1_500_000}, {3, 0x600C, f32(12.5), "import_mwh", 12_500_000}, {3, 0x6018, f32(0.5), "export_mwh", 500_000}},
		"janitza-b-series":     {{3, 0x4A52, f32(1500.5), "power_mw", 1_500_500}, {3, 0x4A7C, f32(1234), "import_mwh", 1_234_000}, {3, 0x4A84, f32(7), "export_mwh", 7000}},
		"janitza-umg604":       {{3, 1369, f32(1500.5), "power_mw", 1_500_500}, {3, 1439, f32(50), "frequency_mhz", 50_000}},
		"orno-we-504":          {{3, 0, reg(2301, 52, 500, 1200), "power_mw", 1_200_000}, {3, 7, reg(0, 1234), "energy_mwh", 1_234_000}},
		"orno-we-516":          {{3, 0x1C, f32(1.5), "power_mw", 1_500_000}, {3, 0x108, f32(12.5), "import_mwh", 12_500_000}},
		"orno-we-525":          {{4, 0x10E, reg(0, 1234), "import_mwh", 12_340_000}, {4, 0x10A, reg(499), "frequency_mhz", 49_900}},
		"schneider-iem3000":    {{3, 0xBF3, f32(1.5), "power_mw", 1_500_000}, {3, 0xC83, reg(0, 0, 0, 1234), "import_mwh", 1_234_000}, {3, 0xBD3, f32(230.5), "voltage_l1_mv", 230_500}},
		"siemens-pac2200":      {{3, 65, f32(1500.5), "power_mw", 1_500_500}, {3, 801, f64(1234), "import_mwh", 1_234_000}, {4, 809, f64(7), "export_mwh", 7000}},
		"sma-inverter":         {{3, 30775, reg(0, 1500), "power_mw", -1_500_000}, {3, 30513, reg(0, 0, 0, 1234), "export_mwh", 1_234_000}},
		"sma-meter":            {{3, 30581, reg(0, 1234), "import_mwh", 1_234_000}, {3, 30865, reg(0, 1500, 0, 0), "power_mw", 1_500_000}},
		"socomec-countis-e34":  {{3, 0xC568, reg(0, 150), "power_mw", 1_500_000}, {3, 0xC702, reg(0, 1234), "import_mwh", 12_340_000}, {3, 0xC558, reg(0, 23050), "voltage_l1_mv", 230_500}},
		"sofar-g3":             {{3, 0x686, reg(0, 1234), "export_mwh", 123_400_000}},
		"sofar-g3-meter":       {{3, 0x488, reg(150), "power_mw", -1_500_000}, {3, 0x68E, reg(0, 1234), "import_mwh", 123_400_000}, {3, 0x49D, reg(125), "current_l2_ma", 1250}},
		"solax-x3":             {{4, 10, reg(100, 200), "power_mw", -300_000}, {4, 22, reg(0xFFFF), "battery_power_mw", -1000}},
		"solax-x3-meter":       {{4, 70, reg(1500, 0), "power_mw", -1_500_000}, {4, 74, reg(1234, 0), "import_mwh", 12_340_000}},
		"solis-rhi":            {{4, 33057, reg(0, 1500), "power_mw", -1_500_000}, {4, 33149, reg(0, 100), "battery_power_mw", 100_000}},
		"solis-rhi-meter":      {{4, 33263, reg(0, 1500), "power_mw", -1_500_000}, {4, 33283, reg(0, 1234), "import_mwh", 12_340_000}},
		"sungrow-sh":           {{4, 5016, reg(1500, 0), "power_mw", -1_500_000}, {4, 13022, reg(645), "state_of_charge_permille", 645}},
		"sungrow-sh-meter":     {{4, 13009, reg(1500, 0), "power_mw", -1_500_000}, {4, 13036, reg(1234, 0), "import_mwh", 123_400_000}, {4, 5602, reg(500, 0), "power_l1_mw", 500_000}},
		"victron-gx":           {{3, 820, reg(100, 200, 0xFFFF), "power_mw", 299_000}, {3, 842, reg(0xFFFF), "battery_power_mw", -1000}, {3, 843, reg(64), "state_of_charge_permille", 640}},
		"victron-gx-grid":      {{3, 2600, reg(100, 200, 300), "power_mw", 600_000}},
		"victron-gx-acload":    {{3, 3916, reg(0, 100, 0, 200, 0, 300), "import_mwh", 6_000_000}, {3, 3911, reg(52), "current_l1_ma", 5200}},
		"wago-879-30x0":        {{3, 0x5002, f32(230.5), "voltage_l1_mv", 230_500}},

		"abb-terra-ac":              {{3, 0x401C, reg(0, 1500), "power_mw", 1_500_000}, {3, 0x400E, reg(0, 16000), "current_limit_ma", 16_000}, {3, 0x4016, reg(0, 2305), "voltage_l1_mv", 230_500}},
		"abl-emh1":                  {{3, 4, reg(0x12C2), "status_code", 0xC2}, {3, 0x30, reg(10, 20, 30), "current_l1_ma", 3000}},
		"alfen-eve":                 {{3, 344, f32(1500.5), "power_mw", 1_500_500}, {3, 374, f64(1234), "import_mwh", 1_234_000}, {3, 1210, f32(16), "current_limit_ma", 16_000}},
		"amperfied-connect":         {{4, 17, reg(1, 0), "import_mwh", 65_536_000}},
		"bender-cc613":              {{3, 220, reg(0, 1500), "power_mw", 1_500_000}, {3, 218, reg(0, 1234), "import_mwh", 1_234_000}, {3, 212, reg(0, 5250), "current_l1_ma", 5250}},
		"generic-dc-bidirectional":  {{3, 4, reg(0xFFFF, 0xFC18), "power_mw", -1_000_000}, {3, 6, reg(0, 1234, 0, 5678), "export_mwh", 5_678_000}, {3, 3, reg(645), "state_of_charge_permille", 645}},
		"heidelberg-energy-control": {{4, 5, reg(7), "status_code", 7}, {4, 6, reg(160), "current_l1_ma", 16_000}, {4, 9, reg(0xFFF6), "temperature_mdegc", -1000}},
		"keba-p30":                  {{3, 1020, reg(0x0016, 0xE360), "power_mw", 1_500_000}, {3, 1036, reg(0, 12345), "import_mwh", 1_234_500}, {3, 1046, reg(0, 995), "power_factor_permille", 995}},
		"mennekes-compact":          {{3, 0x512, f32(1500.5), "power_mw", 1_500_500}, {3, 0x1000, f32(12.5), "import_mwh", 12_500_000}},
		"peblar":                    {{4, 30014, reg(0, 1500), "power_mw", 1_500_000}, {4, 30000, reg(0, 0, 0, 1234), "import_mwh", 1_234_000}, {4, 30022, reg(0, 5250), "current_l1_ma", 5250}},
		"phoenix-charx":             {{3, 1244, reg(0x0016, 0xE360), "power_mw", 1_500_000}, {3, 1250, reg(0, 0, 0, 1234), "import_mwh", 1_234_000}, {3, 1232, reg(3, 0x8464), "voltage_l1_mv", 230_500}},
		"phoenix-em-cp-pp-eth":      {{4, 120, reg(150, 0), "power_mw", 1_500_000}, {4, 128, reg(1234, 0), "import_mwh", 12_340_000}, {3, 300, reg(16), "current_limit_ma", 16_000}},
		"phoenix-ev-cc":             {{3, 22000, reg(16), "current_limit_ma", 16_000}},
		"schneider-evlink-v3":       {{3, 3059, f32le(1.5), "power_mw", 1_500_000}, {3, 3203, reg(1234, 0, 0, 0), "import_mwh", 1_234_000}},
		"smartevse":                 {{4, 0x105, reg(256 * 5), "current_l1_ma", 5000}, {4, 0x10D, reg(512, 0), "import_mwh", 2_000_000}, {4, 0x103, reg(0x0103), "status_code", 3}},
		"vestel-evc04":              {{3, 1036, reg(0, 1234), "import_mwh", 123_400_000}},
		"victron-evcs":              {{3, 5014, reg(1500), "power_mw", 1_500_000}, {3, 5016, reg(16), "current_limit_ma", 16_000}},
		"victron-evcs-gx":           {{3, 3821, reg(1500), "power_mw", 1_500_000}, {3, 3816, reg(0, 150), "session_energy_mwh", 1_500_000}},
		"webasto-next":              {{3, 1036, reg(0, 1234), "import_mwh", 1_234_000}, {3, 1010, reg(5250), "current_l2_ma", 5250}, {3, 1028, reg(0, 500), "power_l2_mw", 500_000}},
	}
	for id, blocks := range cases {
		p := get(t, id)
		for _, b := range blocks {
			points, err := p.Decode([]meter.RawBlock{{Function: b.fn, Address: b.addr, Data: words(b.w...)}})
			if err != nil {
				t.Errorf("%s: %v", id, err)
				continue
			}
			if got, ok := value(t, points, b.name); !ok || got != b.want {
				t.Errorf("%s: %s = %d, %v, want %d", id, b.name, got, ok, b.want)
			}
		}
	}
	elsewhere := map[string]bool{ // see TestDecodeKnownRegisters, TestDecodeSunSpec
		"eastron-sdm120": true, "eastron-sdm220": true, "eastron-sdm230": true, "eastron-sdm630": true, "simpleevse": true,
		"chint-dtsu666-ct": true, "carlogavazzi-em24-e1": true, "victron-gx-pv": true,
	}
	for _, p := range profile.All() {
		if cases[p.ID] == nil && p.SunSpec == nil && !elsewhere[p.ID] {
			t.Errorf("%s: no registers are written down", p.ID)
		}
	}
}
