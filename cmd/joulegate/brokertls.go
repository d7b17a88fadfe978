package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/config"
)

// clientTLS is how this gateway proves who it is at a broker elsewhere, and
// how the broker has to; nil: neither.
func clientTLS(c config.MQTT, log *slog.Logger) (*tls.Config, error) {
	if !strings.HasPrefix(c.Broker, "tls://") {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if c.CAFile != "" {
		if t.RootCAs, err = authorities("mqtt.ca_file", c.CAFile); err != nil {
			return nil, err
		}
	}
	if c.CertFile == "" {
		return t, nil
	}
	if _, err := keyPair(c, log); err != nil {
		return nil, err
	}
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return keyPair(c, log) }
	return t, nil
}

// serverTLS is the certificate of the embedded broker, and the authority whose
// client certificates are logins; nil: it has none.
func serverTLS(c config.MQTT, log *slog.Logger) (*tls.Config, error) {
	if c.CertFile == "" {
		return nil, nil
	}
	if _, err := keyPair(c, log); err != nil {
		return nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	t.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return keyPair(c, log) }
	if c.CAFile != "" {
		var err error
		if t.ClientCAs, err = authorities("mqtt.ca_file", c.CAFile); err != nil {
			return nil, err
		}
		t.ClientAuth = tls.VerifyClientCertIfGiven // passwords stay possible
	}
	return t, nil
}

func authorities(key, file string) (*x509.CertPool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s: %s holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)", key, file)
	}
	return pool, nil
}

// keyPair reads certificate and key, so that renewed ones count at the next
// connection. One that has expired is told and used: whether it is good enough
// is the other side's affair, and a gateway meters without a broker too.
func keyPair(c config.MQTT, log *slog.Logger) (*tls.Certificate, error) {
	i, err := os.Stat(c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("mqtt.key_file: %w", err)
	}
	if i.Mode().Perm()&0o037 != 0 {
		return nil, fmt.Errorf("mqtt.key_file: others can read or change %s (mode %04o): chmod 600 %s", c.KeyFile, i.Mode().Perm(), c.KeyFile)
	}
	p, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("mqtt.cert_file %s and mqtt.key_file %s: %w", c.CertFile, c.KeyFile, err)
	}
	if leaf := p.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
		log.Warn("the certificate has expired: renew it", "file", c.CertFile, "until", leaf.NotAfter.Format(time.RFC3339))
	}
	return &p, nil
}
