package kubeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

const (
	// A watch lasts this long at least, and up to twice as long: it is chosen
	// for each one, so that a thousand agents do not begin theirs at once.
	watchTime = 5 * time.Minute
	// watchGrace is what a server gets to end a watch by itself.
	watchGrace = 15 * time.Second
	// Attempts after a failure start at firstRetry and double up to lastRetry,
	// or to refusedRetry where only a person can mend it.
	firstRetry   = 250 * time.Millisecond
	lastRetry    = 15 * time.Second
	refusedRetry = 2 * time.Minute
)

// Follow calls changed with all objects that the reference names, in order of
// namespace and name: once when it has read them and then whenever one of them
// changes, until the context ends. What is deleted is no more among them; an
// object that does not exist gives none.
//
// When the contact is lost, or the API server refuses, failed gets the error
// and what was seen last stays: Follow goes on trying. A resource that the API
// server does not have is such a refusal ([ErrNotFound]). Neither function is
// called concurrently.
func Follow[T any](ctx context.Context, c *Client, ref Ref, changed func([]T), failed func(error)) {
	f := &follower[T]{client: c, ref: ref, changed: changed}
	retry := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := f.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			retry = 0
			if time.Since(began) > time.Second {
				continue
			}
			// Ended in time, and yet at once: never a busy loop.
		} else {
			f.version = "" // list anew: what was missed is not known
			if !errors.Is(err, ErrExpired) {
				failed(err)
			}
			c.mu.Lock()
			c.health.WatchRestarts++
			c.mu.Unlock()
			if time.Since(began) > lastRetry {
				retry = 0 // it went well for a while
			}
		}
		longest := lastRetry
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrForbidden) {
			longest = refusedRetry
		}
		retry = min(max(2*retry, firstRetry), longest)
		wait := max(retry, RetryAfter(err))
		// From a half to one and a half times.
		wait = wait/2 + rand.N(wait)
		select {
		case <-ctx.Done():
		case <-time.After(max(wait, RetryAfter(err))):
		}
	}
}

// follower is what one Follow knows.
type follower[T any] struct {
	client  *Client
	ref     Ref
	changed func([]T)
	objects map[string]T
	version string // from which on to watch; empty: list first
}

// meta is what every object tells of itself.
type meta struct {
	Metadata struct {
		Name            string `json:"name"`
		Namespace       string `json:"namespace"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
}

func (m meta) key() string { return m.Metadata.Namespace + "/" + m.Metadata.Name }

// once lists, if there is need, and watches until the watch ends; nil is an
// end in good order.
func (f *follower[T]) once(ctx context.Context) error {
	if f.version == "" {
		if err := f.list(ctx); err != nil {
			return err
		}
	}
	return f.watch(ctx)
}

// all is the reference to the resource, and the query that narrows it down to
// the one object.
func (f *follower[T]) all() (Ref, url.Values) {
	query := url.Values{}
	if f.ref.Name != "" {
		query.Set("fieldSelector", "metadata.name="+f.ref.Name)
	}
	ref := f.ref
	ref.Name = ""
	return ref, query
}

func (f *follower[T]) list(ctx context.Context) error {
	ref, query := f.all()
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := f.named(f.client.call(ctx, "list", http.MethodGet, ref, query, "", nil, &list)); err != nil {
		return err
	}
	objects := map[string]T{}
	for _, item := range list.Items {
		m, object, err := f.decode(item)
		if err != nil {
			return err
		}
		objects[m.key()] = object
	}
	f.objects, f.version = objects, list.Metadata.ResourceVersion
	f.tell()
	return nil
}

// named makes a refusal speak of the one object that was asked for.
func (f *follower[T]) named(err error) error {
	if s := (*StatusError)(nil); errors.As(err, &s) {
		s.Ref = f.ref
	}
	return err
}

func (f *follower[T]) decode(text []byte) (m meta, object T, err error) {
	if err = json.Unmarshal(text, &m); err == nil {
		err = json.Unmarshal(text, &object)
	}
	if err != nil {
		err = fmt.Errorf("reading %s: %w", f.ref, err)
	}
	return m, object, err
}

func (f *follower[T]) tell() {
	all := make([]T, 0, len(f.objects))
	for _, key := range slices.Sorted(maps.Keys(f.objects)) {
		all = append(all, f.objects[key])
	}
	f.changed(all)
}

func (f *follower[T]) watch(ctx context.Context) error {
	length := watchTime + rand.N(watchTime)
	ctx, cancel := context.WithTimeoutCause(ctx, length+watchGrace, errors.New("the API server did not end the watch in time"))
	defer cancel()
	ref, query := f.all()
	query.Set("watch", "true")
	query.Set("allowWatchBookmarks", "true")
	query.Set("resourceVersion", f.version)
	query.Set("timeoutSeconds", strconv.Itoa(int(length.Seconds())))
	response, err := f.client.do(ctx, "watch", http.MethodGet, ref, query, "", nil)
	if err != nil {
		return f.named(err)
	}
	defer response.Body.Close()
	events := json.NewDecoder(response.Body)
	for {
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		switch err := events.Decode(&e); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && context.Cause(ctx) != nil:
			return fmt.Errorf("watch %s: %w", f.ref, context.Cause(ctx))
		case err != nil:
			return fmt.Errorf("watch %s: %w", f.ref, err)
		}
		f.client.contact()
		if e.Type == "ERROR" {
			var s status
			if err := json.Unmarshal(e.Object, &s); err != nil {
				return fmt.Errorf("watch %s: %w", f.ref, err)
			}
			return s.error("watch", f.ref)
		}
		m, object, err := f.decode(e.Object)
		if err != nil {
			return err
		}
		f.version = m.Metadata.ResourceVersion
		switch e.Type {
		case "ADDED", "MODIFIED":
			f.objects[m.key()] = object
			f.tell()
		case "DELETED":
			delete(f.objects, m.key())
			f.tell()
		}
	}
}
