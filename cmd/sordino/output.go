package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// print writes a value in the wished-for form, else lets text write.
func (r *remote) print(w io.Writer, v any, text func(io.Writer)) error {
	if r.format == "" {
		text(w)
		return nil
	}
	var encoded []byte
	var err error
	if m, ok := v.(proto.Message); ok {
		// protojson's spaces differ from build to build on purpose.
		if encoded, err = (protojson.MarshalOptions{}).Marshal(m); err == nil {
			var plain any
			if err = json.Unmarshal(encoded, &plain); err == nil {
				encoded, err = json.MarshalIndent(plain, "", "  ")
			}
		}
	} else {
		encoded, err = json.MarshalIndent(v, "", "  ")
	}
	if err == nil && r.format == "yaml" {
		encoded, err = yaml.JSONToYAML(encoded)
	}
	if err != nil {
		return fmt.Errorf("printing as %s: %w", r.format, err)
	}
	_, err = fmt.Fprintln(w, strings.TrimRight(string(encoded), "\n"))
	return err
}

// moment is a time of the API for a person: without fractions, in UTC.
func moment(text string) string {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return text
	}
	return t.UTC().Format(time.RFC3339)
}

// table writes aligned columns, or that there is nothing.
func table(w io.Writer, head string, rows [][]string) {
	if len(rows) == 0 {
		fmt.Fprintln(w, "Listed 0 items.")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, head)
	for _, r := range rows {
		for len(r) > 0 && r[len(r)-1] == "" { // no spaces at a line's end
			r = r[:len(r)-1]
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush() // a writer that fails has said so to the caller's next write
}
