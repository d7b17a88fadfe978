package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// dialBroker connects to a broker elsewhere.
func dialBroker(ctx context.Context, u *url.URL, conf *tls.Config) (net.Conn, error) {
	port := "1883"
	secured := u.Scheme == "ssl" || u.Scheme == "tls" || u.Scheme == "mqtts"
	if secured {
		port = "8883"
	}
	if p := u.Port(); p != "" {
		port = p
	}
	address := net.JoinHostPort(u.Hostname(), port)
	if !secured {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	return (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", address)
}

// explain adds to an error of connecting what somebody can do about it.
func explain(err error) error {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		alert   tls.AlertError
		header  tls.RecordHeaderError
	)
	hint := ""
	switch {
	case errors.As(err, &unknown):
		hint = "the broker's certificate is of an authority that is not known here: name the authority's file in mqtt.ca_file"
	case errors.As(err, &name):
		hint = "the broker's certificate is for another name: write mqtt.broker with a name that is in it"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		hint = "the broker's certificate is not valid at this time: look at the clock, then at the broker"
	case errors.As(err, &alert), strings.Contains(err.Error(), "remote error: tls:"):
		hint = "the broker wants another certificate of this gateway: look at mqtt.cert_file and mqtt.key_file"
	case errors.As(err, &header):
		hint = "the broker does not speak TLS at this port: tcp:// instead of tls://, or another port"
	case errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword), errors.Is(err, packets.ErrorRefusedNotAuthorised):
		hint = "the broker refuses the login: look at mqtt.user and mqtt.password_file, and at its list of users"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}
