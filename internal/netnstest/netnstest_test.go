package netnstest

import "testing"

// Tests that run at once look for ports before the others listen on theirs.
func TestFreeAddressesDiffer(t *testing.T) {
	given := map[string]bool{}
	for range 500 {
		address := FreeAddress(t)
		if given[address] {
			t.Fatalf("%s was given twice", address)
		}
		given[address] = true
	}
}
