package address

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// regions holds each region's default ranges of a private environment: the
// third octet of 172.16.X.0/23 for the control plane and of 172.31.Y.0/24 for
// the web server, as Composer documents them. Its keys are the regions that
// Composer 1 was offered in.
var regions = map[string][2]byte{
	"africa-south1": {64, 223}, "asia-east1": {42, 255}, "asia-east2": {0, 255}, "asia-northeast1": {2, 254},
	"asia-northeast2": {32, 239}, "asia-northeast3": {30, 240}, "asia-south1": {4, 253}, "asia-south2": {50, 230},
	"asia-southeast1": {40, 235}, "asia-southeast2": {44, 233}, "australia-southeast1": {6, 252}, "australia-southeast2": {56, 227},
	"europe-central2": {36, 237}, "europe-north1": {48, 231}, "europe-southwest1": {58, 226}, "europe-west1": {8, 251},
	"europe-west2": {10, 250}, "europe-west3": {12, 249}, "europe-west4": {42, 234}, "europe-west6": {14, 248},
	"europe-west8": {60, 225}, "europe-west9": {46, 232}, "europe-west10": {62, 224}, "europe-west12": {62, 224},
	"me-central1": {58, 226}, "me-central2": {64, 223}, "me-west1": {54, 228}, "northamerica-northeast1": {16, 247},
	"northamerica-northeast2": {46, 232}, "northamerica-south1": {68, 221}, "southamerica-east1": {18, 246}, "southamerica-west1": {58, 226},
	"us-central1": {20, 245}, "us-east1": {22, 244}, "us-east4": {24, 243}, "us-east5": {52, 229}, "us-south1": {56, 227},
	"us-west1": {38, 236}, "us-west2": {34, 238}, "us-west3": {26, 242}, "us-west4": {28, 241},
}

// Regions lists the regions with default ranges, sorted.
func Regions() []string { return slices.Sorted(maps.Keys(regions)) }

// defaultDatabase is the default range of the database in every region.
var defaultDatabase = netip.MustParsePrefix("10.0.0.0/12")

// privateDefault is a region's default range; a declared region that is not
// documented has that of us-central1.
func privateDefault(kind Kind, region string) netip.Prefix {
	octets, ok := regions[region]
	if !ok {
		octets = regions["us-central1"]
	}
	switch kind {
	case Master:
		return netip.MustParsePrefix(fmt.Sprintf("172.16.%d.0/23", octets[0]))
	case WebServer:
		return netip.MustParsePrefix(fmt.Sprintf("172.31.%d.0/24", octets[1]))
	}
	return defaultDatabase
}
