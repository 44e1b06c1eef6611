package wire

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/genproto/googleapis/type/date"
	"google.golang.org/protobuf/proto"

	"sordino/environment"
	"sordino/environment/address"
)

// memory is a small domain that keeps environments in memory, so that this
// package is tested by itself: what it takes over the wire and gives back.
// Operations end when they are asked for the second time, as a fast driver's
// would.
type memory struct {
	mu           sync.Mutex
	environments map[string]*environment.Environment
	operations   map[string]*environment.Operation
	asked        map[string]int
	ids          int
	// masks are those of the updates, as they came.
	masks [][]string
	// fail is what the next operation fails with.
	fail *environment.Error
	// panics makes Get panic, broken makes it return an error of no kind.
	panics, broken bool
}

var start = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func newMemory() *memory {
	return &memory{environments: map[string]*environment.Environment{}, operations: map[string]*environment.Operation{}, asked: map[string]int{}}
}

func notFound(name string) error {
	return &environment.Error{
		Code: environment.NotFound, Reason: "ENVIRONMENT_NOT_FOUND", Message: "there is no environment " + name,
		Metadata: map[string]string{"name": name}, Resource: &environment.Resource{Type: "Environment", Name: name},
	}
}

func (m *memory) operation(t environment.OperationType, e *environment.Environment, o environment.CallOptions) *environment.Operation {
	op := &environment.Operation{Type: t, State: environment.Pending, Target: e.Name, TargetUUID: e.UUID, Created: start}
	if o.ValidateOnly {
		op.State, op.Ended, op.Result = environment.Succeeded, start, e
		return op
	}
	m.ids++
	op.Name = environment.OperationName{Location: e.Name.Location, ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", m.ids)}
	op.Steps = []environment.Step{{Name: "network", State: environment.Pending}}
	if m.fail != nil {
		op.Error, m.fail = m.fail, nil
	}
	m.operations[op.Name.String()] = op
	return op
}

func (m *memory) Create(_ context.Context, r environment.CreateRequest) (*environment.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Name.Location != r.Parent {
		return nil, &environment.Error{Code: environment.InvalidArgument, Reason: "NAME_PARENT_MISMATCH", Message: "the name is not in the parent"}
	}
	if node := r.Spec.Config.GetNodeConfig(); node.GetEnableIpMasqAgent() && !node.GetIpAllocationPolicy().GetUseIpAliases() {
		err := environment.Refuse([]environment.Violation{{
			Field: "config.node_config.enable_ip_masq_agent", Reason: "IP_MASQ_AGENT_REQUIRES_IP_ALIAS",
			Description: "the agent needs IP alias; set ipAllocationPolicy.useIpAliases to true",
		}})
		err.(*environment.Error).Help = []environment.Link{{Description: "IP alias and the agent", URL: "https://example.com/agent"}}
		return nil, err
	}
	if m.environments[r.Name.String()] != nil {
		return nil, &environment.Error{Code: environment.AlreadyExists, Reason: "ENVIRONMENT_ALREADY_EXISTS", Message: r.Name.String() + " exists already",
			Resource: &environment.Resource{Type: "Environment", Name: r.Name.String()}}
	}
	e := &environment.Environment{Name: r.Name, UUID: "11111111-1111-4111-8111-111111111111", State: environment.Creating, Spec: r.Spec, Created: start, Updated: start, Plan: plan()}
	if e.Spec.Config == nil {
		e.Spec.Config = &servicepb.EnvironmentConfig{}
	}
	if e.Spec.Config.SoftwareConfig == nil {
		e.Spec.Config.SoftwareConfig = &servicepb.SoftwareConfig{}
	}
	if e.Spec.Config.SoftwareConfig.ImageVersion == "" {
		e.Spec.Config.SoftwareConfig.ImageVersion = "composer-1.20.12-airflow-2.4.3"
	}
	if !r.ValidateOnly {
		m.environments[r.Name.String()] = e
	}
	return m.operation(environment.Create, e, r.CallOptions), nil
}

func (m *memory) Get(_ context.Context, name environment.Name) (*environment.Environment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.panics {
		panic("a secret of the server")
	}
	if m.broken {
		return nil, fmt.Errorf("reading /secret/path: disk on fire")
	}
	e := m.environments[name.String()]
	if e == nil {
		return nil, notFound(name.String())
	}
	return e, nil
}

func (m *memory) List(_ context.Context, l environment.Location, p environment.Page) ([]*environment.Environment, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.Size < 0 {
		return nil, "", &environment.Error{Code: environment.InvalidArgument, Reason: "PAGE_SIZE_NEGATIVE", Message: "pageSize is negative", Violations: []environment.Violation{{Field: "page_size", Description: "is negative"}}}
	}
	var all []*environment.Environment
	for _, e := range m.environments {
		if e.Name.Project == l.Project && (l.ID == "-" || e.Name.Location == l) {
			all = append(all, e)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name.Compare(all[j].Name) < 0 })
	from, _ := strconv.Atoi(p.Token)
	size := int(p.Size)
	if size == 0 {
		size = 1000
	}
	all = all[min(from, len(all)):]
	next := ""
	if len(all) > size {
		all, next = all[:size], strconv.Itoa(from+size)
	}
	return all, next, nil
}

func (m *memory) Update(_ context.Context, r environment.UpdateRequest) (*environment.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.environments[r.Name.String()]
	if e == nil {
		return nil, notFound(r.Name.String())
	}
	if len(r.Mask) == 0 {
		return nil, &environment.Error{Code: environment.InvalidArgument, Reason: "UPDATE_MASK_MISSING", Message: "say what to change in updateMask", Violations: []environment.Violation{{Field: "update_mask"}}}
	}
	m.masks = append(m.masks, r.Mask)
	e.Generation++
	proto.Merge(e.Spec.Config, r.Spec.Config)
	return m.operation(environment.Update, e, r.CallOptions), nil
}

func (m *memory) Delete(_ context.Context, name environment.Name, o environment.CallOptions) (*environment.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.environments[name.String()]
	if e == nil {
		return nil, notFound(name.String())
	}
	e.State = environment.Deleting
	return m.operation(environment.Delete, e, o), nil
}

func (m *memory) CheckUpgrade(_ context.Context, name environment.Name, image string, o environment.CallOptions) (*environment.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.environments[name.String()]
	if e == nil {
		return nil, notFound(name.String())
	}
	op := m.operation(environment.Check, e, o)
	op.Upgrade = &servicepb.CheckUpgradeResponse{ImageVersion: image, ContainsPypiModulesConflict: servicepb.CheckUpgradeResponse_NO_CONFLICT}
	return op, nil
}

func (m *memory) RestartWebServer(_ context.Context, name environment.Name, o environment.CallOptions) (*environment.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.environments[name.String()]
	if e == nil {
		return nil, notFound(name.String())
	}
	return m.operation(environment.Update, e, o), nil
}

var images = []*servicepb.ImageVersion{
	{ImageVersionId: "composer-1.20.12-airflow-1.10.15", SupportedPythonVersions: []string{"2", "3"}, ReleaseDate: &date.Date{Year: 2023, Month: 9, Day: 26}},
	{ImageVersionId: "composer-1.20.12-airflow-2.4.3", IsDefault: true, SupportedPythonVersions: []string{"3"}},
}

func (m *memory) ImageVersions(context.Context, environment.Location, environment.Page, bool) ([]*servicepb.ImageVersion, string, error) {
	return images, "", nil
}

func (m *memory) ImageVersion(_ context.Context, _ environment.Location, id string) (*servicepb.ImageVersion, error) {
	for _, v := range images {
		if v.ImageVersionId == id {
			return v, nil
		}
	}
	return nil, &environment.Error{Code: environment.NotFound, Reason: "IMAGE_VERSION_NOT_FOUND", Message: "there is no image version " + id}
}

func (m *memory) Operation(_ context.Context, name environment.OperationName) (*environment.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.operations[name.String()]
	if o == nil {
		return nil, &environment.Error{Code: environment.NotFound, Reason: "OPERATION_NOT_FOUND", Message: "there is no operation " + name.String()}
	}
	if m.asked[name.String()]++; m.asked[name.String()] > 1 && !o.Done() {
		m.end(o)
	}
	c := *o
	return &c, nil
}

// end ends an operation.
func (m *memory) end(o *environment.Operation) {
	o.State, o.Ended = environment.Succeeded, start.Add(time.Minute)
	o.Steps = []environment.Step{{Name: "network", State: environment.Succeeded, Detail: "10.128.0.0/20", Started: start, Ended: start.Add(time.Second)}}
	e := m.environments[o.Target.String()]
	if o.Error != nil {
		o.State, e.State = environment.Failed, environment.Errored
		return
	}
	if o.Type == environment.Delete {
		delete(m.environments, o.Target.String())
		return
	}
	e.State = environment.Running
	c := *e
	o.Result = &c
}

func (m *memory) Operations(_ context.Context, l environment.Location, filter string, _ environment.Page) ([]*environment.Operation, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if filter != "" {
		return nil, "", &environment.Error{Code: environment.InvalidArgument, Reason: "FILTER_MALFORMED", Message: "the filter is not understood: " + filter}
	}
	var all []*environment.Operation
	for _, o := range m.operations {
		if o.Name.Project == l.Project {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b *environment.Operation) int { return strings.Compare(a.Name.ID, b.Name.ID) })
	return all, "", nil
}

func (m *memory) DeleteOperation(_ context.Context, name environment.OperationName) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.operations[name.String()] == nil {
		return &environment.Error{Code: environment.NotFound, Reason: "OPERATION_NOT_FOUND", Message: "there is no operation " + name.String()}
	}
	delete(m.operations, name.String())
	return nil
}

func (m *memory) CancelOperation(_ context.Context, name environment.OperationName) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.operations[name.String()]
	if o == nil {
		return &environment.Error{Code: environment.NotFound, Reason: "OPERATION_NOT_FOUND", Message: "there is no operation " + name.String()}
	}
	o.CancelRequested = true
	return nil
}

var _ Environments = (*memory)(nil)

func plan() address.Plan {
	return address.Plan{
		Network: "projects/example-project/global/networks/default", Subnetwork: "projects/example-project/regions/us-central1/subnetworks/default",
		VPCNative: true,
		Ranges: []address.Range{
			{Kind: address.Nodes, Prefix: prefix("10.128.0.0/20"), By: address.Named},
			{Kind: address.Pods, Prefix: prefix("10.4.0.0/14"), By: address.Chosen},
			{Kind: address.Services, Prefix: prefix("10.0.32.0/20"), By: address.Chosen},
		},
		NodeAddresses: addrs("10.128.0.2", "10.128.0.3", "10.128.0.4"),
		NodePodBits:   26, MaxPodsPerNode: 32, MaxNodes: 4096, MaxServices: 4096,
		Warnings: []string{"the Pod range is larger than the environment can use"},
	}
}
