package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// Every trap that upstream's agent falls into gets a place and a way out.
func TestLintSaysWhereAndWhatToWrite(t *testing.T) {
	for _, tc := range []struct{ text, place, message, fix string }{
		{"nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  -\n", ":3:4: ", "has an empty item", "remove the line"},
		{"nonMasqueradeCIDRs:\n  - 10.0.0.0/08\n", ":2:5: ", `CIDR "10.0.0.0/08" could not be parsed`, "write 10.0.0.0/8"},
		{"nonMasqueradeCIDRs:\n  - ::ffff:10.0.0.0/104\n", ":2:5: ", `CIDR "::ffff:10.0.0.0/104" could not be parsed`, "write 10.0.0.0/8"},
		{"nonMasqueradeCIDRs:\n  - 10.1.2.3/8\n", ":2:5: ", `CIDR "10.1.2.3/8" is not aligned to a CIDR block, ip: "10.1.2.3" network: "10.0.0.0/8"`, "write 10.0.0.0/8"},
		{"nonMasqueradeCIDRs:\n  - fd00::/8\n", ":2:5: ", "ipv6 is not enabled, but ipv6 cidr fd00::/8 provided. Enable ipv6 using --enable-ipv6 agent flag", "remove the range"},
		{"resyncInterval: 60\n", ":1:17: ", "not a duration", "60s"},
		{"masqLinkLocal: \"true\"\n", ":1:16: ", "not a boolean", "without quotes"},
		{"cidrLimit: 1\nnonMasqueradeCIDRs:\n  - 1.0.0.0/8\n  - 2.0.0.0/8\n", ":3:3: ", "the daemon can only accept up to 1 CIDRs (excluding link-local), but got 2 CIDRs", "cidrLimit: 2"},
		{"{\"cidrLimit\": 1,\n  \"x\" 2}", ":2:7: ", "not valid JSON", ""},
		{"nonMasqueradeCIDRs:\n\t- 10.0.0.0/8\n", ":2:1: ", "not valid YAML", "spaces"},
	} {
		file := write(t, tc.text)
		r := call(t, nil, "", "lint", file)
		r.expect(t, 1, []string{file + tc.place, tc.message, tc.fix}, nil)
		if strings.Contains(r.stdout, "valid, ") || r.stderr != "" {
			t.Errorf("%q:\n%s%s", tc.text, r.stdout, r.stderr)
		}
	}
}

func TestLint(t *testing.T) {
	good := write(t, "nonMasqueradeCIDRs:\n  - 10.0.0.0/8\nresyncInterval: 0s\nwhatever: 1\n")
	r := call(t, nil, "", "lint", good)
	r.expect(t, 0, []string{good + ": valid, 1 non-masquerade ranges", "warning: " + good + ":3:17: ", "counts as 1s", "whatever"}, nil)

	// The flags that change what is accepted are regarded.
	ipv6 := write(t, "nonMasqueradeCIDRs: ['fd00::/8']")
	call(t, nil, "", "lint", ipv6).expect(t, 1, []string{"--enable-ipv6"}, nil)
	call(t, nil, "", "lint", "--enable-ipv6", ipv6).expect(t, 0, nil, nil)

	// Several files are judged one by one.
	r = call(t, nil, "", "lint", good, ipv6)
	r.expect(t, 1, []string{good + ": valid", ipv6 + ":1:22"}, nil)

	missing := filepath.Join(t.TempDir(), "none")
	call(t, nil, "", "lint", missing).expect(t, 1, []string{missing + ": ", "no such file"}, nil)

	call(t, nil, "masqLinkLocal: yes", "lint", "-").expect(t, 0, []string{"standard input: valid, 3 non-masquerade ranges"}, nil)
	call(t, nil, "- x", "lint", "-").expect(t, 1, []string{"standard input:1:1: "}, nil)
}

func TestLintAsJSON(t *testing.T) {
	type report struct {
		File     string
		Valid    bool
		Problems []struct {
			Origin struct {
				Source       string
				Line, Column int
			}
			Text, Message, Fix, Reason string
		}
		Warnings []struct{ Message string }
		Error    string
	}
	bad, missing := write(t, "nonMasqueradeCIDRs:\n- 10.0.0.0/08\n- 1\nfoo: 1\n"), filepath.Join(t.TempDir(), "none")
	r := call(t, nil, "", "lint", "--output=json", bad, missing)
	if r.code != 1 || r.stderr != "" {
		t.Errorf("exit %d, %s", r.code, r.stderr)
	}
	reports := decoded[[]report](t, r)
	if len(reports) != 2 || reports[0].Valid || reports[0].File != bad || len(reports[0].Problems) != 2 || len(reports[0].Warnings) != 1 {
		t.Fatalf("%+v", reports)
	}
	p := reports[0].Problems[0]
	if p.Origin.Source != bad || p.Origin.Line != 2 || p.Origin.Column != 3 || p.Text != "10.0.0.0/08" || p.Reason != "cidr" || !strings.Contains(p.Fix, "10.0.0.0/8") {
		t.Errorf("%+v", p)
	}
	if reports[1].Valid || !strings.Contains(reports[1].Error, "no such file") {
		t.Errorf("%+v", reports[1])
	}
	if good := decoded[[]report](t, call(t, nil, "{}", "lint", "--output=json", "-")); len(good) != 1 || !good[0].Valid {
		t.Errorf("%+v", good)
	}
}
