// Package count writes numbers of things for people: "1 node", "2 nodes".
//
// It owns no words: a noun is given in the singular.
package count

import (
	"fmt"
	"strings"
)

// Of is a number of things.
func Of(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if stem, ends := strings.CutSuffix(noun, "y"); ends {
		return fmt.Sprintf("%d %sies", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
