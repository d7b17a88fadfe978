package chain

// currencies are the active circulating currencies of ISO 4217:2015 (list
// one, amendment 176) by their minor digits: how many decimals a bank moves.
// Codes of metals, funds and tests are left out: nobody charges a car with
// them.
var currencies = map[int]string{
	0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
	2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE CZK DKK " +
		"DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK " +
		"LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR " +
		"RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED " +
		"VES WST XCD XCG YER ZAR ZMW ZWG",
	3: "BHD IQD JOD KWD LYD OMR TND",
	4: "CLF UYW",
}

// MinorDigits returns how many decimals a currency of ISO 4217 has, and
// whether there is such a currency.
func MinorDigits(code string) (int, bool) {
	if len(code) != 3 {
		return 0, false
	}
	for digits, list := range currencies {
		for i := 0; i+3 <= len(list); i += 4 {
			if list[i:i+3] == code {
				return digits, true
			}
		}
	}
	return 0, false
}

// MinorUnit returns the smallest amount that a bank can move in a currency of
// that many minor digits (0..9): 10,000,000 nano for a cent.
func MinorUnit(digits int) Nano {
	unit := Nano(1_000_000_000)
	for range digits {
		unit /= 10
	}
	return unit
}
