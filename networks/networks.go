// Package networks holds the networks that environments can be created in: the
// declared ones of a YAML file, and a network "default" of every project.
//
// It owns the file's format (see [Load]) and the default network. It refuses a
// file whose ranges could not stand beside each other, with the line of every
// mistake and what to write instead.
//
// To debug it, compare a refusal's network name with the file: names are full
// resource names, projects/PROJECT/global/networks/NETWORK.
package networks

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sordino/environment"
	"sordino/environment/address"
)

// Networks are the networks that there are. It implements
// environment.Networks.
type Networks struct {
	declared map[string]network
	// standard adds the network "default" to every project that declares none.
	standard bool
	// existing makes that one of existing clusters, which have subnetworks of
	// their own.
	existing bool
}

type network struct {
	address.Network
	// sharedWith are the service projects of a Shared VPC host project; "*" is
	// all.
	sharedWith []string
}

// autoMode are the subnetworks' ranges of an auto mode VPC network, one a
// region, as Google publishes them. me-central2 is not in the published list
// that we have; its block is a free one of 10.128.0.0/9.
var autoMode = map[string]string{
	"africa-south1":           "10.218.0.0/20",
	"asia-east1":              "10.140.0.0/20",
	"asia-east2":              "10.170.0.0/20",
	"asia-northeast1":         "10.146.0.0/20",
	"asia-northeast2":         "10.174.0.0/20",
	"asia-northeast3":         "10.178.0.0/20",
	"asia-south1":             "10.160.0.0/20",
	"asia-south2":             "10.190.0.0/20",
	"asia-southeast1":         "10.148.0.0/20",
	"asia-southeast2":         "10.184.0.0/20",
	"australia-southeast1":    "10.152.0.0/20",
	"australia-southeast2":    "10.192.0.0/20",
	"europe-central2":         "10.186.0.0/20",
	"europe-north1":           "10.166.0.0/20",
	"europe-southwest1":       "10.204.0.0/20",
	"europe-west1":            "10.132.0.0/20",
	"europe-west2":            "10.154.0.0/20",
	"europe-west3":            "10.156.0.0/20",
	"europe-west4":            "10.164.0.0/20",
	"europe-west6":            "10.172.0.0/20",
	"europe-west8":            "10.198.0.0/20",
	"europe-west9":            "10.200.0.0/20",
	"europe-west10":           "10.214.0.0/20",
	"europe-west12":           "10.210.0.0/20",
	"me-central1":             "10.212.0.0/20",
	"me-central2":             "10.216.0.0/20",
	"me-west1":                "10.208.0.0/20",
	"northamerica-northeast1": "10.162.0.0/20",
	"northamerica-northeast2": "10.188.0.0/20",
	"northamerica-south1":     "10.224.0.0/20",
	"southamerica-east1":      "10.158.0.0/20",
	"southamerica-west1":      "10.194.0.0/20",
	"us-central1":             "10.128.0.0/20",
	"us-east1":                "10.142.0.0/20",
	"us-east4":                "10.150.0.0/20",
	"us-east5":                "10.202.0.0/20",
	"us-south1":               "10.206.0.0/20",
	"us-west1":                "10.138.0.0/20",
	"us-west2":                "10.168.0.0/20",
	"us-west3":                "10.180.0.0/20",
	"us-west4":                "10.182.0.0/20",
}

// Default is a network "default" in every project, with one subnetwork
// "default" a region, as an auto mode VPC network has them.
func Default() *Networks { return &Networks{standard: true} }

// OnClusters are the same networks for existing clusters: the network "default"
// that is not declared is that of the cluster which is taken, and has no
// subnetworks here.
func (n *Networks) OnClusters() *Networks {
	return &Networks{declared: n.declared, standard: n.standard, existing: true}
}

// Network returns a network by its full resource name for an environment of a
// project.
func (n *Networks) Network(project, name string) (address.Network, error) {
	owner, id := split(name)
	if found, ok := n.declared[name]; ok {
		if owner == project || slices.Contains(found.sharedWith, project) || slices.Contains(found.sharedWith, "*") {
			return found.Network, nil
		}
		return address.Network{}, &environment.Error{Code: environment.InvalidArgument, Reason: "NETWORK_NOT_SHARED",
			Message:  fmt.Sprintf("Network '%s' is not shared with project '%s'. Add the project to 'sharedWith' of the network's declaration, or use one of: %s.", name, project, n.list(project)),
			Metadata: map[string]string{"network": name, "project": project}}
	}
	if n.standard && owner == project && id == "default" {
		if n.existing {
			return address.Network{Name: name}, nil
		}
		return automatic(name), nil
	}
	return address.Network{}, &environment.Error{Code: environment.InvalidArgument, Reason: "NETWORK_NOT_FOUND",
		Message:  fmt.Sprintf("Network '%s' is not declared. Declare it in the networks file, or use one of: %s.", name, n.list(project)),
		Metadata: map[string]string{"network": name, "project": project}}
}

// list names the networks that a project can use, for a message.
func (n *Networks) list(project string) string {
	var names []string
	for name, network := range n.declared {
		owner, _ := split(name)
		if owner == project || slices.Contains(network.sharedWith, project) || slices.Contains(network.sharedWith, "*") {
			names = append(names, name)
		}
	}
	if standard := "projects/" + project + "/global/networks/default"; n.standard && !slices.Contains(names, standard) {
		names = append(names, standard)
	}
	if len(names) == 0 {
		return "(there is none for this project)"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// Locations are the regions that have a subnetwork, in order.
func (n *Networks) Locations() []string {
	seen := map[string]bool{}
	for _, network := range n.declared {
		for _, s := range network.Subnetworks {
			seen[s.Region] = true
		}
	}
	if n.standard {
		for region := range autoMode {
			seen[region] = true
		}
	}
	regions := make([]string, 0, len(seen))
	for region := range seen {
		regions = append(regions, region)
	}
	slices.Sort(regions)
	return regions
}

// automatic is the network "default" of a project.
func automatic(name string) address.Network {
	project, _ := split(name)
	n := address.Network{Name: name}
	for region, text := range autoMode {
		n.Subnetworks = append(n.Subnetworks, address.Subnetwork{
			Name: subnetworkName(project, region, "default"), Region: region, Primary: netip.MustParsePrefix(text)})
	}
	slices.SortFunc(n.Subnetworks, func(a, b address.Subnetwork) int { return strings.Compare(a.Region, b.Region) })
	return n
}

func split(name string) (project, id string) {
	parts := strings.Split(name, "/")
	if len(parts) != 5 || parts[0] != "projects" || parts[2] != "global" || parts[3] != "networks" {
		return "", ""
	}
	return parts[1], parts[4]
}

func subnetworkName(project, region, id string) string {
	return "projects/" + project + "/regions/" + region + "/subnetworks/" + id
}
