package environment

import (
	"fmt"
	"strings"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maskPath is one path of an update mask, understood.
type maskPath struct {
	// given is what the client wrote.
	given string
	// field is the path in proto spelling; of the map where key is set. "*" is
	// everything.
	field string
	// key is an entry of the map at field; hasKey tells it from the whole map.
	key    string
	hasKey bool
}

// parseMaskPath reads one path: names without regard to case and underscores,
// as clients send node_count, nodeCount and NodeCount, and behind a map field
// the entry's key verbatim, with its dots. A key may stand between backticks
// (AIP-161).
func parseMaskPath(text string) (maskPath, bool) {
	if text == "*" {
		return maskPath{given: text, field: "*"}, true
	}
	m := (&servicepb.Environment{}).ProtoReflect().Descriptor()
	var path []string
	rest, more := text, true
	for more {
		var part string
		part, rest, more = strings.Cut(rest, ".")
		if m == nil {
			return maskPath{}, false
		}
		if virtual := virtualField(strings.Join(append(path, part), "."), !more); virtual != "" {
			return maskPath{given: text, field: virtual}, true
		}
		f := fieldByAnySpelling(m, part)
		if f == nil {
			return maskPath{}, false
		}
		path = append(path, string(f.Name()))
		field := strings.Join(path, ".")
		if f.IsMap() {
			if len(rest) >= 2 && rest[0] == '`' && rest[len(rest)-1] == '`' {
				rest = rest[1 : len(rest)-1]
			}
			return maskPath{given: text, field: field, key: rest, hasKey: more}, !more || rest != ""
		}
		m, _ = descends(f)
	}
	return maskPath{given: text, field: strings.Join(path, ".")}, true
}

// virtualField is the path of a field that only the REST API has.
func virtualField(path string, last bool) string {
	if !last {
		return ""
	}
	for _, f := range []string{fieldMaxPodsPerNode, fieldNetworkingType} {
		if foldName(path) == foldName(f) {
			return f
		}
	}
	return ""
}

func fieldByAnySpelling(m protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if name == "" {
		return nil
	}
	for i := range m.Fields().Len() {
		if f := m.Fields().Get(i); foldName(string(f.Name())) == foldName(name) {
			return f
		}
	}
	return nil
}

func foldName(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }

// parseMask reads a whole mask, and refuses what contradicts itself.
func parseMask(texts []string) ([]maskPath, []Violation) {
	const field = "update_mask"
	if len(texts) == 0 {
		return nil, []Violation{{Field: field, Reason: "UPDATE_MASK_REQUIRED",
			Description: "The update mask is missing. Name the fields to change in updateMask, for example updateMask=config.nodeCount."}}
	}
	var paths []maskPath
	var problems []Violation
	whole, single := map[string]string{}, map[string]string{}
	for _, text := range texts {
		p, ok := parseMaskPath(strings.TrimSpace(text))
		if !ok {
			problems = append(problems, Violation{Field: field, Reason: "UPDATE_MASK_UNKNOWN_PATH",
				Description: fmt.Sprintf("The update mask's path '%s' names no field of an environment. Write it like config.nodeCount, or config.softwareConfig.pypiPackages.NAME for one entry of a map.", text),
				Metadata:    map[string]string{"path": text}})
			continue
		}
		paths = append(paths, p)
		if p.hasKey {
			single[p.field] = p.given
		} else {
			whole[p.field] = p.given
		}
	}
	for _, p := range paths {
		if p.hasKey && single[p.field] == p.given && whole[p.field] != "" {
			problems = append(problems, Violation{Field: field, Reason: "UPDATE_MASK_CONFLICT",
				Description: fmt.Sprintf("The update mask names both '%s' and '%s'. Name either the whole map or single entries of it.", whole[p.field], p.given),
				Metadata:    map[string]string{"map": whole[p.field], "entry": p.given}})
		}
	}
	if whole["*"] != "" && len(paths) > 1 {
		problems = append(problems, Violation{Field: field, Reason: "UPDATE_MASK_CONFLICT",
			Description: "The update mask names '*' and other paths. '*' replaces everything: write it alone."})
	}
	return paths, problems
}

// leaves are the fields below a path that can be compared and copied one by
// one: what an update can change is one leaf whole, anything else goes down to
// scalars, lists and maps.
func leaves(path string) []string {
	var found []string
	var walk func(m protoreflect.MessageDescriptor, prefix string)
	walk = func(m protoreflect.MessageDescriptor, prefix string) {
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			p := prefix + string(f.Name())
			sub, down := descends(f)
			_, whole := fieldIn(p, mutable)
			if down && !whole {
				walk(sub, p+".")
				switch p {
				case "config.node_config":
					found = append(found, fieldMaxPodsPerNode)
				case "config.private_environment_config":
					found = append(found, fieldNetworkingType)
				}
				continue
			}
			found = append(found, p)
		}
	}
	walk((&servicepb.Environment{}).ProtoReflect().Descriptor(), "")
	if path == "*" {
		return found
	}
	var below []string
	for _, p := range found {
		if within(p, path) {
			below = append(below, p)
		}
	}
	if len(below) == 0 {
		return []string{path} // a part of what is one leaf whole
	}
	return below
}
