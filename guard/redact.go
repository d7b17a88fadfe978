package guard

import (
	"path"
	"slices"
	"strings"
)

// hidden stands where a secret stood.
const hidden = "***"

// secretWords mark an argument whose value is a secret when they are a part
// of its name.
var secretWords = []string{"pass", "pwd", "secret", "token", "apikey", "api-key", "api_key", "credential", "private", "auth", "bearer", "psk"}

// Redact hides secrets in a command line, in a URL or in a header: values of
// arguments whose name speaks of a secret, passwords in URLs, and words that
// look like a key. It hides too much rather than too little, because what is
// recorded is signed and cannot be taken back.
func Redact(line string) string {
	words := strings.Fields(line)
	before := ""
	for i, w := range words {
		switch {
		case takesSecret(before) && !strings.HasPrefix(w, "-"):
			words[i] = hidden
			if l := strings.ToLower(w); l != "basic" && l != "bearer" { // these are followed by the secret
				w = ""
			}
		case strings.HasPrefix(w, "-p") && len(w) > 2 && slices.Contains(gluesPassword, path.Base(words[0])):
			words[i] = "-p" + hidden
		default:
			words[i] = redactWord(w)
		}
		before = w
	}
	return strings.Join(words, " ")
}

// gluesPassword are programs that take a password in the word -pPASSWORD.
var gluesPassword = []string{"mysql", "mysqldump", "mysqladmin", "mariadb", "mariadb-dump", "sshpass"}

// takesSecret tells whether the word after w is a secret: --password, -p of
// the usual clients, "Authorization:", "Bearer".
func takesSecret(w string) bool {
	l := strings.ToLower(strings.Trim(w, `:"'`))
	switch l {
	case "-p", "-pw", "-u", "basic", "bearer":
		return true
	}
	return speaksOfSecret(l) && !strings.ContainsRune(l, '=') && (strings.HasPrefix(l, "-") || strings.HasSuffix(w, ":"))
}

func speaksOfSecret(l string) bool {
	for _, s := range secretWords {
		if strings.Contains(l, s) {
			return true
		}
	}
	return false
}

func redactWord(w string) string {
	if at, scheme := strings.LastIndexByte(w, '@'), strings.Index(w, "://"); scheme >= 0 && at > scheme {
		w = w[:scheme+3] + hidden + w[at:]
	}
	if name, value, ok := cutAny(w, "=:"); ok && value != "" && speaksOfSecret(strings.ToLower(name)) {
		return w[:len(name)+1] + hidden
	}
	if _, value, ok := strings.Cut(w, "="); ok && looksRandom(value) {
		return w[:len(w)-len(value)] + hidden
	}
	if looksRandom(w) {
		return hidden
	}
	return w
}

func cutAny(s, chars string) (before, after string, found bool) {
	if i := strings.IndexAny(s, chars); i > 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

// looksRandom tells whether w may be a key: long, of the alphabet of hex or
// base64, and mixed as words and paths are not.
func looksRandom(w string) bool {
	w = strings.Trim(w, `"'`)
	if len(w) < 20 {
		return false
	}
	digits, letters, changes := 0, 0, 0
	var last rune
	for i, r := range w {
		class := 'o'
		switch {
		case r >= '0' && r <= '9':
			digits++
			class = 'd'
		case r >= 'a' && r <= 'z':
			letters++
			class = 'l'
		case r >= 'A' && r <= 'Z':
			letters++
			class = 'u'
		case r == '+' || r == '=' || r == '_' || r == '-':
		default:
			return false
		}
		if i > 0 && class != last {
			changes++
		}
		last = class
	}
	return letters > 0 && digits >= 3 && changes*4 >= len(w)
}
