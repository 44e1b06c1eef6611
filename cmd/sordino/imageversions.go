package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	composer "google.golang.org/api/composer/v1beta1"

	"sordino/client"
)

func imageVersionsCommand(r *remote) *cobra.Command {
	c := &cobra.Command{Use: "image-versions", Short: "The image versions that environments can have"}
	r.flags(c)
	var past bool
	list := &cobra.Command{Use: "list", Short: "List the image versions of a location", Args: cobra.NoArgs,
		RunE: r.connect(func(c *cobra.Command, _ []string, s *client.Client) error {
			parent, err := r.parent()
			if err != nil {
				return err
			}
			all := []*composer.ImageVersion{}
			call := s.Composer.Projects.Locations.ImageVersions.List(parent).IncludePastReleases(past)
			err = call.Pages(c.Context(), func(p *composer.ListImageVersionsResponse) error {
				all = append(all, p.ImageVersions...)
				return nil
			})
			if err != nil {
				return err
			}
			return r.print(c.OutOrStdout(), all, func(w io.Writer) {
				var rows [][]string
				for _, v := range all {
					var notes []string
					for _, n := range []struct {
						note  string
						holds bool
					}{{"default", v.IsDefault}, {"no new environments", v.CreationDisabled}, {"no upgrades from it", v.UpgradeDisabled}} {
						if n.holds {
							notes = append(notes, n.note)
						}
					}
					released := ""
					if d := v.ReleaseDate; d != nil {
						released = fmt.Sprintf("%04d-%02d-%02d", d.Year, d.Month, d.Day)
					}
					rows = append(rows, []string{v.ImageVersionId, strings.Join(v.SupportedPythonVersions, ","), released, strings.Join(notes, ", ")})
				}
				table(w, "IMAGE VERSION\tPYTHON\tRELEASED\tNOTES", rows)
			})
		})}
	list.Flags().BoolVar(&past, "include-past-releases", false, "also superseded releases, which a new environment can still ask for")
	r.locationFlag(list)
	c.AddCommand(list)
	return c
}
