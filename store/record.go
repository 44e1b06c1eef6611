package store

import (
	"encoding/json"
	"fmt"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/protobuf/proto"

	"sordino/environment"
	"sordino/environment/address"
)

// Records are what is stored. Plan, AgentConfig, Observed, Step, Error and Name
// are the domain's own types: their json tags are the format, and a test holds
// all names to testdata/fields.txt. Messages of the API are in their binary form,
// which keeps fields that this program does not know.

// message is a proto message in JSON: base64 of its binary form. null is none.
type message []byte

func encodeMessage[M any, P interface {
	*M
	proto.Message
}](m P) (message, error) {
	if m == nil {
		return nil, nil
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if data == nil {
		data = []byte{}
	}
	return data, err
}

func decodeMessage[M any, P interface {
	*M
	proto.Message
}](data message) (P, error) {
	if data == nil {
		return nil, nil
	}
	m := P(new(M))
	return m, proto.Unmarshal(data, m)
}

// specRecord is an environment.Spec but for its config, which is in a column
// where it is an environment's own.
type specRecord struct {
	Config         message           `json:"config,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Storage        message           `json:"storage"`
	MaxPodsPerNode int32             `json:"maxPodsPerNode,omitempty"`
	NetworkingType string            `json:"networkingType,omitempty"`
}

func encodeSpec(s environment.Spec) (r specRecord, err error) {
	r = specRecord{Labels: s.Labels, MaxPodsPerNode: s.MaxPodsPerNode, NetworkingType: s.NetworkingType}
	if r.Config, err = encodeMessage(s.Config); err != nil {
		return r, err
	}
	r.Storage, err = encodeMessage(s.Storage)
	return r, err
}

func (r specRecord) decode() (s environment.Spec, err error) {
	s = environment.Spec{Labels: r.Labels, MaxPodsPerNode: r.MaxPodsPerNode, NetworkingType: r.NetworkingType}
	if s.Config, err = decodeMessage[servicepb.EnvironmentConfig](r.Config); err != nil {
		return s, err
	}
	s.Storage, err = decodeMessage[servicepb.StorageConfig](r.Storage)
	return s, err
}

// environmentDocument is what of an environment is in no column.
type environmentDocument struct {
	Spec     specRecord              `json:"spec"`
	Plan     address.Plan            `json:"plan"`
	Agent    environment.AgentConfig `json:"agent"`
	Observed environment.Observed    `json:"observed"`
}

// environmentRecord is a whole environment, as the result of an operation.
type environmentRecord struct {
	Name       environment.Name  `json:"name"`
	UUID       string            `json:"uuid"`
	State      environment.State `json:"state"`
	Created    int64             `json:"created"`
	Updated    int64             `json:"updated"`
	Generation int64             `json:"generation"`
	Revision   int64             `json:"revision"`
	Cluster    string            `json:"cluster,omitempty"` // a column of an environment
	environmentDocument
}

func encodeEnvironment(e *environment.Environment) (r environmentRecord, err error) {
	r = environmentRecord{Name: e.Name, UUID: e.UUID, State: e.State, Created: nanoseconds(e.Created), Updated: nanoseconds(e.Updated),
		Generation: e.Generation, Revision: e.Revision, Cluster: e.Cluster,
		environmentDocument: environmentDocument{Plan: e.Plan, Agent: e.Agent, Observed: e.Observed}}
	r.Spec, err = encodeSpec(e.Spec)
	return r, err
}

func (r environmentRecord) decode() (*environment.Environment, error) {
	spec, err := r.Spec.decode()
	if err != nil {
		return nil, err
	}
	return &environment.Environment{Name: r.Name, UUID: r.UUID, State: r.State, Spec: spec,
		Created: moment(r.Created), Updated: moment(r.Updated), Plan: r.Plan, Agent: r.Agent,
		Generation: r.Generation, Observed: r.Observed, Revision: r.Revision, Cluster: r.Cluster}, nil
}

// operationDocument is what of an operation is in no column.
type operationDocument struct {
	Type             environment.OperationType  `json:"type"`
	State            environment.OperationState `json:"state"`
	Target           environment.Name           `json:"target"`
	Generation       int64                      `json:"generation"`
	Steps            []environment.Step         `json:"steps,omitempty"`
	Error            *environment.Error         `json:"error,omitempty"`
	Result           *environmentRecord         `json:"result,omitempty"`
	Upgrade          message                    `json:"upgrade"`
	Previous         *previousRecord            `json:"previous,omitempty"`
	CancelRequested  bool                       `json:"cancelRequested,omitempty"`
	RestartWebServer bool                       `json:"restartWebServer,omitempty"`
}

type previousRecord struct {
	Spec  specRecord              `json:"spec"`
	Plan  address.Plan            `json:"plan"`
	Agent environment.AgentConfig `json:"agent"`
}

func encodeOperation(o *environment.Operation) (string, error) {
	d := operationDocument{Type: o.Type, State: o.State, Target: o.Target, Generation: o.Generation, Steps: o.Steps, Error: o.Error,
		CancelRequested: o.CancelRequested, RestartWebServer: o.RestartWebServer}
	var err error
	if d.Upgrade, err = encodeMessage(o.Upgrade); err != nil {
		return "", err
	}
	if o.Result != nil {
		result, err := encodeEnvironment(o.Result)
		if err != nil {
			return "", err
		}
		d.Result = &result
	}
	if o.Previous != nil {
		spec, err := encodeSpec(o.Previous.Spec)
		if err != nil {
			return "", err
		}
		d.Previous = &previousRecord{spec, o.Previous.Plan, o.Previous.Agent}
	}
	data, err := json.Marshal(d)
	return string(data), err
}

// decodeOperation fills in what the columns do not hold.
func decodeOperation(o *environment.Operation, document []byte) error {
	var d operationDocument
	if err := json.Unmarshal(document, &d); err != nil {
		return fmt.Errorf("the stored operation %s: %w", o.Name, err)
	}
	o.Type, o.State, o.Target, o.Generation, o.Steps, o.Error = d.Type, d.State, d.Target, d.Generation, d.Steps, d.Error
	o.CancelRequested, o.RestartWebServer = d.CancelRequested, d.RestartWebServer
	var err error
	if o.Upgrade, err = decodeMessage[servicepb.CheckUpgradeResponse](d.Upgrade); err != nil {
		return fmt.Errorf("the stored operation %s: %w", o.Name, err)
	}
	if d.Result != nil {
		if o.Result, err = d.Result.decode(); err != nil {
			return fmt.Errorf("the stored operation %s: %w", o.Name, err)
		}
	}
	if d.Previous != nil {
		spec, err := d.Previous.Spec.decode()
		if err != nil {
			return fmt.Errorf("the stored operation %s: %w", o.Name, err)
		}
		o.Previous = &environment.Previous{Spec: spec, Plan: d.Previous.Plan, Agent: d.Previous.Agent}
	}
	return nil
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func moment(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds).UTC()
}
