package address

import "net/netip"

// Network is a declared network.
type Network struct {
	// Name is the full resource name: projects/P/global/networks/N.
	Name        string
	Subnetworks []Subnetwork
	// Peers are ranges that the network reaches elsewhere: nothing may overlap
	// them.
	Peers []Reservation
}

// Subnetwork is a subnetwork of one region.
type Subnetwork struct {
	// Name is the full resource name: projects/P/regions/R/subnetworks/S.
	Name    string
	Region  string
	Primary netip.Prefix
	// Secondary are the secondary ranges by name.
	Secondary []Secondary
}

// Secondary is a named secondary range.
type Secondary struct {
	Name   string
	Prefix netip.Prefix
}
