package store

import (
	"maps"
	"slices"
	"sync"
)

// cacheSize is how many environments' documents are kept decoded: about 2 KiB
// each.
const cacheSize = 20_000

// documents keeps decoded documents of environments: decoding JSON is most of
// what a list costs. What belongs to a UUID and a revision never changes once
// it is committed, so nothing has to be taken out but for its size.
type documents struct {
	mu   sync.Mutex
	kept map[string]document
}

type document struct {
	revision int64
	decoded  *environmentDocument // never changed
}

// get returns a copy of the caller's own.
func (d *documents) get(uuid string, revision int64) (environmentDocument, bool) {
	d.mu.Lock()
	kept, known := d.kept[uuid]
	d.mu.Unlock()
	if !known || kept.revision != revision {
		return environmentDocument{}, false
	}
	return kept.decoded.clone(), true
}

// put keeps a copy. Only what is committed may be kept.
func (d *documents) put(uuid string, revision int64, decoded environmentDocument) {
	decoded = decoded.clone()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept == nil || len(d.kept) >= cacheSize {
		d.kept = map[string]document{}
	}
	d.kept[uuid] = document{revision, &decoded}
}

// clone copies everything that can be changed through the copy.
func (d *environmentDocument) clone() environmentDocument {
	c := *d
	c.Spec.Config, c.Spec.Storage = slices.Clone(d.Spec.Config), slices.Clone(d.Spec.Storage)
	c.Spec.Labels = maps.Clone(d.Spec.Labels)
	c.Plan.Ranges = slices.Clone(d.Plan.Ranges)
	c.Plan.NodeAddresses = slices.Clone(d.Plan.NodeAddresses)
	c.Plan.Warnings = slices.Clone(d.Plan.Warnings)
	c.Observed.Nodes = slices.Clone(d.Observed.Nodes)
	for i := range c.Observed.Nodes {
		c.Observed.Nodes[i].Findings = slices.Clone(d.Observed.Nodes[i].Findings)
		c.Observed.Nodes[i].Network = copied(d.Observed.Nodes[i].Network)
	}
	c.Observed.Unseen = copied(d.Observed.Unseen)
	return c
}

func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}
