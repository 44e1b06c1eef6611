package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/testing/protocmp"

	"sordino/environment"
	"sordino/environment/address"
	"sordino/store"
	"sordino/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var here = environment.Location{Project: "p", ID: "us-central1"}

func name(id string) environment.Name { return environment.Name{Location: here, ID: id} }

// number is a test's environment number i: an own Pod range, 3 nodes.
func number(i int) *environment.Environment {
	base := netip.AddrFrom4([4]byte{10, byte(i >> 7), byte(i << 1), 0})
	e := &environment.Environment{
		Name: name(fmt.Sprintf("e%05d", i)), UUID: uuid.NewString(), State: environment.Creating, Generation: 1,
		Created: time.Unix(1_800_000_000, int64(i)).UTC(), Updated: time.Unix(1_800_000_001, int64(i)).UTC(),
		Spec: environment.Spec{
			Config: &servicepb.EnvironmentConfig{NodeCount: 3, NodeConfig: &servicepb.NodeConfig{
				Location: "projects/p/zones/us-central1-a", MachineType: "projects/p/zones/us-central1-a/machineTypes/n1-standard-1",
				Network: "projects/p/global/networks/default", DiskSizeGb: 100, EnableIpMasqAgent: true,
				IpAllocationPolicy: &servicepb.IPAllocationPolicy{UseIpAliases: true},
			}, SoftwareConfig: &servicepb.SoftwareConfig{ImageVersion: "composer-1.20.12-airflow-1.10.15", PythonVersion: "3"}},
			Labels: map[string]string{"team": "data"},
		},
		Plan: address.Plan{Network: "projects/p/global/networks/default", Subnetwork: "projects/p/regions/us-central1/subnetworks/default", VPCNative: true,
			Ranges: []address.Range{
				{Kind: address.Nodes, Prefix: netip.MustParsePrefix("10.128.0.0/20"), By: address.Named, Name: "default"},
				{Kind: address.Pods, Prefix: netip.PrefixFrom(base, 23), By: address.Chosen},
				{Kind: address.Services, Prefix: netip.MustParsePrefix("172.16.0.0/27"), By: address.Chosen},
			},
			NodeAddresses: []netip.Addr{netip.MustParseAddr("10.128.0.2"), netip.MustParseAddr("10.128.0.3"), netip.MustParseAddr("10.128.0.4")},
			NodePodBits:   26, MaxPodsPerNode: 32, MaxNodes: 8, MaxServices: 32},
		Agent: environment.AgentConfig{Text: "nonMasqueradeCIDRs: [10.0.0.0/8]\n", Generation: 1},
	}
	for n := range 3 {
		e.Observed.Nodes = append(e.Observed.Nodes, environment.ObservedNode{Name: fmt.Sprintf("node-%d", n+1), Ready: true, ConfigGeneration: 1, DesiredGeneration: 3, AppliedGeneration: 3, Hash: strings.Repeat("ab", 32)})
	}
	return e
}

func createOf(e *environment.Environment) *environment.Operation {
	return &environment.Operation{Name: environment.OperationName{Location: e.Name.Location, ID: uuid.NewString()}, Type: environment.Create,
		State: environment.Pending, Target: e.Name, TargetUUID: e.UUID, Created: e.Created, Generation: e.Generation}
}

func update(tb testing.TB, s *store.Store, do func(environment.Tx) error) {
	tb.Helper()
	if err := s.Update(context.Background(), do); err != nil {
		tb.Fatal(err)
	}
}

func view(tb testing.TB, s *store.Store, do func(environment.Tx) error) {
	tb.Helper()
	if err := s.View(context.Background(), do); err != nil {
		tb.Fatal(err)
	}
}

var exactly = cmp.Options{protocmp.Transform(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}

func TestEnvironmentComesBackAsItWas(t *testing.T) {
	folder := storetest.Folder(t)
	e := number(1)
	// A field of a newer API: stays what it is.
	e.Spec.Config.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 5000, protowire.BytesType), "of the future"))
	e.Spec.Storage = &servicepb.StorageConfig{}
	empty := &environment.Environment{Name: name("empty"), UUID: "u", State: environment.Errored}
	noConfig := &environment.Environment{Name: name("no-fields"), UUID: "v", Spec: environment.Spec{Config: &servicepb.EnvironmentConfig{}}}
	func() {
		s, err := store.Open(folder)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		update(t, s, func(tx environment.Tx) error {
			return errors.Join(tx.PutEnvironment(e), tx.PutEnvironment(empty), tx.PutEnvironment(noConfig))
		})
	}()
	s := storetest.OpenIn(t, folder)
	for _, want := range []*environment.Environment{e, empty, noConfig} {
		view(t, s, func(tx environment.Tx) error {
			got, err := tx.Environment(want.Name)
			if err != nil {
				return err
			}
			if diff := cmp.Diff(want, got, exactly); diff != "" {
				t.Errorf("stored and read (-want +got):\n%s", diff)
			}
			return nil
		})
	}
}

func TestOperationComesBackAsItWas(t *testing.T) {
	s := storetest.Open(t)
	e := number(1)
	full := createOf(e)
	full.State, full.Ended, full.CancelRequested, full.RestartWebServer = environment.Failed, e.Created.Add(time.Minute), true, true
	full.Steps = []environment.Step{{Name: "build", State: environment.Succeeded, Detail: "3 nodes", Started: e.Created, Ended: e.Updated}}
	full.Error = &environment.Error{Code: environment.Aborted, Reason: "R", Message: "m", Metadata: map[string]string{"a": "b"},
		Violations: []environment.Violation{{Field: "f", Reason: "r", Description: "d"}}, Help: []environment.Link{{Description: "d", URL: "u"}}}
	full.Result = e
	full.Previous = &environment.Previous{Spec: e.Spec, Plan: e.Plan, Agent: e.Agent}
	full.Upgrade = &servicepb.CheckUpgradeResponse{BuildLogUri: "x"}
	for _, want := range []*environment.Operation{full, createOf(e)} {
		update(t, s, func(tx environment.Tx) error { return tx.PutOperation(want) })
		view(t, s, func(tx environment.Tx) error {
			got, err := tx.Operation(want.Name)
			if err != nil {
				return err
			}
			if diff := cmp.Diff(want, got, exactly); diff != "" {
				t.Errorf("stored and read (-want +got):\n%s", diff)
			}
			return nil
		})
	}
}

func TestNotFound(t *testing.T) {
	s := storetest.Open(t)
	view(t, s, func(tx environment.Tx) error {
		_, err := tx.Environment(name("x"))
		_, err2 := tx.Operation(environment.OperationName{Location: here, ID: "x"})
		_, err3 := tx.Request("p", "x")
		for _, err := range []error{err, err2, err3} {
			if !errors.Is(err, environment.ErrNotFound) {
				t.Errorf("got %v", err)
			}
		}
		if o, err := tx.RunningOperation("x"); o != nil || err != nil {
			t.Error(o, err)
		}
		return nil
	})
	update(t, s, func(tx environment.Tx) error {
		return errors.Join(tx.DeleteEnvironment(name("x")), tx.DeleteOperation(environment.OperationName{Location: here, ID: "x"}))
	})
}

func TestRevision(t *testing.T) {
	s := storetest.Open(t)
	e := number(1)
	stale := *e
	update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(e) })
	if e.Revision != 1 {
		t.Fatalf("revision %d after the insert", e.Revision)
	}
	conflict := func(what string, e environment.Environment) {
		t.Helper()
		if err := s.Update(t.Context(), func(tx environment.Tx) error { return tx.PutEnvironment(&e) }); !errors.Is(err, environment.ErrConflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	conflict("inserted again", stale)
	old := *e
	update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(e) })
	conflict("written from an old reading", old)
	ahead := *e
	ahead.Revision++
	conflict("a revision that never was", ahead)

	again := number(1)
	update(t, s, func(tx environment.Tx) error {
		return errors.Join(tx.DeleteEnvironment(e.Name), tx.PutEnvironment(again), tx.PutEnvironment(again))
	})
	conflict("an outcome for the one before, under the same name and revision", *e)
	other := number(2)
	other.UUID = again.UUID
	conflict("another name with the same UUID", *other)
}

func TestEnvironmentPages(t *testing.T) {
	s := storetest.Open(t)
	var all []environment.Name
	update(t, s, func(tx environment.Tx) error {
		for i := range 60 {
			e := number(i)
			e.Name.Project, e.Name.Location.ID = []string{"p", "q"}[i%2], []string{"a", "b", "c"}[i%3]
			e.State = environment.State(1 + i%5)
			all = append(all, e.Name)
			if err := tx.PutEnvironment(e); err != nil {
				return err
			}
		}
		return nil
	})
	slices.SortFunc(all, environment.Name.Compare)
	for _, q := range []environment.EnvironmentQuery{{}, {Project: "p"}, {Project: "q", Location: "b"}, {Location: "c"}, {Unsettled: true}, {Project: "p", Unsettled: true}} {
		var want, got []environment.Name
		for _, n := range all {
			i := 0
			fmt.Sscanf(n.ID, "e%d", &i)
			unsettled := i%5 == 0 || i%5 == 2 || i%5 == 3
			if (q.Project == "" || q.Project == n.Project) && (q.Location == "" || q.Location == n.Location.ID) && (!q.Unsettled || unsettled) {
				want = append(want, n)
			}
		}
		for q.Limit = 7; ; {
			var page []*environment.Environment
			view(t, s, func(tx environment.Tx) (err error) { page, err = tx.Environments(q); return err })
			for _, e := range page {
				got = append(got, e.Name)
			}
			if len(page) < q.Limit {
				break
			}
			q.After = page[len(page)-1].Name
		}
		if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
			t.Errorf("%+v (-want +got):\n%s", q, diff)
		}
	}
}

func TestOperationPages(t *testing.T) {
	s := storetest.Open(t)
	var all []*environment.Operation
	update(t, s, func(tx environment.Tx) error {
		for i := range 60 {
			o := createOf(number(i))
			o.Name.Project, o.Name.Location.ID = []string{"p", "q"}[i%2], []string{"a", "b", "c"}[i%3]
			o.Created = time.Unix(int64(1000+i/4), 0).UTC() // several at once
			if i%5 > 0 {
				o.State, o.Ended = environment.Succeeded, time.Unix(int64(2000+i), 0).UTC()
			}
			all = append(all, o)
			if err := tx.PutOperation(o); err != nil {
				return err
			}
		}
		return nil
	})
	slices.SortFunc(all, func(a, b *environment.Operation) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(b.Name.ID, a.Name.ID)
	})
	before := time.Unix(2031, 0)
	for _, q := range []environment.OperationQuery{{}, {Project: "p"}, {Project: "q", Location: "b"}, {Unfinished: true}, {EndedBefore: before}} {
		var want, got []environment.OperationName
		for _, o := range all {
			if (q.Project == "" || q.Project == o.Name.Project) && (q.Location == "" || q.Location == o.Name.Location.ID) && (!q.Unfinished || !o.Done()) &&
				(q.EndedBefore.IsZero() || o.Done() && o.Ended.Before(before)) {
				want = append(want, o.Name)
			}
		}
		for q.Limit = 7; ; {
			var page []*environment.Operation
			view(t, s, func(tx environment.Tx) (err error) { page, err = tx.Operations(q); return err })
			for _, o := range page {
				got = append(got, o.Name)
			}
			if len(page) < q.Limit {
				break
			}
			q.Before = page[len(page)-1]
		}
		if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
			t.Errorf("%+v (-want +got):\n%s", q, diff)
		}
	}
}

func TestEnvironmentNames(t *testing.T) {
	s := storetest.Open(t)
	want := map[string]environment.Name{}
	update(t, s, func(tx environment.Tx) (err error) {
		for i := range 3 {
			e := number(i)
			want[e.UUID] = e.Name
			err = errors.Join(err, tx.PutEnvironment(e))
		}
		return err
	})
	view(t, s, func(tx environment.Tx) error {
		got, err := tx.EnvironmentNames()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		return err
	})
}

func TestOneRunningOperation(t *testing.T) {
	s := storetest.Open(t)
	e := number(1)
	first, second := createOf(e), createOf(e)
	update(t, s, func(tx environment.Tx) error { return tx.PutOperation(first) })
	if err := s.Update(t.Context(), func(tx environment.Tx) error { return tx.PutOperation(second) }); !errors.Is(err, environment.ErrConflict) {
		t.Errorf("a second operation: %v", err)
	}
	first.State, first.Ended = environment.Failed, time.Now()
	update(t, s, func(tx environment.Tx) error { return errors.Join(tx.PutOperation(first), tx.PutOperation(second)) })
	view(t, s, func(tx environment.Tx) error {
		o, err := tx.RunningOperation(e.UUID)
		if o == nil || o.Name != second.Name {
			t.Errorf("running: %v", o)
		}
		return err
	})
}

func TestReservations(t *testing.T) {
	s := storetest.Open(t)
	e, other := number(1), number(2)
	other.Plan.Network = "projects/p/global/networks/other"
	update(t, s, func(tx environment.Tx) error { return errors.Join(tx.PutEnvironment(e), tx.PutEnvironment(other)) })
	reserved := func() (list []string) {
		view(t, s, func(tx environment.Tx) error {
			reservations, err := tx.Reservations(e.Plan.Network)
			for _, r := range reservations {
				list = append(list, fmt.Sprintf("%s %s %s", r.Owner, r.Kind, r.Prefix))
			}
			return err
		})
		return list
	}
	// A transaction that writes sees its own, and keeps lists for the next.
	alike := func(when string) {
		t.Helper()
		var within []address.Reservation
		want := errors.New("mine")
		if err := s.Update(t.Context(), func(tx environment.Tx) (err error) {
			within, err = tx.Reservations(e.Plan.Network)
			return errors.Join(err, want)
		}); !errors.Is(err, want) {
			t.Fatal(err)
		}
		view(t, s, func(tx environment.Tx) error {
			outside, err := tx.Reservations(e.Plan.Network)
			if diff := cmp.Diff(outside, within, exactly, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s a View has (-), an Update (+):\n%s", when, diff)
			}
			return err
		})
	}
	alike("at first")
	update(t, s, func(tx environment.Tx) error {
		return errors.Join(tx.PutEnvironment(number(3)), tx.DeleteEnvironment(number(3).Name), tx.PutEnvironment(number(4)))
	})
	alike("after more")
	_ = s.Update(t.Context(), func(tx environment.Tx) error {
		return errors.Join(tx.DeleteEnvironment(e.Name), tx.PutEnvironment(number(3)), errors.New("mine"))
	})
	alike("after what did not happen")
	update(t, s, func(tx environment.Tx) error { return tx.DeleteEnvironment(number(4).Name) })
	alike("after a delete")
	own := e.Name.String()
	if diff := cmp.Diff([]string{own + " Pod 10.0.2.0/23", own + " Service 172.16.0.0/27",
		own + " node 10.128.0.2/32", own + " node 10.128.0.3/32", own + " node 10.128.0.4/32"}, reserved()); diff != "" {
		t.Errorf("reserved (-want +got):\n%s", diff)
	}
	e.Plan.Ranges, e.Plan.NodeAddresses = e.Plan.Ranges[1:2], nil
	update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(e) })
	alike("after a change")
	if diff := cmp.Diff([]string{own + " Pod 10.0.2.0/23"}, reserved()); diff != "" {
		t.Errorf("after the change (-want +got):\n%s", diff)
	}
	update(t, s, func(tx environment.Tx) error { return tx.DeleteEnvironment(e.Name) })
	alike("after the delete")
	if got := reserved(); len(got) > 0 {
		t.Errorf("after the delete: %v", got)
	}
}

func TestRequests(t *testing.T) {
	s := storetest.Open(t)
	o := createOf(number(1))
	want := environment.Request{Fingerprint: "f", Operation: o.Name, Created: o.Created}
	// In either order within the transaction.
	update(t, s, func(tx environment.Tx) error {
		return errors.Join(tx.PutRequest("p", "r", want), tx.PutOperation(o))
	})
	view(t, s, func(tx environment.Tx) error {
		got, err := tx.Request("p", "r")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if _, err := tx.Request("q", "r"); !errors.Is(err, environment.ErrNotFound) {
			t.Errorf("another project's: %v", err)
		}
		return err
	})
	// Forgotten with its operation.
	update(t, s, func(tx environment.Tx) error { return tx.DeleteOperation(o.Name) })
	view(t, s, func(tx environment.Tx) error {
		if _, err := tx.Request("p", "r"); !errors.Is(err, environment.ErrNotFound) {
			t.Errorf("after its operation: %v", err)
		}
		return nil
	})
	if err := s.Update(t.Context(), func(tx environment.Tx) error { return tx.PutRequest("p", "r", want) }); err == nil {
		t.Error("a request without its operation was stored")
	}
	update(t, s, func(tx environment.Tx) error { return tx.PutOperation(o) }) // the writer is usable
}

func TestTransactions(t *testing.T) {
	s := storetest.Open(t)
	e := number(1)
	absent := func(what string) {
		t.Helper()
		view(t, s, func(tx environment.Tx) error {
			if list, err := tx.Environments(environment.EnvironmentQuery{}); len(list) > 0 || err != nil {
				t.Errorf("%s: %d stored, %v", what, len(list), err)
			}
			return nil
		})
	}
	mine := errors.New("mine")
	var kept environment.Tx
	if err := s.Update(t.Context(), func(tx environment.Tx) error {
		kept = tx
		fresh := *e
		return errors.Join(tx.PutEnvironment(&fresh), mine)
	}); !errors.Is(err, mine) {
		t.Errorf("the function's own error: %v", err)
	}
	absent("a function that returned an error")
	if _, err := kept.Environment(e.Name); err == nil {
		t.Error("a transaction that has ended was used")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = s.Update(t.Context(), func(tx environment.Tx) error {
			fresh := *e
			if err := tx.PutEnvironment(&fresh); err != nil {
				t.Error(err)
			}
			panic("mine")
		})
	}()
	absent("a function that panicked")
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Update(ctx, func(tx environment.Tx) error {
		fresh := *e
		err := tx.PutEnvironment(&fresh)
		cancel()
		return err
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
	absent("a context that ended")
	if err := s.View(t.Context(), func(tx environment.Tx) error {
		fresh := *e
		return tx.PutEnvironment(&fresh)
	}); err == nil {
		t.Error("a View wrote")
	}
	absent("a View that writes")
}

// One state from the first read to the end, and no waiting for the writer.
func TestViewSeesOneState(t *testing.T) {
	s := storetest.Open(t)
	view(t, s, func(tx environment.Tx) error {
		count := func() int {
			list, err := tx.Environments(environment.EnvironmentQuery{})
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		before := count()
		update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(number(1)) })
		if after := count(); before != 0 || after != 0 {
			t.Errorf("%d, then %d in one View", before, after)
		}
		return nil
	})
}

func TestModes(t *testing.T) {
	folder := filepath.Join(storetest.Folder(t), "a", "b")
	s := storetest.OpenIn(t, folder)
	update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(number(1)) })
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, entry := range entries {
		info, _ := entry.Info()
		got[entry.Name()] = info.Mode().String()
	}
	info, _ := os.Stat(folder)
	got["."] = info.Mode().String()
	want := map[string]string{".": "drwx------", "sordino.db": "-rw-------", "sordino.db-wal": "-rw-------", "sordino.db-shm": "-rw-------", "sordino.lock": "-rw-------"}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
}

// A clean end leaves one file with everything in it, which can be copied.
func TestCloseLeavesOneFile(t *testing.T) {
	folder := storetest.Folder(t)
	s, err := store.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(number(1)) })
	view(t, s, func(tx environment.Tx) error { _, err := tx.Environment(number(1).Name); return err })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sordino.db-wal", "sordino.db-shm"} {
		if _, err := os.Stat(filepath.Join(folder, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Update(t.Context(), func(environment.Tx) error { return nil }); err == nil {
		t.Error("a closed database was written")
	}
}

// What a caller does to a value is not seen by the next.
func TestValuesBelongToTheCaller(t *testing.T) {
	s := storetest.Open(t)
	want := number(1)
	want.Observed.Nodes[0].Findings = []string{"f"}
	update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(want) })
	read := func() (e *environment.Environment) {
		view(t, s, func(tx environment.Tx) (err error) { e, err = tx.Environment(want.Name); return err })
		return e
	}
	for range 2 { // the first read, and one of what it left
		e := read()
		e.Spec.Labels["team"] = "other"
		e.Spec.Config.NodeConfig.Network = "other"
		e.Plan.Ranges[1].Name = "other"
		e.Plan.NodeAddresses[0] = netip.Addr{}
		e.Observed.Nodes[0].Name = "other"
		e.Observed.Nodes[0].Findings[0] = "other"
	}
	if diff := cmp.Diff(want, read(), exactly); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Nor what a transaction wrote that did not happen.
	_ = s.Update(t.Context(), func(tx environment.Tx) error {
		e, err := tx.Environment(want.Name)
		e.Agent.Text = "never"
		err = errors.Join(err, tx.PutEnvironment(e))
		_, err2 := tx.Environment(want.Name)
		return errors.Join(err, err2, errors.New("mine"))
	})
	want.Agent.Text = "afterwards"
	update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(want) })
	if got := read().Agent.Text; got != "afterwards" {
		t.Errorf("read %q", got)
	}
}

// An existing cluster has one environment at a time, and is free again after.
func TestClusterHolders(t *testing.T) {
	s := storetest.Open(t)
	first, second, none := number(1), number(2), number(3)
	first.Cluster, second.Cluster = "cluster-1", "cluster-2"
	first.Observed.Nodes[0].Network = &environment.NodeNetwork{Address: netip.MustParseAddr("10.89.0.2"), PodCIDR: netip.MustParsePrefix("10.88.1.0/24")}
	first.Observed.Unseen = &environment.Unseen{Since: time.Unix(1_800_000_002, 0).UTC(), Cause: "no route"}
	op := createOf(first)
	op.State, op.Result = environment.Succeeded, first
	update(t, s, func(tx environment.Tx) error {
		return errors.Join(tx.PutEnvironment(first), tx.PutEnvironment(second), tx.PutEnvironment(none), tx.PutOperation(op))
	})
	another := number(4)
	another.Cluster = "cluster-1"
	if err := s.Update(t.Context(), func(tx environment.Tx) error { return tx.PutEnvironment(another) }); !errors.Is(err, environment.ErrConflict) {
		t.Errorf("one cluster twice: %v", err)
	}
	view(t, s, func(tx environment.Tx) error {
		holders, err := tx.ClusterHolders()
		if diff := cmp.Diff(map[string]environment.Name{"cluster-1": first.Name, "cluster-2": second.Name}, holders); diff != "" {
			t.Errorf("holders (-want +got):\n%s", diff)
		}
		got, errGet := tx.Environment(first.Name)
		if diff := cmp.Diff(first, got, exactly); diff != "" {
			t.Errorf("the environment (-want +got):\n%s", diff)
		}
		stored, errOp := tx.Operation(op.Name)
		if errOp == nil && stored.Result.Cluster != "cluster-1" {
			t.Errorf("the operation's result is on %q", stored.Result.Cluster)
		}
		// Its ranges are its own affair.
		reservations, errRes := tx.Reservations(first.Plan.Network)
		for _, r := range reservations {
			if r.Owner != none.Name.String() {
				t.Errorf("%s is reserved for %s", r.Prefix, r.Owner)
			}
		}
		return errors.Join(err, errGet, errOp, errRes)
	})
	update(t, s, func(tx environment.Tx) error { return tx.DeleteEnvironment(first.Name) })
	update(t, s, func(tx environment.Tx) error { return tx.PutEnvironment(another) })
}
