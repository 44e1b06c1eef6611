package environment

import (
	"fmt"
	"strings"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/protobuf/proto"

	"sordino/environment/address"
	"sordino/environment/image"
)

// Effective is the environment's configuration with the defaults that the user
// left to the server, for showing. The Pod and Service ranges, the network and
// the subnetwork that the server chose are not in it: Terraform would take them
// for a change and replace the environment.
func (e *Environment) Effective() *servicepb.EnvironmentConfig {
	s := effective(e.Name, &e.Spec)
	c := s.Config
	if c.GetNodeConfig().GetLocation() != "" && len(e.UUID) >= 8 {
		c.GkeCluster = fmt.Sprintf("%s/clusters/%s-%s-%s-gke", c.NodeConfig.Location, e.Name.Location.ID, e.Name.ID, e.UUID[:8])
	}
	if e.Cluster != "" {
		c.GkeCluster = fmt.Sprintf("projects/%s/locations/%s/clusters/%s", e.Name.Project, e.Name.Location.ID, e.Cluster)
		if majorOf(&s) == 1 && e.Spec.Config.GetNodeCount() == 0 {
			c.NodeCount = int32(e.nodeCount())
		}
	}
	if private(&s) {
		p := c.PrivateEnvironmentConfig
		if r := e.Plan.Range(address.Master); r.IsValid() {
			if p.PrivateClusterConfig == nil {
				p.PrivateClusterConfig = &servicepb.PrivateClusterConfig{}
			}
			p.PrivateClusterConfig.MasterIpv4ReservedRange = r.String()
		}
		if r := e.Plan.Range(address.WebServer); r.IsValid() {
			p.WebServerIpv4ReservedRange = r.String()
		}
	}
	return c
}

// MaxPodsPerNode is the most Pods that a node takes.
func (e *Environment) MaxPodsPerNode() int32 {
	if e.Spec.MaxPodsPerNode != 0 {
		return e.Spec.MaxPodsPerNode
	}
	if e.Cluster != "" {
		return int32(e.Plan.MaxPodsPerNode)
	}
	return DefaultMaxPodsPerNode
}

// majorOf is the Composer major of an image version, or alias of one; 1 where it
// says none.
func majorOf(s *Spec) int {
	if major, ok := image.ComposerMajor(s.Config.GetSoftwareConfig().GetImageVersion()); ok {
		return major
	}
	return 1
}

// effective fills the defaults in a copy of a spec.
func effective(name Name, spec *Spec) Spec {
	s := spec.Clone()
	if s.Config == nil {
		s.Config = &servicepb.EnvironmentConfig{}
	}
	c := s.Config
	if c.SoftwareConfig == nil {
		c.SoftwareConfig = &servicepb.SoftwareConfig{}
	}
	if c.NodeConfig == nil {
		c.NodeConfig = &servicepb.NodeConfig{}
	}
	n := c.NodeConfig
	if n.Network != "" {
		n.Network = networkName(name.Project, n.Network)
	}
	if n.Subnetwork != "" {
		n.Subnetwork = subnetworkName(networkName(name.Project, n.Network), name.Location.ID, n.Subnetwork)
	}
	if private(&s) {
		if c.PrivateEnvironmentConfig == nil {
			c.PrivateEnvironmentConfig = &servicepb.PrivateEnvironmentConfig{}
		}
		c.PrivateEnvironmentConfig.EnablePrivateEnvironment = true
	}
	if majorOf(&s) > 1 {
		return s
	}
	if c.NodeCount == 0 {
		c.NodeCount = DefaultNodeCount
	}
	zone := relative(n.Location)
	if zone == "" {
		zone, _, _ = strings.Cut(relative(n.MachineType), "/machineTypes/")
	}
	if zone == "" {
		zone = fmt.Sprintf("projects/%s/zones/%s-b", name.Project, name.Location.ID)
	}
	n.Location = zone
	n.MachineType = relative(n.MachineType)
	if n.MachineType == "" {
		n.MachineType = zone + "/machineTypes/" + defaultMachineType
	}
	if n.DiskSizeGb == 0 {
		n.DiskSizeGb = defaultDiskSizeGB
	}
	if len(n.OauthScopes) == 0 {
		n.OauthScopes = []string{defaultOAuthScope}
	}
	if c.SoftwareConfig.PythonVersion == "" {
		c.SoftwareConfig.PythonVersion = "3"
	}
	if c.DatabaseConfig == nil {
		c.DatabaseConfig = &servicepb.DatabaseConfig{}
	}
	if c.DatabaseConfig.MachineType == "" {
		c.DatabaseConfig.MachineType = databaseMachines[0]
	}
	if c.WebServerConfig == nil {
		c.WebServerConfig = &servicepb.WebServerConfig{}
	}
	if c.WebServerConfig.MachineType == "" {
		c.WebServerConfig.MachineType = webServerMachines[0]
	}
	return s
}

// comparable is effective with everything else that has a default, in one
// spelling, so that "the same value" can be told (AIP-203).
func comparable(name Name, spec *Spec, plan address.Plan) Spec {
	s := effective(name, spec)
	n := s.Config.NodeConfig
	if n.Network == "" {
		n.Network = plan.Network
	}
	if n.Subnetwork == "" {
		n.Subnetwork = plan.Subnetwork
	}
	if s.MaxPodsPerNode == 0 {
		s.MaxPodsPerNode = DefaultMaxPodsPerNode
		if plan.MaxPodsPerNode != 0 { // an existing cluster's own
			s.MaxPodsPerNode = int32(plan.MaxPodsPerNode)
		}
	}
	switch s.NetworkingType {
	case "", "NETWORKING_TYPE_UNSPECIFIED":
		s.NetworkingType = "PUBLIC"
		if private(&s) {
			s.NetworkingType = "PRIVATE"
		}
	}
	if policy := n.IpAllocationPolicy; policy != nil && majorOf(&s) > 1 {
		policy.UseIpAliases = true
	}
	return s
}

// equalSpecs reports whether two specs say the same.
func equalSpecs(a, b *Spec) bool {
	return a.MaxPodsPerNode == b.MaxPodsPerNode && a.NetworkingType == b.NetworkingType && proto.Equal(a.toMessage(), b.toMessage())
}
