package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"sordino/internal/kubeapi"
)

// Mirror holds what the API server last told of a resource, whether it can be
// reached now or not. The zero value knows nothing.
type Mirror[T any] struct {
	mu    sync.Mutex
	ref   kubeapi.Ref
	all   []T
	known bool
	err   error
}

// Follow keeps it up to date until the context ends, and calls changed when
// there is something new to know.
func (m *Mirror[T]) Follow(ctx context.Context, client *kubeapi.Client, ref kubeapi.Ref, log *slog.Logger, changed func()) {
	m.mu.Lock()
	m.ref = ref
	m.mu.Unlock()
	kubeapi.Follow(ctx, client, ref, func(all []T) {
		m.mu.Lock()
		lost := m.err
		m.all, m.known, m.err = all, true, nil
		m.mu.Unlock()
		if lost != nil {
			log.Info("the API server is followed again", "resource", ref.String())
		}
		changed()
	}, func(err error) {
		m.mu.Lock()
		said := m.err != nil && refusal(m.err) == refusal(err)
		m.err = err
		m.mu.Unlock()
		if said {
			return
		}
		log.Warn("the API server is not followed; what was seen last counts, and it is tried again", "resource", ref.String(), "error", err)
		if refusal(err) {
			changed()
		}
	})
}

// Last is what was last seen. Known is false as long as nothing was. Err is why
// it is not followed at present.
func (m *Mirror[T]) Last() (all []T, known bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all, m.known, m.err
}

// unsettled is why nothing is known yet that waiting may bring; nil when
// something is known, or was refused.
func (m *Mirror[T]) unsettled() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.known || refusal(m.err):
		return nil
	case m.err == nil:
		return fmt.Errorf("list %s: the API server has not answered yet", m.ref)
	}
	return m.err
}

// refusal tells an answer that another attempt does not change from trouble.
func refusal(err error) bool {
	return errors.Is(err, kubeapi.ErrNotFound) || errors.Is(err, kubeapi.ErrForbidden)
}
