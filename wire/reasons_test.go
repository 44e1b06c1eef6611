package wire

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// noReasons look like reasons and are something else.
var noReasons = map[string]string{
	"NETWORKING_TYPE_UNSPECIFIED": "a value of an enum",
	"PRIVATE_SERVICE_CONNECT":     "a value of an enum",
}

// TestDocumentedReasons holds the section "Reasons" of docs/api.md to the
// code: every reason that an error can have is there, and nothing else.
func TestDocumentedReasons(t *testing.T) {
	used := map[string]token.Position{}
	for _, dir := range []string{"access", "agentconfig", "driver", "environment", "networks", "reconcile", "store", "wire"} {
		reasonsIn(t, filepath.Join("..", dir), used)
	}
	text, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## Reasons\n")
	if !found {
		t.Fatal("docs/api.md has no section \"Reasons\"")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| (`+"`[^|]*`"+`) \|`).FindAllStringSubmatch(section, -1) {
		for _, m := range regexp.MustCompile("`([A-Z0-9_]+)`").FindAllStringSubmatch(row[1], -1) {
			if documented[m[1]] {
				t.Errorf("%s is documented twice", m[1])
			}
			documented[m[1]] = true
			if _, ok := used[m[1]]; !ok {
				t.Errorf("%s is documented, and nothing has this reason", m[1])
			}
		}
	}
	for reason, place := range used {
		if !documented[reason] {
			t.Errorf("%s, at %s, is not in docs/api.md", reason, place)
		}
	}
	if len(used) < 50 {
		t.Errorf("only %d reasons were found in the code", len(used))
	}
}

var upperSnake = regexp.MustCompile(`^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$`)

// reasonsIn collects the literals below a folder that look like reasons, and
// what a field called Reason is set to.
func reasonsIn(t *testing.T, dir string, used map[string]token.Position) {
	t.Helper()
	files := token.NewFileSet()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		note := func(e ast.Expr, any bool) {
			if text, ok := literal(e); ok && text != "" && noReasons[text] == "" && (any || upperSnake.MatchString(text)) {
				used[text] = files.Position(e.Pos())
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec: // names of variables that Composer sets itself
				if slices.ContainsFunc(n.Names, func(name *ast.Ident) bool { return name.Name == "reservedEnvVariables" }) {
					return false
				}
			case *ast.KeyValueExpr:
				if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Reason" {
					note(n.Value, true)
				}
			case *ast.BasicLit:
				note(n, false)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func literal(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return text, err == nil
}
