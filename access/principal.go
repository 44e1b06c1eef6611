package access

import (
	"fmt"
	"slices"
	"strings"

	"sordino/environment"
)

// Role is what a caller may do in a project. A later one includes the earlier.
type Role int

// The roles.
const (
	// Nobody may do nothing.
	Nobody Role = iota
	// Viewer reads: get, list, explain, plan.
	Viewer
	// Editor also creates, updates and deletes.
	Editor
	// Admin also runs commands in worker Pods.
	Admin
)

var roleNames = []string{"nobody", "viewer", "editor", "admin"}

func (r Role) String() string { return roleNames[r] }

// ParseRole reads "viewer", "editor" or "admin".
func ParseRole(text string) (Role, error) {
	if i := slices.Index(roleNames, text); i > 0 {
		return Role(i), nil
	}
	return Nobody, fmt.Errorf("the role %q: write viewer, editor or admin", text)
}

// AllProjects is the project of a grant that holds everywhere.
const AllProjects = "*"

// Principal is a caller who has proven who they are.
type Principal struct {
	// Name is a token's name or an OIDC subject's email or id.
	Name   string
	grants map[string]Role // by project
}

// Role is what the principal may do in a project.
func (p Principal) Role(project string) Role {
	return max(p.grants[project], p.grants[AllProjects])
}

// Permission is what a method takes: its name as IAM would spell it, and the
// least role.
type Permission struct {
	Name string
	Role Role
}

// PermissionOf returns what a method takes, by its full gRPC name. The verb is
// the first word of the method's name; what is not known to only read takes an
// editor.
func PermissionOf(fullMethod string) Permission {
	service, method, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	service = service[strings.LastIndexByte(service, '.')+1:]
	verb := method
	for i, c := range method {
		if i > 0 && c >= 'A' && c <= 'Z' {
			verb = method[:i]
			break
		}
	}
	role := Editor
	switch {
	case service == "Workers":
		role = Admin
	case slices.Contains([]string{"Get", "List", "Check", "Explain", "Plan", "Poll", "Fetch", "Wait"}, verb):
		role = Viewer
	}
	product := "composer"
	if strings.Contains(fullMethod, "sordino.") {
		product = "sordino"
	}
	return Permission{product + "." + lowerFirst(service) + "." + lowerFirst(verb), role}
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }

// Authorize refuses a call that the principal may not make. Its answer is the
// same whether the resource exists or not.
func (p Principal) Authorize(fullMethod, project, resource string) error {
	permission := PermissionOf(fullMethod)
	if p.Role(project) >= permission.Role {
		return nil
	}
	return &environment.Error{Code: environment.PermissionDenied, Reason: "IAM_PERMISSION_DENIED",
		Message:  fmt.Sprintf("Permission '%s' denied on resource '%s' (or it might not exist).", permission.Name, resource),
		Metadata: map[string]string{"permission": permission.Name, "resource": resource}}
}

func unauthenticated(reason, format string, args ...any) error {
	return &environment.Error{Code: environment.Unauthenticated, Reason: reason, Message: fmt.Sprintf(format, args...)}
}
