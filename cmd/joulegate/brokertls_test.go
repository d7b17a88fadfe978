package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/mqtt"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
	n    int64
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: dir}
	a.file, _ = a.issue(name, true, time.Now().Add(time.Hour))
	return a
}

// issue returns the files of a certificate and of its key.
func (a *authority) issue(name string, ca bool, until time.Time) (cert, key string) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.n++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, signer := a.cert, a.key
	if ca {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer, a.key = c, k, k
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &k.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	if ca {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			a.t.Fatal(err)
		}
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, key = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	for file, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key
}

// logLines is a log that can be searched.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const brokerPatience = 60 * time.Second

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(brokerPatience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within %s", what, brokerPatience)
		}
	}
}

// runService runs the line of a gateway until the test ends.
func runService(t *testing.T, c mqtt.Config) *mqtt.Service {
	t.Helper()
	s, err := mqtt.New(c)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestClientCertificates: mosquitto lets in who has a certificate of its
// authority, and the log of everybody else says what to do.
func TestClientCertificates(t *testing.T) {
	const program = "/usr/sbin/mosquitto"
	if _, err := os.Stat(program); err != nil {
		t.Skip("needs mosquitto")
	}
	dir := t.TempDir()
	ours, theirs := newAuthority(t, dir, "authority"), newAuthority(t, dir, "stranger")
	serverCert, serverKey := ours.issue("broker", false, time.Now().Add(time.Hour))
	cert, key := ours.issue("house1", false, time.Now().Add(time.Hour))
	foreignCert, foreignKey := theirs.issue("house2", false, time.Now().Add(time.Hour))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(address)
	conf, acl := filepath.Join(dir, "conf"), filepath.Join(dir, "acl")
	for file, text := range map[string]string{
		conf: fmt.Sprintf("user root\nlistener %s 127.0.0.1\nallow_anonymous false\nrequire_certificate true\nuse_identity_as_username true\ncafile %s\ncertfile %s\nkeyfile %s\nacl_file %s\n",
			port, ours.file, serverCert, serverKey, acl),
		acl: "user house1\ntopic readwrite joulegate/1/house1/#\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	broker := exec.Command(program, "-c", conf)
	var out logLines
	broker.Stdout, broker.Stderr = &out, &out
	if err := broker.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = broker.Process.Kill()
		_ = broker.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	}()
	eventually(t, "broker", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	for _, c := range []struct {
		what          string
		ca, cert, key string
		broker        string
		says          string // "": it connects
	}{
		{"everything right", ours.file, cert, key, "tls://" + address, ""},
		{"no certificate", ours.file, "", "", "tls://" + address, "mqtt.cert_file"},
		{"one of another authority", ours.file, foreignCert, foreignKey, "tls://" + address, "mqtt.cert_file"},
		{"a broker of another authority", theirs.file, cert, key, "tls://" + address, "mqtt.ca_file"},
		{"a broker without TLS", ours.file, cert, key, "tls://" + plainServer(t), "tcp:// instead of tls://"},
	} {
		t.Run(c.what, func(t *testing.T) {
			var log logLines
			logger := slog.New(slog.NewTextHandler(&log, nil))
			m := config.MQTT{Broker: c.broker, CAFile: c.ca, CertFile: c.cert, KeyFile: c.key}
			conf, err := clientTLS(m, logger)
			if err != nil {
				t.Fatal(err)
			}
			s := runService(t, mqtt.Config{Gateway: "house1", URL: m.Broker, TLS: conf, Log: logger, Backoff: mqtt.Backoff{First: time.Millisecond, Most: 100 * time.Millisecond}})
			if c.says == "" {
				eventually(t, "connection", func() bool { return s.Stats().Connected && s.Stats().Waiting == 0 })
				return
			}
			eventually(t, "word about "+c.says, func() bool { return strings.Contains(log.String(), c.says) })
			if n := strings.Count(log.String(), "level=WARN"); n > 3 {
				t.Errorf("the same fault is told %d times:\n%s", n, log.String())
			}
		})
	}
}

// plainServer answers everything in the clear.
func plainServer(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	return l.Addr().String()
}

// TestCertificateFilesAreChecked: every error names the setting, the file and
// what to do.
func TestCertificateFilesAreChecked(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, dir, "authority")
	cert, key := a.issue("house1", false, time.Now().Add(time.Hour))
	_, other := a.issue("house2", false, time.Now().Add(time.Hour))
	oldCert, oldKey := a.issue("old", false, time.Now().Add(-time.Hour))
	open, junk := filepath.Join(dir, "open.key"), filepath.Join(dir, "junk")
	b, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{open: b, junk: []byte("junk")} {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		ca, cert, key string
		says          []string
	}{
		{a.file, cert, key, nil},
		{a.file, cert, open, []string{"mqtt.key_file", open, "0644", "chmod 600"}},
		{a.file, cert, other, []string{"mqtt.cert_file", cert, other, "does not match"}},
		{a.file, cert, dir + "/none", []string{"mqtt.key_file", dir + "/none", "no such file"}},
		{dir + "/none", cert, key, []string{"mqtt.ca_file", dir + "/none"}},
		{junk, cert, key, []string{"mqtt.ca_file", junk, "PEM"}},
		{a.file, junk, key, []string{"mqtt.cert_file", junk, "PEM"}},
	} {
		for where, f := range map[string]func(config.MQTT, *slog.Logger) (*tls.Config, error){"tls://127.0.0.1:8883": clientTLS, "": serverTLS} {
			_, err := f(config.MQTT{Broker: where, CAFile: c.ca, CertFile: c.cert, KeyFile: c.key}, slog.New(slog.DiscardHandler))
			if (err == nil) != (c.says == nil) {
				t.Errorf("%+v: %v", c, err)
			}
			for _, w := range c.says {
				if err != nil && !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		}
	}
	// A gateway whose certificate has expired starts, and meters.
	var log logLines
	if _, err := clientTLS(config.MQTT{Broker: "tls://h:1", CertFile: oldCert, KeyFile: oldKey}, slog.New(slog.NewTextHandler(&log, nil))); err != nil || !strings.Contains(log.String(), oldCert) {
		t.Errorf("expired: %v, %s", err, log.String())
	}
}

// TestEmbeddedBrokerKnowsCertificates: a certificate of the installer's
// authority is a login for the user that it names, and for nobody else.
func TestEmbeddedBrokerKnowsCertificates(t *testing.T) {
	dir := t.TempDir()
	a, stranger := newAuthority(t, dir, "authority"), newAuthority(t, dir, "stranger")
	cert, key := a.issue("house1", false, time.Now().Add(time.Hour))
	server, err := serverTLS(config.MQTT{CAFile: a.file, CertFile: cert, KeyFile: key}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	hash, err := mqtt.HashPassword("secret")
	if err != nil {
		t.Fatal(err)
	}
	s := runService(t, mqtt.Config{Gateway: "house1", Embedded: &mqtt.BrokerConfig{Listen: "127.0.0.1:0", TLS: server, Users: []mqtt.User{
		{Name: "dash", Hash: hash, Rules: mqtt.ObserverRules()}, {Name: "anna", Hash: hash, Rules: mqtt.InstallerRules("anna")},
	}}})
	roots, err := authorities("ca", a.file)
	if err != nil {
		t.Fatal(err)
	}
	login := func(by *authority, name, user, password string) error {
		conf := &tls.Config{RootCAs: roots}
		if name != "" {
			cert, key := by.issue(name, false, time.Now().Add(time.Hour))
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				t.Fatal(err)
			}
			conf.Certificates = []tls.Certificate{pair}
		}
		c := paho.NewClient(paho.NewClientOptions().AddBroker("tls://" + s.Addr()).SetTLSConfig(conf).SetUsername(user).SetPassword(password).SetClientID("x").SetProtocolVersion(4).SetAutoReconnect(false))
		tok := c.Connect()
		if !tok.WaitTimeout(brokerPatience) {
			t.Fatal("no answer")
		}
		if tok.Error() == nil {
			// What it may do is what its name may.
			sub := c.Subscribe("joulegate/1/house1/config/reported", 0, nil).(*paho.SubscribeToken)
			sub.WaitTimeout(brokerPatience)
			if granted := sub.Result()["joulegate/1/house1/config/reported"] < 0x80; granted != (name == "anna" || name == "house1" || user == "anna") {
				t.Errorf("%s/%s reads the configuration: %t", name, user, granted)
			}
			c.Disconnect(0)
		}
		return tok.Error()
	}
	for _, c := range []struct {
		what, name, user, password string
		by                         *authority
		ok                         bool
	}{
		{"certificate", "dash", "", "", a, true},
		{"certificate and the same name", "anna", "anna", "", a, true},
		{"certificate and another name", "dash", "anna", "", a, false},
		{"certificate of nobody known", "eve", "", "", a, false},
		{"certificate of the gateway itself", "house1", "", "", a, true},
		{"certificate of a stranger", "anna", "", "", stranger, false},
		{"password", "", "anna", "secret", a, true},
		{"neither", "", "anna", "", a, false},
	} {
		if err := login(c.by, c.name, c.user, c.password); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
