package admission

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"sordino/masq/configfile"
	"sordino/masq/kube"
	"sordino/masq/kube/egressnat"
)

// The parts of admission.k8s.io/v1 that matter here.
type (
	review struct {
		APIVersion string    `json:"apiVersion"`
		Kind       string    `json:"kind"`
		Request    *Request  `json:"request,omitempty"`
		Response   *Response `json:"response,omitempty"`
	}

	// Request is one object that somebody writes.
	Request struct {
		UID       string `json:"uid"`
		Operation string `json:"operation"`
		Resource  struct {
			Group    string `json:"group"`
			Resource string `json:"resource"`
		} `json:"resource"`
		Namespace string          `json:"namespace"`
		Name      string          `json:"name"`
		Object    json.RawMessage `json:"object"`
		OldObject json.RawMessage `json:"oldObject"`
	}

	// Response is the verdict on it.
	Response struct {
		UID      string   `json:"uid"`
		Allowed  bool     `json:"allowed"`
		Status   *Status  `json:"status,omitempty"`
		Warnings []string `json:"warnings,omitempty"`
	}

	// Status says why not.
	Status struct {
		Code    int    `json:"code"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
)

const apiVersion, kind = "admission.k8s.io/v1", "AdmissionReview"

// Reviewer judges requests.
type Reviewer struct {
	// Settings are those of the agents: what one accepts the other does.
	Settings configfile.Settings
	// Namespace and Name are of the ConfigMap that the agents read.
	Namespace, Name string
	Log             *slog.Logger
}

// maxReview bounds a request: an object and its former state, each at most
// what etcd takes.
const maxReview = 8 << 20

// ServeHTTP answers an AdmissionReview.
func (r *Reviewer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var in review
	if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxReview)).Decode(&in); err != nil {
		http.Error(w, fmt.Sprintf("reading the AdmissionReview: %v", err), http.StatusBadRequest)
		return
	}
	if in.APIVersion != apiVersion || in.Kind != kind || in.Request == nil {
		http.Error(w, fmt.Sprintf("this is %q of %q and not an %s of %s with a request", in.Kind, in.APIVersion, kind, apiVersion), http.StatusBadRequest)
		return
	}
	answer := r.Review(in.Request)
	r.Log.Debug("reviewed", "operation", in.Request.Operation, "resource", in.Request.Resource.Resource,
		"namespace", in.Request.Namespace, "name", in.Request.Name, "allowed", answer.Allowed, "warnings", len(answer.Warnings))
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(review{APIVersion: apiVersion, Kind: kind, Response: answer})
}

// finding is what a text of a configuration leads to.
type finding struct {
	problems []*configfile.Problem
	warnings []string
}

// Review judges one request.
func (r *Reviewer) Review(req *Request) *Response {
	var now finding
	var before func() bool // whether the object said the same before
	var err error
	switch {
	case req.Operation != "CREATE" && req.Operation != "UPDATE":
	case req.Resource.Group == "" && req.Resource.Resource == "configmaps":
		now, before, err = r.configMap(req)
	case req.Resource.Group == egressnat.Group && req.Resource.Resource == egressnat.Resource:
		now, before, err = r.policy(req)
	}
	answer := &Response{UID: req.UID, Allowed: true, Warnings: now.warnings}
	switch {
	case err != nil:
		answer.Allowed, answer.Status = false, &Status{http.StatusBadRequest, "BadRequest", err.Error()}
	case len(now.problems) > 0 && before():
		answer.Warnings = append(answer.Warnings, "the configuration was wrong before, and still is: the agents reject it and keep the last good one")
		for _, p := range now.problems {
			answer.Warnings = append(answer.Warnings, p.Error())
		}
	case len(now.problems) > 0:
		answer.Allowed, answer.Status = false, &Status{http.StatusUnprocessableEntity, "Invalid", message(now.problems)}
	}
	for i, warning := range answer.Warnings {
		answer.Warnings[i] = strings.ReplaceAll(warning, "\n", " ") // they travel in a header
	}
	return answer
}

// maxProblems is how many a message lists; a list that was generated wrongly
// has thousands.
const maxProblems = 10

func message(problems []*configfile.Problem) string {
	var lines []string
	for i, p := range problems {
		if i == maxProblems {
			lines = append(lines, fmt.Sprintf("… and %d more; \"ip-masq-agent lint FILE\" lists them all", len(problems)-i))
			break
		}
		lines = append(lines, p.Error())
	}
	return "the agents would reject it: " + strings.Join(lines, "\n")
}

// configMap is a ConfigMap as it is written.
type configMap struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Data       map[string]string `json:"data"`
	BinaryData map[string][]byte `json:"binaryData"`
}

// text is the configuration, wherever kubectl put it: a file that is not UTF-8
// goes to binaryData.
func (c configMap) text() (text string, given bool) {
	if text, given = c.Data[kube.ConfigKey]; given {
		return text, true
	}
	binary, given := c.BinaryData[kube.ConfigKey]
	return string(binary), given
}

func (r *Reviewer) configMap(req *Request) (f finding, before func() bool, err error) {
	var now, old configMap
	if err := decode(req, &now, &old); err != nil {
		return f, nil, err
	}
	if req.Namespace != r.Namespace || now.Metadata.Name != r.Name {
		if nearMiss(now.Metadata.Name, r.Name) {
			f.warnings = append(f.warnings, fmt.Sprintf("ip-masq-agent does not read this ConfigMap, but %s/%s; what stands here has no effect on it", r.Namespace, r.Name))
		}
		return f, nil, nil
	}
	text, given := now.text()
	if !given {
		f.warnings = append(f.warnings, fmt.Sprintf("this ConfigMap has no key %q, so the defaults hold%s", kube.ConfigKey, wrongKey(now)))
		return f, nil, nil
	}
	result, err := configfile.FromSources([]configfile.Source{{Name: "data." + kube.ConfigKey, Text: []byte(text)}}, r.Settings)
	if f.problems = configfile.Problems(err); err != nil && len(f.problems) == 0 {
		return f, nil, err
	}
	if _, isText := now.Data[kube.ConfigKey]; !isText {
		f.warnings = append(f.warnings, fmt.Sprintf("the key %q is binary data, which agents with --config-source=kube do not read; write it as text, in UTF-8", kube.ConfigKey))
	}
	for _, w := range result.Warnings {
		f.warnings = append(f.warnings, w.String())
	}
	return f, func() bool {
		former, given := old.text()
		return given && former == text
	}, nil
}

// wrongKey names the key that was probably meant.
func wrongKey(c configMap) string {
	var keys []string
	for k := range c.Data {
		keys = append(keys, k)
	}
	for k := range c.BinaryData {
		keys = append(keys, k)
	}
	if len(keys) == 1 {
		return fmt.Sprintf("; rename %q to %q (kubectl create configmap … --from-file=%s=FILE)", keys[0], kube.ConfigKey, kube.ConfigKey)
	}
	return ""
}

// nearMiss reports whether a ConfigMap's name looks as if ours was meant: the
// same in another namespace, with something before or behind it, or without a
// part of it.
func nearMiss(name, ours string) bool {
	return strings.Contains(name, ours) || strings.Contains(name, "ip-masq") || strings.Contains(name, "masq-agent")
}

func (r *Reviewer) policy(req *Request) (f finding, before func() bool, err error) {
	var now, old egressnat.Policy
	if err := decode(req, &now, &old); err != nil {
		return f, nil, err
	}
	_, f.problems = now.Check(r.Settings.IPv6)
	return f, func() bool {
		return req.Operation == "UPDATE" && egressnat.Digest([]egressnat.Policy{now}) == egressnat.Digest([]egressnat.Policy{old})
	}, nil
}

// decode reads the object and, of an update, its former state.
func decode(req *Request, now, old any) error {
	if err := json.Unmarshal(req.Object, now); err != nil {
		return fmt.Errorf("reading the object: %w", err)
	}
	if req.Operation == "UPDATE" && len(req.OldObject) > 0 {
		if err := json.Unmarshal(req.OldObject, old); err != nil {
			return fmt.Errorf("reading the object's former state: %w", err)
		}
	}
	return nil
}
