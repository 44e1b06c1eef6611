package masq

// Change says what applying a rule set did to the kernel.
type Change struct {
	// Wrote is false when the kernel held the rule set already.
	Wrote bool `json:"wrote"`
	// Repaired is true when the kernel had lost or changed what was applied
	// before, so that this was the repair of somebody else's doing.
	Repaired bool `json:"repaired"`
	// What lists the differences that were found, one for a person to read
	// each: "set exempt4: 2 ranges added, 1 removed".
	What []string `json:"what,omitempty"`
}

// Held is what a backend finds in the kernel.
type Held struct {
	// Generation and Hash are the marks of the last applied rule set; zero
	// and empty when there are none of our rules.
	Generation uint64 `json:"generation"`
	Hash       string `json:"hash"`
	// Counters count Pod traffic in the direction that was opened.
	Counters []Counter `json:"counters"`
	// SetSizes are the numbers of ranges by set name ("exempt4", "pods6").
	SetSizes map[string]int `json:"setSizes,omitempty"`
}

// Counter is one family's traffic with one outcome.
type Counter struct {
	Family  Family `json:"family"`
	Action  Action `json:"action"` // Masquerade or Exempt
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	// Connections counts the first packets, the only ones that the NAT rules see.
	Connections uint64 `json:"connections"`
}
