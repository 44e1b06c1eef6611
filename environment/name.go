package environment

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
)

// Location is projects/PROJECT/locations/LOCATION. In a list request the
// location "-" stands for all of them (AIP-159).
type Location struct {
	Project string `json:"project"`
	ID      string `json:"location"`
}

func (l Location) String() string { return "projects/" + l.Project + "/locations/" + l.ID }

// Name is projects/PROJECT/locations/LOCATION/environments/ID.
type Name struct {
	Location
	ID string `json:"id"`
}

func (n Name) String() string { return n.Location.String() + "/environments/" + n.ID }

// Compare orders names as lists show them.
func (n Name) Compare(m Name) int {
	return cmp.Or(cmp.Compare(n.Project, m.Project), cmp.Compare(n.Location.ID, m.Location.ID), cmp.Compare(n.ID, m.ID))
}

// OperationName is projects/PROJECT/locations/LOCATION/operations/UUID.
type OperationName struct {
	Location
	ID string `json:"id"`
}

func (n OperationName) String() string { return n.Location.String() + "/operations/" + n.ID }

// idForm is the API's own rule: 1 to 64 characters.
var idForm = regexp.MustCompile(`^[a-z](?:[-0-9a-z]{0,62}[0-9a-z])?$`)

// A project's id may be scoped by a domain: example.com:my-project.
var (
	projectForm  = regexp.MustCompile(`^(?:[a-z0-9.-]{1,63}:)?[a-z0-9](?:[-a-z0-9]{0,62}[a-z0-9])?$`)
	locationForm = regexp.MustCompile(`^[a-z](?:[-0-9a-z]{0,62}[0-9a-z])?$`)
)

// ParseLocation reads projects/PROJECT/locations/LOCATION; wildcard allows
// the location "-".
func ParseLocation(text string, wildcard bool) (Location, error) {
	l, rest, ok := cutLocation(text)
	if !ok || rest != "" {
		return Location{}, malformed(text, "projects/PROJECT/locations/LOCATION")
	}
	if l.ID == "-" && wildcard {
		return l, nil
	}
	if !locationForm.MatchString(l.ID) {
		return Location{}, malformed(text, "projects/PROJECT/locations/LOCATION")
	}
	return l, nil
}

// ParseName reads projects/PROJECT/locations/LOCATION/environments/ID.
func ParseName(text string) (Name, error) {
	const form = "projects/PROJECT/locations/LOCATION/environments/ENVIRONMENT"
	l, rest, ok := cutLocation(text)
	id, isEnvironment := strings.CutPrefix(rest, "/environments/")
	if !ok || !isEnvironment || !locationForm.MatchString(l.ID) || strings.Contains(id, "/") {
		return Name{}, malformed(text, form)
	}
	if !idForm.MatchString(id) {
		return Name{}, &Error{Code: InvalidArgument, Reason: "ENVIRONMENT_NAME_MALFORMED",
			Message:  fmt.Sprintf("the environment's name %q: write 1 to 64 lower case letters, digits and dashes, a letter first and no dash last", id),
			Metadata: map[string]string{"name": id}}
	}
	return Name{l, id}, nil
}

// ParseOperationName reads projects/PROJECT/locations/LOCATION/operations/ID.
func ParseOperationName(text string) (OperationName, error) {
	l, rest, ok := cutLocation(text)
	id, isOperation := strings.CutPrefix(rest, "/operations/")
	if !ok || !isOperation || id == "" || strings.Contains(id, "/") || !locationForm.MatchString(l.ID) {
		return OperationName{}, malformed(text, "projects/PROJECT/locations/LOCATION/operations/OPERATION")
	}
	return OperationName{l, id}, nil
}

func cutLocation(text string) (l Location, rest string, ok bool) {
	parts := strings.SplitN(text, "/", 5)
	if len(parts) < 4 || parts[0] != "projects" || parts[2] != "locations" || !projectForm.MatchString(parts[1]) || parts[3] == "" {
		return Location{}, "", false
	}
	if len(parts) == 5 {
		rest = "/" + parts[4]
	}
	return Location{parts[1], parts[3]}, rest, true
}

func malformed(text, form string) error {
	return &Error{Code: InvalidArgument, Reason: "RESOURCE_NAME_MALFORMED",
		Message:  fmt.Sprintf("the resource name %q is malformed; write it like %s", text, form),
		Metadata: map[string]string{"name": text}}
}
