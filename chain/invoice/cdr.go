package invoice

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// CDR is a charge detail record of OCPI 2.2.1 (section 10.3.1). Numbers are
// written from integers, with at most four decimals as the standard has them.
type CDR struct {
	CountryCode       string      `json:"country_code"`
	PartyID           string      `json:"party_id"`
	ID                string      `json:"id"`
	Start             string      `json:"start_date_time"`
	End               string      `json:"end_date_time"`
	SessionID         string      `json:"session_id"`
	Token             cdrToken    `json:"cdr_token"`
	AuthMethod        string      `json:"auth_method"`
	Location          cdrLocation `json:"cdr_location"`
	Currency          string      `json:"currency"`
	Periods           []cdrPeriod `json:"charging_periods"`
	TotalCost         cdrPrice    `json:"total_cost"`
	TotalEnergy       json.Number `json:"total_energy"` // kWh
	TotalTime         json.Number `json:"total_time"`   // hours
	Remark            string      `json:"remark,omitempty"`
	InvoiceReference  string      `json:"invoice_reference_id,omitempty"`
	Credit            bool        `json:"credit,omitempty"`
	CreditReferenceID string      `json:"credit_reference_id,omitempty"`
	LastUpdated       string      `json:"last_updated"`
}

type cdrToken struct {
	CountryCode string `json:"country_code"`
	PartyID     string `json:"party_id"`
	UID         string `json:"uid"`
	Type        string `json:"type"`
	ContractID  string `json:"contract_id"`
}

type cdrLocation struct {
	ID          string `json:"id"`
	Name        string `json:"name,omitempty"`
	Address     string `json:"address"`
	City        string `json:"city"`
	PostCode    string `json:"postal_code,omitempty"`
	Country     string `json:"country"`
	Coordinates struct {
		Latitude  string `json:"latitude"`
		Longitude string `json:"longitude"`
	} `json:"coordinates"`
	EVSEUID   string `json:"evse_uid"`
	EVSEID    string `json:"evse_id"`
	Connector string `json:"connector_id"`
	Standard  string `json:"connector_standard"`
	Format    string `json:"connector_format"`
	Power     string `json:"connector_power_type"`
}

type cdrPeriod struct {
	Start      string         `json:"start_date_time"`
	Dimensions []cdrDimension `json:"dimensions"`
}

type cdrDimension struct {
	Type   string      `json:"type"`
	Volume json.Number `json:"volume"`
}

type cdrPrice struct {
	ExclVAT json.Number `json:"excl_vat"`
	InclVAT json.Number `json:"incl_vat"`
}

// CDRs returns the charge detail records of a document's sessions and refunds;
// of house energy there are none. The name function tells the member whose
// charger it was.
func CDRs(v ledger.InvoiceView, rules ledger.Rules, book *Book, session func(chain.ID) (ledger.SessionView, bool), name func(chain.Key) string) ([]CDR, error) {
	out := []CDR{}
	if len(book.OCPI.CountryCode) != 2 || len(book.OCPI.PartyID) != 3 {
		return nil, fmt.Errorf("ocpi: country_code %q and party_id %q: two letters and three characters, in the parties file", book.OCPI.CountryCode, book.OCPI.PartyID)
	}
	for _, i := range v.Items {
		if i.Kind != ledger.ItemSession && i.Kind != ledger.ItemRefund {
			continue
		}
		s, ok := session(i.Session)
		if !ok {
			return nil, fmt.Errorf("session %s is not in the ledger", i.Session)
		}
		c, err := cdr(v, i, &s, rules, book, name(s.Gateway))
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func cdr(v ledger.InvoiceView, i ledger.InvoiceItem, s *ledger.SessionView, rules ledger.Rules, book *Book, member string) (CDR, error) {
	site, ok := book.Sites[s.Gateway.String()]
	if !ok {
		site, ok = book.Sites[member]
	}
	if !ok || len(site.Country) != 3 || site.City == "" || site.Street == "" || site.Latitude == "" || site.Longitude == "" {
		return CDR{}, fmt.Errorf("sites: %q needs street, city, country (three letters), latitude and longitude in the parties file", member)
	}
	at := func(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05Z") }
	person := cut(s.Driver.String(), 36)
	c := CDR{
		CountryCode: book.OCPI.CountryCode, PartyID: book.OCPI.PartyID, ID: s.ID.String(), Start: at(s.OpenedMs), End: at(max(s.RegisterMs, s.OpenedMs)),
		SessionID: s.ID.String(), AuthMethod: "AUTH_REQUEST", Currency: rules.Currency, InvoiceReference: v.ID(), LastUpdated: at(v.IssuedMs),
		Token: cdrToken{book.OCPI.CountryCode, book.OCPI.PartyID, person, "APP_USER", person},
	}
	evse := fmt.Sprintf("%s*%s*E%s*%d", book.OCPI.CountryCode, book.OCPI.PartyID, strings.ToUpper(s.Gateway.Short()), s.Connector)
	c.Location = cdrLocation{
		ID: cut(s.Gateway.String(), 36), Name: site.Name, Address: cut(site.Street, 45), City: cut(site.City, 45), PostCode: cut(site.PostCode, 10), Country: site.Country,
		EVSEUID: fmt.Sprintf("%s-%d", s.Gateway.Short(), s.Connector), EVSEID: evse, Connector: fmt.Sprint(s.Connector),
		Standard: cmp.Or(site.Standard, "IEC_62196_T2"), Format: cmp.Or(site.Format, "SOCKET"), Power: cmp.Or(site.Power, "AC_3_PHASE"),
	}
	c.Location.Coordinates.Latitude, c.Location.Coordinates.Longitude = site.Latitude, site.Longitude

	gross, wh := int64(i.Amount-i.Credit), int64(s.Wh-s.FirmWh)
	ms := max(s.RegisterMs-s.OpenedMs, 0)
	if i.Kind == ledger.ItemRefund {
		// A credit CDR states the amount that is given back, and no energy:
		// what was delivered stays delivered.
		c.ID, c.Credit, c.CreditReferenceID, wh, ms = v.ID(), true, s.ID.String(), 0, 0
	}
	var remarks []string
	if v.Simulated || !i.Billable {
		remarks = append(remarks, NotForBilling)
	}
	if v.Reason != "" {
		remarks = append(remarks, v.Reason)
	}
	c.Remark = cut(strings.Join(remarks, "; "), 255)
	c.TotalEnergy, c.TotalTime = json.Number(Decimal(wh, 3)), json.Number(Decimal(ratio(ms, 1, 360), 4))
	c.Periods = []cdrPeriod{{c.Start, []cdrDimension{{"ENERGY", c.TotalEnergy}, {"TIME", c.TotalTime}}}}
	sign := int64(1)
	if c.Credit {
		sign = -1
	}
	fourth := func(nano int64) json.Number { return json.Number(Decimal(sign*((nano+50_000)/100_000), 4)) }
	ppm := int64(0)
	if i.Taxed {
		ppm = i.TaxPPM
	}
	c.TotalCost = cdrPrice{fourth(ratio(gross, 1_000_000, 1_000_000+ppm)), fourth(gross)}
	return c, nil
}

// cut keeps a text within a field's length.
func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n])
	}
	return s
}
