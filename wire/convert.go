package wire

import (
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"sordino/environment"
)

// specOf takes the domain's part out of a message. The fields that servicepb
// lacks are in its unknown fields; what is only ever output (AIP-203) is left
// behind.
func specOf(e *servicepb.Environment) environment.Spec {
	config := proto.CloneOf(e.GetConfig())
	spec := environment.Spec{Config: config, Labels: e.GetLabels(), Storage: e.GetStorageConfig()}
	if n := config.GetNodeConfig(); n != nil {
		spec.MaxPodsPerNode = int32(takeUnknown(n.ProtoReflect(), maxPodsPerNode))
	}
	if p := config.GetPrivateEnvironmentConfig(); p != nil {
		switch takeUnknown(p.ProtoReflect(), networkingType) {
		case networkingPrivate:
			spec.NetworkingType = "PRIVATE"
		case networkingPublic:
			spec.NetworkingType = "PUBLIC"
		}
		p.WebServerIpv4ReservedRange, p.CloudComposerNetworkIpv4ReservedRange = "", ""
		if c := p.GetPrivateClusterConfig(); c != nil {
			c.MasterIpv4ReservedRange = ""
		}
	}
	if config != nil {
		config.GkeCluster, config.DagGcsPrefix, config.AirflowUri, config.AirflowByoidUri = "", "", "", ""
	}
	return spec
}

// Numbers of fields that servicepb lacks: see additions.
const (
	maxPodsPerNode protowire.Number = 10
	networkingType protowire.Number = 10000

	networkingPrivate, networkingPublic = 1, 2
)

// takeUnknown removes a number from a message's unknown fields and returns it:
// the last one, as protobuf has it; 0 when there is none. Other unknown fields
// are removed too: nobody here knows what they ask for.
func takeUnknown(m protoreflect.Message, field protowire.Number) uint64 {
	var value uint64
	for b := m.GetUnknown(); len(b) > 0; {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			break
		}
		b = b[n:]
		if number == field && kind == protowire.VarintType {
			value, _ = protowire.ConsumeVarint(b)
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			break
		}
		b = b[n:]
	}
	m.SetUnknown(nil)
	return value
}

func putUnknown(m protoreflect.Message, field protowire.Number, value uint64) {
	m.SetUnknown(protowire.AppendVarint(protowire.AppendTag(m.GetUnknown(), field, protowire.VarintType), value))
}

// EnvironmentOf is an environment as clients see it: what the domain shows of
// it ([environment.Environment.Effective]), and the fields that servicepb lacks.
func EnvironmentOf(e *environment.Environment) *servicepb.Environment {
	out := &servicepb.Environment{
		Name:          e.Name.String(),
		Uuid:          e.UUID,
		State:         e.State,
		CreateTime:    timestamp(e.Created),
		UpdateTime:    timestamp(e.Updated),
		Labels:        e.Spec.Labels,
		StorageConfig: e.Spec.Storage,
	}
	out.Config = e.Effective() // a copy
	if e.Plan.VPCNative {
		putUnknown(out.Config.NodeConfig.ProtoReflect(), maxPodsPerNode, uint64(e.MaxPodsPerNode()))
	}
	if p := out.Config.PrivateEnvironmentConfig; p != nil || e.Spec.NetworkingType != "" {
		if p == nil {
			p = &servicepb.PrivateEnvironmentConfig{}
			out.Config.PrivateEnvironmentConfig = p
		}
		switch e.Spec.NetworkingType {
		case "PRIVATE":
			putUnknown(p.ProtoReflect(), networkingType, networkingPrivate)
		case "PUBLIC":
			putUnknown(p.ProtoReflect(), networkingType, networkingPublic)
		}
	}
	return out
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// OperationOf is an operation as clients of a version see it. The bytes of a
// message are the same in every version; the type URLs are not.
func (c *composer) OperationOf(o *environment.Operation, v Version) (*longrunningpb.Operation, error) {
	out := &longrunningpb.Operation{Done: o.Done()}
	if o.Name.ID != "" { // none when it only validated
		out.Name = o.Name.String()
	}
	metadata := &servicepb.OperationMetadata{
		State:         o.State,
		OperationType: o.Type,
		Resource:      o.Target.String(),
		ResourceUuid:  o.TargetUUID,
		CreateTime:    timestamp(o.Created),
		EndTime:       timestamp(o.Ended),
	}
	extra := dynamicpb.NewMessage(c.metadata)
	if len(o.Steps) > 0 {
		steps := extra.Mutable(c.metadata.Fields().ByName("steps")).List()
		for _, s := range o.Steps {
			step := steps.AppendMutable().Message()
			set(step, "name", protoreflect.ValueOfString(s.Name))
			set(step, "state", protoreflect.ValueOfEnum(s.State.Number()))
			set(step, "detail", protoreflect.ValueOfString(valid(s.Detail)))
			setTime(step, "start_time", s.Started)
			setTime(step, "end_time", s.Ended)
		}
	}
	if o.Name.ID == "" && o.Result != nil {
		planInto(extra.Mutable(c.metadata.Fields().ByName("plan")).Message(), o.Result)
	}
	unknown, err := proto.Marshal(extra)
	if err != nil {
		return nil, err
	}
	metadata.ProtoReflect().SetUnknown(unknown)
	if out.Metadata, err = pack(metadata, v.typeURL("OperationMetadata")); err != nil {
		return nil, err
	}
	if !o.Done() {
		return out, nil
	}
	if o.State == environment.Failed {
		failure := o.Error
		if failure == nil {
			failure = &environment.Error{Code: environment.Internal, Message: "the operation failed"}
		}
		out.Result = &longrunningpb.Operation_Error{Error: statusOf(failure).Proto()}
		return out, nil
	}
	var response *anypb.Any
	switch {
	case o.Type == environment.Delete:
		response, err = anypb.New(&emptypb.Empty{})
	case o.Upgrade != nil:
		response, err = pack(o.Upgrade, v.typeURL("CheckUpgradeResponse"))
	case o.Result != nil:
		response, err = pack(EnvironmentOf(o.Result), v.typeURL("Environment"))
	case o.Type == environment.Check:
		response, err = pack(&servicepb.CheckUpgradeResponse{}, v.typeURL("CheckUpgradeResponse"))
	default:
		response, err = pack(&servicepb.Environment{Name: o.Target.String(), Uuid: o.TargetUUID}, v.typeURL("Environment"))
	}
	if err != nil {
		return nil, err
	}
	out.Result = &longrunningpb.Operation_Response{Response: response}
	return out, nil
}

func pack(m proto.Message, url string) (*anypb.Any, error) {
	b, err := proto.Marshal(m)
	return &anypb.Any{TypeUrl: url, Value: b}, err
}

// planInto tells an environment's whole plan.
func planInto(m protoreflect.Message, e *environment.Environment) {
	text := protoreflect.ValueOfString
	number := func(n int) protoreflect.Value { return protoreflect.ValueOfInt32(int32(n)) }
	list := func(name protoreflect.Name) protoreflect.List {
		return m.Mutable(m.Descriptor().Fields().ByName(name)).List()
	}
	p := e.Plan
	set(m, "network", text(p.Network))
	set(m, "subnetwork", text(p.Subnetwork))
	set(m, "vpc_native", protoreflect.ValueOfBool(p.VPCNative))
	for _, r := range p.Ranges {
		one := list("ranges").AppendMutable().Message()
		set(one, "kind", text(string(r.Kind)))
		set(one, "cidr_block", text(r.Prefix.String()))
		set(one, "chosen_by", text(string(r.By)))
		set(one, "secondary_range_name", text(r.Name))
	}
	if e.AgentEnabled() { // which must never masquerade traffic within the cluster
		for _, r := range p.InCluster() {
			list("agent_exempts").Append(text(r.Prefix.String()))
		}
	}
	for _, a := range p.NodeAddresses {
		list("node_addresses").Append(text(a.String()))
	}
	set(m, "node_pod_prefix_length", number(p.NodePodBits))
	set(m, "max_pods_per_node", number(p.MaxPodsPerNode))
	set(m, "max_nodes", number(p.MaxNodes))
	set(m, "max_services", number(p.MaxServices))
	set(m, "cluster", text(e.Cluster))
	for _, w := range p.Warnings {
		list("warnings").Append(text(valid(w)))
	}
}

// set sets a field of a message by its name; zero values are left out by
// protobuf itself.
func set(m protoreflect.Message, name protoreflect.Name, v protoreflect.Value) {
	m.Set(m.Descriptor().Fields().ByName(name), v)
}

func setTime(m protoreflect.Message, name protoreflect.Name, t time.Time) {
	if t.IsZero() {
		return
	}
	stamp := m.Mutable(m.Descriptor().Fields().ByName(name)).Message()
	set(stamp, "seconds", protoreflect.ValueOfInt64(t.Unix()))
	set(stamp, "nanos", protoreflect.ValueOfInt32(int32(t.Nanosecond())))
}
