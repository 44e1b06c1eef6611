package configfile

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sordino/internal/projected"
	"sordino/masq"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func decode(text string, s Settings) (Result, error) {
	return FromSources([]Source{{"f", []byte(text)}}, s)
}

func listed(c masq.Config) string {
	var out []string
	for _, r := range c.NonMasquerade {
		out = append(out, r.Prefix.String())
	}
	return strings.Join(out, " ")
}

const defaults = "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"

func TestWhatUpstreamAccepts(t *testing.T) {
	for _, tc := range []struct {
		name, text, list string
		check            func(masq.Config) bool
	}{
		{"empty", "", defaults, nil},
		{"a comment", "# nothing\n", defaults, nil},
		{"dashes", "---\n", defaults, nil},
		{"null", "null\n", defaults, nil},
		{"braces", "{}", defaults, nil},
		{"a list", "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 1.2.3.4/32\n", "10.0.0.0/8 1.2.3.4/32", nil},
		{"flow", "nonMasqueradeCIDRs: [10.0.0.0/8]", "10.0.0.0/8", nil},
		{"JSON", `{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "masqLinkLocal": true}`, "10.0.0.0/8", func(c masq.Config) bool { return c.MasqLinkLocal }},
		{"JSON behind blanks", "\n\t {\"cidrLimit\":\t3}", defaults, func(c masq.Config) bool { return c.CIDRLimit == 3 }},
		{"YAML in braces", "{nonMasqueradeCIDRs: [10.0.0.0/8]}", "10.0.0.0/8", nil},
		{"an empty list", "nonMasqueradeCIDRs: []", "", func(c masq.Config) bool { return c.NonMasqueradeGiven }},
		{"no list", "nonMasqueradeCIDRs:", "", func(c masq.Config) bool { return c.NonMasqueradeGiven }},
		{"any case", "NONMASQUERADEcidrs: [1.0.0.0/8]\nmasqlinklocal: yes\n", "1.0.0.0/8", func(c masq.Config) bool { return c.MasqLinkLocal }},
		{"BOM and CRLF", "\xef\xbb\xbfnonMasqueradeCIDRs:\r\n- 1.0.0.0/8\r\nresyncInterval: 5s\r\n", "1.0.0.0/8", func(c masq.Config) bool { return c.ResyncInterval == 5*time.Second }},
		{"anchors", "nodeCIDRs: &a [9.0.0.0/8]\nnonMasqueradeCIDRs: *a\n", "9.0.0.0/8", nil},
		{"the last of two", "cidrLimit: 1\ncidrLimit: 2\n", defaults, func(c masq.Config) bool { return c.CIDRLimit == 2 }},
		{"the first document", "cidrLimit: 1\n---\ncidrLimit: 2\n", defaults, func(c masq.Config) bool { return c.CIDRLimit == 1 }},
		{"unknown keys", "foo: 1\nnonMasqueradeCIDR: [1.0.0.0/8]\n", defaults, nil},
		{"words of YAML 1.1", "masqLinkLocal: On\nmasqLinkLocalIPv6: no\n", defaults, func(c masq.Config) bool { return c.MasqLinkLocal && !c.MasqLinkLocalIPv6 }},
		{"too short an interval", "resyncInterval: 0s\n", defaults, func(c masq.Config) bool { return c.ResyncInterval == time.Second }},
		{"ours", "masqueradeCIDRs: [1.0.0.0/8]\nenforceNonMasquerade: true\noutputInterfaces: eth0\nsnatAddress: [10.1.0.0/16]\npodCIDRs: ['192.168.0.0/16', 'fd00::/8']\n", defaults,
			func(c masq.Config) bool {
				return len(c.Masquerade) == 1 && c.EnforceNonMasquerade && c.OutputInterfaces[0] == "eth0" && c.SNATAddress[0].Prefix.String() == "10.1.0.0/16" && len(c.Cluster.Pod) == 2
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := decode(tc.text, Settings{})
			if err != nil {
				t.Fatal(err)
			}
			if got := listed(r.Config); got != tc.list || tc.check != nil && !tc.check(r.Config) {
				t.Errorf("list %q, want %q; %+v", got, tc.list, r.Config)
			}
		})
	}
}

func TestWhatIsRejected(t *testing.T) {
	for _, tc := range []struct{ text, place, message, fix string }{
		{"nonMasqueradeCIDRs:\n-\n- 10.0.0.0/8\n", "f:2:2", "has an empty item", "remove the line"},
		{"nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- \"\"\n", "f:3:3", "has an empty item", ""},
		{"nonMasqueradeCIDRs:\n  - 10.0.0.1/8\n", "f:2:5", `CIDR "10.0.0.1/8" is not aligned to a CIDR block, ip: "10.0.0.1" network: "10.0.0.0/8"`, "write 10.0.0.0/8"},
		{"nonMasqueradeCIDRs: [10.0.0.0/08]", "f:1:22", `CIDR "10.0.0.0/08" could not be parsed`, "write 10.0.0.0/8"},
		{"nonMasqueradeCIDRs: ['::ffff:10.0.0.0/104']", "f:1:22", "could not be parsed", "write 10.0.0.0/8"},
		{"nonMasqueradeCIDRs: [10.0.0.1]", "f:1:22", "could not be parsed", "write 10.0.0.1/32"},
		{"nonMasqueradeCIDRs: [10]", "f:1:22", "is a number", "write a range"},
		{"nonMasqueradeCIDRs: 10.0.0.0/8", "f:1:21", "is a text, not a list", "line of its own"},
		{"nonMasqueradeCIDRs: ['fd00::/8']", "f:1:22", "ipv6 is not enabled, but ipv6 cidr fd00::/8 provided. Enable ipv6 using --enable-ipv6 agent flag", ""},
		{"cidrLimit: 1\nnonMasqueradeCIDRs: [1.0.0.0/8, 2.0.0.0/8]", "f:2:21", "the daemon can only accept up to 1 CIDRs (excluding link-local), but got 2 CIDRs (excluding link local)", "cidrLimit: 2"},
		{`masqLinkLocal: "true"`, "f:1:16", "not a boolean", "without quotes"},
		{"resyncInterval: 60", "f:1:17", "not a duration", "60s"},
		{`resyncInterval: "60"`, "f:1:17", "not a duration", "60s"},
		{"cidrLimit: many", "f:1:12", "not a whole number", ""},
		{"a: b: c", "f:1:1", "not valid YAML", ""},
		{"nonMasqueradeCIDRs:\n\t- 10.0.0.0/8\n", "f:2:1", "not valid YAML", "spaces"},
		{"- 10.0.0.0/8", "f:1:1", "is a list, not a mapping", ""},
		{"{\"cidrLimit\": 1,\n  \"x\" 2}", "f:2:7", "not valid JSON", ""},
		{"masqueradeCIDRs: []", "f:1:18", "nothing would be masqueraded", ""},
		{"outputInterfaces: [eth0, 'eth*']", "f:1:26", "not an interface name", "patterns"},
		{"snatAddress: [10.0.0.1, 10.0.0.2]", "f:1:25", "another one of the family", ""},
		{"x: &a [*a]\nnonMasqueradeCIDRs: *a", "f:", "", ""},
	} {
		_, err := decode(tc.text, Settings{})
		if err == nil {
			t.Errorf("%q is accepted", tc.text)
			continue
		}
		problems := Problems(err)
		if len(problems) == 0 {
			t.Errorf("%q: no Problem in %v", tc.text, err)
			continue
		}
		if s := problems[0].Error(); !strings.HasPrefix(s, tc.place) || !strings.Contains(s, tc.message) || !strings.Contains(problems[0].Fix, tc.fix) {
			t.Errorf("%q:\n got %s (fix %q)\nwant %s … %s … %s", tc.text, s, problems[0].Fix, tc.place, tc.message, tc.fix)
		}
	}
}

func TestWarnings(t *testing.T) {
	for text, want := range map[string]string{
		"nonMasqueradeCIDR: []":                     "is nonMasqueradeCIDRs meant?",
		"apiVersion: v1\nkind: ConfigMap\ndata: {}": "whole Kubernetes manifest",
		"config:\n  nonMasqueradeCIDRs: []":         `under a key "config"`,
		"cidrLimit: 1\ncidrLimit: 1":                "given twice (first at line 1)",
		"cidrLimit: 1\n---\nx: 1":                   "only the first YAML document",
		"resyncInterval: -5s":                       "counts as 1s",
		"masqueradeCIDRs:":                          "counts as not given",
	} {
		r, err := decode(text, Settings{})
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if !strings.Contains(fmt.Sprint(r.Warnings), want) {
			t.Errorf("%q: %v, want %q", text, r.Warnings, want)
		}
	}
}

func TestAFolderIsMerged(t *testing.T) {
	dir := t.TempDir()
	v, err := projected.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = v.Swap(map[string][]byte{
		"ip-masq-agent":            []byte("nonMasqueradeCIDRs: [1.0.0.0/8]\nresyncInterval: 60s\n"),
		"ip-masq-agent-reconciled": []byte("nonMasqueradeCIDRs: [2.0.0.0/8]\nmasqLinkLocal: true\nresyncInterval: 30s\n"),
		"other":                    []byte("nonMasqueradeCIDRs: [3.0.0.0/8]\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Load(dir, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	c := r.Config
	if listed(c) != "1.0.0.0/8 2.0.0.0/8" || !c.MasqLinkLocal || c.ResyncInterval != 30*time.Second || len(r.Files) != 2 {
		t.Errorf("%+v from %v", c, r.Files)
	}
	if o := c.NonMasquerade[1].Origin; filepath.Base(o.Source) != "ip-masq-agent-reconciled" || o.Line != 1 || o.Column != 22 {
		t.Errorf("the second range is from %v", o)
	}
	missing, err := Load(filepath.Join(dir, "nothing"), Settings{ReservedRanges: true})
	if err != nil || len(missing.Files) != 0 || len(missing.Config.NonMasquerade) != 11 {
		t.Errorf("a missing path: %+v, %v", missing, err)
	}
}

func TestWatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "later")
	path := filepath.Join(dir, "ip-masq-agent")
	ctx, cancel := context.WithCancel(t.Context())
	changed := make(chan struct{}, 1000)
	done := make(chan error)
	go func() {
		done <- Watch(ctx, path, 50*time.Millisecond, func() { changed <- struct{}{} }, slog.New(slog.DiscardHandler))
	}()
	// Whatever is on the way is seen; then the file is as it should be.
	expect := func(what, text string) {
		t.Helper()
		for {
			select {
			case <-changed:
				if got, _ := os.ReadFile(path); string(got) == text {
					return
				}
			case <-time.After(time.Minute):
				t.Fatalf("%s was not noticed", what)
			}
		}
	}
	v, err := projected.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		text := fmt.Sprintf("cidrLimit: %d\n", i)
		if err := v.Swap(map[string][]byte{"ip-masq-agent": []byte(text)}); err != nil {
			t.Fatal(err)
		}
		expect("a swap", text)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	expect("the removal", "")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect("a plain file", "x")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	expect("an emptied file", "")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"", "{}", "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n-\n", `{"a":[1,{"b":null}]}`, "a: &a [*a]", "? x\n: y", "<<: {cidrLimit: 1}", "\xef\xbb\xbf{", "resyncInterval: 1h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := decode(text, Settings{IPv6: true})
		if err == nil {
			if _, _, err := masq.Plan(r.Config, masq.Options{IPv6: true}, masq.Facts{}); err != nil && len(r.Config.SNATAddress) == 0 {
				t.Errorf("accepted, but cannot be planned: %v", err)
			}
			return
		}
		problems := Problems(err)
		if len(problems) == 0 {
			t.Errorf("rejected without a Problem: %v", err)
		}
		lines := strings.Count(text, "\n") + 1
		for _, p := range problems {
			if p.Origin.Line < 1 || p.Origin.Line > lines+1 || p.Origin.Column < 1 || p.Reason == "" {
				t.Errorf("%q: a Problem at %v of %d lines, reason %q", text, p.Origin, lines, p.Reason)
			}
		}
	})
}

func FuzzScanPlain(f *testing.F) {
	for _, s := range []string{
		"nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- ::/0\n", "a:\n  - 1/2 # c\n\n# x\n  - 3/4\nb: 12\nc: true\n", "a:\n- 1/2:\n", "a:\nb: ~\nc: 0x10\n",
		"a: on\r\nb:\r\n  - fe80::/10\r\n", "y: 1\n", "a:\n - 1/2\n  - 3/4\n", "a: 1#2\n", "a: 1 #2", "a :1", "a:\n- :/\n", "a:\n-  1/2\n-   :::/1", "a:\n\n\n- 1/2\n", "a: x\n- 1/2", "  \n - 1/2", "a:   b  # c\nd:#", "A: ", "A:\n#0\xa8", "a: #\xf5", strings.Repeat("w", 2000) + "A:",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		fast, ok := scanPlain(text)
		if !ok {
			return
		}
		slow, warnings, err := parseYAML("f", []byte(text))
		if err != nil || len(warnings) > 0 {
			t.Fatalf("%q: the parser says %v, %v", text, warnings, err)
		}
		if !reflect.DeepEqual(fast, slow) {
			t.Errorf("%q: scanned\n%+v, parsed\n%+v", text, fast, slow)
		}
	})
}

// A log written into the folder of the configuration once woke the agent,
// which logged that, for ever.
func TestWatchIgnoresOtherFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ip-masq-agent")
	if err := os.WriteFile(path, []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	changed := make(chan string, 1000)
	done := make(chan error)
	go func() {
		done <- Watch(ctx, path, time.Hour, func() {
			text, _ := os.ReadFile(path)
			changed <- string(text)
		}, slog.New(slog.DiscardHandler))
	}()
	<-changed // it listens
	for range 50 {
		if err := os.WriteFile(filepath.Join(dir, "agent.log"), []byte("a line"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path+".new", []byte("b"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if text := <-changed; text != "b" {
		t.Errorf("woken with %q in the file", text)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDigestIsOfTheTextsThatWereLookedAt(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ip-masq-agent")
	for _, tc := range []struct {
		text  string
		valid bool
	}{
		{"", true},
		{"cidrLimit: 3\n", true},
		{"nonMasqueradeCIDRs: [x]\n", false},
	} {
		want := fmt.Sprintf("%x", sha256.Sum256([]byte(tc.text)))
		if err := os.WriteFile(file, []byte(tc.text), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := Load(file, Settings{})
		if r.Digest != want || (err == nil) != tc.valid {
			t.Errorf("%q: digest %s, error %v; want %s, valid %v", tc.text, r.Digest, err, want, tc.valid)
		}
	}
	if r, err := Load(filepath.Join(dir, "none"), Settings{}); err != nil || r.Digest != "" {
		t.Errorf("no file has the digest %q, %v", r.Digest, err)
	}
}
