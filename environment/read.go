package environment

import (
	"context"
	"fmt"

	"cloud.google.com/go/orchestration/airflow/service/apiv1/servicepb"
	"google.golang.org/genproto/googleapis/type/date"

	"sordino/environment/image"
)

// Get returns one environment.
func (s *Service) Get(ctx context.Context, name Name) (e *Environment, err error) {
	err = s.Store.View(ctx, func(tx Tx) error {
		e, err = load(tx, name)
		return err
	})
	return e, err
}

// List returns environments by name, and the token of the next page. The
// location "-" lists all of them.
func (s *Service) List(ctx context.Context, at Location, p Page) ([]*Environment, string, error) {
	size, from, err := p.open(DefaultPageSize, "environments", at.String())
	if err != nil {
		return nil, "", err
	}
	query := EnvironmentQuery{Project: at.Project, Location: everywhere(at.ID), Limit: size + 1}
	if from.After != "" {
		if query.After, err = ParseName(from.After); err != nil {
			return nil, "", err
		}
	}
	var list []*Environment
	if err := s.Store.View(ctx, func(tx Tx) (err error) {
		list, err = tx.Environments(query)
		return err
	}); err != nil {
		return nil, "", err
	}
	if len(list) <= size {
		return list, "", nil
	}
	list = list[:size]
	from.After = list[size-1].Name.String()
	return list, from.token(), nil
}

// everywhere is a location as a query wants it: "-" is all.
func everywhere(location string) string {
	if location == "-" {
		return ""
	}
	return location
}

// ImageVersions lists the image versions, the newest first, and the token of
// the next page.
func (s *Service) ImageVersions(_ context.Context, at Location, p Page, includePast bool) ([]*servicepb.ImageVersion, string, error) {
	// Terraform's provider looks at one page only: by default all are on it.
	size, from, err := p.open(MaxPageSize, "imageVersions", at.String(), fmt.Sprint(includePast))
	if err != nil {
		return nil, "", err
	}
	var list []*servicepb.ImageVersion
	started := from.After == ""
	for _, v := range s.Images.List(includePast) {
		if !started {
			started = v.ID == from.After
			continue
		}
		if len(list) == size {
			from.After = list[size-1].ImageVersionId
			return list, from.token(), nil
		}
		list = append(list, imageVersion(v))
	}
	return list, "", nil
}

// ImageVersion returns one image version.
func (s *Service) ImageVersion(_ context.Context, at Location, id string) (*servicepb.ImageVersion, error) {
	v, ok := s.Images.Version(id)
	if !ok {
		name := at.String() + "/imageVersions/" + id
		return nil, &Error{Code: NotFound, Reason: "IMAGE_VERSION_NOT_FOUND",
			Message:  fmt.Sprintf("image version '%s' is not known; list the image versions to see which there are", id),
			Metadata: map[string]string{"imageVersion": id},
			Resource: &Resource{Type: "ImageVersion", Name: name, Description: "It does not exist."}, Help: []Link{helpVersions}}
	}
	return imageVersion(v), nil
}

func imageVersion(v image.Version) *servicepb.ImageVersion {
	m := &servicepb.ImageVersion{ImageVersionId: v.ID, IsDefault: v.Default, SupportedPythonVersions: v.Python,
		CreationDisabled: v.CreationDisabled, UpgradeDisabled: v.UpgradeDisabled}
	if !v.Released.IsZero() {
		m.ReleaseDate = &date.Date{Year: int32(v.Released.Year()), Month: int32(v.Released.Month()), Day: int32(v.Released.Day())}
	}
	return m
}
