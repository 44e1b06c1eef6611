package environment_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"sordino/environment"
)

func TestListPages(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	var want []string
	for i := range 7 {
		id := fmt.Sprintf("e%d", i)
		want = append(want, id)
		if _, err := f.create(id, `{}`); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := environment.Location{Project: here.Project, ID: "europe-west1"}
	if _, err := f.Create(ctx, environment.CreateRequest{Parent: elsewhere, Name: environment.Name{ID: "far"}}); err != nil {
		t.Fatal(err)
	}
	everywhere := environment.Location{Project: here.Project, ID: "-"}
	for _, test := range []struct {
		at   environment.Location
		size int32
		want []string
	}{{here, 3, want}, {here, 7, want}, {here, 0, want}, {here, 5000, want}, {elsewhere, 1, []string{"far"}},
		{everywhere, 2, append([]string{"far"}, want...)}, {environment.Location{Project: "nobody", ID: "us-central1"}, 1, nil}} {
		var got []string
		page := environment.Page{Size: test.size}
		for {
			list, next, err := f.List(ctx, test.at, page)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				got = append(got, e.Name.ID)
			}
			if next == "" {
				break
			}
			page.Token = next
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s by %d: %v, want %v", test.at, test.size, got, test.want)
		}
	}
	_, token, err := f.List(ctx, here, environment.Page{Size: 1})
	if err != nil || token == "" {
		t.Fatalf("token %q, %v", token, err)
	}
	for _, test := range []struct {
		at   environment.Location
		page environment.Page
		want string
	}{
		{here, environment.Page{Size: -1}, "page_size PAGE_SIZE_NEGATIVE The page size is -1. Ask for 1 to 1000 entries, or for 0 to have 50."},
		{elsewhere, environment.Page{Token: token}, "page_token PAGE_TOKEN_INVALID The page token is not one that this server gave for this list. Use nextPageToken of the page before with the same request, or leave it out to begin anew."},
		{here, environment.Page{Token: "2"}, "page_token PAGE_TOKEN_INVALID The page token is not one that this server gave for this list. Use nextPageToken of the page before with the same request, or leave it out to begin anew."},
	} {
		_, _, err := f.List(ctx, test.at, test.page)
		if got := violations(err); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
	if _, _, err := f.Operations(ctx, here, "", environment.Page{Token: token}); reason(err) != "PAGE_TOKEN_INVALID" {
		t.Errorf("a token of another list: %v", err)
	}
}

func TestImageVersions(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	all, next, err := f.ImageVersions(ctx, here, environment.Page{}, true)
	if err != nil || next != "" {
		t.Fatalf("all on page one: %q, %v", next, err)
	}
	current, _, err := f.ImageVersions(ctx, here, environment.Page{Size: 1000}, false)
	if err != nil || len(current) == 0 || len(current) >= len(all) {
		t.Errorf("%d current, %d in all, %v", len(current), len(all), err)
	}
	var ids []string
	page := environment.Page{Size: 4}
	for {
		list, next, err := f.ImageVersions(ctx, here, page, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range list {
			ids = append(ids, v.ImageVersionId)
		}
		if page.Token = next; next == "" {
			break
		}
	}
	if len(ids) != len(all) || ids[len(ids)-1] != all[len(all)-1].ImageVersionId {
		t.Errorf("by pages: %v", ids)
	}
	v, err := f.ImageVersion(ctx, here, "composer-1.20.12-airflow-1.10.15")
	if err != nil || !v.IsDefault || v.CreationDisabled || !slices.Equal(v.SupportedPythonVersions, []string{"2", "3"}) {
		t.Errorf("got %v, %v", v, err)
	}
	if _, err := f.ImageVersion(ctx, here, "composer-1-airflow-1"); reason(err) != "IMAGE_VERSION_NOT_FOUND" {
		t.Errorf("got %v", err)
	}
}

func TestOperations(t *testing.T) {
	f := newFixture(t)
	ctx := context.Background()
	var all []string
	for i := range 5 {
		f.now = f.now.Add(time.Second)
		op, err := f.create(fmt.Sprintf("e%d", i), `{}`)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			f.end(op, environment.Running)
		}
		all = append([]string{op.Name.ID}, all...)
	}
	list := func(filter string, size int32) []string {
		t.Helper()
		var got []string
		page := environment.Page{Size: size}
		for {
			ops, next, err := f.Operations(ctx, here, filter, page)
			if err != nil {
				t.Fatal(err)
			}
			for _, op := range ops {
				got = append(got, op.Name.ID)
			}
			if page.Token = next; next == "" {
				return got
			}
		}
	}
	done := []string{all[0], all[2], all[4]}
	for filter, want := range map[string][]string{
		"": all, "done=true": done, "done = false": {all[1], all[3]}, "metadata.state=SUCCESSFUL": done, "metadata.state=SUCCEEDED AND metadata.operationType=CREATE": done,
		"metadata.operationType:DELETE": nil, `metadata.resource="projects/example-project/locations/us-central1/environments/e1"`: {all[3]},
	} {
		for _, size := range []int32{1, 2, 100} {
			if got := list(filter, size); !slices.Equal(got, want) {
				t.Errorf("%q by %d: %v, want %v", filter, size, got, want)
			}
		}
	}
	_, _, err := f.Operations(ctx, here, "color=red", environment.Page{})
	if got := violations(err); got != "filter FILTER_INVALID The filter's part 'color=red' is not understood. Write FIELD=VALUE, joined by AND, with the fields done (true or false), metadata.state, metadata.operationType and metadata.resource." {
		t.Errorf("got %s", got)
	}

	ended, going := environment.OperationName{Location: here, ID: all[0]}, environment.OperationName{Location: here, ID: all[1]}
	if err := f.CancelOperation(ctx, going); err != nil {
		t.Fatal(err)
	}
	if op, err := f.Operation(ctx, going); err != nil || !op.CancelRequested || op.Done() || f.woken[len(f.woken)-1] != op.Target {
		t.Errorf("cancelled: %+v, %v", op, err)
	}
	if err := f.CancelOperation(ctx, ended); err != nil {
		t.Errorf("cancelling what has ended: %v", err)
	}
	err = f.DeleteOperation(ctx, going)
	if got := violations(err); got != "OPERATION_NOT_DONE operation '"+going.String()+"' is under way, and only one that has ended can be deleted; wait for it, or cancel it" {
		t.Errorf("got %s", got)
	}
	if err := f.DeleteOperation(ctx, ended); err != nil {
		t.Fatal(err)
	}
	_, err = f.Operation(ctx, ended)
	if got := violations(err); got != "OPERATION_NOT_FOUND operation '"+ended.String()+"' is not there; operations are kept for 30 days after their end" {
		t.Errorf("got %s", got)
	}
	for _, err := range []error{f.DeleteOperation(ctx, ended), f.CancelOperation(ctx, ended)} {
		if environment.CodeOf(err) != environment.NotFound {
			t.Errorf("got %v", err)
		}
	}
}
