package configfile

import (
	"bytes"
	"fmt"
	"testing"

	"sordino/masq"
)

// many is a list of n ranges that cannot be merged.
func many(n int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "cidrLimit: %d\nnonMasqueradeCIDRs:\n", n)
	for i := range n {
		fmt.Fprintf(&b, "- %d.%d.%d.%d/28\n", 20+i>>19, i>>11&255, i>>3&255, i&7*32)
	}
	return b.Bytes()
}

func BenchmarkDecode(b *testing.B) {
	text := many(100_000)
	for b.Loop() {
		if _, err := FromSources([]Source{{"c", text}}, Settings{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPlan(b *testing.B) {
	r, err := FromSources([]Source{{"c", many(100_000)}}, Settings{})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("plan", func(b *testing.B) {
		for b.Loop() {
			masq.Plan(r.Config, masq.Options{}, masq.Facts{})
		}
	})
	rs, _, _ := masq.Plan(r.Config, masq.Options{}, masq.Facts{})
	if n := len(rs.Families[0].Exempt); n < 100_000 {
		b.Fatal(n)
	}
	b.Run("hash", func(b *testing.B) {
		for b.Loop() {
			rs.Hash()
		}
	})
}
