package admission

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"sordino/masq/configfile"
)

func reviewer(s configfile.Settings) *Reviewer {
	return &Reviewer{Settings: s, Namespace: "kube-system", Name: "ip-masq-agent", Log: slog.New(slog.DiscardHandler)}
}

func configMapOf(namespace, name string, data map[string]string) *Request {
	object, _ := json.Marshal(map[string]any{"metadata": map[string]any{"namespace": namespace, "name": name}, "data": data})
	req := &Request{UID: "u", Operation: "CREATE", Namespace: namespace, Name: name, Object: object}
	req.Resource.Resource = "configmaps"
	return req
}

func policyOf(spec string) *Request {
	req := &Request{UID: "u", Operation: "CREATE", Name: "default", Object: json.RawMessage(`{"metadata": {"name": "default"}, "spec": ` + spec + `}`)}
	req.Resource.Group, req.Resource.Resource = "networking.gke.io", "egressnatpolicies"
	return req
}

func TestReview(t *testing.T) {
	ours := func(text string) *Request {
		return configMapOf("kube-system", "ip-masq-agent", map[string]string{"config": text})
	}
	many := "nonMasqueradeCIDRs:\n" + strings.Repeat("- 10.1.2.3/8\n", 12)
	secrets := ours("- x")
	secrets.Resource.Resource = "secrets"
	deletion := ours("- x")
	deletion.Operation = "DELETE"
	for name, tc := range map[string]struct {
		req      *Request
		settings configfile.Settings
		refused  []string // allowed when nil
		warnings []string
	}{
		"good":             {req: ours("nonMasqueradeCIDRs: [10.0.0.0/8]")},
		"empty":            {req: ours("")},
		"not aligned":      {req: ours("nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.1.2.3/8\n"), refused: []string{`data.config:3:3: CIDR "10.1.2.3/8" is not aligned`, "write 10.0.0.0/8"}},
		"no YAML":          {req: ours("nonMasqueradeCIDRs:\n\t- 10.0.0.0/8\n"), refused: []string{"data.config:2:1: ", "tabs"}},
		"all at once":      {req: ours("resyncInterval: 60\nmasqLinkLocal: \"true\"\n"), refused: []string{":1:17: ", ":2:16: "}},
		"very many":        {req: ours(many), refused: []string{"data.config:11:3", "… and 2 more"}},
		"IPv6 without":     {req: ours("nonMasqueradeCIDRs: ['fd00::/8']"), refused: []string{"--enable-ipv6"}},
		"IPv6 with":        {req: ours("nonMasqueradeCIDRs: ['fd00::/8']"), settings: configfile.Settings{IPv6: true}},
		"odd":              {req: ours("nonMasqueradeCIDR: [10.0.0.0/8]"), warnings: []string{`data.config:1:1: unknown key "nonMasqueradeCIDR" is ignored; is nonMasqueradeCIDRs meant?`}},
		"wrong key":        {req: configMapOf("kube-system", "ip-masq-agent", map[string]string{"ip-masq-agent": "- x"}), warnings: []string{`no key "config", so the defaults hold; rename "ip-masq-agent"`}},
		"no key":           {req: configMapOf("kube-system", "ip-masq-agent", nil), warnings: []string{`no key "config"`}},
		"wrong name":       {req: configMapOf("kube-system", "ip-masq-agent-config", map[string]string{"config": "- x"}), warnings: []string{"does not read this ConfigMap, but kube-system/ip-masq-agent"}},
		"hashed name":      {req: configMapOf("kube-system", "ip-masq-agent-7kb4h2", map[string]string{"config": "- x"}), warnings: []string{"does not read"}},
		"wrong namespace":  {req: configMapOf("default", "ip-masq-agent", map[string]string{"config": "- x"}), warnings: []string{"does not read"}},
		"somebody else's":  {req: configMapOf("default", "settings", map[string]string{"config": "- x"})},
		"not a ConfigMap":  {req: secrets},
		"deletion":         {req: deletion},
		"policy":           {req: policyOf(`{"action": "NoSNAT", "destinations": [{"cidr": "10.0.0.0/8"}]}`)},
		"policy, empty":    {req: policyOf(`{"action": "NoSNAT", "destinations": []}`)},
		"policy, SNAT":     {req: policyOf(`{"action": "SNAT"}`), refused: []string{`EgressNATPolicy default, spec.action: "SNAT" is not an action`, "write NoSNAT"}},
		"policy, range":    {req: policyOf(`{"action": "NoSNAT", "destinations": [{"cidr": "10.0.0.0/8"}, {"cidr": "10.1.0.0/8"}]}`), refused: []string{"spec.destinations[1].cidr: ", "write 10.0.0.0/8"}},
		"policy, IPv6":     {req: policyOf(`{"action": "NoSNAT", "destinations": [{"cidr": "fd00::/8"}]}`), refused: []string{"--enable-ipv6"}},
		"policy, IPv6 too": {req: policyOf(`{"action": "NoSNAT", "destinations": [{"cidr": "fd00::/8"}]}`), settings: configfile.Settings{IPv6: true}},
	} {
		got := reviewer(tc.settings).Review(tc.req)
		if got.UID != "u" || got.Allowed != (tc.refused == nil) || len(got.Warnings) != len(tc.warnings) {
			t.Errorf("%s: %+v %+v", name, got, got.Status)
			continue
		}
		for _, want := range tc.refused {
			if !strings.Contains(got.Status.Message, want) || got.Status.Code != 422 {
				t.Errorf("%s: %q is not in %+v", name, want, got.Status)
			}
		}
		for i, want := range tc.warnings {
			if !strings.Contains(got.Warnings[i], want) {
				t.Errorf("%s: %q is not in %q", name, want, got.Warnings[i])
			}
		}
	}
}

// Whoever changes something else is not held up by what was wrong before.
func TestUnchangedTextIsNotRefused(t *testing.T) {
	bad := map[string]string{"config": "resyncInterval: 60"}
	req := configMapOf("kube-system", "ip-masq-agent", bad)
	req.Operation, req.OldObject = "UPDATE", req.Object
	got := reviewer(configfile.Settings{}).Review(req)
	if !got.Allowed || len(got.Warnings) != 2 || !strings.Contains(got.Warnings[1], "data.config:1:17") {
		t.Errorf("%+v %+v", got, got.Status)
	}
	req.Object = configMapOf("kube-system", "ip-masq-agent", map[string]string{"config": "resyncInterval: 61"}).Object
	if got := reviewer(configfile.Settings{}).Review(req); got.Allowed {
		t.Errorf("%+v", got)
	}

	policy := policyOf(`{"action": "NoSNAT", "destinations": [{"cidr": "10.1.0.0/8"}]}`)
	policy.Operation, policy.OldObject = "UPDATE", policy.Object
	if got := reviewer(configfile.Settings{}).Review(policy); !got.Allowed || len(got.Warnings) != 2 {
		t.Errorf("%+v", got)
	}
	policy.OldObject = policyOf(`{"action": "NoSNAT", "destinations": [{"cidr": "10.0.0.0/8"}]}`).Object
	if got := reviewer(configfile.Settings{}).Review(policy); got.Allowed {
		t.Errorf("%+v", got)
	}
}

// What kubectl takes for no text goes to binaryData, which a volume has and
// the agents' own look at the API has not.
func TestBinaryData(t *testing.T) {
	req := configMapOf("kube-system", "ip-masq-agent", nil)
	req.Object = json.RawMessage(`{"metadata": {"name": "ip-masq-agent"}, "binaryData": {"config": "LSD/"}}`)
	if got := reviewer(configfile.Settings{}).Review(req); got.Allowed {
		t.Errorf("%+v", got)
	}
	req.Object = json.RawMessage(`{"metadata": {"name": "ip-masq-agent"}, "binaryData": {"config": "e30K"}}`)
	if got := reviewer(configfile.Settings{}).Review(req); !got.Allowed || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "binary data") {
		t.Errorf("%+v", got)
	}
}

func TestServeHTTP(t *testing.T) {
	ask := func(body string) (int, string) {
		w := httptest.NewRecorder()
		reviewer(configfile.Settings{}).ServeHTTP(w, httptest.NewRequest("POST", Path, strings.NewReader(body)))
		answer, _ := io.ReadAll(w.Result().Body)
		return w.Code, string(answer)
	}
	request, _ := json.Marshal(configMapOf("kube-system", "ip-masq-agent", map[string]string{"config": "- x"}))
	for _, body := range []string{"", "{}", `{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}`, `{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {}}`} {
		if code, answer := ask(body); code != 400 {
			t.Errorf("%s: %d %s", body, code, answer)
		}
	}
	code, answer := ask(fmt.Sprintf(`{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": %s}`, request))
	var got struct {
		APIVersion, Kind string
		Response         Response
	}
	if err := json.Unmarshal([]byte(answer), &got); err != nil || code != 200 || got.APIVersion != "admission.k8s.io/v1" || got.Kind != "AdmissionReview" ||
		got.Response.UID != "u" || got.Response.Allowed || got.Response.Status == nil {
		t.Errorf("%d %s %v", code, answer, err)
	}
}
