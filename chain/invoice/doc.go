// Package invoice turns the documents of the ledger into forms that other
// programs read: EN 16931 invoices and credit notes in UBL 2.1, CSV, and OCPI
// charge detail records.
//
//	ledger.InvoiceView   what, how much, gross          (on the ledger, for ever)
//	        +                                    ──► Document ──► UBL, CSV, CDR
//	Book                 who: names, addresses          (a file of the operator)
//
// The ledger knows accounts, never people. Names, addresses and VAT ids live
// in the operator's [Book] and meet the ledger's numbers only here, in what
// the operator sends. Erasing a person is editing that file.
//
// # From gross to net
//
// Prices include tax and the ledger rounds a document's total T once. EN 16931
// counts the other way: lines are net, tax is computed on their sum. For each
// group of lines with one tax rate r, in minor units:
//
//	gross   the group's part of T, by largest remainder
//	net     round(gross / (1+r))
//	tax     round(net * r)                           BR-CO-17
//	lines   net + allowance, shared over the lines by largest remainder
//
// Where net + tax misses the gross by a minor unit (0.03 at 19 % has no net),
// the difference is the document's rounding amount, BT-114. Discount credit
// is an allowance, because it lowers what is paid; the rest has been paid from
// the prepaid balance, BT-113; so the amount due, BT-115, is always zero.
//
// The package is pure: it decides nothing by clock or file.
package invoice
